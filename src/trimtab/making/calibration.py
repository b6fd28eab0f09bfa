"""Which form and strength a guide is best run at, decided on validation prompts, or why that cannot be said.

What goes in: each prompt's reward and KL at every form and strength that was tried, and the base's reward (strength 0).
The judge is the gold reward where there is one, else the reward that the guide was trained for. With r_s[p] the judge's
reward of the answer to prompt p at strength s:

- The peak of a form is the strength with the highest mean of r_s over prompts; of equal means the one of less KL.
- Its interval comes from a paired bootstrap: prompts are drawn anew with replacement, the same ones for every strength
  and for the base, and the peak is found again. The interval runs from the 2.5th to the 97.5th percentile of these
  peaks, so both ends are strengths that were tried, or 0, the base.
- A peak is named where (a) the paired gain over the base has an interval above 0, at a confidence of 1 - 0.05 / N for N
  points tried, since the best of N was looked for (Bonferroni); (b) the interval of its place ends below the largest
  strength of its form, so that there is a strength beyond it at which the reward is known to be less; (c) it begins
  above 0. Else it is refused, and the reason says which of them failed and what to try.
- Where each prompt has one and the same reward at every strength and without the guide, no peak could be seen with any
  number of prompts; the refusal names the values.
- Of two forms whose peaks are named the better one is taken, unless the interval of their paired difference reaches 0:
  then it is the one of less KL, which gives the same for less. A named peak gives way to a form that is clearly better
  (the interval above 0) and whose own peak is refused: then nothing is named.

Rewards rise and fall with strength in one peak as a policy is tilted towards a reward that is not quite the wanted one
(arXiv 2506.19248); where that is, only another reward than the one trained for can show, which is why there is `gold`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from trimtab.errors import InputError
from trimtab.statistics import Interval, difference_interval, mean_interval, paired_means

MIN_PROMPTS = 10
"""With fewer there is no interval, and so no peak."""
CONFIDENCE = 0.95
NO_KL = 1e-6
"""Nats an answer below which a guide is said to change nothing."""


@dataclass(frozen=True, slots=True)
class Point:
    """What was measured at one strength; each list has one number a prompt, in one order for all points."""

    form: str
    """`product`, `shift`, or empty for a guide that has no form."""
    strength: float
    """Above 0."""
    reward: Sequence[float]
    """What the guide was trained for."""
    kl: Sequence[float]
    """Nats an answer, policy to base."""
    gold: Sequence[float] | None = None


@dataclass(frozen=True, slots=True)
class Base:
    """The rewards of the model without the guide."""

    reward: Sequence[float]
    gold: Sequence[float] | None = None


@dataclass(frozen=True, slots=True)
class Peak:
    """The best strength of a form, by the judge's reward."""

    form: str
    strength: float
    low: float
    high: float
    """The interval of its place: strengths that were tried, or 0."""
    judged: Interval
    gain: Interval
    """Over the base, in the judge's reward, in pairs, at 95 %."""
    kl: Interval
    reward_after: Interval | None
    """By how much the training reward is higher at the largest strength than here, with a gold reward."""
    refusal: str = ""
    """Why it is not named; empty where it is."""

    @property
    def over_optimised(self) -> bool:
        """Whether the training reward still rises beyond the gold reward's peak, as far as the interval can tell."""
        return self.reward_after is not None and self.reward_after.low > 0


@dataclass(frozen=True, slots=True)
class Decision:
    """What a calibration came to."""

    chosen: Peak | None
    why: str
    """In a sentence or two: why this one, or why none."""
    peaks: tuple[Peak, ...]
    """One for each form, named or refused."""
    num_prompts: int


def too_few(num_prompts: int) -> str:
    """Why so few prompts to calibrate on name no strength; empty where they are enough."""
    if num_prompts >= MIN_PROMPTS:
        return ""
    return f"{num_prompts} prompts are too few for an interval; give at least {MIN_PROMPTS}, better some dozens."


