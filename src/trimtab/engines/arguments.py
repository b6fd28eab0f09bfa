"""What model arguments of evaluation harnesses say, which is text: ";" stands between several guides or options."""

from __future__ import annotations

from collections.abc import Sequence

from trimtab.engines.maker import engine_option
from trimtab.errors import OptionError


def engine_options(given: str) -> dict[str, object]:
    """`KEY:VALUE;KEY:VALUE` -> values, JSON where they are some, else texts."""
    options: dict[str, object] = {}
    for part in filter(None, given.split(";")):
        key, colon, value = part.partition(":")
        if not (key and colon):
            raise OptionError(f"{part!r} of engine_options is not an option; give KEY:VALUE, ';' between several.")
        options |= [engine_option(key, value)]
    return options


def guide_names(given: str) -> list[str]:
    """The guides that `guide` names."""
    names = [name for name in given.split(";") if name]
    if len(set(names)) < len(names):
        raise OptionError(f"guide={given} names a guide twice; give each once, with its weight.")
    return names


def parts(what: str, given: str, names: Sequence[str]) -> list[str | None]:
    """What `given` says of each guide, ';' between them; None where it says nothing."""
    if not given:
        return [None] * len(names)
    parts = given.split(";")
    if len(parts) != len(names):
        raise OptionError(
            f"{what}={given} is not accepted with {len(names)} guides; give one for each, ';' between them (nothing "
            "between two: what the guide's card says)."
        )
    return [part or None for part in parts]


def weights(given: float | str | None, names: Sequence[str]) -> dict[str, float]:
    """Guide -> weight; empty where each runs at its own."""
    if given is None:
        return {}
    try:
        numbers = [float(part) for part in str(given).split(";")]
    except ValueError:
        numbers = []
    if len(numbers) != len(names):
        raise OptionError(
            f"weight={given} is not accepted with {len(names)} guides; give one number for each, ';' between them."
        )
    return dict(zip(names, numbers, strict=True))
