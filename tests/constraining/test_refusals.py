"""What is refused, in words, before anything is decoded."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest

from trimtab import Constraint, Decoder, HFModel, SamplingParams, TabularModel
from trimtab.constraining import trial
from trimtab.constraining.endless import endless_rule, endless_schema
from trimtab.errors import MissingExtraError, OptionError

NODE = {"type": "object", "properties": {"next": {"$ref": "#"}}}

REFUSED: dict[str, tuple[Callable[[], Constraint], str]] = {
    "no JSON": (lambda: Constraint.json_schema("{"), "is not JSON"),
    "no schema": (lambda: Constraint.json_schema("[1]"), "an object or a truth value"),
    "deep": (lambda: Constraint.json_schema('{"items":' * 400 + "{}" + "}" * 400), "levels deep"),
    "very deep": (lambda: Constraint.json_schema('{"items":' * 5000 + "{}" + "}" * 5000), "nested too deeply"),
    "nothing": (lambda: Constraint.json_schema(False), "Unsatisfiable schema"),
    "contradiction": (lambda: Constraint.json_schema({"type": "integer", "minimum": 2, "maximum": 1}), "minimum"),
    "unknown word": (lambda: Constraint.json_schema({"type": "text"}), "Invalid type: text"),
    "unknown rule": (lambda: Constraint.json_schema({"not": {"type": "string"}}), 'Unimplemented keys: ["not"]'),
    "itself": (lambda: Constraint.json_schema({"$ref": "#"}), "without end at #"),
    "endless": (lambda: Constraint.json_schema({**NODE, "required": ["next"]}), "without end at #"),
    "expression": (lambda: Constraint.regex("[a"), "unclosed character class"),
    "look-ahead": (lambda: Constraint.regex("(?=a)b"), "look-around"),
    "no expression": (lambda: Constraint.regex(""), "is empty"),
    "matches nothing": (lambda: Constraint.regex(r"a[^\s\S]"), "admits no answer"),
    "no end": (lambda: Constraint.grammar('start: "a" start'), "'start' has no end"),
    "no end, GBNF": (lambda: Constraint.grammar('root ::= "a" root'), "has no end"),
    "no start": (lambda: Constraint.grammar('rule: "a"'), "which has a rule `start: ...`"),
    "no choice": (lambda: Constraint.choice([]), "at least one text"),
    "one text": (lambda: Constraint.choice("yes"), "in a list"),
    "long": (lambda: Constraint.regex("a" * 70_000), "at most 65536"),
    "half a character": (lambda: Constraint.regex("\ud800"), "lone surrogate"),
    "kind": (lambda: Constraint("xml", "<a/>"), "accepted: json_schema"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_used_is_refused_in_words(writer: HFModel, name: str) -> None:
    make, why = REFUSED[name]
    with pytest.raises(OptionError) as caught:
        Decoder(writer).add("a", SamplingParams(constraint=make()))
    assert why in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_would_end_the_compiler_is_refused_by_a_process_of_its_own(writer: HFModel) -> None:
    """Rules in a row overflow the compiler's stack: in this process that would be a segmentation fault."""
    rules = "\n".join(f"r{index}: r{index + 1}" for index in range(4000))
    with pytest.raises(OptionError, match="too large or too involved"):
        Decoder(writer).add("a", SamplingParams(constraint=Constraint.grammar(f'start: r0\n{rules}\nr4000: "c"')))


def test_what_takes_too_long_is_refused(writer: HFModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "COMPUTING_S", 0.2)
    with pytest.raises(OptionError, match=r"compiled in 0\.2 s"):
        Decoder(writer).add("a", SamplingParams(constraint=Constraint.regex("a?" * 20_000)))


def test_a_vocabulary_that_cannot_write_it_refuses() -> None:
    with pytest.raises(OptionError, match="this model's tokens can write"):
        Decoder(TabularModel.random(9, seed=0)).add("a", SamplingParams(constraint=Constraint.json_object()))


