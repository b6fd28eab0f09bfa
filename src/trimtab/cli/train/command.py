"""`trimtab train`: make a guide, a reward model or a policy.

`arm` trains an autoregressive reward model from preference pairs (GenARM), `parm` one for several objectives, `reward`
a trajectory reward model (Bradley-Terry), `dpo` a policy (direct preference optimisation); from rewards, `rl` trains a
policy (RLOO), `guide-rl` a guide through the mix with its base (UniR), `agent` an accept-reject agent (MARA); from
prompts alone, `distill` a guide that does what a sentence does, or two. The first Ctrl-C ends a training at its current
step with a whole checkpoint and says how to go on, a second one ends it at once; with --resume it goes on exactly where
its last whole checkpoint stands.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from trimtab.cli.exits import Exit
from trimtab.cli.train import agent, arm, distill, dpo, guide_rl, parm, reward, rl
from trimtab.cli.train.interruption import until_interrupted


class Method(Protocol):
    """A module with one kind of guide."""

    def register(self, methods: argparse._SubParsersAction[argparse.ArgumentParser]) -> None: ...
    def run(self, args: argparse.Namespace) -> Exit: ...


METHODS: Mapping[str, Method] = {
    "arm": arm,
    "parm": parm,
    "agent": agent,
    "reward": reward,
    "dpo": dpo,
    "rl": rl,
    "guide-rl": guide_rl,
    "distill": distill,
}
"""The one table from a kind of guide to its options and what trains it."""


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command and one sub-command for each kind of guide."""
    parser = subparsers.add_parser("train", help="make a guide", description=__doc__)
    methods = parser.add_subparsers(dest="method", metavar="METHOD", required=True)
    for method in METHODS.values():
        method.register(methods)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> Exit:
    """Train a guide of the kind that was asked for."""
    method = METHODS[args.method]
    return until_interrupted(lambda: method.run(args), out=Path(args.out), given=args.given)
