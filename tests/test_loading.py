"""Names to models and guides: what is accepted, what is refused, and with which sentence."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tiny import tiny_module, tiny_tokenizer, write_lora
from trimtab.decoding.decoder import Decoder
from trimtab.errors import (
    BaseMismatchError,
    CheckpointError,
    OptionError,
    OutputExistsError,
    VocabularyMismatchError,
)
from trimtab.guides.arm import ARM
from trimtab.models.hf import HFModel
from trimtab.storage.directories import resolve_model
from trimtab.storage.files import new_directory
from trimtab.storage.loading import load_guide, load_model, save_guide


def write_model(directory: Path, *, seed: int = 0, words: list[str] | None = None, **changes: Any) -> Path:
    tiny_module(seed=seed, **changes).save_pretrained(directory)
    tiny_tokenizer(words).save_pretrained(directory)
    return directory


def write_card(directory: Path, model: HFModel, **changes: Any) -> Path:
    assert model.tokenizer is not None
    card = {
        "format": 1,
        "kind": "arm",
        "form": "lora",
        "base": model.describe(),
        "vocabulary": {"fingerprint": model.tokenizer.fingerprint, "size": len(model.tokenizer.tokens)},
        **changes,
    }
    (directory / "guide.json").write_text(json.dumps(card))
    return directory


@pytest.fixture
def base(tmp_path: Path) -> HFModel:
    return load_model(write_model(tmp_path / "base"), device="cpu")


@pytest.fixture
def lora(tmp_path: Path, base: HFModel) -> Path:
    return write_card(write_lora(tmp_path / "lora", base.module), base)


def test_a_model_directory(base: HFModel) -> None:
    assert base.module.dtype == torch.float32
    assert not any(weight.requires_grad for weight in base.module.parameters())
    assert not base.module.training
    assert base.eos_ids == {1}


def test_a_guide_with_its_card_a_plain_adapter_and_a_plain_model_all_steer(
    base: HFModel, lora: Path, tmp_path: Path
) -> None:
    plain = tmp_path / "plain"
    shutil.copytree(lora, plain)
    (plain / "guide.json").unlink()
    whole = write_model(tmp_path / "whole", seed=3)
    guides = {path.name: load_guide(path, weight=0.5, device="cpu") for path in (lora, plain, whole)}
    answers = list(Decoder(base, guides).generate(["w3 w4"], seed=0, max_new_tokens=4, trace=True))
    assert answers[0].weights == {"lora": 0.5, "plain": 0.5, "whole": 0.5}
    assert answers[0].trace is not None
    scores = answers[0].trace[0].chosen.guide_scores
    assert scores["lora"] == pytest.approx(scores["plain"], abs=1e-5)


def test_an_adapter_may_run_on_a_model_of_its_own(base: HFModel, lora: Path, tmp_path: Path) -> None:
    """A small guide beside another base of the same vocabulary: weak to strong."""
    large = load_model(write_model(tmp_path / "large", hidden_size=48, seed=7), device="cpu")
    with pytest.raises(BaseMismatchError, match="has hidden_size 48 and not 32"):
        Decoder(large, {"g": load_guide(lora)})
    answer = next(Decoder(large, {"g": load_guide(lora, model=base)}).generate("w3", seed=0, max_new_tokens=3))
    assert answer.token_ids


def test_an_adapter_for_other_weights_of_the_same_shape(base: HFModel, lora: Path) -> None:
    with torch.no_grad():
        base.module.model.layers[1].input_layernorm.weight.mul_(1.3)
    with pytest.raises(BaseMismatchError, match="same shape but other weights"):
        Decoder(base, {"g": load_guide(lora)})


def test_vocabularies_are_compared_by_content(base: HFModel, lora: Path, tmp_path: Path) -> None:
    words = [f"w{index}" for index in range(59)]
    words[4], words[5] = words[5], words[4]
    other = load_model(write_model(tmp_path / "other", words=words), device="cpu")
    assert other.vocab_size == base.vocab_size
    with pytest.raises(VocabularyMismatchError, match=r"2 of the base's 61 tokens .* 'w4' is 6 here and 7 there"):
        Decoder(base, {"g": ARM(other)})
    with pytest.raises(VocabularyMismatchError, match="differ in content"):
        load_guide(lora).bind(other)


def test_padding_of_the_logits_is_no_difference(base: HFModel, tmp_path: Path) -> None:
    wide = load_model(write_model(tmp_path / "wide", vocab_size=64, seed=2), device="cpu")
    for model, guide in ((base, wide), (wide, base)):
        answers = Decoder(model, {"g": ARM(guide)}).generate(
            ["w3"] * 8, weights={"g": -1.0}, plausibility=1e-30, seed=0, max_new_tokens=8
        )
        for answer in answers:
            assert max(answer.token_ids) < 61


def test_save_guide_writes_what_load_guide_reads(base: HFModel, lora: Path, tmp_path: Path) -> None:
    saved = save_guide(load_guide(lora), tmp_path / "saved")
    first, second = (
        next(Decoder(base, {"g": load_guide(path)}).generate("w3", seed=0, max_new_tokens=5)).token_ids
        for path in (lora, saved)
    )
    assert first == second
    with pytest.raises(OutputExistsError):
        save_guide(load_guide(lora), tmp_path / "saved")
    save_guide(load_guide(lora), tmp_path / "saved", overwrite=True)


def test_a_directory_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    def fail() -> None:
        with new_directory(tmp_path / "new") as temporary:
            (temporary / "half").write_text("x")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_pickled_weights_are_refused(lora: Path, tmp_path: Path) -> None:
    (lora / "adapter_model.safetensors").unlink()
    torch.save({}, lora / "adapter_model.bin")
    with pytest.raises(CheckpointError, match="pickled weights"):
        load_guide(lora)
    torch.save({}, tmp_path / "base" / "pytorch_model.bin")
    (tmp_path / "base" / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="pickled weights"):
        load_model(tmp_path / "base")


def test_missing_weights_are_not_made_up(tmp_path: Path, base: HFModel) -> None:
    from safetensors.torch import load_file, save_file

    path = tmp_path / "base" / "model.safetensors"
    tensors = load_file(path)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="lacks 1 weights"):
        load_model(tmp_path / "base")


@pytest.mark.parametrize(
    ("text", "words"),
    [("{", "not readable JSON"), ('{"format": 7}', "format 7"), ('{"format": 1, "kind": "x"}', "'x'")],
)
def test_a_damaged_or_newer_card(lora: Path, text: str, words: str) -> None:
    (lora / "guide.json").write_text(text)
    with pytest.raises(CheckpointError, match=words):
        load_guide(lora)


def test_names_that_lead_nowhere(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="There is no model"):
        resolve_model("nobody/nothing-here")
    with pytest.raises(CheckpointError, match="There is no guide"):
        load_guide("nobody/nothing-here")
    with pytest.raises(CheckpointError, match="holds no guide"):
        load_guide(tmp_path)
    with pytest.raises(
        OptionError, match=r"Unknown shipped guide 'builtin:sentimet'\. Did you mean 'builtin:sentiment'"
    ):
        load_guide("builtin:sentimet")
    with pytest.raises(CheckpointError, match=r"not a directory here, and no name of one on the hub\. Accepted"):
        load_guide(tmp_path / "nothing")
    for misspelt, meant in (("promt:Be kind.", "prompt:Be kind."), ("bultin:sentiment", "builtin:sentiment")):
        with pytest.raises(CheckpointError, match=f"Did you mean '{meant}'"):
            load_guide(misspelt)
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="is a file"):
        load_guide(tmp_path / "file")


def test_a_weight_that_is_no_number(lora: Path) -> None:
    with pytest.raises(OptionError, match="finite"):
        load_guide(lora, weight=float("nan"))


def test_a_whole_model_takes_another_only_to_be_measured_from(base: HFModel, tmp_path: Path) -> None:
    whole = write_model(tmp_path / "whole")
    with pytest.raises(OptionError, match="leave the guide's base out"):
        load_guide(whole, model=base)
    guide = load_guide(whole, model=base, form="shift")
    assert isinstance(guide, ARM)
    assert guide.reference is base


def test_remote_code_is_off_unless_asked_for(tmp_path: Path, base: HFModel) -> None:
    config = json.loads((tmp_path / "base" / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"}
    config["model_type"] = "made-up"
    (tmp_path / "base" / "config.json").write_text(json.dumps(config))
    (tmp_path / "base" / "code.py").write_text("raise SystemExit('remote code ran')")
    with pytest.raises(CheckpointError):
        load_model(tmp_path / "base")
