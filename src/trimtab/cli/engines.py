"""`--engine` and `--engine-option`: what decodes. Every command that decodes has both, and knows no engine by name."""

from __future__ import annotations

import argparse
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trimtab.cli import guide_options, options
from trimtab.cli.options import GuideSpec
from trimtab.engines.registry import BUILTIN, ENGINES, maker_of
from trimtab.errors import CheckpointError, OptionError
from trimtab.params import CERTAIN_DRAFT, GUIDE_DRAFT, LOOKUP, NO_DRAFT

if TYPE_CHECKING:
    from trimtab.core import SamplingParams, Tokenizer
    from trimtab.decoding.engine import GenerationEngine
    from trimtab.engines.maker import EngineMaker, Guides, GuideSource
    from trimtab.storage.model_source import ModelSource


def add_engine_options(parser: argparse.ArgumentParser) -> None:
    """--engine and --engine-option."""
    group = parser.add_argument_group("engine")
    group.add_argument("--engine", choices=tuple(ENGINES), default=BUILTIN, help="what decodes (%(default)s)")
    group.add_argument(
        "--engine-option",
        dest="engine_options",
        action="append",
        default=[],
        type=_setting,
        metavar="KEY=VALUE",
        help="an option of the engine, such as tensor_parallel_size=2 or max_model_len=4096 of vllm's; repeatable",
    )


@dataclass(frozen=True, slots=True)
class EngineChoice:
    """What --engine and --engine-option say, checked."""

    name: str
    options: Mapping[str, object]

    @property
    def maker(self) -> type[EngineMaker]:
        """The class that makes engines of this kind."""
        return maker_of(self.name)

    @property
    def is_builtin(self) -> bool:
        return self.name == BUILTIN

    def open(self, source: ModelSource, *, min_rows: int = 1) -> EngineMaker:
        """A maker of such engines for this model; nothing is loaded yet. They run `min_rows` requests at a time at
        least, or as many as engines run where nobody says."""
        from trimtab.engines.maker import DEFAULT_ROWS

        return self.maker.open(source, self.options, max_rows=max(DEFAULT_ROWS, min_rows))


def engine_choice(args: argparse.Namespace) -> EngineChoice:
    """What the flags ask for. Raises OptionError or MissingExtraError for what can be said before anything is read."""
    choice = EngineChoice(args.engine, dict(args.engine_options))
    from trimtab.engines import maker

    choice.maker.check_options(choice.options, verbose=args.verbose)
    wanted = (("preference", maker.PREFERENCES), ("rule", maker.RULES), ("device", maker.DEVICE))
    for name, feature in (*wanted, ("quantize", maker.QUANTIZE), ("draft_quantize", maker.DRAFTS)):
        if getattr(args, f"{name}s", None) or getattr(args, name, None):
            choice.maker.check_features([feature], what=f"--{name.replace('_', '-')}")
    if not choice.is_builtin and (getattr(args, "backend", None) or getattr(args, "llama_options", None)):
        raise OptionError(
            "--backend and --llama say who runs a GGUF file in this process; leave them out with --engine "
            f"{choice.name}."
        )
    if getattr(args, "model", None) is not None:  # a comparison names it in its recipe
        given = {name: getattr(args, f"{name.replace('-', '_')}s", None) for name in ("guide", "form", "guide-base")}
        check_packed(choice, args.model, [name for name, value in given.items() if value])
    return choice


def check_packed(choice: EngineChoice, model: str, given: Sequence[str]) -> None:
    """Raise OptionError for a directory that is packed with its guides where guides, or what is theirs, are given."""
    if given and choice.maker.packed_guides(model) is not None:
        raise OptionError(f"{model} is packed with its guides; leave --{given[0]} out, or name the base itself.")


def guide_names(choice: EngineChoice, model: str, guides: Iterable[str]) -> list[str]:
    """The guides that a row of prompts may weigh: those given, or those that the model is packed with."""
    packed = choice.maker.packed_guides(model)
    return list(guides if packed is None else packed)


@dataclass(frozen=True, slots=True)
class GuideFlags:
    """What flags, and a server's file, say of guides: each guide, and what is said of one by its name."""

    specs: Sequence[GuideSpec]
    preferences: Sequence[tuple[str, tuple[float, ...]]] = ()
    forms: Sequence[tuple[str, str]] = ()
    bases: Sequence[tuple[str, str]] = ()
    rule: str | None = None

    @classmethod
    def of(cls, args: argparse.Namespace) -> GuideFlags:
        return cls(args.guides, args.preferences, args.forms, args.guide_bases, args.rule)

    def sources(self, params: SamplingParams | None = None) -> dict[str, GuideSource]:
        """The guides by name, in the order of the flags.

        Raises CheckpointError for one that is not there, OptionError for flags that do not fit it and for a weight
        that means nothing in its form (`forms.check_negative`, where `params` are given): before the model is loaded.
        """
        options.check_guide_names(self.specs)
        names = [spec.name for spec in self.specs]
        preferences = options.named_preferences(self.preferences, names)
        forms = guide_options.named(self.forms, names, "--form")
        bases = guide_options.named(self.bases, names, "--guide-base")
        from trimtab.engines.maker import GuideSource
        from trimtab.mixing.forms import check_negative

        kinds = {spec.name: _kind(spec.path) for spec in self.specs}
        if self.rule is not None and "agent" not in [kind for kind, _ in kinds.values()]:
            raise OptionError(f"--rule {self.rule} is about accept-reject agents, and none of the guides is one.")
        sources = {
            spec.name: GuideSource(
                spec.path,
                weight=spec.weight,
                form=forms.get(spec.name),
                guide_base=bases.get(spec.name),
                preference=preferences.get(spec.name),
                rule=self.rule if kinds[spec.name][0] == "agent" else None,
            )
            for spec in self.specs
        }
        if params is not None:
            weights = {name: source.weight for name, source in sources.items() if source.weight is not None}
            written = {name: source.form or kinds[name][1] for name, source in sources.items()}
            check_negative(weights, written, temperature=params.temperature, plausibility=params.plausibility)
        return sources


