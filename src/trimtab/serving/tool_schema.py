"""The wire types of tools, as OpenAI's chats have them: functions that a model may call, and which of them it shall."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, Discriminator, Field, Tag, model_validator

from trimtab.calls import is_name
from trimtab.serving.wire_schema import FieldError, Text, Wire

MAX_TOOLS = 128
"""OpenAI's limit."""
CHOICE_MEANING = (
    "`none`: no call; `auto`: text or calls; `required`: calls; a function's name: one call of it (not given: auto)"
)
SEVERAL_MEANING = "whether an answer may hold several calls, where the chat template writes several (not given: it may)"


def _function_name(name: str) -> str:
    if not is_name(name):
        raise ValueError("a function's name has 1 to 64 of the characters a-z, A-Z, 0-9, '_' and '-'")
    return name


def _function_alone(data: Any) -> Any:
    kind = data.get("type") if isinstance(data, dict) else None
    if isinstance(kind, str) and kind != "function":
        raise ValueError(f"a tool of type {kind[:64]!r} cannot be called; this server knows functions alone")
    return data


FunctionName = Annotated[str, AfterValidator(_function_name)]


class ToolFunction(Wire):
    """A function: its name, what it does, and the JSON schema of its arguments. It is always followed strictly."""

    name: FunctionName
    description: Text | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Wire):
    """A tool; functions are the only kind there is here."""

    type: Literal["function"]
    function: ToolFunction

    @model_validator(mode="before")
    @classmethod
    def _functions_alone(cls, data: Any) -> Any:
        return _function_alone(data)

    @property
    def told(self) -> dict[str, Any]:
        """What the chat template is told of it."""
        function = self.function
        said = {} if function.description is None else {"description": function.description}
        parameters = {"type": "object", "properties": {}} if function.parameters is None else function.parameters
        return {"type": "function", "function": {"name": function.name, **said, "parameters": parameters}}


class ResponseTool(ToolFunction):
    """A tool as `/v1/responses` has it: a function, without anything around it."""

    type: Literal["function"]

    @model_validator(mode="before")
    @classmethod
    def _functions_alone(cls, data: Any) -> Any:
        return _function_alone(data)

    def as_chats(self) -> Tool:
        """The same as a chat says it."""
        function = {name: getattr(self, name) for name in ToolFunction.model_fields}
        return Tool.model_construct(type="function", function=ToolFunction.model_construct(**function))


class ChosenFunction(Wire):
    """The function that shall be called."""

    name: Text


class ChosenTool(Wire):
    """The tool that shall be called."""

    type: Literal["function"]
    function: ChosenFunction


class ResponseChosenTool(Wire):
    """The tool that shall be called, as `/v1/responses` has it."""

    type: Literal["function"]
    name: Text

    def as_chats(self) -> ChosenTool:
        """The same as a chat says it."""
        return ChosenTool.model_construct(type="function", function=ChosenFunction.model_construct(name=self.name))


_Words = Literal["none", "auto", "required"]


def _kind_of_choice(value: Any) -> str | None:
    return "word" if value in get_args(_Words) else "tool" if isinstance(value, dict) else None


_BY_KIND = Discriminator(
    _kind_of_choice,
    custom_error_type="tool_choice",
    custom_error_message='give "none", "auto", "required", or an object that names one of the tools',
)
_Word = Annotated[_Words, Tag("word")]
Tools = Annotated[list[Tool], Field(fail_fast=True, max_length=MAX_TOOLS)]
ToolChoice = Annotated[_Word | Annotated[ChosenTool, Tag("tool")], _BY_KIND]
ResponseTools = Annotated[list[ResponseTool], Field(fail_fast=True, max_length=MAX_TOOLS)]
ResponseToolChoice = Annotated[_Word | Annotated[ResponseChosenTool, Tag("tool")], _BY_KIND]


def is_object(text: Any) -> bool:
    """Whether a text holds a JSON object, as the arguments of a call do."""
    try:
        return isinstance(text, str) and isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def check_tools(tools: Sequence[Tool], choice: str | ChosenTool | None, *, name_at: str = "function.name") -> None:
    """Raise FieldError for two tools of one name, and for a choice that no tool can meet.

    `name_at` says where in a tool its name stands.
    """
    names = [tool.function.name for tool in tools]
    for place, name in enumerate(names):
        if name in names[:place]:
            raise FieldError(
                f"tools.{place}.{name_at}",
                f"two tools are called {name!r}; a call could mean either, so rename one",
            )
    if isinstance(choice, ChosenTool) and choice.function.name not in names:
        listed = ", ".join(names) or "none"
        raise FieldError(
            "tool_choice", f"tool_choice names {choice.function.name[:64]!r}, which is none of the tools: {listed}"
        )
    if choice == "required" and not names:
        raise FieldError("tool_choice", "tool_choice asks for a call, and there are no tools; give some")
