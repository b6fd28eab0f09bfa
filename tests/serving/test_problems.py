"""Every refusal of a request names the field as its endpoint does, the value, and what is accepted."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.serving.conftest import Running, Start
from tests.serving.test_http import call
from tests.tiny import byte_llama, byte_tokenizer
from trimtab import ARM
from trimtab.decoding.decoder import Decoder
from trimtab.models.hf import HFModel
from trimtab.serving.asking import Catalogue
from trimtab.serving.bodies import reader
from trimtab.serving.limits import OF_A_REQUEST, Limits
from trimtab.serving.problems import MalformedError
from trimtab.serving.schema import ChatRequest

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "Hello."}]}
COMPLETION = {"model": "tiny", "prompt": "Hello."}
RESPONSE = {"model": "tiny", "input": "Hello."}
ENDPOINTS: dict[str, tuple[dict[str, Any], str, str]] = {
    "/v1/chat/completions": (CHAT, "max_tokens", "messages"),
    "/v1/completions": (COMPLETION, "max_tokens", "prompt"),
    "/v1/responses": (RESPONSE, "max_output_tokens", "input"),
}
LONG = "x" * 5000


@pytest.fixture(scope="module")
def with_product(start: Start, tiny_model: HFModel) -> Iterator[Running]:
    """A server whose guide `near` is another model."""
    tokenizer = byte_tokenizer()
    guides = {"near": ARM(HFModel(byte_llama(tokenizer, max_length=2048, seed=7), tokenizer))}
    catalogue = Catalogue(tiny_model, "tiny", dict.fromkeys(guides, 0.0), {})
    with start(engine=Decoder(tiny_model, guides), catalogue=catalogue) as running:
        yield running


def refused(server: Running, path: str, changes: dict[str, Any]) -> dict[str, Any]:
    status, _, reply = call(server, path, {**ENDPOINTS[path][0], **changes})
    assert status == 400, reply
    error: dict[str, Any] = reply["error"]
    return error


@pytest.mark.parametrize("path", ENDPOINTS)
def test_a_length_is_called_as_the_endpoint_calls_it(server: Running, path: str) -> None:
    _, length, _ = ENDPOINTS[path]
    error = refused(server, path, {length: 10**9})
    assert error["param"] == length
    assert error["message"] == f"{length} is 1000000000; this server takes at most 2048."
    error = refused(server, path, {length: 4, "min_tokens": 5})
    assert error["param"] == "min_tokens"
    assert error["message"] == f"min_tokens is 5, and {length} 4; give at most that many."


def test_the_newer_name_of_a_chats_length_is_used_where_it_was_sent(server: Running) -> None:
    error = refused(server, "/v1/chat/completions", {"max_completion_tokens": 10**9})
    assert (error["param"], error["message"][:27]) == ("max_completion_tokens", "max_completion_tokens is 10")


def test_of_two_lengths_that_differ_neither_is_the_one_at_fault(server: Running) -> None:
    error = refused(server, "/v1/chat/completions", {"max_tokens": 4, "max_completion_tokens": 5})
    assert error["param"] is None
    assert "max_tokens and max_completion_tokens differ" in error["message"]


BEYOND: dict[str, tuple[dict[str, Any], str]] = {
    "stop strings": ({"stop": [f"s{number}" for number in range(17)]}, "stop"),
    "a weight": ({"guidance": {"weights": {"up": 1000}}}, "guidance.weights.up"),
    "an unknown guide": ({"guidance": {"weights": {"upp": 1}}}, "guidance.weights.upp"),
    "sentences where none are taken": ({"guidance": {"prompts": {"a": "Be kind."}}}, "guidance.prompts"),
    "drafts of nothing": ({"guidance": {"draft_tokens": 3}}, "guidance.draft_tokens"),
    "a mask of a guide that is not there": (
        {"guidance": {"guide_plausibility": {"{0}": 0.1}}},
        "guidance.guide_plausibility.{0}",
    ),
    "a gate of a guide that is not there": ({"guidance": {"gates": {"{0}": "entropy:1"}}}, "guidance.gates.{0}"),
    "a gate that is none": ({"guidance": {"gates": {"up": "{0}:1"}}}, "guidance.gates.up"),
    "a gate's number out of its range": ({"guidance": {"gates": {"up": "random:2"}}}, "guidance.gates.up"),
    "a draft that is not there": ({"guidance": {"draft": "nobody"}}, "guidance.draft"),
    "a draft of what is certain where nothing is": ({"guidance": {"draft": "certain"}}, "guidance.draft"),
    "a draft by one of several guides": ({"guidance": {"draft": "guide"}}, "guidance.draft"),
    "a token that is not there": ({"logit_bias": {"99999": 1}}, "logit_bias"),
    "a stop token that is not there": ({"stop_token_ids": [99999]}, "stop_token_ids"),
    "too long an expression": ({"guided_regex": "a" * 70_000}, "guided_regex"),
    "an expression that accepts nothing": ({"guided_regex": ""}, "guided_regex"),
    "too large a schema": ({"guided_json": {"type": "string", "title": "a" * 70_000}}, "guided_json"),
    "a schema that is no JSON": ({"guided_json": "{"}, "guided_json"),
    "no choice": ({"guided_choice": []}, "guided_choice"),
    "no end and a form": ({"guided_choice": ["a"], "ignore_eos": True}, "ignore_eos"),
}


@pytest.mark.parametrize("path", ENDPOINTS)
@pytest.mark.parametrize("what", BEYOND)
def test_what_is_beyond_the_limits_of_a_server_is_placed(server: Running, path: str, what: str) -> None:
    changes, param = BEYOND[what]
    assert refused(server, path, changes)["param"] == param


@pytest.mark.parametrize(
    ("path", "changes", "param"),
    [
        ("/v1/chat/completions", {"n": 9}, "n"),
        ("/v1/completions", {"n": 9}, "n"),
        ("/v1/chat/completions", {"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ("/v1/chat/completions", {"top_logprobs": 2}, "top_logprobs"),
        ("/v1/completions", {"logprobs": 21}, "logprobs"),
        ("/v1/responses", {"include": ["message.output_text.logprobs"], "top_logprobs": 21}, "top_logprobs"),
        ("/v1/completions", {"prompt_logprobs": 21, "max_tokens": 1}, "prompt_logprobs"),
        ("/v1/chat/completions", {"seed": 2**63 - 1, "n": 2}, "seed"),
        ("/v1/completions", {"prompt": []}, "prompt"),
        ("/v1/completions", {"prompt": LONG}, "prompt"),
        ("/v1/completions", {"prompt": "x" * 10**6}, "prompt"),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": LONG}]}, "messages"),
        ("/v1/responses", {"input": LONG}, "input"),
        ("/v1/completions", {"prompt": "x" * 3000}, "prompt"),  # within the limits, not within the context
        ("/v1/responses", {"text": {"format": {"type": "json_schema", "schema": {"$ref": "#"}}}}, "text.format"),
        ("/v1/completions", {"guided_regex": "["}, "guided_regex"),
        ("/v1/completions", {"guided_regex": "a", "guided_choice": ["a"]}, "guided_regex"),
    ],
)
def test_each_refusal_names_its_field(server: Running, path: str, changes: dict[str, Any], param: str) -> None:
    error = refused(server, path, changes)
    assert error["param"] == param


@pytest.mark.parametrize("path", ENDPOINTS)
def test_a_negative_weight_of_a_product_is_the_weights_fault(with_product: Running, path: str) -> None:
    error = refused(with_product, path, {"guidance": {"weights": {"near": -1}}})
    assert (error["param"], error["message"][:23]) == ("guidance.weights", "Guide near is a product")


@pytest.mark.parametrize("path", ENDPOINTS)
def test_filters_that_forbid_every_token_are_the_requests_fault(with_product: Running, path: str) -> None:
    """The base's likely tokens and the guide's are others: whoever asks for both masks can change them."""
    asked = {"weights": {"near": 1}, "plausibility": 1.0, "guide_plausibility": {"near": 1.0}}
    error = refused(with_product, path, {"guidance": asked})
    assert error["code"] == "dead_end"
    assert error["message"].startswith("Every token is forbidden")


def test_a_stream_calls_a_length_as_its_endpoint_does(server: Running) -> None:
    error = refused(server, "/v1/responses", {"stream": True, "max_output_tokens": 10**9})
    assert error["param"] == "max_output_tokens"


def test_a_model_that_is_not_there_is_of_the_field_model(server: Running) -> None:
    for path, (body, _, _) in ENDPOINTS.items():
        status, _, reply = call(server, path, {**body, "model": "tinny"})
        assert (status, reply["error"]["param"]) == (404, "model")


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "too high": ({"presence_penalty": 9000}, "presence_penalty is 9000; give a number of at least -2 and at most 2."),
    "too low": ({"seed": -1}, "seed is -1; give a whole number of at least 0 and at most 9223372036854775807."),
    "a text for a number": ({"temperature": "hot"}, 'temperature is "hot"; give a number of at least 0.'),
    "a part of a whole number": ({"max_tokens": 1.5}, "max_tokens is 1.5; give a whole number of at least 1."),
    "a number for a text": ({"model": 5}, "model is 5; give a text."),
    "a bound of its own": ({"n": 0}, "n is 0; give a whole number of at least 1."),
    "one of a few": ({"guidance": {"logprobs": "all"}}, "guidance.logprobs is \"all\"; give 'mixed' or 'base'."),
    "a list for true": ({"stream": [1, 2]}, "stream is a list of 2; give true or false."),
    "a text for a list": ({"stop_token_ids": "a"}, 'stop_token_ids is "a"; give a list.'),
    "a number for either": ({"stop": 5}, "stop is 5; give a text, or a list of texts."),
    "nothing in a list": ({"messages": []}, "messages is a list of 0; give at least 1 item."),
    "a text for an object": ({"guidance": "up"}, 'guidance is "up"; give an object.'),
    "a guide's name that is a parameter's": (
        {"guidance": {"weights": {"top_p": "x"}}},
        'guidance.weights.top_p is "x"; give a number.',
    ),
    "in a mapping of guides": (
        {"guidance": {"guide_plausibility": {"up": 2}}},
        "guidance.guide_plausibility.up is 2; give a number of at least 0 and at most 1.",
    ),
    "a number for a gate": ({"guidance": {"gates": {"up": 1}}}, "guidance.gates.up is 1; give a text."),
    "inside": ({"logit_bias": {"5": 101}}, "logit_bias.5 is 101; give a number of at least -100 and at most 100."),
}


@pytest.mark.parametrize("what", WRONG)
def test_the_value_and_what_is_accepted_stand_in_the_message(what: str) -> None:
    changes, message = WRONG[what]
    with pytest.raises(MalformedError) as caught:
        reader(ChatRequest)(_json({**CHAT, **changes}))
    assert str(caught.value) == message


def test_what_is_missing_is_named() -> None:
    with pytest.raises(MalformedError, match=r"^messages is missing; give it\.$") as caught:
        reader(ChatRequest)(b'{"model": "tiny"}')
    assert caught.value.param == "messages"


def _json(body: dict[str, Any]) -> bytes:
    import json

    return json.dumps(body).encode()


def test_whole_limits_are_whole_numbers(server: Running) -> None:
    limits = call(server, "/v1/models")[2]["limits"]
    kinds = {name: type(getattr(Limits(), name)) for name in OF_A_REQUEST}
    assert {name: type(limits[name]) for name in OF_A_REQUEST} == kinds


def test_what_nobody_asked_for_is_no_more_than_one_may_ask_for() -> None:
    assert Limits(max_new_tokens=4).default_new_tokens == 4
    assert Limits(max_new_tokens=64, default_new_tokens=8).default_new_tokens == 8
