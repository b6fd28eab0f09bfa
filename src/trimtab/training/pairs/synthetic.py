"""Preference pairs from a model's own answers: sample several to each prompt, score them, pair good with bad.

Pairs of one model's answers differ in what the scorer sees and in little else, so the guide learns the preference and
not the style of another writer. What this does not know: whether the scorer is right.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import chain, permutations
from pathlib import Path

from trimtab.answers import Answer, finished
from trimtab.core import Message
from trimtab.decoding.decoder import Decoder
from trimtab.errors import DataError, OptionError, ScoreError
from trimtab.models.hf import HFModel
from trimtab.storage.files import text_digest, write_text
from trimtab.training.run.identity import check_same_training

Chat = Sequence[Message]
Score = Callable[[Sequence[Chat], Sequence[str]], Sequence[float]]

_SENTENCE_END = re.compile(r"[.!?][\"')\]]*(?=\s|$)")


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingSettings:
    """How the answers are sampled."""

    num_answers: int = 6
    """Answers to each prompt."""
    max_new_tokens: int = 40
    temperature: float = 1.0
    seed: int = 0
    """Answer j of prompt i draws from `seed + i · num_answers + j`."""

    def __post_init__(self) -> None:
        """Raise OptionError for a value out of range."""
        if self.num_answers < 2:
            raise OptionError(f"num_answers is {self.num_answers}; a pair needs at least 2.")


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelSettings:
    """What counts as a preference."""

    min_margin: float = 0.4
    """The least difference in reward."""
    max_pairs: int = 3
    """Pairs from one prompt, at most. No answer is in two of them."""
    min_length_ratio: float = 0.6
    """The shorter answer of a pair has at least this share of the longer one's characters."""

    def __post_init__(self) -> None:
        """Raise OptionError for a value out of range."""
        if not self.min_margin > 0:
            raise OptionError(f"min_margin is {self.min_margin}; give a number above 0, for a tie is not a preference.")
        if self.max_pairs < 1:
            raise OptionError(f"max_pairs is {self.max_pairs}; give at least 1.")
        if not 0 <= self.min_length_ratio <= 1:
            raise OptionError(f"min_length_ratio is {self.min_length_ratio}; give a share from 0 to 1.")


@dataclass(frozen=True, slots=True)
class Samples:
    """One prompt and several answers of the base to it; one in which nothing whole was said is \"\"."""

    prompt: Chat
    answers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Pair:
    """A preference: `chosen` has the higher reward, by `margin`."""

    prompt: Chat
    chosen: str
    rejected: str
    margin: float

    def as_row(self) -> dict[str, object]:
        """The conversational preference format that `trimtab train` and TRL read."""
        return {
            "prompt": [dict(message) for message in self.prompt],
            "chosen": [{"role": "assistant", "content": self.chosen}],
            "rejected": [{"role": "assistant", "content": self.rejected}],
            "margin": round(self.margin, 4),
        }


