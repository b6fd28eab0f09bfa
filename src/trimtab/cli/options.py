"""Flags that several commands share: which model, which guides, how to sample. Importing this loads nothing heavy."""

from __future__ import annotations

import argparse
import math
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trimtab.cli import guide_options
from trimtab.errors import OptionError, unknown_name

if TYPE_CHECKING:
    from trimtab.core import SamplingParams
    from trimtab.engines.maker import ModelSource

_NAME = re.compile(r"[A-Za-z0-9_.-]+")
_GUIDE_FORM = "NAME=PATH[:WEIGHT], for example helpful=guides/helpful:1.0"


@dataclass(frozen=True, slots=True)
class GuideSpec:
    """One `--guide`: the name it goes by, where it is, how strongly it steers."""

    name: str
    path: str
    weight: float | None = None
    """None: the guide's own (1; an agent's ½)."""


def parse_guide(text: str) -> GuideSpec:
    """`NAME=PATH[:WEIGHT]` -> GuideSpec.

    PATH is a directory, a hub id or `builtin:NAME`, and may hold colons: what follows the last one is the weight if it
    is a number, unless the whole is the name of something that exists. Raises OptionError.
    """
    name, equals, target = text.partition("=")
    if not equals or not target:
        raise OptionError(f"{text!r} is not a guide. Accepted: {_GUIDE_FORM}.")
    if not _NAME.fullmatch(name):
        raise OptionError(
            f"{name!r} is not a name for a guide; use letters, digits, '.', '_' and '-'. Form: {_GUIDE_FORM}."
        )
    path, weight = _split_weight(target)
    if not path:
        raise OptionError(f"{text!r} names no directory. Accepted: {_GUIDE_FORM}.")
    return GuideSpec(name, path, weight)


def _split_weight(target: str) -> tuple[str, float | None]:
    path, colon, tail = target.rpartition(":")
    if not colon or Path(target).exists():
        return target, None
    try:
        weight = float(tail)
    except ValueError:
        if tail and not Path(path).exists():
            return target, None
        raise OptionError(f"The weight {tail!r} of {path} is not a number. Accepted: {_GUIDE_FORM}.") from None
    if not math.isfinite(weight):
        raise OptionError(f"The weight of {path} is {tail}; give a finite number, for example {path}:1.0.")
    return path, weight


def number(low: float, high: float = math.inf, *, open_low: bool = False) -> Callable[[str], float]:
    """An argparse type: a finite number from `low` (itself left out with `open_low`) to `high`."""
    bounds = "" if low == -math.inf else f" {'above' if open_low else 'of at least'} {low:g}"
    bounds += "" if high == math.inf else f" and at most {high:g}"

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not (low <= value <= high and math.isfinite(value)) or (open_low and value == low):
            raise argparse.ArgumentTypeError(f"{text!r} is not accepted; give a finite number{bounds}")
        return value

    return parse


def whole(low: int, high: int | None = None) -> Callable[[str], int]:
    """An argparse type: a whole number of at least `low`, at most `high`."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = low - 1
        if value < low or (high is not None and value > high):
            ending = "" if high is None else f" and at most {high}"
            raise argparse.ArgumentTypeError(f"{text!r} is not accepted; give a whole number of at least {low}{ending}")
        return value

    return parse


def list_of(item: Callable[[str], float]) -> Callable[[str], list[float]]:
    """An argparse type: a comma-separated list."""
    return lambda text: [item(part) for part in text.split(",")]


any_number = number(-math.inf)
MAX_SEED = 2**63 - 1
seed_number = whole(0, MAX_SEED)


def _guide(text: str) -> GuideSpec:
    try:
        return parse_guide(text)
    except OptionError as error:
        raise argparse.ArgumentTypeError(str(error).rstrip(".")) from None  # argparse would hide any other message


def parse_preference(text: str) -> tuple[str, tuple[float, ...]]:
    """`NAME=P,P,...` -> the guide's name and its preference vector, whose guide checks it. Raises OptionError."""
    name, equals, numbers = text.partition("=")
    try:
        vector = tuple(float(number) for number in numbers.split(","))
    except ValueError:
        vector = ()
    if not (name and equals and vector):
        raise OptionError(f"{text!r} is not a preference. Accepted: NAME=P,P,..., for example both=0.7,0.3.")
    return name, vector


def _preference(text: str) -> tuple[str, tuple[float, ...]]:
    try:
        return parse_preference(text)
    except OptionError as error:
        raise argparse.ArgumentTypeError(str(error).rstrip(".")) from None


