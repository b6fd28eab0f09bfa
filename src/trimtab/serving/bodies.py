"""A body as a request: its type, its JSON, its schema. Each step is bounded, and none runs on the event loop."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from trimtab.serving.problems import BodyTypeError, MalformedError, malformed
from trimtab.serving.schema import Body, validated
from trimtab.serving.wordings import cut

_ENCODINGS = ("utf-8", "utf8")


def check_type(content_type: str | None, encoding: str | None) -> None:
    """Raise BodyTypeError for headers that announce anything but plain JSON.

    A body without a type is refused as well: a page of another origin may send one without asking beforehand.
    """
    kind, _, parameters = (content_type or "").partition(";")
    kind = kind.strip().lower()
    if kind != "application/json" and not (kind.startswith("application/") and kind.endswith("+json")):
        given = f"is of type {cut(kind)!r}" if kind else "has no type"
        raise BodyTypeError(f"The body {given}; send JSON, with the header content-type: application/json.")
    for parameter in parameters.split(";"):
        name, _, value = parameter.partition("=")
        if name.strip().lower() == "charset" and value.strip().strip('"').lower() not in _ENCODINGS:
            raise BodyTypeError(f"The body is in {cut(value.strip())!r}; JSON is read in UTF-8 alone.")
    if encoding is not None and encoding.strip().lower() not in ("", "identity"):
        raise BodyTypeError(f"The body is encoded as {cut(encoding)!r}; send it as it is, without content-encoding.")


def reader(kind: type[Body]) -> Callable[[bytes], Body]:
    """Bytes to a body of this kind. The function raises MalformedError with what is wrong, and where."""

    def read(raw: bytes) -> Body:
        content = _json(raw)
        body, problems = validated(kind, content)
        if body is None:
            raise malformed(problems, content)
        return body

    return read


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON. Raises MalformedError for a key that it has twice: which of them counts, nothing says."""
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise MalformedError(f"The body has the key {cut(twice)!r} twice in one object; give it once.", cut(twice))
    return found


def _json(raw: bytes) -> Any:
    try:
        return json.loads(raw.decode("utf-8-sig"), object_pairs_hook=_once)
    except MalformedError:
        raise
    except UnicodeDecodeError as error:
        raise MalformedError(f"The body is no JSON: it is not UTF-8 from byte {error.start} on.") from None
    except json.JSONDecodeError as error:
        raise MalformedError(f"The body is no JSON: {error.msg} at character {error.pos}.") from None
    except RecursionError:
        raise MalformedError("The body is no JSON of ours: lists or objects are nested too deeply.") from None
    except ValueError:
        raise MalformedError("The body is no JSON of ours: a number has too many digits.") from None
