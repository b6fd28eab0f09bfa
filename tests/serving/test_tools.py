"""Calls of tools over HTTP: what clients send, what answers call, whole and in pieces; what is refused, by place."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jsonschema
import pytest

pytest.importorskip("llguidance", reason="llguidance is not installed")

from tests.call_templates import WITH_CALLS, tokenizer_of
from tests.serving.conftest import Running, Start
from tests.serving.test_bodies import _paths, _with
from tests.serving.test_http import CHAT, call, chat
from tests.tiny import byte_llama
from trimtab import TabularModel
from trimtab.decoding.decoder import Decoder
from trimtab.models.hf import HFModel
from trimtab.serving.asking import Catalogue

LOOK: dict[str, Any] = {
    "type": "object",
    "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 99}, "city": {"enum": ["Rome", "Bern"]}},
    "required": ["n", "city"],
    "additionalProperties": False,
}
TOOLS: list[dict[str, Any]] = [
    {"type": "function", "function": {"name": "look", "description": "Looks.", "parameters": LOOK, "strict": True}},
    {"type": "function", "function": {"name": "look_up", "parameters": {**LOOK, "required": ["n"]}}},
    {"type": "function", "function": {"name": "now"}},
]
SCHEMAS = {
    "look": LOOK,
    "look_up": {**LOOK, "required": ["n"]},
    "now": {"type": "object", "additionalProperties": False},
}
PATH = "/v1/chat/completions"


def named(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name}}


def asked(**more: Any) -> dict[str, Any]:
    return chat(tools=TOOLS, max_tokens=300, **more)


@pytest.fixture(scope="module", params=["hermes", "listed"])
def server(start: Start, request: pytest.FixtureRequest) -> Iterator[Running]:
    with _server(start, request.param) as running:
        yield running


def _server(start: Start, name: str) -> Any:
    tokenizer = tokenizer_of(WITH_CALLS[name])
    model = HFModel(byte_llama(tokenizer, max_length=4096), tokenizer, name="tiny")
    return start(engine=Decoder(model), catalogue=Catalogue(model, "tiny", {}, {}))


def _choices(server: Running, body: dict[str, Any]) -> list[dict[str, Any]]:
    status, _, reply = call(server, PATH, body)
    assert status == 200, reply
    return reply["choices"]


def _check(choice: dict[str, Any]) -> list[str]:
    """The names that a whole answer calls; its calls have the form of OpenAI's and are of the schemas."""
    message = choice["message"]
    calls = message.get("tool_calls", [])
    for one in calls:
        assert set(one) == {"id", "type", "function"}
        assert one["type"] == "function"
        if choice["finish_reason"] != "length":
            jsonschema.validate(json.loads(one["function"]["arguments"]), SCHEMAS[one["function"]["name"]])
    assert len({one["id"] for one in calls}) == len(calls)
    assert ("tool_calls" in message) == bool(calls)
    assert choice["finish_reason"] in (("tool_calls", "length") if calls else ("stop", "length"))
    return [one["function"]["name"] for one in calls]


def test_a_required_call_is_one_of_the_tools(server: Running) -> None:
    choices = _choices(server, asked(tool_choice="required", n=8))
    ended = [choice for choice in choices if choice["finish_reason"] != "length"]
    assert ended
    for choice in choices:
        names = _check(choice)
        assert names or choice["finish_reason"] == "length"
        assert choice["message"]["content"] is None or not names


@pytest.mark.parametrize("name", SCHEMAS)
def test_a_named_function_is_called_once(server: Running, name: str) -> None:
    for choice in _choices(server, asked(tool_choice=named(name), n=3)):
        assert choice["finish_reason"] == "tool_calls"
        assert _check(choice) == [name]


def test_several_calls_are_not_made_where_one_is_wanted(server: Running) -> None:
    for choice in _choices(server, asked(tool_choice="required", parallel_tool_calls=False, n=8)):
        assert choice["finish_reason"] == "tool_calls"
        assert len(_check(choice)) == 1


