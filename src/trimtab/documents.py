"""YAML and JSON that somebody wrote: read into plain values, or refused in a sentence that names the line.

The YAML is the part that people write: mappings, lists and plain values, anchors and merges. A few lines of the whole
language can fill a memory, never end, or mean something else than they say. So these are refused by name: values that
hold themselves or grow through aliases, nesting without end, keys that are not text or are given twice, tags, several
documents, numbers that are not finite or would be read in base 8. Keys, dates and times are texts, as written.
"""

from __future__ import annotations

import copy
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from trimtab.errors import DataError, MissingExtraError

MAX_BYTES = 1 << 16
"""Bytes of a file at most; one that a person writes has a few thousand."""
MAX_VALUES = 10_000
"""Values of a file at most, those that aliases repeat counted each time."""
MAX_DEPTH = 32
"""Mappings and lists inside one another at most."""
MAX_DIGITS = 40
"""Digits of a whole number at most."""
MAX_QUOTED = 60
"""Characters of a text that a sentence repeats."""

_TOO_DEEP = f"values are nested more than {MAX_DEPTH} deep"
_TEXT_TAGS = ("!", "tag:yaml.org,2002:str")


def read_yaml(path: Path, *, extra: str, what: str) -> Any:
    """The value that a YAML file holds, made of dict, list, str, int, float, bool and None.

    `what` says what the file is ("a recipe"), `extra` which extra of trimtab reads it. Raises DataError, with the line
    where there is one, and MissingExtraError where pyyaml is not installed.
    """
    try:
        import yaml  # type: ignore[import-untyped]
    except ImportError:
        raise MissingExtraError("pyyaml", extra, what[:1].upper() + what[1:]) from None
    text = _text(path, what)
    try:
        return _Builder(yaml, path, text).document()
    except yaml.YAMLError as error:
        problem, line = _said(error, text)
        raise DataError(f"not YAML: {problem}.", path=path, line=line) from None
    except DataError:
        raise
    except (ValueError, OverflowError):  # of the parser's own int() and chr()
        raise DataError(
            "not YAML: an escape in a text, or a %YAML line, stands for no such number.", path=path
        ) from None


def read_json(text: str | bytes) -> Any:
    """The value of a JSON text. NaN and infinities are read as `json` reads them: whoever wants a number checks it.

    Raises DataError, which is a ValueError, for what is no JSON, a key given twice, a number of too many digits, or
    more nesting than can be read; UnicodeDecodeError for bytes that are not text.
    """
    try:
        return json.loads(text, object_pairs_hook=_once, parse_int=_few_digits)
    except (DataError, UnicodeDecodeError):
        raise
    except RecursionError:
        raise DataError("the values are nested too deep") from None
    except ValueError as error:
        raise DataError(str(error)) from None


