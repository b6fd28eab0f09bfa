"""`trimtab serve`: an OpenAI-compatible server with a dial for each request, and a page that shows why.

Guides are off unless a request, a preset or their own weight (NAME=PATH:WEIGHT) turns them on.
"""

from __future__ import annotations

import argparse
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from trimtab import environment
from trimtab.cli import engines, flags, options
from trimtab.cli.exits import Exit
from trimtab.cli.keys import read_keys
from trimtab.cli.template_options import add_template_option, template_options
from trimtab.errors import OptionError, renamed, require
from trimtab.fields import table
from trimtab.mixing.forms import check_negative, forms_of
from trimtab.params import GUIDE_DRAFT
from trimtab.serving.config import ServeConfig, read_config
from trimtab.serving.hosts import ANY, is_loopback
from trimtab.serving.limits import Limits

if TYPE_CHECKING:
    from trimtab.cli.engines import EngineChoice, GuideFlags
    from trimtab.decoding.decoder import Decoder
    from trimtab.decoding.engine import GenerationEngine
    from trimtab.serving.app import Service
    from trimtab.serving.thread import TensorThread
    from trimtab.storage.model_source import ModelSource


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
    group.add_argument(
        "--draft-model",
        dest="draft_models",
        action="append",
        default=[],
        metavar="MODEL",
        help="load this small model too, for requests whose draft names it; repeatable",
    )
    group.add_argument(
        "--allow-prompt-guides",
        action="store_true",
        help="let requests, and the playground's visitors, bring sentences as guides (guidance.prompts); each is a row "
        "or two more of the batch",
    )
    group = parser.add_argument_group("limits")
    flags.add_fields(group, Limits(), may_be_unset=True)


def run(args: argparse.Namespace) -> Exit:
    """Serve until told to end; 1 where the generation thread died."""
    require("fastapi", "uvicorn", "prometheus_client", extra="serve", purpose="The server")
    options.check_guide_names(args.guides)
    engine = engines.engine_choice(args)
    template_options(args)
    config = ServeConfig() if args.config is None else read_config(args.config)
    keys = read_keys(args.api_keys, args.api_key_file, environment.API_KEY.read())
    wanted = _wanted(args, config, engine)
    from trimtab.cli.server import leave, listen, serve
    from trimtab.serving.thread import TensorThread

    try:
        with listen(args.host, args.port) as listener:  # before minutes are spent on loading
            thread = TensorThread()
            service = thread.submit(_service, wanted, thread).result()
            hosts = _hosts(listener.getsockname()[0], [*config.hosts, *args.hosts])
            return serve(replace(service, keys=keys, hosts=hosts), listener)
    except KeyboardInterrupt:  # the generation thread may be in the midst of loading
        leave(Exit.INTERRUPTED)


def _hosts(address: str, names: Sequence[str]) -> list[str]:
    """The names that are answered beside this machine's own: any, unless it is on loopback or some are given."""
    return list(names) if names or is_loopback(address) else [ANY]


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What the flags and the configuration ask for; a flag goes before the configuration."""

    model: ModelSource
    engine: EngineChoice
    guides: GuideFlags
    """Off, unless a request, a preset, the guide's own entry or its calibration says otherwise."""
    name: str
    template_options: Mapping[str, Any]
    presets: Mapping[str, Mapping[str, float]]
    limits: Limits
    limits_given: Mapping[str, float]
    """The limits that somebody has set."""
    origins: tuple[str, ...]
    draft_models: tuple[str, ...]
    draft_quantize: str | None
    places: tuple[str, ...]
    """Guides that hold the sentences which a request brings."""


def _wanted(args: argparse.Namespace, config: ServeConfig, engine: EngineChoice) -> _Wanted:
    model = args.model or config.model
    if model is None:
        raise OptionError("No model is named. Give --model NAME, or `model:` in --config.")
    name = args.name or config.name or model
    if name in config.presets:
        raise OptionError(f"The preset {name!r} has the base's name; give --name, or rename it.")
    by_flag = {spec.name for spec in args.guides}
    specs = [*args.guides, *_entries(args.guides, config)]
    engines.check_packed(engine, model, ["guide"] if specs else [])
    forms = dict([*args.forms, *_of_entries(config, "form", by_flag, args.forms)])
    specs = [replace(spec, weight=_weight(spec, forms.get(spec.name), args.rule)) for spec in specs]
    # A guide of a flag is the flag's; one of the configuration may have its form and base changed by flags.
    guides = engines.GuideFlags(
        specs,
        preferences=[*args.preferences, *_of_entries(config, "preference", by_flag, args.preferences)],
        forms=[*args.forms, *_of_entries(config, "form", by_flag, args.forms)],
        bases=[*args.guide_bases, *_of_entries(config, "guide_base", by_flag, args.guide_bases)],
        rule=args.rule,
    )
    given = {**config.limits, **_given(args)}
    return _Wanted(
        model=replace(options.model_source(args), name=model),
        engine=engine,
        guides=guides,
        name=name,
        template_options={**config.template_options, **template_options(args)},
        presets=config.presets,
        limits=Limits(**given),  # type: ignore[arg-type]
        limits_given=given,
        origins=(*config.origins, *args.origins),
        draft_models=(*config.draft_models, *args.draft_models),
        draft_quantize=args.draft_quantize,
        places=_places(args.allow_prompt_guides or config.allow_prompt_guides, engine, Limits(**given)),  # type: ignore[arg-type]
    )


