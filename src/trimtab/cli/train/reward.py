"""`trimtab train reward`: a trajectory reward model from preference data (Bradley-Terry).

A number for each whole answer, for `--guide`, `best-of-n`, `train rl` and as a scorer. A LoRA adapter of the model and
a score head, or all weights with --full. Interrupted, it goes on with --resume exactly where its last checkpoint
stands.
"""

from __future__ import annotations

import argparse
from typing import Any

from trimtab.cli.train import pairs, run_options
from trimtab.training.reward.settings import RewardSettings

_OWN: run_options.Settings = {
    "center_rewards": (run_options.from_zero, "draw the rewards towards a mean of 0: coefficient of (r_w + r_l)²"),
}


def register(methods: argparse._SubParsersAction[Any]) -> None:
    """Add the sub-command."""
    parser = methods.add_parser(
        "reward", help="a trajectory reward model (Bradley-Terry)", description=__doc__, allow_abbrev=False
    )
    pairs.add_options(parser, _OWN, RewardSettings(), "where the reward model goes")


def run(args: argparse.Namespace) -> int:
    """Train a trajectory reward model."""
    return pairs.run_training(args, pairs.settings_of(RewardSettings, args, _OWN), _load)


def _load() -> pairs.Trains:
    from trimtab.training.reward.train import train_reward

    return train_reward
