"""Flags that several commands share: which model, which guides, how to sample. Importing this loads nothing heavy."""

from __future__ import annotations

import argparse
import dataclasses
import math
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from trimtab import fields
from trimtab.cli import flags, guide_options
from trimtab.errors import OptionError, unknown_name
from trimtab.fields import Described
from trimtab.models.quantize import KINDS
from trimtab.params import NO_DRAFT, SamplingParams

if TYPE_CHECKING:
    from trimtab.storage.model_source import ModelSource

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
    is a number, unless the whole is the name of something that exists. Or it is `prompt:` and a sentence
    (`storage.sentences`). Raises OptionError.
    """
    name, equals, target = text.partition("=")
    if not equals or not target:
        raise OptionError(f"{text!r} is not a guide. Accepted: {_GUIDE_FORM}.")
    if not _NAME.fullmatch(name):
        raise OptionError(
            f"{name!r} is not a name for a guide; use letters, digits, '.', '_' and '-'. Form: {_GUIDE_FORM}."
        )
    from trimtab.storage.sentences import is_sentence, read_weighed, sentence_name

    if is_sentence(target):
        guide, strength = read_weighed(target)
        return GuideSpec(name, sentence_name(guide), strength)
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
    return flags.number_type(Described(kind="number", low=low, high=high, open_low=open_low))


def whole(low: int, high: int | None = None) -> Callable[[str], int]:
    """An argparse type: a whole number of at least `low`, at most `high`."""
    return flags.whole_type(Described(kind="whole", low=low, high=math.inf if high is None else high))


def list_of(item: Callable[[str], float]) -> Callable[[str], list[float]]:
    """An argparse type: a comma-separated list."""
    return lambda text: [item(part) for part in text.split(",")]


any_number = number(-math.inf)
MAX_SEED = fields.MAX_SEED
seed_number = whole(0, MAX_SEED)


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


def add_model_options(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    """--model, --guide and how they are loaded."""
    group = parser.add_argument_group("model and guides")
    _add_model(group, required=required)
    add_guide_option(group, "and its strength (1; an agent's threshold: 0.5)")
    group.add_argument(
        "--preference",
        dest="preferences",
        action="append",
        default=[],
        type=flags.argument(parse_preference),
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
    group.add_argument(
        "--draft-quantize",
        choices=KINDS,
        help="with --draft guide: a copy of the guide with such weights drafts in its stead (no copy)",
    )
    _add_loading(group)


def add_base_options(parser: argparse.ArgumentParser) -> None:
    """--model and how it is loaded, where no guide runs."""
    group = parser.add_argument_group("model")
    _add_model(group, required=True)
    _add_loading(group)


def _add_model(group: argparse._ArgumentGroup, *, required: bool) -> None:
    group.add_argument(
        "--model",
        required=required,
        metavar="NAME",
        help='a hub id, a directory, a .gguf file, or "demo" (SmolLM2-135M-Instruct)',
    )


def _add_loading(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--dtype", default="auto", help="auto (float32 on a CPU), float32, bfloat16 or float16")
    group.add_argument(
        "--quantize",
        choices=KINDS,
        help="what weights are held in on a CPU, also those of guides that are models: smaller and faster",
    )
    group.add_argument("--device", help="cpu, cuda, cuda:1, ... (a GPU where there is one)")
    add_backend_options(group)
    add_threads_option(group)
    group.add_argument("--revision", help="branch, tag or commit of a model on the hub")
    group.add_argument(
        "--trust-remote-code", action="store_true", help="let the model and the guides run their own code"
    )


def add_backend_options(group: argparse._ActionsContainer) -> None:
    """--backend and --llama."""
    group.add_argument(
        "--backend",
        choices=("llama", "transformers"),
        help="who runs a .gguf file: llama.cpp as it is, or transformers, which dequantises it (llama where it is "
        "installed)",
    )
    group.add_argument(
        "--llama",
        dest="llama_options",
        action="append",
        default=[],
        type=_llama_option,
        metavar="KEY=VALUE",
        help="an option of llama.cpp, such as n_gpu_layers=99 or type_k=q8_0; repeatable",
    )


def _llama_option(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not (key and equals and value):
        raise argparse.ArgumentTypeError(f"{text!r} is not an option; give KEY=VALUE")
    from trimtab.models.llama.options import LlamaOptions

    flags.argument(lambda _: LlamaOptions.of_pairs([(key, value)]))(text)
    return key, value


def add_threads_option(group: argparse._ActionsContainer) -> None:
    """--threads."""
    group.add_argument(
        "--threads",
        type=_threads,
        metavar="N|auto",
        help="threads that compute on a CPU; auto: as many as are fastest, measured in a moment (as torch and "
        "OMP_NUM_THREADS say)",
    )


def _threads(text: str) -> int | str:
    if text == AUTO_THREADS:
        return text
    if not (text.isdecimal() and 1 <= int(text) <= MOST_THREADS):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of threads; give 1 to {MOST_THREADS}, or auto")
    return int(text)


def use_threads(args: argparse.Namespace) -> None:
    """Do as --threads says; without it torch decides, by OMP_NUM_THREADS where that is set."""
    wanted: int | str | None = getattr(args, "threads", None)
    if wanted is None:
        return
    from trimtab.models.threads import use_threads as use

    num = use(None if isinstance(wanted, str) else wanted)
    if wanted == AUTO_THREADS:
        say(f"computing with {num} threads" if num > 1 else "computing with 1 thread")


def add_guide_option(group: argparse._ActionsContainer, strength: str) -> None:
    """--guide; `strength` says what its weight is."""
    group.add_argument(
        "--guide",
        dest="guides",
        action="append",
        default=[],
        type=flags.argument(parse_guide),
        metavar="NAME=PATH[:WEIGHT]",
        help=f"a guide to steer with: a directory, a hub id, builtin:NAME, or prompt:SENTENCE, {strength}; repeat for "
        "several",
    )


AUTO_THREADS = "auto"
MOST_THREADS = 1024
NOT_SAMPLING_FLAGS = ("trace", "num_alternatives")
"""Fields of `SamplingParams` that say what is recorded, which each command asks for in its own way."""


def add_sampling_options(parser: argparse.ArgumentParser, *, max_new_tokens: int = 128) -> None:
    """A flag for each field of SamplingParams but weights and traces."""
    group = parser.add_argument_group("sampling")
    flags.add_fields(group, SamplingParams(max_new_tokens=max_new_tokens), but=NOT_SAMPLING_FLAGS)


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
    """Guide -> its preference vector. Raises OptionError for a name that is not a guide's, or that is given twice."""
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
    """The sampling flags as SamplingParams, with the seed that was drawn where none was given.

    Raises OptionError for flags that do not go together.
    """
    if args.draft_tokens is not None and args.draft == NO_DRAFT:
        raise OptionError(f"--draft-tokens {args.draft_tokens} is about drafts, and there are none. Give --draft too.")
    return dataclasses.replace(
        flags.read_fields(SamplingParams, args, but=NOT_SAMPLING_FLAGS),
        weights=dict(weights),
        seed=seed,
        trace=trace,
        num_alternatives=num_alternatives,
    )


def model_source(args: argparse.Namespace) -> ModelSource:
    """What the flags of --model and its group say of the model."""
    from trimtab.storage.model_source import ModelSource

    return ModelSource(
        args.model,
        args.dtype,
        args.device,
        args.trust_remote_code,
        args.revision,
        args.quantize,
        args.backend,
        tuple(args.llama_options),
    )


def say(message: str) -> None:
    """Progress, on standard error."""
    print(message, file=sys.stderr, flush=True)
