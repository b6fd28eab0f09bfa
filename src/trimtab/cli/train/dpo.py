"""`trimtab train dpo`: a policy from preference data by direct preference optimisation.

A LoRA adapter of the model, or all of its weights with --full; the reference is the model as it was. Interrupted, it
goes on with --resume exactly where its last checkpoint stands.
"""

from __future__ import annotations

import argparse
from typing import Any

from trimtab.cli.train import pairs, run_options
from trimtab.training.dpo.settings import DpoSettings

_OWN: run_options.Settings = {
    "beta": (run_options.above_zero, "how much a nat away from the reference costs"),
    "max_prompt_length": (run_options.count, run_options.PROMPT_LENGTH),
}


def register(methods: argparse._SubParsersAction[Any]) -> None:
    """Add the sub-command."""
    parser = methods.add_parser("dpo", help="a policy from preferences (DPO)", description=__doc__, allow_abbrev=False)
    pairs.add_options(parser, _OWN, DpoSettings(), "where the policy goes")


def run(args: argparse.Namespace) -> int:
    """Train a policy by DPO."""
    return pairs.run_training(args, pairs.settings_of(DpoSettings, args, _OWN), _load)


def _load() -> pairs.Trains:
    from trimtab.training.dpo.train import train_dpo

    return train_dpo
