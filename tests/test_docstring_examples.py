"""The examples in the docstrings of the names that a user meets first run as they stand, and print what they say."""

from __future__ import annotations

import doctest
import importlib.util

import pytest

import trimtab
from trimtab import testing

FIRST = {
    "Answer": trimtab.Answer,
    "ARM": trimtab.ARM,
    "Chat": trimtab.Chat,
    "Decoder": trimtab.Decoder,
    "SamplingParams": trimtab.SamplingParams,
    "StatelessGuide": trimtab.StatelessGuide,
    "TabularModel": trimtab.TabularModel,
    "build_policy": trimtab.build_policy,
    "check_guide": testing.check_guide,
}
OF_A_PACKAGE = {"load_scorer": (trimtab.load_scorer, "vaderSentiment")}
OF_THE_DEMO_MODEL = {"load_model": trimtab.load_model, "load_guide": trimtab.load_guide}


def outcome(name: str, public: object) -> doctest.TestResults:
    finder, runner = doctest.DocTestFinder(recurse=False), doctest.DocTestRunner()
    (example,) = finder.find(public, name, globs={})
    assert example.examples, f"{name} has no example"
    runner.run(example)
    return runner.summarize()


@pytest.mark.parametrize("name", FIRST)
def test_an_example_prints_what_it_says(name: str) -> None:
    assert outcome(name, FIRST[name]).failed == 0


@pytest.mark.parametrize("name", OF_A_PACKAGE)
def test_an_example_of_an_extra_prints_what_it_says(name: str) -> None:
    public, package = OF_A_PACKAGE[name]
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    assert outcome(name, public).failed == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", OF_THE_DEMO_MODEL)
def test_an_example_of_the_demo_model_prints_what_it_says(name: str) -> None:
    assert outcome(name, OF_THE_DEMO_MODEL[name]).failed == 0


def test_an_example_that_is_wrong_is_found(capsys: pytest.CaptureFixture[str]) -> None:
    def wrong() -> None:
        """
        >>> 1 + 1
        3
        """

    assert outcome("wrong", wrong).failed == 1
    capsys.readouterr()