def sample_into(
    path: Path,
    decoder: Decoder,
    prompts: Sequence[Chat],
    settings: SamplingSettings,
    *,
    on_prompt: Callable[[], None] | None = None,
) -> list[Samples]:
    """Several answers of the unguided base to each prompt, appended to a file of JSON lines as they come.

    Called again with the same settings, it goes on where the file ends, with the same answers as if it had never
    stopped; `on_prompt` is called for every prompt, those from before included. Raises OptionError where the file was
    sampled in another way.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _check_same_run(path, decoder, prompts, settings)
    before = read_samples(path)
    samples = []
    for sample in chain(before, _append(path, sample_answers(decoder, prompts, settings, start=len(before)))):
        samples.append(sample)
        if on_prompt is not None:
            on_prompt()
    return samples


def sample_answers(
    decoder: Decoder, prompts: Sequence[Chat], settings: SamplingSettings, *, start: int = 0
) -> Iterator[Samples]:
    """Several answers of the unguided base to each prompt from number `start` on, prompt by prompt, in one batch.

    An answer that the length limit cut is cut back to its last whole sentence, so that what a guide learns from it
    about ending an answer is not an artefact of the limit.
    """
    if start >= len(prompts):
        return
    answers = decoder.generate(
        [prompt for prompt in prompts[start:] for _ in range(settings.num_answers)],
        weights=dict.fromkeys(decoder.guides, 0.0),
        max_new_tokens=settings.max_new_tokens,
        temperature=settings.temperature,
        seed=settings.seed + start * settings.num_answers,
    )
    whole = finished(answers)
    for prompt in prompts[start:]:
        group = [next(whole) for _ in range(settings.num_answers)]
        yield Samples(prompt, tuple(_whole(answer) for answer in group))


def whole_sentences(text: str) -> str:
    """Text up to the end of its last whole sentence; empty if it has none."""
    ends = [match.end() for match in _SENTENCE_END.finditer(text)]
    return text[: ends[-1]].strip() if ends else ""


def label_pairs(samples: Iterable[Samples], score: Score, settings: LabelSettings) -> list[Pair]:
    """Pairs of answers to one prompt whose rewards differ clearly, those that differ most first.

    Answers of unlike length are not paired. A reward that is a sum over tokens would otherwise be taught mostly that
    one of them is longer. Prompts whose answers are all alike give no pair.
    """
    pairs = []
    for number, sample in enumerate(samples):
        texts = sorted({text for text in sample.answers if text})
        try:
            rewards = dict(zip(texts, score([sample.prompt] * len(texts), texts), strict=True))
        except ScoreError as error:
            raise error.at(f"an answer to prompt {number}", index=number) from error.__cause__
        possible = [
            Pair(sample.prompt, chosen, rejected, rewards[chosen] - rewards[rejected])
            for chosen, rejected in permutations(texts, 2)
            if rewards[chosen] - rewards[rejected] >= settings.min_margin
            and min(len(chosen), len(rejected)) >= settings.min_length_ratio * max(len(chosen), len(rejected))
        ]
        pairs += _disjoint(sorted(possible, key=lambda pair: -pair.margin))[: settings.max_pairs]
    return pairs


def _disjoint(pairs: Iterable[Pair]) -> list[Pair]:
    """The first pair, and each later one that shares no answer with those before it."""
    kept: list[Pair] = []
    for pair in pairs:
        if not {pair.chosen, pair.rejected} & {text for other in kept for text in (other.chosen, other.rejected)}:
            kept.append(pair)
    return kept


def write_pairs(path: Path, pairs: Sequence[Pair]) -> None:
    """Write pairs as JSON lines. Raises DataError when there are none."""
    if not pairs:
        raise DataError(
            "no two answers to one prompt differ clearly in reward, so there is no pair to write. "
            "Sample more answers, or accept a smaller margin.",
            path=path,
        )
    text = "".join(json.dumps(pair.as_row(), ensure_ascii=False) + "\n" for pair in pairs)
    write_text(path, text)


def read_samples(path: Path) -> list[Samples]:
    """The samples in a file, none if there is no file. A torn last line, left by a run that was killed, is cut off."""
    if not path.exists():
        return []
    lines = path.read_bytes().splitlines(keepends=True)
    if lines and not lines[-1].endswith(b"\n"):
        os.truncate(path, sum(map(len, lines[:-1])))
        lines.pop()
    samples = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            samples.append(Samples(row["prompt"], tuple(row["answers"])))
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"not a line of samples ({error}). Give --overwrite.", path=path, line=number) from error
    return samples


def _whole(answer: Answer) -> str:
    return whole_sentences(answer.text) if answer.finish_reason == "length" else answer.text.strip()


def _append(path: Path, samples: Iterable[Samples]) -> Iterator[Samples]:
    with path.open("a", encoding="utf-8", newline="\n") as stream:
        for sample in samples:
            row = {"prompt": [dict(message) for message in sample.prompt], "answers": list(sample.answers)}
            stream.write(json.dumps(row, ensure_ascii=False) + "\n")
            stream.flush()
            yield sample


def _check_same_run(path: Path, decoder: Decoder, prompts: Sequence[Chat], settings: SamplingSettings) -> None:
    """Compare with `<name>.settings.json` beside the file, which is written the first time."""
    tokenizer = decoder.model.tokenizer
    run = {
        **asdict(settings),
        "prompts": text_digest(json.dumps([list(map(dict, prompt)) for prompt in prompts])),
        "vocabulary": None if tokenizer is None else tokenizer.fingerprint,
        "model": decoder.model.describe() if isinstance(decoder.model, HFModel) else None,
    }
    noted = path.with_name(f"{path.stem}.settings.json")
    if not path.exists():
        write_text(noted, json.dumps(run, indent=1) + "\n")
        return
    try:
        before = json.loads(noted.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        before = {}
    check_same_training(
        run,
        before,
        problem=f"{path} cannot be continued with other settings",
        way_out="Give the settings it was begun with, --overwrite, or another directory.",
    )
