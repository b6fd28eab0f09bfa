"""What can be set about the training of a trajectory reward model."""

from __future__ import annotations

from dataclasses import dataclass

from trimtab.training.run.settings import PairSettings, check_not_negative


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardSettings(PairSettings):
    """How a trajectory reward model is trained. Where the paper of `train arm` has a setting too, the default is its.

    `max_length` counts the whole conversation, which is cut from the left; the finished model cuts there as well.
    """

    center_rewards: float = 0.0
    """Coefficient of (r_w + r_l)², which draws the rewards towards a mean of 0 (Eisenstein et al., 2312.09244)."""

    def __post_init__(self) -> None:
        """Raise OptionError for a value out of range."""
        PairSettings.__post_init__(self)
        check_not_negative(self, ("center_rewards",))
