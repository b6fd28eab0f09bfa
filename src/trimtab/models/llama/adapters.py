"""A LoRA adapter as a GGUF file that llama.cpp loads beside the weights, without touching them.

The format is llama.cpp's own: the keys `general.type`, `adapter.type` and `adapter.lora.alpha`, and for each adapted
weight two float32 tensors, `NAME.lora_a` [r, in] and `NAME.lora_b` [out, r]. llama.cpp adds alpha/r · B(A x); here the
scale lies in B already (`files.Pairs`), so alpha is the rank, or 0 (which means 1) where ranks differ. Where the
conversion of a base's weights permutes the rows of q and k, B's rows are permuted alike.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from torch import Tensor

from trimtab.errors import BaseMismatchError, CompatibilityError, MissingExtraError
from trimtab.models.adapters.lora import LoRA
from trimtab.models.llama.header import Header

_PERMUTED: Mapping[str, bool] = {"llama": True, "qwen2": False, "qwen3": False}
"""Architectures whose adapters were tried -> whether the rows of q and k are permuted."""
_WAY_OUT = "An adapter runs on the model that it was trained on: name that one as the guide's base (guide_base)."


def check_adapter(adapter: LoRA, header: Header) -> dict[str, str]:
    """Module -> the file's name of its weight. Raises BaseMismatchError for an adapter that does not fit the file.

    CompatibilityError where adapters of the file's architecture were not tried, MissingExtraError without `gguf`.
    """
    _architecture(header)
    names = _names(header)
    found: dict[str, str] = {}
    for module, (down, up) in adapter.pairs.items():
        name = names(f"{module}.weight")
        info = None if name is None else header.tensors.get(name)
        if name is None or info is None:
            raise BaseMismatchError(
                f"This adapter changes {module}, which {header.path.name} does not have. {_WAY_OUT}"
            )
        if info.shape != (up.shape[0], down.shape[1]):
            raise BaseMismatchError(
                f"This adapter expects {module} to map {down.shape[1]} to {up.shape[0]} features; that of "
                f"{header.path.name} maps {info.shape[-1]} to {info.shape[0]}. {_WAY_OUT}"
            )
        if name in ("token_embd.weight", "output.weight"):
            raise CompatibilityError(
                f"This adapter changes {module}, which llama.cpp does not adapt. Use --backend transformers."
            )
        found[module] = name
    return found


def write_adapter(path: Path, adapter: LoRA, header: Header, *, name: str = "") -> None:
    """Write an adapter for the model of a GGUF file, whole or not at all. Raises as `check_adapter` does."""
    names = check_adapter(adapter, header)
    import gguf

    ranks = {int(down.shape[0]) for down, _ in adapter.pairs.values()}
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(descriptor)
    try:
        writer = gguf.GGUFWriter(temporary, header.architecture)
        writer.add_type(gguf.GGUFType.ADAPTER)
        writer.add_name(name or path.stem)
        writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
        writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, float(ranks.pop()) if len(ranks) == 1 else 0.0)
        for module, (down, up) in adapter.pairs.items():
            writer.add_tensor(f"{names[module]}.lora_a", _array(down))
            writer.add_tensor(f"{names[module]}.lora_b", _array(_rows(module, up, header)))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        Path(temporary).chmod(0o644)
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)


def adapter_file(adapter: LoRA, header: Header, cache: Path) -> Path:
    """The adapter as a file in the cache, named by its content and the base's; written where it is not there yet."""
    names = check_adapter(adapter, header)
    digest = hashlib.sha256(f"{header.digest} {header.architecture}".encode())
    for module, pair in sorted(adapter.pairs.items()):
        digest.update(names[module].encode())
        for side in pair:
            digest.update(_array(side).tobytes())
    path = cache / f"adapter-{digest.hexdigest()[:24]}.gguf"
    if not path.exists():
        write_adapter(path, adapter, header)
    return path


def _architecture(header: Header) -> bool:
    """Whether rows of q and k are permuted. Raises CompatibilityError for an architecture that was not tried."""
    if header.architecture not in _PERMUTED:
        raise CompatibilityError(
            f"{header.path.name} is of the architecture {header.architecture!r}, for which adapters were not tried in "
            f"llama.cpp. Accepted: {', '.join(_PERMUTED)}. Use --backend transformers, which runs this guide."
        )
    return _PERMUTED[header.architecture]


class _names:  # noqa: N801  it is called as a function
    """Names of weights as transformers has them -> as the file has them."""

    def __init__(self, header: Header) -> None:
        if importlib.util.find_spec("gguf") is None:
            raise MissingExtraError("gguf", "llama", "A LoRA guide on a GGUF file")
        import gguf

        kinds = {text: kind for kind, text in gguf.MODEL_ARCH_NAMES.items()}
        self._table = gguf.get_tensor_name_map(kinds[header.architecture], header.number("block_count") or 0)

    def __call__(self, weight: str) -> str | None:
        found: str | None = self._table.get_name(weight, try_suffixes=(".weight", ".bias"))
        return found


def _rows(module: str, up: Tensor, header: Header) -> Tensor:
    """B with its rows in the file's order."""
    last = module.rpartition(".")[2]
    if not _architecture(header) or last not in ("q_proj", "k_proj"):
        return up
    key = "attention.head_count" if last == "q_proj" else "attention.head_count_kv"
    heads = header.number(key) or header.number("attention.head_count")
    if heads is None or up.shape[0] % (2 * heads):
        raise CompatibilityError(f"{header.path.name} does not say how many heads {module} has.")
    return up.view(heads, 2, -1, up.shape[1]).transpose(1, 2).reshape(up.shape)


def _array(values: Tensor) -> np.ndarray:
    return np.ascontiguousarray(values.detach().float().cpu().numpy())
