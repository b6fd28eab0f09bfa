"""Several answers to each prompt, from any engine, prompt by prompt in a file that survives being cut.

Under two sentences (contrast distillation: Yang et al., RLCD, arXiv 2307.12950) a prompt is answered with either of
them in front of it. Answer j of prompt i draws from seed + i · num_samples + j, those under the first sentence before
those under the second. So an answer depends on its prompt alone, and a run that was cut goes on with the answers that
it would have had.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from trimtab.core import Chat, Prompt, SamplingParams
from trimtab.decoding.engine import GenerationEngine
from trimtab.errors import DataError, PromptError
from trimtab.fields import MAX_SEED
from trimtab.making.sentences import place_of, with_sentence
from trimtab.making.settings import AWAY, BASE, TOWARDS, SampleSettings
from trimtab.prompts import as_json, is_chat
from trimtab.storage.json_lines import append, open_to_append, read_lines
from trimtab.training.pairs.synthetic import whole_sentences

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Ask:
    """A prompt to sample answers to, and what is its own about it."""

    prompt: Prompt
    weights: Mapping[str, float] = field(default_factory=dict)
    seed: int | None = None
    path: str | None = None
    line: int | None = None

    def located(self, error: PromptError) -> PromptError | DataError:
        """The error with the line of the prompt, where it is from a file."""
        return error if self.line is None else DataError(str(error), path=self.path, line=self.line)


@dataclass(frozen=True, slots=True)
class Samples:
    """A prompt, and what was answered to it under each sentence (`BASE`: under none)."""

    prompt: Prompt
    answers: Mapping[str, tuple[str, ...]]
    """Under what -> the answers; one in which nothing whole was said is \"\"."""
    problem: str = ""
    """Why the prompt could not be answered."""
    place: str = ""
    """Where the sentences stood, of `sentences.SYSTEM`, `USER` and `TEXT`; empty without any."""
    num_tokens: int = 0
    """Sampled for these answers in this process; 0 for those from a file."""
    cut: frozenset[int] | None = None
    """Which of `texts` ran into the length limit, by their places; None where the file does not say."""

    @property
    def texts(self) -> list[str]:
        """All answers, in the order of what they were sampled under."""
        return [text for group in self.answers.values() for text in group]

    def as_row(self) -> dict[str, object]:
        """The line of the file."""
        said = {"place": self.place} if self.place else {}
        if self.problem:
            return {"prompt": as_json(self.prompt), "problem": self.problem}
        cut = {} if self.cut is None else {"cut": sorted(self.cut)}
        answers = {name: list(texts) for name, texts in self.answers.items()}
        return {"prompt": as_json(self.prompt), **said, **answers, **cut}


@dataclass(frozen=True, slots=True)
class Sampler:
    """An engine, and how it is asked."""

    engine: GenerationEngine
    params: SamplingParams
    """Its seed is that of the first answer."""
    settings: SampleSettings
    sentences: Mapping[str, str]
    """What answers are sampled under -> the sentence; empty: under none."""
    takes_system: bool
    """Whether the chat template has a system message, in which a sentence then stands."""
    skip_unreadable: bool = False
    """Whether prompts that the model cannot read are passed over, each with its reason."""

    def answer(self, asks: Sequence[Ask], start: int = 0) -> Iterator[Samples]:
        """The answers to each prompt from number `start` on, in order, sampled in one batch.

        Every prompt is looked at before this returns: raises PromptError, or DataError with the line, for one that the
        model cannot read. An answer that fails while it is made raises its error later, in its place.
        """
        return self._answered(asks[start:], [self._queue(ask, index) for index, ask in enumerate(asks[start:], start)])

    def _answered(self, asks: Sequence[Ask], queue: Sequence[_Entry]) -> Iterator[Samples]:
        running = {one.number: one for entry in queue for one in entry.requests}
        for ask, entry in zip(asks, queue, strict=True):
            while any(one.finish_reason is None for one in entry.requests):
                for step in self.engine.step():
                    if step.error is not None:
                        raise step.error
                    running[step.request_id].take(step.token_id is not None, step.text, step.finish_reason)
            for one in entry.requests:
                del running[one.number]
            yield self._samples(ask, entry)

    def _queue(self, ask: Ask, index: int) -> _Entry:
        requests: list[_Request] = []
        first = (self.params.seed or 0) + index * self.settings.num_samples if ask.seed is None else ask.seed
        try:
            for name in self.sentences or {BASE: ""}:
                prompt = self._prompt(ask.prompt, name)
                for _ in range(self.settings.num_under(name)):
                    seed = (first + len(requests)) % (MAX_SEED + 1)
                    params = replace(self.params, weights={**self.params.weights, **ask.weights}, seed=seed)
                    requests.append(_Request(self._add(ask.prompt, prompt, name, params), name))
        except PromptError as error:
            for request in requests:
                self.engine.cancel(request.number)
            if not self.skip_unreadable:
                raise ask.located(error) from error
            log.warning("no answers: %s", ask.located(error))
            return _Entry([], str(error))
        return _Entry(requests)

    def _prompt(self, prompt: Prompt, name: str) -> Prompt:
        if not self.sentences:
            return prompt
        return with_sentence(prompt, self.sentences[name], system=self.takes_system)

    def _add(self, bare: Prompt, prompt: Prompt, name: str, params: SamplingParams) -> int:
        try:
            return self.engine.add(prompt, params)
        except PromptError as error:
            if not self.sentences:
                raise
            self.engine.cancel(self.engine.add(bare, params))  # raises where it is not for the sentence
            raise PromptError(
                f"With the sentence of --{name} before it, the prompt cannot be read: {error} Or shorten the sentence."
            ) from error

    def _samples(self, ask: Ask, entry: _Entry) -> Samples:
        raw = isinstance(ask.prompt, str)
        answers = {
            name: tuple(self._kept(one, raw) for one in entry.requests if one.name == name)
            for name in self.sentences or {BASE: ""}
        }
        place = place_of(ask.prompt, system=self.takes_system) if self.sentences else ""
        cut = frozenset(index for index, one in enumerate(entry.requests) if one.finish_reason == "length")
        num_tokens = sum(one.num_tokens for one in entry.requests)
        return Samples(ask.prompt, answers, entry.problem, place, num_tokens, cut)

    def _kept(self, request: _Request, raw: bool) -> str:
        """What is kept of an answer: in a raw text the spaces before it belong to it."""
        text = "".join(request.texts)
        if request.finish_reason != "length" or not self.settings.whole_sentences:
            return (text if raw else text.strip()) if text.strip() else ""
        whole = whole_sentences(text)
        return text[: len(text) - len(text.lstrip())] + whole if raw and whole else whole


