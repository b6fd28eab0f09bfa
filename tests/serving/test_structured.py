"""Answers of a given form over HTTP: what clients of OpenAI's and of vLLM's send, many at a time, guided or not."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

pytest.importorskip("llguidance", reason="llguidance is not installed")

from tests.constraining.texts import accepts
from tests.serving.conftest import Running
from tests.serving.test_http import call, chat
from trimtab import Constraint

SCHEMA = {
    "type": "object",
    "properties": {"ok": {"type": "boolean"}, "n": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["ok", "n"],
    "additionalProperties": False,
}
FORMS: list[tuple[dict[str, Any], Constraint]] = [
    ({"response_format": {"type": "json_object"}}, Constraint.json_object()),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "strict": True, "schema": SCHEMA}}},
        Constraint.json_schema(SCHEMA),
    ),
    ({"guided_json": SCHEMA}, Constraint.json_schema(SCHEMA)),
    ({"guided_json": json.dumps(SCHEMA)}, Constraint.json_schema(SCHEMA)),
    ({"guided_regex": "(ab|c){1,4}"}, Constraint.regex("(ab|c){1,4}")),
    ({"guided_grammar": 'start: "yes" | "no"'}, Constraint.regex("yes|no")),
    ({"guided_choice": ["red", "green"]}, Constraint.choice(["red", "green"])),
]


def _text(server: Running, asked: dict[str, Any]) -> tuple[str, str]:
    status, _, reply = call(server, "/v1/chat/completions", asked)
    assert status == 200, reply
    (choice,) = reply["choices"]
    return choice["message"]["content"], choice["finish_reason"]


@pytest.mark.parametrize("number", range(len(FORMS)))
def test_an_answer_has_the_form_that_was_asked_for(server: Running, number: int) -> None:
    form, constraint = FORMS[number]
    text, reason = _text(server, chat(**form, max_tokens=200, seed=number))
    assert reason == "length" or accepts(constraint, text)


def test_text_may_be_asked_for_by_name(server: Running) -> None:
    asked = chat(max_tokens=5, seed=1)
    assert _text(server, asked) == _text(server, {**asked, "response_format": {"type": "text"}})


def test_many_clients_of_many_forms_and_guides_get_what_each_asked_for(server: Running) -> None:
    wanted = []
    for number in range(24):
        form, constraint = FORMS[number % len(FORMS)] if number % 4 else ({}, None)
        guidance = {"weights": {"up": number % 3, "down": 0.5 * (number % 2)}}
        wanted.append((chat(**form, guidance=guidance, max_tokens=60, seed=number), constraint))
    with ThreadPoolExecutor(24) as clients:
        together = list(clients.map(lambda one: _text(server, one[0]), wanted))
    for (asked, constraint), (text, reason) in zip(wanted, together, strict=True):
        assert constraint is None or reason == "length" or accepts(constraint, text), (asked, text)
    for index in (1, 6, 8):
        assert _text(server, wanted[index][0]) == together[index]
