"""Whether a model's rows are its own: the library's road against the model's own forward pass, when it is loaded.

Three rows of unequal lengths join, grow, are peeked at and take what was peeked at, past their windows; each state is
read as the model's own pass over that row reads it. A window that is longer than such rows is shortened for as long as
the probe lasts, in the config that both sides build their masks from; a model that does not follow its config is then
probed with rows as long as its windows. Last, a row is run beside one that stands at the end of the context: where that
changes it, the model scales positions, or attention, by the longest row of a pass.

How much may differ is a ratio to the model's own rounding: what comes out when each of its layers is disturbed by as
much as its dtype rounds. So one rule does for float32, half precision and quantized weights.
"""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from trimtab.errors import NotFiniteError
from trimtab.models.hooks import hooked
from trimtab.models.networks.backbone import Backbone
from trimtab.models.networks.kinds import refusal, refusing

log = logging.getLogger(__name__)

_STARTS = (6, 3, 1)
"""Tokens of each row when it joins; each grows by _GROWTH."""
_GROWTH = 4
_WINDOW = 4
"""What a longer window is shortened to; all rows but the last grow past it."""
_EXACT = 1e-4
"""Relative difference up to which no rounding is measured."""
RATIO = 4.0
"""Accepted difference, in multiples of the model's own rounding."""
_WINDOWS = ("sliding_window", "attention_chunk_size")
"""Names in a config of the lengths that masks are built from in each pass."""
_LENGTH = re.compile(r"(window(_size|_len)?|chunk_length|block_size)$")
"""Names of other lengths past which a model may see otherwise."""
_LEAST = 16
"""Rows are held to no fewer tokens than this: rather is the model refused."""
_ORIGINAL = "original_max_position_embeddings"


@dataclass(frozen=True)
class Numbers:
    """Two roads to the numbers of a model, which are to be the same."""

    own: Callable[[Tensor], Tensor]
    """[B, T] ids of whole rows -> [B, T, X] numbers, by the model's own forward pass without a cache."""
    read: Callable[[Tensor], Tensor]
    """[N, D] states -> [N, X] numbers."""


@torch.inference_mode()
def probe(backbone: Backbone, numbers: Numbers) -> None:
    """Raise CompatibilityError unless every row gives the model's own numbers, whoever runs beside it.

    Where a row is scaled by the longest of a pass, rows are held to a length up to which none is. Raises
    NotFiniteError for NaN.
    """
    with refusing(backbone.module):
        probed = _Probe(backbone, numbers)
        windows, others = _lengths(backbone)
        with backbone.shortened(windows, _WINDOW):
            agreed = probed.walk(_STARTS)
        if not agreed and windows:  # perhaps it does not follow its config
            others, agreed = [*windows.values(), *others], True
        if agreed and others:
            agreed = probed.walk((max(others) + 2, *_STARTS[1:]))
        if not agreed:
            raise refusal(backbone.module, probed.reason())
        _settle_length(backbone, probed)


