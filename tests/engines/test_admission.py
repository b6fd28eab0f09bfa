"""A request's weights: what is read, what is refused with a sentence, and what a worker makes of anything at all."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.engines.vllm.admission import as_extra_args, check_weights, read_weights, row_of
from trimtab.errors import OptionError

DEFAULTS = {"kind": 0.5, "short": 0.0}

READ: dict[str, tuple[Any, list[float]]] = {
    "nothing": (None, [0.5, 0.0]),
    "no key": ({}, [0.5, 0.0]),
    "none": ({"guidance": None}, [0.5, 0.0]),
    "no guide": ({"guidance": "{}"}, [0.5, 0.0]),
    "one guide": ({"guidance": '{"short": 2}'}, [0.5, 2.0]),
    "in another order": ({"guidance": '{"short": -1.5, "kind": 0}'}, [0.0, -1.5]),
    "beside what vLLM puts there": ({"guidance": '{"kind": 1}', "kv_transfer_params": {}}, [1.0, 0.0]),
}


@pytest.mark.parametrize("name", READ)
def test_weights_are_read_in_the_order_of_the_guides(name: str) -> None:
    extra_args, wanted = READ[name]
    assert list(read_weights(extra_args, DEFAULTS).values()) == wanted
    assert row_of(extra_args, DEFAULTS) == wanted


REFUSED: dict[str, tuple[Any, str]] = {
    "a misspelt key": ({"guidence": "{}"}, "Unknown key of vllm_xargs 'guidence'. Did you mean 'guidance'"),
    "a misspelt guide": ({"guidance": '{"kinf": 1}'}, "Unknown guide 'kinf'. Did you mean 'kind'"),
    "an object": ({"guidance": {"kind": 1}}, "give JSON in a text"),
    "a number": ({"guidance": 1.0}, "give JSON in a text"),
    "a list": ({"guidance": "[1, 2]"}, "give JSON in a text"),
    "no JSON": ({"guidance": "kind=1"}, "which is no JSON"),
    "deep JSON": ({"guidance": "[" * 100_000}, "which is no JSON"),
    "a text for a weight": ({"guidance": '{"kind": "1"}'}, "give a finite number"),
    "true for a weight": ({"guidance": '{"kind": true}'}, "give a finite number"),
    "NaN": ({"guidance": '{"kind": NaN}'}, "give a finite number"),
    "infinity": ({"guidance": '{"kind": -Infinity}'}, "give a finite number"),
    "more than float32 holds": ({"guidance": '{"kind": 3.5e38}'}, "give a finite number"),
    "a number of 400 digits": ({"guidance": '{"kind": %s}' % ("9" * 400)}, "give a finite number"),
    "a number of 9,000 digits": ({"guidance": '{"kind": %s}' % ("9" * 9000)}, "which is no JSON"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_wrong_is_refused_with_a_sentence_and_never_in_a_worker(name: str) -> None:
    extra_args, sentence = REFUSED[name]
    with pytest.raises(OptionError) as error:
        read_weights(extra_args, DEFAULTS)
    assert sentence in str(error.value)
    assert row_of(extra_args, DEFAULTS) == [0.5, 0.0]


FORMS = {"kind": "product", "short": "shift"}
NEGATIVE: dict[str, tuple[dict[str, float], float, bool]] = {
    "a product": ({"kind": -0.1}, 1.0, False),
    "a product, greedy": ({"kind": -0.1}, 0.0, False),
    "a product as sharp as the temperature": ({"kind": -0.1}, 0.9, True),
    "a shift": ({"short": -5.0}, 1.0, True),
    "none": ({"kind": 0.0}, 1.0, True),
}


@pytest.mark.parametrize("name", NEGATIVE)
def test_a_negative_weight_on_a_product_is_refused_in_the_front_end_alone(name: str) -> None:
    weights, temperature, accepted = NEGATIVE[name]
    asked = as_extra_args(weights)
    if accepted:
        check_weights(asked, DEFAULTS, FORMS, temperature)
    else:
        with pytest.raises(OptionError) as error:
            check_weights(asked, DEFAULTS, FORMS, temperature)
        assert "Guide kind is a product" in str(error.value)
        assert "plausibility" not in str(error.value)  # vLLM has none
    assert row_of(asked, DEFAULTS) == list({**DEFAULTS, **weights}.values())


def test_the_front_end_refuses_what_cannot_be_read() -> None:
    with pytest.raises(OptionError, match="Unknown guide 'kinf'"):
        check_weights({"guidance": '{"kinf": 1}'}, DEFAULTS, FORMS, 1.0)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from([*DEFAULTS, "other"]) | st.text(), inner),
    max_leaves=8,
)
ANYTHING = st.dictionaries(
    st.sampled_from(["guidance", "kv_transfer_params"]) | st.text(max_size=12), JSON | JSON.map(json.dumps) | st.text()
)


@given(ANYTHING)
def test_no_arguments_raise_anything_but_an_option_error(extra_args: dict[str, Any]) -> None:
    row = row_of(extra_args, DEFAULTS)
    try:
        wanted = list(read_weights(extra_args, DEFAULTS).values())
    except OptionError:
        wanted = list(DEFAULTS.values())
    assert row == wanted
    assert all(math.isfinite(weight) and abs(weight) <= 3.4e38 for weight in row)


@given(st.fixed_dictionaries({}, optional=dict.fromkeys(DEFAULTS, st.floats(-3e38, 3e38))))
def test_weights_come_back_as_they_went(weights: dict[str, float]) -> None:
    assert read_weights(as_extra_args(weights), DEFAULTS) == {**DEFAULTS, **weights}
