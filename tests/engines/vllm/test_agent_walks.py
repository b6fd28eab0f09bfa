"""A walk spread over an engine's steps ends where `selecting.walk` does. Needs no vLLM."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from trimtab.core import Candidates, Selection
from trimtab.engines.vllm.agent.walks import Walks
from trimtab.mixing.rules import FirstAccepted
from trimtab.mixing.selecting import survivors, walk

VOCAB, ROWS = 50, 64


def stepwise(walks: Walks, slots: Tensor, odds: Tensor) -> tuple[list[int], int]:
    """The tokens that walks keep under a table of scores [S, V], all slots asked each step; and how many steps."""
    kept: dict[int, int] = {}
    num_steps = 0
    open_slots = slots
    while len(open_slots):
        fed = walks.tokens(open_slots)
        done = walks.judge(open_slots, odds[open_slots, fed])
        kept.update(zip(open_slots[done].tolist(), fed[done].tolist(), strict=True))
        open_slots, num_steps = open_slots[~done], num_steps + 1
        assert num_steps <= VOCAB + 1
    return [kept[slot] for slot in slots.tolist()], num_steps


@pytest.mark.parametrize("fallback", ["first", "last"])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.6, 1.0])
def test_a_walk_in_steps_is_the_walk(share: float, fallback: str) -> None:
    dice = torch.Generator().manual_seed(int(10 * share))
    logits = 3 * torch.randn(ROWS, VOCAB, generator=dice)
    odds = torch.randn(ROWS, VOCAB, generator=dice) + {0.0: -9.0, 0.1: -1.3, 0.6: 0.3, 1.0: 9.0}[share]
    thresholds = 0.2 + 0.6 * torch.rand(ROWS, generator=dice)
    top_k = torch.randint(1, 30, (ROWS,), generator=dice)
    top_p = 0.3 + 0.65 * torch.rand(ROWS, generator=dice, dtype=torch.float64)
    selection = Selection(FirstAccepted(fallback))
    policy = torch.log_softmax(logits, -1)
    found, counts = survivors(policy, top_k=top_k, top_p=top_p, min_p=torch.zeros(ROWS))

    def look(rows: Tensor, some: Candidates, asked: Tensor) -> Tensor:
        return odds[rows].gather(1, some.token_ids)

    seen = walk(found, counts, thresholds, selection, look)
    chosen = selection.rule.policy(found, seen.weighted).argmax(-1)
    expected = found.token_ids.gather(1, chosen[:, None]).squeeze(1).tolist()

    walks = Walks(ROWS, selection, last_id=1, seed=0, device="cpu")
    slots = torch.randperm(ROWS, generator=dice)
    for slot in range(ROWS):
        walks.admit(slot, float(thresholds[slot]), int(top_k[slot]), float(top_p[slot]))
    walks.begin(slots, logits[slots])
    tokens, num_steps = stepwise(walks, slots, odds)
    assert tokens == [expected[slot] for slot in slots.tolist()]
    assert (num_steps == 1) == (share == 1.0)
    if share == 0.0:  # the last candidate is not fed twice, the first is
        assert num_steps == int(counts.max()) + (fallback == "first")


def test_what_a_request_does_not_say_is_the_agents() -> None:
    walks = Walks(4, Selection(FirstAccepted(), top_k=5, top_p=0.8), last_id=1, seed=0, device="cpu")
    for slot, (top_k, top_p) in enumerate([(0, 1.0), (3, 1.0), (0, 0.5), (30, 1.0)]):
        walks.admit(slot, 0.5, top_k, top_p)
    slots = torch.arange(4)
    walks.begin(slots, -0.1 * torch.arange(float(VOCAB)).expand(4, -1))
    fed = [walks.tokens(slots).tolist()]
    for _ in range(9):
        walks.judge(slots, torch.full((4,), -9.0))
        fed.append(walks.tokens(slots).tolist())
    # Five candidates have 0.24, 0.22, 0.20, 0.18 and 0.16 of their mass, three have 0.37, 0.33 and 0.30.
    assert [len(set(tokens)) for tokens in zip(*fed, strict=True)] == [4, 3, 3, 10]


def test_a_request_without_the_agent_draws_from_the_base() -> None:
    num_slots, selection = 20_000, Selection(FirstAccepted())
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0, -math.inf]).expand(num_slots, -1)
    slots = torch.arange(num_slots)
    walks = Walks(num_slots, selection, last_id=1, seed=0, device="cpu")
    for slot in range(num_slots):
        walks.admit(slot, 0.0, 0, 1.0)
    walks.begin(slots, logits)
    tokens = walks.tokens(slots)
    assert bool(walks.judge(slots, torch.full((num_slots,), -9.0)).all())  # nobody asks the agent
    shares = torch.bincount(tokens, minlength=5) / num_slots
    wanted = torch.softmax(logits[0], -1)
    error = (wanted * (1 - wanted) / num_slots).sqrt()
    assert bool(((shares - wanted).abs() <= 5 * error).all())


def test_a_row_that_cannot_be_decoded_ends_and_nothing_is_raised() -> None:
    walks = Walks(2, Selection(FirstAccepted()), last_id=7, seed=0, device="cpu")
    for slot in range(2):
        walks.admit(slot, 0.5, 0, 1.0)
    slots = torch.arange(2)
    walks.begin(slots, torch.stack([torch.full((VOCAB,), math.nan), torch.arange(float(VOCAB))]))
    assert walks.tokens(slots).tolist() == [7, VOCAB - 1]
    assert walks.judge(slots, torch.tensor([math.nan, math.nan])).tolist() == [True, False]


def test_a_slot_is_as_new_for_the_next_request() -> None:
    walks = Walks(1, Selection(FirstAccepted()), last_id=7, seed=0, device="cpu")
    slot, logits = torch.tensor([0]), torch.zeros(1, VOCAB)
    walks.admit(0, 0.5, 0, 1.0)
    walks.begin(slot, logits)
    for score in (-9.0, -9.0, 9.0):
        walks.judge(slot, torch.tensor([score]))
    walks.admit(0, 0.5, 4, 1.0)
    walks.begin(slot, torch.arange(float(VOCAB))[None] / 10)
    assert walks.tokens(slot).tolist() == [VOCAB - 1]
    for _ in range(4):
        assert walks.judge(slot, torch.tensor([-9.0])).tolist() == [False]
    assert walks.tokens(slot).tolist() == [VOCAB - 1]
    assert walks.judge(slot, torch.tensor([-9.0])).tolist() == [True]
