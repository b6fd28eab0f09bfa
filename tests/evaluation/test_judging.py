"""Verdicts: asked in both orders, kept, never asked twice, and counted for what they are."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest

from tests.evaluation.judged_runs import row
from trimtab.errors import InputError, ModelError, OptionError, PromptError, ScoreError
from trimtab.evaluation.judging.alpaca_export import export_alpaca_eval
from trimtab.evaluation.judging.judges import (
    FIRST,
    SECOND,
    TIE,
    Question,
    RewardJudge,
    Verdict,
    conversation,
    split_judge,
)
from trimtab.evaluation.judging.run import (
    BASELINE_FIRST,
    JUDGEMENTS,
    METHOD_FIRST,
    ORDERS,
    Contender,
    Cost,
    Judged,
    Pair,
    check_any_verdict,
    cost_on_file,
    judge_pairs,
    pairs_against,
)
from trimtab.evaluation.judging.win_rates import Judgement, read_win_rates, win_rate, write_win_rates
from trimtab.evaluation.report.win_rates import win_rate_sections
from trimtab.storage.scorers import Scorer, load_scorer

BASE, OURS = Contender("base", 0.0), Contender("ours", 1.0)


class Scripted:
    """A judge that prefers longer answers, or follows a script; it remembers what it was asked."""

    name = "scripted"
    description = "a script"
    sees_order = True
    settings: ClassVar[dict[str, Any]] = {"script": "a"}

    def __init__(self, script: dict[tuple[str, str], str | None] | None = None, stop_after: int | None = None) -> None:
        self.script = script or {}
        self.stop_after = stop_after
        self.asked: list[Question] = []
        self.problem = "silence"

    def judge(self, questions: Sequence[Question]) -> Iterator[tuple[int, Verdict]]:
        for index, question in reversed(list(enumerate(questions))):  # any order will do
            if len(self.asked) == self.stop_after:
                raise ModelError("the judge went away")
            self.asked.append(question)
            first, second = len(question.first), len(question.second)
            longer = FIRST if first > second else SECOND if second > first else TIE
            winner = self.script.get((question.first, question.second), longer)
            yield index, Verdict(winner, "" if winner else self.problem, 2, 1, 100, 10)


def _pair(answer: str, other: str, index: int = 0, seed: int = 0) -> Pair:
    ours = row("ours", index, answer, seed=seed)
    return Pair(OURS, BASE, ours, row("base", index, other, strength=0.0, seed=seed))


def _judged(*outcomes: tuple[str | None, str | None], seeds: int = 1) -> list[Judged]:
    """Pairs with the winners under each order: the method first, then the baseline first."""
    found = []
    for index, winners in enumerate(outcomes):
        pair = _pair("a" * (10 + index), "b" * 10, index // seeds, index % seeds)
        verdicts = {order: Verdict(winner) for order, winner in zip(ORDERS, winners, strict=True)}
        found.append(Judged(pair, verdicts))
    return found


WON, LOST, TIED = (FIRST, SECOND), (SECOND, FIRST), (TIE, TIE)
FLIPPED = (FIRST, FIRST)


def test_both_orders_are_asked(tmp_path: Path) -> None:
    judge = Scripted()
    (one,) = judge_pairs(tmp_path, [_pair("long answer", "short")], judge)
    assert {(question.first, question.second) for question in judge.asked} == {
        ("long answer", "short"),
        ("short", "long answer"),
    }
    assert one.verdicts[METHOD_FIRST].winner == FIRST
    assert one.verdicts[BASELINE_FIRST].winner == SECOND
    assert one.points(ORDERS) == 1.0


def test_outcomes_are_counted() -> None:
    rate = win_rate(_judged(WON, WON, LOST, TIED, FLIPPED, (FIRST, TIE), (FIRST, None), (None, None)), sees_order=True)
    # won, won, lost, tied, tied by the flip, won by one order and a tie, and two without a verdict
    assert (rate.win, rate.loss, rate.tie, rate.missing) == (3, 1, 2, 2)
    assert rate.win_rate is not None
    assert rate.win_rate.value == pytest.approx((3 + 0.5 * 2) / 6)
    assert rate.win_rate.low < rate.win_rate.value < rate.win_rate.high
    assert rate.decided is not None
    assert rate.decided.value == pytest.approx(3 / 4)
    assert "2 of 8 pairs have no verdict" in rate.notes
    assert any("only 6 prompts" in note for note in rate.notes)


def test_a_missing_verdict_is_no_tie() -> None:
    full, gaps = _judged(*[WON] * 6, *[LOST] * 2), _judged(*[WON] * 6, *[LOST] * 2, *[(None, None)] * 8)
    before, after = win_rate(full, sees_order=True).win_rate, win_rate(gaps, sees_order=True).win_rate
    assert before is not None
    assert after is not None
    assert before.value == after.value == pytest.approx(0.75)


def test_the_bias_towards_a_position() -> None:
    always_first = win_rate(_judged(*[FLIPPED] * 12), sees_order=True)
    assert always_first.position is not None
    assert always_first.position.flipped is not None
    assert (always_first.position.flipped.value, always_first.position.first_preferred) == (1.0, 1.0)
    assert always_first.tie == 12
    fair = win_rate(_judged(*[WON] * 4, *[LOST] * 4, TIED), sees_order=True)
    assert fair.position is not None
    assert fair.position.flipped is not None
    assert (fair.position.flipped.value, fair.position.first_preferred) == (0.0, 0.5)


def test_prompts_are_resampled_and_seeds_averaged() -> None:
    # Two seeds of a prompt always agree: four copies of five prompts are still five prompts.
    outcomes = [WON, WON, LOST, WON, LOST, TIED]
    once = win_rate(_judged(*outcomes), sees_order=True)
    often = win_rate(_judged(*[one for one in outcomes for _ in range(4)], seeds=4), sees_order=True)
    assert (often.num_prompts, often.win) == (6, 12)
    assert once.win_rate == often.win_rate


def test_prompts_that_all_agree_have_an_interval_all_the_same() -> None:
    rate = win_rate(_judged(*[WON] * 10), sees_order=True)
    assert rate.win_rate is not None
    assert rate.win_rate.value == rate.win_rate.high == 1.0
    assert rate.win_rate.low == pytest.approx(0.722, abs=0.001)
    assert "Wilson" in rate.interval
    one = win_rate(_judged(WON), sees_order=True)
    assert one.win_rate is None
    assert "at least 2 are needed" in one.interval


@pytest.mark.parametrize("outcomes", [[TIED], [WON], [LOST], [FLIPPED], [TIED, FLIPPED], [(FIRST, TIE), (TIE, SECOND)]])
@pytest.mark.parametrize("num_prompts", [2, 7, 40])
def test_no_interval_of_agreeing_prompts_claims_certainty(
    outcomes: list[tuple[str | None, str | None]], num_prompts: int
) -> None:
    """Ties only, too: forty ties are no certain half."""
    rate = win_rate(_judged(*(outcomes * num_prompts)[:num_prompts]), sees_order=True)
    assert rate.win_rate is not None
    assert "Wilson" in rate.interval
    assert rate.win_rate.low <= rate.win_rate.value <= rate.win_rate.high
    assert rate.win_rate.high - rate.win_rate.low > 0.08
    if rate.tie == num_prompts:
        assert rate.win_rate.low == pytest.approx(1 - rate.win_rate.high)
        assert rate.win_rate.high - rate.win_rate.low == pytest.approx(
            {2: 0.811, 7: 0.595, 40: 0.296}[num_prompts], abs=0.01
        )


def test_the_length_controlled_rate_stands_beside() -> None:
    pytest.importorskip("sklearn")
    rate = win_rate(_judged(*[WON, LOST, WON, TIED, WON, WON] * 3), sees_order=True)
    assert rate.length_controlled is not None
    assert rate.length_controlled.num_examples == 18
    level = win_rate(_judged(*[WON, LOST] * 4), sees_order=True)
    assert level.length_controlled is None
    assert "no term for the model" in level.length_note
    few = win_rate(_judged(WON, LOST), sees_order=True)
    assert few.length_controlled is None
    assert "at least 5 verdicts, got 2" in few.length_note


def test_a_run_that_was_cut_asks_only_for_the_rest(tmp_path: Path) -> None:
    pairs = [_pair("a" * (5 + index), "b" * 6, index) for index in range(4)]
    cut = Scripted(stop_after=3)
    with pytest.raises(ModelError, match="went away"):
        judge_pairs(tmp_path, pairs, cut)
    path = tmp_path / JUDGEMENTS
    path.write_text(path.read_text() + '{"method": "torn')
    rest = Scripted()
    resumed = judge_pairs(tmp_path, pairs, rest)
    assert len(cut.asked) + len(rest.asked) == 8
    whole = judge_pairs(tmp_path / "whole", pairs, Scripted())
    assert [one.points(ORDERS) for one in resumed] == [one.points(ORDERS) for one in whole] == [0.0, 0.5, 1.0, 1.0]
    assert cost_on_file(tmp_path, Scripted()) == Cost(16, 8, 800, 80, 8, 0)
    again = Scripted()
    judge_pairs(tmp_path, pairs, again)
    assert again.asked == []


def test_a_verdict_that_did_not_come_is_asked_for_again(tmp_path: Path) -> None:
    pair = _pair("long answer", "short")
    (first,) = judge_pairs(tmp_path, [pair], Scripted({("short", "long answer"): None}))
    assert first.points(ORDERS) is None
    assert cost_on_file(tmp_path, Scripted()).num_missing == 1
    judge = Scripted()
    (second,) = judge_pairs(tmp_path, [pair], judge)
    assert [question.first for question in judge.asked] == ["short"]
    assert second.points(ORDERS) == 1.0
    assert cost_on_file(tmp_path, Scripted()).num_calls == 6


def test_a_verdict_on_other_texts_is_not_taken(tmp_path: Path) -> None:
    judge_pairs(tmp_path, [_pair("long answer", "short")], Scripted())
    judge = Scripted()
    (one,) = judge_pairs(tmp_path, [_pair("x", "short")], judge)
    assert len(judge.asked) == 2
    assert one.points(ORDERS) == 0.0


def test_a_verdict_of_another_judge_of_that_name_is_not_taken(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Neither in a rate nor in a cost; it stays on file, and what changed is said."""
    pair, judge, other = _pair("long answer", "short"), Scripted(), Scripted({("long answer", "short"): SECOND})
    judge_pairs(tmp_path, [pair], judge)
    other.settings = {"script": "b"}  # type: ignore[misc]
    with caplog.at_level(logging.WARNING):
        (one,) = judge_pairs(tmp_path, [pair], other)
    assert len(other.asked) == 2
    assert one.points(ORDERS) == 0.5
    assert (
        '2 verdicts of scripted on file are not taken, since it is another now: script was "a", is "b"' in caplog.text
    )
    assert cost_on_file(tmp_path, judge) == cost_on_file(tmp_path, other) == Cost(4, 2, 200, 20, 2, 0)
    again = Scripted()
    (first,) = judge_pairs(tmp_path, [pair], again)
    assert (again.asked, first.points(ORDERS)) == ([], 1.0)


