"""Pairwise verdicts on the answers of a comparison: each method against a baseline, by prompt and seed.

`judgements.jsonl` holds one verdict a line. A verdict is known by what was compared (method, strength, seed, prompt,
order, judge, baseline), by a digest of the three texts and by the judge's settings (its address, wording and sampling,
or the content of what scores), so that one on other texts or by another judge of that name is never taken for it. A run
that was cut asks only for what is missing, verdicts that did not come included.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple

from trimtab.errors import InputError, ModelError, ScoreError, unknown_name
from trimtab.evaluation.comparison.recipe import strength_text
from trimtab.evaluation.comparison.records import Row
from trimtab.evaluation.judging.judges import FIRST, SECOND, TIE, Judge, Question, Verdict
from trimtab.methods.method import Strength
from trimtab.storage.files import text_digest
from trimtab.storage.json_lines import append, open_to_append, read_lines
from trimtab.storage.same_run import differences

log = logging.getLogger(__name__)

JUDGEMENTS = "judgements.jsonl"

METHOD_FIRST, BASELINE_FIRST = "method_first", "baseline_first"
ORDERS = (METHOD_FIRST, BASELINE_FIRST)
EQUAL_TEXTS = "equal texts"
"""What a verdict says that nobody was asked for."""

_POINTS = {
    METHOD_FIRST: {FIRST: 1.0, TIE: 0.5, SECOND: 0.0},
    BASELINE_FIRST: {FIRST: 0.0, TIE: 0.5, SECOND: 1.0},
}


class Contender(NamedTuple):
    """A method at a strength."""

    method: str
    strength: Strength

    def __str__(self) -> str:
        return f"{self.method} at {strength_text(self.strength)}"


@dataclass(frozen=True, slots=True)
class Pair:
    """A method's answer and the baseline's, to the same prompt from the same seed."""

    contender: Contender
    baseline: Contender
    answer: Row
    other: Row

    @property
    def seed(self) -> int:
        return self.answer.key.seed

    @property
    def prompt_index(self) -> int:
        return self.answer.key.prompt_index

    def question(self, order: str) -> Question:
        texts = (self.answer.text, self.other.text)
        first, second = texts if order == METHOD_FIRST else texts[::-1]
        return Question(self.answer.prompt, first, second)


@dataclass(slots=True)
class Judged:
    """A pair with what was said of it, order by order."""

    pair: Pair
    verdicts: dict[str, Verdict] = field(default_factory=dict)

    def points(self, orders: Sequence[str]) -> float | None:
        """The method's mean points: 1 a win, ½ a tie, 0 a loss; None where a verdict is missing."""
        found = [points_of(order, self.verdicts[order]) for order in orders if order in self.verdicts]
        known = [value for value in found if value is not None]
        return sum(known) / len(known) if len(known) == len(orders) else None


def points_of(order: str, verdict: Verdict) -> float | None:
    """A verdict from the method's side; None where there is none."""
    return None if verdict.winner is None else _POINTS[order][verdict.winner]


def pairs_against(
    rows: Sequence[Row], contender: Contender, baseline: Contender, *, common: bool = False
) -> list[Pair]:
    """The pairs of a method and the baseline, by seed and prompt.

    Raises InputError where one has an answer that the other lacks, or was asked something else; with `common`, answers
    that only one of them has are left out, and there must be some that both have.
    """
    answers, baseline_answers = _answers(rows, contender), _answers(rows, baseline)
    shared = sorted(answers.keys() & baseline_answers.keys())
    if not common or not shared:
        _check_sets(contender, answers, baseline, baseline_answers)
        _check_sets(baseline, baseline_answers, contender, answers)
    pairs = [Pair(contender, baseline, answers[key], baseline_answers[key]) for key in shared]
    for pair in pairs:
        if pair.answer.prompt != pair.other.prompt:
            raise InputError(
                f"{contender} and {baseline} were given different prompts under number {pair.prompt_index} "
                f"(seed {pair.seed}), so their answers cannot be compared. Answer the same prompts with both."
            )
    return pairs


