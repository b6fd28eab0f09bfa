"""Linear layers with weights of 8 or 16 bits, for processors, on kernels that come with torch (FBGEMM).

What a layer gives for a row never depends on the rows beside it, to the last bit: nothing is scaled by a whole batch.

`Int8Linear` holds a weight as 8-bit integers, one scale for each output (symmetric). A row x whose largest magnitude is
s is written in two digits to the base 2n (n = 127): x = s/n · (a + b/2n), a and b integers of 8 bits. Both digits are
rows of one product of 8-bit integers, whose sums are exact in 32 bits. One digit would be faster, and would make a
model's numbers depend on their company all the same: sums in attention are made in another order for another batch, and
each of their last bits that crosses the boundary of an 8-bit step becomes a whole step, layer after layer.

`Float16Linear` holds a weight in half precision and computes in float32.
"""

from __future__ import annotations

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from trimtab.errors import OptionError

_TINY = 1e-30
"""The least magnitude that a row is scaled by: nothing divides by zero."""
_LONGEST = 65_536
"""Products of 8 bits whose sum is certain to fit into 32."""
_LARGEST_HALF = torch.finfo(torch.float16).max


class QuantizedLinear(nn.Module, ABC):
    """A frozen linear layer with packed weights, for float32 inputs on a processor."""

    kind: ClassVar[str]
    """What `quantize` calls it."""
    bits: ClassVar[int]
    """Bits of one weight."""
    rounding: ClassVar[float]
    """By how much two neighbouring numbers differ, relatively, as the layer computes them."""
    bias: Tensor | None
    anchor: Tensor
    """Goes where the layer is moved to, in the dtype that it is cast to."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.out_features, self.in_features = map(int, weight.shape)
        self.register_buffer("bias", None if bias is None else bias.detach().float().clone())
        self.register_buffer("anchor", torch.zeros((), device=weight.device), persistent=False)

    @classmethod
    @abstractmethod
    def holds(cls, weight: Tensor) -> bool:
        """Whether a weight [out, in] can be held so."""

    @abstractmethod
    def product(self, rows: Tensor) -> Tensor:
        """[N, in] float32 -> [N, out], the bias added; N is at least 1."""

    @property
    def num_bytes(self) -> int:
        """What one product reads of weights."""
        return self.out_features * self.in_features * self.bits // 8

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] float32 -> [..., out]. Raises OptionError where a gradient is asked for."""
        if torch.is_grad_enabled() and x.requires_grad:
            raise OptionError(
                f"A model quantised to {self.kind} cannot be trained: no gradient passes its layers. Load it without "
                "`quantize`."
            )
        rows = x.reshape(-1, self.in_features)
        found = self.product(rows) if len(rows) else rows.new_zeros(0, self.out_features)
        return found.view(*x.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, kind={self.kind}"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        move: Callable[[Callable[[Tensor], Tensor], bool], nn.Module] = super()._apply
        move(fn, recurse)
        if self.anchor.device.type != "cpu" or self.anchor.dtype != torch.float32:
            raise OptionError(
                f"A model quantised to {self.kind} stays on the processor, and in float32 around its packed weights; "
                f"it was to be {self.anchor.dtype} on {self.anchor.device}. Load it anew, without `quantize`."
            )
        return self


class Int8Linear(QuantizedLinear):
    """A weight of 8-bit integers, a scale for each output, and inputs of two 8-bit digits, a scale for each row."""

    kind = "int8"
    bits = 8
    rounding = 2.0**-13

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__(weight, bias)
        self.levels = 127 if has_vnni() else 63
        weight = weight.detach().float()
        scales = weight.abs().amax(1).clamp_min(_TINY) / 127
        zeros = torch.zeros(len(scales), dtype=torch.int64)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch may drop its quantised tensors; `network` asks for them first
            whole = torch.quantize_per_channel(weight, scales.double(), zeros, 0, torch.qint8)
        self._packed = torch.ops.quantized.linear_prepack(whole, None)

    @classmethod
    def holds(cls, weight: Tensor) -> bool:
        return weight.shape[1] <= _LONGEST

    def product(self, rows: Tensor) -> Tensor:
        count, levels = len(rows), self.levels
        digits = rows.new_empty(2 * count, self.in_features)
        first, second = digits[:count], digits[count:]
        largest = torch.linalg.vector_norm(rows, math.inf, dim=-1, keepdim=True).clamp_min_(_TINY)
        torch.mul(rows, levels / largest, out=second)
        torch.round(second, out=first)
        second.sub_(first).mul_(2 * levels)
        products: Tensor = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32(
            digits, 1.0, levels + 1, self._packed
        )
        total = products[:count].add_(products[count:], alpha=1 / (2 * levels)).mul_(largest.mul_(1 / levels))
        return total if self.bias is None else total.add_(self.bias)


class Float16Linear(QuantizedLinear):
    """A weight in half precision; inputs, sums and outputs in float32."""

    kind = "float16"
    bits = 16
    rounding = torch.finfo(torch.float32).eps

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__(weight, bias)
        self._packed = torch.ops.quantized.linear_prepack_fp16(weight.detach().float().contiguous(), None)

    @classmethod
    def holds(cls, weight: Tensor) -> bool:
        return float(weight.abs().max()) <= _LARGEST_HALF

    def product(self, rows: Tensor) -> Tensor:
        found: Tensor = torch.ops.quantized.linear_dynamic_fp16(rows.contiguous(), self._packed)
        return found if self.bias is None else found.add_(self.bias)


CLASSES: Mapping[str, type[QuantizedLinear]] = {layer.kind: layer for layer in (Int8Linear, Float16Linear)}
"""A kind of `quantize.KINDS` -> its layer."""


def kind_of(module: nn.Module) -> str | None:
    """What a network is quantised to here; None for one that is not."""
    return next((part.kind for part in module.modules() if isinstance(part, QuantizedLinear)), None)


def packed_bytes(module: nn.Module) -> int:
    """What the packed weights of a network take."""
    return sum(part.num_bytes for part in module.modules() if isinstance(part, QuantizedLinear))


def has_vnni() -> bool:
    """Whether the processor adds products of 8 bits in 32 bits; else in 16, which two of 8 bits overflow."""
    return bool(torch.cpu._is_vnni_supported())
