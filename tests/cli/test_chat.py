from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from trimtab.answers import Step
from trimtab.cli.answering.chat import COMMANDS, HELP, Conversation
from trimtab.core import SamplingParams
from trimtab.decoding.decoder import Decoder
from trimtab.errors import PromptError
from trimtab.storage.loading import load_guide, load_model

from .conftest import Outcome, Run, Tiny, spawn

Chat = Callable[..., Outcome]


@pytest.fixture
def chat(run: Run, tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> Chat:
    """A conversation from a pipe, one argument a line."""

    def converse(*lines: str, options: tuple[str, ...] = ()) -> Outcome:
        text = "".join(f"{line}\n" for line in lines)
        monkeypatch.setattr(sys, "stdin", io.StringIO(text))
        guides = ("--guide", f"helpful={tiny.lora}", "--guide", f"kind={tiny.separate}:0.5")
        return run("chat", "--model", tiny.model, *guides, "--max-new-tokens", "6", *options)

    return converse


def _answers(outcome: Outcome) -> list[dict[str, Any]]:
    assert outcome.code == 0, outcome.err
    return [json.loads(line) for line in outcome.out.splitlines()]


def test_an_answer_is_that_of_the_decoder(chat: Chat, tiny: Tiny) -> None:
    (row,) = _answers(chat("/weight helpful 0.3", "/seed 4", "Hello", options=("--json", "--system", "Be brief")))
    decoder = Decoder(load_model(tiny.model), {"helpful": load_guide(tiny.lora), "kind": load_guide(tiny.separate)})
    messages = [{"role": "system", "content": "Be brief"}, {"role": "user", "content": "Hello"}]
    weights = {"helpful": 0.3, "kind": 0.5}
    (answer,) = decoder.generate([messages], weights=weights, seed=4, max_new_tokens=6)
    assert row == {"text": answer.text, "finish_reason": answer.finish_reason, "weights": weights, "seed": 4}


def test_streamed_text_is_the_answers_text(chat: Chat) -> None:
    lines = ("/seed 4", "Hello", "And then?")
    rows = _answers(chat(*lines, options=("--json",)))
    assert chat(*lines).out == "".join(f"{row['text']}\n" for row in rows)


def test_a_dial_turned_in_the_conversation_counts_from_the_next_answer_on(chat: Chat) -> None:
    shift = ("--json", "--form", "helpful=shift")
    rows = _answers(chat("/seed 1", "Hi", "/weight helpful -3", "/retry", "/weight helpful 1", "/retry", options=shift))
    assert [row["weights"]["helpful"] for row in rows] == [1.0, -3.0, 1.0]
    assert rows[0]["seed"] == rows[1]["seed"]
    assert rows[0] == rows[2]
    assert rows[0]["text"] != rows[1]["text"]


def test_a_fixed_seed_makes_a_conversation_repeatable(chat: Chat) -> None:
    lines = ("Hi", "Ho", "/reset", "Hi", "Ho")
    rows = _answers(chat(*lines, options=("--json", "--seed", "9")))
    assert [row["seed"] for row in rows] == [9, 10, 9, 10]
    assert rows[:2] == rows[2:]


def test_without_a_seed_each_answer_draws_one(chat: Chat) -> None:
    rows = _answers(chat("/seed 1", "/seed", "Hi", "/retry", options=("--json",)))
    assert rows[0]["seed"] != rows[1]["seed"]


WRONG = {
    "/wieght helpful 1": "Unknown command '/wieght'. Did you mean '/weight'?",
    "/weight helpfull 1": "Unknown guide 'helpfull'. Did you mean 'helpful'? Accepted: helpful, kind.",
    "/weight helpful nan": "'nan' is not accepted; give a finite number",
    "/weight helpful -1": "Guide helpful is a product",
    "/weight helpful": "/weight helpful has no number behind it",
    "/weight": "Unknown guide ''. Accepted: helpful, kind.",
    "/temperature -1": "'-1' is not accepted; give a finite number of at least 0",
    "/seed x": "'x' is not a seed",
    "/retry": "nothing to answer again",
    "x" * 200: "96",
}


@pytest.mark.parametrize("line", WRONG)
def test_a_line_that_cannot_be_carried_out_says_why_and_the_rest_goes_on(chat: Chat, line: str) -> None:
    outcome = chat(line, "Hello", "/weights", options=("--json",))
    assert WRONG[line] in outcome.err
    assert "Traceback" not in outcome.err
    assert len(outcome.out.splitlines()) == 1, "the message after it was not answered"
    assert "weights: helpful 1, kind 0.5\n" in outcome.err
    assert outcome.code == 2


def test_quit_leaves_and_what_follows_is_not_read(chat: Chat) -> None:
    outcome = chat("/quit", "Hello")
    assert (outcome.code, outcome.out) == (0, "")


def test_help_names_every_command(chat: Chat) -> None:
    assert HELP in chat("/help").err
    assert [line.split()[0] for line in HELP.splitlines() if line.startswith("/")] == [f"/{name}" for name in COMMANDS]


def test_a_model_without_a_template_is_refused(run: Run, tiny: Tiny) -> None:
    outcome = run("chat", "--model", tiny.plain)
    assert outcome.code == 2
    assert "no chat template" in outcome.err
    assert "generate --raw" in outcome.err


def test_a_process_streams_answers_and_nothing_else_to_standard_output(tiny: Tiny) -> None:
    outcome = spawn(["chat", "--model", tiny.model, "--max-new-tokens", "2", "--json"], stdin="Hi ☺\n/weights\n")
    assert outcome.code == 0, outcome.err
    assert json.loads(outcome.out)["weights"] == {}
    assert "weights: no guides" in outcome.err


class Scripted:
    """A decoder that says what it is told to, and remembers what it was asked."""

    def __init__(self, *script: list[str] | Exception) -> None:
        self.script: Iterator[list[str] | Exception] = iter(script)
        self.asked: list[tuple[list[dict[str, str]], SamplingParams]] = []
        self.cancelled: list[int] = []
        self.interrupt_after = 99

    def add(self, prompt: list[dict[str, str]], params: SamplingParams) -> int:
        item = next(self.script)
        if isinstance(item, Exception):
            raise item
        self.asked.append(([dict(message) for message in prompt], params))
        self.pieces = list(enumerate(item))
        return len(self.asked)

    def step(self) -> list[Step]:
        index, piece = self.pieces.pop(0)
        if index == self.interrupt_after:
            raise KeyboardInterrupt
        other = Step(77, 1, "somebody else's", None)
        return [other, Step(len(self.asked), index, piece, None if self.pieces else "eos")]

    def cancel(self, request_id: int) -> None:
        self.cancelled.append(request_id)


def _conversation(decoder: Scripted, **fields: Any) -> Conversation:
    return Conversation(decoder, SamplingParams(weights={}), **fields)  # type: ignore[arg-type]


def _contents(decoder: Scripted) -> list[list[str]]:
    return [[message["content"] for message in prompt] for prompt, _ in decoder.asked]


def test_the_model_is_given_the_conversation_so_far() -> None:
    decoder = Scripted(["I am", " fine"], ["Bye"], ["New"])
    conversation = _conversation(decoder)
    for line in ("How are you?", "", "Goodbye", "/system Be kind", "/reset", "Hello", "/system"):
        conversation.take(line)
    assert _contents(decoder) == [["How are you?"], ["How are you?", "I am fine", "Goodbye"], ["Be kind", "Hello"]]
    assert [message["role"] for message in decoder.asked[2][0]] == ["system", "user"]
    assert conversation.system is None


def test_a_message_that_cannot_be_answered_is_forgotten() -> None:
    decoder = Scripted(["One"], PromptError("too long"), ["Two"])
    conversation = _conversation(decoder)
    conversation.take("first")
    with pytest.raises(PromptError):
        conversation.take("far too long")
    conversation.take("second")
    assert _contents(decoder)[-1] == ["first", "One", "second"]


def test_retry_replaces_the_last_answer_and_keeps_it_when_it_fails() -> None:
    decoder = Scripted(["One"], ["Other"], PromptError("no"))
    conversation = _conversation(decoder)
    conversation.take("first")
    conversation.take("/retry")
    assert _contents(decoder) == [["first"], ["first"]]
    with pytest.raises(PromptError):
        conversation.take("/retry")
    assert [turn["content"] for turn in conversation.turns] == ["first", "Other"]


def test_an_interrupted_answer_is_kept_as_far_as_it_came() -> None:
    decoder = Scripted(["One", " two", " three"], ["Four"])
    decoder.interrupt_after = 2
    conversation = _conversation(decoder, interactive=True)
    conversation.take("count")
    conversation.take("go on")
    assert decoder.cancelled == [1]
    assert _contents(decoder)[-1] == ["count", "One two", "go on"]


def test_an_interrupt_ends_a_conversation_from_a_pipe() -> None:
    decoder = Scripted(["One", " two"])
    decoder.interrupt_after = 1
    with pytest.raises(KeyboardInterrupt):
        _conversation(decoder).take("count")
    assert decoder.cancelled == [1]
