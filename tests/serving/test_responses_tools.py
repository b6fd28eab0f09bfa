"""Functions that `/v1/responses` calls: the calls of the chat that says the same, as items, whole and as events."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import jsonschema
import openai
import pytest

pytest.importorskip("llguidance", reason="llguidance is not installed")

from tests.call_templates import WITH_CALLS, tokenizer_of
from tests.serving.conftest import Running, Start
from tests.serving.test_http import call
from tests.serving.test_tools import LOOK, TOOLS, named
from tests.tiny import byte_llama
from trimtab.decoding.decoder import Decoder
from trimtab.models.hf import HFModel
from trimtab.serving.asking import Catalogue

ASKED: dict[str, Any] = {
    "model": "tiny",
    "input": "How is it?",
    "tools": [{"type": "function", **tool["function"]} for tool in TOOLS],
    "max_output_tokens": 300,
}
NAMED = {"type": "function", "name": "look"}


@pytest.fixture(scope="module")
def server(start: Start) -> Iterator[Running]:
    tokenizer = tokenizer_of(WITH_CALLS["hermes"])
    model = HFModel(byte_llama(tokenizer, max_length=4096), tokenizer, name="tiny")
    with start(engine=Decoder(model), catalogue=Catalogue(model, "tiny", {}, {})) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: Running) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def chatted(server: Running, messages: list[dict[str, Any]], **how: Any) -> dict[str, Any]:
    body = {"model": "tiny", "messages": messages, "tools": TOOLS, "max_tokens": 300, **how}
    status, _, reply = call(server, "/v1/chat/completions", body)
    assert status == 200, reply
    return dict(reply)


def _calls(output: list[Any]) -> list[tuple[str, str]]:
    return [(item.name, item.arguments) for item in output if item.type == "function_call"]


def _calls_of_chat(reply: dict[str, Any]) -> list[tuple[str, str]]:
    calls = reply["choices"][0]["message"].get("tool_calls", [])
    return [(one["function"]["name"], one["function"]["arguments"]) for one in calls]


@pytest.mark.parametrize(
    ("choice", "of_chat"), [("required", "required"), (NAMED, named("look")), ("auto", "auto"), ("none", "none")]
)
@pytest.mark.parametrize("length", [300, 30])
def test_a_response_calls_what_the_chat_calls(
    client: openai.OpenAI, server: Running, choice: Any, of_chat: Any, length: int
) -> None:
    for seed in range(2):
        how = {**ASKED, "tool_choice": choice, "max_output_tokens": length, "extra_body": {"seed": seed}}
        reply = client.responses.create(**how)
        said = [{"role": "user", "content": "How is it?"}]
        chat = chatted(server, said, tool_choice=of_chat, seed=seed, max_tokens=length)
        assert _calls(reply.output) == _calls_of_chat(chat)
        assert reply.output_text == (chat["choices"][0]["message"]["content"] or "")
        assert reply.status == ("incomplete" if chat["choices"][0]["finish_reason"] == "length" else "completed")
        assert reply.usage.input_tokens == chat["usage"]["prompt_tokens"]
        assert len(reply.tools) == 3
        streamed = [*client.responses.create(**how, stream=True)]
        assert [event.sequence_number for event in streamed] == list(range(len(streamed)))
        last = streamed[-1].response
        assert (_calls(last.output), last.output_text) == (_calls(reply.output), reply.output_text)
        assert (last.status, last.usage) == (reply.status, reply.usage)
        assert [item.status for item in last.output] == [item.status for item in reply.output]
        _check_events(streamed)


def _check_events(events: list[Any]) -> None:
    """Each item is opened, grown and closed in turn, and what grew is what the reply holds."""
    open_id, grown = None, {}
    for event in events:
        kind = event.type.removeprefix("response.")
        if kind == "output_item.added":
            assert open_id is None
            open_id = event.item.id
            assert event.output_index == len(grown)
            grown[open_id] = ""
        elif kind in ("output_text.delta", "function_call_arguments.delta"):
            assert event.item_id == open_id
            grown[open_id] += event.delta
        elif kind in ("output_text.done", "function_call_arguments.done"):
            assert (event.text if kind == "output_text.done" else event.arguments) == grown[open_id]
        elif kind == "output_item.done":
            assert event.item.id == open_id
            open_id = None
    assert open_id is None
    output = events[-1].response.output
    assert [item.id for item in output] == list(grown)
    texts = [item.arguments if item.type == "function_call" else item.content[0].text for item in output]
    assert texts == list(grown.values())


def test_openais_helper_for_streams_builds_the_calls(client: openai.OpenAI) -> None:
    how = {**ASKED, "tool_choice": NAMED, "extra_body": {"seed": 4}}
    with client.responses.stream(**how) as stream:
        list(stream)
        final = stream.get_final_response()
    [(name, arguments)] = _calls(final.output)
    assert name == "look"
    jsonschema.validate(json.loads(arguments), LOOK)


def test_a_call_its_result_and_the_answer(client: openai.OpenAI, server: Running) -> None:
    first = client.responses.create(**ASKED, tool_choice=NAMED, extra_body={"seed": 5})
    [said] = first.output
    result = {"type": "function_call_output", "call_id": said.call_id, "output": "Sunny."}
    turns = [{"role": "user", "content": "How is it?"}, said, result]
    reply = client.responses.create(**{**ASKED, "input": turns, "max_output_tokens": 12}, extra_body={"seed": 6})
    function = {"name": said.name, "arguments": said.arguments}
    messages = [
        {"role": "user", "content": "How is it?"},
        {"role": "assistant", "tool_calls": [{"id": said.call_id, "type": "function", "function": function}]},
        {"role": "tool", "tool_call_id": said.call_id, "content": "Sunny."},
    ]
    chat = chatted(server, messages, seed=6, max_tokens=12)
    assert reply.output_text == (chat["choices"][0]["message"]["content"] or "")
    assert reply.usage.input_tokens == chat["usage"]["prompt_tokens"]


def test_calls_that_follow_each_other_are_one_turn() -> None:
    from trimtab.serving.responses_schema import ResponseRequest

    items = [
        {"role": "user", "content": "Ask both."},
        {"role": "assistant", "content": "I do."},
        {"type": "function_call", "call_id": "a", "name": "look", "arguments": "{}"},
        {
            "type": "function_call",
            "call_id": "b",
            "name": "now",
            "arguments": "{}",
            "id": "fc_1",
            "status": "completed",
        },
        {"type": "function_call_output", "call_id": "a", "output": [{"type": "input_text", "text": "1"}]},
        {"type": "function_call_output", "call_id": "b", "output": "2"},
        {"type": "function_call", "call_id": "c", "name": "now", "arguments": "{}"},
    ]
    messages = ResponseRequest.model_validate({**ASKED, "input": items}).as_chat().messages
    assert [(one.role, one.text, len(one.tool_calls or ()), one.tool_call_id) for one in messages] == [
        ("user", "Ask both.", 0, None),
        ("assistant", "I do.", 2, None),
        ("tool", "1", 0, "a"),
        ("tool", "2", 0, "b"),
        ("assistant", "", 1, None),
    ]


def _input(*items: dict[str, Any]) -> dict[str, Any]:
    return {"input": [{"role": "user", "content": "Hi"}, *items]}


CALL = {"type": "function_call", "call_id": "a", "name": "look", "arguments": "{}"}
REFUSED: dict[str, tuple[dict[str, Any], str, str]] = {
    "another kind of tool": ({"tools": [{"type": "web_search"}]}, "tools.0", "'web_search' cannot be called"),
    "a name twice": ({"tools": [*ASKED["tools"], ASKED["tools"][0]]}, "tools.3.name", "two tools"),
    "no name": ({"tools": [{"type": "function"}]}, "tools.0.name", "is missing; give it"),
    "a schema that is none": (
        {"tools": [{"type": "function", "name": "f", "parameters": {"properties": {"a": {"type": "nothing"}}}}]},
        "tools.0.parameters",
        "tools.0.parameters: The JSON schema cannot be used",
    ),
    "a choice that is no tool": ({"tool_choice": {**NAMED, "name": "lok"}}, "tool_choice", "none of the tools"),
    "a choice of another word": ({"tool_choice": "any"}, "tool_choice", '"required", or an object'),
    "log-probabilities": ({"include": ["message.output_text.logprobs"]}, "include", "leave it or tools out"),
    "a result of nobody's call": (
        _input({"type": "function_call_output", "call_id": "x", "output": "1"}),
        "input.1.call_id",
        "is 'x'",
    ),
    "arguments that are no object": (_input({**CALL, "arguments": "[1]"}), "input.1.arguments", "a JSON object"),
    "a call without an id": (
        _input({"type": "function_call", "name": "look", "arguments": "{}"}),
        "input.1.call_id",
        "is missing; give it",
    ),
    "an item of another type": (_input({"type": "reasoning"}), "input.1", "'reasoning' cannot be read"),
    "a number of calls": ({"max_tool_calls": 2}, "max_tool_calls", "max_tool_calls is not supported"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_done_is_a_400_that_names_its_place(server: Running, what: str) -> None:
    changes, param, reason = REFUSED[what]
    status, _, reply = call(server, "/v1/responses", {**ASKED, **changes})
    assert (status, reply["error"]["param"]) == (400, param), reply
    assert reason in reply["error"]["message"]


def test_explanations_of_a_stream_are_those_of_the_whole(server: Running) -> None:
    """Of all tokens, those that hold a call's form included."""
    body = {**ASKED, "tool_choice": NAMED, "seed": 8, "guidance": {"explain": True}}
    whole = call(server, "/v1/responses", body)[2]
    content = call(server, "/v1/responses", {**body, "stream": True})[2].decode()
    events = [json.loads(block.partition("\ndata: ")[2]) for block in content.strip().split("\n\n")]
    told = [token["token_id"] for event in events for token in event.get("guidance", {}).get("tokens", [])]
    assert told == [token["token_id"] for token in whole["guidance"]["tokens"]]
    assert told
