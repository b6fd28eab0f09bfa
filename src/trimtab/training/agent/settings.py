"""What can be set about the training of an accept-reject agent, checked before anything is loaded.

The defaults are MARA's (arXiv 2505.19743): those of the paper, or of its released training scripts where the paper
does not say. `max_new_tokens` differs: the scripts generate 512 tokens for each answer.
"""

from __future__ import annotations

from dataclasses import dataclass

from trimtab.errors import OptionError, naming
from trimtab.fields import FOLLOWS, Follows, check, described, follow, is_number, seed_field
from trimtab.training.run.rewards import BASE

STATE_DTYPES = ("float32", "float16")


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentSettings:
    """How an accept-reject agent is trained."""

    episodes: int = described(2000, "answers to learn from; 21,000 in the paper", low=1)
    rollout_batch: int = described(16, "episodes rolled out together with one actor, then learnt from", low=1)
    max_new_tokens: int = described(128, "tokens of an answer", low=1)
    top_k: int = described(40, "candidates at most", low=1)
    top_p: float = described(0.95, "candidates up to this probability", above=0, high=1)
    temperature: float = described(0.8, "of the base's probabilities in the KL reward", above=0)
    hidden_dim: int = described(
        1024, "width of the networks' first hidden layer; the second has a quarter of it", low=4
    )
    actor_learning_rate: float = described(3e-4, "of the agent", above=0)
    critic_learning_rate: float = described(3e-4, "of the critics", above=0)
    alpha_learning_rate: float = described(3e-4, "of the entropy's weight", above=0)
    alpha_init: float = described(
        0.01, "the entropy's weight to begin with; tuned so that the entropy reaches its target", above=0
    )
    target_entropy_share: float = described(0.6, "target entropy as a share of ln 2", low=0, high=1)
    max_grad_norm: float = described(0.5, "longer gradients are clipped", above=0)
    batch_size: int = described(1024, "transitions in one update", low=1)
    buffer_size: int = described(FOLLOWS, "transitions remembered; not given: more where updates wait for more", low=1)
    warmup_batches: int = described(
        FOLLOWS,
        "updates begin once the buffer holds this many batches; not given: fewer where {buffer_size} holds fewer",
        low=0,
    )
    updates_per_episode: int = described(10, "updates for each new episode", low=1)
    gamma: float = described(0.99, "discount", low=0, high=1)
    tau: float = described(
        0.005,
        "how far the target critics go towards the critics after each episode's updates (Polyak)",
        above=0,
        high=1,
    )
    kl_weight: float = described(0.1, "of the KL reward", low=0)
    baseline: float | str = 0.0
    """Subtracted from the reward: a number, or "base": the reward of the base's own greedy answer to the prompt."""
    reward_scale: float = described(1.0, "multiplies the reward less its baseline", above=0)
    postback: bool = described(
        True,
        "whether earlier transitions get the reward too, discounted by {gamma} for each accepted token",
        off="reward the last decision only; else earlier ones get it too, discounted for each accepted token",
    )
    state_dtype: str = described(
        "float32", "of the states in the buffer; float16 halves its memory", choices=STATE_DTYPES
    )
    seed: int = seed_field(0, "of the weights, the episodes and what is drawn from the buffer")
    logging_episodes: int = described(32, "episodes between lines of the curve", low=1)
    save_episodes: int = described(256, "episodes between checkpoints", low=0, note="0: none by episodes")
    save_minutes: float = described(
        5.0, "minutes between checkpoints, at the end of a round", low=0, note="0: none by minutes"
    )

    def __post_init__(self) -> None:
        """Raise OptionError for a value out of range."""
        check(self)
        fits = 64 if isinstance(self.buffer_size, Follows) else int(self.buffer_size) // self.batch_size
        follow(self, "warmup_batches", lambda: max(1, min(64, fits)))
        follow(self, "buffer_size", lambda: max(1_000_000, self.warmup))
        if self.baseline != BASE and not is_number(self.baseline):
            raise naming(OptionError, "{baseline} is {0!r}; give a finite number, or {1!r}.", self.baseline, BASE)
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