def test_an_edited_scorer_judges_anew(tmp_path: Path) -> None:
    path = tmp_path / "letters_judge.py"
    rates = []
    for sign in (1, -1):
        path.write_text(f"def score(prompts, texts):\n    return [{sign} * len(text) for text in texts]\n")
        judge = RewardJudge("scorer:mine", load_scorer(f"{path}:score"))
        sys.modules.pop("letters_judge")
        rates.append(win_rate(judge_pairs(tmp_path, [_pair("longer", "base")], judge), sees_order=False))
    assert [(rate.win, rate.loss) for rate in rates] == [(1, 0), (0, 1)]


def test_a_scorer_that_fails_keeps_the_other_verdicts_and_names_the_prompt(tmp_path: Path) -> None:
    def lengths(prompts: Sequence[object], texts: Sequence[str]) -> list[float]:
        return [1 / 0 if text == "odd" else float(len(text)) for text in texts]

    judge = RewardJudge("scorer:mine", Scorer("mine", "length", lengths))
    pairs = [_pair(text, "base", index) for index, text in enumerate(["longer", "odd", "b"])]
    with pytest.raises(ScoreError, match=r"Scorer mine .* an answer to prompt_index 1 of the test prompts \(ours at 1"):
        judge_pairs(tmp_path, pairs, judge)
    kept = [json.loads(line) for line in (tmp_path / JUDGEMENTS).read_text().splitlines()]
    assert [(line["prompt_index"], line["winner"]) for line in kept] == [(0, FIRST), (2, SECOND)]


