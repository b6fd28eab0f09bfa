"""What is wrong with a request, in OpenAI's shape and in the client's words: its own JSON's names, nothing of ours.

What a client sent is quoted cut, however long it was.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from trimtab.errors import (
    DeadlineError,
    InputError,
    QueueFullError,
    StoppedError,
    TrimtabError,
    UnknownModelError,
    renamed,
)
from trimtab.serving.wire_schema import FieldError

_MOST_MESSAGE = 600
_MOST_NAME = 64
_OBJECT = "Input should be a valid dictionary (an object in JSON)"
_OBJECT_KINDS = ("model_type", "model_attributes_type", "dict_type")
"""The validator's own sentence names the class that it wanted."""


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
    (QueueFullError, 429, "rate_limit_error", "queue_full"),
    (DeadlineError, 504, "server_error", "deadline"),
    (StoppedError, 503, "server_error", "stopping"),
)
"""Error -> status, OpenAI's type, code."""


_ON_THE_WIRE = {
    "max_new_tokens": "max_tokens",
    "plausibility": "guidance.plausibility",
    "guide_plausibility": "guidance.guide_plausibility",
    "draft": "guidance.draft",
    "draft_tokens": "guidance.draft_tokens",
}
"""Field of `SamplingParams` -> what a request calls it, where that is another name."""


def problem(error: Exception) -> tuple[int, dict[str, Any]]:
    """Status and body of an error, in OpenAI's shape."""
    matching = (entry for entry in _KINDS if isinstance(error, entry[0]))
    _, status, kind, code = next(matching, (None, 500, "server_error", None))
    if isinstance(error, TrimtabError):
        message = renamed(error, lambda name: _ON_THE_WIRE.get(name, name)) or str(error)
    else:
        message = "An unexpected error; the log says more."
    return status, error_body(message, kind, getattr(error, "param", None), code)


def error_body(message: str, kind: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """OpenAI's shape; what a client sent may stand in the message, and UTF-8 may not be able to say it."""
    said = cut(message, _MOST_MESSAGE).encode("utf-8", "replace").decode()
    place = param and cut(param, _MOST_MESSAGE).encode("utf-8", "replace").decode()
    return {"error": {"message": said, "type": kind, "param": place, "code": code}}


def cut(text: str, most: int = _MOST_NAME) -> str:
    """A text of at most `most` characters: its beginning, its end, and how much is left out between them."""
    if len(text) <= most:
        return text
    end = most // 4
    gap = f" […{len(text) - most} characters…] "
    return text[: max(0, most - end - len(gap))] + gap + text[len(text) - end :]


def malformed(problems: Sequence[Mapping[str, Any]], content: Any) -> MalformedError:
    """The most telling of a validator's problems with `content`: an unknown key, else the deepest one."""
    places = [_path(item, content) for item in problems]
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
        text = _OBJECT if item["type"] in _OBJECT_KINDS else str(item["msg"]).removeprefix("Value error, ")
        message = f"{param}: {text}." if param else f"{text}."
    return MalformedError(message, param)


def _of_field(item: Mapping[str, Any]) -> FieldError | None:
    """A problem with one field as a whole, where a validator's problem is one."""
    raised = item.get("ctx", {}).get("error")
    return raised if isinstance(raised, FieldError) else None


def _path(item: Mapping[str, Any], content: Any) -> list[str]:
    """Where in the client's JSON a problem lies: of the validator's location, what the JSON has."""
    path: list[str] = []
    place = item["loc"]
    for index, part in enumerate(place):
        if _has(content, part):
            content = content[part]
        elif index != len(place) - 1 or item["type"] != "missing":
            continue
        path.append(str(part))
    return path


def _has(content: Any, part: str | int) -> bool:
    if isinstance(content, list):
        return isinstance(part, int) and part < len(content)
    return isinstance(content, dict) and part in content
