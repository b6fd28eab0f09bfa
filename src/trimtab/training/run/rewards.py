"""What a training on prompts is rewarded for: scorers with multipliers."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from trimtab.errors import OptionError

if TYPE_CHECKING:
    from trimtab.core import Prompt

BASE = "base"
"""The `baseline` that is the reward of the base's own greedy answer."""

_NAME = re.compile(r"[A-Za-z0-9_.-]+")


class ScoreAnswers(Protocol):
    """Something that rewards answers: one number for each, higher is better; NaN where it has none to give."""

    def __call__(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> Sequence[float]: ...


@dataclass(frozen=True, slots=True)
class AgentReward:
    """One term of the reward: R = Σ multiplier · score."""

    name: str
    source: str | ScoreAnswers
    """A scorer's name as in `trimtab.load_scorer` (a directory of a reward model, `module:function`, ...), or
    a function of prompts and texts."""
    multiplier: float = 1.0
    """Negative for a cost."""

    def __post_init__(self) -> None:
        """Raise OptionError for a name or multiplier that cannot be used."""
        if not _NAME.fullmatch(self.name):
            raise OptionError(
                f"{self.name!r} is not a name for a reward; use letters, digits, '.', '_' and '-', such as helpful."
            )
        if not math.isfinite(self.multiplier) or self.multiplier == 0:
            raise OptionError(
                f"The multiplier of reward {self.name} is {self.multiplier:g}; give a finite number other than 0, "
                "negative for a cost."
            )


def check_rewards(rewards: Sequence[AgentReward]) -> None:
    """Raise OptionError where there is no reward, or two of one name."""
    if not rewards:
        raise OptionError("There is no reward to train for. Give at least one.")
    names = [reward.name for reward in rewards]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise OptionError(f"Two rewards are named {twice[0]!r}; give each a name of its own.")