def test_with_auto_an_answer_is_text_or_calls(server: Running) -> None:
    tokens = server.service.catalogue.model.tokenizer.tokens  # type: ignore[union-attr]
    mark = tokens["[TOOL_CALLS]"] if "TOOL_CALLS" in _template(server) else tokens["<tool_call>"]
    names = []
    for bias in (-20.0, 6.0):
        body = asked(n=6, logit_bias={str(mark): bias}, parallel_tool_calls=False)
        names.append([_check(choice) for choice in _choices(server, body)])
    assert not any(names[0])
    assert any(names[1])


def _template(server: Running) -> str:
    return str(server.service.catalogue.model.tokenizer.hf.chat_template)  # type: ignore[union-attr]


def test_without_a_call_nothing_is_shown_to_the_template(server: Running) -> None:
    free = call(server, PATH, chat())[2]
    for body in (chat(tools=TOOLS, tool_choice="none"), chat(tools=[]), chat(tool_choice="auto")):
        reply = call(server, PATH, body)[2]
        assert (reply["choices"], reply["usage"]) == (free["choices"], free["usage"])
    shown = call(server, PATH, chat(tools=TOOLS))[2]
    assert shown["usage"]["prompt_tokens"] > free["usage"]["prompt_tokens"]


def shown_tools() -> list[dict[str, Any]]:
    """The tools as a template is told them: how strictly they are followed is the server's affair."""
    empty = {"type": "object", "properties": {}}
    functions: list[dict[str, Any]] = [{"parameters": empty, **tool["function"]} for tool in TOOLS]
    kept = [{key: one[key] for key in ("name", "description", "parameters") if key in one} for one in functions]
    return [{"type": "function", "function": one} for one in kept]


def test_the_prompt_is_the_templates_with_the_tools(server: Running) -> None:
    hf = server.service.catalogue.model.tokenizer.hf  # type: ignore[union-attr]
    ids = hf.apply_chat_template(CHAT["messages"], tools=shown_tools(), add_generation_prompt=True)["input_ids"]
    reply = call(server, PATH, asked())[2]
    assert reply["usage"]["prompt_tokens"] == len(ids)


# Streams


def events(server: Running, body: dict[str, Any]) -> list[dict[str, Any]]:
    """The chunks of a stream, which ends as OpenAI's do."""
    status, _, content = call(server, PATH, {**body, "stream": True})
    assert status == 200
    lines = [line.removeprefix("data: ") for line in content.decode().split("\n\n") if line]
    assert lines.pop() == "[DONE]"
    return [json.loads(line) for line in lines]


def joined(pieces: list[dict[str, Any]]) -> dict[int, dict[str, Any]]:
    """Index -> the whole choice, of the choices of a stream's chunks."""
    found: dict[int, dict[str, Any]] = {}
    for piece in pieces:
        delta = piece["delta"]
        one = found.setdefault(piece["index"], {"content": "", "calls": [], "finish_reason": None})
        assert one["finish_reason"] is None
        one["content"] += delta.get("content") or ""
        one["finish_reason"] = piece["finish_reason"]
        for entry in delta.get("tool_calls", []):
            if entry["index"] == len(one["calls"]):
                assert set(entry) == {"index", "id", "type", "function"}
                one["calls"].append(
                    {
                        "id": entry["id"],
                        "type": entry["type"],
                        "function": {"name": entry["function"]["name"], "arguments": ""},
                    }
                )
            else:
                assert set(entry) == {"index", "function"}
                assert set(entry["function"]) == {"arguments"}
            one["calls"][entry["index"]]["function"]["arguments"] += entry["function"]["arguments"]
    return found


def _same(whole: dict[str, Any], streamed: dict[str, Any]) -> None:
    calls = [one["function"] for one in whole["message"].get("tool_calls", [])]
    assert [one["function"] for one in streamed["calls"]] == calls
    assert streamed["content"] == (whole["message"]["content"] or "")
    assert streamed["finish_reason"] == whole["finish_reason"]


