"""A model's chat template: messages to text, and what the template reads of what it is given.

Templates are programs that came with a model. Whatever one raises becomes a PromptError with its reason. What a prompt
says to a template that never reads it (a thought, a call of a tool, an option) is refused by name, since it would be
dropped without a word.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

import jinja2
import jinja2.ext
import jinja2.sandbox
from jinja2 import nodes
from jinja2.parser import Parser

from trimtab.columns import is_empty, is_metadata
from trimtab.core import Chat, Message
from trimtab.errors import PromptError, about

THOUGHTS = ("reasoning_content", "reasoning", "thinking")
"""What a message's thought is called; templates read one of the three."""

MARK = "TheAnswerEndsHere"
"""What stands for a text where it is asked what a template makes of one."""

_LONGEST_REASON = 300

_ALWAYS = frozenset({"messages", "add_generation_prompt", "bos_token", "eos_token", "pad_token", "unk_token"})
"""What a template is told in any case, so that it is not an option."""


def check_messages(messages: Sequence[Message]) -> None:
    """Raise PromptError unless these are chat messages with a role and a text (none beside calls of tools)."""
    if not messages:
        raise PromptError("The prompt is empty. Give at least one message.")
    for number, message in enumerate(messages, 1):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise PromptError(f"Message {number} is {message!r}; a message is a mapping with `role` and `content`.")
        content = message.get("content")
        if not isinstance(content, str) and not (content is None and message.get("tool_calls")):
            raise PromptError(f"The content of message {number} is {content!r}; give a string.")


def render(hf: Any, messages: Sequence[Message], *, options: Mapping[str, Any] | None = None, opened: bool) -> str:
    """Messages as the text that the tokenizer's chat template makes of them; `opened`: ready for an answer.

    Keys of messages and options that the template does not read are passed on all the same (`readable` takes them
    out or refuses them). Raises PromptError for whatever the template raises.
    """
    chosen = dict(options or {})
    template = _template_of(hf, chosen)
    shaped = _in_parts if _reads(template).loops_over_content and _wants_parts(hf, template) else dict
    read = [shaped(_named_as_read(message, template)) for message in messages]
    if any(message.get("tool_calls") for message in read) and _wants_arguments_as_text(hf, template):
        read = [_with_calls(message, _with_text) for message in read]
    return _rendered(hf, template, read, chosen, opened)


def _rendered(
    hf: Any, template: str, messages: Sequence[dict[str, Any]], chosen: Mapping[str, Any], opened: bool
) -> str:
    try:
        text: str = hf.apply_chat_template(
            messages,
            chat_template=template,
            tokenize=False,
            add_generation_prompt=opened,
            **chosen,
        )
    except Exception as error:  # a template is somebody's program, and may raise anything
        raise PromptError(f"The model's chat template refuses these messages: {_reason(error)}.") from None
    return text


def _in_parts(message: Mapping[str, Any]) -> dict[str, Any]:
    return {**message, "content": [{"type": "text", "text": message["content"]}] if message["content"] else []}


@functools.lru_cache(maxsize=16)
def _wants_parts(hf: Any, template: str) -> bool:
    """Whether a template that walks through a message's content finds text in a list of parts only."""
    message = {"role": "user", "content": MARK}
    for shaped, wants in ((dict, False), (_in_parts, True)):
        try:
            if MARK in _rendered(hf, template, [shaped(message)], {}, True):
                return wants
        except PromptError:
            continue
    return False


@functools.lru_cache(maxsize=16)
def _wants_arguments_as_text(hf: Any, template: str) -> bool:
    """Whether a template writes the arguments of a call as JSON only where it is given them as JSON."""
    for arguments, as_text in (({MARK: MARK}, False), (json.dumps({MARK: MARK}), True)):
        call = {"id": MARK[:9], "type": "function", "function": {"name": MARK, "arguments": arguments}}
        said = {"role": "assistant", "content": "", "tool_calls": [call]}
        try:
            text = _rendered(hf, template, [{"role": "user", "content": MARK}, said], {}, False)
        except PromptError:
            continue
        if re.search(rf'"{MARK}"\s*:\s*"{MARK}"', text):
            return as_text
    return False


