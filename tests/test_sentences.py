"""Names of guides that are sentences: read as meant, and written so that they read back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.tiny import byte_llama, byte_tokenizer, tiny_module, tiny_tokenizer
from trimtab.engines.vllm.packing import pack
from trimtab.errors import CheckpointError, CompatibilityError, OptionError
from trimtab.guides.prompt import PromptGuide
from trimtab.guides.sentences import Sentences
from trimtab.models.hf import HFModel
from trimtab.storage.digests import model_contents
from trimtab.storage.directories import guide_directory, locate_guide
from trimtab.storage.loading import load_guide, save_guide
from trimtab.storage.sentences import is_sentence, read_sentence, read_weighed, sentence_name

READ: dict[str, tuple[str, tuple[str, ...], float | None]] = {
    "as the shell leaves it": ("prompt:You are very cheerful.:2", ("You are very cheerful.",), 2.0),
    "two of them": ("prompt:Be a poet./Be a clerk.:1.5", ("Be a poet.", "Be a clerk."), 1.5),
    "no weight": ("prompt:Be a poet.", ("Be a poet.",), None),
    "a negative weight": ("prompt:Be a poet!:-0.5", ("Be a poet!",), -0.5),
    "quotes": ('prompt:"Be a poet."/"Be a clerk.":3', ("Be a poet.", "Be a clerk."), 3.0),
    "a colon": ("prompt:Answer so: first a joke.", ("Answer so: first a joke.",), None),
    "a colon at the end and a weight": ("prompt:Answer so::2", ("Answer so:",), 2.0),
    "slashes in words": (
        "prompt:Say he/she and and/or, see https://a.b/c.",
        ("Say he/she and and/or, see https://a.b/c.",),
        None,
    ),
    "a quoted word and a colon": ('prompt:"Yes": that is your word.', ('"Yes": that is your word.',), None),
    "quotes inside": ('prompt:Say "yes" at once.:2', ('Say "yes" at once.',), 2.0),
    "a quoted word first": ('prompt:"Yes" is your favourite word.:2', ('"Yes" is your favourite word.',), 2.0),
    "a weight in quotes": ('prompt:"The ratio is 3:2":1', ("The ratio is 3:2",), 1.0),
    "a slash in quotes": ('prompt:"Right./Left."', ("Right./Left.",), None),
    "escapes": (r'prompt:"Say \"no\".\n"', ('Say "no".\n',), None),
    "two lines": ("prompt:Be kind.\nBe short.", ("Be kind.\nBe short.",), None),
    "an at in quotes": ('prompt:"@all of you":2', ("@all of you",), 2.0),
    "half in quotes": ('prompt:"Right/left"/Be short.:2', ("Right/left", "Be short."), 2.0),
    "the other in quotes": ('prompt:Be short./"Right:2"', ("Be short.", "Right:2"), None),
}


@pytest.mark.parametrize("name", READ)
def test_a_name_is_read_as_meant(name: str) -> None:
    text, sentences, weight = READ[name]
    guide, found = read_weighed(text)
    assert (guide.sentences, found) == (sentences, weight)
    assert is_sentence(text)
    assert read_weighed(sentence_name(guide)) == (guide, None)


def test_the_place_is_part_of_the_name() -> None:
    guide = read_sentence("prompt-user:Be short.")
    assert guide.place == "user"
    assert read_sentence(sentence_name(guide)) == guide
    assert not is_sentence("prompts/helpful")
    assert not is_sentence("prompt-first:Be short.")


def test_files_are_read_from_home(tmp_path: Path) -> None:
    (tmp_path / "plain.txt").write_text("No jargon: none/never.\n")
    (tmp_path / "other.txt").write_text("Much jargon.")
    guide, weight = read_weighed("prompt:@plain.txt/@other.txt:2", home=tmp_path)
    assert (guide.sentences, weight) == (("No jargon: none/never.", "Much jargon."), 2.0)
    assert read_sentence(f"prompt:@{tmp_path}/plain.txt") == Sentences("No jargon: none/never.")
    mixed = read_sentence('prompt:@plain.txt/"Be short."', home=tmp_path)
    assert mixed.sentences == ("No jargon: none/never.", "Be short.")


REFUSED = {
    "nothing": ("prompt:", "no sentence behind the colon"),
    "quotes around nothing": ('prompt:""', "empty"),
    "a weight in words": ("prompt:Be short.:two", "'two' behind 'Be short.:two' is not a finite number"),
    "an endless weight": ('prompt:"Be short.":inf', "'inf' .* is not a finite number"),
    "a number that is a weight or not": ("prompt:The ratio is 3:2", "ends in 3:2.*double quotes"),
    "two slashes": ("prompt:A./B./C.", "2 slashes that could divide"),
    "blanks around quotes": ('prompt: "A." / "B." : 2', "has blanks around its quotes"),
    "a blank before the weight": ('prompt:"A." : 2', "has blanks around its quotes"),
    "a blank before quotes": ('prompt: "A."', "has blanks around its quotes"),
    "an escape that is none": ('prompt:"A\\q"', r"Invalid \\escape"),
    "a quote that is not closed": ('prompt:"A:2', "Unterminated string"),
    "a blank before the other": ('prompt:"A."/ "B."', "has blanks around its quotes"),
    "a blank behind the other": ('prompt:"A."/"B." ', "has blanks around its quotes"),
    "a blank before the other's weight": ('prompt:A./"B." :2', "has blanks around its quotes"),
    "a quote of the other that is not closed": ('prompt:"A."/"B.', "cannot be read as JSON reads a text"),
    "an escape of the other that is none": ('prompt:"A."/"B\\q"', "cannot be read as JSON reads a text"),
    "a blank before a slash": ('prompt:"A." / B.', "has blanks around its quotes"),
    "a blank before another kind of number": ('prompt:"A." : 1e3', "has blanks around its quotes"),
    "a blank before no number": ('prompt:"A." :inf', "has blanks around its quotes"),
    "three in quotes": ('prompt:"A."/"B."/"C."', "more than two sentences in quotes"),
    "a file that is not there": ("prompt:@there/is/none.txt:2", r"no file there/is/none\.txt"),
    "twice the same": ('prompt:"Be short."/"Be short."', "the same"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_read_is_refused_with_the_way_out(name: str) -> None:
    text, message = REFUSED[name]
    with pytest.raises(OptionError, match=message):
        read_weighed(text)


def test_files_without_a_sentence_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text(" \n")
    (tmp_path / "latin.txt").write_bytes(b"\xe9t\xe9")
    for name, message in (("empty.txt", "is empty"), ("latin.txt", "UTF-8"), (".", "cannot be read as a sentence")):
        with pytest.raises(OptionError, match=message):
            read_sentence(f"prompt:@{name}", home=tmp_path)


GUIDE = PromptGuide("Be short.", "Be long.", weight=1.5, place="user", separator=" ")


def test_a_sentence_is_kept_as_a_card(tmp_path: Path) -> None:
    directory = save_guide(GUIDE, tmp_path / "short")
    assert [path.name for path in directory.iterdir()] == ["guide.json"]
    assert load_guide(directory) == GUIDE
    assert load_guide(directory, weight=-1.0) == PromptGuide("Be short.", "Be long.", -1.0, "user", " ")
    assert locate_guide(directory).card.kind == "prompt"
    bound = GUIDE.bind(byte_model())
    assert load_guide(save_guide(bound, tmp_path / "again")) == GUIDE


def test_a_name_is_loaded_as_a_guide() -> None:
    assert load_guide('prompt-user:"Be short."', weight=2.0) == PromptGuide("Be short.", weight=2.0, place="user")
    assert load_guide('prompt:"Be short."', beside=byte_model()) == PromptGuide("Be short.")
    assert load_guide(f'prompt:"{"very " * 200}short."') == PromptGuide("very " * 200 + "short.")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"form": "shift"}, "leave 'shift' out"),
        ({"rule": "first"}, "takes no rule"),
        ({"preference": (1.0,)}, "takes no preference"),
        ({"prompt": "Hi"}, "leave `prompt` out"),
        ({"guide_base": "demo"}, "runs on no base of its own"),
    ],
)
def test_what_means_nothing_to_a_sentence_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        load_guide('prompt:"Be short."', beside=byte_model(), **options)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({}, r"no prompt\.towards"),
        ({"towards": " "}, "empty"),
        ({"towards": "a", "place": "top"}, "place of a sentence"),
    ],
)
def test_a_card_that_says_nothing_is_refused(said: dict[str, str], message: str, tmp_path: Path) -> None:
    (tmp_path / "guide.json").write_text(json.dumps({"format": 1, "kind": "prompt", "prompt": said}))
    with pytest.raises(CheckpointError, match=message):
        load_guide(tmp_path)


def test_where_a_directory_is_needed_a_sentence_is_refused() -> None:
    with pytest.raises(OptionError, match="has no directory"):
        guide_directory("prompt:Be short.", None)


def test_what_a_sentence_says_is_its_content(tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("Be short.")
    from_file = model_contents(f"prompt:@{tmp_path}/short.txt")
    assert from_file == model_contents("prompt:Be short.") != {}
    assert model_contents("prompt:Be shorter.") != from_file
    assert model_contents("prompt:@there/is/none") == {}


def test_vllm_refuses_a_sentence_with_the_reason(tmp_path: Path) -> None:
    tiny_module("llama").save_pretrained(tmp_path / "base")
    tiny_tokenizer().save_pretrained(tmp_path / "base")
    saved = save_guide(GUIDE, tmp_path / "short")
    for name in (str(saved), "prompt:Be short."):
        with pytest.raises(CompatibilityError, match=r"short is made of a sentence.*every guide reads the"):
            pack(tmp_path / "base", {"short": name}, tmp_path / "packed")


def byte_model() -> HFModel:
    tokenizer = byte_tokenizer()
    return HFModel(byte_llama(tokenizer, max_length=64), tokenizer)
