"""`trimtab serve`: an OpenAI-compatible server with a dial for each request, and a page that shows why.

Guides are off unless a request, a preset or their own weight (NAME=PATH:WEIGHT) turns them on.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trimtab.cli import engines, options
from trimtab.cli.template_options import add_template_option, template_options
from trimtab.errors import DataError, MissingExtraError, OptionError
from trimtab.forms import check_negative, forms_of
from trimtab.serving.config import ServeConfig, read_config
from trimtab.serving.limits import Limits

if TYPE_CHECKING:
    from trimtab.generation import GenerationEngine
    from trimtab.serving.app import Service
    from trimtab.serving.thread import TensorThread

_LIMITS: Mapping[str, str] = {
    "max_rows": "answers decoded at a time",
    "max_queue": "answers that may wait; one more is refused with 429",
    "max_prompt_tokens": "tokens of a prompt",
    "max_new_tokens": "tokens of an answer",
    "default_new_tokens": "tokens of an answer to a request that does not say",
    "max_n": "answers to one request",
    "max_top_logprobs": "top log-probabilities of a token",
    "max_stop": "stop strings of a request",
    "max_guides": "guides that one request may run",
    "max_body_bytes": "bytes of a body; more is refused with 413",
    "max_weight": "the largest weight, either way",
    "timeout_s": "seconds for an answer, waiting included",
    "drain_s": "seconds that running answers get when the server is told to end",
    "prefill_chunk": "tokens of prompts fed in one step",
}


def register(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add the command and its flags."""
    parser = subparsers.add_parser(
        "serve", help="an OpenAI-compatible server and a playground", description=__doc__, allow_abbrev=False
    )
    options.add_model_options(parser, required=False)
    engines.add_engine_options(parser)
    group = parser.add_argument_group("server")
    group.add_argument("--config", metavar="FILE", help="serve.yaml: model, guides, presets, limits; flags go first")
    group.add_argument("--name", help="what the base is called on the wire (the value of --model)")
    add_template_option(group)
    group.add_argument("--host", default="127.0.0.1", help="where to listen (%(default)s: this machine alone)")
    group.add_argument("--port", type=options.whole(0, 65535), default=8000, metavar="N", help="(%(default)s)")
    group.add_argument(
        "--api-key",
        dest="api_keys",
        action="append",
        default=[],
        metavar="KEY",
        help="accept this key; repeatable",
    )
    group.add_argument("--api-key-file", metavar="FILE", help="accept the keys in this file, one a line")
    group.add_argument(
        "--allow-origin",
        dest="origins",
        action="append",
        default=[],
        metavar="URL",
        help="let pages there call it",
    )
    group = parser.add_argument_group("limits")
    for name, text in _LIMITS.items():
        default = getattr(Limits(), name)
        kind = options.whole(0) if isinstance(default, int) else options.number(0)
        group.add_argument(f"--{name.replace('_', '-')}", type=kind, metavar="N", help=f"{text} ({default:g})")


def run(args: argparse.Namespace) -> int:
    """Serve until told to end; 1 where the generation thread died."""
    for package in ("fastapi", "uvicorn", "prometheus_client"):
        if importlib.util.find_spec(package) is None:
            raise MissingExtraError(package, "serve", "The server")
    options.check_guide_names(args.guides)
    engines.check_engine(args)
    template_options(args)
    config = ServeConfig() if args.config is None else read_config(args.config)
    from trimtab.cli.server import listen, serve
    from trimtab.serving.thread import TensorThread

    with listen(args.host, args.port) as listener:  # before minutes are spent on loading
        thread = TensorThread()
        return serve(thread.submit(_service, args, config, thread).result(), listener)