@pytest.mark.parametrize("choice", ["required", "auto"])
@pytest.mark.parametrize("length", [300, 37, 12, 5])
def test_the_pieces_of_a_stream_are_the_whole_answer(server: Running, choice: str, length: int) -> None:
    body = {**asked(tool_choice=choice, n=6), "max_tokens": length}
    whole = _choices(server, body)
    found = joined([piece for chunk in events(server, body) for piece in chunk["choices"]])
    for one in whole:
        _same(one, found[one["index"]])


def test_log_probabilities_list_every_token(server: Running) -> None:
    body = asked(tool_choice=named("look"), logprobs=True, top_logprobs=1)
    (whole,) = _choices(server, body)
    pieces = [piece for chunk in events(server, body) for piece in chunk["choices"]]
    listed = [token for piece in pieces for token in (piece["logprobs"] or {}).get("content", [])]
    assert listed == whole["logprobs"]["content"]
    text = bytes(byte for token in listed for byte in token["bytes"]).decode()
    assert whole["message"]["tool_calls"][0]["function"]["arguments"] in text


# Beside others


def test_many_clients_with_tools_and_without_get_what_each_asked_for(server: Running) -> None:
    bodies = []
    for number in range(16):
        more = ({"tool_choice": "required"}, {}, {"tool_choice": named("now")}, {"tool_choice": "none"})[number % 4]
        bodies.append({**asked(**more), "seed": number, "max_tokens": 60})
    with ThreadPoolExecutor(16) as clients:
        together = list(clients.map(lambda body: _choices(server, body)[0], bodies))
    for number in (0, 1, 2, 3, 9):
        alone = _choices(server, bodies[number])[0]
        _same(alone, {"content": together[number]["message"]["content"] or "",
                      "calls": together[number]["message"].get("tool_calls", []),
                      "finish_reason": together[number]["finish_reason"]})  # fmt: skip
    for choice in together:
        _check(choice)


# A conversation


def test_a_result_goes_back_to_the_template_with_its_call(server: Running) -> None:
    (choice,) = _choices(server, asked(tool_choice=named("look")))
    said = choice["message"]
    result = {"role": "tool", "tool_call_id": said["tool_calls"][0]["id"], "content": "sunny"}
    history = [*CHAT["messages"], said, result]
    reply = call(server, PATH, {**asked(), "messages": history})[2]
    function = said["tool_calls"][0]["function"]
    shown = {
        **said["tool_calls"][0],
        "function": {"name": function["name"], "arguments": json.loads(function["arguments"])},
    }
    hf = server.service.catalogue.model.tokenizer.hf  # type: ignore[union-attr]
    messages = [*CHAT["messages"], {"role": "assistant", "content": "", "tool_calls": [shown]}, result]
    text = hf.apply_chat_template(messages, tools=shown_tools(), add_generation_prompt=True, tokenize=False)
    assert '"city"' in text
    assert "sunny" in text
    assert reply["usage"]["prompt_tokens"] == len(hf(text, add_special_tokens=False)["input_ids"])


# Refused


def _history(*messages: dict[str, Any]) -> dict[str, Any]:
    return asked(messages=[*CHAT["messages"], *messages])


def _called(**changes: Any) -> dict[str, Any]:
    one = {"id": "aaaaaaaaa", "type": "function", "function": {"name": "look", "arguments": "{}"}, **changes}
    return {"role": "assistant", "content": None, "tool_calls": [one]}


def _tool(**changes: Any) -> list[dict[str, Any]]:
    return [*TOOLS, {"type": "function", "function": {"name": "more", **changes}}]


DEEP: dict[str, Any] = {"type": "string"}
for _ in range(120):
    DEEP = {"type": "array", "items": DEEP}

