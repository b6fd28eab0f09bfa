from __future__ import annotations

import argparse
import dataclasses
import io
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from trimtab.answers import Answer
from trimtab.cli.options import GuideSpec, check_guide_names, list_of, number, parse_guide, whole
from trimtab.core import Prompt, SamplingParams
from trimtab.decoding.decoder import Decoder
from trimtab.errors import OptionError

from .conftest import Run, Tiny


@pytest.mark.parametrize(
    ("text", "path", "weight"),
    [
        ("g=guides/helpful", "guides/helpful", None),
        ("g=guides/helpful:0.5", "guides/helpful", 0.5),
        ("g=guides/helpful:-2", "guides/helpful", -2.0),
        ("g=guides/helpful:1e-3", "guides/helpful", 0.001),
        ("g=org/name", "org/name", None),
        ("g=org/name:.7", "org/name", 0.7),
        ("g=builtin:sentiment", "builtin:sentiment", None),
        ("g=builtin:sentiment:1.5", "builtin:sentiment", 1.5),
        ("g=a=b:2", "a=b", 2.0),
        ("g=C:\\guides\\helpful:0.5", "C:\\guides\\helpful", 0.5),
        ("g=C:\\guides\\helpful", "C:\\guides\\helpful", None),
    ],
)
def test_a_guide_is_a_name_a_path_and_a_weight(text: str, path: str, weight: float) -> None:
    assert parse_guide(text) == GuideSpec("g", path, weight)


def test_a_directory_whose_name_ends_like_a_weight_is_a_directory(tmp_path: Path) -> None:
    (tmp_path / "run:2").mkdir()
    assert parse_guide(f"g={tmp_path}/run:2") == GuideSpec("g", f"{tmp_path}/run:2", None)
    assert parse_guide(f"g={tmp_path}/run:2:0.5") == GuideSpec("g", f"{tmp_path}/run:2", 0.5)
    assert parse_guide(f"g={tmp_path}/run:2.0") == GuideSpec("g", f"{tmp_path}/run", 2.0)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("guides/helpful", "is not a guide"),
        ("helpful=", "is not a guide"),
        ("=guides/helpful", "not a name for a guide"),
        ("my guide=guides/helpful", "not a name for a guide"),
        ("g=guides/helpful:nan", "finite number"),
        ("g=guides/helpful:inf", "finite number"),
        ("g=guides/helpful:-inf", "finite number"),
        ("g=guides/helpful:", "not a number"),
        ("g=:1.0", "names no directory"),
    ],
)
def test_what_is_no_guide_is_refused_with_the_way_out(text: str, problem: str) -> None:
    with pytest.raises(OptionError, match=problem):
        parse_guide(text)


def test_a_weight_that_is_no_number_is_named_where_the_directory_exists(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"'0,5'.*not a number"):
        parse_guide(f"g={tmp_path}:0,5")


def test_two_guides_of_one_name_are_refused() -> None:
    with pytest.raises(OptionError, match="'a' twice"):
        check_guide_names([GuideSpec("a", "x", None), GuideSpec("b", "y", 1.0), GuideSpec("a", "z", 1.0)])


@pytest.mark.parametrize("text", ["nan", "inf", "-0.1", "1.1", "much", ""])
def test_numbers_out_of_range_are_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="of at least 0 and at most 1"):
        number(0, 1)(text)


def test_numbers_in_range_pass() -> None:
    assert [number(0, 1)(text) for text in ("0", "1", ".5")] == [0.0, 1.0, 0.5]
    assert list_of(whole(1))("1,4,16") == [1, 4, 16]


def test_an_open_bound_is_left_out() -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="above 0"):
        number(0, open_low=True)("0")


@pytest.mark.parametrize("text", ["0", "1.5", "one", "9"])
def test_whole_numbers_out_of_range_are_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="whole number of at least 1 and at most 8"):
        whole(1, 8)(text)


SAMPLING = [
    *("--max-new-tokens", "3", "--temperature", "0.5", "--top-k", "7", "--top-p", "0.9", "--min-p", "0.01"),
    *("--plausibility", "0.001", "--repetition-penalty", "1.1", "--stop", "x", "--stop", "yz", "--ignore-eos"),
    *("--presence-penalty", "0.3", "--frequency-penalty", "-0.2", "--logit-bias", "4=-1.5,7=2", "--min-tokens", "2"),
    *("--stop-token-ids", "5,6", "--guide-plausibility", "kind=0.1", "--gates", "kind=random:0.5"),
    *("--seed", "6", "--draft", "lookup", "--draft-tokens", "4"),
]


@pytest.mark.parametrize("command", [("generate", "--prompt", "Hi"), ("explain", "--prompt", "Hi"), ("chat",)])
def test_every_sampling_flag_reaches_the_decoder(
    run: Run, tiny: Tiny, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]
) -> None:
    asked: list[SamplingParams] = []
    add, answers = Decoder.add, Decoder.answers

    def spy(self: Decoder, prompt: Prompt, params: SamplingParams | None = None) -> int:
        assert params is not None
        asked.append(params)
        return add(self, prompt, params)

    def spy_on_all(self: Decoder, requests: Sequence[tuple[Prompt, SamplingParams]]) -> Iterator[Answer]:
        asked.extend(params for _, params in requests)
        return answers(self, requests)

    monkeypatch.setattr(Decoder, "add", spy)
    monkeypatch.setattr(Decoder, "answers", spy_on_all)
    monkeypatch.setattr(sys, "stdin", io.StringIO("Hi\n"))
    outcome = run(*command, "--model", tiny.model, "--guide", f"kind={tiny.lora}", *SAMPLING)
    assert outcome.code == 0, outcome.err
    (params,) = asked
    expected = SamplingParams(
        draft="lookup",
        draft_tokens=4,
        max_new_tokens=3,
        temperature=0.5,
        top_k=7,
        top_p=0.9,
        min_p=0.01,
        plausibility=0.001,
        guide_plausibility={"kind": 0.1},
        gates={"kind": "random:0.5"},
        repetition_penalty=1.1,
        presence_penalty=0.3,
        frequency_penalty=-0.2,
        logit_bias={4: -1.5, 7: 2.0},
        min_tokens=2,
        stop=("x", "yz"),
        stop_token_ids=(5, 6),
        ignore_eos=True,
        seed=6,
    )
    assert dataclasses.replace(params, trace=False, num_alternatives=0, weights={}) == expected
    unset = {
        f.name for f in dataclasses.fields(expected) if getattr(expected, f.name) == getattr(SamplingParams(), f.name)
    }
    assert unset == {"weights", "trace", "num_alternatives", "forced", "constraint"}, (
        "a parameter without a flag, or a test without it"
    )
