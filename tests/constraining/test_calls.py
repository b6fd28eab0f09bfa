"""Laws of calls of tools: whatever the model, an answer that ended is text or calls as the template writes them, the
arguments are of the tool's schema, and what is read back piece by piece is what was written."""

from __future__ import annotations

import codecs
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import jsonschema
import pytest
import torch

from tests.call_templates import WITH_CALLS, rendered_calls, tokenizer_of
from tests.constraining.texts import TREE, accepts, random_schema
from tests.tiny import byte_llama
from trimtab import Answer, Candidates, Constraint, Decoder, HFModel, SamplingParams, StatelessGuide
from trimtab.calls import CallFormat, Function
from trimtab.errors import OptionError
from trimtab.models.tokenizing.spelling import bytes_of
from trimtab.prompts import call_format
from trimtab.serving.reading_calls import Call, CallReader

PROMPT = "Call it: "
SMALL = {
    "type": "object",
    "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 99}, "s": {"type": "string", "maxLength": 4}},
    "required": ["n"],
    "additionalProperties": False,
}


@cache
def _model(name: str) -> HFModel:
    hf = tokenizer_of(WITH_CALLS[name])
    return HFModel(byte_llama(hf, max_length=600), hf)


def _functions(seed: int) -> list[Function]:
    """One to three functions, one without arguments and one whose name the other's begins with."""
    draw = random.Random(seed)
    schema = {
        "type": "object",
        "properties": {name: random_schema(draw, 1) for name in draw.sample(["a", "id", "é", 'say "x"'], 2)},
        "required": draw.sample(["a", "id"], draw.randint(0, 1)),
        "additionalProperties": False,
        "$defs": {"tree": TREE},
    }
    schema["required"] = [name for name in schema["required"] if name in schema["properties"]]
    return [Function("look", schema), Function("look_up", SMALL), Function("now-1", None)][: draw.randint(1, 3)]


def _raw(model: HFModel, written: CallFormat, answer: Answer) -> str:
    """The answer with its tokens that add no text, as the reader is given it."""
    assert model.tokenizer is not None
    silent = written.silent
    parts = [silent.get(token, "").encode("utf-8", "surrogatepass") or bytes_of(model.tokenizer, token)
             for token in answer.token_ids if token not in model.eos_ids]  # fmt: skip
    return codecs.getincrementaldecoder("utf-8")("surrogatepass").decode(b"".join(parts))


def _is_first(written: CallFormat) -> bool:
    return not written.is_anywhere


def _read(written: CallFormat, pieces: Sequence[str], *, is_cut: bool = False) -> CallReader:
    reader = CallReader(written, is_first=_is_first(written))
    text, arguments = "", {}
    for piece in pieces:
        for grown in reader.push(piece):
            text += grown.text
            if grown.place is not None:
                assert grown.is_new == (grown.place not in arguments)
                arguments[grown.place] = arguments.get(grown.place, "") + grown.arguments
    text += "".join(grown.text for grown in reader.finish(is_cut=is_cut))
    assert text == reader.text
    assert list(arguments.values()) == [call.arguments for call in reader.calls]
    return reader


def _check_calls(model: HFModel, calls: Sequence[Call], functions: Sequence[Function]) -> None:
    schemas = {one.name: one.parameters for one in functions}
    for call in calls:
        assert call.is_complete
        schema = schemas[call.name]
        arguments = json.loads(call.arguments)
        if schema is None:
            assert arguments == {}
        else:
            checker = jsonschema.Draft202012Validator.FORMAT_CHECKER
            jsonschema.Draft202012Validator(schema, format_checker=checker).validate(arguments)


def _check_as_the_template_writes(model: HFModel, written: CallFormat, raw: str, calls: Sequence[Call]) -> None:
    """The template is another judge: it writes these calls as they were answered, white space in JSON aside."""
    hf = model.tokenizer.hf  # type: ignore[union-attr]
    for character, token_id in ((character, token_id) for token_id, character in written.silent.items()):
        raw = raw.replace(character, hf.added_tokens_decoder[token_id].content)
    ids = iter(_ids_in(written, raw, len(calls)))
    begun, again = 0, ""
    for call in calls:
        at = raw.index(call.arguments, begun)
        again += raw[begun:at] + json.dumps(json.loads(call.arguments), ensure_ascii=False)
        begun = at + len(call.arguments)
    made = [(call.name, next(ids, "aaaaaaaaa"), json.loads(call.arguments)) for call in calls]
    assert again + raw[begun:] == rendered_calls(hf, made)


def _ids_in(written: CallFormat, raw: str, number: int) -> list[str]:
    """The ids that were written with calls, by looking for what stands in front of them in our template."""
    if None not in written.ending:
        return []
    pieces = raw.split(', "id": "')[1:]
    return [piece[:9] for piece in pieces][-number:]


