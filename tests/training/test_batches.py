"""Which pairs meet in a batch, in what order, and what the batch looks like."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from trimtab.training.pairs.batches import PairCollator, evaluation_order, training_order
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


def rows(*pairs: TokenPair, pad: int = 0) -> dict[str, torch.Tensor]:
    names = ("prompt_ids", "chosen_ids", "rejected_ids")
    return PairCollator(pad)([{name: list(getattr(pair, name)) for name in names} for pair in pairs])


def test_a_batch_by_hand() -> None:
    batch = rows(TokenPair((1, 4), (5, 2), (6, 6, 2)))
    assert batch["input_ids"].tolist() == [[1, 4, 5, 2, 0], [1, 4, 6, 6, 2]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]
    assert batch["response_mask"].tolist() == [
        [False, False, True, True, False],
        [False, False, True, True, True],
    ]
    assert (batch["chosen_rows"].tolist(), batch["rejected_rows"].tolist()) == ([0], [1])


def test_masks_come_from_lengths_even_where_the_pad_is_the_end() -> None:
    batch = rows(TokenPair((1, 2), (5, 2), (6, 6, 2)), pad=2)
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]
    assert batch["response_mask"][0].tolist() == [False, False, True, True, False]


def test_a_response_of_several_pairs_is_one_row() -> None:
    batch = rows(TokenPair((1,), (5,), (6,)), TokenPair((1,), (5,), (7,)), TokenPair((1,), (6,), (5,)))
    assert len(batch["input_ids"]) == 3
    assert batch["chosen_rows"].tolist() == [0, 0, 1]
    assert batch["rejected_rows"].tolist() == [1, 2, 0]


def test_the_same_response_to_another_prompt_is_another_row() -> None:
    batch = rows(TokenPair((1,), (5,), (6,)), TokenPair((2,), (5,), (6,)))
    assert len(batch["input_ids"]) == 4


def test_prompt_and_response_that_join_alike_are_not_the_same_row() -> None:
    batch = rows(TokenPair((1, 5), (6,), (7,)), TokenPair((1,), (5, 6), (7,)))
    assert len(batch["input_ids"]) == 4
    assert batch["response_mask"][0].tolist() != batch["response_mask"][2].tolist()


def test_the_first_tensor_has_the_length_of_the_batch() -> None:
    batch = rows(TokenPair((1,), (5,), (6,)), TokenPair((1,), (5,), (7,)))
    assert len(next(iter(batch.values()))) == 2


@pytest.mark.parametrize("share", [True, False])
def test_sharing_changes_the_order_and_not_the_pairs(share: bool) -> None:
    assert set(order(RIVALS, share_rows=share)) == set(range(100))
