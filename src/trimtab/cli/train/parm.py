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
from typing import TYPE_CHECKING, Any

from trimtab.cli import options
from trimtab.cli.train import pairs, run_options
from trimtab.errors import OptionError
from trimtab.training.parm.settings import ParmSettings, check_objectives

if TYPE_CHECKING:
    from trimtab.training.pairs.data import PairData

_NAME = re.compile(r"[A-Za-z0-9_.-]+")
_DEFAULTS = ParmSettings()
_OWN: run_options.Settings = {
    "gamma": (options.any_number, "margin to be exceeded in the loss"),
    "preference_rank": (
        run_options.count,
        "part of the adapter's rank that depends on the preference; not given: half of --lora-rank",
    ),
    "concentration": (
        run_options.above_zero,
        "preferences are drawn from a Dirichlet distribution with this parameter",
    ),
    "epochs": (run_options.above_zero, "passes over the largest objective's pairs; fractions are accepted"),
    "gradient_accumulation": (run_options.count, "forward passes of each objective in one step"),
    "max_prompt_length": (run_options.count, run_options.PROMPT_LENGTH),
}


def register(methods: argparse._SubParsersAction[Any]) -> None:
    """Add the sub-command."""
    parser = methods.add_parser(
        "parm",
        help="one autoregressive reward model for several objectives (PARM)",
        description=__doc__,
        allow_abbrev=False,
    )
    group = pairs.add_options(parser, _OWN, _DEFAULTS, "where the guide goes", objectives=True)
    group.add_argument(
        "--beta",
        dest="betas",
        action="append",
        default=[],
        type=_beta,
        metavar="[NAME=]X",
        help=f"scale of the reward in the loss of one objective, or of all that are not named ({_DEFAULTS.beta:g})",
    )


def run(args: argparse.Namespace) -> int:
    """Train a preference-aware reward model."""
    data, held = _by_name(args.data, "--data"), _by_name(args.eval_data, "--eval-data")
    check_objectives(tuple(data))
    settings = _settings(args)
    settings.betas_of(tuple(data))
    found = _read(args, data)
    num_pairs = sum(len(one.pairs) for one in found.values())
    return pairs.train(args, settings, _load, found, _read(args, held) if held else None, num_pairs)


def _settings(args: argparse.Namespace) -> ParmSettings:
    named = {name: beta for name, beta in args.betas if name}
    other = [beta for name, beta in args.betas if not name]
    settings = pairs.settings_of(ParmSettings, args, _OWN)
    return dataclasses.replace(settings, betas=named, beta=other[-1] if other else settings.beta)


def _read(args: argparse.Namespace, sources: Mapping[str, Sequence[str]]) -> Mapping[str, PairData]:
    return {name: pairs.read(args, own) for name, own in sources.items()}


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
    return name, run_options.above_zero(number)


def _load() -> pairs.TrainsOn[Mapping[str, PairData]]:
    from trimtab.training.parm.train import train_parm

    return train_parm
