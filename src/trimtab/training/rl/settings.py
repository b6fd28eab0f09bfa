"""What can be set about training a policy by reinforcement, checked before anything is loaded."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from trimtab.errors import OptionError, naming
from trimtab.fields import FOLLOWS, described, follow, seed_field
from trimtab.mixing.forms import FORMS, PRODUCT
from trimtab.training.run.settings import RunSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class RLSettings(RunSettings):
    """How a policy is trained by RLOO. The objective is E[Σ_k w_k r_k(x, y)] − kl_weight · KL(π_θ ‖ π_base)."""

    kl_weight: float = described(
        0.05,
        "of the KL to the model as it was, taken off the reward, in nats of a whole answer",
        low=0,
        note="0: none, nor is it measured",
    )
    num_generations: int = described(
        4, "answers to each prompt of a step; each is compared with the mean of the others", low=2
    )
    max_new_tokens: int = described(128, "tokens of an answer", low=1)
    temperature: float = described(
        1.0, "of the answers that are learnt from, and of the policy whose log-probabilities are raised", above=0
    )
    epochs: float = described(
        1.0,
        "passes over the prompts; fractions are accepted, and the last step is filled up from the next pass",
        above=0,
    )
    max_prompts: int = described(0, "train on a random sample of this many prompts", low=0, note="0: all")
    max_prompt_length: int = described(512, "prompts of more tokens are left out and counted", low=1)
    batch_size: int = described(16, "answers in one forward pass of a process", low=1)
    gradient_accumulation: int = described(
        FOLLOWS,
        "forward passes in one step; not given: the fewest from 2 on that {num_generations} fills evenly",
        low=1,
    )
    seed: int = seed_field(0, "of the adapter, the order, the sample and the answers")
    logging_steps: int = described(1, "steps between lines of the curve", low=1)
    save_steps: int = described(20, "steps between checkpoints", low=0, note="0: none by steps")

    def __post_init__(self) -> None:
        """Raise OptionError for a value out of range."""
        RunSettings.__post_init__(self)
        follow(self, "gradient_accumulation", self._fewest_passes)
        answers = self.batch_size * self.gradient_accumulation
        if answers % self.num_generations:
            raise naming(
                OptionError,
                "A step has {batch_size} × {gradient_accumulation} = {0} answers, which {num_generations} {1} to a "
                "prompt do not fill evenly. Give a multiple, or no {gradient_accumulation}: it follows.",
                *(answers, self.num_generations),
            )

    @property
    def kind(self) -> str:
        """What is trained, as `guide.json` calls it."""
        return "policy"

    def _fewest_passes(self) -> int:
        """The smallest number of forward passes, from 2 on, whose answers are whole groups."""
        return next(count for count in itertools.count(2) if self.batch_size * count % self.num_generations == 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class GuideRLSettings(RLSettings):
    """How a guide is trained by RLOO through the mix of base and guide; π_θ of the objective is that mix."""

    form: str = described(
        PRODUCT, "how the guide steers: product (base · guide^W) or shift (base · (guide / base)^W)", choices=FORMS
    )
    through_mix: float = described(
        1.0, "the guide's weight in the mix that answers are drawn from and whose log-probabilities are raised", above=0
    )

    def __post_init__(self) -> None:
        """Raise OptionError for a value out of range."""
        RLSettings.__post_init__(self)
        if self.full:
            raise naming(
                OptionError,
                "{full} trains the very model that the guide is to stand beside. Leave it out: an adapter is trained.",
            )

    @property
    def kind(self) -> str:
        """What is trained, as `guide.json` calls it."""
        return "arm"
