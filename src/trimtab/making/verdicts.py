"""A judge's verdicts on pairs of answers, in both orders; what it says in one order alone is not a preference."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from trimtab.core import Prompt
from trimtab.errors import ModelError, ScoreError
from trimtab.evaluation.judging.judges import FIRST, SECOND, TIE, Judge, Question, Verdict
from trimtab.making.choosing import SILENT, TIED, TURNED, Account, Kept, Pair, candidates
from trimtab.making.settings import ChoiceSettings
from trimtab.storage.files import text_digest
from trimtab.storage.json_lines import append, open_to_append, read_lines


@dataclass(frozen=True, slots=True)
class Duel:
    """Two answers to a prompt, which a judge compares."""

    index: int
    """The number of the prompt."""
    prompt: Prompt
    first: str
    second: str

    def question(self, *, turned: bool) -> Question:
        texts = (self.second, self.first) if turned else (self.first, self.second)
        return Question(self.prompt, *texts)

    def key(self, *, turned: bool) -> str:
        """What its verdict in one order is known by on file."""
        return text_digest(json.dumps([self.index, self.first, self.second, turned], ensure_ascii=True))[:16]


def duels_of(kept: Sequence[Kept], settings: ChoiceSettings, account: Account) -> list[Duel]:
    """The pairs of answers that a judge is asked about: at most `max_pairs` of a prompt, no answer in two of them."""
    return [
        Duel(one.index, one.prompt, first, second)
        for one in kept
        for (_, first), (_, second) in candidates(one, settings, account)
    ]


def judge_into(
    path: Path, judge: Judge, duels: Sequence[Duel], *, on_verdict: Callable[[int, int], None] | None = None
) -> dict[str, Verdict]:
    """Key -> the verdict on every duel in each order that the judge can see; what is on file is not asked for again.

    Each verdict is on the disk before the next is waited for; `on_verdict` is told how many there are, of how many.
    A verdict that did not come is asked for once more. Raises what the judge raises; a ScoreError names the prompt.
    """
    found = _read(path)
    asked = [(duel, turned) for duel in duels for turned in _orders(judge)]
    missing = [one for one in asked if _is_missing(found.get(one[0].key(turned=one[1])))]
    num_known = len(asked) - len(missing)
    with open_to_append(path) as stream:
        for num_new, ((duel, turned), verdict) in enumerate(_verdicts(judge, missing), 1):
            key = duel.key(turned=turned)
            append(stream, [{"key": key, "prompt_index": duel.index, "turned": turned, **asdict(verdict)}])
            found[key] = verdict
            if on_verdict is not None:
                on_verdict(num_known + num_new, len(asked))
    return found


def _orders(judge: Judge) -> tuple[bool, ...]:
    return (False, True) if judge.sees_order else (False,)


def _is_missing(verdict: Verdict | None) -> bool:
    return verdict is None or verdict.winner is None


def _verdicts(judge: Judge, missing: Sequence[tuple[Duel, bool]]) -> Iterator[tuple[tuple[Duel, bool], Verdict]]:
    try:
        for index, verdict in judge.judge([duel.question(turned=turned) for duel, turned in missing]):
            yield missing[index], verdict
    except ScoreError as error:
        if error.index is None:
            raise
        number = missing[error.index][0].index
        raise error.at(f"an answer to prompt {number}", index=number) from error.__cause__


def _read(path: Path) -> dict[str, Verdict]:
    names = Verdict.__dataclass_fields__
    rows: Sequence[Mapping[str, object]] = read_lines(path, broken="not a verdict")[0]
    return {
        str(row["key"]): Verdict(**{name: row[name] for name in names if name in row})  # type: ignore[arg-type]
        for row in rows
        if "key" in row
    }


def by_verdict(
    duels: Sequence[Duel], verdicts: Mapping[str, Verdict], judge: Judge, num_prompts: int, account: Account
) -> list[list[Pair]]:
    """For each prompt the pairs of which the judge prefers one answer, in both orders where it sees them."""
    pairs: list[list[Pair]] = [[] for _ in range(num_prompts)]
    for duel in duels:
        winners = [_winner(duel, verdicts, turned) for turned in _orders(judge)]
        if None in winners:
            account.pairs_out[SILENT] += 1
        elif len(set(winners)) > 1:
            account.pairs_out[TIED if TIE in winners else TURNED] += 1
        elif winners[0] == TIE:
            account.pairs_out[TIED] += 1
        else:
            texts = (duel.first, duel.second)
            pairs[duel.index].append(Pair(duel.prompt, *(texts if winners[0] == FIRST else texts[::-1])))
    account.reasons = tuple(reasons_of(duels, verdicts, judge))
    return pairs


def _winner(duel: Duel, verdicts: Mapping[str, Verdict], turned: bool) -> str | None:
    """Which of a duel's answers won in one order: `FIRST`, `SECOND`, or `TIE`; None without a verdict."""
    verdict = verdicts.get(duel.key(turned=turned))
    if verdict is None or verdict.winner in (None, TIE):
        return None if verdict is None else verdict.winner
    return verdict.winner if not turned else SECOND if verdict.winner == FIRST else FIRST


def reasons_of(duels: Sequence[Duel], verdicts: Mapping[str, Verdict], judge: Judge, *, most: int = 5) -> list[str]:
    """Why verdicts are missing, the commonest first, each with how many."""
    asked = [verdicts.get(duel.key(turned=turned)) for duel in duels for turned in _orders(judge)]
    counts = Counter(verdict.problem for verdict in asked if verdict is not None and verdict.winner is None)
    return [f"{problem} ({count})" for problem, count in counts.most_common(most)]


def check_agrees(judge: Judge, duels: Sequence[Duel], account: Account) -> None:
    """Raise ModelError for a judge that gave no verdict at all, or that never agreed with itself."""
    silent, turned = account.pairs_out[SILENT], account.pairs_out[TURNED]
    if duels and silent == len(duels):
        raise ModelError(
            f"{judge.name} gave no verdict on any of {len(duels)} pairs: {'; '.join(account.reasons)}. Check --judge "
            "and its options; with --resume it is asked again."
        )
    if turned and turned == len(duels) - silent - account.pairs_out[TIED]:
        raise ModelError(
            f"{judge.name} preferred the other answer as soon as the order was turned, in {turned} of {turned} pairs "
            "that it decided, so it says nothing of the answers. Give a better --judge; with --resume it is asked "
            "about the answers that are there."
        )
