"""What can be set about training a policy by reinforcement, checked before anything is loaded."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from trimtab.errors import OptionError, naming
from trimtab.training.run.settings import FOLLOWS, RunSettings, check_above_zero, check_not_negative, follow


@dataclass(frozen=True, slots=True, kw_only=True)
class RLSettings(RunSettings):
    """How a policy is trained by RLOO. The objective is E[Σ_k w_k r_k(x, y)] − kl_weight · KL(π_θ ‖ π_base)."""

    kl_weight: float = 0.05
    """Nats of an answer's log π_θ − log π_base are taken off its reward, times this; 0: no KL, nor is it measured."""
    num_generations: int = 4
    """Answers to each prompt of a step; each is compared with the mean of the others."""
    max_new_tokens: int = 128
    temperature: float = 1.0
    """Of the answers that are learnt from, and of the policy whose log-probabilities are raised."""
    epochs: float = 1.0
    """Passes over the prompts; fractions are accepted. The last step is filled up from the next pass."""
    max_prompts: int = 0
    """Train on a random sample of so many prompts; 0: all."""
    max_prompt_length: int = 512
    """Prompts of more tokens are left out and counted."""
    batch_size: int = 16
    """Answers in one forward pass, in each process."""
    gradient_accumulation: int = FOLLOWS
    """Forward passes in one step. Answers in a step: batch_size × gradient_accumulation × processes. Unset: 2, or the
    next number of them that `num_generations` answers to a prompt fill evenly."""
    logging_steps: int = 1
    save_steps: int = 20
    """Steps between checkpoints; 0: none by steps."""

    def __post_init__(self) -> None:
        """Raise OptionError for a value out of range."""
        if self.num_generations < 2:
            raise naming(
                OptionError,
                "{num_generations} is {0}; give at least 2: an answer is compared with the others to its prompt.",
                self.num_generations,
            )
        check_above_zero(self, ("batch_size",))
        follow(self, "gradient_accumulation", self._fewest_passes)
        RunSettings.__post_init__(self)
        check_above_zero(self, ("max_new_tokens", "temperature", "epochs", "max_prompt_length"))
        check_not_negative(self, ("kl_weight", "max_prompts"))
        answers = self.batch_size * self.gradient_accumulation
        if answers % self.num_generations:
            raise naming(
                OptionError,
                "A step has {batch_size} × {gradient_accumulation} = {0} answers, which {num_generations} {1} to a "
                "prompt do not fill evenly. Give a multiple, or no {gradient_accumulation}: it follows.",
                *(answers, self.num_generations),
            )

    def _fewest_passes(self) -> int:
        """The smallest number of forward passes, from 2 on, whose answers are whole groups."""
        return next(count for count in itertools.count(2) if self.batch_size * count % self.num_generations == 0)
