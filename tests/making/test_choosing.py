"""Which two answers become a pair: the laws that every choice keeps, and an account that loses nothing."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.errors import DataError
from trimtab.making.choosing import (
    ALIKE,
    CLOSE,
    CUT,
    EMPTY,
    STOCK,
    UNLIKE,
    UNSCORED,
    Account,
    Chooser,
    Pair,
    by_reward,
    by_sentence,
    candidates,
    kept_answers,
    length_ratio,
    spread,
)
from trimtab.making.sampling import Samples
from trimtab.making.settings import AWAY, BASE, TOWARDS, ChoiceSettings


def said(*texts: str, prompt: str = "p") -> Samples:
    return Samples(prompt, {BASE: texts})


def chosen_by_reward(
    samples: Sequence[Samples], rewards: Sequence[Sequence[float | None]], settings: ChoiceSettings
) -> tuple[list[list[Pair]], Account]:
    account = Account()
    kept = kept_answers(samples, settings, account)
    chooser = Chooser(settings, account)
    return [chooser.choose(one) for one in by_reward(kept, rewards, settings, account)], account


def test_the_answers_that_differ_most_come_first() -> None:
    samples = [said("aaaa", "bbbb", "cccc", "dddd")]
    (pairs,), account = chosen_by_reward(samples, [[1.0, 4.0, 3.0, 1.5]], ChoiceSettings(min_margin=1.0))
    assert [(pair.chosen, pair.rejected, pair.margin) for pair in pairs] == [
        ("bbbb", "aaaa", 3.0),
        ("cccc", "dddd", 1.5),
    ]
    assert account.pairs_out[CLOSE] == 1 + 0  # dddd over aaaa


def test_the_least_margin_is_half_the_spread_within_prompts_where_nobody_says() -> None:
    """Prompts whose answers are all good are no reason to ask for more of a margin."""
    samples = [said("aaaa", "bbbb", prompt="p"), said("cccc", "dddd", prompt="q")]
    assert spread([[0.0, 1.0], [100.0, 101.0]]) == pytest.approx(0.5**0.5)
    (first, second), account = chosen_by_reward(samples, [[0.0, 1.0], [100.0, 100.2]], ChoiceSettings())
    assert account.min_margin == pytest.approx(spread([[0.0, 1.0], [100.0, 100.2]]) / 2)
    assert (len(first), len(second)) == (1, 0)


def test_what_is_left_out_is_counted_once_with_its_reason() -> None:
    stock = [said("I cannot.", f"text number {index}", prompt=f"p{index}") for index in range(3)]
    samples = [*stock, said("", "the same", "The  same", "other", prompt="last")]
    rewards = [[0.0, 1.0]] * 3 + [[None, 1.0, 1.0, None]]
    settings = ChoiceSettings(max_prompts_per_response=2, min_margin=1)
    _, account = chosen_by_reward(samples, rewards, settings)
    assert account.answers_out == {STOCK: 3, EMPTY: 1, ALIKE: 1, UNSCORED: 1}
    assert account.num_answers == 10
    assert account.num_prompts == 4


def test_answers_that_ran_into_the_limit_are_used_or_left_out_and_counted() -> None:
    samples = [
        Samples("p", {TOWARDS: ("aaaa", ""), AWAY: ("bbbb", "cccc")}, cut=frozenset({1, 3})),
        Samples("unreadable", {}, problem="too long"),
    ]
    for is_used, left, out in (
        (True, ["aaaa", "bbbb", "cccc"], {EMPTY: 1}),
        (False, ["aaaa", "bbbb"], {EMPTY: 1, CUT: 1}),
    ):
        account = Account()
        kept, unreadable = kept_answers(samples, ChoiceSettings(cut_answers=is_used), account)
        assert [text for texts in kept.answers.values() for _, text in texts] == left
        assert unreadable.answers == {}
        assert account.answers_out == out
        assert account.num_cut == 2


def test_a_file_that_does_not_say_which_ran_into_the_limit() -> None:
    account = Account()
    kept_answers([said("aaaa")], ChoiceSettings(), account)
    assert account.num_cut is None
    with pytest.raises(DataError, match=r"are to be left out \(cut_answers\).*overwrite"):
        kept_answers([said("aaaa")], ChoiceSettings(cut_answers=False), Account())


def test_answers_of_unlike_length_are_no_pair() -> None:
    samples = [said("aaaa", "bbbbbbbbbb")]
    (pairs,), account = chosen_by_reward(samples, [[0.0, 1.0]], ChoiceSettings(min_length_ratio=0.5))
    assert pairs == []
    assert account.pairs_out[UNLIKE] == 1
    assert len(chosen_by_reward(samples, [[0.0, 1.0]], ChoiceSettings(min_length_ratio=0.4))[0][0]) == 1


def test_lengths_are_evened_out_where_prompts_offer_both() -> None:
    """Each prompt has a good long and a slightly less good short answer: a choice by margin takes the long one only."""
    samples = [said("bad.....", "good......", "well", prompt=f"{index}") for index in range(10)]
    samples = [
        Samples(one.prompt, {BASE: tuple(f"{text}{index}" for text in one.texts)}) for index, one in enumerate(samples)
    ]
    rewards = [[0.0, 1.0, 0.9]] * 10
    settings = {"max_pairs": 1, "min_margin": 0.5, "min_length_ratio": 0.4, "max_similarity": 1.0}
    blind, _ = chosen_by_reward(samples, rewards, ChoiceSettings(balance_lengths=False, **settings))
    even, _ = chosen_by_reward(samples, rewards, ChoiceSettings(**settings))
    assert sum(pair.excess > 0 for (pair,) in blind) == 10
    assert sum(pair.excess > 0 for (pair,) in even) == 5


def test_a_reward_that_is_the_length_keeps_its_pairs() -> None:
    samples = [said("a" * 8, "b" * 10, prompt=f"{index}") for index in range(5)]
    pairs, _ = chosen_by_reward(samples, [[8.0, 10.0]] * 5, ChoiceSettings(max_prompts_per_response=0))
    assert [pair.excess for (pair,) in pairs] == [2] * 5


def test_two_sentences_pair_one_side_with_the_other() -> None:
    samples = [Samples("p", {TOWARDS: ("Yes, gladly!", "Sure thing."), AWAY: ("No, never ever.", "Go away now")})]
    account = Account()
    kept = kept_answers(samples, ChoiceSettings(), account)
    (possible,) = by_sentence(kept)
    assert len(possible) == 4
    pairs = Chooser(ChoiceSettings(), account).choose(possible)
    assert {pair.chosen for pair in pairs} == set(samples[0].answers[TOWARDS])
    assert {pair.rejected for pair in pairs} == set(samples[0].answers[AWAY])


ANSWERS = st.lists(st.text(alphabet="abc ", max_size=12), min_size=2, max_size=6)
PROMPTS = st.lists(st.tuples(ANSWERS, st.integers(0, 2**16)), min_size=1, max_size=5)


@given(
    PROMPTS,
    st.integers(1, 3),
    st.sampled_from([None, 0.5, 2.0]),
    st.sampled_from([0.0, 0.6, 1.0]),
    st.booleans(),
)
def test_laws_of_a_choice(
    drawn: list[tuple[list[str], int]], max_pairs: int, margin: float | None, ratio: float, balance: bool
) -> None:
    settings = ChoiceSettings(
        max_pairs=max_pairs, min_margin=margin, min_length_ratio=ratio, balance_lengths=balance, max_similarity=1.0
    )
    samples = [said(*(text.strip() for text in texts), prompt=str(index)) for index, (texts, _) in enumerate(drawn)]
    rewards = [
        [random.Random(seed + place).choice([0.0, 1.0, 2.5, None]) for place in range(len(texts))]
        for texts, seed in drawn
    ]
    chosen, account = chosen_by_reward(samples, rewards, settings)
    assert (chosen, account) == chosen_by_reward(samples, rewards, settings)
    for one, values, pairs in zip(samples, rewards, chosen, strict=True):
        texts = [text for pair in pairs for text in (pair.chosen, pair.rejected)]
        assert len(texts) == len(set(texts)) <= 2 * max_pairs
        assert set(texts) <= set(one.texts) - {""}
        for pair in pairs:
            assert pair.margin > 0
            assert pair.margin >= (account.min_margin or 0)
            assert length_ratio(pair.chosen, pair.rejected) >= ratio
            assert pair.scores is not None
            assert {pair.scores[0], pair.scores[1]} <= {value for value in values if value is not None}


def test_a_judge_is_asked_about_no_answer_twice_and_of_pairs_alike_in_length_first() -> None:
    account = Account()
    settings = ChoiceSettings(max_pairs=2, min_length_ratio=0.5)
    (kept,) = kept_answers([said("a" * 10, "b" * 3, "c" * 9, "d" * 4, "e" * 100)], settings, account)
    asked = [(first[1][0], second[1][0]) for first, second in candidates(kept, settings, account)]
    assert asked == [("a", "c"), ("b", "d")]
