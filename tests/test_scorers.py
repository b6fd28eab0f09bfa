"""Scorers: the lexicons, reward models, one's own functions, and what they may not return."""

from __future__ import annotations

import importlib
import importlib.util
import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import trimtab
from tests.tiny_rewards import write_reward_model
from trimtab.core import Prompt
from trimtab.errors import CheckpointError, MissingExtraError, ModelError, OptionError, PromptError, ScoreError
from trimtab.models.rewards.whole import load_whole_reward_model
from trimtab.storage.exact_scorers import EXACT
from trimtab.storage.scorers import SCORERS, Scorer, is_function_name, load_scorer


def test_sentiment_is_vader() -> None:
    scorer = load_scorer("sentiment")
    # From the lexicon's own README: the compound scores of its first two examples.
    texts = ["VADER is smart, handsome, and funny.", "VADER is not smart, handsome, nor funny.", ""]
    assert scorer([""] * 3, texts) == [0.8316, -0.7424, 0.0]


def test_sentiment_needs_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vaderSentiment.vaderSentiment", None)
    with pytest.raises(MissingExtraError, match=r"trimtab\[demo\]"):
        load_scorer("sentiment")


def test_offence_is_a_share_and_higher_is_worse() -> None:
    texts = ["you are a fucking idiot", "thank you, have a nice day", ""]
    rude, kind, empty = load_scorer("offence")([""] * 3, texts)
    assert 0 <= kind < 0.1 < 0.9 < rude <= 1
    assert 0 <= empty < 0.5
    assert load_scorer("offence")([], []) == []
    assert "higher is worse" in load_scorer("offence").description


def test_offence_needs_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "profanity_check", None)
    with pytest.raises(MissingExtraError, match=r"alt-profanity-check.*trimtab\[scorers\]"):
        load_scorer("offence")


def test_a_short_answer_is_counted_in_characters() -> None:
    texts = ["One two.", " ünï \n", "#@!x", "", " ... "]
    assert load_scorer("short-answer")([""] * 5, texts) == [-8.0, -3.0, -4.0, -10_000.0, -10_000.0]


def test_plain_words_are_those_of_at_most_six_letters() -> None:
    texts = ["It is so.", "Unquestionably", "A letter's answers: twelve, thirteen", "42", ""]
    assert load_scorer("plain-words")([""] * 5, texts) == [0.0, -1.0, -0.6, -1.0, -1.0]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("It rains. We stay in!", [2, 3]),
        ("Does it rain? Yes", [3, 1]),
        ('He said "No." Then he left.', [3, 3]),
        ("It costs 3.50 at trimtab.org, at most", [9]),
        ("Wait... what?! Who knows", [1, 1, 2]),
        ("one\ntwo\nthree", [3]),
        ("これは。それ。", [1, 1]),
        ("word " * 120, [99]),
    ],
)
def test_sentences_are_counted_by_their_words(text: str, words: list[int]) -> None:
    assert load_scorer("short-sentences")([""], [text]) == [-sum(words) / len(words)]


@pytest.mark.parametrize("name", list(EXACT))
def test_nothing_said_is_never_the_best_answer(name: str) -> None:
    score = load_scorer(name)
    worst, *others = score([""] * 3, ["", "internationalisation a " * 99, "a"])
    assert worst < min(others)


def test_a_directory_is_a_reward_model(tmp_path: Path) -> None:
    directory = write_reward_model(tmp_path / "reward")
    scorer = load_scorer(str(directory))
    prompts, texts = ["w1 w2", "w3"], ["w4", "w5 w6 w7"]
    assert scorer(prompts, texts) == load_whole_reward_model(directory).rewards(prompts, texts)
    assert scorer.name == str(directory)
    assert str(directory) in scorer.description
    assert "LlamaForSequenceClassification" in scorer.description


def test_a_directory_that_is_no_reward_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=f"{tmp_path.name} holds no safetensors"):
        load_scorer(str(tmp_path))


def test_a_name_of_ours_is_never_a_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sentiment").mkdir()
    monkeypatch.chdir(tmp_path)
    assert "VADER" in load_scorer("sentiment").description
    with pytest.raises(CheckpointError):
        load_scorer("./sentiment")


