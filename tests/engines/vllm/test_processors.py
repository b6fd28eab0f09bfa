"""The weights of the rows on Model Runner V1, as requests come, go and change places."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

from vllm.v1.sample.logits_processor import BatchUpdate, MoveDirectionality

from trimtab.engines.vllm import processors
from trimtab.engines.vllm.processors import ROWS, class_path
from trimtab.errors import OptionError

DEFAULTS = {"near": 0.25, "far": 0.0}
FORMS = {"near": "product", "far": "shift"}


def made(*, v2: bool) -> Any:
    """The class that vLLM would make of the text."""
    module, _, name = class_path(DEFAULTS, FORMS, v2=v2).partition(":")
    assert module == processors.__name__
    return getattr(processors, name)


def asking(weights: dict[str, float] | None, temperature: float = 1.0) -> Any:
    extra_args = None if weights is None else {"guidance": json.dumps(weights)}
    return SimpleNamespace(extra_args=extra_args, temperature=temperature)


def update(**moves: Any) -> BatchUpdate:
    return BatchUpdate(**{"batch_size": 4, "removed": [], "added": [], "moved": [], **moves})


def test_rows_follow_their_requests() -> None:
    config = SimpleNamespace(scheduler_config=SimpleNamespace(max_num_seqs=4), model_config=SimpleNamespace())
    weights = made(v2=False)(config, "cpu", False)
    rows = getattr(config.model_config, ROWS)
    added = [(0, asking({"far": 1.0}), None, []), (1, asking(None), None, []), (2, asking({"near": -2.0}), None, [])]
    weights.update_state(update(added=added))
    weights.update_state(None)
    assert rows.tolist() == [[0.25, 1.0], [0.25, 0.0], [-2.0, 0.0], [0.0, 0.0]]
    weights.update_state(update(moved=[(0, 2, MoveDirectionality.SWAP)]))
    assert rows.tolist()[:3] == [[-2.0, 0.0], [0.25, 0.0], [0.25, 1.0]]
    weights.update_state(update(removed=[0], moved=[(2, 0, MoveDirectionality.UNIDIRECTIONAL)]))
    assert rows.tolist()[:2] == [[0.25, 1.0], [0.25, 0.0]]


@pytest.mark.parametrize("v2", [False, True])
def test_a_class_refuses_what_its_guides_do_not_know(v2: bool) -> None:
    made(v2=v2).validate_params(asking({"far": 3.0}))
    with pytest.raises(OptionError, match="Did you mean 'far'"):
        made(v2=v2).validate_params(asking({"farr": 3.0}))


@pytest.mark.parametrize("v2", [False, True])
def test_a_class_refuses_a_negative_product_by_form_and_temperature(v2: bool) -> None:
    made(v2=v2).validate_params(asking({"far": -3.0}))
    made(v2=v2).validate_params(asking({"near": -0.3}, temperature=0.7))
    for temperature in (0.0, 1.0):
        with pytest.raises(OptionError, match="Guide near is a product"):
            made(v2=v2).validate_params(asking({"near": -0.3, "far": 2.0}, temperature))


def test_another_name_is_no_class() -> None:
    with pytest.raises(AttributeError, match="has no attribute V3_00"):
        _ = processors.V3_00
