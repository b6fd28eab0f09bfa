"""What a forward pass takes by the number of rows and of new tokens in each, measured on a model as it is loaded."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from trimtab.errors import OptionError
from trimtab.evaluation.throughput import benchmark_prompts
from trimtab.models.forward.trunk import TrunkSession
from trimtab.models.hf import HFModel

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, slots=True)
class PassTime:
    """One point of the curve."""

    rows: int
    tokens: int
    """New tokens in each row."""
    milliseconds: float
    """The median of the turns."""
    low: float
    high: float
    ratio: float
    """Times what one token of the fewest rows takes."""


@torch.inference_mode()
def measure(
    model: HFModel,
    *,
    rows: Sequence[int],
    tokens: Sequence[int],
    num_prompt_tokens: int = 32,
    num_repeats: int = 7,
    progress: Callable[[str], None] | None = None,
) -> list[PassTime]:
    """A pass for each number of rows and of new tokens in each row, the output head left out, in milliseconds.

    Each row has a prompt of `num_prompt_tokens`, which is fed before; new tokens are taken back after each pass. All
    passes take turns, after a turn that does not count. One token is measured too where `tokens` does not name it:
    ratios are to it. Raises OptionError where prompt and new tokens do not fit into the model.
    """
    length = num_prompt_tokens + max(tokens)
    if model.max_length is not None and length > model.max_length:
        raise OptionError(f"Prompt and new tokens make {length}; {model.name} holds {model.max_length}. Ask for fewer.")
    widths, heights = sorted({1, *tokens}), sorted(set(rows))
    sessions = {height: _prompted(model, height, num_prompt_tokens) for height in heights}
    seconds: dict[tuple[int, int], list[float]] = {(height, width): [] for height in heights for width in widths}
    for turn in range(num_repeats + 1):
        if progress is not None and turn:
            progress(f"turn {turn} of {num_repeats}")
        for (height, width), taken in seconds.items():
            passed = _seconds(sessions[height], width, model.device)
            if turn:
                taken.append(passed)
    first = statistics.median(seconds[heights[0], 1])
    return [_time(height, width, taken, first) for (height, width), taken in seconds.items() if width in {*tokens}]


def _prompted(model: HFModel, num_rows: int, num_tokens: int) -> TrunkSession:
    session = model.open()
    assert isinstance(session, TrunkSession), "a transformers model's sessions are rows of a trunk"
    session.admit(benchmark_prompts(model, num_rows, num_tokens))
    session.context()
    return session


def _seconds(session: TrunkSession, num_tokens: int, device: torch.device) -> float:
    """One pass over so many new tokens of every row; they are drafts, so that they can be taken back."""
    every = torch.arange(session.num_rows)
    for token in range(num_tokens):
        session.draft(every, torch.full_like(every, token))
    _wait(device)
    started = time.perf_counter()
    session.context()
    _wait(device)
    seconds = time.perf_counter() - started
    session.settle(torch.zeros_like(every))
    return seconds


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _time(rows: int, tokens: int, seconds: Sequence[float], first: float) -> PassTime:
    middle = statistics.median(seconds)
    return PassTime(rows, tokens, 1000 * middle, 1000 * min(seconds), 1000 * max(seconds), middle / first)


def draw(found: Sequence[PassTime], path: Path) -> None:
    """The curves as an .svg or .png file: milliseconds over tokens, a line for each number of rows, ranges shaded.

    Raises MissingExtraError without matplotlib.
    """
    from trimtab.evaluation.report.figure import write

    def onto(figure: Figure) -> None:
        axes = figure.subplots()
        for height in sorted({one.rows for one in found}):
            line = [one for one in found if one.rows == height]
            across = [one.tokens for one in line]
            [drawn] = axes.plot(across, [one.milliseconds for one in line], marker="o", label=f"rows: {height}")
            low, high = [one.low for one in line], [one.high for one in line]
            axes.fill_between(across, low, high, color=drawn.get_color(), alpha=0.2, linewidth=0)
        axes.set_xlabel("new tokens of each row in one pass")
        axes.set_ylabel("milliseconds")
        axes.set_ylim(bottom=0)
        axes.legend()

    write(onto, path)
