"""How a frozen model's float32 products with few rows are computed on a processor that is not Intel's.

torch hands float32 products to MKL, which on such processors takes a slow road for two rows and more: on an AMD EPYC
(Zen 4, torch 2.13) two rows took 2.1 times what one does and three rows 3.6 times, although all of them read the same
weights. oneDNN, which torch brings along as well, takes 1.1 and 1.2 times. A step of decoding with a guide that is an
adapter, with candidates that an agent looks at or with drafted tokens is such a product, so there the layers of a model
are told to use oneDNN. Numbers differ by rounding, as they do between numbers of rows.

The choice is by the processor's maker, not by a stopwatch: a request has to give the same tokens tomorrow.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor, nn

from trimtab.models.processor import cpu_info


class FewRowsLinear(nn.Linear):
    """An `nn.Linear` whose float32 products on a processor are oneDNN's where no gradient is asked for."""

    def forward(self, input: Tensor) -> Tensor:
        is_plain = input.dtype is torch.float32 and self.weight.dtype is torch.float32 and input.device.type == "cpu"
        if not is_plain or torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"):
            return super().forward(input)
        num_rows = input.numel() // input.shape[-1]
        if num_rows < 2:
            return super().forward(input)
        if num_rows == 2 and self.out_features >= self.in_features and self.bias is None:
            turned = torch.mm(self.weight, input.reshape(2, -1).t())  # [out, 2]
            return turned.t().contiguous().view(*input.shape[:-1], -1)
        product: Tensor = torch.ops.mkldnn._linear_pointwise(input, self.weight, self.bias, "none", [], "")
        return product


def hasten(module: nn.Module) -> None:
    """Give every `nn.Linear` of a model the faster product, where this machine's usual one is slow.

    A layer keeps its weights, its name and its place, and is an `nn.Linear` as before; only its class says more.
    """
    if not is_slow_here():
        return
    for layer in module.modules():
        if type(layer) is nn.Linear:
            layer.__class__ = FewRowsLinear


@cache
def is_slow_here() -> bool:
    """Whether torch's float32 products are MKL's on a processor of another maker, and oneDNN is there."""
    if not (torch._C.has_mkl and hasattr(torch.ops.mkldnn, "_linear_pointwise")):
        return False
    return cpu_info("vendor_id") not in ("GenuineIntel", None)