class _Probe:
    """One model under probe, and the last that was seen of it."""

    def __init__(self, backbone: Backbone, numbers: Numbers) -> None:
        self.backbone = backbone
        self._numbers = numbers
        self._rows: list[list[int]] = []
        self._truth: list[Tensor] = []
        self._gap = 0.0
        self._rounding = 0.0

    def walk(self, starts: Sequence[int]) -> bool:
        """Whether rows that begin with so many tokens give the model's own numbers at each step."""
        limit = self.backbone.max_length
        starts = starts if limit is None else [max(1, min(start, limit - _GROWTH)) for start in starts]
        equal = max(starts) == max(_STARTS)  # then rows go on past what is read of them: none may look ahead
        lengths = [_GROWTH + (max(starts) if equal else start) for start in starts]
        self._rows = [_ids(row, length, self.backbone.num_embeddings) for row, length in enumerate(lengths)]
        self._truth = self._own()
        self._rounding = 0.0
        seen = _steps(self.backbone, self._rows, starts)
        states = torch.stack([state for *_, state in seen])
        self.backbone.hidden_size = states.shape[1]  # some project their states before they give them
        found = self._numbers.read(states)
        return self._agree(found, torch.stack([self._truth[row][place] for row, place, _ in seen]))

    def beside(self, end: int) -> bool:
        """Whether a row keeps its numbers beside one whose last token is the one before `end`."""
        width = _WINDOW  # so short that no window, shortened or not, hides any of it
        self._rows = [row[:width] for row in self._rows[:2]]
        self._truth, self._rounding = [row[:width] for row in self._truth[:2]], 0.0
        ids = torch.tensor(self._rows, device=self.backbone.device)
        positions = torch.arange(width, device=ids.device) + torch.tensor([[0], [end - width]], device=ids.device)
        states = self.backbone.states(ids, positions)
        return self._agree(self._numbers.read(states[0, -1:]), self._truth[0][-1:])

    def reason(self) -> str:
        """What is wrong with a model that does not agree, as the end of a sentence."""
        gap = self._gap
        if (company := self._company()) is not None:
            return company
        short = self._own([self._rows[0][:3]])[0][-1:]
        if not self._same(_relative(short, self._truth[0][2:3])):
            return "it is bidirectional: what it says of a token changes with the tokens after it"
        return (
            f"in a batch of unequal rows with a cache its numbers are {gap:.2g} of their spread from those of "
            f"its own forward pass, which rounds by {self._rounding:.1g}"
        )

    def _company(self) -> str | None:
        """Why its own forward pass, with no cache and no rows of other lengths, changes a row by the ones beside it."""
        width = min(map(len, self._rows))
        rows = [row[:width] for row in self._rows]
        alone = torch.cat([self._own([row])[0] for row in rows])
        if self._same(_relative(torch.cat(self._own(rows)), alone)):
            return None
        said = f"its own forward pass, with no cache, changes a row by {self._gap:.2g} of its spread in other company"
        method = _quantizer(self.backbone.module)
        return (
            said
            if method is None
            else (f"{said}, as {method} rounds them together. Quantise weights alone, or load it without quantisation")
        )

    def _own(self, rows: Sequence[list[int]] | None = None) -> list[Tensor]:
        """[T, X] of each row; rows of equal length in one pass."""
        rows = self._rows if rows is None else rows
        batches = [list(rows)] if len({len(row) for row in rows}) == 1 else [[row] for row in rows]
        device = self.backbone.device
        return [row for batch in batches for row in self._numbers.own(torch.tensor(batch, device=device)).to(device)]

    def _agree(self, found: Tensor, expected: Tensor) -> bool:
        if bool(torch.isnan(expected).any()):
            raise NotFiniteError(f"{self.backbone.name} gives NaN. Its weights are damaged, or need another dtype.")
        return self._same(_relative(found, expected))

    def _same(self, gaps: Tensor) -> bool:
        self._gap = float(gaps.max())
        if self._gap <= _EXACT:
            return True
        if not self._rounding:
            with disturbed(self.backbone.module):
                found = self._own()
            self._rounding = float(torch.cat(list(map(_relative, found, self._truth))).mean())
        return self._gap <= RATIO * self._rounding


def _steps(backbone: Backbone, rows: Sequence[Sequence[int]], starts: Sequence[int]) -> list[tuple[int, int, Tensor]]:
    """(row, place of its last token, state [D]) of every step of a session's rows."""
    session, every, lengths = backbone.open_rows(None, None, tables=False), torch.arange(len(rows)), list(starts)
    seen: list[tuple[int, int, Tensor]] = []

    def note(states: Tensor, ahead: int = 0) -> None:
        places = (length + ahead - 1 for length in lengths)
        seen.extend((row, place, state) for row, (place, state) in enumerate(zip(places, states, strict=True)))

    def following() -> Tensor:
        return torch.tensor([row[length] for row, length in zip(rows, lengths, strict=True)])

    def advance() -> None:
        session.advance(every, following())
        lengths[:] = [length + 1 for length in lengths]

    session.admit([row[:length] for row, length in zip(rows, starts, strict=True)])
    note(session.context())
    advance()
    note(session.context())
    candidates = torch.stack([(following() + 1) % backbone.num_embeddings, following()], dim=1)
    note(session.peek(candidates)[:, 1], ahead=1)
    advance()
    note(session.context())
    advance()
    advance()
    note(session.context())
    return seen


