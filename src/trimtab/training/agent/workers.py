"""Rollouts on Ray actors: each loads the model itself, gets the actor's weights each round, and hands episodes back.

The rounds are those of `rollouts.LocalRollouts` cut into as many parts as there were workers at the start. A worker
that dies is left out from then on and its part is rolled out by another, as the same part: episodes have their own
random numbers, so nothing of the run changes but its speed.

Workers are spread over the nodes of a cluster. Prompts, weights and episodes travel through Ray, so nodes need to share
no disk; each needs trimtab, the same versions of what it stands on, and the model under the same name.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import logging
import math
import os
import socket
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import ray
import ray.exceptions
import torch
from torch import Tensor

from trimtab import environment
from trimtab.core import Prompt
from trimtab.errors import ModelError, OptionError, TrimtabError
from trimtab.storage.model_source import ModelSource
from trimtab.training.agent.rollouts import BaseFacts, Plan, Roller, Rollout, merged, split
from trimtab.training.agent.settings import AgentSettings
from trimtab.training.agent.worker_options import WorkerOptions

log = logging.getLogger(__name__)

CONNECT_TIMEOUT_S = 5.0
START_TIMEOUT_S = 300.0

_STANDS_ON = ("trimtab", "torch", "transformers")
"""What has to be of one version on all nodes, or transitions would differ between workers."""

_DEATHS = (
    ray.exceptions.RayActorError,
    ray.exceptions.NodeDiedError,
    ray.exceptions.WorkerCrashedError,
    ray.exceptions.OutOfMemoryError,
    ray.exceptions.ObjectLostError,
)


class RolloutWorker:
    """What runs in a Ray actor."""

    def __init__(self, source: ModelSource, settings: AgentSettings) -> None:
        self._source = source
        self._settings = settings
        self._roller: Roller | None = None

    def load(self) -> tuple[BaseFacts, dict[str, str]]:
        """Load the model, and say what it is and what stands under it.

        Apart from the constructor, so that an error keeps its sentence.
        """
        try:
            self._roller = Roller(self._source.load_in_transformers(), self._settings)
        except TrimtabError as error:
            error.args = (f"{error} (On the node {ray.util.get_node_ip_address()}, for a worker.)",)
            raise
        return self._roller.facts, {name: importlib.metadata.version(name) for name in _STANDS_ON}

    def check(self, prompts: Sequence[Prompt]) -> None:
        """As `Roller.check`."""
        assert self._roller is not None
        self._roller.check(prompts)

    def roll(self, plans: Sequence[Plan], weights: Mapping[str, Tensor], base_for: Collection[int]) -> Rollout:
        """As `Roller.roll`."""
        assert self._roller is not None
        return self._roller.roll(plans, weights, base_for)

    def process_id(self) -> int:
        """The id of the actor's process."""
        return os.getpid()

    def node_id(self) -> str:
        """Ray's name of the node that the actor is on."""
        node: str = ray.get_runtime_context().get_node_id()
        return node


