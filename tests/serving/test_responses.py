"""`/v1/responses`: the same answers as chats', in another form; what it does not do is refused by name."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest

from tests.serving.conftest import PRESETS, Running
from tests.serving.test_http import call
from trimtab.fields import table
from trimtab.params import SamplingParams
from trimtab.serving.guidance_schema import Guidance
from trimtab.serving.limits import OF_A_REQUEST, Limits
from trimtab.serving.responses_schema import ResponseRequest

ASKED: dict[str, Any] = {"model": "kinder", "input": "Say something.", "max_output_tokens": 16}
SEED = {"extra_body": {"seed": 3}}
ENDED = {"extra_body": {"seed": 3, "min_tokens": 7, "logit_bias": {"2": 100}}}
"""Its answer ends by itself, as openai's helper for streams wants it."""


@pytest.fixture(scope="module")
def client(server: Running) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def chatted(server: Running, messages: list[dict[str, str]], **how: Any) -> dict[str, Any]:
    body = {"model": "kinder", "messages": messages, "max_tokens": 16, "seed": 3, **how}
    return dict(call(server, "/v1/chat/completions", body)[2])


def test_a_response_is_the_chat_that_says_the_same(client: openai.OpenAI, server: Running) -> None:
    reply = client.responses.create(**ASKED, instructions="Be kind.", temperature=0.5, metadata={"a": "b"}, **SEED)
    said = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Say something."}]
    chat = chatted(server, said, temperature=0.5)
    assert reply.output_text == chat["choices"][0]["message"]["content"]
    assert (reply.usage.input_tokens, reply.usage.output_tokens) == (
        chat["usage"]["prompt_tokens"],
        chat["usage"]["completion_tokens"],
    )
    is_cut = chat["choices"][0]["finish_reason"] == "length"
    assert reply.status == ("incomplete" if is_cut else "completed")
    assert (reply.incomplete_details is not None) == is_cut
    assert (reply.temperature, reply.metadata, reply.instructions, reply.store) == (0.5, {"a": "b"}, "Be kind.", False)


def test_a_conversation_is_sent_back_whole(client: openai.OpenAI, server: Running) -> None:
    first = client.responses.create(**ASKED, **SEED)
    turns = [{"role": "user", "content": "Say something."}, *first.output, {"role": "user", "content": "More."}]
    second = client.responses.create(**{**ASKED, "input": turns}, **SEED)
    said = [
        {"role": "user", "content": "Say something."},
        {"role": "assistant", "content": first.output_text},
        {"role": "user", "content": "More."},
    ]
    assert second.output_text == chatted(server, said)["choices"][0]["message"]["content"]
    fresh = client.responses.create(**{**ASKED, "input": turns[:2]}, **SEED)
    opened = chatted(server, said[:2], add_generation_prompt=True)
    assert fresh.output_text == opened["choices"][0]["message"]["content"]


def test_a_stream_of_events_builds_the_response(client: openai.OpenAI) -> None:
    whole = client.responses.create(**ASKED, **ENDED)
    with client.responses.stream(**ASKED, **ENDED) as stream:
        events = list(stream)
        final = stream.get_final_response()
    assert final.output_text == whole.output_text
    assert final.usage == whole.usage
    assert [event.sequence_number for event in events] == list(range(len(events)))
    names = [event.type.removeprefix("response.") for event in events]
    assert names[:4] == ["created", "in_progress", "output_item.added", "content_part.added"]
    assert names[-4:] == ["output_text.done", "content_part.done", "output_item.done", whole.status]
    assert set(names[4:-4]) == {"output_text.delta"}
    pieces = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(pieces) == whole.output_text


def test_a_stream_that_is_cut_says_so(client: openai.OpenAI) -> None:
    whole = client.responses.create(**ASKED, **SEED)
    *_, last = client.responses.create(**ASKED, **SEED, stream=True)
    assert last.type == "response.incomplete"
    assert last.response.incomplete_details.reason == "max_output_tokens"
    assert last.response.output_text == whole.output_text


def test_log_probabilities_are_included_where_asked(client: openai.OpenAI, server: Running) -> None:
    how: dict[str, Any] = {"include": ["message.output_text.logprobs"], "top_logprobs": 2}
    reply = client.responses.create(**ASKED, **how, **ENDED)
    said = [{"role": "user", "content": "Say something."}]
    chat = chatted(server, said, logprobs=True, top_logprobs=2, **ENDED["extra_body"])
    wanted = chat["choices"][0]["logprobs"]["content"]
    found = reply.output[0].content[0].logprobs
    assert [one.token for one in found] == [one["token"] for one in wanted]
    assert [one.logprob for one in found] == pytest.approx([one["logprob"] for one in wanted], abs=1e-4)
    assert all(len(one.top_logprobs) == 2 for one in found)
    with client.responses.stream(**ASKED, **how, **ENDED) as stream:
        streamed = stream.get_final_response().output[0].content[0].logprobs
    assert [one.token for one in streamed] == [one.token for one in found]