def decide(base: Base, points: Sequence[Point]) -> Decision:
    """The form and strength to run at, or a refusal, as the module says. The same numbers give the same decision.

    Raises InputError for points that are not comparable: lists of different lengths, a gold reward in some of them
    only, strengths that are not above 0, or one that stands twice.
    """
    _check(base, points)
    num = len(base.reward)
    if why := _told_nothing_apart(base, points):
        return Decision(None, why, (), num)
    if why := too_few(num):
        return Decision(None, why, (), num)
    by_form: dict[str, list[Point]] = {}
    for point in sorted(points, key=lambda point: point.strength):
        by_form.setdefault(point.form, []).append(point)
    peaks = {form: _peak(base, found, len(points)) for form, found in by_form.items()}
    at_peak = {
        form: next(point for point in by_form[form] if point.strength == peak.strength) for form, peak in peaks.items()
    }
    named = [form for form, peak in peaks.items() if not peak.refusal]
    everything = tuple(peaks.values())
    if not named:
        return Decision(None, " ".join(_said(peak) for peak in everything), everything, num)
    form, why = _best(named, peaks, at_peak)
    for other, peak in peaks.items():
        if peak.refusal and _difference(at_peak[other], at_peak[form]).low > 0:
            return Decision(None, f"{_said(peak)} It is clearly better than the peak as a {form}.", everything, num)
    return Decision(peaks[form], why, everything, num)


def _told_nothing_apart(base: Base, points: Sequence[Point]) -> str:
    """Why no number of prompts would show a peak: each prompt has one reward, whatever the strength; else empty."""
    values = np.array([_judged(base), *(_judged(point) for point in points)], dtype=np.float64)
    rounding = 1e-12 * float(np.abs(values).max(initial=0.0))
    if not values.size or (np.ptp(values, axis=0) > rounding).any():
        return ""
    judge = "reward" if base.gold is None else "gold reward"
    low, high = float(values.min()), float(values.max())
    if high - low <= rounding:
        return (
            f"The {judge} is {low:g} for every answer, to {values.shape[1]} prompts, without the guide and at each of "
            f"{len(points)} strengths, so it tells no answers apart. Check it on a few answers, or give another."
        )
    if max(max(point.kl) for point in points) < NO_KL:
        return "The guide changes no answer: its KL is 0 at every strength tried. Try larger ones, or another guide."
    return (
        f"The {judge} of each prompt's answers is the same with and without the guide ({low:g} to {high:g} over "
        f"{values.shape[1]} prompts), so it does not see what the guide changes. Check it on a few answers, or give "
        "another."
    )


def _best(named: Sequence[str], peaks: Mapping[str, Peak], at_peak: Mapping[str, Point]) -> tuple[str, str]:
    """The form to take among those whose peak is named, and why."""
    best = max(named, key=lambda form: peaks[form].judged.value)
    if len(named) == 1:
        return best, "Its peak is the only one that the interval can name." if best else "The peak is named."
    for other in sorted(named, key=lambda form: peaks[form].kl.value):
        lead = _difference(at_peak[best], at_peak[other])
        if other == best:
            break
        if lead.low <= 0 and peaks[other].kl.value < peaks[best].kl.value:
            return other, (
                f"The peaks as a {best} and as a {other} cannot be told apart ({lead} in reward); as a {other} it "
                "costs less KL."
            )
    return best, "Its peak is the highest, or as high as another of more KL."


def _said(peak: Peak) -> str:
    return f"As a {peak.form}: {peak.refusal}" if peak.form else f"{peak.refusal[:1].upper()}{peak.refusal[1:]}"


def _judged(point: Point | Base) -> Sequence[float]:
    return point.reward if point.gold is None else point.gold


def _difference(point: Point, other: Point | Base, confidence: float = CONFIDENCE) -> Interval:
    return difference_interval(_judged(point), _judged(other), confidence=confidence)


