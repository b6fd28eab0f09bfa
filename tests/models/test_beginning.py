"""A beginning-of-sequence token stands in front once."""

from __future__ import annotations

import pytest

from trimtab.models.tokenizing.beginning import begun_once

CASES = {
    "a habit that was not written": ([5, 6], 1, [1], False, ([1], [5, 6])),
    "a habit that a template wrote too": ([1, 5], 1, [1], False, ([1], [5])),
    "written three times": ([1, 1, 1, 5], 1, [1], False, ([1], [5])),
    "a habit of two tokens": ([7, 8, 7, 8, 5], None, [7, 8], False, ([7, 8], [5])),
    "a habit of which only the BOS was written": ([1, 5], 1, [1, 8], False, ([1, 8], [5])),
    "no habit, and a text that begins with it": ([1, 5], 1, [], False, ([], [1, 5])),
    "no habit, but the template wrote it": ([1, 1, 5], 1, [], True, ([1], [5])),
    "no BOS at all": ([5, 6], None, [], True, ([], [5, 6])),
    "nothing": ([], 1, [1], True, ([1], [])),
}


@pytest.mark.parametrize("name", CASES)
def test_it_stands_in_front_once(name: str) -> None:
    token_ids, bos, habit, as_written, expected = CASES[name]
    assert begun_once(token_ids, bos, habit, as_written=as_written) == expected
    start, following = expected
    assert begun_once([*start, *following], bos, habit, as_written=as_written) == expected, "idempotent"
