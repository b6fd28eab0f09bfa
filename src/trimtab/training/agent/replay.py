"""The replay buffer: a ring of transitions in memory, and its copy on the disk.

The ring is torchrl's `ReplayBuffer` over a `LazyTensorStorage` (allocated with the first transition, touched as it
fills, never larger than its capacity) with its uniform sampler, which draws with replacement; the released code of MARA
draws without. Two things are ours.

Each state is stored once. A transition's next state is the state of the transition after it, so it is looked up at
index + 1, around the ring's end. Whole episodes are appended, so that is another episode's state only where an episode
ends, and there nothing comes next. When the ring overwrites an episode it does so from its beginning, so what is left
of a chain still ends at its end. (torchrl's `NextStateReconstructor` rebuilds next states too, but from neighbours
within a sampled batch, which suits slices and not single draws.)

On the disk the ring is append-only: each save writes one safetensors file of what came since the last, and a file
leaves once the ring has overwritten all of it. torchrl's own `dumps` writes everything each time.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from tensordict import TensorDict
from torch import Tensor
from torchrl.data import LazyTensorStorage, ReplayBuffer

from trimtab.errors import CheckpointError
from trimtab.storage.files import whole_file
from trimtab.training.run.logs import at_level

_SHARD = re.compile(r"transitions-(\d+)-(\d+)\.safetensors")


class Replay:
    """Up to `capacity` transitions of states of D numbers, kept as `dtype`."""

    def __init__(self, capacity: int, dtype: torch.dtype = torch.float32) -> None:
        self._capacity = capacity
        self._dtype = dtype
        self._ring = ReplayBuffer(storage=LazyTensorStorage(capacity))
        self.num_written = 0
        """Transitions ever appended; transition n lies at n mod capacity."""

    def __len__(self) -> int:
        return len(self._ring)

    def append(self, states: Tensor, actions: Tensor, rewards: Tensor) -> None:
        """One whole episode: states [T, D], actions [T] (0 or 1) and rewards [T]; the last transition ends it.

        Of an episode longer than the ring the beginning is left out.
        """
        terminal = torch.zeros(len(states), dtype=torch.bool)
        terminal[-1] = True
        row = {"state": states.to(self._dtype), "action": actions.to(torch.uint8), "reward": rewards, "end": terminal}
        self._extend({name: column[-self._capacity :] for name, column in row.items()})

    def sample(self, batch_size: int, generator: torch.Generator) -> TensorDict:
        """Transitions drawn uniformly with replacement, in the layout that torchrl's losses read; float32."""
        self._ring.set_rng(generator)
        drawn, info = self._ring.sample(batch_size, return_info=True)
        following = (info["index"] + (~drawn["end"]).long()) % self._capacity
        end = drawn["end"][:, None]
        after = {
            "observation": self._ring[following]["state"].to(torch.float32),
            "reward": drawn["reward"][:, None],
            "done": end,
            "terminated": end,
        }
        batch = {"observation": drawn["state"].to(torch.float32), "action": drawn["action"].long(), "next": after}
        return TensorDict(batch, batch_size=[batch_size])

    def save(self, directory: Path, since: int) -> dict[str, int]:
        """Write the transitions from number `since` on; returns the files that hold the ring, with their sizes."""
        directory.mkdir(exist_ok=True)
        first = max(since, self.num_written - self._capacity)
        if first < self.num_written:
            places = torch.arange(first, self.num_written) % self._capacity
            columns = {name: column.contiguous() for name, column in self._ring[places].items()}
            with whole_file(directory / f"transitions-{first:012d}-{self.num_written:012d}.safetensors") as path:
                safetensors.torch.save_file(columns, path)
        return {path.name: path.stat().st_size for path, _, last in _shards(directory) if last > self._oldest}

    def drop(self, directory: Path) -> None:
        """Remove the files of which the ring holds nothing more."""
        for path, _, last in _shards(directory):
            if last <= self._oldest:
                path.unlink()

    def load(self, directory: Path, files: Mapping[str, int], num_written: int) -> None:
        """Lay out an empty ring as it was when `save` returned these files; others in the directory are removed.

        Raises CheckpointError where a file is missing or cut.
        """
        for path, _, _ in _shards(directory):
            if path.name not in files:
                path.unlink()
        for name, size in files.items():
            path = directory / name
            if not path.is_file() or path.stat().st_size != size:
                raise CheckpointError(f"{path} is missing or cut, so the run cannot go on. Start anew: --overwrite.")
        turn = num_written - num_written % self._capacity
        # From place 0 on; then its newest part again, which brings torchrl's cursor to where it was.
        spans = [(turn, num_written)] if turn == 0 else [(turn, num_written), (num_written - self._capacity, turn)] * 2
        for start, stop in spans[:3]:
            for columns in _read(directory, start, stop):
                self._extend(columns)
        self.num_written = num_written

    @property
    def _oldest(self) -> int:
        return self.num_written - self._capacity

    def _extend(self, columns: Mapping[str, Tensor]) -> None:
        length = len(columns["reward"])
        # torchrl tells standard output of its storage; that stream is the command line's.
        with at_level(logging.getLogger("torchrl"), logging.ERROR):
            self._ring.extend(TensorDict(dict(columns), batch_size=[length]))
        self.num_written += length


def _shards(directory: Path) -> list[tuple[Path, int, int]]:
    """Files with the numbers of their first transition and of the one after their last, in order."""
    shards = [(path, match) for path in directory.glob("*.safetensors") if (match := _SHARD.fullmatch(path.name))]
    return sorted(((path, int(match[1]), int(match[2])) for path, match in shards), key=lambda shard: shard[1])


def _read(directory: Path, start: int, stop: int) -> Iterator[dict[str, Tensor]]:
    """Transitions start..stop-1, a file at a time."""
    for path, first, last in _shards(directory):
        low, high = max(start, first), min(stop, last)
        if low >= high:
            continue
        with safetensors.safe_open(path, framework="pt") as shard:
            yield {name: shard.get_slice(name)[low - first : high - first] for name in shard.keys()}  # noqa: SIM118