def _peak(base: Base, points: Sequence[Point], num_points: int) -> Peak:
    """The peak of one form; `points` are in the order of their strengths."""
    # Rows in the order of their KL, the base first: of equal means the first one is taken.
    rows = sorted(points, key=lambda point: (float(np.mean(point.kl)), point.strength))
    strengths = np.array([0.0, *(point.strength for point in rows)])
    values = np.array([_judged(base), *(_judged(point) for point in rows)], dtype=np.float64)
    places = np.sort(strengths[_first_best(paired_means(values))])
    low, high = (float(found) for found in np.quantile(places, [0.025, 0.975], method="inverted_cdf"))
    point = rows[int(_first_best(values[1:].mean(axis=1)[None])[0])]
    last = points[-1]
    after = None if point.gold is None else difference_interval(last.reward, point.reward, confidence=CONFIDENCE)
    return Peak(
        form=point.form,
        strength=point.strength,
        low=low,
        high=high,
        judged=mean_interval(_judged(point)),
        gain=_difference(point, base),
        kl=mean_interval(point.kl),
        reward_after=after,
        refusal=_refusal(base, point, last, low, high, num_points),
    )


def _refusal(base: Base, point: Point, last: Point, low: float, high: float, num_points: int) -> str:
    """Why a peak is not named; empty where it is."""
    gain = _difference(point, base, 1 - (1 - CONFIDENCE) / num_points)
    if gain.low <= 0:
        return (
            f"the best strength, {point.strength:g}, gains {gain} over the base, an interval (for the best of "
            f"{num_points} points) that reaches 0. Give more prompts, or a guide that does more."
        )
    if point is last:
        return (
            f"the reward still rises at the largest strength tried, {last.strength:g}. Try larger ones, such as "
            f"{2 * last.strength:g} and {4 * last.strength:g}."
        )
    if high >= last.strength:
        return (
            f"the reward is highest at {point.strength:g}, and the interval of its peak, {low:g} to {high:g}, reaches "
            f"the largest strength tried. Try larger ones, such as {2 * last.strength:g}, or give more prompts."
        )
    if low <= 0:
        return (
            f"the reward is highest at {point.strength:g}, and the interval of its peak, {low:g} to {high:g}, holds "
            "the base. Give more prompts."
        )
    return ""


def _first_best(means: np.ndarray[tuple[int, int], np.dtype[np.float64]]) -> np.ndarray[tuple[int], np.dtype[np.intp]]:
    """For each row [N, K] the first column that is as high as the highest, up to rounding."""
    highest = means.max(axis=1, keepdims=True)
    slack = 1e-12 * np.abs(means).max(axis=1, keepdims=True)
    found: np.ndarray[tuple[int], np.dtype[np.intp]] = np.argmax(means >= highest - slack, axis=1)
    return found


def _check(base: Base, points: Sequence[Point]) -> None:
    if not points:
        raise InputError("No strength was tried, so there is no curve. Give strengths above 0.")
    num = len(base.reward)
    lists = [base.reward, *(values for point in points for values in (point.reward, point.kl))]
    golds = [base.gold, *(point.gold for point in points)]
    if any(gold is None for gold in golds) and any(gold is not None for gold in golds):
        raise InputError("A gold reward is given at some strengths only. Score all answers by it, or none.")
    if any(len(values) != num for values in (*lists, *(gold for gold in golds if gold is not None))):
        raise InputError("The strengths were not all tried on the same prompts. Give one number a prompt for each.")
    tried = [(point.form, point.strength) for point in points]
    for form, strength in tried:
        if not strength > 0:
            raise InputError(f"A strength tried is {strength:g}; a calibration looks for a peak above 0.")
        if tried.count((form, strength)) > 1:
            raise InputError(f"The strength {strength:g} stands twice among those tried. Give each once.")
