"""What all wire types are made of: texts, names and lists of bounded size, and a model that knows its fields."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from trimtab.errors import unknown_name
from trimtab.serving.neutral import Ignored, Refused, asks_for_nothing
from trimtab.serving.sampling import bounds

STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

MAX_ITEMS = 10_000
"""Messages of a chat, parts of a message, stop strings, prompts: beyond what any limit of a server lets through."""
MAX_IDS = 1 << 19
MAX_NAMED_IDS = 4096
"""Stop tokens and biases of a request."""
MAX_NAMES = 256
"""Entries of a mapping of names."""
MAX_NAME_LENGTH = 512


class FieldError(ValueError):
    """A validator's problem with one field as a whole, whose name is `param`."""

    def __init__(self, param: str, message: str) -> None:
        super().__init__(message)
        self.param = param


def _whole(text: str) -> str:
    """Text that UTF-8 can say."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("holds a lone surrogate, which is half of a character") from None
    return text


def _name(text: str) -> str:
    if len(text) > MAX_NAME_LENGTH:
        raise ValueError(f"has {len(text)} characters; a name has at most {MAX_NAME_LENGTH}")
    return _whole(text)


def few(value: Any, most: int = MAX_NAMES) -> Any:
    """A value that is no mapping of more than `most` entries. Raises ValueError."""
    if isinstance(value, dict) and len(value) > most:
        raise ValueError(f"has {len(value)} entries; give at most {most}")
    return value


def text_or_list(value: Any) -> str | None:
    """The tag of a value that may be either."""
    return "text" if isinstance(value, str) else "list" if isinstance(value, list) else None


def _of_ids(value: Any) -> Any:
    """A mapping whose keys are token ids, as JSON writes them: in quotes."""
    if not isinstance(few(value, MAX_NAMED_IDS), dict):
        return value
    for name in value:
        is_id = isinstance(name, str) and len(name) < 10 and name.isascii() and name.isdecimal()
        if not is_id or str(int(name)) != name:
            raise ValueError(f'has the key {str(name)[:64]!r}; give token ids, such as "50"')
    return {int(name): bias for name, bias in value.items()}


Text = Annotated[str, AfterValidator(_whole)]
Name = Annotated[str, AfterValidator(_name)]
Texts = Annotated[list[Text], Field(fail_fast=True, max_length=MAX_ITEMS)]
TokenIds = Annotated[list[Annotated[int, Field(ge=0)]], Field(fail_fast=True, max_length=MAX_IDS)]
NamedIds = Annotated[list[Annotated[int, Field(ge=0)]], Field(fail_fast=True, max_length=MAX_NAMED_IDS)]
Biases = Annotated[dict[int, Annotated[float, bounds("logit_bias")]], BeforeValidator(_of_ids)]


class Wire(BaseModel):
    """A part of a request, in which null says the same as leaving a field out.

    A field that is neither its own nor `ignored` is refused by its name, those that are `refused` unless they ask for
    nothing.
    """

    model_config = STRICT
    ignored: ClassVar[Ignored] = {}
    refused: ClassVar[Refused] = {}

    @classmethod
    def _names(cls) -> list[str]:
        return [field.alias or name for name, field in cls.model_fields.items()]

    @model_validator(mode="before")
    @classmethod
    def _known_alone(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        found = {name: value for name, value in data.items() if value is not None and name not in cls.ignored}
        for name in [name for name in found if name not in cls._names()]:
            if name not in cls.refused:
                raise FieldError(name, str(unknown_name("field", str(name)[:64], cls._names())).rstrip("."))
            if not asks_for_nothing(found.pop(name), cls.refused[name]):
                raise FieldError(name, f"{name} is not supported by this server; leave it out")
        return found
