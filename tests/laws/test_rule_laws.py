"""Every rule keeps every law."""

from __future__ import annotations

import pytest
import torch

from trimtab.core import Candidates
from trimtab.errors import OptionError
from trimtab.mixing.rules import ACCEPTING_RULES, NEVER, FirstAccepted, MostAccepted, RandomAccepted, Tilt
from trimtab.testing import check_rule


@pytest.mark.parametrize("seed", range(5))
def test_tilt(seed: int) -> None:
    check_rule(Tilt(), seed=seed)


ACCEPTING = [rule() for rule in ACCEPTING_RULES.values()] + [FirstAccepted("last")]


@pytest.mark.parametrize("rule", ACCEPTING, ids=str)
@pytest.mark.parametrize("seed", range(5))
def test_rules_that_accept_or_reject(rule: FirstAccepted | RandomAccepted | MostAccepted, seed: int) -> None:
    check_rule(rule, seed=seed)


def chosen(rule: FirstAccepted | RandomAccepted | MostAccepted, scores: list[float], base: list[float]) -> list[float]:
    candidates = Candidates(torch.arange(len(base))[None], torch.tensor([base]))
    return [round(p, 6) for p in rule.policy(candidates, torch.tensor([scores], dtype=torch.float32)).exp()[0].tolist()]


BASE = [-0.5, -1.5, -2.0, -3.0, NEVER]


@pytest.mark.parametrize(
    ("scores", "first", "last", "random", "most"),
    [
        ([-1.0, 0.5, -1, 2, 9], [0, 1, 0, 0, 0], [0, 1, 0, 0, 0], [0, 0.5, 0, 0.5, 0], [0, 0, 0, 1, 0]),
        ([1, 0.5, 1, -2, 9], [1, 0, 0, 0, 0], [1, 0, 0, 0, 0], [1 / 3, 1 / 3, 1 / 3, 0, 0], [1, 0, 0, 0, 0]),
        ([-1, -1, -1, -1, 9], [1, 0, 0, 0, 0], [0, 0, 0, 1, 0], [1, 0, 0, 0, 0], [1, 0, 0, 0, 0]),
        ([0, 0, 0, 0, 0], [1, 0, 0, 0, 0], [0, 0, 0, 1, 0], [1, 0, 0, 0, 0], [1, 0, 0, 0, 0]),
        ([NEVER, 1, 1, NEVER, 1], [0, 1, 0, 0, 0], [0, 1, 0, 0, 0], [0, 0.5, 0.5, 0, 0], [0, 1, 0, 0, 0]),
    ],
)
def test_which_candidate_is_taken(
    scores: list[float], first: list[float], last: list[float], random: list[float], most: list[float]
) -> None:
    """A score of exactly 0 is not an acceptance; a candidate that the base forbids is never taken, however liked."""
    assert chosen(FirstAccepted(), scores, BASE) == first
    assert chosen(FirstAccepted("last"), scores, BASE) == last
    assert chosen(RandomAccepted(), scores, BASE) == [round(p, 6) for p in random]
    assert chosen(MostAccepted(), scores, BASE) == most


def test_the_weight_is_the_probability_to_exceed() -> None:
    rule = FirstAccepted()
    scores = torch.logit(torch.tensor([[0.1, 0.5, 0.7], [0.29, 0.31, 0.9]]))
    found = rule.weigh(scores, torch.tensor([[0.5], [0.3]])) > 0
    assert found.tolist() == [[False, False, True], [False, True, True]]
    for weight in (1.0, -0.1, float("nan"), 2.0):
        with pytest.raises(OptionError, match="not an acceptance threshold"):
            rule.check_weight(weight)
    with pytest.raises(OptionError, match="Accepted: first, last"):
        FirstAccepted("middle")
