"""`trimtab train arm`: an autoregressive reward model from preference data (GenARM).

A LoRA adapter of the model, or all of its weights with --full. Interrupted, it goes on with --resume exactly where its
last checkpoint stands. On several GPUs: `accelerate launch --multi_gpu -m trimtab.cli.main train arm ...`.
"""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

from trimtab.cli import options
from trimtab.cli.train import pairs, run_options
from trimtab.mixing.forms import FORMS
from trimtab.training.run.settings import ArmSettings

_OWN: run_options.Settings = {
    "beta": (run_options.above_zero, "scale of the reward in the loss"),
    "gamma": (options.any_number, "margin to be exceeded in the loss"),
    "max_prompt_length": (run_options.count, run_options.PROMPT_LENGTH),
}


def register(methods: argparse._SubParsersAction[Any]) -> None:
    """Add the sub-command."""
    parser = methods.add_parser(
        "arm", help="an autoregressive reward model (GenARM)", description=__doc__, allow_abbrev=False
    )
    group = pairs.add_options(parser, _OWN, ArmSettings(), "where the guide goes")
    group.add_argument(
        "--form",
        choices=FORMS,
        default="product",
        help="how the guide steers: product, the paper's, by its log-probabilities; shift, by what they add to its "
        "base's (%(default)s)",
    )


def run(args: argparse.Namespace) -> int:
    """Train an autoregressive reward model."""
    settings = dataclasses.replace(pairs.settings_of(ArmSettings, args, _OWN), form=args.form)
    return pairs.run_training(args, settings, _load)


def _load() -> pairs.Trains:
    from trimtab.training.arm.train import train_arm

    return train_arm
