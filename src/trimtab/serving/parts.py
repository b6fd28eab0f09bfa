"""The answers of one reply, with what is said of their prompts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from trimtab.serving.asking import ANSWER, NOTHING, SCORES, Wanted
from trimtab.serving.schema import Asked
from trimtab.serving.scored import ScoredPrompt, prompt_text
from trimtab.serving.wire import Json, Style, Writer, usage


@dataclass(frozen=True, slots=True)
class Parts:
    """What is wanted, and a writer for each part of it that runs, in the order of `running`."""

    wanted: Sequence[Wanted]
    running: Sequence[Wanted]
    writers: Sequence[Writer]
    style: Style

    def starts(self) -> Iterator[Json]:
        """The choices of a stream's first chunks."""
        for index, one in enumerate(self._answers):
            start = self._writer(index, one).start()
            yield {**start, "text": prompt_text(one.prompt, self.style.tokenizer)} if self.style.echo else start

    def whole(self, body: Asked) -> Json:
        """The choices of a whole reply, and what a chat says of its prompt beside them."""
        num_rivals = body.prompt_logprobs
        choices: list[Json] = []
        said: Json = {}
        for index, one in enumerate(self._answers):
            choice = self._writer(index, one).whole()
            prompt = self._scored(one)
            if self.style.echo:
                choice = prompt.echoed(choice, self.style.tokenizer)
            if num_rivals is not None:
                scores = {"prompt_logprobs": prompt.as_vllm(num_rivals, self.style.tokenizer)}
                said, choice = (scores, choice) if self.style.chat else ({}, {**choice, **scores})
            choices.append(choice)
        return {"choices": choices, **said}

    def usage(self) -> Json:
        """A prompt counts once, however many answers it has, and as often as it was given."""
        prompts = {one.place: one.num_prompt_tokens for one in self.wanted}
        pairs = zip(self.running, self.writers, strict=True)
        return usage(sum(prompts.values()), sum(writer.num_tokens for one, writer in pairs if one.kind == ANSWER))

    @property
    def _answers(self) -> list[Wanted]:
        return [one for one in self.wanted if one.kind != SCORES]

    def _writer(self, index: int, one: Wanted) -> Writer:
        """The writer of an answer; of one without a token one that has ended."""
        if one.kind == NOTHING:
            return Writer(self.style, index, one.weights, one.params.seed, one.brought, finish_reason="length")
        return self.writers[next(place for place, other in enumerate(self.running) if other is one)]

    def _scored(self, one: Wanted) -> ScoredPrompt:
        pairs = zip(self.running, self.writers, strict=True)
        scores = next((writer for other, writer in pairs if other.kind == SCORES and other.place == one.place), None)
        return ScoredPrompt(one.prompt, one.first_id, scores)
