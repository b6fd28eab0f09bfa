"""Messages name settings as whoever reads them gives them: fields in Python, flags on the command line."""

from __future__ import annotations

import pickle

import pytest

from trimtab.errors import ModelError, OptionError, naming, renamed


def flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


@pytest.mark.parametrize("kind", [OptionError, ModelError])
def test_a_message_names_fields_and_can_name_flags(kind: type[OptionError] | type[ModelError]) -> None:
    error = naming(kind, "{max_length} is {0}; give more than {max_prompt_length} {1:g}.", 7, 8.0)
    assert type(error) is kind
    assert str(error) == "max_length is 7; give more than max_prompt_length 8."
    assert renamed(error, flag) == "--max-length is 7; give more than --max-prompt-length 8."


def test_values_may_hold_braces() -> None:
    error = naming(OptionError, "{betas} is {0}.", {"a": "{beta}"})
    assert renamed(error, flag) == "--betas is {'a': '{beta}'}."


def test_another_error_has_no_names() -> None:
    assert renamed(OptionError("max_length is 7."), flag) is None


def test_an_error_of_another_process_keeps_its_names() -> None:
    error = pickle.loads(pickle.dumps(naming(OptionError, "{beta} is {0}.", 0)))
    assert renamed(error, flag) == "--beta is 0."
