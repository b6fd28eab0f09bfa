"""A body that does not fit the schema, as one sentence that says where, what and what is accepted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from trimtab.errors import unknown_name
from trimtab.serving.schema import Guidance


def sentence_of(problems: Sequence[Mapping[str, Any]]) -> tuple[str | None, str]:
    """(the parameter, the sentence) of the first of a validator's problems, the number of others beside it."""
    first = next((item for item in problems if item["type"] == "extra_forbidden"), problems[0])
    place = [str(part) for part in first["loc"] if part != "body"]
    param = ".".join(place) or None
    if first["type"] == "extra_forbidden":
        message = str(unknown_name(f"key of {'.'.join(place[:-1])}", place[-1], Guidance.model_fields))
    elif first["type"] == "json_invalid":
        param, message = None, f"The body is no JSON: {first['msg']}."
    else:
        text = str(first["msg"]).removeprefix("Value error, ")
        message = f"{param}: {text}." if param else f"{text}."
    return param, message
