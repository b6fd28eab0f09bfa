"""Rollouts on Ray actors: each loads the model itself, gets the actor's weights each round, and hands episodes back.

The rounds are those of `rollouts.LocalRollouts` cut into as many parts as there were workers at the start. A worker
that dies is left out from then on and its part is rolled out by another, as the same part: episodes have their own
random numbers, so nothing of the run changes but its speed.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import ray
import ray.exceptions
import torch
from torch import Tensor

from trimtab.core import Prompt
from trimtab.errors import ModelError, OptionError, TrimtabError
from trimtab.training.agent import ModelSource
from trimtab.training.agent_settings import AgentSettings
from trimtab.training.rollouts import BaseFacts, Plan, Roller, Rollout, merged, split

log = logging.getLogger(__name__)

CONNECT_TIMEOUT_S = 5.0
START_TIMEOUT_S = 300.0

_DEATHS = (
    ray.exceptions.RayActorError,
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

    def load(self) -> BaseFacts:
        """Load the model; apart from the constructor, so that an error keeps its sentence."""
        self._roller = Roller(self._source.load(), self._settings)
        return self._roller.facts

    def check(self, prompts: Sequence[Prompt]) -> None:
        """As `Roller.check`."""
        assert self._roller is not None
        self._roller.check(prompts)

    def roll(self, plans: Sequence[Plan], weights: Mapping[str, Tensor], base_for: Collection[int]) -> Rollout:
        """As `Roller.roll`."""
        assert self._roller is not None
        return self._roller.roll(plans, weights, base_for)

    def process_id(self) -> int:
        """Of the actor."""
        return os.getpid()


class RayRollouts:
    """Rollouts on `num_workers` Ray actors.

    `address` is a cluster's, as in `ray.init`; None starts one on this machine, which ends with the run. Raises
    OptionError for a cluster that cannot be reached or is too small.
    """

    def __init__(
        self, source: ModelSource, settings: AgentSettings, num_workers: int, *, address: str | None = None
    ) -> None:
        self._num_parts = num_workers
        self._is_ours = not ray.is_initialized()
        self._workers: list[Any] = []
        self.num_lost = 0
        if self._is_ours:
            _connect(num_workers, address)
        try:
            num_cpus, num_gpus = (ray.cluster_resources().get(kind, 0.0) for kind in ("CPU", "GPU"))
            if num_cpus < num_workers:
                raise OptionError(
                    f"The Ray cluster has {num_cpus:g} CPUs, and each of {num_workers} workers needs one. "
                    "Give fewer workers."
                )
            actor = ray.remote(RolloutWorker).options(num_cpus=1, num_gpus=min(1.0, num_gpus / num_workers))
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
        found: dict[int, Rollout] = {}
        while len(found) < len(parts):
            if not self._workers:
                raise self._all_dead()
            missing = [number for number in parts if number not in found]
            chosen = {number: self._workers[at % len(self._workers)] for at, number in enumerate(missing)}
            told = {number: worker.roll.remote(parts[number], shared, base_for) for number, worker in chosen.items()}
            answered = self._ask([(chosen[number], told[number]) for number in missing])
            found.update({missing[at]: rollout for at, rollout in answered.items()})
        return merged([found[number] for number in parts])

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
        facts: BaseFacts = next(iter(answered.values()))
        return facts

    def _ask(self, told: Sequence[tuple[Any, Any]]) -> dict[int, Any]:
        """Position -> answer of those workers that lived to give it; the others are left out from now on.

        An error that a worker raised is raised here.
        """
        answers: dict[int, Any] = {}
        for at, (worker, reference) in enumerate(told):
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
        self.num_lost += 1
        self._last_death = " ".join(str(error).split())[:300]
        log.warning("a worker died; %d are left, and take over its episodes", len(self._workers))

    def _all_dead(self) -> ModelError:
        return ModelError(
            f"All {self._num_parts} workers died (the last: {self._last_death}). If memory was short, give fewer "
            "workers or a smaller rollout_batch. The run goes on from its last checkpoint with --resume."
        )

    _last_death = "no word of it"


def _connect(num_workers: int, address: str | None) -> None:
    """Start Ray here, or join the cluster at an address."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        if address is None:
            ray.init(address="local", num_cpus=num_workers, include_dashboard=False, **quiet)
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
        raise OptionError(f"{address!r} is no address of a Ray cluster. Accepted: host:port, ray://host:port, or auto.")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_TIMEOUT_S).close()
    except (OSError, OverflowError) as error:
        raise _unreachable(address, error) from error


def _unreachable(address: str, error: Exception) -> OptionError:
    return OptionError(
        f"There is no Ray cluster to reach at {address} ({error}). Start one there (ray start --head), or give no "
        "address to use workers on this machine."
    )
