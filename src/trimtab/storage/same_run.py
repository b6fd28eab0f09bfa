"""Whether what is to be continued is what is asked for now: the one comparison of two descriptions of a run.

A description is sections of facts, as JSON holds them. One may come from a file and the other from memory, so both are
compared as JSON gives them back (a tuple is a list).
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from itertools import takewhile

from trimtab.errors import OptionError

_DIGEST = re.compile("[0-9a-f]{64}")
_NOTHING: Mapping[str, object] = {}


@dataclass(frozen=True, slots=True)
class Difference:
    """A fact that differs; None where one of the two does not have it."""

    key: tuple[str, ...]
    """Its section, the section within that, ..., and its name."""
    before: object
    now: object

    def __str__(self) -> str:
        before, now = told_apart(_shown(self.before), _shown(self.now), most=60)
        return f"{'.'.join(self.key)} was {before}, is {now}"


def told_apart(one: str, other: str, *, most: int) -> tuple[str, str]:
    """Two texts that differ, each cut to at most `most` characters around the place from which they do."""
    same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))
    return _short(one, same, most), _short(other, same, most)


def check_same(
    before: Mapping[str, object],
    now: Mapping[str, object],
    *,
    problem: str,
    way_out: str,
    partial: Collection[str] = (),
) -> None:
    """Raise OptionError unless two descriptions are of one run.

    The message is `problem`, what differs with both values, and `way_out`. `partial` is as in `differences`.
    """
    found = sorted(differences(before, now, partial=partial), key=lambda one: one.key)
    changed = "; ".join(map(str, found))
    if changed:
        raise OptionError(f"{problem}: {changed}. {way_out}")


def differences(
    before: Mapping[str, object],
    now: Mapping[str, object],
    *,
    depth: int | None = None,
    partial: Collection[str] = (),
) -> list[Difference]:
    """Where two descriptions differ, in the order of `now`, then of `before`. A section that is missing is empty.

    Sections are compared fact by fact down to `depth` names (left out: all the way), and what lies below is one value.
    Of a section named in `partial`, only what both descriptions have is compared.
    """
    return list(_differences(before, now, (), depth, partial))


def _differences(
    before: object, now: object, key: tuple[str, ...], depth: int | None, partial: Collection[str]
) -> Iterator[Difference]:
    sections = _as_sections(before, now, at_top=len(key) == 1) if depth is None or len(key) < depth else None
    if sections is None:
        if _as_json(before) != _as_json(now):
            yield Difference(key, before, now)
        return
    earlier, later = sections
    names = [*later, *(name for name in earlier if name not in later)]
    if ".".join(key) in partial:
        names = [name for name in names if name in earlier and name in later]
    for name in names:
        yield from _differences(earlier.get(name), later.get(name), (*key, str(name)), depth, partial)


def _as_sections(
    before: object, now: object, *, at_top: bool
) -> tuple[Mapping[str, object], Mapping[str, object]] | None:
    """Both as sections; None where they are values."""
    if at_top:
        before = _NOTHING if before is None and isinstance(now, Mapping) else before
        now = _NOTHING if now is None and isinstance(before, Mapping) else now
    return (before, now) if isinstance(before, Mapping) and isinstance(now, Mapping) else None


def _as_json(value: object) -> object:
    return json.loads(json.dumps(value))


def _shown(value: object) -> str:
    """A value for a message; of a digest only its beginning."""
    if isinstance(value, str) and _DIGEST.fullmatch(value):
        return f"{value[:12]}…"
    return json.dumps(value, ensure_ascii=False)


def _short(text: str, same: int, most: int) -> str:
    """At most `most` characters of a text; where its first `same` ones are another's too, those around what differs."""
    if len(text) <= most:
        return text
    start = 0 if same < most - 20 else same - 20
    end = start + most - 6
    return f"{'...' if start else ''}{text[start:end]}{'...' if end < len(text) else ''}"
