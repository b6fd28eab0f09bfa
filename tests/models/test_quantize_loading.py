"""`quantize` by name: what is loaded with it, what is refused beside it, and what is said of half precision."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.test_loading import write_card, write_model
from tests.tiny import tiny_module, write_lora
from trimtab.cli.main import main
from trimtab.decoding.decoder import Decoder
from trimtab.engines.builtin import BuiltinMaker
from trimtab.engines.maker import GuideSource
from trimtab.errors import CompatibilityError, OptionError
from trimtab.guides.arm import ARM
from trimtab.models import processor
from trimtab.models.hf import HFModel
from trimtab.models.quantize import KINDS
from trimtab.models.quantize.layers import kind_of
from trimtab.storage.loading import load_guide, load_model
from trimtab.storage.model_source import ModelSource


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("base"))


@pytest.mark.parametrize("kind", KINDS)
def test_a_base_and_guides_by_name(directory: Path, tmp_path: Path, kind: str) -> None:
    """The base, a LoRA of it, and a whole model as a guide, as the engine of every command loads them."""
    maker = BuiltinMaker.open(ModelSource(str(directory), quantize=kind), {})
    base = maker.model
    assert isinstance(base, HFModel)
    assert kind_of(base.module) == kind
    assert kind_of(load_model(directory).module) is None
    lora = write_card(write_lora(tmp_path / "lora", tiny_module()), load_model(directory))
    whole = write_model(tmp_path / "whole", seed=1)
    decoder = maker.make({"lora": GuideSource(str(lora)), "whole": GuideSource(str(whole))})
    guide = decoder.guides["whole"]
    assert isinstance(guide, ARM)
    assert isinstance(guide.model, HFModel)
    assert kind_of(guide.model.module) == kind
    [answer] = decoder.generate([[3, 4]], weights={"lora": 1.0, "whole": 0.5}, seed=1, max_new_tokens=4)
    assert answer.token_ids


def test_the_numbers_are_near_those_of_float32(directory: Path) -> None:
    plain, held = load_model(directory), load_model(directory, quantize="int8")
    tables = []
    for model in (plain, held):
        session = model.open()
        session.admit([[3, 4, 5], [7]])
        tables.append(session.logprobs())
    divergence = (tables[0].exp() * (tables[0] - tables[1])).sum(-1)
    assert 0 < divergence.max() < 0.05


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"quantize": "int8", "dtype": "bfloat16"}, r"dtype is bfloat16.*float32 or auto"),
        ({"quantize": "int8", "dtype": torch.float16}, r"dtype is torch.float16.*float32 or auto"),
        ({"quantize": "int8", "device": "cuda"}, r"device cuda.*device cpu"),
        ({"quantize": "int8", "device_map": "auto"}, r"device_map.*device cpu"),
        ({"quantize": "int8", "quantization_config": object()}, "give one of them"),
        ({"quantize": "int4"}, r"'int4'.*float16, int8"),
    ],
)
def test_what_does_not_go_with_it_is_refused_before_anything_is_loaded(options: dict[str, Any], said: str) -> None:
    with pytest.raises(OptionError, match=said):
        load_model(Path(__file__).parent, **options)


def test_a_guide_takes_it_for_what_is_loaded_for_it(directory: Path, tmp_path: Path) -> None:
    guide = load_guide(write_model(tmp_path / "whole", seed=1), quantize="int8")
    assert isinstance(guide, ARM)
    assert isinstance(guide.model, HFModel)
    assert kind_of(guide.model.module) == "int8"
    decoder = Decoder(load_model(directory, quantize="int8"), {"one": guide})
    [answer] = decoder.generate([[3]], weights={"one": 1.0}, max_new_tokens=2, seed=0)
    assert answer.token_ids


def test_the_command_line_takes_it(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["generate", "--model", str(directory), "--prompt", "w1", "--max-new-tokens", "3", "--seed", "1"]
    assert main([*arguments, "--quantize", "int8"]) == 0
    assert main([*arguments, "--quantize", "int8", "--dtype", "bfloat16"]) != 0
    assert "Give dtype float32" in capsys.readouterr().err
    assert main([*arguments, "--quantize", "int4"]) != 0
    said = capsys.readouterr().err
    assert all(f"'{kind}'" in said for kind in KINDS)


def test_a_training_has_no_such_flag(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "arm", "--model", "demo", "--data", "x.jsonl", "--out", "y", "--quantize", "int8"]) != 0
    assert "Unknown option '--quantize'" in capsys.readouterr().err


@pytest.mark.parametrize(("ratio", "warns"), [(2.0, True), (0.7, False)])
def test_half_precision_says_where_it_is_slower(
    directory: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, ratio: float, warns: bool
) -> None:
    def seconds(products: Sequence[processor.Product]) -> float:
        return 1.0 if all(weight.dtype == torch.float32 for _, weight in products) else ratio

    monkeypatch.setattr(processor, "seconds", seconds)
    with caplog.at_level(logging.WARNING):
        load_model(directory, dtype="bfloat16", device="cpu")
    assert ("2.0 times as long as in float32" in caplog.text) == warns


def test_float32_is_not_measured(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processor, "seconds", lambda _: pytest.fail("measured"))
    load_model(directory, device="cpu")
    load_model(directory, quantize="int8")


class _RoundsTogether(nn.Module):
    """A layer that scales and shifts what it is given by numbers of the whole batch."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias

    def forward(self, x: Tensor) -> Tensor:
        shift, step = x.mean(), x.abs().max() / 127
        return nn.functional.linear(((x - shift) / step).round() * step, self.weight, self.bias)


def test_a_quantiser_that_rounds_rows_together_is_refused_with_that_reason() -> None:
    """Not with a sentence about the cache: the model's own forward pass differs."""
    module = tiny_module("llama")
    module.config.quantization_config = {"quant_method": "rounds_together"}
    for layer in module.model.layers:
        layer.mlp.down_proj = _RoundsTogether(layer.mlp.down_proj)
        layer.self_attn.o_proj = _RoundsTogether(layer.self_attn.o_proj)
    with pytest.raises(CompatibilityError, match=r"own forward pass, with no cache, .* rounds_together rounds them"):
        HFModel(module)
