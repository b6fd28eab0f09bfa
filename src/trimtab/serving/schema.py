"""The wire types: what OpenAI's and vLLM's clients send, and what guides add to it.

A field is honoured, or refused by its name, or one of those that are ignored (`neutral` lists the latter two); one that
nobody knows is refused. Null stands for a field that is not there.

A body is checked in a time that its size bounds: a list is given up at its first wrong item, and lists, mappings and
names have a length that they may not exceed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    field_validator,
    model_validator,
)

from trimtab.serving import neutral
from trimtab.serving.form_schema import GuidedChoice, GuidedGrammar, GuidedJson, GuidedRegex, ResponseFormat
from trimtab.serving.guidance_schema import Guidance
from trimtab.serving.message_schema import Message
from trimtab.serving.sampling import bounds, meaning
from trimtab.serving.tool_schema import CHOICE_MEANING, SEVERAL_MEANING, Tool, ToolChoice, Tools, check_tools
from trimtab.serving.wire_schema import (
    MAX_ITEMS,
    Biases,
    FieldError,
    Name,
    NamedIds,
    Text,
    Texts,
    TokenIds,
    Wire,
    few,
    text_or_list,
)

Body = TypeVar("Body", bound=BaseModel)


def _kind_of_prompt(value: Any) -> str | None:
    if not isinstance(value, list):
        return text_or_list(value)
    first = value[0] if value else ""
    is_number = isinstance(first, int | float) and not isinstance(first, bool)
    return "id_lists" if isinstance(first, list) else "ids" if is_number else "list"


class StreamOptions(Wire):
    """OpenAI's."""

    ignored: ClassVar[neutral.Ignored] = neutral.IGNORED_IN_STREAM_OPTIONS
    refused: ClassVar[neutral.Refused] = neutral.REFUSED_IN_STREAM_OPTIONS
    include_usage: bool | None = None


class Sampled(Wire):
    """How answers are sampled, of whatever form the request is."""

    model: Name = Field(description="the base's name, or a preset's: both are in /v1/models")
    stream: bool | None = Field(default=None, description="the answer in pieces, as server-sent events")
    temperature: Annotated[float, bounds("temperature")] | None = Field(
        default=None, description=meaning("temperature")
    )
    top_p: Annotated[float, bounds("top_p")] | None = Field(default=None, description=meaning("top_p"))
    top_k: Annotated[int, bounds("top_k")] | None = Field(default=None, description=f"ours: {meaning('top_k')}")
    min_p: Annotated[float, bounds("min_p")] | None = Field(default=None, description=f"ours: {meaning('min_p')}")
    repetition_penalty: Annotated[float, bounds("repetition_penalty")] | None = Field(
        default=None, description=f"ours: {meaning('repetition_penalty')}"
    )
    presence_penalty: Annotated[float, bounds("presence_penalty")] | None = Field(
        default=None, description=meaning("presence_penalty")
    )
    frequency_penalty: Annotated[float, bounds("frequency_penalty")] | None = Field(
        default=None, description=meaning("frequency_penalty")
    )
    logit_bias: Biases | None = Field(default=None, description=meaning("logit_bias"))
    min_tokens: Annotated[int, bounds("min_tokens")] | None = Field(default=None, description=meaning("min_tokens"))
    ignore_eos: bool | None = Field(default=None, description=meaning("ignore_eos"))
    seed: Annotated[int, bounds("seed")] | None = Field(default=None, description=meaning("seed"))
    stop: (
        Annotated[
            Annotated[Text, Tag("text")] | Annotated[Texts, Tag("list")],
            Discriminator(
                text_or_list, custom_error_type="stop", custom_error_message="give a text, or a list of texts"
            ),
        ]
        | None
    ) = Field(default=None, description="a text, or a list of them: where one comes, the answer ends before it")
    stop_token_ids: NamedIds | None = Field(default=None, description=meaning("stop_token_ids"))
    guided_json: GuidedJson = None
    guided_regex: GuidedRegex = None
    guided_grammar: GuidedGrammar = None
    guided_choice: GuidedChoice = None
    guidance: Guidance | None = Field(
        default=None, description="which guides steer how strongly, and what is said of it"
    )

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


class Asked(Sampled):
    """What chats and completions have in common."""

    ignored: ClassVar[neutral.Ignored] = neutral.IGNORED
    n: Annotated[int, Field(ge=1)] | None = Field(default=None, description="answers to each prompt")
    max_tokens: Annotated[int, bounds("max_new_tokens")] | None = Field(
        default=None, description=meaning("max_new_tokens")
    )
    prompt_logprobs: Annotated[int, Field(ge=0)] | None = Field(
        default=None,
        description="as vLLM's: log-probabilities of the prompt's own tokens, each with so many rivals",
    )
    response_format: ResponseFormat | None = Field(default=None, description="what the answer must look like")
    stream_options: StreamOptions | None = Field(
        default=None, description="`include_usage`: the tokens' account at the end of a stream"
    )

    @model_validator(mode="after")
    def _prompts_are_scored_at_once(self) -> Asked:
        if self.stream and (name := self.scored_by) is not None:
            raise FieldError(name, f"{name} speaks of the prompt as a whole, which no stream does; leave stream out")
        return self

    @property
    def scored_by(self) -> str | None:
        """The field that asks for log-probabilities of the prompt; None: no field does."""
        return None if self.prompt_logprobs is None else "prompt_logprobs"


