"""A whole run: what is learnt, what is written, what is refused, and going on after the worst."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("torchrl")

import safetensors.torch

from trimtab.core import Prompt
from trimtab.decoding.decoder import Decoder
from trimtab.errors import (
    CheckpointError,
    DataError,
    ModelError,
    OptionError,
    OutputExistsError,
    PromptError,
)
from trimtab.guides.agent import Agent
from trimtab.models.tabular import TabularModel
from trimtab.storage.loading import load_guide
from trimtab.training.agent import train as agent_module
from trimtab.training.agent.train import AgentResult, AgentReward, AgentSettings, TrainProgress, train_agent
from trimtab.training.run import checkpoints
from trimtab.training.run import rating as agent_scoring


class Revealing(TabularModel):
    """A model whose state after a token says which token it was."""

    def state(self, prefix: Sequence[int]) -> torch.Tensor:
        return 3 * torch.nn.functional.one_hot(torch.tensor(prefix[-1]), self.hidden_size).float()


def share_of_c(prompts: Sequence[Prompt], texts: Sequence[str]) -> list[float]:
    return [text.count("c") / max(1, len(text)) for text in texts]


LEARNING = AgentSettings(
    episodes=160,
    max_new_tokens=8,
    top_p=1.0,
    hidden_dim=16,
    batch_size=64,
    warmup_batches=2,
    updates_per_episode=4,
    actor_learning_rate=3e-3,
    critic_learning_rate=3e-3,
    alpha_learning_rate=3e-3,
    kl_weight=0.01,
    reward_scale=5.0,
)


@pytest.mark.parametrize(("sign", "low", "high"), [(1.0, 0.9, 1.0), (-1.0, 0.0, 0.05)])
def test_the_agent_learns_what_is_rewarded(sign: float, low: float, high: float, tmp_path: Path) -> None:
    """Five tokens, the same odds at every step; the base's own answers are to 0.15 of the rewarded one."""
    base = Revealing(lambda prefix: torch.tensor([-9.0, 2.0, 1.5, 1.0, 0.5, 0.0]), 6, hidden_size=6)
    train_agent(base, [[1], [2], [3, 4]], [AgentReward("c", share_of_c, sign)], out=tmp_path / "a", settings=LEARNING)
    agent = load_guide(tmp_path / "a")
    answers = list(Decoder(base, {"agent": agent}).generate([[1], [2], [5], [4, 1]], max_new_tokens=8, seed=0))
    reward = sum(share_of_c([], [answer.text for answer in answers])) / len(answers)
    plain = list(Decoder(base).generate([[1]] * 40, max_new_tokens=8, seed=0))
    unguided = sum(share_of_c([], [answer.text for answer in plain])) / len(plain)
    assert 0.08 < unguided < 0.3
    assert low <= reward <= high


MODEL = TabularModel.random(9, seed=3, scale=2.0)
PROMPTS: list[Prompt] = [[1], [2, 3], [4, 5, 6], [7], [8, 8, 1]]
SETTINGS = AgentSettings(
    episodes=14,
    rollout_batch=2,
    max_new_tokens=6,
    top_k=6,
    hidden_dim=8,
    batch_size=8,
    warmup_batches=2,
    buffer_size=60,
    updates_per_episode=2,
    tau=0.2,
    baseline="base",
    logging_episodes=2,
    save_episodes=4,
)
"""Seven rounds, checkpoints after 4, 8 and 12 episodes; the ring wraps."""


def letters(prompts: Sequence[Prompt], texts: Sequence[str]) -> list[float]:
    return [float(len(set(text))) for text in texts]


REWARDS = [AgentReward("letters", letters, 2.0), AgentReward("c", share_of_c, -1.0)]


def train(out: Path, settings: AgentSettings = SETTINGS, **options: Any) -> AgentResult:
    told = {"rewards": REWARDS, "prompts": PROMPTS, "model": MODEL, **options}
    return train_agent(told.pop("model"), told.pop("prompts"), told.pop("rewards"), out=out, settings=settings, **told)


def weights(directory: Path) -> dict[str, torch.Tensor]:
    return dict(safetensors.torch.load_file(directory / "model.safetensors"))


def assert_same(one: Path, other: Path) -> None:
    left, right = weights(one), weights(other)
    assert left.keys() == right.keys()
    for name, value in left.items():
        assert torch.equal(value, right[name]), name
    assert curve(one) == curve(other)