def add_model_options(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    """--model, --guide and how they are loaded."""
    group = parser.add_argument_group("model and guides")
    group.add_argument(
        "--model",
        required=required,
        metavar="NAME",
        help='a hub id, a directory, a .gguf file, or "demo" (SmolLM2-135M-Instruct)',
    )
    add_guide_option(group, "and its strength (1; an agent's threshold: 0.5)")
    group.add_argument(
        "--preference",
        dest="preferences",
        action="append",
        default=[],
        type=_preference,
        metavar="NAME=P,P,...",
        help="how the guide NAME, if it was trained for several objectives, weighs them: one number for each, that add "
        "up to 1; repeat for several guides",
    )
    group.add_argument(
        "--rule",
        choices=("first", "random", "most"),
        help="which accepted candidate an agent takes: the first, a random one, or the one it accepts most (first)",
    )
    guide_options.add_form_options(group)
    group.add_argument("--dtype", default="auto", help="auto (float32 on a CPU), float32, bfloat16 or float16")
    group.add_argument("--device", help="cpu, cuda, cuda:1, ... (a GPU where there is one)")
    group.add_argument("--revision", help="branch, tag or commit of a model on the hub")
    group.add_argument(
        "--trust-remote-code", action="store_true", help="let the model and the guides run their own code"
    )


def add_guide_option(group: argparse._ActionsContainer, strength: str) -> None:
    """--guide; `strength` says what its weight is."""
    group.add_argument(
        "--guide",
        dest="guides",
        action="append",
        default=[],
        type=_guide,
        metavar="NAME=PATH[:WEIGHT]",
        help=f"a guide to steer with: a directory, a hub id or builtin:NAME, {strength}; repeat for several",
    )


def add_sampling_options(parser: argparse.ArgumentParser, *, max_new_tokens: int = 128) -> None:
    """Every field of SamplingParams but weights and traces."""
    group = parser.add_argument_group("sampling")
    fraction = number(0, 1)
    group.add_argument("--max-new-tokens", type=whole(1), default=max_new_tokens, metavar="N", help="(%(default)s)")
    group.add_argument(
        "--temperature",
        type=number(0),
        metavar="T",
        help="0: the most probable token of the mixed policy (1; with an agent what it asks for, 0.8)",
    )
    group.add_argument(
        "--top-k", type=whole(0), metavar="K", help="keep the K most probable tokens; 0: all (0; with an agent 40)"
    )
    group.add_argument(
        "--top-p",
        type=number(0, 1, open_low=True),
        metavar="P",
        help="keep tokens up to probability P (1: all; with an agent 0.95)",
    )
    group.add_argument(
        "--min-p",
        type=fraction,
        default=0.0,
        metavar="P",
        help="drop tokens below P times the best one's probability (0)",
    )
    group.add_argument(
        "--plausibility",
        type=fraction,
        default=0.0,
        metavar="A",
        help="as --min-p, on the base, before guides are mixed in (0)",
    )
    group.add_argument(
        "--repetition-penalty",
        type=number(0, open_low=True),
        default=1.0,
        metavar="R",
        help="divide the probability of tokens already seen by R (1)",
    )
    group.add_argument(
        "--stop", action="append", default=[], metavar="TEXT", help="end an answer here; repeat for several"
    )
    group.add_argument("--ignore-eos", action="store_true", help="go on after an end-of-sequence token")
    group.add_argument(
        "--seed", type=seed_number, metavar="N", help="whole number; answer i uses N+i (drawn if not given)"
    )


def add_settings(
    group: argparse._ArgumentGroup, settings: Mapping[str, tuple[Callable[[str], Any], str]], defaults: object
) -> None:
    """A flag for each setting of one number: name -> (type, help); what it is by default is read off `defaults`."""
    for name, (kind, text) in settings.items():
        default = getattr(defaults, name)
        flag, metavar = f"--{name.replace('_', '-')}", "N" if isinstance(default, int) else "X"
        group.add_argument(flag, type=kind, default=default, metavar=metavar, help=f"{text} ({default:g})")


def add_run_outputs(parser: argparse.ArgumentParser, where: str) -> argparse._ArgumentGroup:
    """--out, --resume or --overwrite, and --json of a run that can be interrupted; their group, for more."""
    group = parser.add_argument_group("output")
    group.add_argument("--out", required=True, metavar="DIR", help=where)
    existing = group.add_mutually_exclusive_group()
    existing.add_argument("--resume", action="store_true", help="continue an interrupted run")
    existing.add_argument("--overwrite", action="store_true", help="replace --out and start anew")
    group.add_argument("--json", action="store_true", help="the result as JSON on standard output")
    return group


def check_guide_names(specs: Sequence[GuideSpec]) -> None:
    """Raise OptionError where two guides share a name."""
    names = [spec.name for spec in specs]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise OptionError(f"--guide names {twice[0]!r} twice; give each guide a name of its own.")


def named_preferences(
    pairs: Sequence[tuple[str, tuple[float, ...]]], guides: Sequence[str]
) -> dict[str, tuple[float, ...]]:
    """Guide -> its preference vector. Raises OptionError for a name that is no guide's, or that is given twice."""
    names = [name for name, _ in pairs]
    for name in names:
        if name not in guides:
            raise unknown_name("guide", name, guides)
        if names.count(name) > 1:
            raise OptionError(
                f"--preference names {name!r} twice; give --guide twice, under two names, for two vectors."
            )
    return dict(pairs)


def sampling_params(
    args: argparse.Namespace,
    *,
    weights: Mapping[str, float],
    seed: int | None,
    trace: bool = False,
    num_alternatives: int = 0,
) -> SamplingParams:
    """The sampling flags as SamplingParams."""
    from trimtab.core import SamplingParams

    return SamplingParams(
        weights=dict(weights),
        max_new_tokens=args.max_new_tokens,
        temperature=args.temperature,
        top_k=args.top_k,
        top_p=args.top_p,
        min_p=args.min_p,
        plausibility=args.plausibility,
        repetition_penalty=args.repetition_penalty,
        stop=tuple(args.stop),
        ignore_eos=args.ignore_eos,
        seed=seed,
        trace=trace,
        num_alternatives=num_alternatives,
    )


def model_source(args: argparse.Namespace) -> ModelSource:
    """What the flags of --model and its group say of the model."""
    from trimtab.engines.maker import ModelSource

    return ModelSource(args.model, args.dtype, args.device, args.revision, args.trust_remote_code)


def say(message: str) -> None:
    """Progress, on standard error."""
    print(message, file=sys.stderr, flush=True)
