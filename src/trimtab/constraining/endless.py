"""Schemas and grammars that no finite text satisfies, because something in them needs itself without end.

The compiler takes them, and an answer would never come to its end. What is not understood here passes: the compiler
has had its say before.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

_SCALARS = {"null", "boolean", "number", "integer", "string"}


def endless_schema(schema: Any) -> str | None:
    """Where a JSON schema asks for a value that never ends, as a JSON pointer such as `#/properties/child`; else None.

    Every place that can be reached from the schema is looked at, optional ones too.
    """
    nodes = dict(_reached(schema))
    finite: set[str] = set()
    while True:
        more = {at for at, node in nodes.items() if at not in finite and _ends(schema, at, node, finite.__contains__)}
        if not more:
            return next((at for at in nodes if at not in finite), None)
        finite |= more


def _reached(schema: Any) -> Iterator[tuple[str, Any]]:
    """(pointer, sub-schema) of each that can be reached, once."""
    left, seen = ["#"], {"#"}
    while left:
        at = left.pop(0)
        node = _at(schema, at)
        yield at, node
        for other in _children(schema, at, node):
            if other not in seen:
                seen.add(other)
                left.append(other)


def _children(schema: Any, at: str, node: Any) -> list[str]:
    if not isinstance(node, Mapping):
        return []
    found = [f"{at}/{key}" for key in ("items", "additionalProperties") if isinstance(node.get(key), Mapping | bool)]
    for key in ("properties", "patternProperties"):
        found += [f"{at}/{key}/{_escaped(name)}" for name in node[key]] if isinstance(node.get(key), Mapping) else []
    for key in ("anyOf", "oneOf", "allOf", "prefixItems"):
        found += [f"{at}/{key}/{index}" for index in range(len(node[key]))] if isinstance(node.get(key), list) else []
    target = _target(schema, node)
    return found if target is None else [*found, target]


def _ends(schema: Any, at: str, node: Any, is_finite: Callable[[str], bool]) -> bool:
    """Whether some value of a sub-schema is finite, as far as is known of those that it refers to."""
    if not isinstance(node, Mapping) or "const" in node or "enum" in node:
        return True
    target = _target(schema, node)
    if target is not None and not is_finite(target):
        return False
    if not all(is_finite(f"{at}/allOf/{index}") for index in range(_count(node, "allOf"))):
        return False
    for key in ("anyOf", "oneOf"):
        if _count(node, key) and not any(is_finite(f"{at}/{key}/{index}") for index in range(_count(node, key))):
            return False
    kinds = node.get("type")
    kinds = {kinds} if isinstance(kinds, str) else set(kinds) if isinstance(kinds, list) else _SCALARS
    if kinds & _SCALARS or not kinds <= {"array", "object"}:
        return True
    return ("array" in kinds and _array_ends(at, node, is_finite)) or (
        "object" in kinds and _object_ends(at, node, is_finite)
    )


def _array_ends(at: str, node: Mapping[str, Any], is_finite: Callable[[str], bool]) -> bool:
    least, first = node.get("minItems", 0), _count(node, "prefixItems")
    if not isinstance(least, int) or not all(
        is_finite(f"{at}/prefixItems/{index}") for index in range(min(first, least))
    ):
        return not isinstance(least, int)
    return least <= first or not isinstance(node.get("items"), Mapping) or is_finite(f"{at}/items")


def _object_ends(at: str, node: Mapping[str, Any], is_finite: Callable[[str], bool]) -> bool:
    required = node.get("required")
    properties = node.get("properties")
    properties = properties if isinstance(properties, Mapping) else {}
    return all(
        is_finite(f"{at}/properties/{_escaped(name)}")
        for name in (required if isinstance(required, list) else [])
        if isinstance(name, str) and name in properties
    )


def _count(node: Mapping[str, Any], key: str) -> int:
    return len(node[key]) if isinstance(node.get(key), list) else 0


def _target(schema: Any, node: Mapping[str, Any]) -> str | None:
    """The pointer that a reference names, where it is one into this schema."""
    ref = node.get("$ref")
    if not isinstance(ref, str) or not (ref == "#" or ref.startswith("#/")):
        return None
    try:
        _at(schema, ref)
    except (KeyError, IndexError, ValueError, TypeError):
        return None
    return ref


def _at(schema: Any, pointer: str) -> Any:
    node = schema
    for part in pointer.split("/")[1:]:
        name = part.replace("~1", "/").replace("~0", "~")
        node = node[int(name)] if isinstance(node, list) else node[name]
    return node


def _escaped(name: str) -> str:
    return name.replace("~", "~0").replace("/", "~1")


_WORD = re.compile(
    r"""(?P<space>\s+|//[^\n]*|\#[^\n]*)
    |(?P<name>[?!]?[a-z_][A-Za-z0-9_-]*)
    |(?P<other>"(?:\\.|[^"\\\n])*"i?|/(?:\\.|[^/\\\n])+/[a-z]*|<[^<>\s]*>|@?[A-Z][A-Za-z0-9_]*|\.\.|->)
    |(?P<directive>%[a-z_]+)
    |(?P<times>~\s*\d+(?:\s*\.\.\s*\d+)?|\{\s*\d*\s*,?\s*\d*\s*\}|[?*+])
    |(?P<mark>[:|()\[\]{},;&=.~-]|\d+)""",
    re.VERBOSE,
)
_Word = tuple[str, str]


def endless_rule(grammar: str) -> str | None:
    """The name of a rule of a Lark grammar that no finite text satisfies; None: there is none that is seen."""
    rules = rules_of(grammar)
    if rules is None:
        return None
    finite: set[str] = set()
    while True:
        more = {name for name, body in rules.items() if name not in finite and _Body(body, rules, finite).ends()}
        if not more:
            return next((name for name in rules if name not in finite), None)
        finite |= more


def rules_of(grammar: str) -> dict[str, list[_Word]] | None:
    """Name -> what stands behind its colon, of each rule (no terminals); None where the text is not understood."""
    words = _words(grammar)
    if words is None:
        return None
    starts = []
    for index, (kind, text) in enumerate(words):
        if text == ":" and kind == "mark":
            starts.append((_head(words, index), index))
    rules: dict[str, list[_Word]] = {}
    for number, (head, colon) in enumerate(starts):
        end = starts[number + 1][0] if number + 1 < len(starts) else len(words)
        kind, name = words[head]
        if kind == "name":
            rules[name.lstrip("?!")] = words[colon + 1 : end]
    return rules


def _head(words: list[_Word], colon: int) -> int:
    """Where the name before a colon stands: before attributes in brackets and a priority."""
    at = colon - 1
    if at >= 0 and words[at][1] == "]":
        while at >= 0 and words[at][1] != "[":
            at -= 1
        at -= 1
    if at >= 1 and words[at][1].isdigit() and words[at - 1][1] == ".":
        at -= 2
    return max(at, 0)


def _words(grammar: str) -> list[_Word] | None:
    found: list[_Word] = []
    at = 0
    while at < len(grammar):
        match = _WORD.match(grammar, at)
        if match is None:
            return None
        at, kind, text = match.end(), str(match.lastgroup), match[0]
        if kind == "directive":
            at = _after_value(grammar, at)
            if text not in ("%json", "%regex", "%lark"):  # it stands by itself
                at = at if grammar[match.end() : at].strip() else (grammar.find("\n", at) + 1 or len(grammar))
                continue
        if kind != "space":
            found.append((kind, text))
    return found


def _after_value(grammar: str, at: int) -> int:
    """Behind the JSON value that stands there; `at` itself where there is none."""
    start = at + len(grammar[at:]) - len(grammar[at:].lstrip(" \t\n"))
    try:
        return start + json.JSONDecoder().raw_decode(grammar[start:])[1]
    except (ValueError, RecursionError):
        return at


class _Body:
    """What stands behind a rule's colon, read from left to right."""

    def __init__(self, words: list[_Word], rules: Mapping[str, object], finite: set[str]) -> None:
        self._words = words
        self._rules = rules
        self._finite = finite
        self._at = 0

    def ends(self) -> bool:
        """Whether an alternative has a finite text, going by the rules that are known to have one."""
        return self._alternatives()

    def _alternatives(self) -> bool:
        found = self._sequence()
        while self._next() == "|":
            self._at += 1
            found = self._sequence() or found
        return found

    def _sequence(self) -> bool:
        ends = True
        while self._next() not in (None, "|", ")", "]"):
            ends = self._item() and ends
        return ends

    def _item(self) -> bool:
        kind, text = self._words[self._at]
        self._at += 1
        ends = True
        if text in ("(", "["):
            ends = self._alternatives() or text == "["
            self._at += 1
        elif kind == "name" and text in self._rules:
            ends = text in self._finite
        if self._next_kind() == "times":
            ends = ends or self._words[self._at][1][0] in "?*" or _least(self._words[self._at][1]) == 0
            self._at += 1
        return ends

    def _next(self) -> str | None:
        return (
            self._words[self._at][1]
            if self._at < len(self._words) and self._words[self._at][0] == "mark"
            else (None if self._at >= len(self._words) else "")
        )

    def _next_kind(self) -> str | None:
        return self._words[self._at][0] if self._at < len(self._words) else None


def _least(times: str) -> int | None:
    """The fewest times that `{m,n}` or `~m..n` asks for; None for another sign."""
    number = re.match(r"[{~]\s*(\d*)", times)
    return None if number is None else int(number[1] or 0)
