"""`trimtab check`: whether a guide is what its card says, and with --model whether it keeps its laws beside that model.

Exit code 0 where nothing is wrong, 1 where something does not hold, 2 where the guide, its card or the model cannot be
read. What cannot be told (a card without digests) is said and is no fault.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from trimtab.cli import options
from trimtab.cli.exits import Exit
from trimtab.cli.results import print_json
from trimtab.errors import CompatibilityError

if TYPE_CHECKING:
    from trimtab.core import Guide, LanguageModel
    from trimtab.storage.checking import CheckedGuide, Finding

_STEPS, _CANDIDATES = 1, 3
_PROMPTS = ("Say in a few words what a trim tab is.", "Hello")
"""What the laws are tried on: a smoke test, not the suite."""
_TOLERANCE = 0.01
"""Nats. Rounding of a deep model in another batch comes to ten-thousandths; a guide that mistakes a row is off by far
more."""
_MARKS = {True: "holds", False: "DOES NOT HOLD", None: "not known"}


def register(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "check", help="whether a guide is what its card says", description=__doc__, allow_abbrev=False
    )
    parser.add_argument(
        "guide", metavar="GUIDE", help='a directory, a hub id, builtin:NAME or prompt:"SENTENCE"; no code of it runs'
    )
    parser.add_argument("--model", metavar="NAME", help="load it beside this model and try its laws on a few tokens")
    options.add_threads_option(parser)
    parser.add_argument("--json", action="store_true", help="what was found as JSON on standard output")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> Exit:
    """Check a guide; 1 where something does not hold."""
    from trimtab.storage.checking import check_files

    checked = check_files(args.guide)
    findings = list(checked.findings)
    beside: dict[str, Any] | None = None
    if args.model is not None and any(one.holds is False for one in findings):
        options.say("the guide is not loaded, since something does not hold of its files")
    elif args.model is not None:
        beside = {"model": args.model, **_beside(args, findings)}
    if args.json:
        print_json(_report(args, checked, findings, beside))
    else:
        print("\n".join(_lines(checked, findings)))
    return Exit.of_check(holds=not any(one.holds is False for one in findings))


def _beside(args: argparse.Namespace, findings: list[Finding]) -> dict[str, Any]:
    """Load the model and the guide, try the laws, and add what was found; the model's digests."""
    from trimtab.storage.checking import Finding, digests_of
    from trimtab.storage.loading import load_model
    from trimtab.testing import LawViolation, check_guide

    options.say(f"loading {args.model}")
    model = load_model(args.model)
    try:
        guide = _loaded(args.guide, model)
        options.say("trying the laws")
        check_guide(guide, model, _PROMPTS, num_steps=_STEPS, num_candidates=_CANDIDATES, tolerance=_TOLERANCE)
    except CompatibilityError as error:
        findings.append(Finding("fit", False, str(error)))
    except LawViolation as error:
        findings.append(Finding("laws", False, " ".join(str(error).split())))
    else:
        findings.append(Finding("fit", True, f"it runs beside {args.model}"))
        said = f"each holds on {len(_PROMPTS)} short prompts beside {args.model}, within {_TOLERANCE} nats"
        findings.append(Finding("laws", True, said))
    return {"digests": digests_of(args.model)}


def _loaded(name: str, model: LanguageModel) -> Guide:
    """The guide; one that weighs several objectives weighs them alike."""
    from trimtab.storage.directories import locate_guide
    from trimtab.storage.loading import load_guide

    objectives = locate_guide(name).card.objectives
    preference = [1 / len(objectives)] * len(objectives) if objectives else None
    return load_guide(name, beside=model, preference=preference).bind(model)


def _report(
    args: argparse.Namespace, checked: CheckedGuide, findings: list[Finding], beside: Mapping[str, Any] | None
) -> dict[str, Any]:
    from dataclasses import asdict

    card = checked.card
    return {
        "guide": args.guide,
        "holds": not any(one.holds is False for one in findings),
        "kind": card.kind,
        "form": _form(checked),
        "weight": card.weight,
        "base": {"name": checked.base, **card.trained_on.base},
        "vocabulary": dict(card.trained_on.vocabulary),
        "files": [asdict(file) for file in checked.files],
        "size": sum(file.size for file in checked.files),
        "weights": asdict(checked.weights),
        "metrics": card.written.get("metrics") or {},
        "calibration": None if card.calibration is None else card.calibration.as_json(),
        "versions": card.written.get("versions") or {},
        "beside": beside,
        "findings": [asdict(one) for one in findings],
    }


def _form(checked: CheckedGuide) -> str | None:
    from trimtab.storage.cards import GUIDE_KINDS

    return checked.card.form() if GUIDE_KINDS[checked.card.kind].forms else None


def _lines(checked: CheckedGuide, findings: list[Finding]) -> Iterator[str]:
    """The report as a page of text."""
    from trimtab.storage.cards import GUIDE_KINDS

    card, form = checked.card, _form(checked)
    guessed = ", guessed from its files" if card.guessed else ""
    yield f"{checked.directory}: {GUIDE_KINDS[card.kind].what} ({card.kind}{guessed})"
    if form:
        yield f"form: {form}"
    yield from _base_lines(checked)
    for file in checked.files:
        yield f"file: {file.name}, {file.size:,} bytes, SHA-256 {file.sha256}"
    weights = checked.weights
    if weights.num_tensors:
        dtypes = ", ".join(weights.dtypes)
        yield f"weights: {weights.num_parameters:,} numbers in {weights.num_tensors} tensors ({dtypes})"
    yield from _measured(checked)
    yield from (f"{_MARKS[one.holds]}: {one.what}: {one.said}" for one in findings)


def _base_lines(checked: CheckedGuide) -> Iterator[str]:
    base, vocabulary = checked.card.trained_on.base, checked.card.trained_on.vocabulary
    if checked.base or base:
        sizes = f"{base.get('num_layers')} layers of {base.get('hidden_size')}" if base else "its card says no more"
        architecture = f"{base['architecture']}, " if "architecture" in base else ""
        norms = base.get("norms", [])
        known = f"; its weights are known by the means of {len(norms)} norms" if norms else ""
        yield f"base: {checked.base or 'without a name'} ({architecture}{sizes}){known}"
    if vocabulary:
        yield f"vocabulary: {vocabulary.get('size'):,} tokens, fingerprint {vocabulary.get('fingerprint')}"


def _measured(checked: CheckedGuide) -> Iterator[str]:
    from trimtab.storage.card_values import BASE_KL, KL, SHIFT_ACCURACY, accuracy_in, interval_in
    from trimtab.storage.checking import metrics_of

    metrics = metrics_of(checked.card)
    accuracy, shift = accuracy_in(metrics), accuracy_in(metrics, SHIFT_ACCURACY)
    if accuracy is not None:
        beside = f", {shift} less its base's share" if shift is not None else ""
        yield f"measured: accuracy {accuracy} on {metrics.get('num_eval_pairs')} held-out pairs{beside}"
    distilled, base = interval_in(metrics, KL), interval_in(metrics, BASE_KL)
    if distilled is not None and base is not None:
        held = f"{metrics.get('num_eval_prompts')} held-out prompts"
        yield f"measured: KL from the sentences' mix {distilled} nats an answer on {held}; the base's {base}"
    if checked.card.calibration is not None:
        found = checked.card.calibration
        model = found.model or "an unnamed model"
        yield f"calibrated: {found}, on {found.num_prompts} prompts to {model} ({found.date})"
    if accuracy is None and distilled is None and checked.card.calibration is None:
        yield "measured: nothing that the card says"
