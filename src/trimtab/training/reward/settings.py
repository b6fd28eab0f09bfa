"""What can be set about the training of a trajectory reward model."""

from __future__ import annotations

from dataclasses import dataclass

from trimtab.fields import described, seed_field
from trimtab.training.run.settings import PairSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardSettings(PairSettings):
    """How a trajectory reward model is trained. Where the paper of `train arm` has a setting too, the default is its.

    `max_length` counts the whole conversation, which is cut from the left; the finished model cuts there as well.
    """

    center_rewards: float = described(0.0, "draw the rewards towards a mean of 0: coefficient of (r_w + r_l)²", low=0)
    """Eisenstein et al., 2312.09244."""
    max_length: int = described(
        1024, "tokens of the conversation; what is longer loses its beginning and is counted", low=1
    )
    seed: int = seed_field(0, "of the adapter, the head, the order and the sample")
