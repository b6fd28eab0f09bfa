"""`trimtab train parm`: one autoregressive reward model for several objectives (PARM).

Its dial is a vector, one number for each objective: `trimtab generate --guide both=guides/out --preference
both=0.7,0.3`. Each objective has preference pairs of its own. Interrupted, it goes on with --resume exactly where its
last checkpoint stands.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from trimtab.cli import options
from trimtab.cli.exits import Exit
from trimtab.cli.train import pairs
from trimtab.cli.train.spec import PairsSpec, RunSpec
from trimtab.errors import OptionError
from trimtab.fields import table
from trimtab.training.parm.settings import ParmSettings, check_objectives

if TYPE_CHECKING:
    from trimtab.training.pairs.data import PairData

_NAME = re.compile(r"[A-Za-z0-9_.-]+")
_DEFAULTS = ParmSettings()
NOT_FLAGS = ("full", "form", "beta")
"""An adapter that steers as a product is all that can be trained; --beta is one number for each objective."""
_above_zero = options.number(0, open_low=True)


def register(methods: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the sub-command."""
    parser = methods.add_parser(
        "parm",
        help="one autoregressive reward model for several objectives (PARM)",
        description=__doc__,
        allow_abbrev=False,
    )
    group = pairs.add_options(parser, _DEFAULTS, "where the guide goes", objectives=NOT_FLAGS)
    group.add_argument(
        "--beta",
        dest="betas",
        action="append",
        default=[],
        type=_beta,
        metavar="[NAME=]X",
        help=f"{table(ParmSettings)['beta'].sentence()} ({_DEFAULTS.beta:g}); repeat for several",
    )


def run(args: argparse.Namespace) -> Exit:
    """Train a preference-aware reward model."""
    data, held = _by_name(args.data, "--data"), _by_name(args.eval_data, "--eval-data")
    check_objectives(tuple(data))
    settings, source = _settings(args), PairsSpec.of(args)
    settings.betas_of(tuple(data))
    by_objective = _read(source, data)
    num_pairs = sum(len(one.pairs) for one in by_objective.values())
    held_out = _read(source, held) if held else None
    run_spec = RunSpec.of(args)
    return pairs.train(run_spec, settings, _load, by_objective, held_out, num_pairs, push_to_hub=args.push_to_hub)


def _settings(args: argparse.Namespace) -> ParmSettings:
    named = {name: beta for name, beta in args.betas if name}
    other = [beta for name, beta in args.betas if not name]
    settings = pairs.settings_of(ParmSettings, args, but=NOT_FLAGS)
    return dataclasses.replace(settings, betas=named, beta=other[-1] if other else settings.beta)


def _read(source: PairsSpec, data: Mapping[str, Sequence[str]]) -> Mapping[str, PairData]:
    return {name: pairs.read(source, names) for name, names in data.items()}


def _by_name(texts: Sequence[str], flag: str) -> dict[str, list[str]]:
    """`NAME=SOURCE` of one flag -> the sources of each objective, in the order in which they were first named."""
    sources: dict[str, list[str]] = {}
    for text in texts:
        name, equals, source = text.partition("=")
        if not (equals and source and _NAME.fullmatch(name)):
            raise OptionError(
                f"{flag} {text} names no objective and its pairs. Accepted: NAME=SOURCE, for example "
                f"{flag} helpful=helpful.jsonl; a name has letters, digits, '.', '_' and '-'."
            )
        sources.setdefault(name, []).append(source)
    return sources


def _beta(text: str) -> tuple[str, float]:
    """`NAME=X` or `X` -> (name or "", beta)."""
    name, equals, number = text.rpartition("=")
    if equals and not _NAME.fullmatch(name):
        raise argparse.ArgumentTypeError(f"{text!r} is not accepted; give NAME=X or X, for example helpful=0.1")
    return name, _above_zero(number)


def _load() -> pairs.TrainsOn[Mapping[str, PairData], ParmSettings]:
    from trimtab.training.parm.train import train_parm

    return train_parm
