"""Numbers, names and prompts as a reader of a report sees them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from trimtab.core import Prompt
from trimtab.evaluation.comparison.recipe import strength_text
from trimtab.evaluation.comparison.summary import Estimate
from trimtab.methods.method import Strength


def signed(value: float, digits: int = 2) -> str:
    """So many decimals with a true minus sign; nothing is −0.00."""
    text = f"{value:.{digits}f}"
    return (text.removeprefix("-") if float(text) == 0 else text).replace("-", "−")


def gained(value: float, digits: int = 2) -> str:
    """`signed` with a plus sign where it is above 0."""
    text = signed(value, digits)
    return text if text.startswith("−") or float(text) == 0 else f"+{text}"


def in_sentence(estimate: Estimate, *, digits: int = 2) -> str:
    """A mean with its 95 % interval, or why it has none."""
    if estimate.low is None or estimate.high is None:
        return f"{signed(estimate.value, digits)} (no interval: {estimate.num_prompts} prompts are too few)"
    low, high = signed(estimate.low, digits), signed(estimate.high, digits)
    return f"{signed(estimate.value, digits)} (95 % interval {low} to {high})"


def in_brackets(estimate: Estimate, *, digits: int = 2) -> str:
    """A mean with its interval behind it in brackets, where it has one."""
    if estimate.low is None or estimate.high is None:
        return signed(estimate.value, digits)
    low, high = signed(estimate.low, digits), signed(estimate.high, digits)
    return f"{signed(estimate.value, digits)} [{low}, {high}]"


def strength_shown(strength: Strength) -> str:
    """A strength with a true minus sign: `−1`, or `0.5, 0.5`."""
    return strength_text(strength).replace("-", "−")


def listed(items: Sequence[object]) -> str:
    """`1, 2 and 3`."""
    *firsts, last = map(str, items)
    return f"{', '.join(firsts)} and {last}" if firsts else last


def how_many(items: Sequence[object]) -> str:
    """`both`, or `all 3`."""
    return "both" if len(items) == 2 else f"all {len(items)}"


def prompt_text(prompt: Prompt) -> str:
    """A prompt as a reader should see it: the last message of a chat."""
    if isinstance(prompt, str):
        return prompt
    last = prompt[-1] if prompt else ""
    return last["content"] if isinstance(last, Mapping) else " ".join(map(str, prompt))