def readable(hf: Any, messages: Sequence[Message]) -> Chat:
    """Messages as a `Chat` of what the template reads.

    Raises PromptError for a key of a message that means something and that the template never reads, and for a
    required option that it never reads; options that are not required are left out.
    """
    check_messages(messages)
    chat = messages if isinstance(messages, Chat) else Chat(messages)
    reads = _reads(_template_of(hf, chat.options))
    for number, message in enumerate(chat, 1):
        for key, value in message.items():
            if not (key in ("role", "content") or is_empty(value) or is_metadata(key) or reads.key(key)):
                raise PromptError(
                    f"Message {number} has {key!r}, which the model's chat template never reads, so it would be lost. "
                    "Leave it out, put it into `content`, or use a model whose template reads it."
                )
    return Chat(chat, _options(chat, reads), required=chat.required, opened=chat.opened)


def reads_key(hf: Any, key: str, options: Mapping[str, Any] | None = None) -> bool:
    """Whether the chat template may read this key of a message; False without a template."""
    try:
        return _reads(_template_of(hf, options or {})).key(key)
    except PromptError:
        return False


def reads_option(hf: Any, name: str, options: Mapping[str, Any] | None = None) -> bool:
    """Whether the chat template may read this option; False without a template."""
    try:
        return name in _reads(_template_of(hf, options or {})).names
    except PromptError:
        return False


def _options(chat: Chat, reads: _Reads) -> dict[str, Any]:
    found = {}
    for name, value in chat.options.items():
        if name in reads.names and name not in _ALWAYS:
            found[name] = value
        elif chat.required and (name in _ALWAYS or not is_empty(value)):
            listed = ", ".join(sorted(reads.options)) or "none"
            error = PromptError(
                f"The model's chat template takes no option {name!r}, so it would do nothing. Options that it reads: "
                f"{listed}."
            )
            raise about(f"template_options.{name}", error)
    return found


def _named_as_read(message: Message, template: str) -> dict[str, Any]:
    """A message with its thought under the name that the template reads, and a text for content."""
    found = {**message, "content": message.get("content") or ""}
    found = _with_calls(found, _with_arguments)
    reads = _reads(template)
    for name in THOUGHTS:
        if name in found and not reads.exactly(name):
            known = next((other for other in THOUGHTS if reads.exactly(other)), name)
            found.setdefault(known, found[name])
    return found


def _with_calls(message: Mapping[str, Any], changed: Callable[[Any], Any]) -> dict[str, Any]:
    """A message with each of its calls of tools changed."""
    calls = message.get("tool_calls")
    return (
        {**message, "tool_calls": [changed(call) for call in calls]} if isinstance(calls, Sequence) else dict(message)
    )


def _with_text(call: Any) -> Any:
    """A call of a tool with its arguments as JSON text."""
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("arguments"), Mapping):
        return call
    return {**call, "function": {**function, "arguments": json.dumps(function["arguments"], ensure_ascii=False)}}


def _with_arguments(call: Any) -> Any:
    """A call of a tool with its arguments as an object, as templates expect it; OpenAI's wire has them as JSON text."""
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("arguments"), str):
        return call
    try:
        arguments = json.loads(function["arguments"])
    except (ValueError, RecursionError):
        return call
    return {**call, "function": {**function, "arguments": arguments}} if isinstance(arguments, dict) else call


def _template_of(hf: Any, options: Mapping[str, Any]) -> str:
    """The template that transformers would use. Raises PromptError where there is none."""
    if not hf.chat_template:
        raise PromptError("This model has no chat template. Give the prompt as raw text or token ids.")
    try:
        template: str = hf.get_chat_template(None, options.get("tools"))
    except ValueError:
        names = ", ".join(sorted(map(str, hf.chat_template)))
        raise PromptError(
            f"This model has several chat templates ({names}) and none called `default`, so chat messages cannot be "
            "read. Give the prompt as raw text, or set the tokenizer's chat_template to one of them."
        ) from None
    return template


def _reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "it calls itself without end"
    text = str(error) if isinstance(error, jinja2.TemplateError) else f"{type(error).__name__}: {error}"
    text = " ".join(text.encode(errors="replace").decode().split())
    return (text if len(text) <= _LONGEST_REASON else text[:_LONGEST_REASON] + "...").rstrip(".: ")


