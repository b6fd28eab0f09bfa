"""What is wrong with a request, in OpenAI's shape and in the client's words: its own JSON's names, nothing of ours.

What a client sent is quoted cut, however long it was.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from trimtab.errors import (
    DeadEndError,
    DeadlineError,
    InputError,
    PromptError,
    QueueFullError,
    StoppedError,
    TrimtabError,
    UnknownModelError,
    blamed,
    renamed,
)
from trimtab.guides.brought import with_names
from trimtab.serving.wire_schema import FieldError
from trimtab.serving.wordings import cut, shown, wanted

_MOST_MESSAGE = 600


class MalformedError(InputError):
    """A body that is no JSON, or JSON that does not fit the schema; `param` is the place in it, where it has one."""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class BodyTypeError(InputError):
    """A body of a type or an encoding that is not read here."""


_KINDS: tuple[tuple[type[Exception], int, str, str | None], ...] = (
    (UnknownModelError, 404, "invalid_request_error", "model_not_found"),
    (BodyTypeError, 415, "invalid_request_error", "body_type"),
    (InputError, 400, "invalid_request_error", None),
    (DeadEndError, 400, "invalid_request_error", "dead_end"),
    (QueueFullError, 429, "rate_limit_error", "queue_full"),
    (DeadlineError, 504, "server_error", "deadline"),
    (StoppedError, 503, "server_error", "stopping"),
)
"""Error -> status, OpenAI's type, code."""


def problem(error: Exception, names: Mapping[str, str] | None = None) -> tuple[int, dict[str, Any]]:
    """Status and body of an error, in OpenAI's shape; `names` says what the request calls its fields
    (`field_names.names_of`).

    The field at fault is the one that the error is `about`, else the first that its message names; one about a prompt
    names the prompt's.
    """
    names = names or {}
    matching = (entry for entry in _KINDS if isinstance(error, entry[0]))
    _, status, kind, code = next(matching, (None, 500, "server_error", None))
    if not isinstance(error, TrimtabError):
        return status, error_body("An unexpected error; the log says more.", kind, None, code)
    named: list[str] = []

    def called(name: str) -> str:
        named.append(name)
        return names.get(name, name)

    if isinstance(error, MalformedError):  # it is in the client's words already
        return status, error_body(str(error), kind, error.param, code)
    message = with_names(renamed(error, called) or str(error), names)
    field = blamed(error) or next(iter(named), "prompt" if isinstance(error, PromptError) else None)
    return status, error_body(message, kind, _field_of(names, field) if field else None, code)


def _field_of(names: Mapping[str, str], field: str) -> str:
    """Where in the request a field lies that an error is about: `gates.NAME` is `guidance.gates.NAME`."""
    head, dot, rest = field.partition(".")
    return with_names(names.get(field) or names.get(head, head) + dot + rest, names)


def error_body(message: str, kind: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """OpenAI's shape; what a client sent may stand in the message, and UTF-8 may not be able to say it."""
    said = cut(message, _MOST_MESSAGE).encode("utf-8", "replace").decode()
    place = param and cut(param, _MOST_MESSAGE).encode("utf-8", "replace").decode()
    return {"error": {"message": said, "type": kind, "param": place, "code": code}}


def malformed(problems: Sequence[Mapping[str, Any]], content: Any) -> MalformedError:
    """The most telling of a validator's problems with `content`: an unknown key, else the deepest one."""
    found_at = [_path(item, content) for item in problems]
    places = [place for place, _ in found_at]
    unknown = [index for index, item in enumerate(problems) if item["type"] == "extra_forbidden" or _of_field(item)]
    chosen = unknown[0] if unknown else max(range(len(problems)), key=lambda index: len(places[index]))
    item, place = problems[chosen], [cut(part) for part in places[chosen]]
    param = ".".join(place) or None
    if (found := _of_field(item)) is not None:
        param = ".".join([*place, cut(found.param)])
        message = f"{'.'.join(place)}: {found}." if place else f"{found}."
    elif unknown:
        message = f"{param}: there is no such key here; leave it out."
    else:
        here = [other for other, there in zip(problems, places, strict=True) if there == places[chosen]]
        message = _sentence(item, here, param or "The body", found_at[chosen])
    return MalformedError(message, param)


def _sentence(
    item: Mapping[str, Any], here: Sequence[Mapping[str, Any]], name: str, found: tuple[list[str], Any]
) -> str:
    """What is wrong with a value; `here` are all problems with it, of which any would have done."""
    place, value = found
    if item["type"] == "missing":
        return f"{name} is missing; give it."
    accepted = dict.fromkeys(filter(None, (wanted(other, place) for other in here)))
    if item["type"] == "value_error" or not accepted:
        return f"{name}: {str(item['msg']).removeprefix('Value error, ')}."
    return f"{name} is {shown(value)}; give {', or '.join(accepted)}."


def _of_field(item: Mapping[str, Any]) -> FieldError | None:
    """A problem with one field as a whole, where a validator's problem is one."""
    raised = item.get("ctx", {}).get("error")
    return raised if isinstance(raised, FieldError) else None


def _path(item: Mapping[str, Any], content: Any) -> tuple[list[str], Any]:
    """Where in the client's JSON a problem lies, and what stands there: of the validator's place what the JSON has."""
    path: list[str] = []
    place = item["loc"]
    for index, part in enumerate(place):
        key = str(part) if isinstance(content, dict) else part  # token ids are keys in quotes
        if _has(content, key):
            content = content[key]
        elif index != len(place) - 1 or item["type"] != "missing":
            continue
        path.append(str(part))
    return path, content


def _has(content: Any, part: str | int) -> bool:
    if isinstance(content, list):
        return isinstance(part, int) and part < len(content)
    return isinstance(content, dict) and part in content
