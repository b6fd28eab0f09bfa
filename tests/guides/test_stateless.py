"""A guide of one method keeps the laws, and is the same as the guide with a session that it stands for."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from trimtab.caches import num_known
from trimtab.core import Candidates, SamplingParams, TokenIds
from trimtab.decoding.decoder import Decoder
from trimtab.guides.arm import ARM
from trimtab.guides.stateless import StatelessGuide, StatelessSession
from trimtab.models.tabular import TabularModel
from trimtab.testing import LawViolation, check_guide

BASE, EXPERT = TabularModel.random(6, seed=0), TabularModel.random(6, seed=1)


class Expert(StatelessGuide):
    """An ARM, written in one method."""

    def score(self, rows: Sequence[TokenIds], candidates: Candidates) -> Tensor:
        return candidates.gather(torch.stack([EXPERT.next_logprobs(row) for row in rows]))


class Forgetful(StatelessGuide):
    """Keeps a count from call to call, which no guide may."""

    def __init__(self) -> None:
        self.calls = 0

    def score(self, rows: Sequence[TokenIds], candidates: Candidates) -> Tensor:
        self.calls += 1
        return torch.full(candidates.token_ids.shape, float(self.calls)) * candidates.token_ids


def test_it_keeps_the_laws() -> None:
    check_guide(Expert(), BASE)


def test_one_that_keeps_something_is_caught() -> None:
    with pytest.raises(LawViolation):
        check_guide(Forgetful(), BASE)


def test_it_says_what_the_guide_with_a_session_says() -> None:
    prompts, weights = ["ab", "c", "da"], [{"g": 0.5}, {"g": 2.0}, {"g": -0.0}]
    how = {"weights": weights, "max_new_tokens": 6, "seed": 3, "ignore_eos": True}
    one, other = (Decoder(BASE, {"g": guide}, max_rows=2).generate(prompts, **how) for guide in (Expert(), ARM(EXPERT)))
    assert [answer.token_ids for answer in one] == [answer.token_ids for answer in other]


def test_only_the_rows_that_are_asked_about_are_scored() -> None:
    session = Expert().open()
    assert isinstance(session, StatelessSession)
    session.admit([[1, 2], [3], [4, 4]])
    rows = torch.tensor([2, 0])
    ids, logprobs = torch.arange(6).expand(2, -1), torch.zeros(2, 6)
    scores = session.score(Candidates(ids, logprobs, complete=True, rows=rows))
    expected = torch.stack([EXPERT.next_logprobs([4, 4]), EXPERT.next_logprobs([1, 2])])
    assert torch.equal(scores, expected)


def test_a_prompt_costs_it_nothing_to_read() -> None:
    """Else prompts that the base knows already would count against a step's budget."""
    assert num_known(Expert().open(), [1, 2, 3]) == 3


def test_requests_that_join_and_leave_on_the_way_change_no_answer() -> None:
    how = {"weights": {"g": 2.0}, "max_new_tokens": 8, "ignore_eos": True}
    alone = {}
    for seed, prompt in enumerate(["ab", "c", "da"]):
        [answer] = Decoder(BASE, {"g": Expert()}).generate(prompt, seed=seed, **how)
        alone[seed] = answer.token_ids
    decoder = Decoder(BASE, {"g": Expert()})
    tokens: dict[int, list[int | None]] = {}
    ids = [decoder.add("ab", SamplingParams(seed=0, **how))]
    stranger = decoder.add("dd", SamplingParams(seed=9, **how))
    for step in range(40):
        if step in (2, 4):
            ids.append(decoder.add("c" if step == 2 else "da", SamplingParams(seed=step // 2, **how)))
        if step == 3:
            decoder.cancel(stranger)
        for event in decoder.step():
            tokens.setdefault(event.request_id, []).append(event.token_id)
    assert [tuple(tokens[request_id]) for request_id in ids] == [alone[seed] for seed in range(3)]