REFUSED: dict[str, tuple[dict[str, Any], str, str]] = {
    "a name twice": (chat(tools=_tool(name="look")), "tools.3.function.name", "two tools"),
    "a name that is none": (chat(tools=_tool(name="a b")), "tools.3.function.name", "1 to 64"),
    "a name that is too long": (chat(tools=_tool(name="a" * 65)), "tools.3.function.name", "1 to 64"),
    "no name": (chat(tools=[{"type": "function", "function": {}}]), "tools.0.function.name", "is missing; give it"),
    "no function": (chat(tools=[{"type": "function"}]), "tools.0.function", "is missing; give it"),
    "another kind of tool": (chat(tools=[{"type": "web_search"}]), "tools.0", "'web_search' cannot be called"),
    "a key that nobody knows": (chat(tools=_tool(parametres={})), "tools.3.function.parametres", "parametres"),
    "too many": (chat(tools=[_tool(name=f"f{n}")[3] for n in range(129)]), "tools", "at most 128"),
    "a choice that is no tool": (
        asked(tool_choice=named("lok")),
        "tool_choice",
        "none of the tools: look, look_up, now",
    ),
    "a choice without tools": (chat(tool_choice="required"), "tool_choice", "there are no tools"),
    "a choice of none": (chat(tool_choice=named("look")), "tool_choice", "none of the tools: none"),
    "a choice of another word": (asked(tool_choice="any"), "tool_choice", '"required", or an object'),
    "a choice that is a list": (asked(tool_choice=["look"]), "tool_choice", 'give "none"'),
    "a choice of another kind": (asked(tool_choice={"type": "allowed_tools"}), "tool_choice.type", "'function'"),
    "a schema that is none": (
        chat(tools=_tool(parameters={"properties": {"a": {"type": "nothing"}}})),
        "tools.3.function.parameters",
        "cannot be used",
    ),
    "a schema of no object": (
        chat(tools=_tool(parameters={"type": "array"})),
        "tools.3.function.parameters",
        "JSON object",
    ),
    "a schema of the function that is named": (
        chat(tools=_tool(parameters={"type": "array"}), tool_choice=named("more")),
        "tools.3.function.parameters",
        "Arguments are a JSON object",
    ),
    "a schema in a text": (chat(tools=_tool(parameters="{}")), "tools.3.function.parameters", "object"),
    "a schema without end": (
        chat(tools=_tool(parameters={"properties": {"a": {"$ref": "#"}}, "required": ["a"]})),
        "tools.3.function.parameters",
        "without end",
    ),
    "a schema that is too deep": (
        chat(tools=_tool(parameters={"properties": {"a": DEEP}})),
        "tools.3.function.parameters",
        "levels",
    ),
    "a schema that is too large": (
        chat(tools=_tool(parameters={"properties": {"a": {"enum": ["x" * 70_000]}}})),
        "tools.3.function.parameters",
        "at most 65536",
    ),
    "tools that are too large together": (
        chat(
            tools=[_tool(name=f"f{n}", parameters={"properties": {"a": {"enum": ["x" * 30_000]}}})[3] for n in range(3)]
        ),
        "tools",
        "at most 65536",
    ),
    "keywords that nobody knows": (
        chat(tools=_tool(parameters={"properties": {"a": {"type": "array", "uniqueItems": True}}})),
        "tools.3.function.parameters",
        "uniqueItems",
    ),
    "another form": (asked(guided_regex="a"), "guided_regex", "send one"),
    "tools twice": (asked(chat_template_kwargs={"tools": []}), "chat_template_kwargs", "give them once"),
    "a result of nobody's call": (
        _history({"role": "tool", "tool_call_id": "x", "content": "1"}),
        "messages.1.tool_call_id",
        "is 'x'; a tool's message names the earlier call that it answers. Calls so far: none",
    ),
    "a result of another call": (
        _history(_called(), {"role": "tool", "tool_call_id": "x", "content": "1"}),
        "messages.2.tool_call_id",
        "Calls so far: aaaaaaaaa",
    ),
    "a result of no call": (
        _history(_called(), {"role": "tool", "content": "1"}),
        "messages.2.tool_call_id",
        "is missing",
    ),
    "a result before its call": (
        _history({"role": "tool", "tool_call_id": "aaaaaaaaa", "content": "1"}, _called()),
        "messages.1.tool_call_id",
        "Calls so far: none",
    ),
    "a call without an id": (_history(_called(id=None)), "messages.1.tool_calls.0.id", "a call has an id"),
    "a call of nothing": (_history(_called(function=None)), "messages.1.tool_calls.0", "give a call as"),
    "a call of another kind": (_history(_called(type="custom")), "messages.1.tool_calls.0", "give a call as"),
    "a call without a name": (
        _history(_called(function={"arguments": "{}"})),
        "messages.1.tool_calls.0.function.name",
        "give the name",
    ),
    "arguments that are no object": (
        _history(_called(function={"name": "look", "arguments": "[1]"})),
        "messages.1.tool_calls.0.function.arguments",
        "a JSON object",
    ),
    "arguments that were cut": (
        _history(_called(function={"name": "look", "arguments": '{"n": '})),
        "messages.1.tool_calls.0.function.arguments",
        "a JSON object",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_done_is_a_400_that_names_its_place(server: Running, what: str) -> None:
    body, param, reason = REFUSED[what]
    status, _, reply = call(server, PATH, body)
    assert (status, reply["error"]["param"]) == (400, param), reply
    assert reason in reply["error"]["message"]
    assert reply["error"]["message"].endswith(".")


def test_a_form_of_texts_goes_with_tools(server: Running) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": LOOK}}
    for choice in _choices(server, asked(response_format=form, n=4)):
        if choice["finish_reason"] == "stop":
            jsonschema.validate(json.loads(choice["message"]["content"]), LOOK)
        else:
            _check(choice)


def test_a_model_whose_template_has_no_tools_refuses_them(start: Start) -> None:
    with start() as plain:
        status, _, reply = call(plain, PATH, asked())
        assert (status, reply["error"]["param"]) == (400, "tools")
        assert "chat template never reads tools" in reply["error"]["message"]


def test_a_template_whose_format_cannot_be_found_is_refused(start: Start) -> None:
    with _server(start, "hermes") as running:
        running.service.catalogue.model.tokenizer.hf.chat_template = (  # type: ignore[union-attr]
            "{{ tools }}{% for m in messages %}{{ m.content }}{% endfor %}"
        )
        status, _, reply = call(running, PATH, asked())
        assert (status, reply["error"]["param"]) == (400, "tools")
        assert "cannot be found from its chat template" in reply["error"]["message"]


def test_a_brace_at_the_beginning_cannot_be_told_from_a_form(start: Start) -> None:
    with _server(start, "bare") as running:
        status, _, reply = call(running, PATH, asked(response_format={"type": "json_object"}))
        assert (status, reply["error"]["param"]) == (400, "response_format")
        for choice in _choices(running, asked(tool_choice="required", n=3)):
            assert len(_check(choice)) <= 1


def test_a_model_without_a_template_has_no_tools() -> None:
    from trimtab.errors import PromptError
    from trimtab.prompts import call_format

    with pytest.raises(PromptError, match="no chat template"):
        call_format(TabularModel.random(5, seed=0), {})


WRONG: tuple[Any, ...] = (None, True, 5, "x", "", [], {}, [[]], [{}], {"x": 1}, "\ud800", 1 << 70, {"type": "object"})


def test_no_wrong_value_in_tools_or_a_history_harms_the_server(server: Running) -> None:
    """A reply or a sentence with its place, whatever stands in whichever place."""
    result = {"role": "tool", "tool_call_id": "aaaaaaaaa", "content": "1"}
    body = {**asked(messages=[*CHAT["messages"], _called(), result]), "max_tokens": 2, "tool_choice": named("look")}
    places = [
        path
        for path in _paths(body)
        if path[0] in ("tools", "tool_choice") or path[:2] in (("messages", 1), ("messages", 2))
    ]
    draw = random.Random(0)
    statuses = set()
    for path in places:
        for wrong in draw.sample(WRONG, 3):
            status, _, reply = call(server, PATH, _with(body, path, wrong))
            statuses.add(status)
            assert status in (200, 400), (path, wrong, reply)
            if status == 400:
                assert reply["error"]["message"].endswith("."), reply
    assert statuses == {200, 400}