class ChatRequest(Asked):
    """The body of `/v1/chat/completions`."""

    ignored: ClassVar[neutral.Ignored] = neutral.IGNORED_IN_CHATS
    refused: ClassVar[neutral.Refused] = {**neutral.REFUSED, **neutral.REFUSED_IN_CHATS}
    messages: list[Message] = Field(
        min_length=1,
        max_length=MAX_ITEMS,
        fail_fast=True,
        description="the conversation, for the chat template",
    )
    max_completion_tokens: Annotated[int, bounds("max_new_tokens")] | None = Field(
        default=None, description=meaning("max_new_tokens")
    )
    logprobs: bool | None = Field(default=None, description="log-probabilities of the answer's tokens")
    top_logprobs: Annotated[int, Field(ge=0)] | None = Field(
        default=None, description="with `logprobs`: the most probable tokens of each place besides"
    )
    tools: Tools | None = Field(default=None, description="functions that the model may call")
    tool_choice: ToolChoice | None = Field(default=None, description=CHOICE_MEANING)
    parallel_tool_calls: bool | None = Field(default=None, description=SEVERAL_MEANING)
    chat_template_kwargs: Annotated[dict[Name, Any], BeforeValidator(few)] | None = Field(
        default=None, description="as vLLM's: what the chat template is told, such as enable_thinking"
    )
    add_generation_prompt: bool | None = Field(
        default=None,
        description="as vLLM's: whether a fresh turn of the assistant's is opened (not given: unless an assistant's "
        "message is last, which is continued)",
    )
    continue_final_message: bool | None = Field(
        default=None, description="as vLLM's: whether an assistant's message at the end is continued (not given: it is)"
    )

    @model_validator(mode="after")
    def _open_or_continue(self) -> ChatRequest:
        if self.continue_final_message and self.messages[-1].role != "assistant":
            raise FieldError(
                "continue_final_message",
                "continue_final_message is for an assistant's message at the end; leave it out",
            )
        if self.continue_final_message and self.add_generation_prompt:
            raise FieldError(
                "add_generation_prompt",
                "no message can be continued behind a fresh turn; leave it out",
            )
        if None not in (self.max_tokens, self.max_completion_tokens) and self.max_tokens != self.max_completion_tokens:
            raise ValueError("max_tokens and max_completion_tokens differ; send one of them")
        return self

    @model_validator(mode="after")
    def _tools_can_be_chosen(self) -> ChatRequest:
        check_tools(self.tools or [], self.tool_choice)
        return self

    @property
    def callable(self) -> list[Tool]:
        """The tools that the model is shown."""
        return [] if self.tool_choice == "none" else list(self.tools or [])

    @property
    def opened(self) -> bool | None:
        """How the messages end (`core.Chat.opened`)."""
        is_last = self.messages[-1].role == "assistant"
        if self.add_generation_prompt or (is_last and self.continue_final_message is False):
            return self.add_generation_prompt is not False
        return False if self.add_generation_prompt is False and not is_last else None


class CompletionRequest(Asked):
    """The body of `/v1/completions`."""

    refused: ClassVar[neutral.Refused] = {**neutral.REFUSED, **neutral.REFUSED_IN_COMPLETIONS}
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
    ] = Field(description="a text, a list of texts, a list of token ids, or a list of such lists")
    logprobs: Annotated[int, Field(ge=0)] | None = Field(
        default=None, description="log-probabilities of the tokens, and so many of the most probable ones besides"
    )
    best_of: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="equal to `n` (1 where that is left out)"
    )
    max_tokens: Annotated[int, Field(ge=0)] | None = Field(
        default=None, description=f"{meaning('max_new_tokens')}; 0: none, with `echo` or `prompt_logprobs`"
    )
    echo: bool | None = Field(
        default=None,
        description="the prompt in front of the answer; with `logprobs` also what the policy says of its tokens",
    )

    @model_validator(mode="after")
    def _no_best_of(self) -> CompletionRequest:
        if self.best_of is not None and self.best_of != (self.n or 1):
            raise FieldError(
                "best_of",
                f"best_of is {self.best_of} and n is {self.n or 1}; no answers are made here to be thrown away, so "
                "leave best_of out",
            )
        return self

    @model_validator(mode="after")
    def _something_is_asked_for(self) -> CompletionRequest:
        if self.max_tokens == 0 and not self.echo and self.prompt_logprobs is None:
            raise FieldError("max_tokens", "max_tokens is 0, so nothing is asked for; give 1, or echo: true")
        return self

    @property
    def scored_by(self) -> str | None:
        """The field that asks for log-probabilities of the prompt; None: no field does."""
        return "echo" if self.echo and self.logprobs is not None else super().scored_by

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
