"""The wire types of `/v1/responses`, OpenAI's newer form of a chat: text and calls in and out, and nothing is kept.

A request becomes the chat that says the same (`as_chat`), so it may ask of sampling and guidance what a chat may.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from trimtab.serving import neutral
from trimtab.serving.form_schema import ResponseFormat
from trimtab.serving.message_schema import Message, Role
from trimtab.serving.problems import MalformedError
from trimtab.serving.sampling import bounds, meaning
from trimtab.serving.schema import ChatRequest, Sampled
from trimtab.serving.tool_schema import (
    CHOICE_MEANING,
    SEVERAL_MEANING,
    ChosenTool,
    ResponseToolChoice,
    ResponseTools,
    check_tools,
    is_object,
)
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
            raise ValueError(
                f"an item of type {kind[:64]!r} cannot be read; this server reads messages, calls and results alone"
            )
        return data

    @property
    def text(self) -> str:
        """The content as one text."""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class InputCall(Wire):
    """A call that an earlier reply made, sent back as it came."""

    ignored: ClassVar[neutral.Ignored] = neutral.IGNORED_IN_INPUT
    type: Literal["function_call"]
    call_id: Text
    name: Text
    arguments: Text

    def as_chats(self) -> dict[str, Any]:
        """The same as a chat's message says it."""
        return {
            "id": self.call_id,
            "type": "function",
            "function": {"name": self.name, "arguments": self.arguments},
        }


class InputResult(Wire):
    """What a call has given."""

    ignored: ClassVar[neutral.Ignored] = neutral.IGNORED_IN_INPUT
    type: Literal["function_call_output"]
    call_id: Text
    output: Annotated[
        Annotated[Text, Tag("text")]
        | Annotated[list[InputText], Field(fail_fast=True, max_length=MAX_ITEMS), Tag("list")],
        Discriminator(
            text_or_list, custom_error_type="output", custom_error_message="give a text, or a list of parts of text"
        ),
    ]

    @property
    def text(self) -> str:
        """The result as one text."""
        return self.output if isinstance(self.output, str) else "".join(part.text for part in self.output)


def _kind_of_item(value: Any) -> str:
    kind = value.get("type") if isinstance(value, dict) else None
    return {"function_call": "call", "function_call_output": "result"}.get(
        kind if isinstance(kind, str) else "", "message"
    )


InputItem = Annotated[
    Annotated[InputMessage, Tag("message")] | Annotated[InputCall, Tag("call")] | Annotated[InputResult, Tag("result")],
    Discriminator(_kind_of_item),
]


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
        | Annotated[list[InputItem], Field(fail_fast=True, min_length=1, max_length=MAX_ITEMS), Tag("list")],
        Discriminator(
            text_or_list, custom_error_type="input", custom_error_message="give a text, or a list of messages"
        ),
    ] = Field(
        description="a text, or messages, calls and results; those of earlier replies are sent back, as nothing is kept"
    )
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
    tools: ResponseTools | None = Field(default=None, description="functions that the model may call")
    tool_choice: ResponseToolChoice | None = Field(default=None, description=CHOICE_MEANING)
    parallel_tool_calls: bool | None = Field(default=None, description=SEVERAL_MEANING)
    chat_template_kwargs: Annotated[dict[Name, Any], BeforeValidator(few)] | None = Field(
        default=None, description="as a chat's"
    )

    @model_validator(mode="after")
    def _logprobs_are_included(self) -> ResponseRequest:
        if self.top_logprobs and not self.include:
            raise FieldError("top_logprobs", f"top_logprobs goes with include: [{LOGPROBS!r}]; send that too")
        return self

    @model_validator(mode="after")
    def _tools_can_be_chosen(self) -> ResponseRequest:
        check_tools([tool.as_chats() for tool in self.tools or ()], self._choice, name_at="name")
        if self.include and self.tools and self.tool_choice != "none":
            raise FieldError(
                "include",
                "log-probabilities are of text alone, and an answer may call tools; leave it or tools out",
            )
        return self

    @model_validator(mode="after")
    def _results_are_of_calls(self) -> ResponseRequest:
        called: set[str] = set()
        for place, item in enumerate([] if isinstance(self.input, str) else self.input):
            if isinstance(item, InputCall):
                if not is_object(item.arguments):
                    raise FieldError(
                        f"input.{place}.arguments", "give the arguments as a text that holds a JSON object"
                    )
                called.add(item.call_id)
            elif isinstance(item, InputResult) and item.call_id not in called:
                raise FieldError(
                    f"input.{place}.call_id",
                    f"call_id is {item.call_id[:64]!r}; a result names the earlier call that it is of, and none has it",
                )
        return self

    @property
    def _choice(self) -> str | ChosenTool | None:
        choice = self.tool_choice
        return choice if choice is None or isinstance(choice, str) else choice.as_chats()

    def placed(self, error: MalformedError) -> MalformedError:
        """What is wrong with the chat that says the same, with its place in this request."""
        place = error.param or ""
        here = place.replace(".function.", ".") if place.startswith("tools.") else place
        return MalformedError(str(error).replace(place, here, 1) if place else str(error), here or None)

    def as_chat(self) -> ChatRequest:
        """The chat that asks for the same."""
        said = (
            [Message.model_construct(role="user", content=self.input)]
            if isinstance(self.input, str)
            else _messages(self.input)
        )
        if self.instructions is not None:
            said.insert(0, Message.model_construct(role="system", content=self.instructions))
        wanted = None if self.text is None else self.text.format
        return ChatRequest.model_construct(
            **{name: getattr(self, name) for name in Sampled.model_fields},
            messages=said,
            max_completion_tokens=self.max_output_tokens,
            response_format=None if wanted is None else wanted.as_chats(),
            logprobs=bool(self.include),
            top_logprobs=self.top_logprobs if self.include else None,
            tools=[tool.as_chats() for tool in self.tools or ()],
            tool_choice=self._choice,
            parallel_tool_calls=self.parallel_tool_calls,
            chat_template_kwargs=self.chat_template_kwargs,
            add_generation_prompt=True,
        )


def _messages(items: Sequence[InputMessage | InputCall | InputResult]) -> list[Message]:
    """Items as a chat's messages: calls belong to the assistant's message before them, or to one without text."""
    said: list[Message] = []
    for item in items:
        if isinstance(item, InputMessage):
            said.append(Message.model_construct(role=item.role, content=item.text))
        elif isinstance(item, InputResult):
            said.append(Message.model_construct(role="tool", content=item.text, tool_call_id=item.call_id))
        else:
            if not said or said[-1].role != "assistant":
                said.append(Message.model_construct(role="assistant", content=""))
            said[-1].tool_calls = [*(said[-1].tool_calls or ()), item.as_chats()]
    return said
