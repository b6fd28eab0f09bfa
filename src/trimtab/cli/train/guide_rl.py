"""`trimtab train guide-rl`: a guide from rewards, by reinforcement through the mix that decoding draws from (UniR).

Answers are drawn from base and guide together, the base frozen, and their log-probabilities there are raised or
lowered by what the rewards say of them; the gradient goes into the guide alone, a LoRA adapter of the model. No pairs
are needed. Interrupted, it goes on with --resume exactly where its last checkpoint stands.
"""

from __future__ import annotations

import argparse

from trimtab.cli.exits import Exit
from trimtab.cli.train import rl
from trimtab.training.rl.settings import GuideRLSettings


def register(methods: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the sub-command."""
    parser = methods.add_parser(
        "guide-rl",
        help="a guide from rewards, through the mix with its base (UniR)",
        description=__doc__,
        allow_abbrev=False,
    )
    rl.add_options(parser, GuideRLSettings(), "where the guide goes")


def run(args: argparse.Namespace) -> Exit:
    """Train a guide by reinforcement through the mix."""
    return rl.run_method(args, GuideRLSettings, _load)


def _load() -> rl.Trains:
    from trimtab.training.rl.train import train_guide_rl

    return train_guide_rl
