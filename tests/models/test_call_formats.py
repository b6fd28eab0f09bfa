"""How a model writes calls of tools, read off its chat template; and templates that are refused."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.call_templates import WITH_CALLS, WITHOUT, rendered_calls, tokenizer_of
from trimtab.calls import CallFormat
from trimtab.errors import PromptError
from trimtab.models.hf import HFTokenizer

ENDS = frozenset({2})


def _format(template: str) -> CallFormat:
    return HFTokenizer(tokenizer_of(template)).call_format({}, ENDS)


def _written(found: CallFormat, hf: Any, calls: list[tuple[str, str, dict[str, Any]]]) -> str:
    """Calls by the format; ids are written as the call's own, in a joint as that of the call before."""
    text = found.lead
    for number, (name, _, arguments) in enumerate(calls):
        before = found.opening if not number else found.joint
        assert before is not None
        text += _parts(before, hf, calls[max(number - 1, 0)][1]) + name + _parts(found.between, hf, "")
        text += json.dumps(arguments, ensure_ascii=False)
    return text + _parts(found.ending, hf, calls[-1][1])


def _parts(parts: Any, hf: Any, call_id: str) -> str:
    names = {token_id: token.content for token_id, token in hf.added_tokens_decoder.items()}
    return "".join(call_id if part is None else names.get(part, part) for part in parts)


CALLS = [
    ("look_up", "aaaaaaaa1", {"q": 'a "b" {}', "n": [1, {}]}),
    ("x-1", "aaaaaaaa2", {}),
    ("z", "bbbbbbbb3", {"k": None}),
]


@pytest.mark.parametrize("name", WITH_CALLS)
@pytest.mark.parametrize("number", [1, 3])
def test_a_format_writes_what_the_template_writes(name: str, number: int) -> None:
    hf = tokenizer_of(WITH_CALLS[name])
    found = _format(WITH_CALLS[name])
    if found.joint is None:
        number = 1
    assert _written(found, hf, CALLS[:number]) == rendered_calls(hf, CALLS[:number])


def test_only_what_no_text_holds_marks_a_call() -> None:
    marks = {name: (found.mark, found.is_anywhere) for name, found in ((n, _format(t)) for n, t in WITH_CALLS.items())}
    silent = {token.content: token_id for token_id, token in tokenizer_of("").added_tokens_decoder.items()}
    assert marks == {
        "hermes": ("<tool_call>", True),
        "listed": (silent["[TOOL_CALLS]"], True),
        "bare": ("{", False),
        "tagged": ("<function=", True),
        "fenced": (silent["<|call|>"], True),
        "thinking": ("<tool_call>", True),
        "thought": ("<tool_call>", True),
    }


def test_a_thought_that_the_prompt_opens_is_seen() -> None:
    assert {name for name, template in WITH_CALLS.items() if _format(template).follows_text} == {"thinking"}


@pytest.mark.parametrize("what", WITHOUT)
def test_a_template_whose_calls_cannot_be_read_back_is_refused_with_why(what: str) -> None:
    template, why = WITHOUT[what]
    with pytest.raises(PromptError, match=why):
        _format(template)


def test_a_format_survives_json() -> None:
    for template in WITH_CALLS.values():
        found = _format(template)
        assert CallFormat.from_json(json.loads(json.dumps(found.as_json()))) == found


def test_options_are_told_to_the_template() -> None:
    """A template that opens a thought unless it is told not to."""
    template = WITH_CALLS["thinking"].replace("<think>\n", "{{ '<think>\n' if think is not defined or think }}")
    tokenizer = HFTokenizer(tokenizer_of(template))
    assert tokenizer.call_format({}, ENDS).follows_text
    assert not tokenizer.call_format({"think": False}, ENDS).follows_text