def test_a_text_that_a_reward_model_cannot_read_is_a_missing_verdict(tmp_path: Path) -> None:
    def lengths(prompts: Sequence[object], texts: Sequence[str]) -> list[float]:
        if "" in texts:
            raise PromptError("an empty text")
        return [float(len(text)) for text in texts]

    judge = RewardJudge("reward:mine", Scorer("mine", "length", lengths))
    pairs = [_pair(text, "base", index) for index, text in enumerate(["longer", "", "b"])]
    judged = judge_pairs(tmp_path, pairs, judge)
    written = Judgement.of(judge, BASE, "test", [judged], cost_on_file(tmp_path, judge))
    rate = written.methods[0]
    assert (rate.win, rate.loss, rate.missing) == (1, 1, 1)
    assert written.reasons == ("an empty text (1)",)
    write_win_rates(tmp_path, written)
    assert read_win_rates(tmp_path) == [written]
    assert "an empty text (1)" in win_rate_sections(tmp_path)[0].body


def test_a_judge_without_any_verdict_is_refused_with_its_reasons(tmp_path: Path) -> None:
    pairs = [_pair("long answer", "short"), _pair("same", "same", 1)]
    script = {("long answer", "short"): None, ("short", "long answer"): None}
    groups = [judge_pairs(tmp_path, pairs, Scripted(script))]
    with pytest.raises(ModelError, match=r"gave no verdict on any of 2 questions: silence \(2\)"):
        check_any_verdict(Scripted(), groups)
    check_any_verdict(Scripted(), [judge_pairs(tmp_path, pairs, Scripted())])
    check_any_verdict(Scripted(), [judge_pairs(tmp_path / "ties", pairs[1:], Scripted())])


