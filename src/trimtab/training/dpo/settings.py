"""What can be set about direct preference optimisation."""

from __future__ import annotations

from dataclasses import dataclass

from trimtab.fields import described
from trimtab.training.run.settings import PairSettings, follow_max_length, prompt_length_field


@dataclass(frozen=True, slots=True, kw_only=True)
class DpoSettings(PairSettings):
    """How a policy is trained by DPO. The adapter, the step and the lengths are those of `train arm`."""

    learning_rate: float = described(5e-5, "peak of the cosine schedule", above=0)
    beta: float = described(0.1, "how much a nat away from the reference costs", above=0)
    """β of the loss."""
    max_prompt_length: int = prompt_length_field()

    def __post_init__(self) -> None:
        """Raise OptionError for a value out of range."""
        PairSettings.__post_init__(self)
        follow_max_length(self)