def test_a_hub_id_that_the_hub_does_not_give() -> None:
    with pytest.raises(OptionError, match=r"not a directory here, and the hub did not give it .*module:function"):
        load_scorer("nobody/no-such-reward-model")


def test_what_is_accepted_is_listed() -> None:
    with pytest.raises(OptionError) as caught:
        load_scorer("./no/such/directory")
    for form in (*SCORERS, "module:function", "directory of a reward model", "owner/name"):
        assert form in str(caught.value)


def test_a_function_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = ["def length(prompts, texts):", '    """Letters of the answer.', "", '    More."""']
    (tmp_path / "my_rewards.py").write_text("\n".join([*lines, "    return [len(text) for text in texts]"]))
    monkeypatch.syspath_prepend(tmp_path)
    scorer = load_scorer("my_rewards:length")
    assert scorer(["a", "b"], ["xy", ""]) == [2.0, 0.0]
    assert scorer.description == "Letters of the answer."


@pytest.fixture
def beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory for modules of the test's own; what was imported from it is forgotten at the end."""
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])  # `python -m pytest` would find the rest
    yield tmp_path
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None)).startswith(str(tmp_path)):
            del sys.modules[name]


ONE = "def length(prompts, texts):\n    return [len(text) for text in texts]\n"


def test_a_function_is_found_in_the_working_directory(beside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (beside / "letters_here.py").write_text(ONE)
    (beside / "letters").mkdir()
    (beside / "letters" / "__init__.py").write_text("")
    (beside / "letters" / "inner.py").write_text("from letters_here import length as there\nfrom . import *\n" + ONE)
    before = list(sys.path)
    with pytest.raises(OptionError, match="cannot be imported"):
        load_scorer("letters_here:length")
    monkeypatch.chdir(beside)
    assert load_scorer("letters_here:length")([""], ["abc"]) == [3.0]
    assert load_scorer("letters.inner:there")([""], ["abc"]) == [3.0]
    assert sys.path == before
    assert importlib.util.find_spec("letters_nowhere") is None


def test_a_function_is_found_by_its_file(beside: Path) -> None:
    """A file in a package is imported under its whole name, so that it may import its neighbours."""
    package = beside / "letters_package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "counting.py").write_text(ONE)
    (package / "public.py").write_text("from .counting import length\n")
    assert load_scorer(f"{package}/public.py:length")([""], ["abc"]) == [3.0]
    with pytest.raises(OptionError, match=r"there is no file .*/private\.py"):
        load_scorer(f"{package}/private.py:length")


def test_what_lies_beside_a_function_is_found_when_it_is_called(beside: Path) -> None:
    (beside / "letters_late.py").write_text(
        "def length(prompts, texts):\n    import letters_later\n    return letters_later.length(prompts, texts)\n"
    )
    (beside / "letters_later.py").write_text(ONE)
    before = list(sys.path)
    assert load_scorer(f"{beside}/letters_late.py:length")([""], ["abc"]) == [3.0]
    assert sys.path == before


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("import no_such_package\n", r"ModuleNotFoundError: No module named 'no_such_package', line 1"),
        ("x = 1\ny = z\n", r"NameError: name 'z' is not defined, line 2"),
        ("def f(:\n", r"SyntaxError: .*letters_broken\.py, line 1"),
        ("raise SystemExit('set KEY')\n", r"SystemExit: set KEY, line 1"),
        ("x = 1\n", r"has no function 'length'"),
    ],
)
def test_a_file_that_fails_is_named_with_the_reason(beside: Path, source: str, reason: str) -> None:
    (beside / "letters_broken.py").write_text(source)
    with pytest.raises(OptionError, match=rf"{beside}/letters_broken\.py .*{reason}"):
        load_scorer(f"{beside}/letters_broken.py:length")
    assert str(beside) not in sys.path


@pytest.mark.parametrize("name", ["json", "math", "colorsys", "trimtab", "vaderSentiment"])
def test_a_file_with_the_name_of_another_module_is_refused(beside: Path, name: str) -> None:
    """Python's own, built in or not imported yet, and installed ones: whoever imports one would get the other."""
    (beside / f"{name}.py").write_text(ONE)
    with pytest.raises(OptionError, match=rf"{beside}/{name}\.py cannot be used .* another module '{name}' .*Rename"):
        load_scorer(f"{beside}/{name}.py:length")


