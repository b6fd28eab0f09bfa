"""`trimtab serve`: an OpenAI-compatible server with a dial for each request, and a page that shows why.

Guides are off unless a request, a preset or their own weight (NAME=PATH:WEIGHT) turns them on.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from trimtab.cli import engines, flags, options
from trimtab.cli.keys import read_keys
from trimtab.cli.template_options import add_template_option, template_options
from trimtab.errors import MissingExtraError, OptionError, renamed
from trimtab.fields import table
from trimtab.mixing.forms import check_negative, forms_of
from trimtab.serving.config import ServeConfig, read_config
from trimtab.serving.door import ANY, is_loopback
from trimtab.serving.limits import Limits

if TYPE_CHECKING:
    from trimtab.decoding.decoder import Decoder
    from trimtab.decoding.engine import GenerationEngine
    from trimtab.serving.app import Service
    from trimtab.serving.thread import TensorThread


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
    group.add_argument(
        "--allow-host",
        dest="hosts",
        action="append",
        default=[],
        metavar="NAME",
        help="answer requests to this name too, * to any; on a loopback address only its own names are answered",
    )
    group = parser.add_argument_group("limits")
    flags.add_fields(group, Limits(), may_be_unset=True)


def run(args: argparse.Namespace) -> int:
    """Serve until told to end; 1 where the generation thread died."""
    for package in ("fastapi", "uvicorn", "prometheus_client"):
        if importlib.util.find_spec(package) is None:
            raise MissingExtraError(package, "serve", "The server")
    options.check_guide_names(args.guides)
    engines.check_engine(args)
    template_options(args)
    config = ServeConfig() if args.config is None else read_config(args.config)
    keys = read_keys(args.api_keys, args.api_key_file, os.environ.get("TRIMTAB_API_KEY"))
    from trimtab.cli.server import leave, listen, serve
    from trimtab.serving.thread import TensorThread

    try:
        with listen(args.host, args.port) as listener:  # before minutes are spent on loading
            thread = TensorThread()
            service = thread.submit(_service, args, config, thread).result()
            hosts = _hosts(listener.getsockname()[0], [*config.hosts, *args.hosts])
            return serve(replace(service, keys=keys, hosts=hosts), listener)
    except KeyboardInterrupt:  # the generation thread may be in the midst of loading
        leave(130)


def _hosts(address: str, names: Sequence[str]) -> list[str]:
    """The names that are answered beside this machine's own: any, unless it is on loopback or some are given."""
    return list(names) if names or is_loopback(address) else [ANY]


def _service(args: argparse.Namespace, config: ServeConfig, thread: TensorThread) -> Service:
    """What the flags and the configuration ask for, loaded."""
    model_name = args.model or config.model
    if model_name is None:
        raise OptionError("No model is named. Give --model NAME, or `model:` in --config.")
    limits = Limits(**{**config.limits, **_given(args)})  # type: ignore[arg-type]
    args.model = model_name
    # Off, unless a request, a preset or the guide's own entry says otherwise.
    by_flag = {spec.name for spec in args.guides}
    args.guides = [replace(spec, weight=spec.weight or 0.0) for spec in (*args.guides, *_entries(args, config))]
    # A guide of a flag is the flag's; one of the configuration may have its form and base changed by flags.
    args.preferences = [*args.preferences, *_of_entries(config, "preference", by_flag, args.preferences)]
    args.forms = [*args.forms, *_of_entries(config, "form", by_flag, args.forms)]
    args.guide_bases = [*args.guide_bases, *_of_entries(config, "guide_base", by_flag, args.guide_bases)]
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
        origins=(*config.origins, *args.origins),
        thread=thread,
    )


def _engine(args: argparse.Namespace, config: ServeConfig, limits: Limits) -> GenerationEngine:
    """What decodes. vLLM has its own limit of caches, and of the tokens of a step unless one is asked for here."""
    if args.engine == "builtin":
        model, guides = options.load_parts(args)
        options.tokenizer_of(model, args)
        from trimtab.decoding.decoder import Decoder

        decoder = Decoder(model, guides, max_rows=limits.max_rows, prefill_chunk=limits.prefill_chunk)
        return _within_memory(decoder, limits, {**config.limits, **_given(args)})
    asked = {**config.limits, **_given(args)}
    if limits.max_cached_tokens:
        raise OptionError(
            "--max-cached-tokens is a limit of the built-in engine; vLLM plans its own caches. Leave it out, or give "
            "--vllm gpu_memory_utilization=F."
        )
    more = {"max_num_batched_tokens": limits.max_rows + limits.prefill_chunk} if "prefill_chunk" in asked else {}
    return engines.load_vllm(args, max_rows=limits.max_rows, default_weight=0.0, more=more)


def _within_memory(decoder: Decoder, limits: Limits, asked: Collection[str]) -> Decoder:
    """The decoder, held to what the machine has memory for. Raises OptionError for limits that do not fit."""
    from trimtab.serving import memory

    try:
        planned = memory.plan(decoder, limits, asked, memory.memory_of(decoder.model.device))
    except OptionError as error:
        raise OptionError(renamed(error, lambda name: f"--{name.replace('_', '-')}") or str(error)) from None
    if planned is not None:
        decoder.max_cached_tokens = planned.max_cached_tokens
        options.say(planned.text)
    return decoder


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
    return {name: value for name in table(Limits) if (value := getattr(args, name)) is not None}


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
