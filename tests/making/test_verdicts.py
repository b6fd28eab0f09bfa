"""Pairs by a judge: only where it agrees with itself, and nothing asked twice."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from trimtab.errors import ModelError
from trimtab.evaluation.judging.judges import FIRST, SECOND, TIE, Question, RewardJudge, Verdict
from trimtab.making.choosing import SILENT, TIED, TURNED, Account, Pair, kept_answers
from trimtab.making.sampling import Samples
from trimtab.making.settings import BASE, ChoiceSettings
from trimtab.making.verdicts import by_verdict, check_agrees, duels_of, judge_into
from trimtab.storage.scorers import Scorer


class Fake:
    """A judge that says what it is told to, and remembers what it was asked."""

    name = description = "fake"
    settings: Mapping[str, object] = {}
    sees_order = True

    def __init__(self, say: Callable[[Question], str | None]) -> None:
        self.say = say
        self.asked: list[Question] = []

    def judge(self, questions: Sequence[Question]) -> Iterator[tuple[int, Verdict]]:
        """From the last question to the first: verdicts come in any order."""
        for index, question in reversed(list(enumerate(questions))):
            self.asked.append(question)
            winner = self.say(question)
            yield index, Verdict(winner, "" if winner else "silence")


def more_of(letter: str) -> Callable[[Question], str | None]:
    def say(question: Question) -> str | None:
        first, second = question.first.count(letter), question.second.count(letter)
        return FIRST if first > second else SECOND if second > first else TIE

    return say


def judged(path: Path, judge: Fake | RewardJudge, *texts: str) -> tuple[list[Pair], Account]:
    account, settings = Account(), ChoiceSettings(max_pairs=3)
    samples = [Samples("earlier", {BASE: ("alone",)}), Samples("p", {BASE: texts})]
    duels = duels_of(kept_answers(samples, settings, account), settings, account)
    verdicts = judge_into(path, judge, duels)
    first, pairs = by_verdict(duels, verdicts, judge, len(samples), account)
    assert first == []
    check_agrees(judge, duels, account)
    return pairs, account


def test_what_wins_in_both_orders_is_chosen(tmp_path: Path) -> None:
    pairs, account = judged(
        tmp_path / "v.jsonl", Fake(more_of("x")), "xxoo one", "oooo two", "12345678901", "123456789x1"
    )
    assert {(pair.chosen, pair.rejected) for pair in pairs} == {
        ("xxoo one", "oooo two"),
        ("123456789x1", "12345678901"),
    }
    assert not account.pairs_out


def test_each_pair_is_asked_about_in_both_orders(tmp_path: Path) -> None:
    judge = Fake(more_of("x"))
    judged(tmp_path / "v.jsonl", judge, "xxxx", "oooo")
    assert sorted((one.first, one.second) for one in judge.asked) == [("oooo", "xxxx"), ("xxxx", "oooo")]


def test_ties_and_silence_are_no_pairs(tmp_path: Path) -> None:
    assert judged(tmp_path / "a.jsonl", Fake(more_of("y")), "xxxx", "oooo", "12345678901", "y2345678901")[
        1
    ].pairs_out == {TIED: 1}

    def half(question: Question) -> str | None:
        return None if "x" in question.first else more_of("y")(question)

    pairs, account = judged(tmp_path / "b.jsonl", Fake(half), "xxxx", "oooo", "12345678901", "y2345678901")
    assert len(pairs) == 1
    assert account.pairs_out == {SILENT: 1}
    assert account.reasons == ("silence (1)",)


def test_a_judge_that_never_agrees_with_itself_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"preferred the other answer .* in 1 of 1 pairs .*--judge"):
        judged(tmp_path / "v.jsonl", Fake(lambda question: FIRST), "xxxx", "oooo")


def test_a_judge_that_says_nothing_is_an_error_with_its_reasons(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no verdict on any of 1 pairs: silence \(2\)"):
        judged(tmp_path / "v.jsonl", Fake(lambda question: None), "xxxx", "oooo")


def test_one_that_agrees_once_is_not(tmp_path: Path) -> None:
    def sway(question: Question) -> str | None:
        return FIRST if "x" in question.first + question.second else more_of("y")(question)

    pairs, account = judged(tmp_path / "v.jsonl", Fake(sway), "xxxx", "oooo", "12345678901", "y2345678901")
    assert (len(pairs), account.pairs_out) == (1, {TURNED: 1})


@pytest.mark.parametrize("cut", [0, 10, 200, 2000])
def test_a_run_that_was_cut_asks_for_what_is_missing(tmp_path: Path, cut: int) -> None:
    path, texts = tmp_path / "v.jsonl", ("xxxx", "oooo", "12345678901", "123456789x1")
    whole, _ = judged(path, Fake(more_of("x")), *texts)
    size = path.stat().st_size
    with path.open("r+b") as stream:
        stream.truncate(min(cut, size))
    num_left = path.read_bytes().count(b"\n")
    judge = Fake(more_of("x"))
    assert judged(path, judge, *texts)[0] == whole
    assert len(judge.asked) == 4 - num_left


def test_a_verdict_that_did_not_come_is_asked_for_again(tmp_path: Path) -> None:
    path = tmp_path / "v.jsonl"
    with pytest.raises(ModelError):
        judged(path, Fake(lambda question: None), "xxxx", "oooo")
    assert len(judged(path, Fake(more_of("x")), "xxxx", "oooo")[0]) == 1


def test_a_reward_as_a_judge_is_asked_once(tmp_path: Path) -> None:
    scorer = Scorer("x", "how many x", lambda prompts, texts: [text.count("x") for text in texts])
    path = tmp_path / "v.jsonl"
    ((pair,), _) = judged(path, RewardJudge("scorer:x", scorer, lower_is_better=True), "xxxx", "oooo")
    assert (pair.chosen, path.read_bytes().count(b"\n")) == ("oooo", 1)
