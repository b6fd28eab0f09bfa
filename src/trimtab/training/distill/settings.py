"""What can be set about distilling sentences into a guide, checked before anything is loaded."""

from __future__ import annotations

from dataclasses import dataclass

from trimtab.errors import OptionError, naming
from trimtab.fields import described, seed_field
from trimtab.guides.sentences import AUTO, PLACES
from trimtab.training.run.settings import RunSettings, check_head


@dataclass(frozen=True, slots=True, kw_only=True)
class DistillSettings(RunSettings):
    """How a guide learns what sentences do: KL(t ‖ student), t ∝ π_base · (π_s₊ / π_s₋)^strength."""

    strength: float = described(
        1.0, "weight of the sentences in what is learnt; the guide does the same at weight 1", above=0
    )
    place: str = described(
        AUTO,
        "where the sentences stand in a chat: at the beginning of the system message, before the user's text, or auto: "
        "the first where the chat template has a system role, else the second",
        choices=PLACES,
    )
    head_only: int = described(
        0,
        "train a low-rank head on the frozen model's final state, of this rank, and no adapter",
        low=0,
        note="0: an adapter",
    )
    max_new_tokens: int = described(64, "tokens of an answer", low=1)
    epochs: float = described(
        1.0,
        "passes over the prompts; fractions are accepted, and the last step is filled up from the next pass",
        above=0,
    )
    max_prompts: int = described(0, "train on a random sample of this many prompts", low=0, note="0: all")
    max_prompt_length: int = described(512, "prompts of more tokens are left out and counted", low=1)
    eval_share: float = described(
        0.1, "share of the prompts held out to measure the KL on", low=0, below=1, note="0: none"
    )
    eval_steps: int = described(0, "steps between evaluations", low=0, note="0: only at the end")
    batch_size: int = described(4, "answers in one forward pass of a process", low=1)
    gradient_accumulation: int = described(4, "forward passes in one step", low=1)
    seed: int = seed_field(0, "of the adapter, the order, the sample and the answers")

    def __post_init__(self) -> None:
        """Raise OptionError for a value out of range."""
        RunSettings.__post_init__(self)  # not super(): a class with slots is not the one that its body knows
        if self.full:
            raise naming(
                OptionError,
                "{full} trains the very model that the guide is to stand beside. Leave it out: an adapter is trained.",
            )
        if self.head_only:
            check_head(self)
        if self.eval_steps and not self.eval_share:
            raise naming(
                OptionError,
                "{eval_steps} is {0}, and no prompts are held out to evaluate. Give an {eval_share} above 0, or no "
                "{eval_steps}.",
                self.eval_steps,
            )

    @property
    def kind(self) -> str:
        """What is trained, as `guide.json` calls it."""
        return "head" if self.head_only else "arm"