def _settle_length(backbone: Backbone, probed: _Probe) -> None:
    """Hold rows to the length up to which none is changed by where another stands."""
    limit = backbone.max_length
    if limit is None or limit <= _WINDOW:
        return
    lengths = [limit, *sorted(_originals(backbone.config.to_dict()), reverse=True)]
    while lengths[-1] > 2 * _LEAST:
        lengths.append(lengths[-1] // 2)
    held = next((length for length in lengths if length <= limit and probed.beside(length)), None)
    if held is None:
        raise refusal(backbone.module, "it scales by the longest row of a batch")
    if held < limit:
        backbone.hold(held)
        log.warning(
            "%s scales by the longest row of a batch where one is longer than %s tokens, so rows are held to that "
            "length (of %s)",
            *(backbone.name, held, limit),
        )


def _quantizer(module: Any) -> str | None:
    """What a model's config says that it was quantised by; None where it was not."""
    config = getattr(module.config, "quantization_config", None)
    if config is None:
        return None
    entries = config if isinstance(config, Mapping) else config.to_dict()
    return str(getattr(entries.get("quant_method"), "value", entries.get("quant_method")))


def _ids(row: int, length: int, num_ids: int) -> list[int]:
    return [(3 + 17 * row + 7 * place + place * place) % num_ids for place in range(length)]


def company_length(config: Any) -> int | None:
    """The length past which what a row reads may follow from how long others are, as far as a config tells; or None.

    Past it positions may be scaled, or attention be cut into blocks, for a whole batch at once.
    """
    config = config.get_text_config()
    return min([*_originals(config.to_dict()), *_others(config)], default=None)


def _lengths(backbone: Backbone) -> tuple[dict[str, int], list[int]]:
    """The windows that are to be shortened, by name, and other lengths that rows can grow past."""
    config, limit = backbone.config, backbone.max_length
    windows = {name: getattr(config, name, None) or 0 for name in _WINDOWS}
    windows = {name: window for name, window in windows.items() if window > _WINDOW}
    return windows, [value for value in _others(config) if limit is None or value + _GROWTH <= limit]


def _others(config: Any) -> list[int]:
    """Lengths other than windows past which a model may see otherwise."""
    return [
        value
        for name, value in config.to_dict().items()
        if _LENGTH.search(name) and name not in _WINDOWS and isinstance(value, int) and value > max(_STARTS)
    ]


def _originals(entries: Mapping[str, Any]) -> Iterator[int]:
    """The lengths that a config, or a table in it, says that positions were trained for before they were scaled."""
    for name, value in entries.items():
        if isinstance(value, Mapping):
            yield from _originals(value)
        elif name == _ORIGINAL and isinstance(value, int):
            yield value


def _relative(found: Tensor, expected: Tensor) -> Tensor:
    """[N] the root mean square of the difference of two [N, X], in multiples of the spread of the second."""
    found, expected = found.float(), expected.float()
    gap = (found - expected).square().mean(-1).sqrt() / expected.std(-1).clamp(min=1e-30)
    return torch.where(torch.isnan(gap), torch.inf, gap)


@contextlib.contextmanager
def disturbed(module: Any, seed: int = 0) -> Iterator[None]:
    """Disturb what each innermost part of a network gives by as much as its dtype rounds."""
    generators: dict[torch.device, torch.Generator] = {}

    def disturb(part: nn.Module, _inputs: object, output: object) -> Tensor | None:
        if not isinstance(output, Tensor) or not output.is_floating_point():
            return None
        generator = generators.setdefault(output.device, torch.Generator(output.device).manual_seed(seed))
        noise = torch.rand(output.shape, generator=generator, device=output.device) - 0.5
        return (output * (1 + max(_step(module, output), getattr(part, "rounding", 0.0)) * noise)).to(output.dtype)

    parts = [part for part in module.modules() if not any(True for _ in part.children())]
    with hooked((part, disturb) for part in parts):
        yield


def _step(module: Any, output: Tensor) -> float:
    """By how much two neighbouring numbers differ, relatively, as they are computed."""
    step = torch.finfo(output.dtype).eps
    if getattr(module.config, "quantization_config", None) is not None:
        return max(step, 2.0**-7)
    if output.is_cuda and output.dtype == torch.float32 and torch.get_float32_matmul_precision() != "highest":
        return 2.0**-10 if torch.get_float32_matmul_precision() == "high" else 2.0**-7
    return step
