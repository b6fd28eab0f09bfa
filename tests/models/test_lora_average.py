"""The average of adapters: Σ λ_i B_i A_i exactly, in memory, on disk, and as peft reads it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.tiny import tiny_module, tiny_tokenizer, write_lora
from trimtab.errors import BaseMismatchError, OptionError, VocabularyMismatchError
from trimtab.models.adapters.lora import LoRA, average, average_factors
from trimtab.models.hf import HFModel

IDS = [3, 4, 5, 6, 7]


def deltas(adapter: LoRA) -> dict[str, Tensor]:
    """ΔW of each layer."""
    return {name: up @ down for name, (down, up) in adapter.pairs.items()}


def adapters(root: Path, module: Any) -> list[LoRA]:
    """Two adapters that differ in rank, scale and layers."""
    first = write_lora(root / "first", module, rank=2, seed=1)
    second = write_lora(root / "second", module, rank=3, seed=2, lora_alpha=9)
    loaded = [LoRA.load(path) for path in (first, second)]
    loaded[1].pairs = {name: pair for name, pair in loaded[1].pairs.items() if "v_proj" not in name}
    return loaded


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_average_is_of_what_adapters_change_and_peft_reads_it(family: str, tmp_path: Path) -> None:
    import peft

    module = tiny_module(family)
    first, second = adapters(tmp_path, module)
    mixed = average([first, second], [0.3, 0.7])
    for name, delta in deltas(mixed).items():
        expected = 0.3 * deltas(first)[name]
        if name in second.pairs:
            expected = expected + 0.7 * deltas(second)[name]
        torch.testing.assert_close(delta, expected, rtol=1e-5, atol=1e-6)
    assert mixed.pairs.keys() == first.pairs.keys()

    out = tmp_path / "soup"
    out.mkdir()
    mixed.save(out)
    base = HFModel(tiny_module(family), tiny_tokenizer())
    session = LoRA.load(out).on(base).open()
    session.admit([IDS])
    wrapped = peft.PeftModel.from_pretrained(tiny_module(family), str(out)).eval()
    with torch.no_grad():
        theirs = torch.log_softmax(wrapped(input_ids=torch.tensor([IDS])).logits[0, -1], dim=-1)
    torch.testing.assert_close(session.logprobs()[0], theirs, rtol=1e-4, atol=1e-4)

    before = {name: layer.weight.clone() for name, layer in module.named_modules() if name in mixed.pairs}
    merged = dict(wrapped.merge_and_unload().named_modules())
    for name, weight in before.items():
        change = merged[name].weight - weight
        ours = deltas(mixed)[name]
        torch.testing.assert_close(change, ours.t() if family == "gpt2" else ours, rtol=1e-4, atol=1e-5)


def test_a_part_of_weight_nought_adds_no_rank(tmp_path: Path) -> None:
    first, second = adapters(tmp_path, tiny_module())
    mixed = average([first, second], [1.0, 0.0])
    assert {name: delta.shape for name, (delta, _) in mixed.pairs.items()} == {
        name: delta.shape for name, (delta, _) in first.pairs.items()
    }
    assert all(torch.equal(deltas(mixed)[name], deltas(first)[name]) for name in first.pairs)


def test_averaging_the_factors_is_something_else(tmp_path: Path) -> None:
    module = tiny_module()
    parts = [LoRA.load(write_lora(tmp_path / str(seed), module, seed=seed)) for seed in (1, 2)]
    factors, exact = average_factors(parts, [0.5, 0.5]), average(parts, [0.5, 0.5])
    for name, (down, up) in factors.pairs.items():
        torch.testing.assert_close(down, (parts[0].pairs[name][0] + parts[1].pairs[name][0]) / 2)
        torch.testing.assert_close(up, (parts[0].pairs[name][1] + parts[1].pairs[name][1]) / 2)
        assert not torch.allclose(deltas(factors)[name], deltas(exact)[name], atol=1e-2)


def test_factors_of_other_ranks_or_layers_have_no_average(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="Average the deltas"):
        average_factors(adapters(tmp_path, tiny_module()), [0.5, 0.5])


BAD_WEIGHTS = {
    (0.5,): "2 adapters or models and 1 weights",
    (-0.1, 1.1): "A weight is -0.1",
    (float("nan"), 1.0): "A weight is nan",
    (0.0, 0.0): "Every weight is 0",
}


@pytest.mark.parametrize("weights", BAD_WEIGHTS)
def test_weights_that_are_none_of_a_soup(weights: tuple[float, ...], tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=BAD_WEIGHTS[weights]):
        average(adapters(tmp_path, tiny_module()), weights)


def test_adapters_of_other_bases_are_refused(tmp_path: Path) -> None:
    first, second = adapters(tmp_path, tiny_module())
    first.base = {"name": "a", "num_layers": 3, "norms": [1.0, 1.0]}
    for base, words in (({"num_layers": 4}, "num_layers 4 and 3"), ({"norms": [1.0, 1.5]}, "other weights")):
        second.base = {"name": "b", **base}
        with pytest.raises(BaseMismatchError, match=words):
            average([first, second], [0.5, 0.5])
    second.base = {}
    first.vocabulary, second.vocabulary = {"fingerprint": "x"}, {"fingerprint": "y"}
    with pytest.raises(VocabularyMismatchError, match="other vocabularies"):
        average([first, second], [0.5, 0.5])


def test_adapters_of_other_shapes_are_refused_without_a_card(tmp_path: Path) -> None:
    first = LoRA.load(write_lora(tmp_path / "a", tiny_module()))
    second = LoRA.load(write_lora(tmp_path / "b", tiny_module(intermediate_size=40)))
    with pytest.raises(BaseMismatchError, match=r"to map (40 to 32 and 48 to 32|32 to 40 and 32 to 48)"):
        average([first, second], [0.5, 0.5])


def test_what_is_known_of_the_base_goes_on(tmp_path: Path) -> None:
    first, second = adapters(tmp_path, tiny_module())
    second.base, second.vocabulary = {"name": "b"}, {"fingerprint": "y"}
    mixed = average([first, second], [0.5, 0.5])
    assert (mixed.base, mixed.vocabulary) == ({"name": "b"}, {"fingerprint": "y"})
    mixed.save(tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["base_model_name_or_path"] == "b"
