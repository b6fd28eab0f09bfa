"""What the tools of a chat mean: how its answers may call them, and what earlier calls in it have to be like."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from trimtab.calls import CallFormat, Function
from trimtab.constraining.calls import arguments_schema
from trimtab.constraining.entry import grammars
from trimtab.constraint import Constraint, Schema
from trimtab.core import Chat, KnownModel
from trimtab.errors import MissingExtraError, OptionError, PromptError
from trimtab.prompts import call_format, options_of, reads_key
from trimtab.serving.message_schema import Message
from trimtab.serving.problems import MalformedError
from trimtab.serving.reading_calls import CallReader
from trimtab.serving.schema import ChatRequest
from trimtab.serving.tool_schema import ChosenTool, Tool, is_object
from trimtab.serving.wordings import cut

TOOLS = "tools"
"""What a request and a chat template call them."""


@dataclass(frozen=True, slots=True)
class Calling:
    """How the answers to a chat call tools."""

    written: CallFormat
    constraint: Constraint
    is_first: bool
    """Whether a call can stand at the answer's beginning alone."""

    def reader(self) -> CallReader:
        """What reads one answer."""
        return CallReader(self.written, is_first=self.is_first)


def calling_of(body: ChatRequest, prompt: Chat, model: KnownModel) -> Calling | None:
    """How a chat's answers call its tools; None: they call none. `prompt` is the chat as the template is told it.

    What constrains the answers is compiled here. Raises MalformedError for tools that this model cannot call.
    """
    tools, choice = body.callable, body.tool_choice
    if not tools:
        return None
    if (guided := next((name for name in _GUIDED if getattr(body, name) is not None), None)) is not None:
        raise MalformedError(
            f'{guided} says what the answer must look like, and so do {TOOLS}; send one, or tool_choice: "none".',
            guided,
        )
    options = {name: value for name, value in options_of(prompt).items() if name != TOOLS}
    try:
        written = call_format(model, options)
    except PromptError as error:
        raise MalformedError(str(error), TOOLS) from None
    called = tools
    if isinstance(choice, ChosenTool):
        called = [tool for tool in tools if tool.function.name == choice.function.name]
    is_required = choice == "required" or isinstance(choice, ChosenTool)
    form = None if is_required else _form(body, written)
    several = body.parallel_tool_calls is not False and not isinstance(choice, ChosenTool)
    made = partial(_constraint, written, required=is_required, several=several, form=form)
    constraint = _compiled(called, tools, model, made)
    return Calling(written, constraint, is_first=form is not None or not written.is_anywhere)


def _constraint(
    written: CallFormat, tools: Sequence[Tool], *, required: bool, several: bool, form: Schema | None
) -> Constraint:
    functions = [Function(tool.function.name, tool.function.parameters) for tool in tools]
    return Constraint.calls(written, functions, required=required, several=several, form=form)


def _form(body: ChatRequest, written: CallFormat) -> Schema | None:
    """What an answer without a call must look like; None: any text."""
    asked = body.response_format
    if asked is None or asked.type == "text":
        return None
    if not written.is_anywhere or written.follows_text:
        raise MalformedError(
            "response_format cannot be told from a call, as this model's chat template writes one; send it without "
            f'{TOOLS}, or tool_choice: "none".',
            "response_format",
        )
    return {"type": "object"} if asked.json_schema is None else asked.json_schema.json_schema


_GUIDED = ("guided_json", "guided_regex", "guided_grammar", "guided_choice")


def _compiled(
    tools: Sequence[Tool], shown: Sequence[Tool], model: KnownModel, made: Callable[[Sequence[Tool]], Constraint]
) -> Constraint:
    """What constrains calls of tools, compiled already. Raises MalformedError that says which cannot be used."""
    try:
        compiler = grammars(model)
        constraint = made(tools)
        compiler.compiled(constraint)
    except MissingExtraError as error:
        raise MalformedError(f"{TOOLS} is not supported by this server, which lacks {error.package}.", TOOLS) from None
    except OptionError as error:
        tool, why = _unusable(tools, partial(_problem, model, made))
        param = TOOLS if why is None else f"{TOOLS}.{shown.index(tool)}.function.parameters"
        raise MalformedError(f"{param}: {why or error}", param) from None
    return constraint


def _unusable(
    tools: Sequence[Tool], problem: Callable[[Sequence[Tool]], OptionError | None]
) -> tuple[Tool, OptionError | None]:
    """A tool that cannot be used and why, found by halves; None for why: each can be used by itself."""
    low, high = 0, len(tools)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if problem(tools[low:middle]) is not None else (middle, high)
    return tools[low], problem(tools[low:high])


def _problem(
    model: KnownModel, made: Callable[[Sequence[Tool]], Constraint], tools: Sequence[Tool]
) -> OptionError | None:
    """Why some tools cannot be used; of one alone, what is wrong with its schema."""
    try:
        if len(tools) == 1:
            grammars(model).compiled(Constraint.json_schema(arguments_schema(tools[0].function.parameters)))
        else:
            grammars(model).compiled(made(tools))
    except OptionError as error:
        return error
    return None


def messages_of(body: ChatRequest, model: KnownModel) -> list[dict[str, Any]]:
    """The messages with what the chat template reads of each.

    Clients send histories whole; what the template has no place for (a call of a tool, a thought) is left out. Raises
    MalformedError where calls that it has a place for are not calls, and for a result that no call asked for.
    """
    called = {}
    if body.tools or reads_key(model, "tool_calls"):
        called = _called(body.messages)
    read = {key for message in body.messages for key in message.keys if reads_key(model, key)}
    messages = []
    for message in body.messages:
        keys = {key: value for key, value in message.keys.items() if key in read}
        name = called.get(message.tool_call_id or "")
        if message.role == "tool" and name is not None and message.name is None and reads_key(model, "name"):
            keys["name"] = name
        messages.append({"role": message.role, "content": message.text, **keys})
    return messages


def _called(messages: Sequence[Message]) -> dict[str, str]:
    """Id of each call in a history -> the function that was called."""
    called: dict[str, str] = {}
    for place, message in enumerate(messages):
        for number, call in enumerate(message.tool_calls or ()):
            call_id, name = _checked(call, f"messages.{place}.tool_calls.{number}")
            called[call_id] = name
        if message.role == "tool" and message.tool_call_id not in called:
            param = f"messages.{place}.tool_call_id"
            given = "is missing" if message.tool_call_id is None else f"is {cut(message.tool_call_id)!r}"
            known = ", ".join(map(cut, called)) or "none"
            raise MalformedError(
                f"{param} {given}; a tool's message names the earlier call that it answers. Calls so far: {known}.",
                param,
            )
    return called


def _checked(call: dict[str, Any], place: str) -> tuple[str, str]:
    """(id, function's name) of a call in a history. Raises MalformedError."""
    call_id, kind, function = call.get("id"), call.get("type", "function"), call.get("function")
    if not isinstance(call_id, str):
        raise MalformedError(f"{place}.id: a call has an id, which its result names; give a text.", f"{place}.id")
    if kind != "function" or not isinstance(function, dict):
        raise MalformedError(f'{place}: give a call as {{"id", "type": "function", "function"}}.', place)
    name, arguments = function.get("name"), function.get("arguments")
    if not isinstance(name, str):
        raise MalformedError(f"{place}.function.name: give the name of the function.", f"{place}.function.name")
    if not is_object(arguments):
        param = f"{place}.function.arguments"
        raise MalformedError(f"{param}: give the arguments as a text that holds a JSON object.", param)
    return call_id, name