def quoted(text: str) -> str:
    """A text as a sentence repeats it: in quotation marks, the middle left out where it is long."""
    short = text if len(text) <= MAX_QUOTED else text[: MAX_QUOTED // 2] + " … " + text[-MAX_QUOTED // 4 :]
    return repr(short)


def _said(error: Any, text: str) -> tuple[str, int | None]:
    """What a parser complains of, and in which line."""
    mark, position = getattr(error, "problem_mark", None), getattr(error, "position", None)
    if mark is not None:
        return str(error.problem), mark.line + 1
    if isinstance(position, int):  # a character that YAML does not have
        return f"{quoted(text[position : position + 1])} is not a character of a text", text.count(
            "\n", 0, position
        ) + 1
    return " ".join(str(error).split()), None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise DataError(f"the key {quoted(next(name for name in names if names.count(name) > 1))} is given twice")
    return found


def _few_digits(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise DataError(f"{quoted(text)} is a number of more than {MAX_DIGITS} digits")
    return int(text)


def _text(path: Path, what: str) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise DataError(f"there is no such file; give {what} (.yaml).", path=path) from None
    except IsADirectoryError:
        raise DataError(f"this is a directory; give {what} (.yaml).", path=path) from None
    except (OSError, ValueError) as error:
        raise DataError(f"not readable ({getattr(error, 'strerror', None) or error}).", path=path) from None
    if len(data) > MAX_BYTES:
        raise DataError(f"this is larger than {MAX_BYTES >> 10} KiB, and no file that one writes by hand.", path=path)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise DataError(f"not UTF-8 text ({error.reason}).", path=path, line=line) from None


def _shallow(yaml: Any) -> Any:
    """PyYAML's reader, which looks a thousand brackets ahead before it gives one, and takes a second for that."""

    class Shallow(yaml.SafeLoader):  # type: ignore[misc]
        def fetch_flow_collection_start(self, kind: Any) -> None:
            if self.flow_level >= MAX_DEPTH:
                raise yaml.MarkedYAMLError(problem=_TOO_DEEP, problem_mark=self.get_mark())
            super().fetch_flow_collection_start(kind)

    return Shallow


class _Open:
    """An anchor whose value is still being read."""


class _Builder:
    """Makes values of the events of a YAML parser, which it stops at the first one that is not to be read."""

    def __init__(self, yaml: Any, path: Path, text: str) -> None:
        self._yaml = yaml
        self._path = path
        self._events: Iterator[Any] = yaml.parse(text, Loader=_shallow(yaml))
        self._resolver = yaml.resolver.Resolver()
        self._anchors: dict[str, Any] = {}
        self._sizes: dict[str, tuple[int, int]] = {}  # how many values, and how deep
        self._num_values = 0
        self._depth = 0

    def document(self) -> Any:
        """The only document's value; None where there is none."""
        yaml = self._yaml
        next(self._events)  # the stream's start
        first = next(self._events)
        if isinstance(first, yaml.StreamEndEvent):
            return None
        found = self._value(next(self._events))
        next(self._events)  # the document's end
        after = next(self._events)
        if not isinstance(after, yaml.StreamEndEvent):
            self._refuse(after, "a second document begins here; give one a file")
        return found

    def _value(self, event: Any) -> Any:
        if isinstance(event, self._yaml.AliasEvent):
            return self._repeated(event)
        start = self._num_values
        self._count(event, 1)
        if event.anchor is not None:
            self._anchors[event.anchor] = _Open
        is_scalar = isinstance(event, self._yaml.ScalarEvent)
        found = self._scalar(event) if is_scalar else self._collection(event)
        if event.anchor is not None:
            self._anchors[event.anchor] = found
            self._sizes[event.anchor] = self._num_values - start, _height(found)
        return found

    def _collection(self, event: Any) -> Any:
        if event.tag is not None:
            self._refuse_tag(event)
        self._depth += 1
        self._check_depth(event, self._depth)
        found = self._mapping() if isinstance(event, self._yaml.MappingStartEvent) else self._list()
        self._depth -= 1
        return found

    def _list(self) -> list[Any]:
        found = []
        while not isinstance(event := next(self._events), self._yaml.SequenceEndEvent):
            found.append(self._value(event))
        return found

    def _mapping(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        merged: dict[str, Any] | None = None
        while not isinstance(event := next(self._events), self._yaml.MappingEndEvent):
            key = self._key(event)
            merges = key == "<<" and event.implicit[0]
            if key in found or (merges and merged is not None):
                self._refuse(event, f"the key {quoted(key)} is given twice")
            value_event = next(self._events)
            value = self._value(value_event)
            if merges:
                merged = self._merged(value_event, value)
            else:
                found[key] = value
        return {**merged, **found} if merged else found

    def _merged(self, event: Any, value: Any) -> dict[str, Any]:
        """What `<<` brings: a mapping, or a list of them, of which the first that has a key gives its value."""
        mappings = value if isinstance(value, list) else [value]
        if not all(isinstance(one, dict) for one in mappings):
            self._refuse(event, "<< takes in a mapping or a list of mappings, and this is neither")
        return {key: item for one in reversed(mappings) for key, item in one.items()}

    def _key(self, event: Any) -> str:
        """A key, which is a text as it is written: `no` and `1` are no more than names here."""
        self._count(event, 1)
        if not isinstance(event, self._yaml.ScalarEvent):
            kinds = {"MappingStartEvent": "a mapping", "SequenceStartEvent": "a list", "AliasEvent": "an alias"}
            self._refuse(event, f"{kinds[type(event).__name__]} is a key here; keys are texts")
        if event.tag not in (None, *_TEXT_TAGS):
            self._refuse_tag(event)
        if event.anchor is not None:
            self._anchors[event.anchor], self._sizes[event.anchor] = event.value, (1, 0)
        if not event.value:
            self._refuse(event, "a key is empty; keys are texts")
        return self._whole_text(event)

    def _repeated(self, event: Any) -> Any:
        name = event.anchor
        found = self._anchors.get(name, self)
        if found is self:
            self._refuse(event, f"*{name} repeats &{name}, which does not stand before it")
        if found is _Open:
            self._refuse(event, f"the value of &{name} holds itself (*{name})")
        num_values, height = self._sizes[name]
        self._count(event, num_values)
        self._check_depth(event, self._depth + height)
        return copy.deepcopy(found)

    def _scalar(self, event: Any) -> Any:
        if event.tag in _TEXT_TAGS:
            return self._whole_text(event)
        if event.tag is not None:
            self._refuse_tag(event)
        if not event.implicit[0]:
            return self._whole_text(event)
        text = event.value
        kind = self._resolver.resolve(self._yaml.ScalarNode, text, (True, False)).rpartition(":")[2]
        if kind == "null":
            return None
        if kind == "bool":
            return text.lower() in ("yes", "true", "on")
        if kind == "int" and ":" not in text:
            return self._int(event, text)
        if (kind == "float" and ":" not in text) or _FLOAT.fullmatch(text):
            return self._float(event, text)
        return self._whole_text(event)

    def _int(self, event: Any, text: str) -> int:
        digits = text.replace("_", "").lower()
        if len(digits) > MAX_DIGITS:
            self._refuse(event, f"{quoted(text)} is a number of more than {MAX_DIGITS} digits")
        if re.fullmatch(r"[-+]?0[0-9]+", digits):
            self._refuse(event, f"{text} would be read in base 8; leave the 0 out, or put it in quotation marks")
        return int(digits, 0)

    def _float(self, event: Any, text: str) -> float:
        digits = text.replace("_", "")
        found = math.nan if "." in digits and digits.lower().endswith(("inf", "nan")) else float(digits)
        if not math.isfinite(found):
            self._refuse(event, f"{quoted(text)} is not a finite number; for a text put it in quotation marks")
        return found

    def _whole_text(self, event: Any) -> str:
        """A scalar's text, as it is written."""
        text: str = event.value
        try:  # JSON writes a character beyond U+FFFF as two escapes
            return text.encode("utf-16", "surrogatepass").decode("utf-16")
        except UnicodeDecodeError:
            self._refuse(event, "the text holds a lone surrogate, which is half of a character")

    def _count(self, event: Any, num: int) -> None:
        self._num_values += num
        if self._num_values > MAX_VALUES:
            self._refuse(event, f"there are more than {MAX_VALUES} values, those that aliases repeat included")

    def _check_depth(self, event: Any, depth: int) -> None:
        if depth > MAX_DEPTH:
            self._refuse(event, _TOO_DEEP)

    def _refuse_tag(self, event: Any) -> NoReturn:
        name = event.tag.replace("tag:yaml.org,2002:", "!!", 1)
        self._refuse(event, f"the tag {quoted(name)} is not read; leave it out")

    def _refuse(self, event: Any, problem: str) -> NoReturn:
        raise DataError(f"{problem}.", path=self._path, line=event.start_mark.line + 1)


def _height(value: Any) -> int:
    """How many mappings and lists stand inside one another in a value."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return 0 if inner is None else 1 + max(map(_height, inner), default=0)


_FLOAT = re.compile(r"(?=.*[.eE])[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
"""YAML 1.2's, which are JSON's too; pyyaml's own takes `1e-3` and `-.5` for texts."""