def curve(directory: Path) -> list[dict[str, float]]:
    """The lines of a curve without what depends on the clock."""
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [
        {key: value for key, value in line.items() if not key.startswith(("share_", "episodes_"))} for line in lines
    ]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The agent of a run from its beginning to its end."""
    out = tmp_path_factory.mktemp("agents") / "agent"
    result = train(out)
    assert result.num_updates > 20
    return out


def test_an_agent_is_whole_and_nothing_is_left_beside_it(finished: Path) -> None:
    assert sorted(path.name for path in finished.iterdir()) == [
        "README.md",
        "guide.json",
        "metrics.jsonl",
        "model.safetensors",
    ]
    assert [path.name for path in finished.parent.iterdir()] == ["agent"]
    agent = load_guide(finished)
    assert isinstance(agent, Agent)
    assert (agent.network.hidden_size, agent.network.width, agent.selection.top_k) == (MODEL.hidden_size, 8, 6)


def test_guide_json_and_the_card_say_where_it_comes_from(finished: Path) -> None:
    card = json.loads((finished / "guide.json").read_text())
    assert (card["format"], card["kind"], card["base"]["name"]) == (1, "agent", "TabularModel")
    assert card["hyperparameters"]["tau"] == 0.2
    assert [(term["name"], term["multiplier"]) for term in card["rewards"]] == [("letters", 2.0), ("c", -1.0)]
    assert card["rewards"][0]["source"] == f"{__name__}:letters"
    assert (card["data"]["num_prompts"], card["metrics"]["num_episodes"]) == (5, 14)
    text = (finished / "README.md").read_text()
    assert "2 × letters" in text
    assert "| tau | 0.2 |" in text


def test_the_curve_says_how_it_goes(finished: Path) -> None:
    lines = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4, 6, 8, 10, 12, 14]
    always = {
        "reward",
        "reward_letters",
        "reward_c",
        "num_tokens",
        "acceptance",
        "decision_entropy",
        "kl",
        "kl_per_step",
    }
    always |= {"alpha", "buffer", "num_dropped", "num_empty", "episodes_per_s", "candidates", "forced"}
    always |= {f"share_{part}" for part in ("base", "agent", "rewards", "updates")}
    assert all(always <= line.keys() for line in lines)
    assert {"critic_loss", "actor_loss", "entropy"} <= lines[-1].keys()
    assert "critic_loss" not in lines[0], "no update yet"
    for line in lines:
        assert line["reward"] == pytest.approx(2 * line["reward_letters"] - line["reward_c"])
        assert 0 <= line["acceptance"] <= 1
        assert 0 < sum(line[f"share_{part}"] for part in ("base", "agent", "rewards", "updates")) <= 1
    assert max(line["buffer"] for line in lines) == 60, "and no more"


def test_the_same_seed_gives_the_same_agent_and_another_does_not(finished: Path, tmp_path: Path) -> None:
    train(tmp_path / "again")
    assert_same(finished, tmp_path / "again")
    train(tmp_path / "other", dataclasses.replace(SETTINGS, seed=1))
    assert not torch.equal(weights(finished)["linear1.weight"], weights(tmp_path / "other")["linear1.weight"])


def test_progress_counts_every_round_and_carries_the_curve(tmp_path: Path) -> None:
    heard: list[TrainProgress] = []
    settings = dataclasses.replace(SETTINGS, logging_episodes=5, episodes=7)
    train(tmp_path / "a", settings, progress=heard.append)
    assert [(at.step, at.num_steps) for at in heard if not at.metrics] == [(2, 7), (4, 7), (6, 7), (7, 7)]
    assert [at.step for at in heard if at.metrics] == [6, 7]


def test_nothing_goes_to_standard_output(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    train(tmp_path / "a")
    assert capfd.readouterr().out == ""


# Rewards and episodes that leave nothing.


def test_an_episode_without_a_reward_is_left_out_and_the_run_goes_on(tmp_path: Path) -> None:
    def sometimes(prompts: Sequence[Prompt], texts: Sequence[str]) -> list[float]:
        return [math.nan if text.startswith(("a", "b", "c")) else 1.0 for text in texts]

    result = train(tmp_path / "a", rewards=[AgentReward("odd", sometimes)], settings=no_base(SETTINGS))
    assert 0 < result.num_dropped < 14
    assert f"{result.num_dropped} episodes without a finite reward" in (tmp_path / "a" / "README.md").read_text()


def no_base(settings: AgentSettings, **changes: Any) -> AgentSettings:
    return dataclasses.replace(settings, **{"baseline": 0.0, **changes})


def never(prompts: Sequence[Prompt], texts: Sequence[str]) -> list[float]:
    return [math.nan] * len(texts)


def test_rewards_that_are_never_finite_end_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelError, match=r"None of 14 episodes left anything to learn from: 14 had no finite reward"):
        train(tmp_path / "a", rewards=[AgentReward("never", never)], settings=no_base(SETTINGS))
    monkeypatch.setattr(agent_scoring, "PATIENCE", 6)
    with pytest.raises(ModelError, match="6 episodes in a row have no finite reward"):
        train(tmp_path / "b", rewards=[AgentReward("never", never)], settings=no_base(SETTINGS))


def test_a_base_that_leaves_no_choice_is_said(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"in 14 every step had a single candidate.*larger top_k"):
        train(tmp_path / "a", dataclasses.replace(SETTINGS, top_k=1))


def test_a_run_too_short_to_learn_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings = dataclasses.replace(SETTINGS, batch_size=1024, warmup_batches=1, buffer_size=2000)
    with caplog.at_level(logging.WARNING):
        result = train(tmp_path / "a", settings)
    assert result.num_updates == 0
    assert "nothing was learnt: updates begin at 1024 transitions" in caplog.text


# Refusals. Each comes before anything is written.

REFUSED: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "no prompts": ({"prompts": []}, DataError, "no prompt to train on"),
    "no rewards": ({"rewards": []}, OptionError, "no reward"),
    "an unknown scorer": ({"rewards": [AgentReward("a", "sentimant")]}, OptionError, "Unknown scorer 'sentimant'"),
    "an unknown template": ({"template": "chatty"}, OptionError, "accepted: auto, chat, raw"),
    "workers of a loaded model": ({"workers": 2}, OptionError, "give its name or directory"),
    "fewer than no workers": ({"workers": -1}, OptionError, "workers is -1"),
    "a cluster without workers": ({"ray_address": "auto"}, OptionError, "no use without workers"),
    "a prompt too long": (
        {"model": TabularModel.random(9, seed=3, max_length=3)},
        PromptError,
        "Prompt 3 of 5: The prompt has 3 tokens",
    ),
    "resume and overwrite": ({"resume": True, "overwrite": True}, OptionError, "give one of them"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_done_is_refused(name: str, tmp_path: Path) -> None:
    options, kind, problem = REFUSED[name]
    with pytest.raises(kind, match=problem):
        train(tmp_path / "a", **options)
    assert not list(tmp_path.iterdir())


def test_an_output_in_the_way_is_refused_and_replaced_on_request(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "old.txt").write_text("old")
    with pytest.raises(OutputExistsError, match="--overwrite"):
        train(tmp_path / "a")
    train(tmp_path / "a", overwrite=True)
    assert not (tmp_path / "a" / "old.txt").exists()


# After the worst. Each run must end in the very weights and the very curve of the run that was left alone.


class StopHereError(Exception):
    pass


def stop_at(step: int, *, at_line: bool = False) -> Callable[[TrainProgress], None]:
    def progress(at: TrainProgress) -> None:
        if at.step == step and bool(at.metrics) == at_line:
            raise StopHereError

    return progress


@pytest.mark.parametrize("step", [2, 4, 6, 10, 14])
@pytest.mark.parametrize("at_line", [False, True])
def test_a_run_that_stopped_anywhere_goes_on_exactly(step: int, at_line: bool, finished: Path, tmp_path: Path) -> None:
    """Between rounds, and after a line of the curve but before its checkpoint."""
    out = tmp_path / "agent"
    with pytest.raises(StopHereError):
        train(out, progress=stop_at(step, at_line=at_line))
    assert not out.exists()
    heard: list[int] = []
    result = train(out, resume=True, progress=lambda at: heard.append(at.step))
    saved = 4 * ((step - 1) // 4)
    assert (heard[0], result.metrics["num_resumed"]) == (saved + 2, saved)
    assert_same(out, finished)


def test_a_run_goes_on_as_often_as_it_is_stopped(finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "agent"
    for step in (6, 10, 12):
        with pytest.raises(StopHereError):
            train(out, resume=True, progress=stop_at(step))
    train(out, resume=True)
    assert_same(out, finished)


KILLED = """
import json, os, signal, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
import safetensors.torch
from trimtab.models.tabular import TabularModel
from trimtab.training.agent.train import AgentReward, AgentSettings, train_agent
how, out, settings, prompts = json.loads(sys.argv[1])
kill = lambda: os.kill(os.getpid(), signal.SIGKILL)
from TESTS import letters, share_of_c
if how == "inside a checkpoint":
    save = safetensors.torch.save_file
    def half(tensors, path, *args, **options):
        save(tensors, path, *args, **options)
        if "checkpoint-8" in str(path):
            Path(path).write_bytes(Path(path).read_bytes()[:100])
            kill()
    safetensors.torch.save_file = half
