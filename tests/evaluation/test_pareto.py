"""Fronts and volumes against brute force and areas by hand."""

from __future__ import annotations

import numpy as np
import pytest

from trimtab.errors import InputError, OptionError
from trimtab.evaluation.comparison.pareto import front, hypervolume, mean_inner_product


def test_the_front_keeps_what_nothing_beats() -> None:
    points = [(0, 3), (1, 1), (2, 2), (3, 0), (2, 1), (2, 2), (3, -1)]
    assert front(points) == [0, 2, 3, 5]
    assert front([]) == []
    assert front([(1, 1, 1), (1, 1, 2)]) == [1]


def test_an_area_by_hand() -> None:
    pytest.importorskip("moarchiving")
    assert hypervolume([(1, 2), (2, 1)], (0, 0)) == pytest.approx(3)
    assert hypervolume([(1, 2), (2, 1), (1, 1), (2, 1)], (0, 0)) == pytest.approx(3)
    assert hypervolume([(1, 2), (2, 1)], (-1, 0)) == pytest.approx(2 * 2 + 1 * 1)
    assert hypervolume([(1, 2, 3)], (0, 0, 1)) == pytest.approx(4)


def test_points_below_the_reference_cover_nothing() -> None:
    pytest.importorskip("moarchiving")
    assert hypervolume([(-1, 5), (0, 5)], (0, 0)) == 0
    assert hypervolume([], (0, 0)) == 0
    assert hypervolume([(-1, 5), (1, 1)], (0, 0)) == pytest.approx(1)


@pytest.mark.parametrize("num_objectives", [2, 3, 4])
def test_a_volume_against_counting(num_objectives: int) -> None:
    pytest.importorskip("moarchiving")
    rng = np.random.default_rng(num_objectives)
    points = rng.integers(0, 5, size=(12, num_objectives))
    cells = np.stack(np.meshgrid(*[np.arange(5)] * num_objectives), axis=-1).reshape(-1, num_objectives)
    covered = sum(bool((points > cell).all(axis=1).any()) for cell in cells)
    assert hypervolume(points.tolist(), [0] * num_objectives) == pytest.approx(covered)


def test_the_mean_inner_product() -> None:
    assert mean_inner_product([(1, 0), (0.5, 0.5)], [(2, 9), (4, 2)]) == pytest.approx((2 + 3) / 2)


def test_bad_input_is_refused() -> None:
    with pytest.raises(InputError, match=r"\[2, 3\] objectives"):
        front([(1, 2), (1, 2, 3)])
    with pytest.raises(InputError, match="not finite"):
        front([(1, float("nan"))])
    with pytest.raises(OptionError, match="2 to 4 finite numbers"):
        hypervolume([(1,)], (0,))
    with pytest.raises(InputError, match="2 objectives and the reference point 3"):
        hypervolume([(1, 2)], (0, 0, 0))
    with pytest.raises(InputError, match="one reward vector for each"):
        mean_inner_product([(1, 0)], [(1, 0), (0, 1)])