def _answers(rows: Sequence[Row], contender: Contender) -> dict[tuple[int, int], Row]:
    answers = {
        (row.key.seed, row.key.prompt_index): row
        for row in rows
        if (row.key.method, row.key.strength) == (contender.method, contender.strength)
    }
    if not answers:
        raise unknown_name("answers", str(contender), {str(Contender(*row.key[:2])) for row in rows})
    return answers


def _check_sets(
    has: Contender, present: Mapping[tuple[int, int], Row], lacks: Contender, other: Mapping[tuple[int, int], Row]
) -> None:
    missing: dict[int, list[int]] = {}
    for seed, index in sorted(present.keys() - other.keys()):
        missing.setdefault(seed, []).append(index)
    if missing:
        where = "; ".join(f"seed {seed}: {_listed(indices)}" for seed, indices in missing.items())
        raise InputError(
            f"{lacks} has no answer to prompts that {has} answered ({where}). Finish the comparison, or give --common "
            "to judge only what both answered."
        )


def _listed(indices: Sequence[int], most: int = 12) -> str:
    shown = ", ".join(str(index) for index in indices[:most])
    return f"prompts {shown}" + (f" and {len(indices) - most} more" if len(indices) > most else "")


def judge_pairs(
    directory: Path, pairs: Sequence[Pair], judge: Judge, *, progress: Callable[[int, int], None] | None = None
) -> list[Judged]:
    """The verdicts on all pairs, those that are on file not asked for again.

    Every verdict is on the disk before the next is waited for. `progress` is told how many are there, of how many.
    Equal texts tie without being asked about. What is on file from a judge of this name with other settings is left
    there and not taken, which the log says. Raises what the judge raises; a ScoreError names the prompt.
    """
    orders = ORDERS if judge.sees_order else ORDERS[:1]
    judged = [Judged(pair) for pair in pairs]
    path = directory / JUDGEMENTS
    known = _read(path, judge)
    wanted: list[tuple[Judged, str]] = []
    for one in judged:
        for order in orders:
            verdict = known.get(_key(one.pair, order))
            if verdict is not None:
                one.verdicts[order] = verdict
            if verdict is None or verdict.winner is None:
                wanted.append((one, order))
    _say_what_is_not_taken(path, judge, {_key(one.pair, order) for one, order in wanted})
    num_done, num_all = len(judged) * len(orders) - len(wanted), len(judged) * len(orders)
    with open_to_append(path) as stream:
        for (one, order), verdict in _verdicts(judge, wanted):
            append(stream, [_line(one.pair, order, judge, verdict)])
            one.verdicts[order] = verdict
            num_done += 1
            if progress is not None:
                progress(num_done, num_all)
    return judged


def _verdicts(judge: Judge, wanted: Sequence[tuple[Judged, str]]) -> Iterator[tuple[tuple[Judged, str], Verdict]]:
    """Verdicts on what is wanted, as they come; equal texts need no judge."""
    asked = []
    for one, order in wanted:
        if one.pair.answer.text == one.pair.other.text:
            yield (one, order), Verdict(TIE, EQUAL_TEXTS)
        else:
            asked.append((one, order))
    questions = [one.pair.question(order) for one, order in asked]
    try:
        for index, verdict in judge.judge(questions):
            yield asked[index], verdict
    except ScoreError as error:
        if error.index is None:
            raise
        pair = asked[error.index][0].pair
        place = f"an answer to prompt_index {pair.prompt_index} of the {pair.answer.key.split} prompts"
        raise error.at(f"{place} ({pair.contender} and {pair.baseline}, seed {pair.seed})") from error.__cause__


