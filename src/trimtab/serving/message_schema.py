"""The wire types of a chat's messages."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, TypeAlias

from pydantic import Discriminator, Field, Tag, model_validator

from trimtab.serving import neutral
from trimtab.serving.wire_schema import MAX_ITEMS, Text, Wire, text_or_list

Role: TypeAlias = Literal["system", "developer", "user", "assistant", "tool"]


class TextPart(Wire):
    """A part of a message; text is the only kind there is here."""

    ignored: ClassVar[neutral.Ignored] = neutral.IGNORED_IN_PARTS
    type: Literal["text"]
    text: Text

    @model_validator(mode="before")
    @classmethod
    def _refuse_what_is_no_text(cls, data: Any) -> Any:
        kind = data.get("type") if isinstance(data, dict) else None
        if isinstance(kind, str) and kind != "text":
            raise ValueError(
                f"a part of type {kind[:64]!r} cannot be read; this server reads parts of type 'text' alone"
            )
        return data


_Parts = Annotated[list[TextPart], Field(fail_fast=True, max_length=MAX_ITEMS)]


class Message(Wire):
    """One message of a chat. An assistant that called tools may have said nothing: its content is then empty."""

    ignored: ClassVar[neutral.Ignored] = neutral.IGNORED_IN_MESSAGES

    role: Role
    content: Annotated[
        Annotated[Text, Tag("text")] | Annotated[_Parts, Tag("list")],
        Discriminator(
            text_or_list,
            custom_error_type="content",
            custom_error_message="give a text, or a list of parts of type 'text'",
        ),
    ]
    name: Text | None = None
    tool_calls: Annotated[list[dict[str, Any]], Field(fail_fast=True, max_length=MAX_ITEMS)] | None = None
    tool_call_id: Text | None = None
    reasoning_content: Text | None = None
    reasoning: Text | None = None
    thinking: Text | None = None

    @model_validator(mode="before")
    @classmethod
    def _calls_may_stand_alone(cls, data: Any) -> Any:
        if not isinstance(data, dict) or data.get("content") is not None or data.get("role") != "assistant":
            return data
        has_called = data.get("tool_calls") or data.get("function_call")
        return {**data, "content": ""} if has_called else data

    @property
    def text(self) -> str:
        """The content as one text."""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)

    @property
    def keys(self) -> dict[str, Any]:
        """What else the message says; which of it is read is the chat template's affair."""
        return self.model_dump(exclude={"role", "content"}, exclude_none=True)