def _answers(name: str, seeds: Sequence[int], **how: Any) -> Iterator[tuple[Answer, list[Function]]]:
    model = _model(name)
    written = call_format(model, {})
    wanted, functions = [], []
    for seed in seeds:
        functions.append(_functions(seed))
        constraint = Constraint.calls(written, functions[-1], several=seed % 2 == 0, **how)
        bias = (
            {}
            if how.get("required") and not written.follows_text
            else {_mark_token(model, written): 5.0 if written.is_anywhere else 30.0 * (seed % 2)}
        )
        wanted.append(
            (
                PROMPT,
                SamplingParams(constraint=constraint, seed=seed, max_new_tokens=180, temperature=0.8, logit_bias=bias),
            )
        )
    yield from zip(Decoder(model).answers(wanted), functions, strict=True)


def _mark_token(model: HFModel, written: CallFormat) -> int:
    tokens = model.tokenizer.tokens  # type: ignore[union-attr]
    return written.mark if isinstance(written.mark, int) else tokens.get(written.mark, tokens[written.mark[0]])


@pytest.mark.parametrize("name", WITH_CALLS)
def test_a_required_call_that_ended_is_one_of_the_tools_calls(name: str) -> None:
    model = _model(name)
    written = call_format(model, {})
    num_ended = 0
    for answer, functions in _answers(name, range(10), required=True):
        assert answer.finish_reason in ("eos", "length"), answer.error
        if answer.finish_reason == "length":
            continue
        num_ended += 1
        raw = _raw(model, written, answer)
        reader = _read(written, [raw])
        assert reader.is_complete
        assert written.follows_text or not reader.text
        _check_calls(model, reader.calls, functions)
        _check_as_the_template_writes(model, written, raw[len(reader.text) :].lstrip(), reader.calls)
    assert num_ended >= 4


@pytest.mark.parametrize("name", WITH_CALLS)
def test_where_no_call_is_required_an_answer_is_text_or_calls(name: str) -> None:
    model = _model(name)
    written = call_format(model, {})
    kinds = set()
    for answer, functions in _answers(name, range(10)):
        assert answer.finish_reason in ("eos", "length"), answer.error
        if answer.finish_reason == "length":
            continue
        raw = _raw(model, written, answer)
        reader = _read(written, [raw])
        kinds.add(bool(reader.calls))
        assert reader.is_complete or reader.text == raw
        _check_calls(model, reader.calls, functions)
        assert not any(character in reader.text for character in written.silent.values())
        assert written.is_anywhere or reader.calls or not reader.text.lstrip().startswith("{")
    assert True in kinds


@pytest.mark.parametrize("name", WITH_CALLS)
def test_how_an_answer_is_cut_into_pieces_changes_nothing_and_no_part_of_a_call_is_text(name: str) -> None:
    model = _model(name)
    written = call_format(model, {})
    for answer, _ in _answers(name, range(4)):
        raw = _raw(model, written, answer)
        whole = _read(written, [raw])
        assert _read(written, list(raw)).calls == whole.calls
        draw = random.Random(0)
        for _ in range(20):
            cuts = sorted(draw.sample(range(len(raw) + 1), min(3, len(raw))))
            pieces = [raw[low:high] for low, high in zip([0, *cuts], [*cuts, len(raw)], strict=True)]
            again = _read(written, pieces)
            assert (again.text, again.calls) == (whole.text, whole.calls)
        for end in range(len(raw)):
            cut = _read(written, [raw[:end]], is_cut=True)
            assert whole.text.startswith(cut.text) or whole.text == cut.text.rstrip()
            assert len(cut.calls) <= len(whole.calls)


def test_one_call_alone_where_several_are_not_wanted() -> None:
    """With a function that takes no arguments, so that several would be likely."""
    model = _model("hermes")
    written = call_format(model, {})
    functions = [Function("f", None)]
    for several, least in ((True, 2), (False, 1)):
        most = 0
        constraint = Constraint.calls(written, functions, required=True, several=several)
        asked = [(PROMPT, SamplingParams(constraint=constraint, seed=seed, max_new_tokens=400)) for seed in range(8)]
        for answer in Decoder(model).answers(asked):
            most = max(most, len(_read(written, [_raw(model, written, answer)]).calls))
        assert (most >= least) if several else (most == 1)


def test_a_text_may_have_a_form_of_its_own() -> None:
    model = _model("hermes")
    written = call_format(model, {})
    constraint = Constraint.calls(written, [Function("f", SMALL)], form=SMALL)
    brace = model.tokenizer.tokens["{"]  # type: ignore[union-attr]
    params = SamplingParams(constraint=constraint, max_new_tokens=200)
    asked = [(PROMPT, replace(params, seed=seed, logit_bias={brace: 20.0 * (seed % 2)})) for seed in range(8)]
    ended = [one for one in Decoder(model).answers(asked) if one.finish_reason == "eos"]
    calls = [one.text for one in ended if one.text.startswith("<tool_call>")]
    texts = [one.text for one in ended if one.text not in calls]
    assert calls
    assert texts
    assert all(accepts(Constraint.json_schema(SMALL), text) for text in texts)