def check_any_verdict(judge: Judge, groups: Sequence[Sequence[Judged]]) -> None:
    """Raise ModelError where a judge has given no verdict at all, with its reasons: there is nothing to report."""
    verdicts = [verdict for group in groups for one in group for verdict in one.verdicts.values()]
    asked = [verdict for verdict in verdicts if verdict.problem != EQUAL_TEXTS]
    if asked and all(verdict.winner is None for verdict in asked):
        raise ModelError(
            f"{judge.name} gave no verdict on any of {len(asked)} questions: {'; '.join(reasons_of(groups))}. Check "
            "--judge and its options; the same command asks again."
        )


def reasons_of(groups: Sequence[Sequence[Judged]], *, most: int = 5) -> list[str]:
    """Why verdicts are missing, the commonest first, each with how many."""
    missing = [v for group in groups for one in group for v in one.verdicts.values() if v.winner is None]
    counts = Counter(verdict.problem for verdict in missing).most_common()
    said = [f"{problem} ({count})" for problem, count in counts[:most]]
    left = sum(count for _, count in counts[most:])
    return [*said, f"other reasons ({left})"] if left else said


@dataclass(frozen=True, slots=True)
class Cost:
    """What verdicts took: all that are on file, those of runs that were cut included."""

    num_calls: int = 0
    num_retries: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    num_verdicts: int = 0
    """Comparisons in one order that were asked for, a second attempt at one not counted again."""
    num_missing: int = 0
    """How many of these have no verdict."""


_SUMMED = ("num_calls", "num_retries", "prompt_tokens", "completion_tokens")


def cost_on_file(directory: Path, judge: Judge) -> Cost:
    """The sum over every line of a judge's verdicts, those with other settings left out."""
    path = directory / JUDGEMENTS
    lines = [fields for fields in read_lines(path)[0] if _is_by(fields, judge)]
    last = _read(path, judge).values()
    return Cost(
        **{name: sum(fields.get(name, 0) for fields in lines) for name in _SUMMED},
        num_verdicts=len(last),
        num_missing=sum(verdict.winner is None for verdict in last),
    )


def _key(pair: Pair, order: str) -> str:
    """What a verdict is known by, beside its judge, as text."""
    texts = json.dumps([pair.answer.prompt, pair.answer.text, pair.other.text], ensure_ascii=True)
    return json.dumps(
        [
            *(pair.contender, pair.baseline, pair.seed, pair.answer.key.split, pair.prompt_index, order),
            text_digest(texts)[:16],
        ]
    )


def _line(pair: Pair, order: str, judge: Judge, verdict: Verdict) -> dict[str, object]:
    key = pair.answer.key
    return {
        "method": key.method,
        "strength": key.strength,
        "seed": key.seed,
        "split": key.split,
        "prompt_index": key.prompt_index,
        "order": order,
        "judge": judge.name,
        "settings": dict(judge.settings),
        "baseline": pair.baseline.method,
        "baseline_strength": pair.baseline.strength,
        "key": _key(pair, order),
        **asdict(verdict),
    }


def _is_by(fields: Mapping[str, object], judge: Judge) -> bool:
    return fields.get("judge") == judge.name and fields.get("settings") == judge.settings


def _read(path: Path, judge: Judge) -> dict[str, Verdict]:
    """Key -> the last verdict on file by this very judge."""
    names = Verdict.__dataclass_fields__
    found = {}
    for fields in read_lines(path)[0]:
        if _is_by(fields, judge) and "key" in fields:
            found[fields["key"]] = Verdict(**{name: fields[name] for name in names if name in fields})
    return found


def _say_what_is_not_taken(path: Path, judge: Judge, wanted: Collection[str]) -> None:
    """Log how many verdicts on what is asked for were given by a judge of this name with other settings, and which."""
    others = {
        fields["key"]: fields.get("settings", {})
        for fields in read_lines(path)[0]
        if fields.get("judge") == judge.name and not _is_by(fields, judge) and fields.get("key") in wanted
    }
    if others:
        changed = dict.fromkeys(str(one) for other in others.values() for one in differences(other, judge.settings))
        log.warning(
            "%d verdicts of %s on file are not taken, since it is another now: %s",
            *(len(others), judge.name, "; ".join(changed)),
        )
