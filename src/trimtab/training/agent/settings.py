"""What can be set about the training of an accept-reject agent, checked before anything is loaded.

The defaults are MARA's (arXiv 2505.19743): those of the paper, or of its released training scripts where the paper
does not say. `max_new_tokens` differs: the scripts generate 512 tokens for each answer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trimtab.errors import OptionError, naming
from trimtab.training.run.rewards import BASE
from trimtab.training.run.settings import FOLLOWS, Follows, check_choice, follow

if TYPE_CHECKING:
    pass

STATE_DTYPES = ("float32", "float16")


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentSettings:
    """How an accept-reject agent is trained."""

    episodes: int = 2000
    """Answers to learn from; 21,000 in the paper."""
    rollout_batch: int = 16
    """Episodes of a round: rolled out together with the same actor, then learnt from."""
    max_new_tokens: int = 128
    top_k: int = 40
    top_p: float = 0.95
    temperature: float = 0.8
    """Of the base's probabilities in the KL reward."""
    hidden_dim: int = 1024
    """Width of the networks' first hidden layer; the second has a quarter of it."""
    actor_learning_rate: float = 3e-4
    critic_learning_rate: float = 3e-4
    alpha_learning_rate: float = 3e-4
    alpha_init: float = 0.01
    """The entropy's weight to begin with; tuned so that the entropy reaches its target."""
    target_entropy_share: float = 0.6
    """Target entropy as a share of ln 2."""
    max_grad_norm: float = 0.5
    batch_size: int = 1024
    """Transitions in one update."""
    buffer_size: int = FOLLOWS
    """Transitions remembered. Unset: 1,000,000, or as many as updates wait for."""
    warmup_batches: int = FOLLOWS
    """Updates begin once the buffer holds so many batches. Unset: 64, or as many as a smaller buffer holds."""
    updates_per_episode: int = 10
    gamma: float = 0.99
    tau: float = 0.005
    """How far the target critics go towards the critics after each episode's updates (Polyak)."""
    kl_weight: float = 0.1
    baseline: float | str = 0.0
    """Subtracted from the reward: a number, or "base": the reward of the base's own greedy answer to the prompt."""
    reward_scale: float = 1.0
    """Multiplies the reward less its baseline."""
    postback: bool = True
    """Whether earlier transitions get the reward too, discounted by gamma for each accepted token."""
    state_dtype: str = "float32"
    """Of the states in the buffer; float16 halves its memory."""
    seed: int = 0
    logging_episodes: int = 32
    """Episodes between lines of the curve."""
    save_episodes: int = 256
    """Episodes between checkpoints; 0: none by episodes."""
    save_minutes: float = 5.0
    """Minutes between checkpoints, at the end of a round; 0: none by minutes."""

    def __post_init__(self) -> None:
        """Raise OptionError for a value out of range."""
        _check(self, ("batch_size",), lambda value: value >= 1, "a whole number of at least 1")
        fits = 64 if isinstance(self.buffer_size, Follows) else int(self.buffer_size) // self.batch_size
        follow(self, "warmup_batches", lambda: max(1, min(64, fits)))
        follow(self, "buffer_size", lambda: max(1_000_000, self.warmup))
        _check(self, _COUNTS, lambda value: value >= 1, "a whole number of at least 1")
        _check(self, ("warmup_batches", "save_episodes", "seed"), lambda value: value >= 0, "a whole number from 0")
        _check(self, _POSITIVE, lambda value: value > 0, "a finite number above 0")
        _check(self, ("kl_weight", "save_minutes"), lambda value: value >= 0, "a finite number of at least 0")
        _check(self, ("target_entropy_share", "gamma"), lambda value: 0 <= value <= 1, "a number from 0 to 1")
        _check(self, ("top_p", "tau"), lambda value: 0 < value <= 1, "a number above 0 and at most 1")
        if isinstance(self.baseline, str) and self.baseline != BASE:
            raise naming(OptionError, "{baseline} is {0!r}; give a finite number, or {1!r}.", self.baseline, BASE)
        if not isinstance(self.baseline, str):
            _check(self, ("baseline",), lambda value: True, f"a finite number, or {BASE!r}")
        check_choice(self, "state_dtype", STATE_DTYPES)
        if self.hidden_dim < 4:
            raise naming(
                OptionError,
                "{hidden_dim} is {0}; give at least 4: the second layer has a quarter of it.",
                self.hidden_dim,
            )
        if self.warmup > self.buffer_size:
            raise naming(
                OptionError,
                "Updates would never begin: they wait for {0} transitions ({warmup_batches} {1} × {batch_size} {2}), "
                "and the buffer holds {3}. Give a larger {buffer_size}, or a smaller {batch_size}.",
                *(self.warmup, self.warmup_batches, self.batch_size, self.buffer_size),
            )

    @property
    def warmup(self) -> int:
        """Transitions that the buffer holds when updates begin."""
        return max(1, self.warmup_batches * self.batch_size)

    @property
    def num_rounds(self) -> int:
        """Rounds of `rollout_batch` episodes; the last may be shorter."""
        return -(-self.episodes // self.rollout_batch)


_COUNTS = (
    *("episodes", "rollout_batch", "max_new_tokens", "top_k", "hidden_dim", "batch_size", "buffer_size"),
    *("updates_per_episode", "logging_episodes"),
)
_POSITIVE = (
    *("temperature", "actor_learning_rate", "critic_learning_rate", "alpha_learning_rate", "alpha_init"),
    *("max_grad_norm", "reward_scale"),
)


def _check(settings: AgentSettings, names: Sequence[str], accepts: Callable[[float], bool], what: str) -> None:
    for name in names:
        value = getattr(settings, name)
        if not (math.isfinite(value) and accepts(value)):
            raise naming(OptionError, f"{{{name}}} is {{0}}; give {what}.", value)
