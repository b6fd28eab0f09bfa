"""Random preference-aware guides of tiny models, in memory and on disk."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor

from trimtab.models.adapters.bilinear import write
from trimtab.models.hf import HFModel

OBJECTIVES = ("helpful", "harmless")
SCALE = 2.0


def random_tensors(
    model: HFModel,
    *,
    num_objectives: int = 2,
    shared_rank: int = 2,
    preference_rank: int = 3,
    targets: tuple[str, ...] = ("q_proj", "v_proj", "down_proj"),
    seed: int = 0,
) -> dict[str, dict[str, Tensor]]:
    """A, B, W1 and W2 of the linear layers of a tiny model, large enough to change it noticeably."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator) * 0.4

    rank = shared_rank + preference_rank
    return {
        name: {
            "A": normal(rank, module.in_features),
            "B": normal(module.out_features, rank),
            "W1": normal(shared_rank, shared_rank),
            "W2": normal(num_objectives, preference_rank, preference_rank),
        }
        for name, module in model.module.named_modules()
        if name.rsplit(".", 1)[-1] in targets
    }


def write_parm(directory: Path, model: HFModel, *, objectives: tuple[str, ...] = OBJECTIVES, seed: int = 0) -> Path:
    """A guide's directory as `trimtab train parm` writes it, with random tensors."""
    directory.mkdir(parents=True)
    write(directory, random_tensors(model, num_objectives=len(objectives), seed=seed), dtype=torch.float32)
    card = {
        "format": 1,
        "kind": "parm",
        "base": model.describe(),
        "parm": {"objectives": list(objectives), "scale": SCALE},
    }
    (directory / "guide.json").write_text(json.dumps(card))
    return directory