def _service(args: argparse.Namespace, config: ServeConfig, thread: TensorThread) -> Service:
    """What the flags and the configuration ask for, loaded."""
    model_name = args.model or config.model
    if model_name is None:
        raise OptionError("No model is named. Give --model NAME, or `model:` in --config.")
    limits = Limits(**{**config.limits, **_given(args)})  # type: ignore[arg-type]
    keys = _keys(args)
    args.model = model_name
    # Off, unless a request, a preset or the guide's own entry says otherwise.
    flags = {spec.name for spec in args.guides}
    args.guides = [replace(spec, weight=spec.weight or 0.0) for spec in (*args.guides, *_entries(args, config))]
    # A guide of a flag is the flag's; one of the configuration may have its form and base changed by flags.
    args.preferences = [*args.preferences, *_of_entries(config, "preference", flags, args.preferences)]
    args.forms = [*args.forms, *_of_entries(config, "form", flags, args.forms)]
    args.guide_bases = [*args.guide_bases, *_of_entries(config, "guide_base", flags, args.guide_bases)]
    engine = _engine(args, config, limits)
    from trimtab.prompts import check_options
    from trimtab.serving.app import Service
    from trimtab.serving.asking import Catalogue

    name = args.name or config.name or model_name
    if name in config.presets:
        raise OptionError(f"The preset {name!r} has the base's name; give --name, or rename it.")
    own = _own_weights(args, engine)
    told = {**config.template_options, **template_options(args)}
    check_options(engine.model, told)
    _check_weights(engine, {name: own, **{preset: dict(weights) for preset, weights in config.presets.items()}})
    return Service(
        decoder=engine,
        catalogue=Catalogue(engine.model, name, own, config.presets, told),
        limits=limits,
        keys=keys,
        origins=(*config.origins, *args.origins),
        thread=thread,
    )


def _engine(args: argparse.Namespace, config: ServeConfig, limits: Limits) -> GenerationEngine:
    """What decodes. vLLM has a limit of its own for the tokens of a step, unless one is asked for here."""
    if args.engine == "builtin":
        model, guides = options.load_parts(args)
        options.tokenizer_of(model, args)
        from trimtab.decoding import Decoder

        return Decoder(model, guides, max_rows=limits.max_rows, prefill_chunk=limits.prefill_chunk)
    asked = "prefill_chunk" in {**config.limits, **_given(args)}
    more = {"max_num_batched_tokens": limits.max_rows + limits.prefill_chunk} if asked else {}
    return engines.load_vllm(args, max_rows=limits.max_rows, default_weight=0.0, more=more)


def _own_weights(args: argparse.Namespace, engine: GenerationEngine) -> dict[str, float]:
    """Guide -> its weight in a request that does not say: off unless its flag or the packed directory has one."""
    flags = {spec.name: spec.weight or 0.0 for spec in args.guides}
    return {name: flags.get(name, guide.weight) for name, guide in engine.guides.items()}


def _check_weights(engine: GenerationEngine, presets: Mapping[str, Mapping[str, float]]) -> None:
    """Raise OptionError for a preset that no request could run (`forms.check_negative`)."""
    for name, weights in presets.items():
        try:
            check_negative(weights, forms_of(engine.guides), temperature=None, plausibility=None)
        except OptionError as error:
            raise OptionError(f"The model name {name!r} cannot be served. {error}") from None


def _given(args: argparse.Namespace) -> dict[str, float]:
    return {name: value for name in _LIMITS if (value := getattr(args, name)) is not None}


def _entries(args: argparse.Namespace, config: ServeConfig) -> list[options.GuideSpec]:
    """The configuration's guides that no flag replaces."""
    flags = {spec.name for spec in args.guides}
    return [
        options.GuideSpec(name, entry.path, entry.weight) for name, entry in config.guides.items() if name not in flags
    ]


def _of_entries(
    config: ServeConfig, field: str, replaced: Collection[str], flags: Sequence[tuple[str, Any]]
) -> list[tuple[str, Any]]:
    """(guide, value) of one field of the configuration's guides: those that no flag replaces, nor says it of."""
    said = {name for name, _ in flags}
    return [
        (name, value)
        for name, entry in config.guides.items()
        if (value := getattr(entry, field)) is not None and name not in replaced and name not in said
    ]


def _keys(args: argparse.Namespace) -> list[str]:
    """The keys of the flags, of the file and of $TRIMTAB_API_KEY."""
    keys = [*args.api_keys, os.environ.get("TRIMTAB_API_KEY", "")]
    if args.api_key_file is not None:
        lines = Path(args.api_key_file).read_text(encoding="utf-8").splitlines()
        keys += lines
        if not any(line.strip() for line in lines):
            raise DataError("no key is in it; give one a line.", path=args.api_key_file)
    return [key.strip() for key in keys if key.strip()]
