"""Rollouts on a Ray cluster of two nodes: who fits where, whether nodes agree, and a node that goes away."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("torchrl")
pytest.importorskip("ray")

import ray
import safetensors.torch
from ray.cluster_utils import Cluster

from tests.training.test_agent_workers import PROMPTS, SETTINGS
from trimtab.core import Prompt
from trimtab.errors import ModelError, OptionError
from trimtab.training.agent import train as agent_module
from trimtab.training.agent.rollouts import BaseFacts, LocalRollouts
from trimtab.training.agent.train import AgentReward, AgentSettings, ModelSource, TrainProgress, train_agent
from trimtab.training.agent.workers import RayRollouts, agreed, part_of_gpu, room_for


def test_every_worker_gets_a_gpu_or_a_part_that_lets_all_fit() -> None:
    assert part_of_gpu(4, 0) == 0
    assert part_of_gpu(4, 8) == 1
    assert part_of_gpu(4, 3) == 0.5  # not 3/4, of which a GPU holds one
    assert part_of_gpu(8, 1) == 0.125


def test_a_worker_has_to_fit_on_one_node() -> None:
    nodes = [{"CPU": 4.0, "GPU": 2.0}, {"CPU": 1.0}]
    assert room_for(1, 0, nodes) == 5
    assert room_for(2, 0, nodes) == 2, "no worker has a CPU of each"
    assert room_for(1, 1, nodes) == 2
    assert room_for(1, 0.5, nodes) == 4
    assert room_for(0.1, 1 / 3, [{"CPU": 1.0, "GPU": 1.0}]) == 3


def facts(width: int = 8) -> BaseFacts:
    return BaseFacts(width, True, {"base": {"name": "m"}})


def test_nodes_that_differ_are_refused() -> None:
    same = (facts(), {"torch": "2.13.0"})
    assert agreed([same, same]) == facts()
    with pytest.raises(ModelError, match=r"not stand on the same: torch 2\.13\.0 and 2\.6\.0\. Bring every node"):
        agreed([same, (facts(), {"torch": "2.6.0"})])
    with pytest.raises(ModelError, match=r"hidden_size=8.*hidden_size=16"):
        agreed([same, same, (facts(16), {"torch": "2.13.0"})])


CLAIMS: dict[str, tuple[dict[str, Any], str]] = {
    "no CPU": ({"workers": 1, "worker_cpus": 0.0}, "worker_cpus is 0"),
    "fewer than no GPU": ({"workers": 1, "worker_gpus": -1.0}, "worker_gpus -1"),
    "not a number": ({"workers": 1, "worker_gpus": float("nan")}, "worker_gpus nan"),
    "no workers": ({"worker_gpus": 1.0}, "of no use without workers"),
}


@pytest.mark.parametrize("name", CLAIMS)
def test_claims_that_make_no_sense_are_refused(name: str, tiny: str, tmp_path: Path) -> None:
    options, problem = CLAIMS[name]
    with pytest.raises(OptionError, match=problem):
        train(tiny, tmp_path / "a", **options)
    assert not list(tmp_path.iterdir())


def length(prompts: Sequence[Prompt], texts: Sequence[str]) -> list[float]:
    return [float(len(text)) for text in texts]


def train(model: str, out: Path, **options: Any) -> agent_module.AgentResult:
    return train_agent(model, PROMPTS, [AgentReward("length", length)], out=out, settings=SETTINGS, **options)


@pytest.fixture
def two_nodes() -> Iterator[Cluster]:
    """A cluster of two nodes with a CPU each; the head is this machine as another address would be."""
    if ray.is_initialized():
        ray.shutdown()  # another test's
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    cluster.add_node(num_cpus=1)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


@pytest.mark.slow
def test_a_run_survives_a_node_that_goes_away_and_ends_in_the_same_weights(
    two_nodes: Cluster, tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    homes: list[str] = []
    load = RayRollouts._load

    def noting(rollouts: RayRollouts) -> BaseFacts:
        found = load(rollouts)
        homes.extend(ray.get([worker.node_id.remote() for worker in rollouts._workers]))
        return found

    def remove(at: TrainProgress) -> None:
        if at.step == 5 and len(two_nodes.worker_nodes) == 1:
            two_nodes.remove_node(*two_nodes.worker_nodes, allow_graceful=False)

    monkeypatch.setattr(RayRollouts, "_load", noting)
    address = two_nodes.address
    with pytest.raises(OptionError, match="room for 0 workers of 2 CPUs and 0 GPUs, not for 1"):
        train(tiny, tmp_path / "wide", workers=1, ray_address=address, worker_cpus=2.0)
    result = train(tiny, tmp_path / "cluster", workers=2, ray_address=address, progress=remove)
    assert len(set(homes)) == 2, "one worker a node"
    assert dataclasses.asdict(result)["num_lost_workers"] == 1

    def cut(model: Any, source: ModelSource, settings: AgentSettings, *rest: Any) -> LocalRollouts:
        return LocalRollouts(source.load(), settings, parts=2)

    monkeypatch.setattr(agent_module, "_rollouts", cut)
    train(tiny, tmp_path / "here")
    one, other = (safetensors.torch.load_file(tmp_path / name / "model.safetensors") for name in ("cluster", "here"))
    for name, value in one.items():
        assert torch.equal(value, other[name]), name
