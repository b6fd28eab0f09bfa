"""`--method`: answers by any method of `trimtab compare`, where guides in one mix are not enough.

The guide names what the method reads (a reward model for args, transfer-q and best-of-n, policies for soup, ...) and
its weight is the method's strength; `--option KEY=VALUE` sets the rest.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trimtab.cli import guide_options, options
from trimtab.cli.answering.requests import Request
from trimtab.errors import OptionError

if TYPE_CHECKING:
    from trimtab.cli.engines import EngineChoice
    from trimtab.core import Prompt, SamplingParams
    from trimtab.engines.maker import EngineMaker
    from trimtab.methods.method import Strength


@dataclass(frozen=True, slots=True)
class MethodChoice:
    """A method with its options and its strength, checked."""

    name: str
    options: Mapping[str, Any]
    strength: Strength


def add_method_options(parser: argparse.ArgumentParser) -> None:
    """--method, --option and --strength."""
    group = parser.add_argument_group("method")
    group.add_argument(
        "--method",
        metavar="NAME",
        help="answer by this method of docs/guides/methods.md; --guide names what it reads, and its weight is "
        "the strength (guides in one mix)",
    )
    group.add_argument(
        "--option",
        dest="method_options",
        action="append",
        default=[],
        type=_pair,
        metavar="KEY=VALUE",
        help="with --method: an option of it, such as top_k=10; repeat for several",
    )
    group.add_argument(
        "--strength",
        type=options.list_of(options.any_number),
        metavar="X,...",
        help="with --method: its strength, where no guide carries it as a weight",
    )


def method_choice(args: argparse.Namespace, engine: EngineChoice) -> MethodChoice | None:
    """What --method asks for, or None. Raises OptionError with every problem, before anything is loaded."""
    if args.method is None:
        if args.method_options or args.strength:
            raise OptionError("--option and --strength belong to a method; give --method NAME with them.")
        return None
    from trimtab.methods.catalogue import check_method
    from trimtab.methods.checking import check_weights, source_problem
    from trimtab.methods.table import METHODS

    method = METHODS.get(args.method)
    for flag, option in (("--form", "form"), ("--guide-base", "guide_base")):
        if getattr(args, f"{option}s") and method is not None and option not in method.options:
            forms = "genarm weighs guides as products, policy as shifts, guides as their cards say"
            why = forms if option == "form" else "it runs no guide"
            raise OptionError(f"{flag} does not go with --method {args.method}: {why}. Leave it out.")
    if method is not None and method.reads is None and args.guides:
        raise OptionError(f"{args.method} reads no guide; leave --guide out.")
    chosen = {} if method is None or method.reads is None else _read(args, method.reads)
    names = [name for name, _ in args.method_options]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise OptionError(f"--option {twice} is given twice; give it once.")
    chosen = {**chosen, **_about_guides(args), **dict(args.method_options)}
    strength = _strength(args)
    if strength is None:
        strength = _kept(args)
    strengths = [] if strength is None else [strength]
    if any(args.guide_plausibility.values()) and args.method not in ("genarm", "guides"):
        raise OptionError(
            f"--guide-plausibility names guides of --guide, which --method {args.method} runs in its own way; leave it "
            "out. A mask of a tuned policy's own is --method aad with --option alpha=A."
        )
    if args.gates and args.method not in ("genarm", "guides"):
        raise OptionError(
            f"--gates names guides of --guide, which --method {args.method} runs in its own way; leave it out. A guide "
            "behind a gate is --method gated with --option gate=RULE:X."
        )
    how = {"temperature": args.temperature, "plausibility": args.plausibility}
    problems = check_method(args.method, chosen, strengths)
    if not problems:
        assert method is not None
        engine.maker.check_features(method.needs, what=f"--method {args.method}")
        if problem := source_problem(args.method, chosen, strengths):
            raise OptionError(problem)
        problems = check_weights(args.method, chosen, strengths, **how)
    if strength is None and method is not None:
        if method.default_strengths != (0.0,):
            problems.append(f"{args.method} needs a strength ({method.dial}): --guide NAME=PATH:X, or --strength X.")
        strength = 0.0
    if problems:
        raise OptionError(" ".join(f"{problem[0].upper()}{problem[1:]}" for problem in problems))
    assert strength is not None
    return MethodChoice(args.method, chosen, strength)


def check_unweighted(requests: Sequence[Request]) -> None:
    """Raise OptionError for a row of the prompts with weights: a method has one strength for all."""
    if weighted := next((request for request in requests if request.weights), None):
        raise OptionError(
            f"A row of the prompts has weights ({dict(weighted.weights)}), and --method has one strength for all. "
            "Leave them out, or --method."
        )


def answered(
    engines: EngineMaker,
    choice: MethodChoice,
    params: SamplingParams,
    parts: Iterable[tuple[Sequence[Request], Sequence[Prompt]]],
) -> Iterator[Request]:
    """Every request, in order, with its answer; `parts` are requests with their prompts, a batch each."""
    from trimtab.methods.catalogue import build_policy

    policy = build_policy(engines, choice.name, choice.options)
    for part, prompts in parts:
        answers = policy.answer(prompts, choice.strength, params, [request.seed for request in part])
        for request, answer in zip(part, answers, strict=True):
            request.take_answer(answer, {choice.name: choice.strength})
            yield request


def _read(args: argparse.Namespace, reads: str) -> dict[str, Any]:
    """The option that the guides fill."""
    paths = {spec.name: spec.path for spec in args.guides}
    if not paths:
        return {}
    if reads == "guides":
        return {reads: paths}
    if reads == "paths":
        return {reads: list(paths.values())}
    if len(paths) > 1:
        raise OptionError(f"--method {args.method} reads one guide ({reads}), and {len(paths)} are given.")
    return {reads: next(iter(paths.values()))}


def _about_guides(args: argparse.Namespace) -> dict[str, Any]:
    """The options that --form and --guide-base are; a method that has no such option refuses it."""
    forms, bases = guide_options.read(args)
    options_given: dict[str, Any] = {}
    if forms:
        options_given["form"] = next(iter(forms.values())) if len(forms) == 1 else forms
    if bases:
        options_given["guide_base"] = next(iter(bases.values())) if len(args.guides) == 1 else bases
    return options_given


def _strength(args: argparse.Namespace) -> Strength | None:
    given = args.strength
    weights = [spec.weight for spec in args.guides]
    if given is None:
        if not weights or any(weight is None for weight in weights):
            return None
        given = weights
    elif any(weight is not None for weight in weights):
        raise OptionError("The strength is given twice, as a guide's weight and with --strength; give one of them.")
    return float(given[0]) if len(given) == 1 else tuple(map(float, given))


def _kept(args: argparse.Namespace) -> Strength | None:
    """The strength that the card of the one guide keeps for this method; None: none is known."""
    if len(args.guides) != 1:
        return None
    from trimtab.methods.ways import kept_strength
    from trimtab.storage.directories import locate_guide

    spec = args.guides[0]
    strength = kept_strength(locate_guide(spec.path).card, args.method)
    if strength is not None:
        options.say(f"{spec.name} runs at {strength:g}, the strength that its card keeps")
    return strength


def _pair(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not (key and equals):
        raise argparse.ArgumentTypeError(f"{text!r} is not an option; give KEY=VALUE")
    for kind in (int, float):
        try:
            return key, kind(value)
        except ValueError:
            continue
    return key, value