@dataclass(slots=True)
class _Request:
    """An answer that is being made."""

    number: int
    name: str
    texts: list[str] = field(default_factory=list)
    num_tokens: int = 0
    finish_reason: str | None = None

    def take(self, is_token: bool, text: str, finish_reason: str | None) -> None:
        self.num_tokens += is_token
        self.texts.append(text)
        self.finish_reason = finish_reason


@dataclass(frozen=True, slots=True)
class _Entry:
    """The answers to a prompt that are being made, or why there are none."""

    requests: list[_Request]
    problem: str = ""


def write_samples(
    path: Path, answered: Iterable[Samples], *, on_prompt: Callable[[Samples], None] | None = None
) -> None:
    """Append answers to a file, each prompt as soon as it is answered; a torn last line is cut off first."""
    with open_to_append(path) as stream:
        for samples in answered:
            append(stream, [samples.as_row()])
            if on_prompt is not None:
                on_prompt(samples)


def read_samples(path: Path) -> list[Samples]:
    """What is on file. Raises DataError for a line that is not one of samples."""
    rows, _ = read_lines(path, broken="not a line of samples")
    return [_read(row, path, number) for number, row in enumerate(rows, 1)]


def _read(row: Mapping[str, object], path: Path, line: int) -> Samples:
    said, prompt = {name: row[name] for name in (BASE, TOWARDS, AWAY) if name in row}, row.get("prompt")
    if isinstance(prompt, dict) and isinstance(messages := prompt.get("messages"), list):
        prompt = Chat(messages, prompt.get("chat_template_kwargs") or {})
    if not isinstance(prompt, str | list | Chat) or not all(isinstance(texts, list) for texts in said.values()):
        raise DataError("not a line of samples. Give --overwrite to begin anew.", path=path, line=line)
    answers = {name: tuple(map(str, texts)) for name, texts in said.items() if isinstance(texts, list)}
    places = row.get("cut")
    cut = frozenset(map(int, places)) if isinstance(places, list) else None
    return Samples(prompt, answers, str(row.get("problem") or ""), str(row.get("place") or ""), cut=cut)


def check_prompts(asks: Sequence[Ask]) -> None:
    """Raise DataError for prompts of token ids, which pairs cannot be written of, and for texts among messages."""
    kinds = [isinstance(ask.prompt, str) for ask in asks]
    for ask, is_text in zip(asks, kinds, strict=True):
        if not is_text and not is_chat(ask.prompt):
            raise ask.located(
                PromptError("The prompt is token ids, and pairs are written as text. Give a text or chat messages.")
            )
        if is_text != kinds[0]:
            raise ask.located(
                PromptError(
                    f"The prompt is {'a raw text' if is_text else 'chat messages'}, and those before it are not; a "
                    "file of pairs holds one of the two. Give one kind, or have texts read as messages: --chat."
                )
            )