class RayRollouts:
    """Rollouts on Ray actors.

    A cluster that is started here ends with the run. Raises OptionError for a cluster that cannot be reached or is too
    small, ModelError where nodes differ in model or versions.
    """

    def __init__(self, source: ModelSource, settings: AgentSettings, options: WorkerOptions) -> None:
        self._num_parts = num_workers = options.count
        self._is_ours = not ray.is_initialized()
        self._workers: list[Any] = []
        self.num_lost = 0
        if self._is_ours:
            _connect(math.ceil(num_workers * options.cpus), options.address)
        try:
            cpus, gpus = options.cpus, options.gpus
            if gpus is None:
                gpus = part_of_gpu(num_workers, ray.cluster_resources().get("GPU", 0.0))
            nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
            if (room := room_for(cpus, gpus, nodes)) < num_workers:
                raise OptionError(
                    f"The nodes of the Ray cluster have room for {room} workers of {cpus:g} CPUs and {gpus:g} GPUs, "
                    f"not for {num_workers}. Give fewer workers, or fewer CPUs or GPUs to each."
                )
            actor = ray.remote(RolloutWorker).options(num_cpus=cpus, num_gpus=gpus, scheduling_strategy="SPREAD")
            self._workers = [actor.remote(source, settings) for _ in range(num_workers)]
            self.facts: BaseFacts = self._load()
        except BaseException:
            self.close()
            raise
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def check(self, prompts: Sequence[Prompt]) -> None:
        for worker in list(self._workers):
            if self._ask([(worker, worker.check.remote(list(prompts)))]):
                return
        raise self._all_dead()

    def collect(self, plans: Sequence[Plan], weights: Mapping[str, Tensor], base_for: Collection[int]) -> Rollout:
        parts = dict(enumerate(split(plans, self._num_parts)))
        shared = ray.put(dict(weights))
        rolled: dict[int, Rollout] = {}
        while len(rolled) < len(parts):
            if not self._workers:
                raise self._all_dead()
            missing = [number for number in parts if number not in rolled]
            asked = [self._workers[at % len(self._workers)] for at in range(len(missing))]
            pending = [
                (worker, worker.roll.remote(parts[number], shared, base_for))
                for worker, number in zip(asked, missing, strict=True)
            ]
            rolled.update({missing[at]: rollout for at, rollout in self._ask(pending).items()})
        return merged([rolled[number] for number in parts])

    def close(self) -> None:
        """End the workers, and the cluster if it is ours."""
        for worker in self._workers:
            with contextlib.suppress(Exception):
                ray.kill(worker)
        self._workers = []
        if self._is_ours:
            ray.shutdown()

    def _load(self) -> BaseFacts:
        """Every worker loads its model; what they say of it."""
        starting = [worker.process_id.remote() for worker in self._workers]
        _, waiting = ray.wait(starting, num_returns=len(starting), timeout=START_TIMEOUT_S)
        if waiting:
            raise ModelError(
                f"{len(waiting)} of {len(starting)} workers have not started within {START_TIMEOUT_S:g} seconds: "
                "others may use the cluster's CPUs or GPUs. Give fewer workers."
            )
        loading = [worker.load.remote() for worker in self._workers]
        answered = self._ask(list(zip(list(self._workers), loading, strict=True)))
        if not answered:
            raise self._all_dead()
        return agreed(list(answered.values()))

    def _ask(self, pending: Sequence[tuple[Any, Any]]) -> dict[int, Any]:
        """Position -> answer of those workers that lived to give it; the others are left out from now on.

        An error that a worker raised is raised here.
        """
        answers: dict[int, Any] = {}
        for at, (worker, reference) in enumerate(pending):
            try:
                answers[at] = ray.get(reference)
            except _DEATHS as error:
                self._lose(worker, error)
            except ray.exceptions.RayTaskError as error:
                cause = error.cause
                raise (cause if isinstance(cause, TrimtabError) else error) from None
        return answers

    def _lose(self, worker: Any, error: Exception) -> None:
        if worker not in self._workers:
            return
        self._workers.remove(worker)
        with contextlib.suppress(Exception):  # one that is only out of reach would keep its share of the cluster
            ray.kill(worker)
        self.num_lost += 1
        self._last_death = " ".join(str(error).split())[:300]
        log.warning("a worker died; %d are left, and take over its episodes", len(self._workers))

    def _all_dead(self) -> ModelError:
        return ModelError(
            f"All {self._num_parts} workers died (the last: {self._last_death}). If memory was short, give fewer "
            "workers or a smaller rollout_batch. The run goes on from its last checkpoint with --resume."
        )

    _last_death = "no word of it"


def part_of_gpu(num_workers: int, num_gpus: float) -> float:
    """What each of some workers claims of a cluster's GPUs: one, or such a part of one that all of them fit."""
    if num_gpus < 1:
        return 0.0
    return 1 / math.ceil(num_workers / num_gpus)


def room_for(cpus: float, gpus: float, nodes: Sequence[Mapping[str, float]]) -> int:
    """How many workers that claim so much the nodes hold, each worker on one node."""
    claims = {kind: claim for kind, claim in (("CPU", cpus), ("GPU", gpus)) if claim > 0}
    fits = ([math.floor(node.get(kind, 0.0) / claim + 1e-6) for kind, claim in claims.items()] for node in nodes)
    return sum(min(counts) for counts in fits)


def agreed(loaded: Sequence[tuple[BaseFacts, Mapping[str, str]]]) -> BaseFacts:
    """What all workers say of the base. Raises ModelError where one stands on another base or other versions."""
    facts, versions = loaded[0]
    for other_facts, others in loaded[1:]:
        differing = [
            f"{name} {version} and {others[name]}" for name, version in versions.items() if version != others[name]
        ]
        if other_facts != facts:
            differing.append(f"the base {facts} and {other_facts}")
        if differing:
            raise ModelError(
                f"Workers do not stand on the same: {'; '.join(differing)}. Bring every node to the same versions and "
                "the same model."
            )
    return facts


def _connect(num_cpus: int, address: str | None) -> None:
    """Start Ray here, or join the cluster at an address."""
    environment.NO_RAY_REPORTS.give()
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        if address is None:
            ray.init(address="local", num_cpus=num_cpus, include_dashboard=False, **quiet)
            return
        if address != "auto":
            _reach(address)
        ray.init(address=address, **quiet)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        if isinstance(error, OptionError):
            raise
        raise _unreachable(address or "this machine", error) from error


def _reach(address: str) -> None:
    """Raise OptionError at once where nobody listens; Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        raise OptionError(
            f"{address!r} is not an address of a Ray cluster. Accepted: host:port, ray://host:port, or auto."
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_TIMEOUT_S).close()
    except (OSError, OverflowError) as error:
        raise _unreachable(address, error) from error


def _unreachable(address: str, error: Exception) -> OptionError:
    return OptionError(
        f"There is no Ray cluster to reach at {address} ({error}). Start one there (ray start --head), or give no "
        "address to use workers on this machine."
    )
