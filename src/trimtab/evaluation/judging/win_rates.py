"""Win rates from verdicts, and `win_rates.json`.

A pair's points are the mean over its orders: it is won above ½, lost below, tied at ½, so a judge that prefers whatever
stands first ties. The win rate is the mean over pairs of 1, ½ and 0. A pair that lacks a verdict is missing: it is
counted beside, and is not a tie. Intervals resample prompts; a prompt's seeds are averaged first.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from trimtab.errors import InputError, MissingExtraError
from trimtab.evaluation.comparison.records import as_strength
from trimtab.evaluation.judging.judges import FIRST, TIE, Judge
from trimtab.evaluation.judging.length_control import LengthControlled, length_controlled_win_rate
from trimtab.evaluation.judging.run import ORDERS, Contender, Cost, Judged, reasons_of
from trimtab.statistics import FEW, Interval, mean_interval, proportion_interval, wilson_interval
from trimtab.storage.files import write_text

WIN_RATES = "win_rates.json"
FORMAT = 1
FEW_PROMPTS = FEW
"""Below so many an interval is said to be wide."""


@dataclass(frozen=True, slots=True)
class PositionBias:
    """What the order of the answers did, over the pairs with both verdicts."""

    num_pairs: int
    flipped: Interval | None
    """Share of pairs in which another method won when the order was turned (Wilson; a prompt's seeds count apart)."""
    first_preferred: float | None
    """Share of the verdicts for one of the two that went to the answer that stood first; ½ is fair."""


@dataclass(frozen=True, slots=True)
class WinRate:
    """How a method did against the baseline. Shares are from 0 to 1."""

    contender: Contender
    win: int
    tie: int
    loss: int
    missing: int
    num_prompts: int
    """Those with at least one pair that was judged."""
    win_rate: Interval | None
    """(wins + ½ ties) / judged pairs; None where fewer than two prompts were judged."""
    interval: str
    """How it was made, or why there is none."""
    decided: Interval | None
    """Wins among the pairs that were won or lost (Wilson; a prompt's seeds count apart)."""
    length_controlled: LengthControlled | None
    length_note: str
    """Why there is no length-controlled win rate."""
    mean_length: float
    """Characters an answer."""
    baseline_mean_length: float
    position: PositionBias | None
    """None for a judge that does not see the order."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader should know before quoting it."""
        few = f"only {self.num_prompts} prompts: read the interval, not the figure"
        gaps = f"{self.missing} of {self.missing + self.win + self.tie + self.loss} pairs have no verdict"
        length = f"not at equal length: {self.length_note.rstrip('.')}"
        said = (self.num_prompts < FEW_PROMPTS, bool(self.missing), self.length_controlled is None)
        return tuple(text for text, holds in zip((few, gaps, length), said, strict=True) if holds)


def win_rate(judged: Sequence[Judged], *, sees_order: bool) -> WinRate:
    """The win rate of one method over its pairs. Raises InputError where there is no pair."""
    if not judged:
        raise InputError("There is no pair of answers to judge.")
    orders = ORDERS if sees_order else ORDERS[:1]
    points = [one.points(orders) for one in judged]
    outcomes = [None if value is None else _outcome(value) for value in points]
    known = [value for value in outcomes if value is not None]
    wins, losses = known.count(1.0), known.count(0.0)
    by_prompt: dict[int, list[float]] = {}
    for one, outcome in zip(judged, outcomes, strict=True):
        if outcome is not None:
            by_prompt.setdefault(one.pair.prompt_index, []).append(outcome)
    interval, how = _interval(list(by_prompt.values()))
    lengths = [len(one.pair.answer.text) for one in judged], [len(one.pair.other.text) for one in judged]
    controlled, note = _length_controlled(points, *lengths, [one.pair.prompt_index for one in judged])
    return WinRate(
        judged[0].pair.contender,
        win=wins,
        tie=known.count(0.5),
        loss=losses,
        missing=len(outcomes) - len(known),
        num_prompts=len(by_prompt),
        win_rate=interval,
        interval=how,
        decided=_decided(judged, outcomes),
        length_controlled=controlled,
        length_note=note,
        mean_length=sum(lengths[0]) / len(judged),
        baseline_mean_length=sum(lengths[1]) / len(judged),
        position=_position_bias(judged) if sees_order else None,
    )


def _decided(judged: Sequence[Judged], outcomes: Sequence[float | None]) -> Interval | None:
    """The share of won pairs among those that are not ties, its interval over prompts; None where all tie."""
    pairs = [(one.pair.prompt_index, outcome) for one, outcome in zip(judged, outcomes, strict=True)]
    decided = [(prompt, outcome == 1.0) for prompt, outcome in pairs if outcome not in (None, 0.5)]
    return proportion_interval([won for _, won in decided], [prompt for prompt, _ in decided]) if decided else None


def _outcome(points: float) -> float:
    """1: won; 0: lost; ½: tied."""
    return 1.0 if points > 0.5 else 0.0 if points < 0.5 else 0.5


def _interval(by_prompt: Sequence[Sequence[float]]) -> tuple[Interval | None, str]:
    means = [sum(values) / len(values) for values in by_prompt]
    if len(means) < 2:
        return None, f"no interval: {len(means)} prompts with a verdict, at least 2 are needed"
    if len(set(means)) == 1:
        # The bootstrap has nothing to resample, and an interval of no width would claim certainty.
        share = wilson_interval(means[0] * len(means), len(means))
        return share, "95 %, Wilson over prompts, since all of them agree"
    return mean_interval(means), "95 %, bootstrap over prompts (BCa)"


def _length_controlled(
    points: Sequence[float | None], lengths: Sequence[int], baseline_lengths: Sequence[int], prompts: Sequence[int]
) -> tuple[LengthControlled | None, str]:
    try:
        found = length_controlled_win_rate(points, lengths, baseline_lengths, prompts=prompts)
    except (InputError, MissingExtraError) as error:
        return None, str(error)
    if found.model_coefficient == 0:
        return (
            None,
            "The regression's penalty leaves no term for the model: too few verdicts, or no difference to find.",
        )
    return found, ""


def _position_bias(judged: Sequence[Judged]) -> PositionBias:
    both = [one for one in judged if one.points(ORDERS) is not None and one.pair.answer.text != one.pair.other.text]
    winners = [[one.verdicts[order].winner for order in ORDERS] for one in both]
    flipped = [first == second != TIE for first, second in winners]
    decided = [winner for pair in winners for winner in pair if winner != TIE]
    return PositionBias(
        len(both),
        proportion_interval(flipped, [one.pair.prompt_index for one in both]) if both else None,
        decided.count(FIRST) / len(decided) if decided else None,
    )


@dataclass(frozen=True, slots=True)
class Judgement:
    """All win rates under one judge against one baseline."""

    judge: str
    description: str
    baseline: Contender
    split: str
    methods: tuple[WinRate, ...]
    cost: Cost
    """What all verdicts of this judge on file took."""
    settings: Mapping[str, object] = field(default_factory=dict)
    """What the judge was: see `judges.Judge.settings`."""
    reasons: tuple[str, ...] = ()
    """Why verdicts are missing, each with how many."""

    @property
    def caution(self) -> str:
        """What a reader must know of prompts on which strengths were chosen; nothing to say of test prompts."""
        if self.split != "validation":
            return ""
        return (
            "Strengths that were not given were chosen on these very prompts, so their rates flatter them; the test "
            "prompts had no say"
        )

    @staticmethod
    def of(judge: Judge, baseline: Contender, split: str, groups: Sequence[Sequence[Judged]], cost: Cost) -> Judgement:
        rates = tuple(win_rate(group, sees_order=judge.sees_order) for group in groups)
        reasons = tuple(reasons_of(groups))
        return Judgement(judge.name, judge.description, baseline, split, rates, cost, dict(judge.settings), reasons)


def write_win_rates(directory: Path, judgement: Judgement) -> Path:
    """Put a judge's win rates into `win_rates.json`, beside those of other judges and baselines."""
    path = directory / WIN_RATES
    kept = [one for one in read_win_rates(directory) if _same_place(one) != _same_place(judgement)]
    items = [as_json(one) for one in (*kept, judgement)]
    text = json.dumps({"format": FORMAT, "judgements": items}, indent=1, ensure_ascii=False)
    write_text(path, text + "\n")
    return path


def _same_place(judgement: Judgement) -> tuple[object, ...]:
    return judgement.judge, judgement.baseline, judgement.split


def read_win_rates(directory: Path) -> list[Judgement]:
    """What `win_rates.json` of a run holds; nothing where there is none. Raises InputError for another format."""
    path = directory / WIN_RATES
    if not path.exists():
        return []
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if record["format"] != FORMAT:
            raise ValueError(f"format {record['format']}")
        return [_from_json(item) for item in record["judgements"]]
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} is not what `trimtab judge` writes ({error}). Remove it and judge again.") from None


