"""Bodies: bounded whatever is in them, null as absent, and refused in the client's own words."""

from __future__ import annotations

import json
import threading
from typing import Any

import pytest

from tests.serving.conftest import Running
from tests.serving.test_http import CHAT, call, chat
from trimtab.errors import PromptError
from trimtab.serving import bodies
from trimtab.serving.asking import wanted_completion
from trimtab.serving.bodies import reader
from trimtab.serving.limits import Limits
from trimtab.serving.problems import MalformedError, error_body
from trimtab.serving.schema import ChatRequest, CompletionRequest, Guidance, Message, StreamOptions, validated
from trimtab.serving.wordings import cut

MANY = 100_000
COMPLETION: dict[str, Any] = {"model": "tiny", "prompt": "Hello.", "max_tokens": 4, "seed": 1}
WRONG: tuple[Any, ...] = (None, True, 5, -1, 1.5, "x", "", [], {}, [[]], [{}], {"x": 1}, "\ud800", 1 << 70, [None])
PYTHON = ("function", "Text", "list[", "is-instance", "dict[", "Guidance", "Message", "Asked", "tagged", "pydantic")
"""Words of ours, which no client has sent."""


def completion(**changes: Any) -> dict[str, Any]:
    return {**COMPLETION, **changes}


def big() -> dict[str, tuple[type[Any], dict[str, Any]]]:
    """What to check as what: a hundred thousand of something in each place that may hold many."""
    found: dict[str, tuple[type[Any], dict[str, Any]]] = {}
    names = {f"name{number}": number for number in range(MANY)}
    items = {"null": None, "numbers": 1, "fractions": 1.5, "texts": "a", "objects": {}, "lists": []}
    for what, item in items.items():
        many = [item] * MANY
        user = {"role": "user", "content": many}
        places = {
            "messages": (ChatRequest, chat(messages=many)),
            "content": (ChatRequest, chat(messages=[user])),
            "the content of many": (ChatRequest, chat(messages=[user] * 3)),
            "prompt": (CompletionRequest, completion(prompt=many)),
            "a prompt's ids": (CompletionRequest, completion(prompt=[[1, *many]])),
            "stop": (ChatRequest, chat(stop=many)),
            "weights": (ChatRequest, chat(guidance={"weights": dict.fromkeys(names, item)})),
            "keys of guidance": (ChatRequest, chat(guidance=dict.fromkeys(names, item))),
            "keys": (ChatRequest, {**dict.fromkeys(names, item), **CHAT, "n": -1}),
            "bias": (ChatRequest, chat(logit_bias=dict.fromkeys(names, item))),
            "tools": (ChatRequest, chat(tools=many)),
        }
        found |= {f"{what} in {place}": case for place, case in places.items()}
    return found


def test_a_body_has_few_problems_however_large_it_is() -> None:
    """Each problem costs time, so their number is what keeps the server from standing still."""
    accepted = set()
    for what, (kind, content) in big().items():
        body, problems = validated(kind, content)
        assert len(problems) <= 3, what
        if body is None:
            assert problems, what
        else:
            accepted.add(what)
    # Ids of a token, and texts at most by the limits' own words; the schema lets no others through.
    assert accepted == {"numbers in prompt", "numbers in a prompt's ids"}


def test_lists_have_a_length_that_may_not_be_exceeded() -> None:
    said = {"role": "user", "content": ""}
    for kind, content in (
        (ChatRequest, chat(messages=[said] * 20_000)),
        (ChatRequest, chat(messages=[{**said, "content": [{"type": "text", "text": ""}] * 20_000}])),
        (CompletionRequest, completion(prompt=["a"] * 20_000)),
        (CompletionRequest, completion(prompt=[[1]] * 20_000)),
        (CompletionRequest, completion(stop=["a"] * 20_000)),
        (CompletionRequest, completion(prompt=[1] * (1 << 20))),
    ):
        body, problems = validated(kind, content)
        assert body is None
        assert [item["type"] for item in problems] == ["too_long"]


@pytest.mark.parametrize(
    "raw",
    [
        b"[" * 500_000,
        b'{"a":' * 200_000,
        b'{"model":' + b"9" * 100_000 + b"}",
        b'{"model":"tiny","messages":' + b"[" * 900 + b"]" * 900 + b"}",
    ],
)
def test_deep_or_long_json_is_refused(server: Running, raw: bytes) -> None:
    status, _, reply = call(server, "/v1/chat/completions", raw=raw)
    assert status == 400
    assert len(reply["error"]["message"]) < 700


