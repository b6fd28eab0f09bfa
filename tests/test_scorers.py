"""Scorers: the lexicons, reward models, one's own functions, and what they may not return."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.tiny_rewards import write_reward_model
from trimtab.core import Prompt
from trimtab.errors import CheckpointError, MissingExtraError, ModelError, OptionError
from trimtab.models.reward import load_reward_model
from trimtab.scorers import SCORERS, Scorer, load_scorer


def test_sentiment_is_vader() -> None:
    scorer = load_scorer("sentiment")
    # From the lexicon's own README: the compound scores of its first two examples.
    texts = ["VADER is smart, handsome, and funny.", "VADER is not smart, handsome, nor funny.", ""]
    assert scorer([""] * 3, texts) == [0.8316, -0.7424, 0.0]


def test_sentiment_needs_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vaderSentiment.vaderSentiment", None)
    with pytest.raises(MissingExtraError, match=r"trimtab\[demo\]"):
        load_scorer("sentiment")


def test_offence_is_a_share_and_higher_is_worse() -> None:
    texts = ["you are a fucking idiot", "thank you, have a nice day", ""]
    rude, kind, empty = load_scorer("offence")([""] * 3, texts)
    assert 0 <= kind < 0.1 < 0.9 < rude <= 1
    assert 0 <= empty < 0.5
    assert load_scorer("offence")([], []) == []
    assert "higher is worse" in load_scorer("offence").description


def test_offence_needs_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "profanity_check", None)
    with pytest.raises(MissingExtraError, match=r"alt-profanity-check.*trimtab\[scorers\]"):
        load_scorer("offence")


def test_a_directory_is_a_reward_model(tmp_path: Path) -> None:
    directory = write_reward_model(tmp_path / "reward")
    scorer = load_scorer(str(directory))
    prompts, texts = ["w1 w2", "w3"], ["w4", "w5 w6 w7"]
    assert scorer(prompts, texts) == load_reward_model(directory).rewards(prompts, texts)
    assert scorer.name == str(directory)
    assert str(directory) in scorer.description
    assert "LlamaForSequenceClassification" in scorer.description


def test_a_directory_that_is_no_reward_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=f"{tmp_path.name} holds no safetensors"):
        load_scorer(str(tmp_path))


def test_a_name_of_ours_is_never_a_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sentiment").mkdir()
    monkeypatch.chdir(tmp_path)
    assert "VADER" in load_scorer("sentiment").description
    with pytest.raises(CheckpointError):
        load_scorer("./sentiment")


def test_a_hub_id_that_the_hub_does_not_give() -> None:
    with pytest.raises(OptionError, match=r"no directory here, and the hub did not give it .*module:function"):
        load_scorer("nobody/no-such-reward-model")


def test_what_is_accepted_is_listed() -> None:
    with pytest.raises(OptionError) as caught:
        load_scorer("./no/such/directory")
    for form in (*SCORERS, "module:function", "directory of a reward model", "owner/name"):
        assert form in str(caught.value)


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


def test_raw_rewards_come_as_they_are() -> None:
    def function(prompts: Sequence[Prompt], texts: Sequence[str]) -> list[float]:
        return [1, float("nan"), -float("inf")]

    rewards = Scorer("mine", "", function).raw([""] * 3, [""] * 3)
    assert rewards[0] == 1.0
    assert math.isnan(rewards[1])
    assert rewards[2] == -math.inf
    assert isinstance(rewards[0], float)


def test_raw_rewards_are_counted() -> None:
    def function(prompts: Sequence[Prompt], texts: Sequence[str]) -> list[float]:
        return [1.0]

    with pytest.raises(ModelError, match="1 rewards for 2 texts"):
        Scorer("mine", "", function).raw(["", ""], ["", ""])
