"""How a model writes calls of tools into its answer: a noun, without torch and without a template.

A call is written as an opening, the function's name, what stands between, the arguments as a JSON object, and an
ending; where a model may call several functions at once, a joint stands between one call and the next.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

Part: TypeAlias = str | int | None
"""A text, the id of a token that adds no text, or None for the call's id."""
Spelled: TypeAlias = tuple[Part, ...]

CALL_ID = "[A-Za-z0-9]{9}"
"""What an id of a call looks like: some templates take no other."""
NAME = "[A-Za-z0-9_-]{1,64}"
"""What a function's name looks like, as OpenAI has it."""
WHITE = " \t\r\n"
"""White space in front of a call."""


@dataclass(frozen=True, slots=True)
class CallFormat:
    """How one model writes its calls, found from its chat template (`models/tokenizing/calls`)."""

    lead: str
    """White space that the template writes in front of the first call."""
    opening: Spelled
    """What stands before the first call's name."""
    between: Spelled
    """What stands between a name and its arguments."""
    joint: Spelled | None
    """What stands between a call's arguments and the next call's name; None: the model calls one function at a time."""
    ending: Spelled
    """What stands behind the last call's arguments, up to the end of the turn."""
    mark: str | int
    """What the opening begins with and no other text holds: a text, or the id of a token that adds none."""
    is_anywhere: bool
    """Whether the mark opens a call behind a text too; else, as a brace does, at the answer's beginning alone."""
    follows_text: bool = False
    """Whether the prompt leaves a thought open, behind which a call comes."""

    @property
    def silent(self) -> dict[int, str]:
        """Tokens of the format that add no text -> a character that no text holds, which stands for each."""
        parts = [*self.opening, *self.between, *(self.joint or ()), *self.ending]
        ids = dict.fromkeys(part for part in parts if isinstance(part, int))
        return {token_id: chr(_SURROGATES + number) for number, token_id in enumerate(ids)}

    def as_json(self) -> dict[str, Any]:
        """The format as plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> CallFormat:
        """The format that `as_json` has written."""
        spelled = {name: _spelled(value[name]) for name in ("opening", "between", "ending")}
        joint = None if value["joint"] is None else _spelled(value["joint"])
        return cls(**{**value, **spelled, "joint": joint})


@dataclass(frozen=True, slots=True)
class Function:
    """A function that a model may call."""

    name: str
    parameters: Mapping[str, Any] | None
    """The JSON schema of its arguments, an object's; None: it has none."""


def is_name(text: str) -> bool:
    """Whether a text can be a function's name."""
    return re.fullmatch(NAME, text) is not None


_SURROGATES = 0xD800
"""Lone surrogates begin here, which no text that was decoded holds."""


def _spelled(parts: Sequence[Part]) -> Spelled:
    return tuple(parts)
