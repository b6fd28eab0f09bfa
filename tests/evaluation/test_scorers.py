"""Scorers: the lexicon, one's own functions, and what they may not return."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from trimtab.core import Prompt
from trimtab.errors import MissingExtraError, ModelError, OptionError
from trimtab.evaluation.scorers import Scorer, load_scorer


def test_sentiment_is_vader() -> None:
    scorer = load_scorer("sentiment")
    # From the lexicon's own README: the compound scores of its first two examples.
    texts = ["VADER is smart, handsome, and funny.", "VADER is not smart, handsome, nor funny.", ""]
    assert scorer([""] * 3, texts) == [0.8316, -0.7424, 0.0]


def test_sentiment_needs_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vaderSentiment.vaderSentiment", None)
    with pytest.raises(MissingExtraError, match=r"trimtab\[demo\]"):
        load_scorer("sentiment")


def test_a_function_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = ["def length(prompts, texts):", '    """Letters of the answer.', "", '    More."""']
    (tmp_path / "my_rewards.py").write_text("\n".join([*lines, "    return [len(text) for text in texts]"]))
    monkeypatch.syspath_prepend(tmp_path)
    scorer = load_scorer("my_rewards:length")
    assert scorer(["a", "b"], ["xy", ""]) == [2.0, 0.0]
    assert scorer.description == "Letters of the answer."


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("sentimant", "Did you mean 'sentiment'"),
        ("no_such_module:f", "cannot be imported"),
        ("math:no_such_function", "has no function 'no_such_function'"),
        ("math:pi", "has no function 'pi'"),
        (":f", "cannot be imported"),
    ],
)
def test_unknown_scorers(name: str, problem: str) -> None:
    with pytest.raises(OptionError, match=problem):
        load_scorer(name)


@pytest.mark.parametrize(
    ("rewards", "problem"),
    [([1.0], "1 rewards for 2 texts"), ([1.0, float("nan")], "nan for text 1"), ([float("inf"), 0], "inf for text 0")],
)
def test_bad_rewards_are_refused(rewards: list[float], problem: str) -> None:
    def function(prompts: Sequence[Prompt], texts: Sequence[str]) -> list[float]:
        return rewards

    with pytest.raises(ModelError, match=problem):
        Scorer("mine", "", function)(["", ""], ["", ""])
