"""LoRA on some rows of a batch: hooks on the adapted layers, which add B(A x) to the rows that asked for it.

Which rows run which adapter is local to the thread and lasts one pass (`routed`): nothing global is switched, and an
exception leaves nothing switched on. A layer has one hook however many adapters it has, and none once the last of them
is gone: then the caller's module is as it was. Where a row's tokens stand in a layer's input is not guessed:
`row_layers` measures it once for every layer, and a layer whose input does not hold the rows in order is refused.
"""

from __future__ import annotations

import itertools
import threading
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from trimtab.errors import CompatibilityError
from trimtab.models.adapters.row_layers import Placement, RowModel, row_layers
from trimtab.models.forward.grouping import RowAdapter

_active = threading.local()
_hooks: weakref.WeakKeyDictionary[nn.Module, _Hook] = weakref.WeakKeyDictionary()
_hooks_lock = threading.RLock()
"""A thread that drops an adapter may be another than the one that makes one."""


@dataclass(slots=True)
class _Hook:
    """The hook of an adapted layer, and how many adapters need it."""

    handle: RemovableHandle
    num_adapters: int = 0


@dataclass(frozen=True, slots=True)
class _Site:
    """An adapted layer: its name, Aᵀ [in, r], Bᵀ [r, out], and where its input holds the rows."""

    name: str
    down: Tensor
    up: Tensor
    placement: Placement


class RowLoRA:
    """An adapter in its layers' dtypes and on their devices, ready to be added to some rows.

    Raises CompatibilityError for a layer whose input does not hold the batch's rows in order.
    """

    def __init__(self, base: RowModel, pairs: Mapping[str, tuple[Tensor, Tensor]]) -> None:
        placements = checked_placements(base, list(pairs))
        modules = dict(base.module.named_modules())
        dtype = getattr(base.module, "dtype", torch.float32)
        self._sites: dict[nn.Module, _Site] = {}
        for name, (down, up) in pairs.items():
            if placements[name] is Placement.NOWHERE:
                continue
            module = modules[name]
            weight = next(itertools.chain(module.parameters(), module.buffers()))
            kind = weight.dtype if weight.dtype.is_floating_point and weight.dtype.itemsize > 1 else dtype
            down, up = (side.to(weight.device, kind).t().contiguous() for side in (down, up))
            self._sites[module] = _Site(name, down, up, placements[name])
            _hook(module)
            weakref.finalize(self, _unhook, module).atexit = False

    def add(self, module: nn.Module, x: Tensor, output: Tensor, rows: list[int], shape: tuple[int, int]) -> Tensor:
        """`output` with B A x added to its rows, in place where its memory allows it. `shape`: rows, tokens of each."""
        site = self._sites.get(module)
        if site is None:
            return output
        num_rows, width = shape
        if len(x) != (num_rows if site.placement is Placement.ROWS else num_rows * width):
            raise CompatibilityError(
                f"{site.name} was given {list(x.shape)} in a pass of {num_rows} rows of {width} tokens, where its rows "
                f"cannot be told apart. {WAY_OUT}"
            )
        output = output.contiguous()
        x_rows = x.reshape(num_rows, -1, x.shape[-1])
        y_rows = output.view(num_rows, -1, output.shape[-1])
        first, last = rows[0], rows[-1] + 1
        if last - first == len(rows):
            part = x_rows[first:last].reshape(-1, x.shape[-1]).to(site.down.dtype)
            target = y_rows[first:last].view(-1, output.shape[-1])
            if target.dtype == site.up.dtype:
                target.addmm_(part @ site.down, site.up)
            else:
                target += (part @ site.down @ site.up).to(target.dtype)
            return output
        index = torch.tensor(rows, device=x.device)
        change = x_rows[index].to(site.down.dtype) @ site.down @ site.up
        y_rows.index_add_(0, index, change.to(output.dtype))
        return output


WAY_OUT = "Merge the adapter into its base with peft's merge_and_unload() and load the result as a model."


def checked_placements(base: RowModel, names: Sequence[str]) -> dict[str, Placement]:
    """Where each layer's input holds the rows of a batch. Raises CompatibilityError for the first that is in no order.

    The output head is run here on one state for each row.
    """
    head = output_head(base.module)
    found = row_layers(base, [name for name in names if name != head])
    for name, placement in found.items():
        if isinstance(placement, str):
            raise CompatibilityError(f"{name} of {type(base.module).__name__} {placement}. {WAY_OUT}")
    placements = {name: placement for name, placement in found.items() if isinstance(placement, Placement)}
    if head is not None and head in names:
        placements[head] = Placement.ROWS
    return placements


def output_head(module: nn.Module) -> str | None:
    """The name of a causal model's output head; None where there is none."""
    find = getattr(module, "get_output_embeddings", None)
    head = None if find is None else find()
    return next((name for name, part in module.named_modules() if part is head), None)


@contextmanager
def routed(adapters: Sequence[tuple[RowAdapter, list[int]]], shape: tuple[int, int]) -> Iterator[None]:
    """For the forward passes inside, in this thread only: which rows run which adapter.

    `shape` is that of the pass: how many rows, and how many tokens of each.
    """
    previous = getattr(_active, "routing", None)
    _active.routing = (adapters, shape) if adapters else None
    try:
        yield
    finally:
        _active.routing = previous


def _hook(module: nn.Module) -> None:
    """Count one more adapter of a layer; the first brings the hook."""
    with _hooks_lock:
        hook = _hooks.get(module)
        if hook is None:
            hook = _hooks[module] = _Hook(module.register_forward_hook(_add_rows))
        hook.num_adapters += 1


def _unhook(module: nn.Module) -> None:
    """Count one adapter of a layer less; the last takes the hook away."""
    with _hooks_lock:
        hook = _hooks[module]
        hook.num_adapters -= 1
        if not hook.num_adapters:
            hook.handle.remove()
            del _hooks[module]


def _add_rows(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
    routing = getattr(_active, "routing", None)
    if routing is None:
        return None
    adapters, shape = routing
    for adapter, rows in adapters:
        output = adapter.add(module, args[0], output, rows, shape)
    return output
