"""Wide rows keep states and weights apart, to the bit, in any dtype."""

from __future__ import annotations

import struct

import pytest
import torch

from trimtab.engines.vllm.network import rows

AWKWARD = [0.0, 1.0, -0.5, 1e-30, 3.4e38, struct.unpack("<f", struct.pack("<I", 0x3F807FC1))[0]]
"""The last one's lower half is a NaN in bfloat16."""


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("num_guides", [1, 3])
def test_what_is_joined_is_split_again(dtype: torch.dtype, num_guides: int) -> None:
    generator = torch.Generator().manual_seed(0)
    sizes = [8, 5, 12]
    states = [torch.randn(len(AWKWARD), size, generator=generator).to(dtype) for size in sizes]
    weights = torch.tensor(AWKWARD)[:, None].repeat(1, num_guides).roll(1, 0)
    weights[:, -1] = torch.tensor(AWKWARD)
    wide = rows.join(states, weights)
    assert wide.dtype == dtype
    assert wide.shape == (len(AWKWARD), sum(sizes) + rows.num_columns(num_guides, dtype))
    order = torch.tensor([3, 5, 0])  # whatever is done to rows is done to all of a row
    found, found_weights = rows.split(wide[order], sizes, num_guides)
    assert all(torch.equal(one, other[order]) for one, other in zip(found, states, strict=True))
    assert torch.equal(found_weights, weights[order])
