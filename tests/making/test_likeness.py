"""Which answers are left out because they say nothing of their prompt."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.making.likeness import plain, repeated, similarity, stock

TEXTS = st.lists(
    st.sampled_from(["", "A fine day.", "a  FINE day.", "A fine day!", "Rain.", "Rain again.", "Rain, again"])
)


def test_case_and_spaces_make_no_other_answer() -> None:
    assert similarity("The sea\nis calm.", "the SEA is  calm.") == 1
    assert repeated([["The sea\nis calm.", "the SEA is  calm."]], 1) == {(0, 1)}


def test_likeness_is_the_share_of_runs_in_common() -> None:
    assert similarity("abcd", "efgh") == 0
    assert similarity("abcde", "abcdx") == pytest.approx(1 / 3)  # abcd of abcd, bcde, bcdx
    assert similarity("猫が好きです", "猫が好きでした") == pytest.approx(2 / 5)


@pytest.mark.parametrize(("most", "left_out"), [(0.3, {(0, 1)}), (0.34, set())])
def test_an_answer_more_alike_than_that_is_left_out(most: float, left_out: set[tuple[int, int]]) -> None:
    assert repeated([["abcde", "abcdx"]], most) == left_out


def test_what_both_sentences_gave_is_neithers() -> None:
    assert repeated([["Yes.", "Of course!"], ["No.", "yes."]], 0.8) == {(0, 0), (1, 1)}


def test_an_answer_like_one_that_is_left_out_anyway_stays() -> None:
    """a is like b, and b like c, but a is not like c."""
    a, b, c = "abcdefgh", "abcdefghijkl", "efghijkl"
    assert similarity(a, b) > 0.5 < similarity(b, c)
    assert similarity(a, c) < 0.5
    assert repeated([[a, b, c]], 0.5) == {(0, 1)}


@given(TEXTS, st.sampled_from([0.0, 0.5, 0.8, 1.0]))
def test_no_two_that_stay_are_alike_and_each_that_goes_is_like_one_that_stays(texts: list[str], most: float) -> None:
    out = {place for _, place in repeated([texts], most)}
    stay = [place for place, text in enumerate(texts) if text and place not in out]

    def alike(one: int, another: int) -> bool:
        return plain(texts[one]) == plain(texts[another]) or similarity(texts[one], texts[another]) > most

    assert not any(alike(one, another) for one in stay for another in stay if one != another)
    assert all(any(alike(one, another) for another in stay if another < one) for one in out)
    assert not any(texts[place] == "" for place in out)


def test_a_text_that_answers_many_prompts() -> None:
    answers = {"p": ["I cannot.", "A"], "q": ["i  cannot.", "i cannot."], "r": ["I cannot.", ""], "s": ["", "B"]}
    assert stock(answers, 2) == {"i cannot."}
    assert stock(answers, 3) == set()
    assert stock(answers, 0) == set()
