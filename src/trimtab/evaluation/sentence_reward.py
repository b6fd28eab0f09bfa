"""What two sentences themselves say of an answer: how much more probable the model finds it under one than the other.

The reward of an answer y to a prompt x is (log π(y | s₊, x) − log π(y | s₋, x)) / |y|, in nats a token, for a sentence
s₊ and its opposite s₋; with one sentence the second term is the plain prompt's. It is the score of the guide that the
sentences make (`guides.prompt`), read off a whole answer. So it measures what the sentences mean to this model, which
is where pairs sampled under them come from; whether a reader would agree, it does not know.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from trimtab.core import LanguageModel, Prompt
from trimtab.drafting import drafting_model, drafts
from trimtab.errors import OptionError
from trimtab.guides.prompt import BoundPromptGuide, PromptGuide
from trimtab.prompts import encode_prompt
from trimtab.storage.scorers import Scorer
from trimtab.storage.sentences import read_sentence

_BATCH = 8
"""Answers that are read in one pass: each has a table of the vocabulary's size for every token."""


def sentence_scorer(name: str, model: LanguageModel) -> Scorer:
    """The scorer that a guide's sentences are (`prompt:"TOWARDS"/"AWAY"`), as this model reads them.

    Raises OptionError for a model that cannot read them, or cannot read several tokens at a time.
    """
    guide = PromptGuide.reading(read_sentence(name)).bind(model)
    if model.tokenizer is None or not drafts(model.open()):
        raise OptionError(f"{name} cannot score with this model, which does not read an answer at once. Give --reward.")
    said = f"how much more probable the model finds the answer, in nats a token, under {guide.guide.towards!r}"
    than = "without it" if guide.guide.away is None else f"under {guide.guide.away!r}"

    def score(prompts: Sequence[Prompt], texts: Sequence[str]) -> list[float]:
        found: list[float] = []
        for start in range(0, len(texts), _BATCH):
            found += _scores(guide, prompts[start : start + _BATCH], texts[start : start + _BATCH])
        return found

    return Scorer(name, f"{said} than {than}", score)


@torch.inference_mode()
def _scores(guide: BoundPromptGuide, prompts: Sequence[Prompt], texts: Sequence[str]) -> list[float]:
    readings = [guide.readings(prompt) for prompt in prompts]
    if guide.guide.away is None:
        for prompt, rows in zip(prompts, readings, strict=True):
            rows.append(list(encode_prompt(guide.model, prompt)))
    answers = [_answer_ids(guide.model, text) for text in texts]
    towards = _logprobs(guide.model, [rows[0] for rows in readings], answers)
    away = _logprobs(guide.model, [rows[1] for rows in readings], answers)
    return [
        0.0 if not ids else (one - other) / len(ids) for ids, one, other in zip(answers, towards, away, strict=True)
    ]


def _answer_ids(model: LanguageModel, text: str) -> list[int]:
    """The ids of a text that goes on after a prompt, without what a tokenizer puts before a text."""
    assert model.tokenizer is not None
    begun, ids = list(model.tokenizer.encode("")), list(model.tokenizer.encode(text))
    return ids[len(begun) :] if begun and ids[: len(begun)] == begun else ids


def _logprobs(model: LanguageModel, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]]) -> list[float]:
    """log π(answer | prompt) of each, all read in one pass."""
    session = model.open()
    session.admit(prompts)
    ahead = drafting_model(session)
    for place in range(max(map(len, answers), default=0)):
        rows = [row for row, answer in enumerate(answers) if len(answer) > place]
        ahead.draft(torch.tensor(rows), torch.tensor([answers[row][place] for row in rows]))
    places = [(row, place) for row, answer in enumerate(answers) for place in range(len(answer))]
    totals = [0.0] * len(answers)
    if places:
        tables = ahead.logprobs_after(*(torch.tensor(column) for column in zip(*places, strict=True)))
        tokens = torch.tensor([answers[row][place] for row, place in places], device=tables.device)
        for (row, _), value in zip(places, tables.gather(1, tokens[:, None])[:, 0].tolist(), strict=True):
            totals[row] += value
    ahead.settle(torch.zeros(len(answers), dtype=torch.int64))
    return totals
