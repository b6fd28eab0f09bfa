"""What a training computes in on a processor where nobody says: bfloat16 where it is faster there, by measurement.

Processors differ by a factor of five in how fast they multiply in bfloat16, and no name of an instruction set tells
whether the one at hand gains by it. So one product of the model's own size is timed, in a fraction of a second, before
the first step. What was found is written down with the run's settings, and a run that is continued goes on with it.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Mapping
from typing import TypeVar

import torch
from torch import nn
from transformers import PreTrainedModel

from trimtab import environment
from trimtab.models.processor import medians
from trimtab.training.run import checkpoints
from trimtab.training.run.arguments import RunArguments
from trimtab.training.run.settings import DTYPES, RunSettings

log = logging.getLogger(__name__)

SettingsT = TypeVar("SettingsT", bound=RunSettings)

WORTH = 1.3
"""So many times as fast has a product in bfloat16 to be: the rest of a step gains less."""
_SMALLEST = 1 << 18
"""Weights of a layer below which a step is made of other things than products."""
_NUM_TOKENS = 512
_NUM_TURNS = 5


def as_begun(settings: SettingsT, arguments: RunArguments) -> SettingsT:
    """The settings, with what the run to be continued was begun in where they leave it open."""
    if settings.dtype != "auto":
        return settings
    before = _begun(arguments) or {}
    section = before.get("hyperparameters")
    begun = section.get("dtype") if isinstance(section, Mapping) else None
    return dataclasses.replace(settings, dtype=begun) if begun in DTYPES else settings


def measured(settings: SettingsT, module: nn.Module, arguments: RunArguments) -> SettingsT:
    """The settings, with "bfloat16" for "auto" where a new run on this processor is faster in it.

    Several processes would not find the same, so they stay in float32.
    """
    from trimtab.training.run.configs import uses_bfloat16

    alone = environment.WORLD_SIZE.whole(1) == 1
    if settings.dtype != "auto" or torch.accelerator.is_available() or not alone or _begun(arguments) is not None:
        return settings
    if uses_bfloat16(settings):  # the launcher has said so
        return settings
    return dataclasses.replace(settings, dtype="bfloat16") if _pays(module) else settings


def rolls_out_compact(dtype: str, module: nn.Module, arguments: RunArguments) -> bool:
    """Whether a loaded model that rolls out in this process is to be kept in bfloat16, where `dtype` leaves it open."""
    if dtype != "auto" or next(module.parameters()).device.type != "cpu":
        return False
    before = _begun(arguments)
    return _pays(module) if before is None else before.get("dtype") == "bfloat16"


def _pays(module: nn.Module) -> bool:
    gain = bfloat16_gain(module)
    if gain >= WORTH:
        log.info("computing in bfloat16, %.1f times as fast as float32 in this model's products", gain)
    return gain >= WORTH


def _begun(arguments: RunArguments) -> Mapping[str, object] | None:
    """What the run to be continued says of itself; None where there is none, {} where nobody can read it."""
    path = arguments.workspace / checkpoints.RUN
    if not arguments.resume or not path.exists():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return {}  # whoever opens the workspace says what is wrong with it
    return found if isinstance(found, dict) else {}


def bfloat16_gain(module: nn.Module) -> float:
    """How many times as fast as in float32 a model's largest layer runs in bfloat16, its head left out; 1 for a small
    model."""
    head = module.get_output_embeddings() if isinstance(module, PreTrainedModel) else None
    layers = [layer for layer in module.modules() if isinstance(layer, nn.Linear) and layer is not head]
    shape = max((layer.weight.shape for layer in layers), key=lambda shape: shape.numel(), default=torch.Size((0, 0)))
    if shape.numel() < _SMALLEST:
        return 1.0
    states, weight = torch.ones(_NUM_TOKENS, shape[1]), torch.ones(shape)
    exact, compact = medians([[(states, weight)], [(states.bfloat16(), weight.bfloat16())]], _NUM_TURNS)
    return exact / max(compact, 1e-9)


def compact(module: nn.Module) -> None:
    """Keep a frozen model's weights in bfloat16; its buffers, such as the frequencies of positions, stay exact."""
    for weight in module.parameters():
        if weight.dtype == torch.float32:
            weight.data = weight.data.bfloat16()
