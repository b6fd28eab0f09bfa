"""The wire types of `/v1/responses`, OpenAI's newer form of a chat: text in and out, and nothing is kept.

A request becomes the chat that says the same (`as_chat`), so it may ask of sampling and guidance what a chat may.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from trimtab.serving import neutral
from trimtab.serving.form_schema import ResponseFormat
from trimtab.serving.message_schema import Message, Role
from trimtab.serving.sampling import bounds, meaning
from trimtab.serving.schema import ChatRequest, Sampled
from trimtab.serving.wire_schema import MAX_ITEMS, FieldError, Name, Text, Wire, few, text_or_list

LOGPROBS = "message.output_text.logprobs"
"""What `include` may name."""


class InputText(Wire):
    """A part of a message: text that somebody wrote, or that was answered before."""

    ignored: ClassVar[neutral.Ignored] = neutral.IGNORED_IN_PARTS
    type: Literal["input_text", "output_text", "text"]
    text: Text

    @model_validator(mode="before")
    @classmethod
    def _text_alone(cls, data: Any) -> Any:
        kind = data.get("type") if isinstance(data, dict) else None
        if isinstance(kind, str) and kind not in ("input_text", "output_text", "text"):
            raise ValueError(f"a part of type {kind[:64]!r} cannot be read; this server reads text alone")
        return data


class InputMessage(Wire):
    """A message, among them one of an earlier reply's output, sent back as it came."""

    ignored: ClassVar[neutral.Ignored] = neutral.IGNORED_IN_INPUT
    type: Literal["message"] | None = None
    role: Role
    content: Annotated[
        Annotated[Text, Tag("text")]
        | Annotated[list[InputText], Field(fail_fast=True, max_length=MAX_ITEMS), Tag("list")],
        Discriminator(
            text_or_list, custom_error_type="content", custom_error_message="give a text, or a list of parts of text"
        ),
    ]

    @model_validator(mode="before")
    @classmethod
    def _messages_alone(cls, data: Any) -> Any:
        kind = data.get("type") if isinstance(data, dict) else None
        if isinstance(kind, str) and kind != "message":
            raise ValueError(f"an item of type {kind[:64]!r} cannot be read; this server reads messages alone")
        return data

    @property
    def text(self) -> str:
        """The content as one text."""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class TextFormat(Wire):
    """What the answer must look like; a schema is always followed strictly."""

    type: Literal["text", "json_object", "json_schema"]
    name: Text | None = None
    description: Text | None = None
    strict: bool | None = None
    json_schema: dict[str, Any] | bool | None = Field(default=None, alias="schema")

    @model_validator(mode="after")
    def _a_schema_where_one_is_named(self) -> TextFormat:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("schema goes with the type 'json_schema', and with no other; give both or neither")
        return self

    def as_chats(self) -> ResponseFormat:
        """The same as a chat says it."""
        named = None if self.json_schema is None else {"schema": self.json_schema}
        return ResponseFormat.model_validate({"type": self.type, "json_schema": named})


class TextOptions(Wire):
    """OpenAI's options of an answer in text."""

    refused: ClassVar[neutral.Refused] = neutral.REFUSED_IN_TEXT_OPTIONS
    format: TextFormat | None = None


class ResponseStreamOptions(Wire):
    """OpenAI's."""

    ignored: ClassVar[neutral.Ignored] = neutral.IGNORED_IN_STREAM_OPTIONS


class ResponseRequest(Sampled):
    """The body of `/v1/responses`."""

    ignored: ClassVar[neutral.Ignored] = neutral.IGNORED_IN_RESPONSES
    refused: ClassVar[neutral.Refused] = {**neutral.REFUSED, **neutral.REFUSED_IN_RESPONSES}

    input: Annotated[
        Annotated[Text, Tag("text")]
        | Annotated[list[InputMessage], Field(fail_fast=True, min_length=1, max_length=MAX_ITEMS), Tag("list")],
        Discriminator(
            text_or_list, custom_error_type="input", custom_error_message="give a text, or a list of messages"
        ),
    ] = Field(description="a text, or messages; those of earlier replies are sent back, since nothing is kept")
    instructions: Text | None = Field(default=None, description="a system message in front of the input")
    max_output_tokens: Annotated[int, bounds("max_new_tokens")] | None = Field(
        default=None, description=meaning("max_new_tokens")
    )
    text: TextOptions | None = Field(default=None, description="what the answer must look like: `format`, as a type")
    include: Annotated[list[Literal["message.output_text.logprobs"]], Field(max_length=8)] | None = Field(
        default=None, description=f"`{LOGPROBS}`: log-probabilities of the answer's tokens"
    )
    top_logprobs: Annotated[int, Field(ge=0)] | None = Field(
        default=None, description="with `include`: the most probable tokens of each place besides"
    )
    stream_options: ResponseStreamOptions | None = Field(default=None, description="nothing that is honoured is in it")
    metadata: Annotated[dict[Name, Text], BeforeValidator(few)] | None = Field(
        default=None, description="sent back with the reply"
    )
    chat_template_kwargs: Annotated[dict[Name, Any], BeforeValidator(few)] | None = Field(
        default=None, description="as a chat's"
    )

    @model_validator(mode="after")
    def _logprobs_are_included(self) -> ResponseRequest:
        if self.top_logprobs and not self.include:
            raise FieldError("top_logprobs", f"top_logprobs goes with include: [{LOGPROBS!r}]; send that too")
        return self

    def as_chat(self) -> ChatRequest:
        """The chat that asks for the same."""
        items = [self.input] if isinstance(self.input, str) else self.input
        said = [("user", item) if isinstance(item, str) else (item.role, item.text) for item in items]
        if self.instructions is not None:
            said.insert(0, ("system", self.instructions))
        wanted = None if self.text is None else self.text.format
        return ChatRequest.model_construct(
            **{name: getattr(self, name) for name in Sampled.model_fields},
            messages=[Message.model_construct(role=role, content=text) for role, text in said],
            max_completion_tokens=self.max_output_tokens,
            response_format=None if wanted is None else wanted.as_chats(),
            logprobs=bool(self.include),
            top_logprobs=self.top_logprobs if self.include else None,
            chat_template_kwargs=self.chat_template_kwargs,
            add_generation_prompt=True,
        )
