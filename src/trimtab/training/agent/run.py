"""The rounds of a run: roll out, rate, remember, update; the curve, checkpoints, and going on from one.

Nothing is random but what (seed, episode) and (seed, round) decide, and a round's episodes are the same in every run.
So a checkpoint needs no generator's state, and a run that was killed ends in the weights of one that was left alone.

A checkpoint is the learner's state, the counts, and which files hold the ring of transitions (`replay`). It counts once
it is sealed (`checkpoints`); the one before is removed after that.
"""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import safetensors
import torch

from trimtab.core import Prompt
from trimtab.errors import ModelError, naming
from trimtab.training.agent.curve import Window
from trimtab.training.agent.outlook import waiting
from trimtab.training.agent.recorder import Episode, seed_of
from trimtab.training.agent.replay import Replay
from trimtab.training.agent.rewards import with_answer_reward
from trimtab.training.agent.rollouts import Plan, Rollout, Rollouts
from trimtab.training.agent.sac import Learner
from trimtab.training.agent.settings import AgentSettings
from trimtab.training.run import cadence, checkpoints
from trimtab.training.run.arguments import RunArguments
from trimtab.training.run.interruption import Interrupted, Interruption
from trimtab.training.run.pace import duration
from trimtab.training.run.rating import Rater, Rating
from trimtab.training.run.settings import TrainProgress

log = logging.getLogger(__name__)