@pytest.mark.parametrize(
    ("name", "own"),
    [
        ("a:f", True),
        ("a.b:f", True),
        ("x/y.py:f", True),
        ("y.py:f", True),
        ("sentiment", False),
        ("owner/name", False),
        ("runs/reward:f", False),
        ("runs/a:0.5", False),
        (":f", False),
    ],
)
def test_which_names_are_functions(name: str, own: bool) -> None:
    assert is_function_name(name) == own


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("sentimant", "Did you mean 'sentiment'"),
        ("no_such_module:f", "cannot be imported"),
        ("math:no_such_function", "has no function 'no_such_function'"),
        ("math:pi", "has no function 'pi'"),
        (":f", "cannot be imported"),
    ],
)
def test_unknown_scorers(name: str, problem: str) -> None:
    with pytest.raises(OptionError, match=problem):
        load_scorer(name)


@pytest.mark.parametrize(
    ("rewards", "problem"),
    [([1.0], "1 rewards for 2 texts"), ([1.0, float("nan")], "nan for text 1"), ([float("inf"), 0], "inf for text 0")],
)
def test_bad_rewards_are_refused(rewards: list[float], problem: str) -> None:
    def function(prompts: Sequence[Prompt], texts: Sequence[str]) -> list[float]:
        return rewards

    with pytest.raises(ModelError, match=problem):
        Scorer("mine", "", function)(["", ""], ["", ""])


def _odd(name: str) -> Any:
    """What a function may give for one text, good or bad."""
    values: dict[str, Any] = {
        "none": None,
        "word": "good",
        "number in a word": "0.5",
        "nan": math.nan,
        "inf": -math.inf,
        "bool": True,
        "huge": 1e308,
        "huge whole": 10**400,
        "list": [1.0],
        "complex": 1j,
        "numpy bool": np.bool_(True),
        "numpy word": np.str_("x"),
        "two": np.zeros(2),
        "tensor of two": torch.zeros(2),
        "object": object(),
    }
    return values[name]


BAD = (
    *("none", "word", "number in a word", "nan", "inf", "bool", "huge", "huge whole", "list", "complex", "numpy bool"),
    *("numpy word", "two", "tensor of two", "object"),
)


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_reward_is_refused_with_its_text_and_the_others_are_kept(name: str) -> None:
    def function(prompts: Sequence[Prompt], texts: Sequence[str]) -> list[Any]:
        return [_odd(name) if text == "odd" else float(len(text)) for text in texts]

    with pytest.raises(ScoreError, match=r"Scorer mine gave .* for text 2; rewards are finite numbers") as caught:
        Scorer("mine", "", function)([""] * 4, ["a", "bb", "odd", "dddd"])
    assert (caught.value.index, caught.value.rewards) == (2, [1.0, 2.0, None, 4.0])
    assert "for prompt 7;" in str(caught.value.at("prompt 7"))


def _raises(text: str) -> float:
    raise KeyError(text)


def _exits(text: str) -> float:
    raise SystemExit("set KEY")


@pytest.mark.parametrize(
    ("what", "problem"),
    [(_raises, r"failed on text 2 \(KeyError: 'odd', test_scorers\.py line \d+\)"), (_exits, "SystemExit: set KEY")],
)
def test_a_function_that_fails_is_named_with_the_text(what: Callable[[str], float], problem: str) -> None:
    def function(prompts: Sequence[Prompt], texts: Sequence[str]) -> list[float]:
        return [what(text) if text == "odd" else float(len(text)) for text in texts]

    with pytest.raises(ScoreError, match=problem) as caught:
        Scorer("mine", "", function)([""] * 4, ["a", "bb", "odd", "dddd"])
    assert (caught.value.index, caught.value.rewards) == (2, [1.0, 2.0, None, 4.0])
    with pytest.raises(ScoreError, match=problem):
        Scorer("mine", "", function).raw([""] * 4, ["a", "bb", "odd", "dddd"])


@pytest.mark.parametrize("given", [None, 1.0, "xy", {"a": 1.0, "b": 2.0}, {1.0, 2.0}, [1.0], [1.0, 2.0, 3.0], b"xy"])
def test_what_is_no_list_of_one_reward_each_is_refused(given: Any) -> None:
    def function(prompts: Sequence[Prompt], texts: Sequence[str]) -> Any:
        return given

    with pytest.raises(ScoreError, match=r"Scorer mine (gave|failed)") as caught:
        Scorer("mine", "", function)(["", ""], ["a", "b"])
    assert None in caught.value.rewards


