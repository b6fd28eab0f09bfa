"""The forms of a guide: read from its card, and which weights mean something in them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.errors import CheckpointError, OptionError, TrimtabError
from trimtab.mixing.forms import PRODUCT, SHIFT, check_negative
from trimtab.storage.cards import GuideCard

READ: dict[str, tuple[dict[str, Any], str, str | None, str]] = {
    "no card": ({}, "arm", None, PRODUCT),
    "a card that is silent": ({"kind": "parm"}, "parm", None, PRODUCT),
    "a card": ({"guide_form": "shift"}, "arm", None, SHIFT),
    "asked for": ({"guide_form": "shift"}, "arm", "product", PRODUCT),
    "a policy": ({}, "policy", None, SHIFT),
    "a policy asked as what it is": ({"guide_form": "shift"}, "policy", "shift", SHIFT),
}


def read(card: dict[str, Any], kind: str) -> GuideCard:
    return GuideCard.of_mapping({"format": 1, **card}, Path("guide.json"), kind=kind)


@pytest.mark.parametrize("name", READ)
def test_the_form_is_the_one_asked_for_else_the_card_s(name: str) -> None:
    card, kind, asked, wanted = READ[name]
    assert read(card, kind).form(asked) == wanted


REFUSED: dict[str, tuple[dict[str, Any], str, str | None, type[TrimtabError], str]] = {
    "a card of another form": ({"guide_form": "sum"}, "arm", None, CheckpointError, "accepted: product, shift"),
    "a form that is not text": ({"guide_form": ["shift"]}, "arm", None, CheckpointError, "accepted: product, shift"),
    "a policy's card": ({"guide_form": "product"}, "policy", None, CheckpointError, "a tuned policy is a shift"),
    "a policy as a product": ({}, "policy", "product", OptionError, "is always a shift"),
    "another form": ({}, "arm", "shfit", OptionError, "Did you mean 'shift'"),
    "an agent": ({}, "agent", "shift", OptionError, "has no form"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_form_that_cannot_be_is_refused(name: str) -> None:
    card, kind, asked, error, sentence = REFUSED[name]
    with pytest.raises(error) as found:
        read(card, kind).form(asked)
    assert sentence in str(found.value)


KINDS = {"near": PRODUCT, "far": PRODUCT, "moved": SHIFT, "agent": None}

ACCEPTED: dict[str, tuple[dict[str, float], float | None, float | None]] = {
    "none": ({}, None, 0.0),
    "positive": ({"near": 1.0, "far": 0.5}, 1.0, 0.0),
    "zero": ({"near": 0.0, "far": -0.0}, 1.0, 0.0),
    "a negative shift": ({"moved": -3.0, "near": 0.0}, 1.0, 0.0),
    "a guide without a form": ({"agent": -1.0, "unknown": -1.0}, 1.0, 0.0),
    "contrastive decoding": ({"near": -1.0}, 1.0, 0.1),
    "an expert and an anti-expert": ({"near": 1.0, "far": -1.0}, 1.0, 0.0),
    "in decimals": ({"near": 3.3, "far": -3.3 + 1e-9}, None, None),
    "greedy": ({"near": 1.0, "far": -1.0}, 0.0, 0.0),
    "as sharp as the temperature": ({"near": -0.3}, 0.7, 0.0),
    "hot": ({"near": 1.0, "far": -1.0}, 1.5, 0.0),
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_weights_that_leave_the_base_its_share_are_accepted(name: str) -> None:
    weights, temperature, plausibility = ACCEPTED[name]
    check_negative(weights, KINDS, temperature=temperature, plausibility=plausibility)


CANCELLED: dict[str, tuple[dict[str, float], float | None, float | None]] = {
    "alone": ({"near": -1.0}, 1.0, 0.0),
    "a little": ({"near": -0.1}, 1.0, 0.0),
    "greedy": ({"near": -0.1}, 0.0, 0.0),
    "where the temperature is not known": ({"near": -0.1}, None, 0.0),
    "where there is no mask": ({"near": -1.0}, 1.0, None),
    "beside too little": ({"near": -1.0, "far": 0.5}, 1.0, 0.0),
    "beside a shift": ({"near": -1.0, "moved": 2.0}, 1.0, 0.0),
    "flatter than the temperature": ({"near": -0.4}, 0.7, 0.0),
    "hot": ({"near": -0.1}, 2.0, 0.0),
}


@pytest.mark.parametrize("name", CANCELLED)
def test_a_negative_weight_that_cancels_the_base_is_refused_with_the_way_out(name: str) -> None:
    weights, temperature, plausibility = CANCELLED[name]
    with pytest.raises(OptionError) as error:
        check_negative(weights, KINDS, temperature=temperature, plausibility=plausibility)
    told = str(error.value)
    assert told.startswith(f"Guide near is a product (base · guide^weight), and its weight is {weights['near']:g}")
    assert "use it in the form shift" in told
    assert ("plausibility" in told) == (plausibility is not None)


def test_the_most_negative_product_is_named() -> None:
    with pytest.raises(OptionError, match="Guide far is a product"):
        check_negative({"near": -0.5, "far": -0.7}, KINDS, temperature=1.0, plausibility=0.0)


@given(
    st.dictionaries(st.sampled_from(list(KINDS)), st.floats(-1e6, 1e6)),
    st.none() | st.floats(0, 2),
    st.none() | st.floats(0, 1),
)
def test_what_is_refused_has_a_negative_product_and_is_accepted_as_shifts(
    weights: dict[str, float], temperature: float | None, plausibility: float | None
) -> None:
    check_negative(weights, dict.fromkeys(KINDS, SHIFT), temperature=temperature, plausibility=plausibility)
    if _refuses(weights, temperature, plausibility):
        products = [weights.get(name, 0.0) for name in ("near", "far")]
        assert min(products) < 0
        assert math.fsum(products) < 0


def _refuses(weights: dict[str, float], temperature: float | None, plausibility: float | None) -> bool:
    try:
        check_negative(weights, KINDS, temperature=temperature, plausibility=plausibility)
    except OptionError:
        return True
    return False
