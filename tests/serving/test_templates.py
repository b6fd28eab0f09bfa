"""What a chat over the wire says to the model's template: options, calls of tools, thoughts; and what it refuses."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.serving.conftest import Running, Start
from tests.serving.test_http import CHAT, call, chat
from tests.tiny import byte_llama, byte_tokenizer
from trimtab.core import Chat
from trimtab.decoding.decoder import Decoder
from trimtab.models.hf import HFModel
from trimtab.serving.asking import Catalogue

TEMPLATE = (
    "{% for m in messages %}{% if m['content'] == 'fail' %}{{ 1 + m['content'] }}{% endif %}[{{ m['role'] }}]"
    "{% if m.tool_calls %}{{ m.tool_calls[0].function.arguments.city }}{% endif %}{{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% if enable_thinking is defined and not enable_thinking %}-{% endif %}"
    "{% endif %}"
)


@pytest.fixture(scope="module")
def model() -> HFModel:
    tokenizer = byte_tokenizer(template=TEMPLATE)
    return HFModel(byte_llama(tokenizer, max_length=512), tokenizer, name="tiny")


@pytest.fixture(scope="module")
def server(start: Start, model: HFModel) -> Iterator[Running]:
    with start(engine=Decoder(model), catalogue=Catalogue(model, "tiny", {}, {})) as running:
        yield running


def _answered(server: Running, prompt: Any) -> str:
    decoder = server.service.engine
    return next(decoder.generate([prompt], seed=CHAT["seed"], max_new_tokens=CHAT["max_tokens"])).text


def test_options_reach_the_template_and_change_the_answer(server: Running) -> None:
    options = {"enable_thinking": False}
    reply = call(server, "/v1/chat/completions", chat(chat_template_kwargs=options))[2]
    assert reply["choices"][0]["message"]["content"] == _answered(server, Chat(CHAT["messages"], options))
    plain = call(server, "/v1/chat/completions", CHAT)[2]
    assert reply["usage"]["prompt_tokens"] == plain["usage"]["prompt_tokens"] + 1


def test_a_servers_own_options_hold_where_a_request_does_not_say(start: Start, model: HFModel) -> None:
    catalogue = Catalogue(model, "tiny", {}, {}, {"enable_thinking": False})
    with start(engine=Decoder(model), catalogue=catalogue) as server:
        counts = [
            call(server, "/v1/chat/completions", chat(**told))[2]["usage"]["prompt_tokens"]
            for told in ({}, {"chat_template_kwargs": {"enable_thinking": True}})
        ]
    assert counts[0] == counts[1] + 1


def test_a_call_of_a_tool_in_the_history_is_read(server: Running) -> None:
    function = {"name": "weather", "arguments": '{"city": "Rome"}'}
    said = {"role": "assistant", "content": "", "tool_calls": [{"id": "1", "type": "function", "function": function}]}
    history = [*CHAT["messages"], said, {"role": "user", "content": "And?"}]
    reply = call(server, "/v1/chat/completions", chat(messages=history))[2]
    shown = [*CHAT["messages"], {"role": "assistant", "content": "Rome"}, {"role": "user", "content": "And?"}]
    assert reply["choices"][0]["message"]["content"] == _answered(server, shown)


def test_what_a_template_has_no_place_for_in_a_history_is_left_out(server: Running) -> None:
    history = [{**CHAT["messages"][0], "reasoning_content": "hmm", "name": "Ann"}]
    reply = call(server, "/v1/chat/completions", chat(messages=history))[2]
    assert reply["choices"] == call(server, "/v1/chat/completions", CHAT)[2]["choices"]


PREFILLED = [*CHAT["messages"], {"role": "assistant", "content": "Well"}]
REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "an option that nothing reads": (
        "chat/completions",
        chat(chat_template_kwargs={"enable_thinkin": False}),
        "no option 'enable_thinkin', so it would do nothing. Options that it reads: enable_thinking.",
    ),
    "an option of the server's": (
        "chat/completions",
        chat(chat_template_kwargs={"messages": []}),
        "no option 'messages'",
    ),
    "options in a list": ("chat/completions", chat(chat_template_kwargs=[1]), "chat_template_kwargs"),
    "options of a completion": (
        "completions",
        {"model": "tiny", "prompt": "x", "chat_template_kwargs": {"enable_thinking": False}},
        "chat_template_kwargs is not supported",
    ),
    "a template of the client's": ("chat/completions", chat(chat_template="{{ 1 }}"), "chat_template is not supported"),
    "a template that fails": (
        "chat/completions",
        chat(messages=[{"role": "user", "content": "fail"}]),
        "The model's chat template refuses these messages: TypeError: unsupported operand",
    ),
    "to continue behind a fresh turn": (
        "chat/completions",
        chat(messages=PREFILLED, add_generation_prompt=True, continue_final_message=True),
        "no message can be continued behind a fresh turn",
    ),
    "two lengths": ("chat/completions", chat(max_tokens=3, max_completion_tokens=4), "send one of them"),
    "to continue the user": ("chat/completions", chat(continue_final_message=True), "is for an assistant's message"),
}


PLACES = {
    "an option that nothing reads": "chat_template_kwargs.enable_thinkin",
    "an option of the server's": "chat_template_kwargs.messages",
    "options in a list": "chat_template_kwargs",
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_done_is_a_400_that_names_it(server: Running, what: str) -> None:
    path, body, reason = REFUSED[what]
    status, _, reply = call(server, f"/v1/{path}", body)
    assert status == 400
    assert reason in reply["error"]["message"]
    assert reply["error"]["param"] == PLACES.get(what, reply["error"]["param"])


def test_continuing_may_be_asked_for_by_name(server: Running) -> None:
    asked = chat(messages=PREFILLED, continue_final_message=True, add_generation_prompt=False)
    reply = call(server, "/v1/chat/completions", asked)[2]
    assert reply["choices"][0]["message"]["content"] == _answered(server, PREFILLED)


@pytest.mark.parametrize("is_last", [True, False])
@pytest.mark.parametrize("opens", [None, True, False])
@pytest.mark.parametrize("continues", [None, True, False])
def test_how_messages_end_is_as_asked(
    server: Running, is_last: bool, opens: bool | None, continues: bool | None
) -> None:
    """Against the template itself."""
    messages = PREFILLED if is_last else PREFILLED[:-1]
    hf = server.service.engine.model.tokenizer.hf
    said = {"add_generation_prompt": opens, "continue_final_message": continues}
    status, _, reply = call(server, "/v1/chat/completions", chat(messages=messages, prompt_logprobs=0, **said))
    if continues and (opens or not is_last):
        assert status == 400
        return
    if is_last and continues is not False and not opens:
        how = {"continue_final_message": True}
    else:
        how = {"add_generation_prompt": opens is not False}
    ids = hf.apply_chat_template(messages, tokenize=True, return_dict=False, **how)
    assert status == 200
    assert [next(iter(token), "") for token in reply["prompt_logprobs"][1:]] == [str(token) for token in ids[1:]]
