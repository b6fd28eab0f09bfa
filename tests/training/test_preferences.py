"""Pairs from a model's own answers: which are made, how they are written, and going on after a cut."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from trimtab.answers import Answer
from trimtab.core import Message
from trimtab.decoding.decoder import Decoder
from trimtab.errors import DataError, OptionError
from trimtab.models.tabular import TabularModel
from trimtab.training.pairs import synthetic as preferences
from trimtab.training.pairs.data import read_pairs
from trimtab.training.pairs.synthetic import LabelSettings, Pair, Samples, SamplingSettings

PROMPTS = [[{"role": "user", "content": text}] for text in ("ab", "ba", "aab", "bba", "b")]
SETTINGS = SamplingSettings(num_answers=3, max_new_tokens=5, seed=7)


@pytest.fixture
def decoder() -> Decoder:
    return Decoder(TabularModel.random(5, seed=0), max_rows=4)


def length(prompts: Sequence[Sequence[Message]], texts: Sequence[str]) -> list[float]:
    assert len(prompts) == len(texts)
    return [float(len(text)) for text in texts]


def test_the_best_is_paired_with_the_worst() -> None:
    samples = [Samples(PROMPTS[0], ("ccc", "a", "ddddddd", "bb", "eeeee"))]
    pairs = preferences.label_pairs(samples, length, LabelSettings(min_margin=1, max_pairs=9, min_length_ratio=0))
    assert [(pair.chosen, pair.rejected, pair.margin) for pair in pairs] == [("ddddddd", "a", 6), ("eeeee", "bb", 3)]


def test_no_more_pairs_than_asked_for() -> None:
    samples = [Samples(prompt, ("a", "bb", "ccc", "dddd")) for prompt in PROMPTS[:2]]
    pairs = preferences.label_pairs(samples, length, LabelSettings(min_margin=1, max_pairs=1, min_length_ratio=0))
    assert [(pair.prompt, pair.chosen, pair.rejected) for pair in pairs] == [
        (prompt, "dddd", "a") for prompt in PROMPTS[:2]
    ]


def test_ties_and_narrow_differences_are_no_preference() -> None:
    samples = [Samples(PROMPTS[0], ("aa", "bb", "cc")), Samples(PROMPTS[1], ("a", "bb"))]
    assert preferences.label_pairs(samples, length, LabelSettings(min_margin=1.5, min_length_ratio=0)) == []


def test_empty_and_repeated_answers_are_left_out() -> None:
    samples = [Samples(PROMPTS[0], ("", "aaaa", "aaaa", "")), Samples(PROMPTS[1], ("", ""))]
    assert preferences.label_pairs(samples, length, LabelSettings(min_length_ratio=0)) == []


def test_answers_of_unlike_length_are_not_paired() -> None:
    def first(prompts: Sequence[Sequence[Message]], texts: Sequence[str]) -> list[float]:
        return [float(ord(text[0])) for text in texts]

    samples = [Samples(PROMPTS[0], ("z", "ybbbb", "daaaaa", "ccc"))]
    pairs = preferences.label_pairs(samples, first, LabelSettings(min_margin=1, min_length_ratio=0.6))
    # z is worth most and c least, but 1, 3 and 5 letters are no match; 5 and 3 are, at a ratio of exactly 0.6.
    assert [(pair.chosen, pair.rejected) for pair in pairs] == [("ybbbb", "ccc")]
    pairs = preferences.label_pairs(samples, first, LabelSettings(min_margin=1, min_length_ratio=0.61))
    assert [(pair.chosen, pair.rejected) for pair in pairs] == [("ybbbb", "daaaaa")]


@pytest.mark.parametrize(
    ("text", "whole"),
    [
        ("It rains. The str", "It rains."),
        ('She said "no!" and th', 'She said "no!"'),
        ("Really?! Yes. Pi is 3.14 and", "Really?! Yes."),
        ("no end at all", ""),
        ("It ends.", "It ends."),
        ("", ""),
    ],
)
def test_an_answer_that_was_cut_is_cut_back_to_whole_sentences(text: str, whole: str) -> None:
    assert preferences.whole_sentences(text) == whole


class Speaker:
    """A decoder that gives prepared answers."""

    guides: dict[str, object] = {}  # noqa: RUF012

    def __init__(self, answers: Sequence[tuple[str, str]]) -> None:
        self.answers = answers

    def generate(self, prompts: Sequence[object], **_: object) -> Iterator[Answer]:
        for text, reason in self.answers:
            yield Answer("", (), (), text, reason, {}, 0)


def test_only_what_the_limit_cut_is_cut_back() -> None:
    speaker = Speaker([("One. Tw", "length"), (" One. Tw ", "eos")])
    (sample,) = preferences.sample_answers(speaker, PROMPTS[:1], SamplingSettings(num_answers=2))  # type: ignore[arg-type]
    assert sample.answers == ("One.", "One. Tw")


def test_the_guides_of_the_decoder_do_not_speak(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preferences, "whole_sentences", lambda text: text)

    def sampled(decoder: Decoder) -> list[Samples]:
        return list(preferences.sample_answers(decoder, PROMPTS, SamplingSettings(num_answers=2, max_new_tokens=4)))

    from trimtab.guides.arm import ARM

    base = TabularModel.random(5, seed=0, eos_ids=())
    guided = Decoder(base, {"other": ARM(TabularModel.random(5, seed=1, eos_ids=(), scale=9.0), weight=5.0)})
    assert sampled(guided) == sampled(Decoder(base))


def test_a_run_that_was_cut_goes_on_with_the_same_answers(
    tmp_path: Path, decoder: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preferences, "whole_sentences", lambda text: text)
    whole = preferences.sample_into(tmp_path / "whole.jsonl", decoder, PROMPTS, SETTINGS)
    assert len({answer for sample in whole for answer in sample.answers}) > 5

    cut = tmp_path / "cut.jsonl"
    preferences.sample_into(cut, decoder, PROMPTS, SETTINGS)
    lines = cut.read_bytes().splitlines(keepends=True)
    cut.write_bytes(b"".join(lines[:2]) + lines[2][:17])  # killed in the middle of the third line
    seen: list[None] = []
    resumed = preferences.sample_into(cut, decoder, PROMPTS, SETTINGS, on_prompt=lambda: seen.append(None))
    assert resumed == whole
    assert cut.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert len(seen) == len(PROMPTS)


def test_a_finished_run_samples_nothing(tmp_path: Path, decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "samples.jsonl"
    first = preferences.sample_into(path, decoder, PROMPTS, SETTINGS)
    monkeypatch.setattr(Decoder, "generate", lambda *_, **__: pytest.fail("sampled again"))
    assert preferences.sample_into(path, decoder, PROMPTS, SETTINGS) == first


@pytest.mark.parametrize(
    ("settings", "num_prompts", "changed"),
    [
        (SamplingSettings(num_answers=4, max_new_tokens=5, seed=7), 5, "num_answers"),
        (SamplingSettings(num_answers=3, max_new_tokens=5, seed=8), 5, "seed"),
        (SETTINGS, 4, "prompts"),
    ],
)
def test_samples_of_another_run_are_not_continued(
    tmp_path: Path, decoder: Decoder, settings: SamplingSettings, num_prompts: int, changed: str
) -> None:
    path = tmp_path / "samples.jsonl"
    preferences.sample_into(path, decoder, PROMPTS, SETTINGS)
    before = path.read_bytes()
    with pytest.raises(OptionError, match=f"with other settings: {changed} is .* here and .* in the run"):
        preferences.sample_into(path, decoder, PROMPTS[:num_prompts], settings)
    assert path.read_bytes() == before


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    path.write_text('{"prompt": [], "answers": []}\n{"prompt": []}\n')
    with pytest.raises(DataError, match="line 2"):
        preferences.read_samples(path)


def test_pairs_are_written_as_training_reads_them(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    preferences.write_pairs(path, [Pair(PROMPTS[0], "chosen – 好", "rejected", 0.75)])
    (pair,) = read_pairs([path]).pairs
    assert (pair.chosen, pair.rejected) == ("chosen – 好", "rejected")
    assert [dict(message) for message in pair.prompt] == PROMPTS[0]  # type: ignore[call-overload]
    assert json.loads(path.read_text(encoding="utf-8"))["margin"] == 0.75


def test_no_pairs_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="Sample more answers"):
        preferences.write_pairs(tmp_path / "pairs.jsonl", [])
    assert not (tmp_path / "pairs.jsonl").exists()


@pytest.mark.parametrize(
    ("kind", "field", "value"),
    [
        (SamplingSettings, "num_answers", 1),
        (LabelSettings, "min_margin", 0.0),
        (LabelSettings, "min_margin", float("nan")),
        (LabelSettings, "max_pairs", 0),
        (LabelSettings, "min_length_ratio", 1.1),
        (LabelSettings, "min_length_ratio", -0.1),
    ],
)
def test_settings_out_of_range(kind: type, field: str, value: float) -> None:
    with pytest.raises(OptionError, match=field):
        kind(**{field: value})
