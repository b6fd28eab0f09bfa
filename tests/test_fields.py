"""What a field says is what the checks, the flags and the pages made from it do."""

from __future__ import annotations

import argparse
import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.cli import flags
from trimtab.core import SamplingParams
from trimtab.decoding.engine import GenerationEngine
from trimtab.errors import OptionError, renamed
from trimtab.fields import FOLLOWS, Described, check, described, follow, seed_field, table


@dataclass(frozen=True, slots=True, kw_only=True)
class Dial:
    share: float = described(0.5, "a share of {count}", low=0, below=1)
    count: int = described(4, "how many", low=1, high=9, note="1: alone")
    rate: float | None = described(None, "of speed", kind="number", above=0, unset="what fits")
    mode: str = described("fast", "which way", choices=("fast", "slow"))
    loud: bool = described(False, "say more")
    tidy: bool = described(True, "clear up", off="leave everything")
    layers: tuple[str, ...] = described(("all",), "which layers")
    ends: tuple[str, ...] = described((), "where to end", kind="texts")
    half: int = described(FOLLOWS, "half of {count}", low=1)
    seed: int = seed_field(0, "of everything")
    marks: tuple[int, ...] = described((), "which tokens", kind="ids")
    shares: Mapping[str, float] = described({}, "how much, by name", kind="shares", low=0, high=1)
    pulls: Mapping[int, float] = described({}, "how strongly, by token", kind="biases", low=-9, high=9)
    hidden: int = 7

    def __post_init__(self) -> None:
        check(self)
        follow(self, "half", lambda: self.count // 2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Knob(Dial):
    turn: float = described(0.0, "how far")
    count: int = described(2, "how many knobs", low=1)


BOUNDARIES: dict[str, tuple[list[Any], list[Any]]] = {
    "share": ([0, 0.0, 0.999], [-1e-9, 1, 1.0, math.nan, math.inf, "0", True, None]),
    "count": ([1, 9], [0, 10, 2.0, True, None, "3"]),
    "rate": ([None, 1e-9, 10**300], [0, -1, 10**400, math.inf]),
    "mode": (["fast", "slow"], ["", "fas", None]),
    "layers": ([(), ("a", "b"), ["a"]], ["a", (1,), None]),
    "ends": ([(), ("a, b",)], ["a", ("",)]),
    "seed": ([0, 2**63 - 1], [-1, 2**63]),
    "marks": ([(), (0, 7), [3]], [(-1,), (1.0,), (True,), "3", 3, None]),
    "pulls": ([{}, {0: -9, 3: 9.0}], [{-1: 1}, {"0": 1}, {0: 9.5}, {0: math.nan}, {0: True}, [(0, 1)], None]),
}


@pytest.mark.parametrize("name", BOUNDARIES)
def test_a_bound_is_accepted_or_not_as_the_field_says(name: str) -> None:
    good, bad = BOUNDARIES[name]
    for value in good:
        assert getattr(Dial(**{name: value}), name) == value
    for value in bad:
        with pytest.raises(OptionError, match=f"^{name} is "):
            Dial(**{name: value})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"share": 1}, "share is 1; give a number of at least 0 and below 1."),
        ({"share": math.inf}, "share is inf; give a finite number of at least 0 and below 1."),
        ({"count": 0}, "count is 0; give a whole number of at least 1 and at most 9 (1: alone)."),
        ({"rate": 0}, "rate is 0; give a number above 0."),
        ({"mode": "fas"}, "mode is 'fas'; accepted: fast, slow."),
        ({"ends": ("",)}, "ends is ('',); give non-empty strings in a tuple."),
    ],
)
def test_a_refusal_says_the_value_and_what_is_accepted(given: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError) as caught:
        Dial(**given)
    assert str(caught.value) == message
    assert str(renamed(caught.value, flags.flag_of)).startswith(f"--{next(iter(given))} is ")


def test_a_number_that_follows_is_not_looked_at_and_one_that_is_set_is() -> None:
    assert Dial(count=6).half == 3
    assert dataclasses.replace(Dial(count=6), count=8).half == 4
    with pytest.raises(OptionError, match="half is 0"):
        Dial(half=0)


def test_what_a_class_says_itself_stands_first() -> None:
    assert list(table(Knob))[:2] == ["turn", "count"]
    assert set(table(Knob)) == set(table(Dial)) | {"turn"}
    assert table(Knob)["count"].text == "how many knobs"
    assert "hidden" not in table(Dial)


def test_a_field_whose_kind_nobody_could_know_is_refused() -> None:
    with pytest.raises(TypeError, match="must be given"):
        described(None, "of what?")


def _parsed(*words: str) -> Dial:
    parser = argparse.ArgumentParser(exit_on_error=False)
    flags.add_fields(parser.add_argument_group("dial"), Dial())
    return flags.read_fields(Dial, parser.parse_args(words))


def test_flags_give_the_settings_back() -> None:
    assert _parsed() == Dial()
    words = (
        *("--share", "0.25", "--count", "8", "--rate", "2", "--mode", "slow", "--loud", "--no-tidy"),
        *("--layers", "a,b", "--seed", "3", "--half", "2"),
    )
    expected = Dial(
        share=0.25, count=8, rate=2.0, mode="slow", loud=True, tidy=False, layers=("a", "b"), seed=3, half=2
    )
    assert _parsed(*words) == expected
    assert _parsed("--ends", "a, b", "--ends", "c").ends == ("a, b", "c")


