"""What is learnt from: answers drawn from the target, once, and what they are read behind.

The target is drawn from by the decoder, with the sentences as a guide at their strength. Answer i draws from seed + i
and depends on its prompt alone, so a run that was cut goes on with the answers that it would have had.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from trimtab.core import SamplingParams
from trimtab.decoding.decoder import Decoder
from trimtab.errors import DataError, OptionError, naming
from trimtab.fields import MAX_SEED
from trimtab.guides.prompt import PromptGuide
from trimtab.guides.sentences import AUTO, SYSTEM
from trimtab.storage.json_lines import append, open_to_append, read_lines
from trimtab.training.run.prompt_data import PromptIds

if TYPE_CHECKING:
    from trimtab.models.hf import HFModel
    from trimtab.training.distill.settings import DistillSettings

log = logging.getLogger(__name__)

FILE = "answers.jsonl"
"""The answers, in the run's workspace."""
_NAME = "sentences"
_SECONDS_BETWEEN = 30
"""Until the next line of the log says how many answers are drawn."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """An answer of the target."""

    token_ids: tuple[int, ...]
    """With the id that ends it, unless it was cut."""
    is_cut: bool
    """Whether it ran into the length limit."""


@dataclass(frozen=True, slots=True)
class Reading:
    """An answer, and all that it is read behind."""

    prompt: tuple[int, ...]
    """The prompt alone: what base and student read."""
    sentences: tuple[tuple[int, ...], ...]
    """The prompt with the sentence that is steered towards, and with the one that is steered away from, if there is
    one."""
    answer: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class SentencePrompts:
    """Prompts, and what the base reads of each with the sentences in it."""

    guide: PromptGuide
    prompts: Sequence[PromptIds]
    sentences: Sequence[tuple[tuple[int, ...], ...]]

    @classmethod
    def read(
        cls, host: HFModel, guide: PromptGuide, prompts: Sequence[PromptIds], settings: DistillSettings
    ) -> SentencePrompts:
        """Raises OptionError where the model cannot read the sentences, or holds no answer behind them."""
        assert host.tokenizer is not None
        if guide.place == SYSTEM and not host.tokenizer.has_chat_template:
            raise naming(
                OptionError,
                "{place} is {0}, and {1} has no chat template, so there is no system message. Give {place} {2}: the "
                "sentence then stands before the text.",
                *(SYSTEM, host.name, AUTO),
            )
        bound = guide.bind(host)
        sentences = [tuple(map(tuple, bound.readings(prompt.prompt))) for prompt in prompts]
        longest = max(len(ids) for readings in sentences for ids in readings)
        if host.max_length is not None and longest + settings.max_new_tokens > host.max_length:
            raise naming(
                OptionError,
                "With a sentence in it the longest prompt has {0} tokens; with {1} new ones ({max_new_tokens}) that is "
                "more than the {2} that {3} can hold. Give a shorter sentence, a smaller {max_new_tokens} or a smaller "
                "{max_prompt_length}.",
                *(longest, settings.max_new_tokens, host.max_length, host.name),
            )
        return cls(guide, prompts, sentences)

    def draw(self, host: HFModel, path: Path, settings: DistillSettings) -> list[Drawn]:
        """An answer to each prompt, as the sentences make it; those that the file has already are not drawn again.

        Raises what an answer fails with.
        """
        found = [Drawn(tuple(line["token_ids"]), bool(line["cut"])) for line in read_lines(path)[0]]
        num_asked = len(self.prompts)
        if len(found) < num_asked:
            log.info("drawing %s answers from the target", f"{num_asked - len(found):,}")
        said = time.monotonic()
        with open_to_append(path) as stream:
            for one in self._drawn(host, len(found), settings):
                append(stream, [{"token_ids": list(one.token_ids), "cut": one.is_cut}])
                found.append(one)
                if time.monotonic() - said > _SECONDS_BETWEEN:
                    said = time.monotonic()
                    log.info("%s of %s answers are drawn", f"{len(found):,}", f"{num_asked:,}")
        num_cut = sum(one.is_cut for one in found)
        log.info("%s answers, %s of them cut at %d tokens", f"{len(found):,}", f"{num_cut:,}", settings.max_new_tokens)
        return found

    def _drawn(self, host: HFModel, start: int, settings: DistillSettings) -> Iterator[Drawn]:
        """The answers from number `start` on, in order."""

        def asked(index: int) -> SamplingParams:
            seed = (settings.seed + index) % (MAX_SEED + 1)
            return SamplingParams(max_new_tokens=settings.max_new_tokens, temperature=1.0, seed=seed)

        requests = [(prompt.prompt, asked(index)) for index, prompt in list(enumerate(self.prompts))[start:]]
        if not requests:
            return
        for answer in Decoder(host, {_NAME: self.guide}).answers(requests):
            if answer.error is not None:
                raise answer.error
            yield Drawn(answer.token_ids, answer.finish_reason == "length")

    def readings(self, drawn: Sequence[Drawn], numbers: Sequence[int]) -> list[Reading]:
        """The answers to the prompts of these numbers, with what they are read behind."""
        return [Reading(self.prompts[at].token_ids, self.sentences[at], drawn[at].token_ids) for at in numbers]


def hold_out(prompts: Sequence[PromptIds], share: float, *, seed: int) -> tuple[list[int], list[int]]:
    """The numbers of the prompts to train on, and of those held out: a share of the different ones, each once.

    Raises DataError where no prompt would be left on one of the sides.
    """
    if not share:
        return list(range(len(prompts))), []
    first: dict[tuple[int, ...], int] = {}
    for number, prompt in enumerate(prompts):
        first.setdefault(prompt.token_ids, number)
    count = max(1, round(share * len(first)))
    if count >= len(first):
        raise naming(
            DataError,
            "There are {0} different prompts, and {1} of them would be held out ({eval_share} {2:g}). Give more "
            "prompts, or {eval_share} 0.",
            *(len(first), count, share),
        )
    held = set(random.Random(seed).sample(sorted(first), count))
    train = [number for number, prompt in enumerate(prompts) if prompt.token_ids not in held]
    return train, sorted(first[ids] for ids in held)
