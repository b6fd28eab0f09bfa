"""From weak to strong: a guide whose card names another base runs on that one, loaded beside the steered model."""

from __future__ import annotations

import gc
import json
import logging
import weakref
from pathlib import Path
from typing import Any

import pytest

from tests.test_loading import write_card, write_model
from tests.tiny import write_lora
from trimtab.decoding.decoder import Decoder
from trimtab.errors import BaseMismatchError, OptionError, VocabularyMismatchError
from trimtab.guides.arm import ARM
from trimtab.models.hf import HFModel
from trimtab.storage.loading import load_guide, load_model


@pytest.fixture
def small(tmp_path: Path) -> HFModel:
    return load_model(write_model(tmp_path / "small"), device="cpu")


@pytest.fixture
def large(tmp_path: Path) -> HFModel:
    return load_model(write_model(tmp_path / "large", hidden_size=48, seed=7), device="cpu")


@pytest.fixture
def guide(tmp_path: Path, small: HFModel) -> Path:
    return write_card(write_lora(tmp_path / "guide", small.module), small)


def first_scores(large: HFModel, guide: ARM | Any, weight: float = 1.0) -> dict[str, float]:
    answers = Decoder(large, {"g": guide}).generate("w3", weights={"g": weight}, seed=0, max_new_tokens=1, trace=True)
    trace = next(answers).trace
    assert trace is not None
    return dict(trace[0].chosen.guide_scores)


def test_the_card_names_the_base_and_one_line_says_so(
    large: HFModel, small: HFModel, guide: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "trimtab"):
        found = load_guide(guide, beside=large, device="cpu")
    assert f"was trained on {small.name}, which is loaded beside {large.name}" in caplog.text
    assert first_scores(large, found) == first_scores(large, load_guide(guide, model=small))


def test_a_guide_of_the_steered_model_itself_loads_nothing(small: HFModel, guide: Path) -> None:
    assert not isinstance(load_guide(guide, beside=small), ARM)  # still an adapter, which shares the model's weights


def test_as_a_shift_it_is_measured_from_its_own_base(large: HFModel, small: HFModel, guide: Path) -> None:
    product = first_scores(large, load_guide(guide, beside=large, device="cpu"), weight=0.5)
    shift = load_guide(guide, beside=large, form="shift", device="cpu")
    assert isinstance(shift, ARM)
    assert shift.reference is not None
    assert shift.reference.hidden_size == small.hidden_size
    assert first_scores(large, shift, weight=0.5) != product


def test_guides_of_one_base_share_it_and_it_goes_with_them(large: HFModel, guide: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    for path in guide.iterdir():
        (other / path.name).write_bytes(path.read_bytes())
    found = [load_guide(path, beside=large, form="shift", device="cpu") for path in (guide, other)]
    assert found[0].reference is found[1].reference  # type: ignore[union-attr]
    shared = weakref.ref(found[0].reference)  # type: ignore[union-attr]
    del found
    gc.collect()
    assert shared() is None


def test_the_named_base_goes_before_the_cards(large: HFModel, small: HFModel, guide: Path, tmp_path: Path) -> None:
    card = json.loads((guide / "guide.json").read_text())
    moved = Path(card["base"]["name"]).rename(tmp_path / "moved")
    with pytest.raises(BaseMismatchError, match=r"cannot be loaded.*\(guide_base\)"):
        load_guide(guide, beside=large, device="cpu")
    found = load_guide(guide, beside=large, guide_base=moved, device="cpu")
    assert first_scores(large, found) == first_scores(large, load_guide(guide, model=small))


def test_a_plain_adapter_is_told_by_its_shapes_and_named_by_peft(large: HFModel, small: HFModel, guide: Path) -> None:
    (guide / "guide.json").unlink()
    config = json.loads((guide / "adapter_config.json").read_text())
    (guide / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": None}))
    with pytest.raises(BaseMismatchError, match="does not say on which model it was"):
        load_guide(guide, beside=large, device="cpu")
    (guide / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": small.name}))
    assert isinstance(load_guide(guide, beside=large, device="cpu"), ARM)


def test_another_vocabulary_is_refused_before_a_model_is_loaded(
    small: HFModel, guide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [f"w{index}" for index in range(58)] + ["other"]
    stranger = load_model(write_model(tmp_path / "stranger", words=words, hidden_size=48), device="cpu")
    monkeypatch.setattr("trimtab.storage.loading.load_model", lambda *_, **__: pytest.fail("a model was loaded"))
    with pytest.raises(VocabularyMismatchError, match="differs in content"):
        load_guide(guide, beside=stranger)


def test_a_base_is_refused_where_none_is_needed(large: HFModel, tmp_path: Path) -> None:
    whole = write_model(tmp_path / "whole", seed=3)
    with pytest.raises(OptionError, match="runs on no base of its own"):
        load_guide(whole, beside=large, guide_base="anything")


def test_a_whole_model_of_the_form_shift_is_measured_from_the_base_that_is_named(
    large: HFModel, small: HFModel, tmp_path: Path
) -> None:
    whole = write_model(tmp_path / "whole", seed=3)
    found = load_guide(whole, beside=large, form="shift", guide_base=small.name, device="cpu")
    assert isinstance(found, ARM)
    assert isinstance(found.reference, HFModel)
    assert found.reference.name == small.name
