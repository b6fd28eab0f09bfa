"""One line of an agent's curve: means over the episodes since the last one."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from trimtab.training.agent.recorder import Episode
from trimtab.training.run.rating import Rating


class Window:
    """Sums over the episodes between two lines."""

    def __init__(self) -> None:
        self._started = time.perf_counter()
        self._sums: dict[str, float] = {}
        self._seconds: dict[str, float] = {}
        self._num_episodes = 0
        self._num_rated = 0

    def state(self) -> dict[str, object]:
        """What a resumed run needs to go on with the line."""
        return {
            "sums": self._sums,
            "seconds": self._seconds,
            "num_episodes": self._num_episodes,
            "num_rated": self._num_rated,
            "elapsed": time.perf_counter() - self._started,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from `state`."""
        self._sums, self._seconds = dict(state["sums"]), dict(state["seconds"])
        self._num_episodes, self._num_rated = int(state["num_episodes"]), int(state["num_rated"])
        self._started = time.perf_counter() - state["elapsed"]

    def add(self, episode: Episode, rating: Rating | None) -> None:
        """One more episode, with its rating where it has one."""
        self._num_episodes += 1
        examined = len(episode.actions)
        self._count("tokens", episode.num_tokens)
        self._count("examined", examined)
        self._count("asked", episode.num_asked)
        self._count("forced", episode.num_forced)
        self._count("kl", episode.kl)
        self._count("entropy", episode.entropy)
        if rating is not None:
            self._num_rated += 1
            self._count("reward", rating.total)
            self._count("final", rating.final)
            for name, score in rating.scores.items():
                self._count(f"reward_{name}", score)

    def add_seconds(self, *, base: float, agent: float, rewards: float, updates: float) -> None:
        """Where the time of a round went."""
        for name, seconds in (("base", base), ("agent", agent), ("rewards", rewards), ("updates", updates)):
            self._seconds[name] = self._seconds.get(name, 0.0) + seconds

    def line(self) -> dict[str, float]:
        """The means. What has no denominator is left out: no reward where no episode had one.

        `acceptance` is the share of the candidates looked at that the actor accepted itself; `candidates` are looked at
        in a step that it was asked about; `forced` is the share of those steps in which it accepted none. The entropy
        of a decision and both KL are in nats.
        """
        seconds = time.perf_counter() - self._started
        line = self._means(("reward", "final_reward"), ("reward", "final"), self._num_rated)
        terms = [name for name in self._sums if name.startswith("reward_")]
        line |= self._means(terms, terms, self._num_rated)
        line |= self._means(("num_tokens", "kl"), ("tokens", "kl"), self._num_episodes)
        examined, asked = self._sums.get("examined", 0.0), self._sums.get("asked", 0.0)
        if asked:
            line["acceptance"] = (asked - self._sums["forced"]) / examined
            line |= self._means(("forced", "candidates", "kl_per_step"), ("forced", "examined", "kl"), asked)
            line["decision_entropy"] = self._sums["entropy"] / examined
        line |= {f"share_{name}": value / seconds for name, value in self._seconds.items()}
        line["episodes_per_s"] = self._num_episodes / seconds
        return line

    def _count(self, name: str, value: float) -> None:
        self._sums[name] = self._sums.get(name, 0.0) + value

    def _means(
        self, names: tuple[str, ...] | list[str], sums: tuple[str, ...] | list[str], count: float
    ) -> dict[str, float]:
        return {name: self._sums.get(key, 0.0) / count for name, key in zip(names, sums, strict=True) if count}
