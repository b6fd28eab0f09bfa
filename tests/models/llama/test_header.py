"""What is read of a GGUF file before its weights; whatever is not whole is refused with a sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from trimtab.errors import CheckpointError
from trimtab.models.llama.header import read_header


def test_the_head_says_what_the_model_is(file: Path, module: Any) -> None:
    header = read_header(file)
    assert header.architecture == "llama"
    assert header.number("block_count") == module.config.num_hidden_layers
    assert header.tensors["blk.0.attn_k.weight"].shape == tuple(module.model.layers[0].self_attn.k_proj.weight.shape)
    norm = header.vector("output_norm.weight")
    assert norm is not None
    assert torch.equal(norm, module.model.norm.weight)


def test_other_weights_of_the_same_shape_have_another_digest(file: Path, tmp_path: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    other = tmp_path / "other.gguf"
    other.write_bytes(content)
    assert read_header(other).digest != read_header(file).digest


@pytest.mark.parametrize("share", [0.0001, 0.01, 0.03, 0.2, 0.9, 0.999])
def test_a_cut_file_is_refused(file: Path, tmp_path: Path, share: float) -> None:
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])
    with pytest.raises(CheckpointError, match=r"cut.gguf (is no GGUF file|ends .* Download or convert it again)"):
        read_header(cut)


def test_a_file_of_another_format_is_refused(file: Path, tmp_path: Path) -> None:
    newer = tmp_path / "newer.gguf"
    newer.write_bytes(b"GGUF" + (9).to_bytes(4, "little") + file.read_bytes()[8:])
    with pytest.raises(CheckpointError, match="of version 9; this trimtab reads 2 and 3"):
        read_header(newer)
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_header(tmp_path / "absent.gguf")
