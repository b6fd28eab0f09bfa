"""LoRA guides at the price of rows: each adapter is another block of rows in the base's own pass.

The base runs once over [base rows | rows of adapter 1 | rows of adapter 2 ...]. Its weights are read once. Linear
layers add x Aᵀ Bᵀ (Hu et al., arXiv 2106.09685) to the rows of each adapter; attention layers have a twin for each
adapter, with keys and values of its own in vLLM's cache.

Why not vLLM's own multi-adapter kernels: they look up an adapter for each row and need two requests to advance in step;
here an adapter's rows are one block, so two plain products do.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.layers.linear import (
    LinearBase,
    LinearMethodBase,
    MergedColumnParallelLinear,
    QKVParallelLinear,
    ReplicatedLinear,
    RowParallelLinear,
)

from trimtab.errors import CompatibilityError
from trimtab.models.adapters.files import Pairs

_WAY_OUT = "Pack it with --lora merged, which runs the adapted model as a second one."


def share(base: nn.Module, adapters: Sequence[Pairs], layers: dict[str, Any], *, prefix: str) -> None:
    """Give `base` a block of rows for each adapter. `layers` is vLLM's table of attention layers by name, in which
    those of the base begin with `prefix` and a dot.

    Raises CompatibilityError for a base or an adapter that cannot run so.
    """
    known = {name: module for name, module in layers.items() if name.startswith(f"{prefix}.")}
    for name, module in known.items():
        if type(module) is not Attention:
            raise CompatibilityError(
                f"{name} of its base is a {type(module).__name__}, of which no row can have a "
                f"twin for an adapter. {_WAY_OUT}"
            )
    for module in list(base.modules()):
        for name, child in list(module.named_children()):
            if type(child) is Attention:
                setattr(module, name, TwinAttention(child, len(adapters), layers))
    parts = _parts(base)
    for number, pairs in enumerate(adapters):
        for path, products in _by_layer(base, pairs, parts).items():
            _adapt(base.get_submodule(path), number, len(adapters), products)


class TwinAttention(nn.Module):
    """An attention layer and its twins, each on its block of rows, with keys and values of its own."""

    def __init__(self, first: Attention, num_twins: int, layers: dict[str, Any]) -> None:
        super().__init__()
        self.first = first
        self._names = [f"twin_{number}" for number in range(num_twins)]
        for name in self._names:
            twin = copy.deepcopy(first)
            twin.layer_name = f"{first.layer_name}_{name}"
            layers[twin.layer_name] = twin
            setattr(self, name, twin)

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """[B, heads · head_dim] each, in equal blocks -> the same shape as one attention layer gives."""
        every = [self.first, *(getattr(self, name) for name in self._names)]
        blocks = zip(every, query.chunk(len(every)), key.chunk(len(every)), value.chunk(len(every)), strict=True)
        return torch.cat([layer(q, k, v) for layer, q, k, v in blocks])


class AdaptedLinear(LinearMethodBase):  # type: ignore[misc]
    """A linear layer's own method, with an adapter's product added to each adapter's block of rows.

    In a row-parallel layer the product comes before the sum over ranks: Σ_r B A_r x_r = B A x.
    """

    def __init__(self, inner: Any, num_adapters: int) -> None:
        self.inner = inner
        self.num_blocks = 1 + num_adapters
        self.adapted: list[int] = []

    def create_weights(self, layer: nn.Module, *_: Any) -> None:
        raise NotImplementedError("the layer had its weights before it was adapted")

    def process_weights_after_loading(self, layer: nn.Module) -> None:
        self.inner.process_weights_after_loading(layer)

    def apply(self, layer: nn.Module, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """[blocks · T, in] -> [blocks · T, out]."""
        output: Tensor = self.inner.apply(layer, x, bias)
        blocks, inputs = output.chunk(self.num_blocks), x.chunk(self.num_blocks)
        for number in self.adapted:
            down, up = getattr(layer, f"adapter_{number}_down"), getattr(layer, f"adapter_{number}_up")
            blocks[1 + number].addmm_(inputs[1 + number] @ down, up)
        return output


def _parts(base: nn.Module) -> dict[str, tuple[str, int]]:
    """Name of a layer in transformers -> vLLM's fused layer that holds it, and its place there."""
    table: Mapping[str, Sequence[str]] = getattr(base, "packed_modules_mapping", {})
    return {name: (fused, place) for fused, names in table.items() for place, name in enumerate(names)}


