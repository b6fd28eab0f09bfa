"""`trimtab train reward`: a trajectory reward model from preference data (Bradley-Terry).

A number for each whole answer, for `--guide`, `best-of-n`, `train rl` and as a scorer. A LoRA adapter of the model and
a score head, or all weights with --full. Interrupted, it goes on with --resume exactly where its last checkpoint
stands.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from trimtab.cli.exits import Exit
from trimtab.cli.train import pairs
from trimtab.training.reward.settings import RewardSettings

if TYPE_CHECKING:
    from trimtab.training.pairs.data import PairData


def register(methods: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the sub-command."""
    parser = methods.add_parser(
        "reward", help="a trajectory reward model (Bradley-Terry)", description=__doc__, allow_abbrev=False
    )
    pairs.add_options(parser, RewardSettings(), "where the reward model goes")


def run(args: argparse.Namespace) -> Exit:
    """Train a trajectory reward model."""
    return pairs.run_method(args, RewardSettings, _load)


def _load() -> pairs.TrainsOn[PairData, RewardSettings]:
    from trimtab.training.reward.train import train_reward

    return train_reward
