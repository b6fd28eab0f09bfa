"""The wire types: what OpenAI's clients send, and what guides add to it.

Unknown fields are ignored, since clients send all sorts of them; unknown keys inside `guidance` are ours to refuse.
Fields of OpenAI's that would change the answer and that cannot be honoured are refused unless they ask for nothing.
Null stands for a field that is not there.

A body is checked in a time that its size bounds: a list is given up at its first wrong item, and lists, mappings and
names have a length that they may not exceed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    field_validator,
    model_validator,
)

from trimtab.fields import MAX_SEED
from trimtab.params import NO_DRAFT
from trimtab.serving.form_schema import GuidedChoice, GuidedGrammar, GuidedJson, GuidedRegex, ResponseFormat
from trimtab.serving.neutral import NEUTRAL
from trimtab.serving.sampling import bounds, meaning

_TOLERANT = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)
_OURS = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

MAX_ITEMS = 10_000
"""Messages of a chat, parts of a message, stop strings, prompts: beyond what any limit of a server lets through."""
MAX_IDS = 1 << 19
MAX_NAMES = 256
"""Entries of a mapping of names."""
MAX_NAME_LENGTH = 512

Body = TypeVar("Body", bound=BaseModel)


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


def _few(value: Any) -> Any:
    if isinstance(value, dict) and len(value) > MAX_NAMES:
        raise ValueError(f"has {len(value)} entries; give at most {MAX_NAMES}")
    return value


def _towards(value: Any) -> Any:
    return {"towards": value} if isinstance(value, str) else value


def _text_or_list(value: Any) -> str | None:
    return "text" if isinstance(value, str) else "list" if isinstance(value, list) else None


def _kind_of_prompt(value: Any) -> str | None:
    if not isinstance(value, list):
        return _text_or_list(value)
    first = value[0] if value else ""
    is_number = isinstance(first, int | float) and not isinstance(first, bool)
    return "id_lists" if isinstance(first, list) else "ids" if is_number else "list"


Text = Annotated[str, AfterValidator(_whole)]
Name = Annotated[str, AfterValidator(_name)]
Texts = Annotated[list[Text], Field(fail_fast=True, max_length=MAX_ITEMS)]
TokenIds = Annotated[list[Annotated[int, Field(ge=0)]], Field(fail_fast=True, max_length=MAX_IDS)]


class _Wire(BaseModel):
    """A part of a request, in which null says the same as leaving a field out."""

    @model_validator(mode="before")
    @classmethod
    def _null_is_absent(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        return {name: value for name, value in data.items() if value is not None or name not in cls.model_fields}


class Sentences(_Wire):
    """A sentence that a request brings as a guide, or two: towards one, away from the other."""

    model_config = _OURS
    towards: Text
    away: Text | None = None
    place: Literal["auto", "system", "user"] = "auto"


class Guidance(_Wire):
    """What trimtab adds to a request: `extra_body={"guidance": {...}}` in OpenAI's Python client."""

    model_config = _OURS

    weights: Annotated[dict[Name, float], BeforeValidator(_few)] = Field(
        default_factory=dict, description="guide -> weight; 0 turns a guide off"
    )
    prompts: Annotated[dict[Name, Annotated[Sentences, BeforeValidator(_towards)]], BeforeValidator(_few)] = Field(
        default_factory=dict, description="name -> a sentence, or {towards, away, place}, as a guide; see `weights`"
    )
    explain: bool = Field(default=False, description="add to each token why it was chosen")
    alternatives: int = Field(default=5, ge=0, le=20, description="with explain: rivals of each token")
    logprobs: Literal["mixed", "base"] = Field(default="mixed", description="of which policy `logprobs` are")
    plausibility: Annotated[float, bounds("plausibility")] = Field(default=0.0, description=meaning("plausibility"))
    draft: Name = Field(default=NO_DRAFT, description=meaning("draft"))
    draft_tokens: Annotated[int, bounds("draft_tokens")] | None = Field(
        default=None, description=meaning("draft_tokens")
    )

    @model_validator(mode="before")
    @classmethod
    def _few_keys(cls, data: Any) -> Any:
        return _few(data)


class StreamOptions(_Wire):
    """OpenAI's."""

    model_config = _TOLERANT
    include_usage: bool | None = None


class TextPart(_Wire):
    """A part of a message; text is the only kind there is here."""

    model_config = _TOLERANT
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


