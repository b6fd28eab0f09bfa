"""The linear layers of a network in weights of fewer bits: which are replaced, and which models are refused."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from trimtab.errors import CompatibilityError, OptionError, unknown_name
from trimtab.models.quantize import KINDS
from trimtab.models.quantize.layers import CLASSES, QuantizedLinear, kind_of

_NARROWEST = 8
"""Layers of fewer outputs stay in float: score heads, and routers, whose choice of experts rounding would change."""


@torch.no_grad()
def quantize(module: Any, kind: str) -> None:
    """Replace a network's linear layers, its output head included, by ones with weights of fewer bits, in place.

    `kind` is one of `KINDS`. Embeddings, norms, and layers of a class of the model's own stay as they are; a head that
    shares its weight with the embeddings gets a packed copy. Raises OptionError for an unknown kind, for a model that
    is quantised already, and for one that is not float32 on the processor; CompatibilityError where this torch has no
    such kernels.
    """
    check_kind(kind)
    _check(module, kind)
    packed: dict[int, QuantizedLinear] = {}
    for name, part in list(module.named_modules(remove_duplicate=False)):
        if id(part) not in packed and (weight := _weight_of(part)) is not None:
            if weight.shape[0] < _NARROWEST or not CLASSES[kind].holds(weight):
                continue
            packed[id(part)] = CLASSES[kind](weight, part.bias).eval()
        if id(part) in packed:
            parent, _, last = name.rpartition(".")
            setattr(module.get_submodule(parent), last, packed[id(part)])
    if not packed:
        raise CompatibilityError(
            f"{type(module).__name__} has no linear layer that {kind} could hold. Leave `quantize` out."
        )


def supported_engines() -> list[str]:
    """The libraries of quantised kernels that this torch was built with, for this processor."""
    return list(torch.backends.quantized.supported_engines)


def refuse_place(
    kind: str,
    dtype: str | torch.dtype,
    device: str | torch.device,
    *,
    device_map: object | None = None,
    quantization_config: object | None = None,
) -> None:
    """Raise OptionError for what is asked for beside `quantize` and does not go with it, before anything is loaded."""
    check_kind(kind)
    if quantization_config is not None:
        raise OptionError(
            f"quantize {kind} and quantization_config are two ways to quantise a model; give one of them."
        )
    if device_map is not None or torch.device(device).type != "cpu":
        asked = f"device {device}" if device_map is None else "device_map"
        raise OptionError(
            f"quantize {kind} is for processors, and {asked} is given. Give device cpu, or leave quantize out; on a "
            "GPU give transformers' own `quantization_config`."
        )
    if str(dtype).removeprefix("torch.") not in ("auto", "float32"):
        raise OptionError(
            f"quantize {kind} computes in float32 around its packed weights, and dtype is {dtype}. Give dtype float32 "
            "or auto, or leave quantize out."
        )


def check_kind(kind: str) -> None:
    """Raise OptionError for a kind that is not one of `KINDS`."""
    if kind not in CLASSES:
        raise unknown_name("kind of quantisation", kind, KINDS)


def _check(module: Any, kind: str) -> None:
    before = kind_of(module)
    if before is not None:
        raise OptionError(f"The model is {before} already, and cannot be quantised to {kind}; quantise it once.")
    if getattr(module.config, "quantization_config", None) is not None:
        raise OptionError(
            f"The model is quantised already, by its own config; leave {kind} out, or give the checkpoint that it was "
            "made of."
        )
    weights = [weight for weight in module.parameters() if weight.is_floating_point()]
    wrong = next((one for one in weights if one.device.type != "cpu" or one.dtype != torch.float32), None)
    if wrong is not None:
        raise OptionError(
            f"{kind} is for float32 models on processors, and this one is {wrong.dtype} on {wrong.device}. Give dtype "
            "float32 (or auto) and device cpu; on a GPU give transformers' own `quantization_config`."
        )
    ops = ("linear_prepack", "linear_with_input_q_dq_qweight_dq_output_fp32", "linear_dynamic_fp16")
    if "fbgemm" not in supported_engines() or not all(hasattr(torch.ops.quantized, op) for op in ops):
        raise CompatibilityError(
            f"This torch has no kernels for {kind} (fbgemm, for x86 processors with AVX2). Leave `quantize` out."
        )


def _weight_of(part: nn.Module) -> torch.Tensor | None:
    """[out, in] of a plain linear layer; None for any other part, subclasses included, which may compute otherwise."""
    if type(part) is nn.Linear:
        return part.weight
    if type(part) is Conv1D:
        return torch.as_tensor(part.weight).t()  # GPT-2 keeps [in, out]
    return None
