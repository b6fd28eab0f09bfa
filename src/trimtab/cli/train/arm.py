"""`trimtab train arm`: an autoregressive reward model from preference data (GenARM).

A LoRA adapter of the model, all of its weights with --full, or a low-rank head on its final state with --head-only.
Interrupted, it goes on with --resume exactly where its last checkpoint stands. On several GPUs: `accelerate launch
--multi_gpu -m trimtab.cli.main train arm ...`.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from trimtab.cli.exits import Exit
from trimtab.cli.train import pairs
from trimtab.training.run.settings import ArmSettings

if TYPE_CHECKING:
    from trimtab.training.pairs.data import PairData


def register(methods: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the sub-command."""
    parser = methods.add_parser(
        "arm", help="an autoregressive reward model (GenARM)", description=__doc__, allow_abbrev=False
    )
    pairs.add_options(parser, ArmSettings(), "where the guide goes")


def run(args: argparse.Namespace) -> Exit:
    """Train an autoregressive reward model."""
    return pairs.run_method(args, ArmSettings, _load)


def _load() -> pairs.TrainsOn[PairData, ArmSettings]:
    from trimtab.training.arm.train import train_arm

    return train_arm
