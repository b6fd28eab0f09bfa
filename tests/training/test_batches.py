"""Which pairs meet in a batch, in what order, and what the batch looks like."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from trimtab.training.pairs.batches import PairCollator, evaluation_order, packed_length, packed_of, training_order
from trimtab.training.pairs.tokens import TokenPair


def pairs_of(*lengths: int) -> list[TokenPair]:
    return [TokenPair((i,), (5,) * length, (6,)) for i, length in enumerate(lengths)]


MANY = pairs_of(*[(7 * i) % 31 + 1 for i in range(100)])
RIVALS = [TokenPair((i // 5,), (7, i // 5), (8, i)) for i in range(100)]
"""Twenty preferred responses with five rivals each."""


def order(pairs: list[TokenPair], num_pairs: int = 0, **changes: int) -> list[int]:
    options = {"step_size": 8, "micro_size": 4, "seed": 0, **changes}
    return training_order(pairs, num_pairs=num_pairs or len(pairs), **options)  # type: ignore[arg-type]


def test_every_pair_is_seen_and_the_last_step_is_filled() -> None:
    found = order(MANY)
    assert len(found) == 104
    assert set(found) == set(range(100))
    assert sorted(Counter(found).values())[-4:] == [2, 2, 2, 2], "four pairs of the next pass fill the last step"


def test_passes_are_whole_and_shuffled_apart() -> None:
    found = order(MANY, num_pairs=200)
    assert len(found) == 200
    assert set(found[:100]) == set(found[100:]) == set(range(100))
    assert found[:100] != found[100:]


def test_the_order_depends_on_the_seed_alone() -> None:
    assert order(MANY) == order(MANY) != order(MANY, seed=1)


def test_a_longer_run_begins_like_a_shorter_one() -> None:
    assert order(MANY, num_pairs=200)[:96] == order(MANY)[:96]


def test_fewer_pairs_than_a_step_still_make_one() -> None:
    found = Counter(order(MANY[:3]))
    assert sorted(found.values()) == [2, 3, 3]


def test_pairs_of_like_length_share_a_step() -> None:
    def padding(found: list[int]) -> int:
        steps = [[MANY[i].length for i in found[start : start + 8]] for start in range(0, 96, 8)]
        return sum(max(step) * 8 - sum(step) for step in steps)

    assert padding(order(MANY)) < padding(list(range(100))) / 4


def test_what_like_length_means_is_said_by_whoever_lays_the_rows() -> None:
    pairs = [TokenPair((1,), (5,) * long, (6,) * short) for long, short in [(30, 1), (20, 19)] * 8]

    def uneven(found: list[int]) -> int:
        sizes = [packed_length(pairs[i]) for i in found]
        return sum(max(sizes[at : at + 8]) - min(sizes[at : at + 8]) for at in (0, 8))

    assert (packed_length(pairs[0]), packed_length(pairs[1])) == (32, 40)
    packed = training_order(pairs, num_pairs=16, step_size=8, micro_size=4, seed=0, length=packed_length)
    assert uneven(packed) == 0


def test_steps_of_like_length_do_not_follow_each_other() -> None:
    found = order(MANY)
    longest = [max(MANY[i].length for i in found[start : start + 8]) for start in range(0, 96, 8)]
    assert longest not in (sorted(longest), sorted(longest, reverse=True))


def test_rivals_of_one_response_stand_together() -> None:
    found = order(RIVALS)
    micro = [{RIVALS[i].chosen_ids for i in found[start : start + 4]} for start in range(0, 80, 4)]
    apart = order(RIVALS, share_rows=False)
    assert sum(map(len, micro)) <= 36, "sixteen full batches of one response, four of leftovers"
    assert sum(len({RIVALS[i].chosen_ids for i in apart[start : start + 4]}) for start in range(0, 80, 4)) > 55


def test_batches_of_rivals_are_sorted_by_length_too() -> None:
    lengths = [(7 * group) % 31 + 1 for group in range(24)]
    rivals = [TokenPair((group,), (7,) * lengths[group], (8, i)) for group in range(24) for i in range(4)]
    found = order(rivals)
    gaps = [abs(rivals[found[start]].length - rivals[found[start + 4]].length) for start in range(0, 96, 8)]
    assert max(gaps) <= 2, "the two batches of a step are of like length"


def test_evaluation_sees_every_pair_once_the_longest_first() -> None:
    found = evaluation_order(MANY)
    assert sorted(found) == list(range(100))
    lengths = [MANY[i].length for i in found]
    assert lengths == sorted(lengths, reverse=True)


def rows(*pairs: TokenPair) -> dict[str, torch.Tensor]:
    names = ("prompt_ids", "chosen_ids", "rejected_ids")
    return PairCollator()([{name: list(getattr(pair, name)) for name in names} for pair in pairs])


def responses(batch: dict[str, torch.Tensor]) -> dict[int, list[int]]:
    """The tokens that are predicted, by the number of their response."""
    found: dict[int, list[int]] = {}
    for number, token in zip(batch["rows"].tolist(), batch["token_ids"].tolist(), strict=True):
        found.setdefault(number, []).append(token)
    return found


def test_a_batch_by_hand() -> None:
    batch = rows(TokenPair((1, 4), (5, 2), (6, 6, 2)), TokenPair((1, 9), (5,), (7,)))
    assert batch["input_ids"].tolist() == [[1, 4, 5, 4, 6, 6], [1, 9, 9, 0, 0, 0]]
    assert batch["positions"].tolist() == [[0, 1, 2, 1, 2, 3], [0, 1, 1, 0, 0, 0]]
    assert batch["segments"].tolist() == [[0, 1, 1, 2, 2, 2], [0, 1, 2, -1, -1, -1]]
    assert batch["predicting"].tolist() == [[False, *[True] * 5], [False, True, True, *[False] * 3]]
    assert responses(batch) == {0: [5, 2], 1: [6, 6, 2], 2: [5], 3: [7]}
    assert (batch["chosen_rows"].tolist(), batch["rejected_rows"].tolist()) == ([0, 2], [1, 3])
    assert packed_of(batch).num_tokens == 9


def test_what_fills_a_row_up_is_seen_by_no_token_of_it() -> None:
    batch = rows(TokenPair((1, 4), (5, 2), (6, 6, 2)), TokenPair((1, 9), (5,), (7,)))
    seen = packed_of(batch).visible
    assert not bool(seen[1, :3, 3:].any())
    assert seen[1, 1].tolist() == [True, True, False, False, False, False]


def test_a_response_of_several_pairs_is_run_once() -> None:
    batch = rows(TokenPair((1,), (5,), (6,)), TokenPair((1,), (5,), (7,)), TokenPair((1,), (6,), (5,)))
    assert batch["token_ids"].tolist() == [5, 6, 7]
    assert batch["chosen_rows"].tolist() == [0, 0, 1]
    assert batch["rejected_rows"].tolist() == [1, 2, 0]


def test_the_same_response_to_another_prompt_is_another() -> None:
    batch = rows(TokenPair((1,), (5,), (6,)), TokenPair((2,), (5,), (6,)))
    assert (len(batch["input_ids"]), len(batch["token_ids"])) == (2, 4)


def test_prompt_and_response_that_join_alike_are_not_the_same() -> None:
    batch = rows(TokenPair((1, 5), (6,), (7,)), TokenPair((1,), (5, 6), (7,)))
    assert responses(batch) == {0: [6], 1: [7], 2: [5, 6], 3: [7]}


def test_behind_no_prompt_the_first_token_is_predicted_from_nothing() -> None:
    batch = rows(TokenPair((), (5, 6), (5,)), TokenPair((), (5, 6), (7, 8, 9)))
    assert batch["input_ids"].tolist() == [[5, 5], [7, 8]]
    assert responses(batch) == {0: [6], 2: [8, 9]}
    assert batch["chosen_rows"].tolist() == [0, 0]
    assert batch["rejected_rows"].tolist() == [1, 2]


def test_the_first_tensor_has_the_length_of_the_batch() -> None:
    batch = rows(TokenPair((1,), (5,), (6,)), TokenPair((1,), (5,), (7,)))
    assert len(next(iter(batch.values()))) == 2


@pytest.mark.parametrize("share", [True, False])
def test_sharing_changes_the_order_and_not_the_pairs(share: bool) -> None:
    assert set(order(RIVALS, share_rows=share)) == set(range(100))
