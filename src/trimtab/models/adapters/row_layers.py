"""Where the rows of a batch stand in the input of a layer, measured with real numbers.

Most layers are called on [B, Q, width]: rows first. Shared experts, gates and some feed-forward layers are called on
[B · Q, width]: the rows' tokens one after another. A router's experts are called on tokens regrouped by expert, in
which no row is found again. Shapes alone do not tell these apart, so three rows are run in one batch and each of them
alone, and what the layer was given in the batch must be what it is given for the row alone.

What it does not know: a layer that none of these few tokens has reached, where others of its kind were, counts as one
of regrouped tokens.
"""

from __future__ import annotations

import enum
import re
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor, nn

from trimtab.core import ModelSession
from trimtab.models.forward.grouping import RowAdapter
from trimtab.models.hooks import ForwardHook, hooked


class Placement(enum.Enum):
    """Where a layer's input holds the rows of a batch."""

    ROWS = "[B, ..., width]"
    """The first dimension is the rows."""
    TOKENS = "[B · Q, ..., width]"
    """The first dimension is the tokens of the first row, then those of the second, and so on."""
    NOWHERE = "never"
    """Text never reaches the layer: a vision tower's, for example."""


Verdict: TypeAlias = Placement | str
"""A placement, or why there is none: a predicate such as "is called on tokens in another order than the rows'"."""

_NUM_ROWS, _NUM_TOKENS = 3, 5
_NUM_DIRECTIONS = 8
_NEAR = 0.25
"""How far a row's input in the batch may be from that of the row alone, in distances to the nearest other row's."""
_NOISE = 1e-3
"""What is so much nearer than its own length is the same, where rows do not differ at all."""

_known: weakref.WeakKeyDictionary[nn.Module, dict[str, Verdict]] = weakref.WeakKeyDictionary()


class RowModel(Protocol):
    """A model whose rows can run with an adapter; `models.backbone.Backbone` is one."""

    @property
    def module(self) -> Any:
        """The network, an `nn.Module` whose modules' names adapters refer to."""

    def open_rows(self, beside: ModelSession | None, adapter: RowAdapter | None) -> ModelSession:
        """A session whose rows run with `adapter`, or plain ones."""


def row_layers(base: RowModel, names: Sequence[str]) -> dict[str, Verdict]:
    """What is known of each of some layers of `base`, in their order; what is not known yet is measured.

    Layers are named as in `named_modules`. Costs eight passes of a few tokens for the layers that are asked for first.
    """
    known = _known.setdefault(base.module, {})
    unknown = [name for name in names if name not in known]
    if unknown:
        known.update(_measured(base, unknown))
    return {name: known[name] for name in names}


_Call: TypeAlias = tuple[tuple[int, ...], Tensor, bool]
"""One call of a layer: its input's leading dimensions, the input in a few random directions [n, d], and whether its
output is one tensor with the same leading dimensions."""


