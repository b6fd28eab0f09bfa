"""OpenAI's own client calls tools on our server: whole, in a stream, and from a call to its result and the answer."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import jsonschema
import openai
import pydantic
import pytest

pytest.importorskip("llguidance", reason="llguidance is not installed")

from tests.call_templates import WITH_CALLS, tokenizer_of
from tests.serving.conftest import Start
from tests.tiny import byte_llama
from trimtab.decoding.decoder import Decoder
from trimtab.models.hf import HFModel
from trimtab.serving.asking import Catalogue


class Weather(pydantic.BaseModel):
    """The weather of a day in a city."""

    model_config = pydantic.ConfigDict(extra="forbid")

    city: str = pydantic.Field(max_length=6)
    day: int = pydantic.Field(ge=1, le=31)


WEATHER = openai.pydantic_function_tool(Weather, name="weather")
NOW: dict[str, Any] = {"type": "function", "function": {"name": "now", "description": "The time.", "strict": True}}
ASKED: list[Any] = [{"role": "user", "content": "How is the weather?"}]
HOW: dict[str, Any] = {"model": "tiny", "messages": ASKED, "tools": [WEATHER, NOW], "max_tokens": 300}


@pytest.fixture(scope="module", params=["hermes", "fenced"])
def client(start: Start, request: pytest.FixtureRequest) -> Iterator[openai.OpenAI]:
    tokenizer = tokenizer_of(WITH_CALLS[request.param])
    model = HFModel(byte_llama(tokenizer, max_length=4096), tokenizer, name="tiny")
    with start(engine=Decoder(model), catalogue=Catalogue(model, "tiny", {}, {})) as server:
        yield openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def _check(calls: list[Any]) -> None:
    for call in calls:
        assert call.type == "function"
        arguments = json.loads(call.function.arguments)
        if call.function.name == "weather":
            Weather.model_validate(arguments)
            jsonschema.validate(arguments, WEATHER["function"]["parameters"])
        else:
            assert (call.function.name, arguments) == ("now", {})


def test_a_call(client: openai.OpenAI) -> None:
    reply = client.chat.completions.create(**HOW, tool_choice="required", parallel_tool_calls=False, n=4, seed=1)
    assert [choice.finish_reason for choice in reply.choices] == ["tool_calls"] * 4
    for choice in reply.choices:
        assert choice.message.content is None
        assert len(choice.message.tool_calls) == 1
        _check(choice.message.tool_calls)


def test_a_stream(client: openai.OpenAI) -> None:
    how = {**HOW, "tool_choice": "required", "parallel_tool_calls": False, "seed": 3}
    whole = client.chat.completions.create(**how).choices[0]
    with client.chat.completions.stream(**how) as stream:
        events = list(stream)
        final = stream.get_final_completion().choices[0]
    assert final.finish_reason == whole.finish_reason == "tool_calls"
    calls = [(one.function.name, one.function.arguments) for one in whole.message.tool_calls]
    assert [(one.function.name, one.function.arguments) for one in final.message.tool_calls] == calls
    assert not final.message.content
    _check(final.message.tool_calls)
    pieces = [event for event in events if event.type == "tool_calls.function.arguments.delta"]
    assert len(pieces) > len(calls)


def test_a_call_its_result_and_the_answer(client: openai.OpenAI) -> None:
    named = {"type": "function", "function": {"name": "weather"}}
    said = client.chat.completions.create(**HOW, tool_choice=named, seed=5).choices[0].message
    [call] = said.tool_calls
    _check([call])
    history = [*ASKED, said, {"role": "tool", "tool_call_id": call.id, "content": "Sunny."}]
    for choice in ("none", "auto"):
        answer = client.chat.completions.create(
            **{**HOW, "messages": history, "max_tokens": 20}, tool_choice=choice, seed=6
        )
        assert answer.choices[0].message.content or answer.choices[0].message.tool_calls
        assert answer.choices[0].finish_reason in ("stop", "length", "tool_calls")


def test_arguments_are_parsed_by_the_clients_own_model(client: openai.OpenAI) -> None:
    named = {"type": "function", "function": {"name": "weather"}}
    reply = client.chat.completions.parse(**HOW, tool_choice=named, seed=7)
    [call] = reply.choices[0].message.tool_calls
    assert isinstance(call.function.parsed_arguments, Weather)


def test_wrong_tools_are_a_bad_request_that_says_where(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as raised:
        client.chat.completions.create(**{**HOW, "tools": [NOW, NOW]})
    assert raised.value.param == "tools.1.function.name"