def progress(at):
    if how == "between checkpoints" and at.step == 10:
        kill()
rewards = [AgentReward("letters", letters, 2.0), AgentReward("c", share_of_c, -1.0)]
model = TabularModel.random(9, seed=3, scale=2.0)
train_agent(model, prompts, rewards, out=out, settings=AgentSettings(**settings), progress=progress)
""".replace("TESTS", __name__)


@pytest.mark.slow
@pytest.mark.parametrize(("how", "good"), [("between checkpoints", 8), ("inside a checkpoint", 4)])
def test_a_killed_run_goes_on_exactly(how: str, good: int, finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "agent"
    told = json.dumps([how, str(out), dataclasses.asdict(SETTINGS), PROMPTS])
    done = subprocess.run(
        [sys.executable, "-c", KILLED, told],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    found = checkpoints.last_good(checkpoints.workspace_of(out))
    assert found is not None
    assert found.name == f"checkpoint-{good}"
    with pytest.raises(OutputExistsError, match=r"agent\.partial already exists"):
        train(out)
    train(out, resume=True)
    assert_same(out, finished)


@pytest.fixture
def stopped(tmp_path: Path) -> Path:
    out = tmp_path / "agent"
    with pytest.raises(StopHereError):
        train(out, progress=stop_at(6))
    return out


CHANGED: dict[str, tuple[dict[str, Any], str]] = {
    "a setting": (
        {"settings": dataclasses.replace(SETTINGS, gamma=0.9)},
        r": gamma is 0\.9 here and 0\.99 in the run",
    ),
    "the prompts": ({"prompts": PROMPTS[1:]}, r"the content of the data is \w{12}… here and \w{12}… in the run"),
    "the rewards": (
        {"rewards": REWARDS[:1]},
        r": rewards is letters=\S+:2 here and letters=\S+:2, c=\S+:-1 in",
    ),
    "the model": ({"model": TabularModel.random(10, seed=3)}, "the vocabulary's fingerprint is"),
}


@pytest.mark.parametrize("name", CHANGED)
def test_a_run_is_continued_only_as_it_was(name: str, stopped: Path) -> None:
    options, problem = CHANGED[name]
    with pytest.raises(OptionError, match=rf"cannot be continued with other settings.*{problem}"):
        train(stopped, resume=True, **options)


def test_a_finished_run_has_nothing_left_to_do(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent_module, "_rollouts", lambda *args: pytest.fail("loaded a model"))
    result = train(finished, resume=True)
    assert result.num_episodes == 14
    with pytest.raises(OptionError, match=r"is finished.*the number of prompts is 2 here and 5"):
        train(finished, resume=True, prompts=PROMPTS[:2])
    with pytest.raises(OptionError, match="other settings: seed is 5 here and 0 in the run"):
        train(finished, settings=dataclasses.replace(SETTINGS, seed=5), resume=True)


def test_a_full_disk_leaves_the_last_good_checkpoint(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, save = tmp_path / "agent", safetensors.torch.save_file

    def full(tensors: Any, path: Any, *args: Any, **options: Any) -> None:
        if "checkpoint-8" in str(path):
            Path(path).write_bytes(b"half")
            raise OSError(28, "No space left on device")
        save(tensors, path, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(safetensors.torch, "save_file", full)
        with pytest.raises(CheckpointError, match=r"No space left.*checkpoint-4 is whole.*--resume"):
            train(out)
    workspace = checkpoints.workspace_of(out)
    assert [path.name for path in workspace.glob("checkpoint-*")] == ["checkpoint-4"]
    train(out, resume=True)
    assert_same(out, finished)


def test_what_is_on_the_disk_is_no_more_than_the_ring_and_one_checkpoint(tmp_path: Path) -> None:
    sizes: list[int] = []

    def look(at: TrainProgress) -> None:
        sizes.append(len(list((tmp_path / "agent.partial").glob("checkpoint-*"))))

    train(tmp_path / "agent", dataclasses.replace(SETTINGS, save_episodes=2), progress=look)
    assert max(sizes) == 1


def test_no_pickle_is_written(stopped: Path) -> None:
    train_again = checkpoints.workspace_of(stopped)
    suffixes = {path.suffix for path in train_again.rglob("*") if path.is_file()}
    assert suffixes == {".json", ".jsonl", ".safetensors"}
