"""YAML and JSON that somebody wrote: plain values, or a sentence with the line; never a hang, never a traceback."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as some

from tests.evaluation.comparison_fakes import METHODS, check
from trimtab.documents import MAX_BYTES, MAX_DEPTH, read_json, read_yaml
from trimtab.errors import CheckpointError, DataError
from trimtab.evaluation.comparison.recipe_reader import read_recipe
from trimtab.models.adapters import files as adapter_files
from trimtab.serving.config import read_config
from trimtab.training.pairs.data import read_pairs


def read(directory: Path, text: str | bytes) -> Any:
    path = directory / "file.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))
    return read_yaml(path, extra="serve", what="a configuration file")


def lols(levels: int, width: int) -> str:
    """Every level repeats the one before it."""
    lines = ["a0: &a0 [lol]"]
    lines += [f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * width)}]" for level in range(1, levels)]
    return "\n".join(lines)


def chain(links: int) -> str:
    """Every line holds the one before it, ten lists deeper."""
    lines = ["a0: &a0 x"]
    lines += [f"a{link}: &a{link} {'[' * 10}*a{link - 1}{']' * 10}" for link in range(1, links)]
    return "\n".join(lines)


REFUSED = {
    "aliases that grow": (lols(9, 9), r"line 5: there are more than 10000 values, those that aliases repeat"),
    "merges that grow": (lols(6, 9) + "\n<<: [{x: *a5}, {y: *a5}]", "more than 10000 values"),
    "many values": ("[" + "a," * 20_000 + "]", "more than 10000 values"),
    "a value that holds itself": ("model: &a [*a]", r"line 1: the value of &a holds itself \(\*a\)"),
    "a mapping that holds itself": ("\nmodel: &a\n  b: {c: *a}", r"line 3: the value of &a holds itself"),
    "a merge of itself": ("&a\n<<: *a", "holds itself"),
    "an unknown alias": ("a: *b", r"\*b repeats &b, which does not stand before it"),
    "brackets": ("[" * 3000 + "]" * 3000, f"nested more than {MAX_DEPTH} deep"),
    "braces": ("{a: " * 3000 + "}" * 3000, "nested more than"),
    "dashes": ("- " * 3000, "nested more than"),
    "depth by aliases": (chain(9), "line 5: values are nested more than"),
    "a key twice": ("a: 1\nb: 2\na: 3", "line 3: the key 'a' is given twice"),
    "a key twice, written otherwise": ("a: 1\n'a': 2", "the key 'a' is given twice"),
    "a key twice below": ("x:\n  - {a: 1, a: 2}", "line 2: the key 'a' is given twice"),
    "two merges": ("<<: {a: 1}\n<<: {b: 1}", "'<<' is given twice"),
    "a list as a key": ("? [a, b]\n: c", "line 1: a list is a key here; keys are texts"),
    "a mapping as a key": ("{{a: b}: c}", "a mapping is a key here"),
    "an alias as a key": ("a: &x 1\n*x : 2", "line 2: an alias is a key here"),
    "an empty key": ("'': 1", "a key is empty"),
    "a merge of a text": ("<<: a", "<< takes in a mapping or a list of mappings"),
    "a merge of texts": ("<<: [a]", "<< takes in a mapping"),
    "python": ("a: !!python/object/apply:os.getcwd []", "the tag '!!python/object/apply:os.getcwd' is not read"),
    "a name of python's": ("a: !!python/name:os.system x", "is not read; leave it out"),
    "bytes": ("a: !!binary aGk=", "the tag '!!binary' is not read"),
    "a set": ("!!set {a, b}", "the tag '!!set' is not read"),
    "a date by its tag": ("a: !!timestamp 2024-01-01", "the tag '!!timestamp' is not read"),
    "a tag of one's own": ("a: !secret b", "the tag '!secret' is not read"),
    "a tagged key": ("!!int 1: a", "the tag '!!int' is not read"),
    "two documents": ("a: 1\n---\nb: 2", "line 2: a second document begins here"),
    "base 8": ("seed: 017", "line 1: 017 would be read in base 8"),
    "digits": ("a: " + "9" * 5000, "a number of more than 40 digits"),
    "hexadecimal digits": ("a: 0x" + "f" * 5000, "a number of more than 40 digits"),
    "not a number": ("a: .nan", "'.nan' is not a finite number"),
    "infinity": ("a: [-.Inf]", "'-.Inf' is not a finite number"),
    "beyond a float": ("a: 1e999", "'1e999' is not a finite number"),
    "not UTF-8": (b"a: 1\nb: \xff", "line 2: not UTF-8 text"),
    "UTF-16": ("a: 1".encode("utf-16"), "not UTF-8 text"),
    "a control character": ("a: 1\nb: \x00", r"line 2: not YAML: '\\x00' is not a character of a text"),
    "half of a character": (r'a: "\ud800"', "a lone surrogate"),
    "half of a character as a key": (r'"\ud800": a', "a lone surrogate"),
    "an escape beyond": (r'a: "\UFFFFFFFF"', "not YAML: an escape"),
    "a version of digits": ("%YAML " + "9" * 5000 + ".1\n--- a", "not YAML"),
    "no end": ("a: [1", "not YAML"),
    "tabs": ("a:\n\t- b", "line 2: not YAML"),
    "a large file": ("#" * (MAX_BYTES + 1), "larger than 64 KiB"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_is_said_in_a_sentence(tmp_path: Path, name: str) -> None:
    text, problem = REFUSED[name]
    with pytest.raises(DataError, match=problem) as caught:
        read(tmp_path, text)
    assert str(caught.value).startswith(str(tmp_path / "file.yaml"))
    assert len(str(caught.value)) < len(str(tmp_path)) + 200


@pytest.mark.parametrize("name", REFUSED)
def test_recipes_and_servers_read_it_alike(tmp_path: Path, name: str) -> None:
    text, problem = REFUSED[name]
    path = tmp_path / "file.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))
    with pytest.raises(DataError, match=problem):
        read_recipe(path, METHODS, check)
    with pytest.raises(DataError, match=problem):
        read_config(path)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", None),
        ("# nothing", None),
        ("\ufeffa: 1\r\nb: 2\r\n", {"a": 1, "b": 2}),
        ("[x, 2.5, -.5, 1., 1e-3, 12E+03]", ["x", 2.5, -0.5, 1.0, 0.001, 12000.0]),
        ("[0, -7, +7, 0x1F, 1_000, ~, true, 'true', no]", [0, -7, 7, 31, 1000, None, True, "true", False]),
        ("no: {1: a, 1.0: b, null: c, 2024-01-01: d}", {"no": {"1": "a", "1.0": "b", "null": "c", "2024-01-01": "d"}}),
        (
            "[2024-01-01, 2024-01-01 10:00:00, 12:30:45, 1:30.5]",
            ["2024-01-01", "2024-01-01 10:00:00", "12:30:45", "1:30.5"],
        ),
        ("a: !!str 1\nb: ! 2", {"a": "1", "b": "2"}),
        ("a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}", {"a": {"x": 1, "y": 2}, "b": {"x": 1, "y": 3}}),
        ("a: {<<: [{x: 1}, {x: 2, y: 2}], z: 3}", {"a": {"x": 1, "y": 2, "z": 3}}),
        ('{"<<": 1}', {"<<": 1}),
        ("a: &a [1, *b]".replace("*b", "&b [2]") + "\nc: [*a, *b]", {"a": [1, [2]], "c": [[1, [2]], [2]]}),
        ("a: |\n  x\n  y\n", {"a": "x\ny\n"}),
        (f"- [{'1,' * 4000}]\n- &x 1\n- [{'*x,' * 1000}]", [[1] * 4000, 1, [1] * 1000]),
    ],
)
def test_what_is_read(tmp_path: Path, text: str, value: Any) -> None:
    assert read(tmp_path, text) == value


def test_a_value_that_is_repeated_is_a_value_of_its_own(tmp_path: Path) -> None:
    found = read(tmp_path, "a: &a [1]\nb: *a")
    found["a"].append(2)
    assert found["b"] == [1]


TEXTS = some.text(some.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=8)
NUMBERS = some.integers(-(10**30), 10**30) | some.floats(allow_nan=False, allow_infinity=False)
PLAIN = some.recursive(
    some.none() | some.booleans() | NUMBERS | TEXTS,
    lambda inner: some.lists(inner, max_size=4) | some.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=60, deadline=None)
@given(value=PLAIN, flow=some.booleans())
def test_what_is_written_is_read_again(tmp_path_factory: pytest.TempPathFactory, value: Any, flow: bool) -> None:
    directory = tmp_path_factory.getbasetemp()
    assert read(directory, yaml.safe_dump(value, default_flow_style=flow, allow_unicode=True)) == value
    assert read(directory, json.dumps(value)) == value
    assert read_json(json.dumps(value)) == value


@settings(max_examples=150, deadline=None)
@given(text=some.text(" \n:-?[]{},&*!|>'\"%@#<=~0129.exX_abno\t\\\u0085\ufeff", max_size=40))
def test_any_text_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    with contextlib.suppress(DataError):
        json.dumps(read(tmp_path_factory.getbasetemp(), text), allow_nan=False)


@pytest.mark.parametrize("path", ["/dev/zero", "nowhere.yaml", ".", "a\0b"])
def test_a_path_that_leads_to_no_file(path: str) -> None:
    with pytest.raises(DataError, match=r"larger than|no such file|a directory|not readable"):
        read_yaml(Path(path), extra="serve", what="a configuration file")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[" * 200_000, "nested too deep"),
        ('{"a": 1, "a": 2}', "the key 'a' is given twice"),
        ('[{"b": {"a": 1, "a": 1}}]', "the key 'a' is given twice"),
        ("9" * 5000, "digits"),
        ("{a: 1}", "property name"),
        (b"\xff", "utf-8"),
    ],
)
def test_json_that_is_refused(text: str | bytes, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        read_json(text)


@pytest.mark.parametrize("text", ["[" * 200_000, '{"r": 1, "r": 2}', '{"r": ' + "9" * 5000 + "}"])
def test_files_of_json_that_people_hand_over_are_read_so(tmp_path: Path, text: str) -> None:
    (tmp_path / "adapter_config.json").write_text(text)
    with pytest.raises(CheckpointError, match="does not load as an adapter"):
        adapter_files.read(tmp_path)
    (tmp_path / "pairs.jsonl").write_text(text + "\n")
    with pytest.raises(DataError, match="line 1: the line is no JSON"):
        read_pairs([tmp_path / "pairs.jsonl"])