def test_structured_text(client: openai.OpenAI) -> None:
    pytest.importorskip("llguidance")
    schema = {"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"], "additionalProperties": False}
    form: Any = {"format": {"type": "json_schema", "name": "number", "strict": True, "schema": schema}}
    reply = client.responses.create(**{**ASKED, "max_output_tokens": 60}, text=form, **SEED)
    assert json.loads(reply.output_text)["n"] in (1, 2)
    assert reply.text.format.type == "json_schema"


def test_guidance_and_samplings_fields_are_a_chats(client: openai.OpenAI, server: Running) -> None:
    extra = {"seed": 3, "logit_bias": {"70": 8}, "presence_penalty": 1.5, "guidance": {"weights": {"up": 0.5}}}
    reply = client.responses.create(**ASKED, extra_body=extra)
    chat = chatted(server, [{"role": "user", "content": "Say something."}], **extra)
    assert reply.output_text == chat["choices"][0]["message"]["content"]
    assert reply.guidance == chat["choices"][0]["guidance"]


REFUSED: dict[str, tuple[dict[str, Any], str, str]] = {
    "a response that is kept": ({"store": True}, "store", "store is not supported"),
    "one before": ({"previous_response_id": "resp_1"}, "previous_response_id", "previous_response_id is not supported"),
    "in the background": ({"background": True}, "background", "background is not supported"),
    "tools": ({"tools": [{"type": "web_search"}]}, "tools", "tools is not supported"),
    "reasoning": ({"reasoning": {"effort": "low"}}, "reasoning", "reasoning is not supported"),
    "verbosity": ({"text": {"verbosity": "low"}}, "text.verbosity", "verbosity is not supported"),
    "an unknown field": ({"max_ouput_tokens": 3}, "max_ouput_tokens", "Did you mean 'max_output_tokens'"),
    "a chat's field": ({"messages": []}, "messages", "Unknown field 'messages'"),
    "another thing to include": ({"include": ["reasoning.encrypted_content"]}, "include.0", "message.output_text.logp"),
    "top_logprobs alone": ({"top_logprobs": 2}, "top_logprobs", "include"),
    "an item of another type": ({"input": [{"type": "item_reference", "id": "x"}]}, "input.0", "item_reference"),
    "a picture": ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input.0.content.0", "input_im"),
    "a role of nobody's": ({"input": [{"role": "bot", "content": "Hi"}]}, "input.0.role", "'system'"),
    "no input": ({"input": []}, "input", "at least 1 item"),
    "a form without its schema": ({"text": {"format": {"type": "json_schema"}}}, "text.format", "goes with the type"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_it_does_not_do_is_refused_by_name(server: Running, what: str) -> None:
    changes, param, words = REFUSED[what]
    status, _, reply = call(server, "/v1/responses", {**ASKED, **changes})
    assert (status, reply["error"]["param"]) == (400, param)
    assert words in reply["error"]["message"]


def test_what_asks_for_nothing_changes_no_answer(server: Running) -> None:
    body = {**ASKED, "seed": 3}
    fields = {name: one[0] for name, one in ResponseRequest.refused.items() if one}
    ignored = dict.fromkeys(ResponseRequest.ignored, "auto")
    plain, asked = (call(server, "/v1/responses", {**body, **more})[2] for more in ({}, {**fields, **ignored}))
    assert asked["output"][0]["content"] == plain["output"][0]["content"]


def test_every_field_of_sampling_is_a_responses_too() -> None:
    names = set(ResponseRequest.model_fields) | set(Guidance.model_fields) | {"max_new_tokens"}
    assert set(table(SamplingParams)) - names == {"trace", "num_alternatives"}


def test_an_error_amid_a_stream_is_its_last_event(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    from trimtab.decoding.requests import Request

    sound = Request.push

    def failing(self: Request, token_id: int, trace: Any) -> Any:
        if len(self.token_ids) == 3:
            raise RuntimeError("struck")
        return sound(self, token_id, trace)

    monkeypatch.setattr(Request, "push", failing)
    events = call(server, "/v1/responses", {**ASKED, "seed": 3, "stream": True})[2].decode().strip().split("\n\n")
    name, _, data = events[-1].partition("\ndata: ")
    assert name == "event: error"
    assert json.loads(data)["sequence_number"] == len(events) - 1


def test_models_say_guides_presets_and_limits(server: Running) -> None:
    found = call(server, "/v1/models")[2]
    assert found["guides"] == {"up": 0.0, "down": 0.0}
    assert found["presets"] == PRESETS
    limits = server.service.limits
    assert found["limits"] == {name: getattr(limits, name) for name in OF_A_REQUEST}
    assert {model["id"]: model["parent"] for model in found["data"]} == {"tiny": None, "kinder": "tiny", "odd": "tiny"}
    assert {model["max_model_len"] for model in found["data"]} == {2048}
    assert set(OF_A_REQUEST) <= set(table(Limits))
