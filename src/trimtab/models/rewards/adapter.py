"""A reward model on a causal language model's own decoder: a score head, and maybe a LoRA adapter merged into it.

`trimtab train reward` writes the adapter and the head; the base is loaded apart and must be the one they were trained
on. No head is ever made up here: it is trained, or it is read.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from trimtab.errors import CheckpointError, CompatibilityError
from trimtab.models.adapters import files as adapter_files
from trimtab.models.adapters.lora import LoRA
from trimtab.models.hf import HFModel
from trimtab.models.trained_on import UNKNOWN, TrainedOn

SCORE = "score"
"""The name of the head in a reward model's checkpoint."""


def with_score_head(causal: Any, weight: Tensor) -> Any:
    """A sequence-classification model of one label on the decoder of a causal language model, which it shares.

    `weight` [1, D] is the head's. Raises CompatibilityError for an architecture without such a model.
    """
    config = copy.deepcopy(causal.config)
    config.num_labels = 1
    if config.get_text_config().pad_token_id is None:
        config.get_text_config().pad_token_id = 0  # a batch needs one; the last token is found by length
    try:
        with torch.device("meta"):
            module = transformers.AutoModelForSequenceClassification.from_config(config)
    except ValueError as error:
        raise CompatibilityError(
            f"{type(causal).__name__} has no sequence-classification model in transformers ({error}). {_ACCEPTED}"
        ) from error
    trunk, score = module.base_model_prefix, getattr(module, SCORE, None)
    alike = type(getattr(module, trunk, None)) is type(getattr(causal, trunk, None))
    if not alike or not isinstance(score, nn.Linear) or score.bias is not None:
        raise CompatibilityError(
            f"The {type(module).__name__} that goes with a {type(causal).__name__} reads the last token's state in "
            f"another way. {_ACCEPTED}"
        )
    if tuple(score.weight.shape) != tuple(weight.shape):
        raise CheckpointError(
            f"The score head is {list(weight.shape)}; one on {type(causal).__name__} with this width is "
            f"{list(score.weight.shape)}. Give the base that the head was trained on."
        )
    setattr(module, trunk, getattr(causal, trunk))
    head = nn.Linear(weight.shape[1], 1, bias=False, dtype=causal.dtype, device=causal.device)
    head.weight.data.copy_(weight)
    setattr(module, SCORE, head)
    return module


def read_reward_adapter(directory: Path, trained_on: TrainedOn = UNKNOWN) -> tuple[LoRA, Tensor]:
    """The adapter and the head [1, D] in `directory`.

    Raises CheckpointError for files that do not load or lack the head.
    """
    files, weight = adapter_files.read_with_head(directory, SCORE)
    if weight.ndim != 2 or weight.shape[0] != 1:
        raise CheckpointError(
            f"{directory} has a score head of shape {list(weight.shape)}; a reward model's has one row, for one number "
            "an answer. Train it with `trimtab train reward`."
        )
    return LoRA.of_files(files, directory, trained_on), weight


def merged_reward_module(base: HFModel, directory: Path, trained_on: TrainedOn = UNKNOWN) -> Any:
    """The adapter and the head in `directory`, merged into `base`, which is used up.

    Raises CheckpointError for files that do not load or lack the head, BaseMismatchError and VocabularyMismatchError
    for another base than the one it was trained on, CompatibilityError for one whose weights are quantised.
    """
    adapter, weight = read_reward_adapter(directory, trained_on)
    adapter.check(base)
    with torch.no_grad():
        for name, (down, up) in adapter.pairs.items():
            layer = base.module.get_submodule(name)
            change = up @ down if isinstance(layer, nn.Linear) else (up @ down).T  # GPT-2 keeps [in, out]
            kept = getattr(layer, "weight", None)
            if kept is None or kept.shape != change.shape or not kept.is_floating_point() or kept.dtype.itemsize == 1:
                raise CompatibilityError(
                    f"{name} of {base.name} is quantised, and no adapter is merged into that. Give the base as it was "
                    "before it was quantised."
                )
            kept += change.to(kept)
    return with_score_head(base.module, weight)


_ACCEPTED = "Accepted: decoders whose classifier is a linear `score` on the last token, such as Llama, Qwen and GPT-2."
