"""A LoRA guide as a GGUF adapter: the names, orders and scales that llama.cpp reads. No binding is needed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from tests.tiny import write_lora
from tests.tiny_gguf import gguf_module, permuted, write_gguf
from trimtab.cli.main import main
from trimtab.errors import BaseMismatchError, CompatibilityError, OptionError, OutputExistsError
from trimtab.models.adapters.lora import LoRA
from trimtab.models.llama.adapters import adapter_file, write_adapter
from trimtab.models.llama.header import read_header
from trimtab.storage.gguf_files import export_adapter


def _tensors(path: Path) -> dict[str, np.ndarray]:
    return {tensor.name: tensor.data for tensor in gguf.GGUFReader(path).tensors}


def test_every_pair_is_written_with_its_scale(file: Path, module: Any, tmp_path: Path) -> None:
    lora = LoRA.load(write_lora(tmp_path / "lora", module))  # r 2, alpha 4: s is 2
    out = tmp_path / "guide.gguf"
    write_adapter(out, lora, read_header(file))
    header, tensors = read_header(out), _tensors(out)
    assert header.values["general.type"] == "adapter"
    assert (header.values["adapter.type"], header.values["adapter.lora.alpha"]) == ("lora", 2.0)
    assert len(tensors) == 2 * len(lora.pairs)
    down, up = lora.pairs["model.layers.1.mlp.up_proj"]
    assert np.array_equal(tensors["blk.1.ffn_up.weight.lora_a"], down)
    assert np.array_equal(tensors["blk.1.ffn_up.weight.lora_b"], up)
    key = lora.pairs["model.layers.1.self_attn.k_proj"][1].numpy()
    assert np.array_equal(tensors["blk.1.attn_k.weight.lora_b"], permuted(key, module.config.num_key_value_heads))
    assert not np.array_equal(tensors["blk.1.attn_k.weight.lora_b"], key)


def test_qwen_permutes_nothing_and_unequal_ranks_have_alpha_0(tmp_path: Path) -> None:
    module = gguf_module("Qwen2")
    header = read_header(write_gguf(tmp_path / "qwen.gguf", module))
    lora = LoRA.load(write_lora(tmp_path / "lora", module))
    name = "model.layers.0.self_attn.q_proj"
    down, up = lora.pairs[name]
    lora.pairs[name] = torch.cat([down, down]), torch.cat([up, 0 * up], dim=1)
    write_adapter(tmp_path / "guide.gguf", lora, header)
    assert read_header(tmp_path / "guide.gguf").values["adapter.lora.alpha"] == 0.0
    written = _tensors(tmp_path / "guide.gguf")["blk.0.attn_q.weight.lora_b"]
    assert np.array_equal(written, lora.pairs[name][1])


def test_an_adapter_of_another_model_is_refused_and_leaves_nothing(file: Path, module: Any, tmp_path: Path) -> None:
    header = read_header(file)
    lora = LoRA.load(write_lora(tmp_path / "lora", gguf_module(intermediate_size=48)))
    with pytest.raises(BaseMismatchError, match=r"down_proj to map 48 to 32 features; that of tiny.gguf maps 64 to 32"):
        write_adapter(tmp_path / "out" / "guide.gguf", lora, header)
    lora = LoRA.load(write_lora(tmp_path / "deep", gguf_module(num_hidden_layers=3)))
    with pytest.raises(BaseMismatchError, match=r"changes model.layers.2.*which tiny.gguf does not have"):
        write_adapter(tmp_path / "out" / "guide.gguf", lora, header)
    assert not (tmp_path / "out").exists()
    lora = LoRA.load(write_lora(tmp_path / "right", module))
    object.__setattr__(header, "values", {**header.values, "general.architecture": "mamba"})
    with pytest.raises(CompatibilityError, match="'mamba', for which adapters were not tried"):
        write_adapter(tmp_path / "guide.gguf", lora, header)


def test_the_cache_knows_an_adapter_by_its_content(file: Path, module: Any, tmp_path: Path) -> None:
    header = read_header(file)
    one, other = (LoRA.load(write_lora(tmp_path / str(seed), module, seed=seed)) for seed in (0, 1))
    first = adapter_file(one, header, tmp_path / "cache")
    assert adapter_file(one, header, tmp_path / "cache") == first
    assert adapter_file(other, header, tmp_path / "cache") != first
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_export_writes_what_the_cache_would(
    file: Path, module: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    guide = write_lora(tmp_path / "lora", module)
    out = tmp_path / "guide.gguf"
    command = ["export", "gguf", str(guide), "--out", str(out), "--model", str(file), "--json"]
    assert main(command) == 0
    assert json.loads(capsys.readouterr().out) == {"out": str(out), "format": "gguf", "base": str(file)}
    expected = _tensors(adapter_file(LoRA.load(guide), read_header(file), tmp_path / "cache"))
    written = _tensors(out)
    assert written.keys() == expected.keys()
    assert all(np.array_equal(written[name], expected[name]) for name in written)
    with pytest.raises(OutputExistsError):
        export_adapter(guide, out, base=file)
    export_adapter(guide, out, base=file, overwrite=True)


def test_export_asks_for_the_base_and_for_a_lora(file: Path, module: Any, tmp_path: Path) -> None:
    guide = write_lora(tmp_path / "lora", module, base_model_name_or_path="somewhere/base")
    with pytest.raises(OptionError, match=r"somewhere/base, which is no GGUF file. Name the file of that model"):
        export_adapter(guide, tmp_path / "guide.gguf")
    with pytest.raises(OptionError, match=r"let it end in .gguf"):
        export_adapter(guide, tmp_path / "guide", base=file)
    with pytest.raises(OptionError, match="is not a LoRA adapter"):
        export_adapter(file, tmp_path / "guide.gguf", base=file)
    card = {"format": 1, "kind": "arm", "base": {"name": "x", "num_layers": 2, "norms": [7.0]}}
    (guide / "guide.json").write_text(json.dumps(card))
    with pytest.raises(BaseMismatchError, match="the same shape but other weights"):
        export_adapter(guide, tmp_path / "guide.gguf", base=file)
