"""Flags about guides that are named before: which form one has, and which base of its own it runs on."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence

from trimtab.cli.flags import argument
from trimtab.errors import OptionError, unknown_name
from trimtab.mixing.forms import FORMS

_BASE = "a model: NAME=MODEL, for example helpful=guides/their-base"
_FORM = f"a form: NAME={'|'.join(FORMS)}, for example helpful={FORMS[-1]}"


def parse_named(text: str, what: str) -> tuple[str, str]:
    """`NAME=VALUE` -> (name, value). `what` says in an error what is accepted. Raises OptionError."""
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise OptionError(f"{text!r} does not name a guide and {what}.")
    return name, value


def parse_form(text: str) -> tuple[str, str]:
    """`NAME=product|shift` -> (name, form). Raises OptionError."""
    name, form = parse_named(text, _FORM)
    if form not in FORMS:
        raise unknown_name("form of a guide", form, FORMS)
    return name, form


def add_form_options(group: argparse._ActionsContainer) -> None:
    """--form and --guide-base, each of them repeatable; `read` gives what they say."""
    group.add_argument(
        "--form",
        dest="forms",
        action="append",
        default=[],
        type=argument(parse_form),
        metavar=f"NAME={'|'.join(FORMS)}",
        help="how the guide NAME scores: product, by its own log-probability (base · guide^weight), or shift, by what "
        "training changed, which takes negative weights too (what its card says; product without a card); repeat for "
        "several guides",
    )
    group.add_argument(
        "--guide-base",
        dest="guide_bases",
        action="append",
        default=[],
        type=argument(lambda text: parse_named(text, _BASE)),
        metavar="NAME=MODEL",
        help="the model that the guide NAME was trained on and runs on, where that is another than --model: a "
        "directory, a hub id or a .gguf file of the same vocabulary (what its card says); repeat for several guides",
    )


def named(pairs: Sequence[tuple[str, str]], guides: Iterable[str], flag: str) -> dict[str, str]:
    """Guide -> value, of a flag that was given several times. Raises OptionError for an unknown guide, or one twice."""
    known = list(guides)
    found: dict[str, str] = {}
    for name, value in pairs:
        if name not in known:
            raise OptionError(f"{flag} {name}={value}: {unknown_name('guide', name, known)}")
        if name in found:
            raise OptionError(f"{flag} names {name!r} twice. Give each guide once.")
        found[name] = value
    return found


def read(args: argparse.Namespace) -> tuple[dict[str, str], dict[str, str]]:
    """Guide -> form, and guide -> base, as --form and --guide-base say; empty for a command without these flags.

    Raises OptionError for a guide that --guide does not name, or one that is named twice.
    """
    guides = [spec.name for spec in args.guides]
    forms, bases = getattr(args, "forms", ()), getattr(args, "guide_bases", ())
    return named(forms, guides, "--form"), named(bases, guides, "--guide-base")