def test_a_row_with_tools_changes_no_other_and_is_changed_by_none() -> None:
    model = _model("hermes")
    written = call_format(model, {})
    calls = Constraint.calls(written, [Function("f", SMALL)], required=True)
    forms = [None, calls, Constraint.regex("(ab|c){1,4}"), None, Constraint.calls(written, [Function("g", None)])]
    asked = [(PROMPT, SamplingParams(constraint=form, seed=seed, max_new_tokens=60)) for seed, form in enumerate(forms)]
    together = list(Decoder(model).answers(asked))
    for one, alone in zip(asked, together, strict=True):
        assert next(Decoder(model).answers([one])).token_ids == alone.token_ids


def test_guides_steer_which_call_is_made_and_not_its_form() -> None:
    """Beside rows of other weights and without tools; the guide likes one of two letters at any weight."""
    model = _model("hermes")
    written = call_format(model, {})
    likes = {letter: model.tokenizer.tokens[letter] for letter in "ab"}  # type: ignore[union-attr]

    class Likes(StatelessGuide):
        def score(self, rows: Sequence[Sequence[int]], candidates: Candidates) -> torch.Tensor:
            return (candidates.token_ids == likes["a"]).float() - (candidates.token_ids == likes["b"]).float()

    functions = [Function("a", SMALL), Function("b", SMALL)]
    constraint = Constraint.calls(written, functions, required=True, several=False)
    params = SamplingParams(constraint=constraint, max_new_tokens=180)
    weights = (-40.0, 0.0, 40.0)
    asked = [(PROMPT, replace(params, seed=seed, weights={"likes": weights[seed % 3]})) for seed in range(12)]
    asked += [(PROMPT, SamplingParams(seed=50, max_new_tokens=20, weights={"likes": 1.0}))]
    *answers, free = Decoder(model, {"likes": Likes()}).answers(asked)
    names: dict[float, set[str]] = {weight: set() for weight in weights}
    for (_, said), answer in zip(asked, answers, strict=False):
        if answer.finish_reason == "eos":
            calls = _read(written, [_raw(model, written, answer)]).calls
            _check_calls(model, calls, functions)
            names[said.weights["likes"]] |= {call.name for call in calls}
    assert names[-40.0] == {"b"}
    assert names[40.0] == {"a"}
    assert free.token_ids == next(Decoder(model, {"likes": Likes()}).answers(asked[-1:])).token_ids


RESPONSE = {
    "defaults": {"role": "assistant"},
    "start_anchor": "[assistant]\n",
    "fields": {
        "tool_calls": {
            "open_pattern": r"\s*<tool_call>",
            "close": "</tool_call>",
            "repeats": True,
            "content": "json",
            "transform": {"type": "function", "function": "{content}"},
        },
        "content": {"close_pattern": r"\s*</s>", "content": "text"},
    },
}
"""What a model card of the Hermes kind would say to transformers of its answers."""


def test_transformers_own_parser_reads_the_same_calls() -> None:
    model = _model("hermes")
    written = call_format(model, {})
    hf = model.tokenizer.hf  # type: ignore[union-attr]
    num_read = 0
    for required in (True, False):
        for answer, _ in _answers("hermes", range(8), required=required):
            if answer.finish_reason != "eos":
                continue
            raw = _raw(model, written, answer)
            reader = _read(written, [raw])
            parsed = hf.parse_response(raw, RESPONSE, prefix="[assistant]\n")
            found = [one["function"] for one in parsed.get("tool_calls", [])]
            assert found == [{"name": one.name, "arguments": json.loads(one.arguments)} for one in reader.calls]
            assert parsed.get("content", "").strip() == reader.text.strip()
            num_read += len(found)
    assert num_read >= 5


def test_what_cannot_be_arguments_is_refused() -> None:
    model = _model("hermes")
    written = call_format(model, {})
    for schema, why in (
        ({"type": "string"}, "Arguments are a JSON object"),
        ({"properties": {"a": {"type": "nothing"}}}, "cannot be used"),
        ({"properties": {"a": {"$ref": "#"}}, "required": ["a"]}, "without end"),
    ):
        params = SamplingParams(constraint=Constraint.calls(written, [Function("f", schema)]))
        with pytest.raises(OptionError, match=why):
            Decoder(model).add(PROMPT, params)
    with pytest.raises(OptionError, match="no function"):
        Constraint.calls(written, [])
