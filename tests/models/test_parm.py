"""One guide for several objectives: its formula, its vectors, its files, and what the decoder makes of it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch

from tests.laws.tiny_models import PROMPTS, tiny_model
from tests.tiny import write_lora
from tests.tiny_parm import OBJECTIVES, SCALE, random_tensors, write_parm
from trimtab.decoding.decoder import Decoder
from trimtab.errors import BaseMismatchError, CheckpointError, OptionError
from trimtab.guides.arm import ARM, AdapterARM
from trimtab.guides.parm import PARM, check_preference, corner, middle
from trimtab.models.adapters.bilinear import PreferenceLoRA
from trimtab.models.adapters.lora import LoRA
from trimtab.models.hf import HFModel
from trimtab.storage.loading import load_guide, load_parm, save_guide
from trimtab.testing import check_guide

VECTORS = [(1.0, 0.0), (0.0, 1.0), (0.7, 0.3), (0.5, 0.5)]


@pytest.fixture(scope="module")
def model() -> HFModel:
    return tiny_model("llama")


@pytest.fixture
def directory(model: HFModel, tmp_path: Path) -> Path:
    return write_parm(tmp_path / "parm", model)


@pytest.fixture
def parm(directory: Path) -> PARM:
    return load_parm(directory)


def adapter(guide: AdapterARM) -> LoRA:
    assert isinstance(guide.adapter, LoRA)
    return guide.adapter


@pytest.mark.parametrize("vector", VECTORS)
def test_the_change_of_a_weight_is_the_papers_formula(vector: tuple[float, ...], model: HFModel, parm: PARM) -> None:
    """ΔW(p) = s · (B₁ W₁ A₁ + B₂ (Σ_k p_k W₂ₖ) A₂), with r₁ = 2 and r₂ = 3."""
    pairs = adapter(parm.at(vector)).pairs
    tensors = random_tensors(model)
    assert pairs.keys() == tensors.keys()
    for name, parts in tensors.items():
        first = parts["B"][:, :2] @ parts["W1"] @ parts["A"][:2]
        mixed = vector[0] * parts["W2"][0] + vector[1] * parts["W2"][1]
        second = parts["B"][:, 2:] @ mixed @ parts["A"][2:]
        down, up = pairs[name]
        torch.testing.assert_close(up @ down, SCALE * (first + second), rtol=1e-5, atol=1e-5)


def test_the_formula_for_three_objectives(model: HFModel, tmp_path: Path) -> None:
    parm = load_parm(write_parm(tmp_path / "three", model, objectives=("a", "b", "c")))
    tensors = random_tensors(model, num_objectives=3)
    name, parts = next(iter(tensors.items()))
    down, up = adapter(parm.at((0.2, 0.3, 0.5))).pairs[name]
    mixed = sum(share * own for share, own in zip((0.2, 0.3, 0.5), parts["W2"], strict=True))
    first = parts["B"][:, :2] @ parts["W1"] @ parts["A"][:2]
    torch.testing.assert_close(up @ down, SCALE * (first + parts["B"][:, 2:] @ mixed @ parts["A"][2:]))


def test_the_change_is_linear_in_the_vector(parm: PARM) -> None:
    """So every vector lies between the corners, exactly."""
    changes = [{name: up @ down for name, (down, up) in adapter(parm.at(v)).pairs.items()} for v in VECTORS[:3]]
    for name, mixed in changes[2].items():
        torch.testing.assert_close(mixed, 0.7 * changes[0][name] + 0.3 * changes[1][name], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "gemma3", "mistral"])
def test_a_vectors_guide_keeps_the_laws(family: str, tmp_path: Path) -> None:
    model = tiny_model(family)
    check_guide(load_parm(write_parm(tmp_path / "parm", model)).at((0.7, 0.3)), model, PROMPTS, num_steps=3)


def test_one_decoder_mixes_vectors_in_one_batch(model: HFModel, parm: PARM) -> None:
    """Each row is scored at its own vector: as by a decoder that holds that vector alone."""
    guides = {"helpful": parm.at((1, 0)), "harmless": parm.at((0, 1)), "both": parm.at((0.5, 0.5))}
    together = list(
        Decoder(model, dict(guides)).generate(
            [PROMPTS[2]] * 3,
            weights=[{name: float(name == wanted) * 2 for name in guides} for wanted in guides],
            max_new_tokens=8,
            ignore_eos=True,
            seed=3,
            trace=True,
        )
    )
    for index, (name, guide) in enumerate(guides.items()):
        (alone,) = Decoder(model, {name: guide}).generate(
            PROMPTS[2], weights={name: 2.0}, max_new_tokens=8, ignore_eos=True, seed=3 + index, trace=True
        )
        assert together[index].token_ids == alone.token_ids
        assert together[index].trace is not None
        assert alone.trace is not None
        for one, other in zip(together[index].trace, alone.trace, strict=True):
            assert one.chosen.mixed_logprob == pytest.approx(other.chosen.mixed_logprob, abs=1e-4)
    assert len({answer.token_ids for answer in together}) == 3, "else the vectors would not be told apart"


def test_a_vector_shares_the_bases_weights(model: HFModel, parm: PARM) -> None:
    assert isinstance(parm.at((1, 0)).bind(model), ARM)
    before = {name: weight.clone() for name, weight in model.module.named_parameters()}
    list(Decoder(model, {"g": parm.at((1, 0))}).generate(PROMPTS[3], max_new_tokens=3, seed=0))
    assert all(torch.equal(weight, before[name]) for name, weight in model.module.named_parameters())


BAD_VECTORS = {
    "too few": ((1.0,), "of length 1; this guide weighs 2 objectives"),
    "too many": ((0.2, 0.3, 0.5), "of length 3; this guide weighs 2 objectives"),
    "a negative one": ((1.5, -0.5), "The preference for harmless is -0.5"),
    "no number": ((float("nan"), 1.0), "The preference for helpful is nan"),
    "infinite": ((float("inf"), 0.0), "The preference for helpful is inf"),
    "a wrong sum": ((0.7, 0.7), "0.7, 0.7 adds up to 1.4"),
    "text": ("01", "'01'"),
}


@pytest.mark.parametrize("name", BAD_VECTORS)
def test_a_bad_vector_is_refused_with_the_objectives(name: str, parm: PARM, directory: Path) -> None:
    vector, problem = BAD_VECTORS[name]
    with pytest.raises(OptionError) as caught:
        parm.at(vector)  # type: ignore[arg-type]
    assert problem in str(caught.value)
    assert "in the order helpful, harmless" in str(caught.value)
    with pytest.raises(OptionError, match="in the order helpful, harmless"):
        load_guide(directory, preference=vector)  # type: ignore[arg-type]


def test_rounded_thirds_are_a_vector() -> None:
    assert check_preference((1 / 3, 1 / 3, 1 / 3), ("a", "b", "c")) == middle(3)
    assert check_preference([0.333333, 0.333333, 0.333334], ("a", "b", "c"))
    assert corner(1, 3) == (0.0, 1.0, 0.0)


def test_without_a_preference_the_objectives_are_named(directory: Path) -> None:
    with pytest.raises(OptionError, match=r"weighs 2 objectives \(helpful, harmless\), so it needs a preference"):
        load_guide(directory)


def test_load_guide_gives_one_vector(directory: Path, model: HFModel, parm: PARM) -> None:
    guide = load_guide(directory, preference=(0.7, 0.3), weight=0.5)
    assert guide.weight == 0.5
    assert isinstance(guide, AdapterARM)
    for name, (down, up) in adapter(parm.at((0.7, 0.3))).pairs.items():
        assert torch.equal(adapter(guide).pairs[name][0], down)
        assert torch.equal(adapter(guide).pairs[name][1], up)
    assert isinstance(load_guide(directory, preference=[0.7, 0.3], model=model), ARM)


def test_what_means_nothing_is_refused(directory: Path, model: HFModel, tmp_path: Path) -> None:
    plain = write_lora(tmp_path / "plain", model.module)
    with pytest.raises(OptionError, match="has one objective, so it takes no preference"):
        load_guide(plain, preference=(0.7, 0.3))
    with pytest.raises(OptionError, match="takes no rule"):
        load_guide(directory, preference=(0.7, 0.3), rule="first")
    with pytest.raises(CheckpointError, match="has no preference vector"):
        load_parm(plain)


def test_another_base_is_refused(parm: PARM) -> None:
    with pytest.raises(BaseMismatchError):
        parm.at((1, 0)).bind(tiny_model("gemma2"))


def test_a_vector_is_saved_as_a_plain_adapter(parm: PARM, model: HFModel, tmp_path: Path) -> None:
    """For whatever reads peft's format and knows no preferences."""
    save_guide(parm.at((0.7, 0.3)), tmp_path / "plain")
    again = load_guide(tmp_path / "plain")
    assert isinstance(again, AdapterARM)
    for name, (down, up) in adapter(parm.at((0.7, 0.3))).pairs.items():
        torch.testing.assert_close(adapter(again).pairs[name][1] @ adapter(again).pairs[name][0], up @ down)


