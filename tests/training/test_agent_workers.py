"""Rollouts on Ray workers: the same transitions, and what happens when some or all of them die."""

from __future__ import annotations

import dataclasses
import os
import signal
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("torchrl")
pytest.importorskip("ray")

import ray
import safetensors.torch

from trimtab.core import Prompt
from trimtab.errors import CheckpointError, ModelError, OptionError, PromptError
from trimtab.storage.loading import load_model
from trimtab.training.agent import train as agent_module
from trimtab.training.agent import workers
from trimtab.training.agent.rollouts import LocalRollouts, Plan, Rollout
from trimtab.training.agent.sac import Learner
from trimtab.training.agent.train import AgentReward, AgentSettings, ModelSource, train_agent
from trimtab.training.agent.worker_options import WorkerOptions
from trimtab.training.agent.workers import RayRollouts

SETTINGS = AgentSettings(
    episodes=15,
    rollout_batch=5,
    max_new_tokens=8,
    hidden_dim=16,
    batch_size=32,
    warmup_batches=1,
    updates_per_episode=2,
    baseline="base",
    logging_episodes=5,
)
PROMPTS: Sequence[Prompt] = ["say 1", "say 22", "say 333", "4", "tell 5"]


def source(name: str) -> ModelSource:
    return ModelSource(name, "auto", "cpu", False, None)


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """One small cluster for all tests: starting one takes seconds."""
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


@pytest.fixture
def two(cluster: None, tiny: str) -> Iterator[RayRollouts]:
    rollouts = RayRollouts(source(tiny), SETTINGS, WorkerOptions(count=2))
    yield rollouts
    rollouts.close()


slow = pytest.mark.slow
"""Every worker imports torch and transformers before it works."""


def plans(first: int = 0) -> list[Plan]:
    return [Plan(first + at, prompt) for at, prompt in enumerate(PROMPTS)]


def actor(rollouts: Any) -> dict[str, torch.Tensor]:
    return Learner(rollouts.facts.hidden_size, SETTINGS, torch.device("cpu")).actor_weights()


def assert_same(one: Rollout, other: Rollout) -> None:
    assert one.base_texts == other.base_texts
    assert [episode.index for episode in one.episodes] == [episode.index for episode in other.episodes]
    for left, right in zip(one.episodes, other.episodes, strict=True):
        assert (left.text, left.num_tokens, left.num_forced) == (right.text, right.num_tokens, right.num_forced)
        for name in ("states", "actions", "kl_rewards"):
            assert torch.equal(getattr(left, name), getattr(right, name)), name


@slow
def test_two_workers_give_the_very_transitions_of_this_process(
    two: RayRollouts, tiny: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = LocalRollouts(load_model(tiny), SETTINGS, parts=2)
    assert two.facts == here.facts
    for first in (0, 5):
        mine, theirs = (rollouts.collect(plans(first), actor(here), {first + 1}) for rollouts in (here, two))
        assert_same(mine, theirs)
    assert sum(len(episode.states) for episode in mine.episodes) > 50
    # An error in a worker keeps its sentence.
    with pytest.raises(PromptError, match=r"^Prompt 2 of 2: The prompt has \d+ tokens"):
        two.check(["fine", "too long " * 60])
    two.check(PROMPTS)
    # A worker that finds no room is not waited for forever.
    monkeypatch.setattr(workers, "START_TIMEOUT_S", 1.0)
    with pytest.raises(ModelError, match=r"1 of 1 workers have not started within 1 seconds.*fewer workers"):
        RayRollouts(source(tiny), SETTINGS, WorkerOptions(count=1))


@slow
def test_a_worker_that_dies_is_replaced_by_another_and_nothing_changes(
    two: RayRollouts, tiny: str, caplog: pytest.LogCaptureFixture
) -> None:
    here = LocalRollouts(load_model(tiny), SETTINGS, parts=2)
    os.kill(ray.get(two._workers[0].process_id.remote()), signal.SIGKILL)
    assert_same(here.collect(plans(), actor(here), ()), two.collect(plans(), actor(here), ()))
    assert two.num_lost == 1
    assert "a worker died; 1 are left" in caplog.text
    assert_same(here.collect(plans(5), actor(here), ()), two.collect(plans(5), actor(here), ()))
    assert two.num_lost == 1, "counted once"


@slow
def test_when_all_are_dead_the_way_out_is_named(two: RayRollouts, tiny: str) -> None:
    weights = actor(two)
    for worker in two._workers:
        os.kill(ray.get(worker.process_id.remote()), signal.SIGKILL)
    with pytest.raises(ModelError, match=r"All 2 workers died .*fewer workers.*--resume"):
        two.collect(plans(), weights, ())
    assert two.num_lost == 2


@slow
def test_a_model_that_is_not_there_is_said(cluster: None, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"^There is no model"):
        RayRollouts(source(str(tmp_path / "nothing")), SETTINGS, WorkerOptions(count=1))


@slow
def test_more_workers_than_the_cluster_has_room_for_are_refused(cluster: None, tiny: str) -> None:
    with pytest.raises(OptionError, match="have room for 2 workers of 1 CPUs and 0 GPUs, not for 3"):
        RayRollouts(source(tiny), SETTINGS, WorkerOptions(count=3))


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_a_cluster_that_cannot_be_reached_is_said_at_once(scheme: str, tiny: str, tmp_path: Path) -> None:
    if ray.is_initialized():
        ray.shutdown()
    address = f"{scheme}127.0.0.1:{free_port()}"
    with pytest.raises(OptionError, match=rf"no Ray cluster to reach at {address}.*ray start --head"):
        train(tiny, tmp_path / "a", workers=2, ray_address=address)
    with pytest.raises(OptionError, match=r"'somewhere' is not an address of a Ray cluster"):
        train(tiny, tmp_path / "a", workers=2, ray_address="somewhere")
    assert not list(tmp_path.iterdir())


def length(prompts: Sequence[Prompt], texts: Sequence[str]) -> list[float]:
    return [float(len(text)) for text in texts]


def train(model: str, out: Path, **options: Any) -> agent_module.AgentResult:
    return train_agent(model, PROMPTS, [AgentReward("length", length)], out=out, settings=SETTINGS, **options)


@slow
def test_a_run_on_two_workers_ends_in_the_weights_of_a_run_here(
    tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """With a cluster of its own; here the rounds are cut as for two."""
    ray.shutdown()  # another test's
    result = train(tiny, tmp_path / "two", workers=2)
    assert not ray.is_initialized(), "the cluster ends with the run"
    assert capfd.readouterr().out == ""
    assert result.num_updates > 20

    def cut(model: Any, source: ModelSource, settings: AgentSettings, *rest: Any) -> LocalRollouts:
        return LocalRollouts(source.load(), settings, parts=2)

    monkeypatch.setattr(agent_module, "_rollouts", cut)
    train(tiny, tmp_path / "here")
    one, other = (safetensors.torch.load_file(tmp_path / name / "model.safetensors") for name in ("two", "here"))
    for name, value in one.items():
        assert torch.equal(value, other[name]), name
    assert dataclasses.asdict(result)["num_lost_workers"] == 0
