"""`trimtab train dpo`: a policy from preference data by direct preference optimisation.

A LoRA adapter of the model, or all of its weights with --full; the reference is the model as it was. Interrupted, it
goes on with --resume exactly where its last checkpoint stands.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from trimtab.cli.exits import Exit
from trimtab.cli.train import pairs
from trimtab.training.dpo.settings import DpoSettings

if TYPE_CHECKING:
    from trimtab.training.pairs.data import PairData


def register(methods: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the sub-command."""
    parser = methods.add_parser("dpo", help="a policy from preferences (DPO)", description=__doc__, allow_abbrev=False)
    pairs.add_options(parser, DpoSettings(), "where the policy goes")


def run(args: argparse.Namespace) -> Exit:
    """Train a policy by DPO."""
    return pairs.run_method(args, DpoSettings, _load)


def _load() -> pairs.TrainsOn[PairData, DpoSettings]:
    from trimtab.training.dpo.train import train_dpo

    return train_dpo