class AgentRun:
    """A run of `settings` in a workspace that exists, at its beginning or where its last whole checkpoint stands."""

    def __init__(
        self,
        rollouts: Rollouts,
        prompts: Sequence[Prompt],
        rater: Rater,
        settings: AgentSettings,
        arguments: RunArguments,
        interruption: Interruption,
    ) -> None:
        self._interruption = interruption
        self._rollouts = rollouts
        self._prompts = prompts
        self._rater = rater
        self._settings = settings
        self._workspace = arguments.workspace
        self._progress = arguments.progress
        self.learner = Learner(rollouts.facts.hidden_size, settings, rollouts.device)
        self._replay = Replay(settings.buffer_size, getattr(torch, settings.state_dtype))
        self.num_episodes = 0
        """Episodes so far, those without transitions or rewards included."""
        self.num_empty = 0
        """Episodes in which nothing was ever asked."""
        self._num_saved = 0
        self.last_line: dict[str, float] = {}
        """The newest line of the curve."""
        self._window = Window()
        self._restore()
        self._clock = cadence.Clock(settings.save_minutes)
        self._began, self._first_episode = time.monotonic(), self.num_episodes

    def run(self) -> None:
        """All rounds that are left.

        Raises ModelError where no episode had anything to learn from, Interrupted where a signal ended the run after a
        round, once its checkpoint is written.
        """
        self._say_what_comes()
        while self.num_episodes < self._settings.episodes:
            before, learnt = self.num_episodes, self.learner.num_updates
            self._round(range(before, min(before + self._settings.rollout_batch, self._settings.episodes)))
            self._tell({})
            crossed = _crossed(before, self.num_episodes, self._settings.logging_episodes) or self._is_done
            if crossed:
                self._log()
            self._say_how_it_goes(learnt, crossed=crossed)
            self._save_if_due()
        if self._replay.num_written == 0:
            raise naming(
                ModelError,
                "None of {0} episodes left anything to learn from: {1} had no finite reward, and in {2} every step had "
                "a single candidate. Check the rewards, or give a larger {top_k} and {top_p}.",
                *(self.num_episodes, self._rater.num_dropped, self.num_empty),
            )
        if self.learner.num_updates == 0:
            log.warning(
                "nothing was learnt: updates begin at %d transitions, and there are %d. Give more episodes, fewer "
                "batches to wait for, or smaller ones",
                *(self._settings.warmup, len(self._replay)),
            )

    def _say_what_comes(self) -> None:
        done = f"; {self.num_episodes:,} are done" if self.num_episodes else ""
        log.info(
            "rolling out %s episodes to %d prompts, %d at a time, of at most %d tokens%s",
            *(f"{self._settings.episodes:,}", len(self._prompts), self._settings.rollout_batch),
            *(self._settings.max_new_tokens, done),
        )
        if self.learner.num_updates == 0:
            log.info(
                "no update before %s transitions are collected; after the first round it is said how long that takes",
                f"{self._settings.warmup:,}",
            )

    def _say_how_it_goes(self, learnt: int, *, crossed: bool) -> None:
        """What is waited for, after the first round and with every line of the curve until the first update."""
        here = self.num_episodes - self._first_episode
        is_first = here <= self._settings.rollout_batch
        pace, left = (time.monotonic() - self._began) / here, self._settings.episodes - self.num_episodes
        if self.learner.num_updates == 0 and not self._is_done and (is_first or crossed):
            counts = {"collected": self._replay.num_written, "needed": self._settings.warmup}
            log.info("%s", waiting(**counts, num_episodes=self.num_episodes, left=left, pace=pace))
        elif learnt == 0 and self.learner.num_updates:
            log.info("the first update came after %s episodes", f"{self.num_episodes:,}")
        if is_first and left:
            log.info(
                "the first round took %s; at this pace the run takes about %s more",
                *map(duration, (pace * here, pace * left)),
            )

    def _save_if_due(self) -> None:
        """A checkpoint by episodes, by minutes, or because the run was asked to end. Raises Interrupted."""
        by_episodes = _crossed(self._saved_at, self.num_episodes, self._settings.save_episodes)
        asked = self._interruption.asked
        if asked or ((by_episodes or self._clock.is_due) and not self._is_done):
            began = self._clock.now()
            self._save()
            self._clock.wrote(began)
        if asked:
            raise Interrupted(self.num_episodes, self._settings.episodes, self._workspace, "episode")

    @property
    def _is_done(self) -> bool:
        return self.num_episodes >= self._settings.episodes

    def _round(self, indices: range) -> None:
        numbers = self._order(indices)
        plans = [Plan(index, self._prompts[number]) for index, number in zip(indices, numbers, strict=True)]
        started = time.perf_counter()
        rollout = self._rollouts.collect(
            plans, self.learner.actor_weights(), {plans[at].index for at in self._rater.needs_base(numbers)}
        )
        rolled = time.perf_counter()
        ratings = self._rate(plans, numbers, rollout)
        rated = time.perf_counter()
        num_new = sum(self._remember(*pair) for pair in zip(rollout.episodes, ratings, strict=True))
        self._update(num_new, first=indices[0])
        self.num_episodes = indices[-1] + 1
        agent_share = rollout.agent_seconds / max(rollout.agent_seconds + rollout.base_seconds, 1e-9)
        self._window.add_seconds(
            base=(rolled - started) * (1 - agent_share),
            agent=(rolled - started) * agent_share,
            rewards=rated - rolled,
            updates=time.perf_counter() - rated,
        )

    def _order(self, indices: range) -> list[int]:
        """The prompt numbers of some episodes: pass after pass over the prompts, each in an order of its own."""
        count = len(self._prompts)
        orders: dict[int, list[int]] = {}
        for turn in {index // count for index in indices}:
            generator = torch.Generator().manual_seed(seed_of(self._settings.seed, "order", turn))
            orders[turn] = torch.randperm(count, generator=generator).tolist()
        return [orders[index // count][index % count] for index in indices]

    def _rate(self, plans: Sequence[Plan], numbers: Sequence[int], rollout: Rollout) -> list[Rating | None]:
        places = [at for at, plan in enumerate(plans) if plan.index in rollout.base_texts]
        self._rater.learn_baselines(
            [numbers[at] for at in places],
            [plans[at].prompt for at in places],
            [rollout.base_texts[plans[at].index] for at in places],
        )
        texts = [episode.text for episode in rollout.episodes]
        return self._rater.rate(numbers, [plan.prompt for plan in plans], texts)

    def _remember(self, episode: Episode, rating: Rating | None) -> bool:
        """Whether the episode left anything to learn from."""
        self.num_empty += len(episode.actions) == 0
        self._window.add(episode, rating)
        if rating is None or len(episode.actions) == 0:
            return False
        rewards = with_answer_reward(
            episode.kl_rewards,
            episode.actions.bool(),
            rating.final,
            gamma=self._settings.gamma,
            postback=self._settings.postback,
        )
        self._replay.append(episode.states, episode.actions, rewards)
        return True

    def _update(self, num_new: int, first: int) -> None:
        """The updates that `num_new` new episodes are worth, once there is enough to draw from."""
        if len(self._replay) < self._settings.warmup:
            return
        generator = torch.Generator().manual_seed(seed_of(self._settings.seed, "updates", first))
        for _ in range(num_new):
            for _ in range(self._settings.updates_per_episode):
                self.learner.update(self._replay.sample(self._settings.batch_size, generator))
            self.learner.move_target()

    def _log(self) -> None:
        """One more line of the curve."""
        line = {
            "step": self.num_episodes,
            **self._window.line(),
            **self.learner.losses(),
            "alpha": self.learner.alpha,
            "num_updates": self.learner.num_updates,
            "buffer": len(self._replay),
            "num_dropped": self._rater.num_dropped,
            "num_empty": self.num_empty,
            "num_lost_workers": self._rollouts.num_lost,
        }
        self._window = Window()
        self.last_line = line
        checkpoints.add_line(self._workspace, line)
        log.debug("episode %d of %d: %s", self.num_episodes, self._settings.episodes, json.dumps(line))
        self._tell(line)

    def _tell(self, line: dict[str, float]) -> None:
        if self._progress is not None:
            self._progress(TrainProgress(self.num_episodes, self._settings.episodes, line))

    def _save(self) -> None:
        """A checkpoint. Raises CheckpointError where it could not be written; the one before it survives."""
        checkpoint = self._workspace / f"checkpoint-{self.num_episodes}"
        try:
            files = self._replay.save(self._buffer, self._num_saved)
            checkpoint.mkdir(exist_ok=True)  # a run that ended here and was asked to end again
            self.learner.save(checkpoint)
            state = {
                "num_episodes": self.num_episodes,
                "num_empty": self.num_empty,
                "rater": self._rater.state(),
                "buffer": {"files": files, "num_written": self._replay.num_written},
                "window": self._window.state(),
                "last_line": self.last_line,
            }
            (checkpoint / "state.json").write_text(json.dumps(state), encoding="utf-8")
            checkpoints.seal(checkpoint)
        except (OSError, safetensors.SafetensorError) as error:  # safetensors has its own kind for a full disk
            shutil.rmtree(checkpoint, ignore_errors=True)
            if isinstance(error, OSError) and not checkpoints.is_full_disk(error):
                raise
            raise checkpoints.not_written(self._workspace, error) from error
        self._num_saved, self._saved_at = self._replay.num_written, self.num_episodes
        for older in self._workspace.glob("checkpoint-*"):
            if older != checkpoint:
                shutil.rmtree(older)
        self._replay.drop(self._buffer)

    def _restore(self) -> None:
        """Go to the last whole checkpoint, or to the beginning; what came after it is removed."""
        good = checkpoints.last_good(self._workspace, clean=True)
        self._saved_at = checkpoints.step_of(good)
        checkpoints.cut_curve(self._workspace / checkpoints.CURVE, self._saved_at)
        if good is None:
            self._replay.load(self._buffer, {}, 0)
            return
        state: dict[str, Any] = json.loads((good / "state.json").read_text(encoding="utf-8"))
        self.learner.load(good)
        self._replay.load(self._buffer, state["buffer"]["files"], state["buffer"]["num_written"])
        self._rater.restore(state["rater"])
        self.num_episodes, self.num_empty = state["num_episodes"], state["num_empty"]
        self._num_saved = self._replay.num_written
        self._window.restore(state["window"])
        self.last_line = state["last_line"]

    @property
    def _buffer(self) -> Path:
        return self._workspace / "buffer"


def _crossed(before: int, now: int, every: int) -> bool:
    """Whether a multiple of `every` lies in (before, now]; never for 0."""
    return every > 0 and now // every > before // every
