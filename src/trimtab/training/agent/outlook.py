"""What the training of an agent is waiting for, in words: it learns nothing until enough transitions are collected."""

from __future__ import annotations

import math

from trimtab.training.run.pace import duration


def waiting(*, collected: int, needed: int, num_episodes: int, left: int, pace: float) -> str:
    """The line before the first update.

    `collected` of the `needed` transitions come from `num_episodes`, and `left` episodes are still to come, each in
    `pace` seconds.
    """
    beginning = f"no update before {needed:,} transitions are collected: there are {collected:,} of {num_episodes:,}"
    if not collected:
        return f"{beginning} episodes, for no episode had a decision and a reward yet"
    more = math.ceil((needed - collected) * num_episodes / collected)
    if more > left:
        return (
            f"{beginning} episodes, so about {more:,} more would have to come, and {left:,} will: nothing would be "
            "learnt. Give more episodes, fewer batches to wait for, or smaller ones"
        )
    return f"{beginning} episodes, so about {more:,} more episodes, about {duration(more * pace)} at this pace"