@given(st.sampled_from(["share", "count", "rate", "half", "seed"]), st.floats() | st.integers())
def test_a_flag_accepts_what_the_check_accepts(name: str, value: float) -> None:
    """And nothing more, but that it reads `3` as a number too and does not know None."""
    entry = table(Dial)[name]
    try:
        read = entry.read(str(value))
    except OptionError:
        assert not entry.accepts(value)
    else:
        assert entry.accepts(read)
        assert read == value


def test_help_and_pages_call_settings_by_their_flags() -> None:
    parser = argparse.ArgumentParser()
    flags.add_fields(parser, Dial(), but=("loud",))
    text = " ".join(parser.format_help().split())
    assert "a share of --count (0.5)" in text
    assert "how many; 1: alone (4)" in text
    assert "of speed (what fits)" in text
    assert "--no-tidy leave everything" in text
    assert "--loud" not in text
    rows = {flag: (default, meaning) for flag, default, meaning in flags.rows(Dial(), but=("loud",))}
    assert rows["`--share X`"] == ("0.5", "a share of `--count`")
    assert rows["`--half N`"] == ("2", "half of `--count`")
    assert rows["`--mode`"] == ("fast", "which way: `fast`, `slow`")
    assert rows["`--no-tidy`"] == ("", "leave everything")


@pytest.mark.parametrize("text", ["", "1", "1=", "=2", "1=x", "x=1", "1=2,1=3", "1=10", "1=2,-1=2", "1=nan", "1=2,"])
def test_biases_are_written_as_ids_and_numbers(text: str) -> None:
    assert _parsed("--pulls", "3=-1.5,0=2").pulls == {3: -1.5, 0: 2.0}
    assert _parsed("--marks", "3,0").marks == (3, 0)
    assert _parsed().pulls == {}
    with pytest.raises(argparse.ArgumentError, match="ID=X,ID=X"):
        _parsed("--pulls", text)


@pytest.mark.parametrize("text", ["", "a", "a=", "=1", "a=x", "a=2", "a=0.1,a=0.2", "a=nan", "a=0.1,"])
def test_shares_are_written_as_names_and_numbers(text: str) -> None:
    assert _parsed("--shares", "a=0.1,b=1").shares == {"a": 0.1, "b": 1.0}
    assert _parsed().shares == {}
    with pytest.raises(argparse.ArgumentError, match="NAME=X,NAME=X"):
        _parsed("--shares", text)


def test_an_argument_out_of_range_is_refused_by_argparse() -> None:
    with pytest.raises(argparse.ArgumentError, match="'1' is not accepted; give a finite number of at least 0 and be"):
        _parsed("--share", "1")


def test_generate_takes_what_sampling_params_hold() -> None:
    """The signature is written out for whoever reads it; names and defaults are the dataclass's."""
    import inspect

    taken = inspect.signature(GenerationEngine.generate).parameters
    names = [name for name in taken if name not in ("self", "prompts", "template_options")]
    params = {field.name: field for field in dataclasses.fields(SamplingParams) if field.name != "forced"}
    assert names == list(params)
    mappings = ("weights", "guide_plausibility", "gates", "logit_bias")
    assert {name: taken[name].default for name in names if name not in mappings} == {
        name: field.default for name, field in params.items() if name not in mappings
    }


@pytest.mark.parametrize("entry", table(SamplingParams).values())
def test_every_sampling_field_is_told_to_a_person(entry: Described) -> None:
    assert entry.sentence()


def test_the_wire_publishes_the_ranges_and_meanings_of_the_fields() -> None:
    schema = pytest.importorskip("trimtab.serving.schema")
    wire = {**schema.Asked.model_json_schema()["properties"], **schema.Guidance.model_json_schema()["properties"]}
    shared = [name for name in table(SamplingParams) if name in wire and name != "stop"]
    assert set(table(SamplingParams)) - set(shared) == {"max_new_tokens", "stop", "trace", "num_alternatives"}
    for name in shared:
        entry, published = table(SamplingParams)[name], wire[name]
        assert entry.sentence() in published["description"]
        if entry.kind not in ("number", "whole"):
            continue
        number = published["anyOf"][0] if "anyOf" in published else published
        lows = {False: "minimum", True: "exclusiveMinimum"}
        assert number[lows[entry.open_low]] == entry.low
        assert number.get("maximum", math.inf) == entry.high


def test_a_recipe_sets_what_decides_how_an_answer_is_decoded() -> None:
    from trimtab.evaluation.comparison.recipe_reader import _DECODING

    decided_elsewhere = {"weights", "guide_plausibility", "gates", "seed", "trace", "num_alternatives", "forced"}
    decided_elsewhere |= {"constraint"}
    decides_nothing = {"draft", "draft_tokens"}
    assert (
        set(_DECODING)
        == {field.name for field in dataclasses.fields(SamplingParams)} - decided_elsewhere - decides_nothing
    )


@pytest.mark.parametrize("flag", ["--pulls", "--shares", "--marks"])
def test_a_list_in_one_flag_is_not_given_twice(flag: str) -> None:
    value = {"--pulls": "1=2", "--shares": "a=0.1", "--marks": "1"}[flag]
    _parsed(flag, value)
    with pytest.raises(argparse.ArgumentError, match="given twice"):
        _parsed(flag, value, flag, value)