def _weight(spec: options.GuideSpec, form: str | None, rule: str | None) -> float:
    """What a request that does not say runs a guide at."""
    if spec.weight is not None:
        return spec.weight
    from trimtab.storage.directories import locate_guide

    card = locate_guide(spec.path).card
    return card.strength_served(None, form=form, rule=rule if card.kind == "agent" else None)


def _places(allowed: bool, engine: EngineChoice, limits: Limits) -> tuple[str, ...]:
    """A guide for each sentence that a request may bring, by names that no guide of the operator's can have."""
    if not allowed:
        return ()
    from trimtab.engines.maker import PROMPTS
    from trimtab.guides.brought import place_name

    engine.maker.check_features([PROMPTS], what="--allow-prompt-guides")
    return tuple(place_name(number) for number in range(1, limits.max_prompt_guides + 1))


def _service(wanted: _Wanted, thread: TensorThread) -> Service:
    """What is asked for, loaded."""
    engine = _engine(wanted)
    from trimtab.prompts import check_options
    from trimtab.serving.app import Service
    from trimtab.serving.asking import Catalogue

    usual = _usual_weights(wanted.guides.specs, engine, wanted.places)
    check_options(engine.model, wanted.template_options)
    presets = {preset: dict(weights) for preset, weights in wanted.presets.items()}
    _check_weights(engine, {wanted.name: usual, **presets})
    return Service(
        engine=engine,
        catalogue=Catalogue(engine.model, wanted.name, usual, wanted.presets, wanted.template_options, wanted.places),
        limits=wanted.limits,
        origins=wanted.origins,
        thread=thread,
    )


def _engine(wanted: _Wanted) -> GenerationEngine:
    """What decodes. One that plans its own memory has its own limit of caches and, unless asked, of a step's tokens."""
    from trimtab.engines.maker import CACHE_LIMIT

    kind, limits = wanted.engine.maker, wanted.limits
    if limits.max_cached_tokens:
        kind.check_features([CACHE_LIMIT], what="--max-cached-tokens")
    chunk = limits.prefill_chunk if not kind.plans_caches or "prefill_chunk" in wanted.limits_given else None
    from trimtab.guides.brought import SentencePlace

    for name in wanted.draft_models:
        if name in engines.DRAFT_KINDS or name in wanted.guides.sources():
            raise OptionError(
                f"--draft-model {name} is not a model's name here: requests say {name} for another draft. Name a model."
            )
    _, engine = engines.load(
        wanted.engine,
        wanted.model,
        {**wanted.guides.sources(), **{place: SentencePlace(place) for place in wanted.places}},
        max_rows=limits.max_rows,
        prefill_chunk=chunk,
        drafts=[*wanted.draft_models, *([GUIDE_DRAFT] if wanted.draft_quantize else [])],
        draft_quantize=wanted.draft_quantize,
    )
    from trimtab.decoding.decoder import Decoder

    return _within_memory(engine, limits, wanted.limits_given) if isinstance(engine, Decoder) else engine


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


def _usual_weights(
    specs: Sequence[options.GuideSpec], engine: GenerationEngine, places: Collection[str]
) -> dict[str, float]:
    """Guide -> its weight in a request that does not say: its spec's, or that of the packed directory.

    The places of sentences that requests bring are none of the server's own guides.
    """
    flags = {spec.name: spec.weight or 0.0 for spec in specs}
    return {name: flags.get(name, guide.weight) for name, guide in engine.guides.items() if name not in places}


def _check_weights(engine: GenerationEngine, presets: Mapping[str, Mapping[str, float]]) -> None:
    """Raise OptionError for a preset that no request could run (`forms.check_negative`)."""
    for name, weights in presets.items():
        try:
            check_negative(weights, forms_of(engine.guides), temperature=None, plausibility=None)
        except OptionError as error:
            raise OptionError(f"The model name {name!r} cannot be served. {error}") from None


def _given(args: argparse.Namespace) -> dict[str, float]:
    return {name: value for name in table(Limits) if (value := getattr(args, name)) is not None}


def _entries(given: Sequence[options.GuideSpec], config: ServeConfig) -> list[options.GuideSpec]:
    """The configuration's guides that no flag replaces."""
    flags = {spec.name for spec in given}
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