def as_json(judgement: Judgement) -> dict[str, object]:
    """A judgement as `win_rates.json` has it."""
    fields = asdict(judgement)
    fields["baseline"] = judgement.baseline._asdict()
    fields["caution"] = judgement.caution
    for item, rate in zip(fields["methods"], judgement.methods, strict=True):
        item["contender"] = rate.contender._asdict()
        item["notes"] = list(rate.notes)
    return fields


def _from_json(fields: Mapping[str, Any]) -> Judgement:
    return Judgement(
        fields["judge"],
        fields["description"],
        _contender(fields["baseline"]),
        fields["split"],
        tuple(_rate(item) for item in fields["methods"]),
        Cost(**fields["cost"]),
        fields.get("settings", {}),
        tuple(fields.get("reasons", ())),
    )


def _rate(fields: Mapping[str, Any]) -> WinRate:
    rest = {name: value for name, value in fields.items() if name != "notes"}
    controlled, position = rest.pop("length_controlled"), rest.pop("position")
    rest["contender"] = _contender(rest["contender"])
    rest["win_rate"], rest["decided"] = _read_interval(rest["win_rate"]), _read_interval(rest["decided"])
    if controlled is not None:
        controlled = LengthControlled(**{**controlled, "win_rate": Interval(**controlled["win_rate"])})
    if position is not None:
        position = PositionBias(**{**position, "flipped": _read_interval(position["flipped"])})
    return WinRate(**rest, length_controlled=controlled, position=position)


def _contender(fields: Mapping[str, Any]) -> Contender:
    return Contender(fields["method"], as_strength(fields["strength"]))


def _read_interval(fields: Mapping[str, float] | None) -> Interval | None:
    return None if fields is None else Interval(**fields)
