"""The wire types: what OpenAI's clients send, and what guides add to it.

Unknown fields are ignored, since clients send all sorts of them; unknown keys inside `guidance` are ours to refuse.
Fields of OpenAI's that would change the answer and that cannot be honoured are refused unless they ask for nothing.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

_TOLERANT = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)
_OURS = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

MAX_SEED = (1 << 63) - 1

_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "presence_penalty": (None, 0),
    "frequency_penalty": (None, 0),
    "logit_bias": (None, {}),
    "tools": (None, []),
    "tool_choice": (None, "none", "auto"),
    "functions": (None, []),
    "function_call": (None, "none", "auto"),
    "response_format": (None, {"type": "text"}),
    "modalities": (None, ["text"]),
    "audio": (None,),
    "prediction": (None,),
    "suffix": (None, ""),
    "echo": (None, False),
    "chat_template": (None,),
    "documents": (None, []),
}
"""OpenAI's fields that cannot be honoured, and the values that ask for nothing."""


def _whole(text: str) -> str:
    """Text that UTF-8 can say."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("holds a lone surrogate, which is half of a character") from None
    return text


Text = Annotated[str, AfterValidator(_whole)]


class Guidance(BaseModel):
    """What trimtab adds to a request: `extra_body={"guidance": {...}}` in OpenAI's Python client."""

    model_config = _OURS

    weights: dict[Text, float] = Field(default_factory=dict, description="guide -> weight; 0 turns a guide off")
    explain: bool = Field(default=False, description="add to each token why it was chosen")
    alternatives: int = Field(default=5, ge=0, le=20, description="with explain: rivals of each token")
    logprobs: Literal["mixed", "base"] = Field(default="mixed", description="of which policy `logprobs` are")
    plausibility: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="before mixing: drop tokens below this fraction of the best one's probability",
    )


class StreamOptions(BaseModel):
    """OpenAI's."""

    model_config = _TOLERANT

    include_usage: bool = False


class TextPart(BaseModel):
    """A part of a message; text is the only kind there is here."""

    model_config = _TOLERANT

    type: Literal["text"]
    text: Text


class Message(BaseModel):
    """One message of a chat."""

    model_config = _TOLERANT

    role: Text = Field(min_length=1, max_length=64)
    content: Text | list[TextPart]
    name: Text | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: Text | None = None
    reasoning_content: Text | None = None
    reasoning: Text | None = None
    thinking: Text | None = None

    @property
    def text(self) -> str:
        """The content as one text."""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)

    @property
    def keys(self) -> dict[str, Any]:
        """What else the message says; which of it is read is the chat template's affair."""
        return self.model_dump(exclude={"role", "content"}, exclude_none=True)


class Asked(BaseModel):
    """What chats and completions have in common."""

    model_config = _TOLERANT

    model: Text
    stream: bool = False
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0)] | None = Field(default=None, description="ours: 0 keeps all tokens")
    min_p: Annotated[float, Field(ge=0, le=1)] | None = Field(default=None, description="ours")
    repetition_penalty: Annotated[float, Field(gt=0)] | None = Field(default=None, description="ours: 1 is none")
    seed: Annotated[int, Field(ge=-MAX_SEED, le=MAX_SEED)] | None = None
    stop: Text | list[Text] | None = None
    guidance: Guidance | None = None

    @model_validator(mode="before")
    @classmethod
    def _refuse_what_cannot_be_honoured(cls, data: Any) -> Any:
        for name, neutral in _NEUTRAL.items() if isinstance(data, dict) else ():
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

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0)] | None = None
    chat_template_kwargs: dict[Text, Any] | None = Field(
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


TokenId = Annotated[int, Field(ge=0)]


class CompletionRequest(Asked):
    """The body of `/v1/completions`."""

    prompt: Text | list[Text] | list[TokenId] | list[list[TokenId]]
    logprobs: Annotated[int, Field(ge=0)] | None = None
    best_of: Annotated[int, Field(ge=1)] | None = None
    chat_template_kwargs: dict[Text, Any] | None = None

    @model_validator(mode="after")
    def _no_template(self) -> CompletionRequest:
        if self.chat_template_kwargs:
            raise ValueError("chat_template_kwargs is for chats; a completion goes through no template")
        return self

    @model_validator(mode="after")
    def _no_best_of(self) -> CompletionRequest:
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


class ErrorBody(BaseModel):
    """OpenAI's shape of an error."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorReply(BaseModel):
    """The body of every reply that is not a success."""

    error: ErrorBody


class Usage(BaseModel):
    """Tokens."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class Choice(BaseModel):
    """One answer; a chat has `message`, a completion `text`."""

    index: int
    finish_reason: Literal["stop", "length"]
    message: dict[str, Any] | None = None
    text: str | None = None
    logprobs: dict[str, Any] | None = None
    guidance: dict[str, Any] | None = None


class Completion(BaseModel):
    """The reply to a chat or a completion."""

    id: str
    object: Literal["chat.completion", "text_completion"]
    created: int
    model: str
    choices: list[Choice]
    usage: Usage


class Named(BaseModel):
    """A model, a preset or a guide."""

    model_config = ConfigDict(extra="allow")

    id: str
    object: Literal["model", "guide"]


class NamedList(BaseModel):
    """OpenAI's shape of a list."""

    object: Literal["list"]
    data: list[Named]


class Status(BaseModel):
    """How the server is."""

    status: str
