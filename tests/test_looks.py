"""How many candidates a pass looks at: as many as pay, by what passes take and how often one is accepted."""

from __future__ import annotations

import pytest
import torch

from trimtab.core import Candidates
from trimtab.decoding.looks import WIDTHS, Looks, look_cost
from trimtab.mixing.rules import NEVER
from trimtab.mixing.selecting import Begun, Walk
from trimtab.models.forward.times import guessed, guessed_elsewhere
from trimtab.models.tabular import TabularModel


def seen(looks: Looks, verdicts: list[list[float]], left: tuple[int, ...] = ()) -> None:
    """A walk that came to these weighted scores; NEVER where nothing looked."""
    weighted = torch.tensor(verdicts)
    scores = weighted.masked_fill(weighted == NEVER, torch.nan)
    candidates = Candidates(torch.zeros_like(weighted, dtype=torch.int64), weighted)
    waiting = {row: Begun(scores[row], weighted[row], 1) for row in left}
    counts = torch.full((len(verdicts),), weighted.shape[1])
    looks.note(Walk(candidates, counts, scores, weighted, torch.zeros(len(verdicts), dtype=torch.bool), True, waiting))


def learnt(share: float, cost: object = None) -> Looks:
    """After many candidates of which such a share was accepted."""
    looks = Looks(cost or guessed)  # type: ignore[arg-type]
    torch.manual_seed(0)
    for _ in range(400):
        first = int(torch.distributions.Geometric(share).sample()) if share < 1 else 0
        row = [-1.0] * min(first, 40) + [1.0] * (first < 40)
        seen(looks, [row + [NEVER] * (41 - len(row))])
    return looks


@pytest.mark.parametrize("share", [0.05, 0.3, 0.7, 1.0])
def test_the_rate_is_the_share_of_the_candidates_met_that_was_accepted(share: float) -> None:
    assert learnt(share).rate == pytest.approx(share, abs=0.12)


def test_what_is_seldom_accepted_is_looked_at_widely_and_many_rows_narrowly() -> None:
    widths = [learnt(share).width(1) for share in (1.0, 0.7, 0.3, 0.05)]
    assert widths == sorted(widths)
    assert widths[0] == 1
    assert widths[-1] > 8
    assert learnt(0.3).width(64) < learnt(0.3).width(1)


def test_where_many_columns_cost_what_one_does_all_are_looked_at() -> None:
    assert learnt(0.3, lambda num: 1.0).width(16) == WIDTHS[-1]
    assert learnt(0.3, lambda num: float(num)).width(16) == 1
    assert learnt(0.3, guessed_elsewhere).width(1) > learnt(0.3).width(1)


def test_a_row_that_is_still_looked_at_says_nothing_yet() -> None:
    looks = Looks(guessed)
    before = looks.rate
    seen(looks, [[-1.0, -1.0, NEVER]], left=(0,))
    assert looks.rate == before
    seen(looks, [[-1.0, -1.0, NEVER], [1.0, 1.0, -1.0]], left=(0,))
    assert looks.rate > before, "what lies behind the first accepted candidate was counted"


def test_nothing_that_was_looked_at_is_no_rate_of_nought() -> None:
    looks = Looks(guessed)
    before = looks.rate
    seen(looks, [[NEVER, NEVER]])
    assert looks.rate == before


def test_a_session_that_does_not_say_what_passes_take_is_guessed_about() -> None:
    session = TabularModel.random(5, seed=0).open()
    assert look_cost(session, 8) > look_cost(session, 1) > 0