def test_half_of_a_character_is_kept_as_it_is(tmp_path: Path) -> None:
    """A lone surrogate has no bytes in UTF-8, and an endpoint may send one."""
    judge = Scripted({("long answer", "short"): None})
    judge.problem = "half \ud800 of one"
    judge_pairs(tmp_path, [_pair("long answer", "short")], judge)
    assert cost_on_file(tmp_path, judge).num_missing == 1
    assert "half \\ud800 of one" in (tmp_path / JUDGEMENTS).read_text()


def test_equal_texts_tie_unasked(tmp_path: Path) -> None:
    judge = Scripted()
    (one,) = judge_pairs(tmp_path, [_pair("same", "same")], judge)
    assert (judge.asked, one.points(ORDERS)) == ([], 0.5)
    assert cost_on_file(tmp_path, Scripted()).num_calls == 0
    assert win_rate([one], sees_order=True).position.num_pairs == 0  # type: ignore[union-attr]


def test_pairs_are_matched_by_prompt_and_seed_not_by_place() -> None:
    rows = [row("base", index, f"base {index} {seed}", strength=0.0, seed=seed) for seed in (1, 0) for index in (2, 0)]
    rows += [row("ours", index, f"ours {index} {seed}", seed=seed) for index in (0, 2) for seed in (0, 1)]
    rows.append(row("ours", 0, "another strength", strength=2.0))
    pairs = pairs_against(rows, OURS, BASE)
    assert [(pair.answer.text[5:], pair.other.text[5:]) for pair in pairs] == [
        (key, key) for key in ("0 0", "2 0", "0 1", "2 1")
    ]


def test_answer_sets_that_do_not_match_are_refused() -> None:
    base = [row("base", index, "b", strength=0.0, seed=seed) for index in range(4) for seed in range(2)]
    ours = [row("ours", index, "a", seed=seed) for index in range(4) for seed in range(2) if (index, seed) != (3, 1)]
    with pytest.raises(InputError, match=r"ours at 1 has no answer .* base at 0 answered \(seed 1: prompts 3\)"):
        pairs_against(base + ours, OURS, BASE)
    with pytest.raises(InputError, match=r"base at 0 has no answer .* ours at 1 answered \(seed 0: prompts 9\)"):
        pairs_against([*base, *ours, row("ours", 3, "a", seed=1), row("ours", 9, "a")], OURS, BASE)
    assert len(pairs_against(base + ours, OURS, BASE, common=True)) == 7
    with pytest.raises(InputError, match="has no answer"):
        pairs_against([row("base", 0, "b", strength=0.0), row("ours", 1, "a")], OURS, BASE, common=True)


