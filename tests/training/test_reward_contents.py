"""A run to be continued learns from the very rewards that it began with: their code and weights, not their names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from trimtab.core import Prompt
from trimtab.errors import ModelError, OptionError, ScoreError
from trimtab.training.run.identity import check_same_training
from trimtab.training.run.rating import PATIENCE, Rater, reward_contents
from trimtab.training.run.rewards import AgentReward

CODE = "import helper_of_rewards\ndef score(prompts, texts):\n    return [0.5 for text in texts]\n"


def _written(root: Path) -> list[AgentReward]:
    (root / "rewards_here.py").write_text(CODE)
    (root / "helper_of_rewards.py").write_text("value = 1\n")
    (root / "model").mkdir()
    (root / "model" / "model.safetensors").write_text("weights")
    return [AgentReward("mine", f"{root}/rewards_here.py:score"), AgentReward("model", str(root / "model"), -1.0)]


@pytest.mark.parametrize("file", ["rewards_here.py", "helper_of_rewards.py", "model/model.safetensors"])
def test_every_change_of_a_reward_is_refused_by_name(tmp_path: Path, file: str) -> None:
    rewards = _written(tmp_path)
    before = {"contents": reward_contents(rewards)}
    check_same_training({"contents": reward_contents(rewards)}, before, problem="refused", way_out="")
    (tmp_path / file).write_text((tmp_path / file).read_text() + "# edited")
    named = "reward model \\(files\\)" if "model/" in file else f"reward mine \\({file}\\)"
    with pytest.raises(OptionError, match=f"refused: the content of {named} is .* here and .* in the run"):
        check_same_training({"contents": reward_contents(rewards)}, before, problem="refused", way_out="")


@pytest.mark.parametrize("alike", [0, 50, 300])
def test_long_values_that_differ_are_seen_to_differ(alike: int) -> None:
    now, before = ({"base": {"name": "x" * alike + end + "z" * 300}} for end in ("here", "there"))
    with pytest.raises(OptionError) as error:
        check_same_training(now, before, problem="refused", way_out="")
    here, there = str(error.value).split(" here and ")
    assert "herezz" in here
    assert "therezz" in there
    assert len(str(error.value)) < 500


def letters(prompts: Sequence[Prompt], texts: Sequence[str]) -> list[float]:
    return [1 / 0 if text == "odd" else float(len(text)) for text in texts]


def test_a_function_has_the_content_of_its_file() -> None:
    (name,) = (name for name in reward_contents([AgentReward("mine", letters)]) if "test_reward_contents" in name)
    assert name == "reward mine (test_reward_contents.py)"


def test_a_reward_that_fails_names_the_prompt() -> None:
    rater = Rater([AgentReward("mine", letters)], baseline=0.0)
    with pytest.raises(ScoreError, match=r"Scorer mine failed on an answer to prompt 17 \(ZeroDivisionError"):
        rater.rate([16, 17], ["a", "b"], ["fine", "odd"])


def test_a_reward_that_is_too_large_drops_the_episode() -> None:
    rater = Rater([AgentReward("mine", lambda prompts, texts: [1e308] * len(texts))], baseline=0.0)
    assert rater.rate([0], ["a"], ["b"]) == [None]
    with pytest.raises(ModelError, match="no finite reward"):
        rater.rate([0] * PATIENCE, ["a"] * PATIENCE, ["b"] * PATIENCE)