@dataclass(frozen=True, slots=True)
class _Reads:
    """What a template reads."""

    names: frozenset[str]
    """Every variable that is read somewhere."""
    options: frozenset[str]
    """Those that come from outside and are not told in any case."""
    words: frozenset[str]
    """Attributes, keys and other constants: what it may read of a message."""
    whole: bool
    """Whether messages are written out whole, all keys of them."""
    loops_over_content: bool
    """Whether it walks through the content of a message, as those do that take pictures."""

    def key(self, name: str) -> bool:
        """Whether a message's key may be read, a thought under any of its names."""
        return self.exactly(name) or (name in THOUGHTS and any(map(self.exactly, THOUGHTS)))

    def exactly(self, name: str) -> bool:
        return self.whole or name in self.words


class _Generation(jinja2.ext.Extension):
    """`{% generation %}`, by which templates mark what an assistant said; here it is what it holds."""

    tags = {"generation"}  # noqa: RUF012  jinja's own

    def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


@functools.lru_cache(maxsize=64)
def _reads(template: str) -> _Reads:
    """What a template reads, off its syntax tree. Raises PromptError for one that is not a template."""
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(extensions=[_Generation, jinja2.ext.loopcontrols])
    try:
        tree = environment.parse(template)
    except Exception as error:  # RecursionError too, for one that is nested without end
        raise PromptError(f"The model's chat template cannot be read: {_reason(error)}.") from None
    loaded = {name.name for name in tree.find_all(nodes.Name) if name.ctx == "load"}
    stored = {name.name for name in tree.find_all(nodes.Name) if name.ctx != "load"}
    macros = {macro.name for macro in tree.find_all(nodes.Macro)}
    globals_ = {*environment.globals, "raise_exception", "strftime_now", "namespace", "loop", *macros}
    # `{% set x = x | default(true) %}` reads an option and stores it under its own name.
    options = loaded - globals_ - _ALWAYS - (stored - _defaulted(tree))
    return _Reads(
        names=frozenset(loaded - globals_),
        options=frozenset(options),
        words=frozenset(_words(tree)),
        whole=_writes_whole(tree),
        loops_over_content=_loops_over_content(tree),
    )


def _defaulted(tree: nodes.Template) -> set[str]:
    """Variables that are asked whether they are defined, or given a default."""
    tests = {
        item.node.name
        for item in tree.find_all(nodes.Test)
        if item.name in ("defined", "undefined", "none") and isinstance(item.node, nodes.Name)
    }
    filters = {
        item.node.name
        for item in tree.find_all(nodes.Filter)
        if item.name in ("default", "d") and isinstance(item.node, nodes.Name)
    }
    return tests | filters


def _words(tree: nodes.Template) -> Iterator[str]:
    for attribute in tree.find_all(nodes.Getattr):
        yield attribute.attr
    for constant in tree.find_all(nodes.Const):
        if isinstance(constant.value, str):
            yield constant.value


def _loops_over_content(tree: nodes.Template) -> bool:
    walked = [loop.iter for loop in tree.find_all(nodes.For)]
    return any(
        (isinstance(item, nodes.Getattr) and item.attr == "content")
        or (isinstance(item, nodes.Getitem) and isinstance(item.arg, nodes.Const) and item.arg.value == "content")
        or (isinstance(item, nodes.Name) and "content" in item.name)
        for item in walked
    )


def _writes_whole(tree: nodes.Template) -> bool:
    """Whether a message, or all of them, is written as JSON or walked key by key."""
    found = [item.node for item in tree.find_all(nodes.Filter) if item.name in ("tojson", "items", "dictsort")]
    found += [item.node for item in tree.find_all(nodes.Getattr) if item.attr in ("items", "values")]
    known = {"messages", "message"}
    for loop in tree.find_all(nodes.For):
        if any("messages" in name.name for name in (loop.iter, *loop.iter.find_all(nodes.Name)) if _is_name(name)):
            known |= {name.name for name in (loop.target, *loop.target.find_all(nodes.Name)) if _is_name(name)}
    return any(_is_name(item) and item.name in known for item in found)


def _is_name(node: nodes.Node | None) -> TypeGuard[nodes.Name]:
    return isinstance(node, nodes.Name)