def test_different_prompts_under_one_number_are_refused() -> None:
    from dataclasses import replace

    other = replace(row("ours", 0, "a"), prompt="something else")
    with pytest.raises(InputError, match="different prompts under number 0"):
        pairs_against([row("base", 0, "b", strength=0.0), other], OURS, BASE)


def test_a_contender_that_is_not_there_is_named() -> None:
    with pytest.raises(OptionError, match="Did you mean 'ours at 1'"):
        pairs_against([row("ours", 0, "a")], Contender("ours", 2.0), BASE)


def test_a_reward_judges_without_seeing_the_order(tmp_path: Path) -> None:
    calls: list[str] = []

    def lengths(prompts: object, texts: Sequence[str]) -> list[float]:
        calls.extend(texts)
        return [float("nan") if text == "nan" else float(len(text)) for text in texts]

    judge = RewardJudge("scorer:length", Scorer("length", "length", lengths))
    pairs = [_pair(text, "base", index) for index, text in enumerate(["longer", "b", "four", "nan", "base"])]
    rate = win_rate(judge_pairs(tmp_path, pairs, judge), sees_order=judge.sees_order)
    assert (rate.win, rate.loss, rate.tie, rate.missing, rate.position) == (1, 1, 2, 1, None)
    assert len((tmp_path / JUDGEMENTS).read_text().splitlines()) == 5
    assert calls.count("base") == 4  # a prompt each; the pair of equal texts was not asked about


def test_less_of_a_cost_is_better(tmp_path: Path) -> None:
    scorer = Scorer("length", "length", lambda prompts, texts: [float(len(text)) for text in texts])
    judge = RewardJudge("scorer:length", scorer, lower_is_better=True)
    assert judge.name == "scorer:length (lower is better)"
    assert "less of length" in judge.description
    group = judge_pairs(tmp_path, [_pair("longer", "base"), _pair("b", "base", 1)], judge)
    assert [one.points(ORDERS[:1]) for one in group] == [0.0, 1.0]


def test_one_file_holds_several_judges(tmp_path: Path) -> None:
    pairs = [_pair("a" * (8 + index % 5), "b" * 10, index) for index in range(12)]
    judge = Scripted()
    group = judge_pairs(tmp_path, pairs, judge)
    written = Judgement.of(judge, BASE, "test", [group], cost_on_file(tmp_path, judge))
    write_win_rates(tmp_path, written)
    other = Scripted()
    other.name = "another"
    write_win_rates(tmp_path, Judgement.of(other, BASE, "test", [group], Cost()))
    write_win_rates(tmp_path, written)
    assert [one.judge for one in read_win_rates(tmp_path)] == ["another", "scripted"]
    assert read_win_rates(tmp_path)[1] == written
    (tmp_path / "win_rates.json").write_text('{"format": 99}')
    with pytest.raises(InputError, match="format 99"):
        read_win_rates(tmp_path)


def test_the_export_is_what_alpaca_eval_reads(tmp_path: Path) -> None:
    rows = [row("my method", index, f"answer {index}", seed=seed) for seed in (1, 0) for index in (1, 0)]
    (path,) = export_alpaca_eval(rows, [Contender("my method", 1.0)], tmp_path / "out", dataset="d")
    assert path.name == "my-method-1-2489cba2.json"
    assert json.loads(path.read_text()) == [
        {
            "instruction": f"question {index}",
            "output": f"answer {index}",
            "generator": path.stem,
            "dataset": "d",
        }
        for index in range(2)
    ]
    with pytest.raises(InputError, match="already exists"):
        export_alpaca_eval(rows, [Contender("my method", 1.0)], tmp_path / "out", dataset="d")


def test_names_of_judges() -> None:
    assert split_judge("openai:gpt:x") == ("openai", "gpt:x")
    for wrong in ("gpt", "openai:", "human:me"):
        with pytest.raises(OptionError, match="is not a judge"):
            split_judge(wrong)


def test_a_conversation_says_who_speaks() -> None:
    assert conversation([{"role": "user", "content": "hello"}]) == "hello"
    turns = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hello"}]
    assert conversation(turns) == "system: be brief\n\nuser: hello"