class Message(_Wire):
    """One message of a chat. An assistant that called tools may have said nothing: its content is then empty."""

    model_config = _TOLERANT

    role: Text = Field(min_length=1, max_length=64)
    content: Annotated[
        Annotated[Text, Tag("text")] | Annotated[_Parts, Tag("list")],
        Discriminator(
            _text_or_list,
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


class Asked(_Wire):
    """What chats and completions have in common."""

    model_config = _TOLERANT

    model: Name
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1)] | None = None
    max_tokens: Annotated[int, bounds("max_new_tokens")] | None = Field(
        default=None, description=meaning("max_new_tokens")
    )
    temperature: Annotated[float, bounds("temperature")] | None = Field(
        default=None, description=meaning("temperature")
    )
    top_p: Annotated[float, bounds("top_p")] | None = Field(default=None, description=meaning("top_p"))
    top_k: Annotated[int, bounds("top_k")] | None = Field(default=None, description=f"ours: {meaning('top_k')}")
    min_p: Annotated[float, bounds("min_p")] | None = Field(default=None, description=f"ours: {meaning('min_p')}")
    repetition_penalty: Annotated[float, bounds("repetition_penalty")] | None = Field(
        default=None, description=f"ours: {meaning('repetition_penalty')}"
    )
    seed: Annotated[int, Field(ge=-MAX_SEED, le=MAX_SEED)] | None = None
    stop: (
        Annotated[
            Annotated[Text, Tag("text")] | Annotated[Texts, Tag("list")],
            Discriminator(
                _text_or_list, custom_error_type="stop", custom_error_message="give a text, or a list of texts"
            ),
        ]
        | None
    ) = None
    response_format: ResponseFormat | None = None
    guided_json: GuidedJson = None
    guided_regex: GuidedRegex = None
    guided_grammar: GuidedGrammar = None
    guided_choice: GuidedChoice = None
    guidance: Guidance | None = None

    @model_validator(mode="before")
    @classmethod
    def _refuse_what_cannot_be_honoured(cls, data: Any) -> Any:
        for name, neutral in NEUTRAL.items() if isinstance(data, dict) else ():
            if name in data and data[name] not in neutral:
                raise ValueError(f"{name} is not supported by this server; leave it out")
        return data

    @field_validator("stop")
    @classmethod
    def _no_empty_stop(cls, stop: str | list[str] | None) -> str | list[str] | None:
        if stop is not None and not isinstance(stop, str) and not all(stop):
            raise ValueError("a stop string is empty; leave it out")
        return stop

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings; an empty one stands for none."""
        if self.stop is None or self.stop == "":
            return ()
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)


class ChatRequest(Asked):
    """The body of `/v1/chat/completions`."""

    messages: list[Message] = Field(min_length=1, max_length=MAX_ITEMS, fail_fast=True)
    max_completion_tokens: Annotated[int, bounds("max_new_tokens")] | None = Field(
        default=None, description=meaning("max_new_tokens")
    )
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0)] | None = None
    chat_template_kwargs: Annotated[dict[Name, Any], BeforeValidator(_few)] | None = Field(
        default=None, description="as vLLM's: what the chat template is told, such as enable_thinking"
    )
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None

    @model_validator(mode="after")
    def _open_or_continue(self) -> ChatRequest:
        continued = self.messages[-1].role == "assistant"
        if continued and (self.continue_final_message is False or self.add_generation_prompt):
            raise ValueError("an assistant's message at the end is continued here; leave it out for a fresh answer")
        if not continued and (self.continue_final_message or self.add_generation_prompt is False):
            raise ValueError("continue_final_message is for an assistant's message at the end; leave it out")
        return self


class CompletionRequest(Asked):
    """The body of `/v1/completions`."""

    prompt: Annotated[
        Annotated[Text, Tag("text")]
        | Annotated[Texts, Tag("list")]
        | Annotated[TokenIds, Tag("ids")]
        | Annotated[list[TokenIds], Field(fail_fast=True, max_length=MAX_ITEMS), Tag("id_lists")],
        Discriminator(
            _kind_of_prompt,
            custom_error_type="prompt",
            custom_error_message="give a text, a list of texts, a list of token ids, or a list of such lists",
        ),
    ]
    logprobs: Annotated[int, Field(ge=0)] | None = None
    best_of: Annotated[int, Field(ge=1)] | None = None
    chat_template_kwargs: Annotated[dict[Name, Any], BeforeValidator(_few)] | None = None

    @model_validator(mode="after")
    def _no_template_and_no_best_of(self) -> CompletionRequest:
        if self.chat_template_kwargs:
            raise ValueError("chat_template_kwargs is for chats; a completion goes through no template")
        if self.best_of is not None and self.best_of != (self.n or 1):
            raise ValueError("best_of is not supported by this server beside n; leave it out")
        return self

    @property
    def prompts(self) -> list[str | list[int]]:
        """Each prompt on its own."""
        given = self.prompt
        if isinstance(given, str):
            return [given]
        if given and all(isinstance(item, int) for item in given):
            return [given]  # type: ignore[list-item]
        return list(given)  # type: ignore[arg-type]


def validated(kind: type[Body], content: Any) -> tuple[Body | None, Sequence[Mapping[str, Any]]]:
    """(`content` as a body of this kind, nothing), or (None, the validator's problems with it)."""
    try:
        return kind.model_validate(content), ()
    except ValidationError as error:
        return None, error.errors(include_url=False, include_input=False)