@pytest.mark.parametrize(
    ("model", "params", "why"),
    [
        (TabularModel.random(9, seed=0), {"ignore_eos": True}, "no end can be ignored"),
        (TabularModel.random(9, seed=0), {"forced": (3,)}, "forced tokens leave the constraint"),
        (TabularModel.random(9, seed=0, eos_ids=()), {}, "no end-of-sequence token"),
        (TabularModel(lambda prefix: None, 9, has_tokenizer=False), {}, "no tokenizer"),  # type: ignore[arg-type, return-value]
    ],
)
def test_what_does_not_go_with_a_constraint_is_refused(
    model: TabularModel, params: dict[str, object], why: str
) -> None:
    with pytest.raises(OptionError, match=why):
        Decoder(model).add([1], SamplingParams(constraint=Constraint.regex("a+"), **params))  # type: ignore[arg-type]


def test_nothing_is_certain_without_a_constraint(writer: HFModel) -> None:
    with pytest.raises(OptionError, match="Nothing is certain where an answer has no constraint"):
        Decoder(writer).add("a", SamplingParams(draft="certain"))


def test_something_else_than_a_constraint_is_refused() -> None:
    with pytest.raises(OptionError, match=r"give a Constraint, such as"):
        SamplingParams(constraint={"type": "object"})  # type: ignore[arg-type]


def test_vllm_refuses_by_name() -> None:
    from trimtab.engines.vllm.sampling import check_params

    with pytest.raises(OptionError, match=r"leave the constraint out\. The built-in engine takes it\."):
        check_params(SamplingParams(constraint=Constraint.json_object()))


def test_without_the_library_its_command_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("trimtab.constraining.") or name == "llguidance"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "llguidance", None)
    from trimtab.constraining.entry import grammars

    with pytest.raises(MissingExtraError, match=r'pip install "trimtab\[structured\]"'):
        grammars(TabularModel.random(9, seed=0))


@pytest.mark.parametrize(
    ("schema", "place"),
    [
        ({"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}, "#"),
        ({"type": "array", "items": {"$ref": "#"}, "minItems": 1}, "#"),
        ({"type": "array", "prefixItems": [{"$ref": "#"}], "minItems": 1}, "#"),
        ({"anyOf": [{"type": "null"}, {"allOf": [{"$ref": "#/anyOf/1"}]}]}, "#/anyOf/1"),
        ({"type": "object", "properties": {"a/b": {"$ref": "#/properties/a~1b"}}}, "#/properties/a~1b"),
        ({"type": "array", "items": {"$ref": "#"}}, None),
        (NODE, None),
        ({"anyOf": [{"type": "null"}, {**NODE, "required": ["next"]}]}, None),
        ({"$defs": {"unused": {"$ref": "#/$defs/unused"}}, "type": "string"}, None),
        ({"$ref": "#/nowhere"}, None),
        (True, None),
    ],
)
def test_a_schema_without_end_is_found(schema: object, place: str | None) -> None:
    assert endless_schema(schema) == place


@pytest.mark.parametrize(
    ("grammar", "rule"),
    [
        ('start: "a" start', "start"),
        ('start: "a" | b\nb: "x" b', "b"),
        ('start: a\na: b "x"\nb: a "y" | (a b)+', "start"),
        ('start: "a" start | "b"', None),
        ('start: ("a" start)? "b"', None),
        ('start: ("a" start)* /x:y/', None),
        ('start: "a" start ~ 0..3', None),
        ('start: a{0,2}\na: "x"', None),
        ('start: ["a" start]', None),
        ('start: "start" a // start: b\na[max_tokens=3]: /[a-z]+/\n%ignore /\\s+/', None),
        ('start: %json {"type": "object", "properties": {"start": {}}} | "x"', None),
        ("start: WORD\nWORD: /a+/", None),
        ("this is no grammar §", None),
    ],
)
def test_a_rule_without_end_is_found(grammar: str, rule: str | None) -> None:
    assert endless_rule(grammar) == rule
