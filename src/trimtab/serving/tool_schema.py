"""The wire types of tools, as OpenAI's chats have them: functions that a model may call, and which of them it shall."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Discriminator, Field, Tag, model_validator

from trimtab.calls import is_name
from trimtab.serving.wire_schema import FieldError, Text, Wire

MAX_TOOLS = 128
"""OpenAI's limit."""


def _function_name(name: str) -> str:
    if not is_name(name):
        raise ValueError("a function's name has 1 to 64 of the characters a-z, A-Z, 0-9, '_' and '-'")
    return name


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
        kind = data.get("type") if isinstance(data, dict) else None
        if isinstance(kind, str) and kind != "function":
            raise ValueError(f"a tool of type {kind[:64]!r} cannot be called; this server knows functions alone")
        return data

    @property
    def told(self) -> dict[str, Any]:
        """What the chat template is told of it."""
        function = self.function
        said = {} if function.description is None else {"description": function.description}
        parameters = {"type": "object", "properties": {}} if function.parameters is None else function.parameters
        return {"type": "function", "function": {"name": function.name, **said, "parameters": parameters}}


class ChosenFunction(Wire):
    """The function that shall be called."""

    name: Text


class ChosenTool(Wire):
    """The tool that shall be called."""

    type: Literal["function"]
    function: ChosenFunction


def _kind_of_choice(value: Any) -> str | None:
    return "word" if isinstance(value, str) else "tool" if isinstance(value, dict) else None


Tools = Annotated[list[Tool], Field(fail_fast=True, max_length=MAX_TOOLS)]
ToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("word")] | Annotated[ChosenTool, Tag("tool")],
    Discriminator(
        _kind_of_choice,
        custom_error_type="tool_choice",
        custom_error_message='give "none", "auto", "required", or an object that names one of the tools',
    ),
]


def check_tools(tools: Sequence[Tool], choice: str | ChosenTool | None) -> None:
    """Raise FieldError for two tools of one name, and for a choice that no tool can meet."""
    names = [tool.function.name for tool in tools]
    for place, name in enumerate(names):
        if name in names[:place]:
            raise FieldError(
                f"tools.{place}.function.name",
                f"two tools are called {name!r}; a call could mean either, so rename one",
            )
    if isinstance(choice, ChosenTool) and choice.function.name not in names:
        listed = ", ".join(names) or "none"
        raise FieldError(
            "tool_choice", f"tool_choice names {choice.function.name[:64]!r}, which is none of the tools: {listed}"
        )
    if choice == "required" and not names:
        raise FieldError("tool_choice", "tool_choice asks for a call, and there are no tools; give some")