@pytest.mark.parametrize(
    "rewards",
    [
        np.array([1.5, 2.0], dtype=np.float32),
        [np.float64(1.5), np.int64(2)],
        torch.tensor([1.5, 2.0], dtype=torch.bfloat16, requires_grad=True),
        [torch.tensor(1.5), torch.tensor([2.0])],
        (Fraction(3, 2), Decimal(2)),
        iter([1.5, 2]),
    ],
)
def test_numbers_of_every_kind_are_rewards(rewards: Any) -> None:
    assert Scorer("mine", "", lambda prompts, texts: rewards)(["", ""], ["", ""]) == [1.5, 2.0]


def test_a_fault_of_a_batch_is_said_of_the_batch() -> None:
    def function(prompts: Sequence[Prompt], texts: Sequence[str]) -> list[float]:
        if len(texts) > 1:
            raise ValueError("one at a time")
        return [1.0]

    with pytest.raises(ScoreError, match=r"failed on texts 0 to 2 together .*one at a time") as caught:
        Scorer("mine", "", function)([""] * 3, [""] * 3)
    assert (caught.value.index, caught.value.rewards) == (None, [None] * 3)


def test_a_function_that_writes_into_its_arguments_harms_nobody() -> None:
    def function(prompts: Any, texts: Any) -> list[float]:
        prompts[0][0]["content"] = "changed"
        count = len(texts)
        texts.clear()
        return [1.0] * count

    prompts: list[Any] = [[{"role": "user", "content": "mine"}]]
    texts = ["a"]
    assert Scorer("mine", "", function)(prompts, texts) == [1.0]
    assert (prompts, texts) == ([[{"role": "user", "content": "mine"}]], ["a"])


def test_errors_of_ours_pass_a_scorer_as_they_are() -> None:
    def function(prompts: Sequence[Prompt], texts: Sequence[str]) -> list[float]:
        raise PromptError("ids")

    with pytest.raises(PromptError, match=r"^ids$"):
        Scorer("mine", "", function)(["", ""], ["", ""])


def test_an_edit_within_a_second_is_seen(beside: Path) -> None:
    """A .pyc is known by the second and the size of its source."""
    path = beside / "letters_edited.py"
    for value in (1, 2):
        path.write_text(f"def length(prompts, texts):\n    return [{value} for text in texts]\n")
        os.utime(path, (1_000_000_000, 1_000_000_000))
        assert load_scorer(f"{path}:length")([""], [""]) == [value]
        del sys.modules["letters_edited"]


def test_raw_rewards_that_are_too_large_are_infinite() -> None:
    assert Scorer("mine", "", lambda prompts, texts: [1e308, -1e31]).raw(["", ""], ["", ""]) == [math.inf, -math.inf]


def test_raw_rewards_come_as_they_are() -> None:
    def function(prompts: Sequence[Prompt], texts: Sequence[str]) -> list[float]:
        return [1, float("nan"), -float("inf")]

    rewards = Scorer("mine", "", function).raw([""] * 3, [""] * 3)
    assert rewards[0] == 1.0
    assert math.isnan(rewards[1])
    assert rewards[2] == -math.inf
    assert isinstance(rewards[0], float)


def test_raw_rewards_are_counted() -> None:
    def function(prompts: Sequence[Prompt], texts: Sequence[str]) -> list[float]:
        return [1.0]

    with pytest.raises(ModelError, match="1 rewards for 2 texts"):
        Scorer("mine", "", function).raw(["", ""], ["", ""])


@pytest.mark.parametrize("given", [None, 0.5, 3])
def test_a_function_that_gives_no_list_is_told_what_to_give(given: object) -> None:
    scorer = Scorer("mine", "", lambda prompts, texts: given)  # type: ignore[arg-type,return-value]
    with pytest.raises(ScoreError, match=rf"gave {given} for text 0; give a list of numbers, one for each text"):
        scorer(["a"], ["b"])


def test_model_cards_of_earlier_versions_find_the_loader() -> None:
    earlier = importlib.import_module("trimtab.scorers")
    assert earlier.load_reward_model is trimtab.load_reward_model
