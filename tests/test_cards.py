"""The card of a guide: what is read from it, what is refused, and that writing it again loses nothing."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from trimtab.errors import CheckpointError, OptionError
from trimtab.storage import directories, loading
from trimtab.storage.calibrated import Calibration
from trimtab.storage.cards import FORMED_KINDS, GUIDE_KINDS, KINDS_IN_VLLM, GuideCard, named_base, read_card, write_card

BASE = {"name": "small", "architecture": "LlamaForCausalLM", "num_layers": 2, "hidden_size": 8, "norms": [0.5, 1]}
VOCABULARY = {"fingerprint": "ab" * 32, "size": 60}

OLD: dict[str, dict[str, Any]] = {
    "a reward model without a form": {"kind": "arm", "form": "lora", "base": BASE, "vocabulary": VOCABULARY},
    "a policy without a form": {"kind": "policy", "method": "dpo", "base": BASE, "vocabulary": VOCABULARY},
    "an agent without a vocabulary": {
        "kind": "agent",
        "base": {"name": ""},
        "selection": {"rule": "first", "top_k": 4},
    },
    "a preference-aware guide": {"kind": "parm", "form": "bilinear", "parm": {"objectives": ["a", "b"], "scale": 2.0}},
    "a reward model without a record": {"kind": "reward", "form": "full", "base": BASE},
    "a sentence": {"kind": "prompt", "prompt": {"towards": "Be short.", "place": "user", "weight": 2.0}},
    "a calibrated guide": {
        "kind": "arm",
        "base": BASE,
        "calibration": {"form": "shift", "strength": 2.0, "strength_low": 1.0, "strength_high": 4.0, "later": "x"},
    },
    "a card without a kind": {"base": BASE},
    "a card of a later version": {"kind": "arm", "base": {**BASE, "colour": "ü"}, "later": [1, {"x": None}]},
}


def card_at(directory: Path, **content: Any) -> Path:
    (directory / "guide.json").write_text(json.dumps({"format": 1, **content}))
    return directory


@pytest.mark.parametrize("name", OLD)
def test_what_is_read_and_written_again_is_the_same(name: str, tmp_path: Path) -> None:
    card = read_card(card_at(tmp_path, **OLD[name]))
    assert card.kind == OLD[name].get("kind", "arm")
    assert card.guessed == ("kind" not in OLD[name])
    (tmp_path / "copy").mkdir()
    write_card(tmp_path / "copy", card)
    assert json.loads((tmp_path / "copy" / "guide.json").read_text()) == {"format": 1, **OLD[name]}
    assert dataclasses.replace(read_card(tmp_path / "copy")) == card


def test_what_a_card_says_is_typed(tmp_path: Path) -> None:
    card = read_card(card_at(tmp_path, **OLD["a reward model without a form"]))
    assert (card.base_name, card.trained_on.base["num_layers"]) == ("small", 2)
    assert card.trained_on.vocabulary["size"] == 60
    parm = read_card(card_at(tmp_path, **OLD["a preference-aware guide"]))
    assert (parm.objectives, parm.scale, parm.base_name) == (("a", "b"), 2.0, None)
    reward = read_card(card_at(tmp_path, kind="reward", reward={"max_length": 9}, metrics={"eval_accuracy_high": 0.4}))
    assert (reward.max_length, reward.eval_accuracy_high) == (9, 0.4)


def test_a_form_is_written_with_the_kind_that_it_is_of(tmp_path: Path) -> None:
    write_card(tmp_path, read_card(tmp_path).with_form("shift"))
    assert json.loads((tmp_path / "guide.json").read_text()) == {"format": 1, "kind": "arm", "guide_form": "shift"}
    assert read_card(tmp_path).form() == "shift"


@pytest.mark.parametrize("name", OLD)
def test_a_form_that_is_written_loses_nothing_else(name: str, tmp_path: Path) -> None:
    write_card(tmp_path, read_card(card_at(tmp_path, **OLD[name])).with_form("shift"))
    written = json.loads((tmp_path / "guide.json").read_text())
    assert written == {"kind": "arm", "format": 1, **OLD[name], "guide_form": "shift"}


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "a kind that nobody knows": ({"kind": "oracle"}, r"kind 'oracle', which this version does not know\. Known: agent"),
    "a kind that is not a text": ({"kind": 3}, r"guide\.json: kind is 3; accepted: a text"),
    "a base that is a text": ({"base": "small"}, r"guide\.json: base is 'small'; accepted: an object"),
    "a base's name": ({"base": {"name": ["a"]}}, r"guide\.json: base\.name is \['a'\]; accepted: a text"),
    "a base's size": ({"base": {"hidden_size": "8"}}, r"base\.hidden_size is '8'; accepted: a whole number"),
    "a base's norms": ({"base": {"norms": ["x"]}}, r"base\.norms is \['x'\]; accepted: a list of finite numbers"),
    "a vocabulary's size": ({"vocabulary": {"size": -1}}, r"vocabulary\.size is -1; accepted: a whole number"),
    "objectives": (
        {"kind": "parm", "parm": {"objectives": "a"}},
        r"parm\.objectives is 'a'; accepted: a list",
    ),
    "a scale": ({"kind": "parm", "parm": {"scale": "2"}}, r"parm\.scale is '2'; accepted: a finite number"),
    "a selection": ({"kind": "agent", "selection": []}, r"selection is \[\]; accepted: an object"),
    "a sentence": ({"kind": "prompt", "prompt": {"towards": 7}}, r"prompt\.towards is 7; accepted: a text"),
    "a calibration": ({"kind": "arm", "calibration": 2}, r"calibration is 2; accepted: an object"),
    "a calibrated strength": (
        {"kind": "arm", "calibration": {"form": "shift", "strength": "2"}},
        r"calibration\.strength is '2'; accepted: a finite number",
    ),
    "no calibrated strength": ({"kind": "arm", "calibration": {"form": "shift"}}, r"calibration\.strength is missing"),
    "a calibrated form": (
        {"kind": "arm", "calibration": {"form": "sum", "strength": 1}},
        r"calibration\.form is 'sum'; accepted: product, shift",
    ),
    "a calibrated form of what has none": (
        {"kind": "agent", "calibration": {"form": "shift", "strength": 1}},
        r"calibration\.form is 'shift'; accepted: none, since",
    ),
    "a form": ({"kind": "arm", "guide_form": "sum"}, r"guide_form 'sum'; accepted: product, shift"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_named_with_its_place_and_value(name: str, tmp_path: Path) -> None:
    content, sentence = WRONG[name]
    with pytest.raises(CheckpointError, match=sentence):
        read_card(card_at(tmp_path, **content))
    with pytest.raises(CheckpointError, match=sentence):
        write_card(tmp_path, {"format": 1, **content})


CALIBRATION = Calibration(
    form="shift", strength=2.0, strength_low=1.0, strength_high=4.0, num_prompts=48, tried={"shift": [1.0, 2.0, 4.0]}
)


@pytest.mark.parametrize("name", OLD)
def test_a_calibration_is_the_form_and_the_weight_until_it_is_taken_away(name: str, tmp_path: Path) -> None:
    before = read_card(card_at(tmp_path, **OLD[name])).with_calibration(None)
    calibration = CALIBRATION if before.kind in FORMED_KINDS else dataclasses.replace(CALIBRATION, form=None)
    write_card(tmp_path, before.with_calibration(calibration))
    card = read_card(tmp_path)
    assert card.calibration == calibration
    assert card.weight == card.weight_as() == 2.0
    if before.kind in FORMED_KINDS:
        assert card.form() == "shift"
        assert card.weight_as("shift") == 2.0
        assert card.weight_as("product") is None
    assert card.with_calibration(None) == before


def test_a_form_that_is_written_takes_a_calibration_in_another_away(tmp_path: Path) -> None:
    card = read_card(card_at(tmp_path, **OLD["a calibrated guide"]))
    assert card.with_form("shift").calibration is not None
    product = card.with_form("product")
    assert (product.calibration, product.form(), product.weight) == (None, "product", None)
    assert "calibration" not in product.written


def test_every_kind_can_be_loaded_and_is_packed_or_refused() -> None:
    assert set(loading._BUILDERS) == set(GUIDE_KINDS)
    assert set(FORMED_KINDS) == {"arm", "parm", "policy"}
    assert {*KINDS_IN_VLLM, *(name for name, kind in GUIDE_KINDS.items() if kind.not_in_vllm)} == set(GUIDE_KINDS)


def test_a_guide_is_located_before_any_model_is_loaded(tmp_path: Path) -> None:
    located = directories.locate_guide(card_at(tmp_path, **OLD["a policy without a form"]))
    assert (located.directory, located.card.kind, located.form()) == (tmp_path, "policy", "shift")
    agent = directories.locate_guide(card_at(tmp_path, **OLD["an agent without a vocabulary"]))
    assert agent.form() is None
    with pytest.raises(OptionError, match="has no form"):
        agent.form("shift")
    with pytest.raises(CheckpointError, match="is a file"):
        directories.locate_guide(tmp_path / "guide.json")


def test_a_plain_adapter_says_its_base_in_pefts_words(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "there"}))
    card = read_card(tmp_path)
    assert (card.guessed, card.written, named_base(tmp_path, card)) == (True, {}, "there")
    assert named_base(tmp_path, read_card(card_at(tmp_path, base=BASE))) == "small"


def _calibrated(kind: str, form: str | None) -> GuideCard:
    found = Calibration(form=form, strength=2.5, strength_low=1, strength_high=4)
    return GuideCard(kind, weight=2.5, calibration=found)


PLAIN, KEPT = GuideCard("arm"), GuideCard("prompt", weight=1.5)
SHIFTED, AGENT = _calibrated("arm", "shift"), _calibrated("agent", None)


@pytest.mark.parametrize(
    ("card", "how", "alone", "served"),
    [
        (PLAIN, {}, 1.0, 0.0),
        (KEPT, {}, 1.5, 0.0),  # the strength of a sentence is no measured one, so a server leaves it off
        (SHIFTED, {}, 2.5, 2.5),
        (SHIFTED, {"form": "shift"}, 2.5, 2.5),
        (SHIFTED, {"form": "product"}, 1.0, 0.0),  # a strength as a shift says nothing of a product
        (AGENT, {}, 2.5, 2.5),
        (AGENT, {"rule": "log_ratio"}, 1.0, 0.0),  # nor one under a rule of another
    ],
)
def test_the_strength_where_nothing_is_said(card: GuideCard, how: dict[str, str], alone: float, served: float) -> None:
    assert card.strength_alone(None, **how) == alone
    assert card.strength_served(None, **how) == served
    for asked in (0.0, -1.0, 3.0):
        assert card.strength_alone(asked, **how) == card.strength_served(asked, **how) == asked
    assert (
        GuideCard("agent").strength_alone(None, otherwise=0.5)
        == GuideCard("agent").strength_served(None, otherwise=0.5)
        == 0.5
    )


def test_the_sign_is_judged_by_what_training_added_where_that_was_measured() -> None:
    from trimtab.storage.card_values import sign_accuracy

    low = {"eval_accuracy": 0.3, "eval_accuracy_low": 0.2, "eval_accuracy_high": 0.4}
    good = {"eval_shift_accuracy": 0.9, "eval_shift_accuracy_low": 0.8, "eval_shift_accuracy_high": 0.95}
    assert sign_accuracy({}) is None
    assert str(sign_accuracy(low)) == "0.300 [0.200, 0.400]"
    assert str(sign_accuracy({**low, **good})) == "0.900 [0.800, 0.950]"
    assert sign_accuracy({**low, **good, "eval_shift_accuracy_low": "?"}) == sign_accuracy(low)
    assert sign_accuracy({**low, "eval_margin": 0.0}) is None  # nothing was learnt
