"""What is said of drafts, outputs and models that is wrong is refused in words that fit, before a model is loaded."""

from __future__ import annotations

from pathlib import Path

import pytest

from .conftest import Run, Tiny


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        (["--draft", "lookups"], "'lookups' does not draft: it is not one of none, lookup, certain, guide, g"),
        (["--draft-tokens", "4"], "--draft-tokens 4 is about drafts, and there are none"),
        (["--draft", "lookup", "--draft-tokens", "33"], "'33' is not accepted"),
        (["--model", ""], "The model's name is empty"),
    ],
)
def test_a_flag_of_generate(run: Run, tiny: Tiny, flags: list[str], problem: str) -> None:
    outcome = run("generate", "--model", tiny.model, "--guide", f"g={tiny.lora}", "--raw", "--prompt", "x", *flags)
    assert outcome.code == 2
    assert problem in outcome.err
    assert "Loading weights" not in outcome.err


def test_an_output_inside_a_file(run: Run, tiny: Tiny, tmp_path: Path) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("mine")
    outcome = run("generate", "--model", tiny.model, "--raw", "--prompt", "x", "--out", str(file / "new" / "x.jsonl"))
    assert outcome.code == 2
    assert f"lies in {file}, which is a file" in outcome.err
    assert "loading" not in outcome.err


@pytest.mark.parametrize("name", ["lookup", "guide", "g"])
def test_a_model_that_drafts_by_a_name_that_means_something_else(run: Run, tiny: Tiny, name: str) -> None:
    outcome = run("serve", "--port", "0", "--model", tiny.model, "--guide", f"g={tiny.lora}", "--draft-model", name)
    assert outcome.code == 2
    assert f"--draft-model {name} is not a model's name here" in outcome.err
    assert "loading" not in outcome.err


def test_a_model_of_another_vocabulary_is_named_as_what_was_to_draft(run: Run, tiny: Tiny, tmp_path: Path) -> None:
    from tests.tiny import tiny_module, tiny_tokenizer

    other = tmp_path / "other"
    tiny_module("llama").save_pretrained(other)
    tiny_tokenizer().save_pretrained(other)
    outcome = run("generate", "--model", tiny.model, "--raw", "--prompt", "x", "--draft", str(other))
    assert outcome.code == 2
    assert f"{other} cannot draft" in outcome.err
    assert "train arm" not in outcome.err
