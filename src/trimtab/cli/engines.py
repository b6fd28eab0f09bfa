"""`--engine`: what decodes, the built-in loop or vLLM; for vLLM, guides are packed on the fly."""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from trimtab.cli import guide_options, options
from trimtab.documents import read_json
from trimtab.engines.vllm.manifest import KEY, Manifest
from trimtab.errors import OptionError

if TYPE_CHECKING:
    from trimtab.core import SamplingParams, Tokenizer
    from trimtab.decoding.engine import GenerationEngine
    from trimtab.engines.vllm.engine import VLLMEngine

ENGINES = ("builtin", "vllm")


def add_engine_options(parser: argparse.ArgumentParser) -> None:
    """--engine and --vllm."""
    group = parser.add_argument_group("engine")
    group.add_argument("--engine", choices=ENGINES, default="builtin", help="what decodes (%(default)s)")
    group.add_argument(
        "--vllm",
        dest="vllm_options",
        action="append",
        default=[],
        type=_setting,
        metavar="KEY=VALUE",
        help="with --engine vllm: an option of vLLM's engine, such as tensor_parallel_size=2 or max_model_len=4096; "
        "repeat for several",
    )


def check_engine(args: argparse.Namespace) -> None:
    """Raise OptionError or MissingExtraError for what can be said of the engine before anything is read or loaded."""
    if args.engine == "builtin":
        if args.vllm_options:
            raise OptionError("--vllm sets options of vLLM's engine; give --engine vllm with it.")
        return
    from trimtab.engines.vllm.versions import check_version

    check_version()
    # vLLM would log to standard output, in its workers too.
    os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "INFO" if args.verbose else "WARNING")
    for name, why in _REFUSED.items():
        if getattr(args, name, None):
            raise OptionError(f"--{name.rstrip('s')} cannot be used with --engine vllm: {why}")
    _check_packed(args)


def _check_packed(args: argparse.Namespace) -> None:
    """Raise OptionError for a packed directory with guides, or what is theirs, beside it (of a server's file too)."""
    model = getattr(args, "model", None)  # a comparison names it in its recipe
    if model is None or packed(model) is None:
        return
    for name in ("guide", "form", "guide_base"):
        if getattr(args, f"{name}s", None):
            flag = name.replace("_", "-")
            raise OptionError(f"{model} is packed with its guides; leave --{flag} out, or name the base itself.")


def check_sampling(args: argparse.Namespace, params: SamplingParams) -> None:
    """Raise OptionError for parameters that the engine cannot honour, before it has started."""
    if args.engine == "vllm":
        from trimtab.engines.vllm.engine import check_params

        check_params(params)


def load(args: argparse.Namespace, *, max_rows: int) -> tuple[Tokenizer, GenerationEngine]:
    """What --engine, --model and --guide name, ready to answer text."""
    if args.engine == "builtin":
        return options.load_decoder(args, max_rows=max_rows)
    engine = load_vllm(args, max_rows=max_rows, default_weight=1.0)
    return engine.model.tokenizer, engine


def load_vllm(
    args: argparse.Namespace, *, max_rows: int, default_weight: float, more: Mapping[str, Any] | None = None
) -> VLLMEngine:
    """vLLM with what --model and --guide name: a packed directory, or a base whose guides are packed now.

    `default_weight` is that of a guide whose flag gives none; `more` holds vLLM's options that --vllm may replace.
    """
    vllm_options = {**(more or {}), **dict(args.vllm_options)}
    how = {"dtype": args.dtype, "trust_remote_code": args.trust_remote_code, "options": vllm_options}
    if packed(args.model) is not None:
        _check_packed(args)
        options.say(f"starting vLLM on {args.model}")
        return start(args.model, max_rows=max_rows, **how)
    weights = {spec.name: default_weight if spec.weight is None else spec.weight for spec in args.guides}
    options.say(f"starting vLLM on {args.model}, guides: {', '.join(weights) or 'none'}")
    paths = {spec.name: spec.path for spec in args.guides}
    forms, bases = guide_options.read(args)
    return start_packed(
        args.model, paths, weights=weights, forms=forms, bases=bases, max_rows=max_rows, revision=args.revision, **how
    )


def packed(model: str) -> Manifest | None:
    """What a packed directory says; None for any other model."""
    try:
        config = read_json((Path(model) / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return Manifest.of(config) if isinstance(config, dict) and KEY in config else None


def guide_names(args: argparse.Namespace) -> list[str]:
    """The guides that a row of prompts may weigh: those of the flags, or those that --model was packed with."""
    manifest = packed(args.model) if args.engine == "vllm" else None
    return [spec.name for spec in args.guides] if manifest is None else list(manifest.weights)


def start_packed(
    model: str,
    guides: Mapping[str, str],
    *,
    weights: Mapping[str, float],
    max_rows: int,
    dtype: str,
    trust_remote_code: bool,
    options: Mapping[str, Any],
    forms: Mapping[str, str] = MappingProxyType({}),
    bases: Mapping[str, str] = MappingProxyType({}),
    revision: str | None = None,
) -> VLLMEngine:
    """vLLM on a base with guides, packed into a directory that is gone once everything is loaded.

    `forms` and `bases` are guides' own where their cards do not say so (`packing.pack`).
    """
    from trimtab.engines.vllm.packing import pack

    with tempfile.TemporaryDirectory(prefix="trimtab-") as directory:
        out = Path(directory) / "served"
        pack(
            model,
            guides,
            out,
            weights=weights,
            forms=forms,
            bases=bases,
            revision=revision,
            trust_remote_code=trust_remote_code,
        )
        return start(str(out), max_rows=max_rows, dtype=dtype, trust_remote_code=trust_remote_code, options=options)


def start(served: str, *, max_rows: int, dtype: str, trust_remote_code: bool, options: Mapping[str, Any]) -> VLLMEngine:
    """vLLM on a packed directory, `options` by vLLM's names."""
    from trimtab.engines.vllm.engine import OWN_OPTIONS, VLLMEngine

    own = {name: value for name, value in options.items() if name in OWN_OPTIONS}
    others = {name: value for name, value in options.items() if name not in OWN_OPTIONS}
    return VLLMEngine(
        served, max_rows=max_rows, dtype=dtype, trust_remote_code=trust_remote_code, options=others, **own
    )


_REFUSED = {
    "preferences": "a guide for every preference vector runs at one there: save it at a vector first "
    "(docs/serving/vllm.md).",
    "rule": "an accept-reject agent has an engine of its own there.",
    "device": "vLLM takes the devices that it finds; choose them with CUDA_VISIBLE_DEVICES.",
}
"""Flag -> why vLLM does not have it."""


def _setting(text: str) -> tuple[str, Any]:
    """`KEY=VALUE` -> the key with underscores, and the value: JSON where it is some, else text."""
    key, equals, value = text.partition("=")
    if not (key and equals):
        raise argparse.ArgumentTypeError(f"{text!r} is no option; give KEY=VALUE")
    try:
        return key.replace("-", "_"), read_json(value)
    except ValueError:
        return key.replace("-", "_"), value
