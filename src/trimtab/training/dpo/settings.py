"""What can be set about direct preference optimisation."""

from __future__ import annotations

from dataclasses import dataclass

from trimtab.training.run.settings import FOLLOWS, PairSettings, check_above_zero, check_prompt_length


@dataclass(frozen=True, slots=True, kw_only=True)
class DpoSettings(PairSettings):
    """How a policy is trained by DPO. The adapter, the step and the lengths are those of `train arm`."""

    learning_rate: float = 5e-5
    """Peak of the cosine schedule."""
    beta: float = 0.1
    """β of the loss: how much a nat away from the reference costs."""
    max_prompt_length: int = FOLLOWS
    """Tokens of the prompt; unset: half of max_length."""

    def __post_init__(self) -> None:
        """Raise OptionError for a value out of range."""
        PairSettings.__post_init__(self)
        check_above_zero(self, ("beta",))
        check_prompt_length(self)