def _measured(base: RowModel, names: Sequence[str]) -> dict[str, Verdict]:
    """The verdicts on some layers.

    What does not hold for one of a block's experts holds for none of them, so the others are measured too.
    """
    groups = {_group(name) for name in names}
    watched = {name: module for name, module in base.module.named_modules() if _group(name) in groups}
    size = int(base.module.get_input_embeddings().weight.shape[0])
    prompts = [
        [(size // 3 + row * max(1, size // 4) + 5 * place) % size for place in range(_NUM_TOKENS)]
        for row in range(_NUM_ROWS)
    ]
    together = _calls(base, watched, prompts)
    alone = [_calls(base, watched, [prompt]) for prompt in prompts]
    exact = getattr(base.module, "dtype", torch.float32) == torch.float32
    found: dict[str, Verdict] = {}
    for name in watched:
        batch, singles = [calls[name] for calls in together], [[calls[name] for calls in passes] for passes in alone]
        if any(batch) or any(map(any, singles)):
            found[name] = _placed(batch, singles, exact)
    unreached = [name for name in watched if name not in found]
    found.update(_unreached(base, unreached, prompts[0]) if unreached else {})
    refused = {_group(name): verdict for name, verdict in found.items() if isinstance(verdict, str)}
    return {name: refused.get(_group(name), found[name]) for name in names}


def _calls(base: RowModel, watched: dict[str, nn.Module], prompts: list[list[int]]) -> list[dict[str, list[_Call]]]:
    """The layers' calls in each of two passes: over the prompts, and over one token more of each."""
    session = base.open_rows(None, None)
    session.admit(prompts)
    with _recorded(watched) as first:
        session.context()
    session.advance(torch.arange(len(prompts)), torch.tensor([prompt[0] for prompt in prompts]))
    with _recorded(watched) as second:
        session.context()
    return [first, second]


@cache
def _directions(width: int) -> Tensor:
    """[width, d] random numbers, the same for one width."""
    return torch.randn(width, _NUM_DIRECTIONS, generator=torch.Generator().manual_seed(width))


@contextmanager
def _recorded(watched: dict[str, nn.Module]) -> Iterator[dict[str, list[_Call]]]:
    """Inside, the calls of some layers are kept."""
    calls: dict[str, list[_Call]] = {name: [] for name in watched}

    def keep(name: str, args: tuple[object, ...], output: object) -> None:
        x = args[0] if args and isinstance(args[0], Tensor) else None
        if x is None or x.ndim < 2:
            calls[name].append(((), torch.zeros(0, 0), False))
            return
        lead = tuple(x.shape[:-1])
        alike = isinstance(output, Tensor) and tuple(output.shape[:-1]) == lead
        seen = x.detach().float().reshape(-1, x.shape[-1]) @ _directions(x.shape[-1]).to(x.device)
        calls[name].append((lead, seen.cpu(), alike))

    def keeping(name: str) -> ForwardHook:
        return lambda _, args, output: keep(name, args, output)

    with hooked((module, keeping(name)) for name, module in watched.items()):
        yield calls


_SCATTERED = "is called on tokens that are not the rows' in their order, so an adapter of it cannot run row by row"


def _placed(together: list[list[_Call]], alone: list[list[list[_Call]]], exact: bool) -> Verdict:
    """The placement that every call agrees with. `alone` is one list of passes for each row."""
    placements = set()
    for index, batch in enumerate(together):
        singles = [passes[index] for passes in alone]
        if any(len(calls) != len(batch) for calls in singles):
            return _SCATTERED
        width = _NUM_TOKENS if index == 0 else 1
        for number, (lead, seen, alike) in enumerate(batch):
            if not alike:
                return "is not a layer of one input [..., width] and one output"
            placement = _by_shape(lead, width)
            rows = seen.reshape(_NUM_ROWS, -1, _NUM_DIRECTIONS) if placement is not None else None
            ones = [calls[number][1] for calls in singles]
            if rows is None or any(one.shape != rows.shape[1:] for one in ones) or not _same(rows, ones, exact):
                return _SCATTERED
            if width > 1:
                placements.add(placement)
    if len(placements) > 1:
        return "is called on inputs of several shapes, so an adapter of it cannot run row by row"
    return next(iter(placements), None) or _SCATTERED


def _by_shape(lead: tuple[int, ...], width: int) -> Placement | None:
    """[B, n, ...] or [B · width, ...]; a lone dimension of B, where rows have more tokens, is some tokens of theirs."""
    if lead[0] == _NUM_ROWS and (len(lead) > 1 or width == 1):
        return Placement.ROWS
    return Placement.TOKENS if lead[0] == _NUM_ROWS * width else None


def _same(rows: Tensor, ones: list[Tensor], exact: bool) -> bool:
    """Whether rows [B, n, d] of a batch are what they are alone; in half precision, a token in four may be far off."""
    for index, one in enumerate(ones):
        others = torch.stack([(other - one).norm(dim=-1) for at, other in enumerate(ones) if at != index]).amin(0)
        away = (rows[index] - one).norm(dim=-1)
        far = (away > _NEAR * others) & (away > _NOISE * one.norm(dim=-1))
        if int(far.sum()) > (0 if exact else len(one) // 4):
            return False
    return True


@torch.inference_mode()
def _unreached(base: RowModel, names: Sequence[str], prompt: Sequence[int]) -> dict[str, Verdict]:
    """The verdicts on layers that no row has reached.

    Text has nothing to do with one that the model's own forward does not reach either, it nor any of its kind in other
    blocks. Else which tokens reach it depends on what they are.
    """
    kinds = {_kind(name) for name in names}
    watched = {name: module for name, module in base.module.named_modules() if _kind(name) in kinds}
    ids = torch.tensor([list(prompt)], device=base.module.get_input_embeddings().weight.device)
    with _recorded(watched) as calls:
        base.module(input_ids=ids, use_cache=False)
    reached = {_kind(name) for name, found in calls.items() if found}
    return {name: _SCATTERED if _kind(name) in reached else Placement.NOWHERE for name in names}


def _kind(name: str) -> str:
    """The name of a layer without the numbers of blocks and experts."""
    return re.sub(r"(?<=\.)\d+(?=\.|$)", "*", name)


def _group(name: str) -> str:
    """The name of a layer without the numbers after that of its block: the same for the experts of a block."""
    first = re.search(r"(?<=\.)\d+(?=\.|$)", name)
    return name if first is None else name[: first.end()] + _kind(name[first.end() :])