def test_a_body_is_read_off_the_event_loop(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    threads = []
    sound = bodies._json

    def watched(raw: bytes) -> Any:
        threads.append(threading.current_thread().name)
        return sound(raw)

    monkeypatch.setattr(bodies, "_json", watched)
    names = {thread.name for thread in threading.enumerate()}
    loops = {name for name in names if name.startswith("Thread-")}
    assert call(server, "/v1/chat/completions", CHAT)[0] == 200
    assert threads
    assert not set(threads) & loops


def test_a_text_far_beyond_the_limit_is_not_made_tokens_of(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trimtab.serving.asking.encode_prompt", lambda *_: pytest.fail("it was encoded"))
    catalogue = server.service.catalogue
    body = CompletionRequest(model="tiny", prompt="a" * 1000)
    with pytest.raises(PromptError, match="1000 characters; this server takes at most 10 tokens"):
        wanted_completion(body, catalogue, Limits(max_prompt_tokens=10))


# Nulls


def nullable() -> list[tuple[str, str]]:
    """(route, optional field) of everything that a request may leave out."""
    shared = ["presence_penalty", "frequency_penalty", "logit_bias", "user", "metadata", "store", "service_tier"]
    tools = ["tools", "tool_choice", "functions", "function_call", "response_format", "parallel_tool_calls"]
    fields = {
        "/v1/chat/completions": [*ChatRequest.model_fields, *shared, *tools],
        "/v1/completions": [*CompletionRequest.model_fields, *shared, "suffix", "echo"],
    }
    required = ("model", "messages", "prompt")
    return [(route, name) for route, names in fields.items() for name in names if name not in required]


@pytest.mark.parametrize(("route", "name"), nullable())
def test_null_is_a_field_that_is_not_there(server: Running, route: str, name: str) -> None:
    asked = {**(CHAT if "chat" in route else COMPLETION), "max_tokens": 3}
    without = {key: value for key, value in asked.items() if key != name}
    status, _, reply = call(server, route, {**without, name: None})
    assert status == 200
    if name not in ("seed", "max_tokens"):
        assert reply["choices"] == call(server, route, without)[2]["choices"]


@pytest.mark.parametrize("name", Guidance.model_fields)
def test_null_in_guidance_is_absent_too(name: str) -> None:
    assert Guidance.model_validate({name: None}) == Guidance()


def test_null_inside_stream_options_and_messages() -> None:
    assert StreamOptions.model_validate({"include_usage": None}) == StreamOptions()
    said = {"role": "user", "content": "a", "name": None, "tool_calls": None, "refusal": None, "audio": None}
    assert Message.model_validate(said).text == "a"


@pytest.mark.parametrize("field", ["tool_calls", "function_call"])
@pytest.mark.parametrize("content", [{}, {"content": None}, {"content": ""}, {"content": []}])
def test_an_assistant_that_called_tools_may_have_said_nothing(server: Running, content: Any, field: str) -> None:
    called = {"role": "assistant", **content, field: [{"id": "a", "type": "function"}]}
    result = {"role": "tool", "tool_call_id": "a", "content": [{"type": "text", "text": "1"}]}
    assert call(server, "/v1/chat/completions", chat(messages=[*CHAT["messages"], called, result]))[0] == 200


@pytest.mark.parametrize(
    "message", [{"role": "user"}, {"role": "assistant"}, {"role": "assistant", "tool_calls": []}, {"role": "tool"}]
)
def test_nobody_else_may(server: Running, message: dict[str, Any]) -> None:
    for content in ({}, {"content": None}):
        status, _, reply = call(server, "/v1/chat/completions", chat(messages=[{**message, **content}]))
        assert (status, reply["error"]["param"]) == (400, "messages.0.content")


# Words


def spoilt() -> list[tuple[type[Any], dict[str, Any], list[str]]]:
    """(kind, a body with one wrong value, where it is)."""
    cases = []
    bodies_of: tuple[tuple[type[Any], dict[str, Any]], ...] = (
        (ChatRequest, chat(guidance={"weights": {"up": 1.0}}, stop=["a"], stream_options={"include_usage": True})),
        (ChatRequest, chat(messages=[{"role": "user", "content": [{"type": "text", "text": "a"}]}])),
        (CompletionRequest, completion(prompt=[1, 2])),
        (CompletionRequest, completion(prompt=[[1], [2]])),
        (CompletionRequest, completion(prompt=["a", "b"])),
    )
    for kind, body in bodies_of:
        for path in _paths(body):
            for wrong in WRONG:
                cases.append((kind, _with(body, path, wrong), [str(part) for part in path]))
        for name in kind.model_fields:
            cases += [(kind, {**body, name: wrong}, [name]) for wrong in WRONG]
    return cases


def _paths(value: Any, here: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path for key, item in items for path in ((*here, key), *_paths(item, (*here, key)))]


def _with(value: Any, path: tuple[Any, ...], wrong: Any) -> Any:
    if not path:
        return wrong
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = _with(value[path[0]], path[1:], wrong)
    return copy


def test_a_wrong_value_is_placed_in_the_clients_json_and_said_in_no_words_of_ours() -> None:
    cases = [(body, place, error_of(kind, body)) for kind, body, place in spoilt()]
    refused = [(body, place, error) for body, place, error in cases if error is not None]
    assert len(refused) > 500
    for body, place, error in refused:
        said = f"{error} {error.param}"
        assert not [word for word in PYTHON if word in said], said
        if error.param is not None:
            param = error.param.split(".")
            assert param[0] == place[0], said
            here: Any = body
            for part in param[:-1]:
                here = here[int(part) if isinstance(here, list) else part]
            missing = "is missing; give it" in said
            assert missing or param[-1] in ([str(i) for i in range(len(here))] if isinstance(here, list) else here), (
                said
            )


def error_of(kind: type[Any], body: dict[str, Any]) -> MalformedError | None:
    try:
        reader(kind)(json.dumps(body).encode())
    except MalformedError as error:
        return error
    return None


def test_pictures_are_refused_in_words(server: Running) -> None:
    for kind in ("image_url", "input_audio", "file", "refusal", "x" * 9999):
        message = {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": kind, kind: {}}]}
        status, _, reply = call(server, "/v1/chat/completions", chat(messages=[message]))
        assert (status, reply["error"]["param"]) == (400, "messages.0.content.1")
        assert kind[:60] in reply["error"]["message"]
        assert "parts of type 'text'" in reply["error"]["message"]


@pytest.mark.parametrize(
    "body",
    [
        chat(model="m" * 500),
        chat(model="m" * 100_000),
        chat(guidance={"weights": {"g" * 500: 1}}),
        chat(guidance={"weights": {"g" * 100_000: 1}}),
        chat(guidance={"k" * 100_000: 1}),
        chat(messages=[{"role": "r" * 100_000, "content": "a"}]),
        chat(response_format={"type": "t" * 100_000}),
        chat(stop=["a", "b" * 100_000, 5]),
    ],
)
def test_what_is_quoted_back_is_cut(server: Running, body: dict[str, Any]) -> None:
    status, _, reply = call(server, "/v1/chat/completions", body)
    assert status in (400, 404)
    assert len(json.dumps(reply)) < 1000


def test_cut_keeps_both_ends() -> None:
    assert cut("a" * 64) == "a" * 64
    short = cut("start" + "x" * 5000 + "end")
    assert len(short) <= 64
    assert short.startswith("start")
    assert short.endswith("end")
    assert "characters" in short
    said = error_body("start" + "x" * 5000 + "end", "k", "p" * 5000)["error"]
    assert len(said["message"]) <= 600 >= len(said["param"])


# Usage


@pytest.mark.parametrize("prompt", [["a", "a"], ["ab", "ab"], [[5], [5]], ["a", "b"]])
@pytest.mark.parametrize("n", [1, 2])
def test_usage_counts_prompts_by_place(server: Running, prompt: Any, n: int) -> None:
    alone = [call(server, "/v1/completions", completion(prompt=one))[2]["usage"]["prompt_tokens"] for one in prompt]
    asked = completion(prompt=prompt, n=n)
    used = call(server, "/v1/completions", asked)[2]["usage"]
    assert used["prompt_tokens"] == sum(alone)
    assert used["completion_tokens"] == 2 * n * 4
    streamed = call(server, "/v1/completions", {**asked, "stream": True, "stream_options": {"include_usage": True}})[2]
    [told] = [json.loads(line[6:])["usage"] for line in streamed.decode().splitlines() if '"usage":{' in line]
    assert told == used


def test_gauges_are_true_when_they_are_asked(start: Any) -> None:
    def gauges(server: Running) -> tuple[str, str]:
        page = call(server, "/metrics")[2].decode().splitlines()
        batch, queue = (
            next(line for line in page if line.startswith(name)).split()[1]
            for name in ("trimtab_batch_size", "trimtab_queue_length")
        )
        return batch, queue

    with start(Limits(max_rows=2, max_queue=8)) as server:
        assert gauges(server) == ("0.0", "0.0")
        gate, entered = threading.Event(), threading.Event()
        sound = server.batch.engine.step

        def held() -> Any:
            steps = sound()
            entered.set()
            gate.wait(20)
            return steps

        server.batch.engine.step = held  # type: ignore[method-assign]
        asking = threading.Thread(target=call, args=(server, "/v1/chat/completions", chat(n=5, max_tokens=3)))
        asking.start()
        assert entered.wait(20)
        assert gauges(server) == ("2.0", "3.0")  # in the midst of a step
        gate.set()
        asking.join(30)
        assert gauges(server) == ("0.0", "0.0")