def test_the_whole_guide_is_saved_by_its_files(parm: PARM, tmp_path: Path) -> None:
    (tmp_path / "copy").mkdir()
    parm.save_files(tmp_path / "copy")
    assert load_parm(tmp_path / "copy").objectives == OBJECTIVES
    with pytest.raises(CheckpointError, match="not loaded from a directory"):
        PreferenceLoRA({}, base={}, vocabulary={}).save(tmp_path)


DAMAGE = {
    "no tensors": ("remove", "needs guide.json and parm.safetensors"),
    "cut tensors": ("cut", "needs guide.json and parm.safetensors"),
    "no objectives": ("card", "needs guide.json and parm.safetensors"),
    "another number of objectives": ("objectives", "accepted for 3 objectives"),
    "a tensor is missing": ("part", "accepted for 2 objectives"),
    "ranks that do not fit": ("rank", "accepted for 2 objectives"),
    "NaN": ("nan", "not finite"),
    "a scale that is none": ("scale", "parm.scale is nan; accepted: a finite number"),
    "nothing in it": ("empty", "holds no tensors"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_directory_is_refused(name: str, directory: Path, tmp_path: Path) -> None:
    kind, problem = DAMAGE[name]
    broken = tmp_path / "broken"
    shutil.copytree(directory, broken)
    _damage(broken, kind)
    with pytest.raises(CheckpointError, match=problem):
        load_guide(broken, preference=(0.5, 0.5))


def _damage(directory: Path, kind: str) -> None:
    path, card = directory / "parm.safetensors", json.loads((directory / "guide.json").read_text())
    tensors = safetensors.torch.load_file(path)
    key = next(key for key in tensors if key.endswith(".W1"))
    if kind == "remove":
        path.unlink()
        return
    if kind == "cut":
        path.write_bytes(path.read_bytes()[:-10])
        return
    if kind in ("card", "objectives", "scale"):
        changes = {"objectives": {"objectives": ["a", "b", "c"]}, "scale": {"scale": float("nan")}}
        card["parm"] = {} if kind == "card" else {**card["parm"], **changes[kind]}
        (directory / "guide.json").write_text(json.dumps(card))
        return
    if kind == "part":
        del tensors[key]
    elif kind == "rank":
        tensors[key] = torch.zeros(3, 3)
    elif kind == "nan":
        tensors[key][0, 0] = float("nan")
    safetensors.torch.save_file({} if kind == "empty" else tensors, path)