def _by_layer(
    base: nn.Module, pairs: Pairs, parts: Mapping[str, tuple[str, int]]
) -> dict[str, list[tuple[int | None, Tensor, Tensor]]]:
    """vLLM's layer -> (place in it, or None: all of it; A [r, in]; B [out, r]) of what an adapter changes there."""
    layers: dict[str, list[tuple[int | None, Tensor, Tensor]]] = {}
    for name, (down, up) in pairs.items():
        above, _, last = name.rpartition(".")
        fused, place = parts.get(last, (last, None))
        path = f"{above}.{fused}" if above else fused
        try:
            layer = base.get_submodule(path)
        except AttributeError:
            layer = None
        if not isinstance(layer, LinearBase):
            raise CompatibilityError(
                f"This adapter changes {name}, which is not a linear layer of a {type(base).__name__} in vLLM. "
                f"{_WAY_OUT}"
            )
        layers.setdefault(path, []).append((place, down, up))
    return layers


def _adapt(layer: Any, number: int, num_adapters: int, products: Sequence[tuple[int | None, Tensor, Tensor]]) -> None:
    """Give a linear layer an adapter: Aᵀ [in, R] and Bᵀ [R, out] of this rank, fused products side by side."""
    if not isinstance(layer.quant_method, AdaptedLinear):
        layer.quant_method = AdaptedLinear(layer.quant_method, num_adapters)
    downs, ups = [], []
    for place, down, up in products:
        first, end, rows = _cut(layer, place, up)
        wide = torch.zeros(sum(_widths(layer)), up.shape[1])
        wide[first:end] = up[rows]
        downs.append(down[:, _columns(layer, down)])
        ups.append(wide)
    weight = layer.weight if hasattr(layer, "weight") else next(layer.parameters())
    dtype, device = layer.params_dtype, weight.device
    layer.register_buffer(f"adapter_{number}_down", torch.cat(downs).T.to(device, dtype).contiguous(), persistent=False)
    layer.register_buffer(f"adapter_{number}_up", torch.cat(ups, 1).T.to(device, dtype).contiguous(), persistent=False)
    layer.quant_method.adapted.append(number)


def _widths(layer: Any) -> list[int]:
    """Output features of each part of a layer on this rank."""
    return [int(width) for width in getattr(layer, "output_partition_sizes", [layer.output_size])]


def _columns(layer: Any, down: Tensor) -> slice:
    """The inputs that a row-parallel layer sees on this rank."""
    if not isinstance(layer, RowParallelLinear) or layer.tp_size == 1:
        return slice(None)
    width = down.shape[1] // layer.tp_size
    return slice(layer.tp_rank * width, (layer.tp_rank + 1) * width)


def _cut(layer: Any, place: int | None, up: Tensor) -> tuple[int, int, slice]:
    """Where a part's product goes among this rank's outputs [first, end), and which rows of B [out, r] they are."""
    if isinstance(layer, RowParallelLinear | ReplicatedLinear):
        return 0, up.shape[0], slice(None)
    widths = _widths(layer)
    index = 0 if place is None else place
    if place is None and len(widths) > 1:  # fused in the checkpoint as well
        if layer.tp_size > 1:
            raise CompatibilityError(
                f"{layer.prefix} is fused in the checkpoint; an adapter of it cannot be cut for "
                f"several ranks. {_WAY_OUT}"
            )
        return 0, sum(widths), slice(None)
    rank = layer.tp_rank
    if isinstance(layer, QKVParallelLinear) and index > 0:
        rank //= layer.num_kv_head_replicas
    elif not isinstance(layer, QKVParallelLinear | MergedColumnParallelLinear):
        index = 0
    first = sum(widths[:index])
    return first, first + widths[index], slice(rank * widths[index], (rank + 1) * widths[index])