def _kind(path: str) -> tuple[str, str | None]:
    """The kind of a guide, and the form that its card gives it (None: it has none)."""
    from trimtab.storage.cards import GUIDE_KINDS
    from trimtab.storage.directories import locate_guide

    card = locate_guide(path).card
    return card.kind, card.form() if GUIDE_KINDS[card.kind].forms else None


def load(
    choice: EngineChoice,
    source: ModelSource,
    guides: Guides,
    *,
    max_rows: int,
    prefill_chunk: int | None = None,
    drafts: Collection[str] = (),
    draft_quantize: str | None = None,
) -> tuple[Tokenizer, GenerationEngine]:
    """An engine on this model with these guides, ready to answer text, saying on standard error what is loaded.

    `drafts` are what requests will say of drafts; what is neither a kind of them nor a guide is a model's name. With
    `draft_quantize` copies of the guides with such weights draft in the guides' stead. Raises OptionError where nobody
    asks for a guide's drafts.
    """
    drafters = draft_models(drafts, guides)
    check_copies(draft_quantize, drafts, guides)
    where = "" if choice.is_builtin else f" in {choice.name}"
    options.say(f"loading {source.name}{where}")
    maker = choice.open(source)
    tokenizer = tokenizer_of(maker, source.name)
    engine = maker.make(
        guides, max_rows=max_rows, prefill_chunk=prefill_chunk, drafters=drafters, copies=draft_quantize
    )
    from trimtab.engines.maker import GuideSource
    from trimtab.guides.prompt import BoundPromptGuide
    from trimtab.mixing.forms import forms_of

    forms = forms_of(engine.guides)
    for name, guide in engine.guides.items():
        given = guides.get(name)
        if given is not None and not isinstance(given, GuideSource):
            continue  # nothing was loaded for it
        origin = source.name if given is None else given.path
        if isinstance(guide, BoundPromptGuide):
            origin = guide.reading
        form = f", as a {forms[name]}" if forms[name] else ""
        how = "" if given is None else _calibrated(given, guide.weight, forms[name])
        options.say(f"loaded guide {name} from {origin}, weight {guide.weight:g}{form}{how}")
    return tokenizer, engine


def _calibrated(source: GuideSource, weight: float, form: str | None) -> str:
    """What to add where a guide runs at the strength and in the form that its card was calibrated to."""
    from trimtab.storage.directories import locate_guide

    found = locate_guide(source.path).card.calibration
    if found is None or found.strength != weight or found.form != form:
        return ""
    return (
        f", as it was calibrated: {found.gold or found.reward} peaks there on {found.num_prompts} prompts, interval "
        f"{found.strength_low:g} to {found.strength_high:g}"
    )


def load_for_one(
    args: argparse.Namespace, choice: EngineChoice, guides: Mapping[str, GuideSource], params: SamplingParams
) -> tuple[Tokenizer, GenerationEngine]:
    """`load` what the flags of a command ask for that answers one request at a time."""
    return load(
        choice,
        options.model_source(args),
        guides,
        max_rows=1,
        drafts=[params.draft],
        draft_quantize=args.draft_quantize,
    )


def check_copies(draft_quantize: str | None, drafts: Collection[str], guides: Collection[str]) -> None:
    """Raise OptionError for --draft-quantize where no guide drafts."""
    if draft_quantize is not None and not any(draft == GUIDE_DRAFT or draft in guides for draft in drafts):
        raise OptionError("--draft-quantize is about drafts that a guide makes; give --draft guide with it.")


DRAFT_KINDS = (NO_DRAFT, LOOKUP, CERTAIN_DRAFT, GUIDE_DRAFT)


def draft_models(drafts: Collection[str], guides: Collection[str]) -> list[str]:
    """The models among what drafts. Raises CheckpointError for one that is not there, before anything is loaded."""
    names = [draft for draft in drafts if draft not in DRAFT_KINDS and draft not in guides]
    for name in names:
        try:
            _look_for(name)
        except CheckpointError as error:
            others = "".join(f", {guide}" for guide in guides)
            raise CheckpointError(
                f"{name!r} does not draft: it is not one of {', '.join(DRAFT_KINDS)}{others}, and as a model it is not "
                f"there either. {error}"
            ) from error
    return names


def _look_for(name: str) -> None:
    """Raise CheckpointError for a model that is not there."""
    from trimtab.models.llama.header import read_header
    from trimtab.storage.directories import resolve_model
    from trimtab.storage.gguf_files import gguf_file

    path = gguf_file(name)
    if path is None:
        resolve_model(name)
    else:
        read_header(path)


def tokenizer_of(maker: EngineMaker, name: str) -> Tokenizer:
    """The base's tokenizer. Raises CheckpointError where it has none."""
    tokenizer = maker.facts.tokenizer
    if tokenizer is None:
        raise CheckpointError(f"{name} has no tokenizer, so it cannot read text. Put its tokenizer's files there.")
    return tokenizer


def _setting(text: str) -> tuple[str, object]:
    """`KEY=VALUE` -> the key with underscores, and the value: JSON where it is some, else text."""
    key, equals, value = text.partition("=")
    if not (key and equals):
        raise argparse.ArgumentTypeError(f"{text!r} is not an option; give KEY=VALUE")
    from trimtab.engines.maker import engine_option

    return engine_option(key, value)
