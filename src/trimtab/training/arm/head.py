"""Training of a head alone: the frozen model's states and logits, and beside them what the head adds (`guides.head`).

The head is peft's adapter of the output head, so that its weights, checkpoints and resuming are those of any adapter. A
hook takes its product out of that layer, which then gives the base's logits as they are: soft caps and scales come
before the head is added, in training as in decoding.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from peft import LoraConfig, PeftModel
from torch import Tensor, nn
from transformers import Trainer
from trl import RewardConfig

from trimtab.errors import CompatibilityError, OptionError, naming
from trimtab.models.adapters.low_rank_head import LowRankHead
from trimtab.models.adapters.row_lora import output_head
from trimtab.training.arm.trainer import ArmTrainer, Beside, arm_config, parts_on_rows
from trimtab.training.pairs.losses import head_logprobs, sequence_means, token_logprobs
from trimtab.training.pairs.packing import Packed
from trimtab.training.pairs.tokens import TokenData
from trimtab.training.run.run import Job
from trimtab.training.run.settings import ArmSettings
from trimtab.training.run.trainer import TrainerParts

if TYPE_CHECKING:
    from trimtab.models.hf import HFModel

_ADAPTER = "default"
"""peft's name of the one adapter."""


class HeadTrainer(ArmTrainer):
    """`ArmTrainer` where the rewards of tokens are log-probabilities under base and head together, averaged over a
    response's tokens; `weight` is the head's in that mix. Beside the base, the base's are taken out of them."""

    pooled = staticmethod(sequence_means)

    def __init__(self, *, weight: float, **options: object) -> None:
        with spared_ties():
            super().__init__(**options)  # type: ignore[arg-type]
        keep_head_out(self.model)
        self._weight = weight

    def _token_rewards(
        self, model: nn.Module, rows: Packed, masks: Tensor | dict[str, Tensor], beside: Beside | None
    ) -> Tensor:
        with taken_out(self.accelerator.unwrap_model(model)) as scores:
            logits = self._logits(model, rows, masks)
        mixed = head_logprobs(logits, scores[0], rows.token_ids, weight=self._weight)
        # What the base says is at hand here, whatever it is asked for.
        return mixed if beside is None else mixed - token_logprobs(logits, rows.token_ids)


@contextmanager
def spared_ties() -> Iterator[None]:
    """Inside, peft does not warn that the output head is tied to the embeddings: these stay as they are, since what is
    trained is written as a file of its own and is never merged."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*tied layer is part of the adapter", category=UserWarning)
        yield


def keep_head_out(model: PeftModel) -> None:
    """Keep the output head itself, which peft would write, out of the checkpoints of a head beside it."""
    model.save_pretrained = partial(model.save_pretrained, save_embedding_layers=False)


@contextmanager
def taken_out(plain: PeftModel) -> Iterator[list[Tensor]]:
    """Inside, the output head gives the base's numbers, and what the adapter would add, B A h, is put into the list."""
    scores: list[Tensor] = []

    def take(layer: nn.Module, args: tuple[Tensor, ...], product: Tensor) -> Tensor:
        scores.append(product)
        return torch.zeros_like(product)

    up = plain.get_output_embeddings().lora_B[_ADAPTER]
    handle = up.register_forward_hook(take)
    try:
        yield scores
    finally:
        handle.remove()


def output_layer(host: HFModel, rank: int) -> nn.Linear:
    """The output head that a head stands beside.

    Raises OptionError for a rank above its width, CompatibilityError for a model whose output head is no linear layer
    on its final state.
    """
    layer = host.module.get_output_embeddings()
    if not isinstance(layer, nn.Linear):
        raise naming(
            CompatibilityError,
            "{head_only} trains a head beside a linear output layer; that of {0} is a {1}. Train an adapter instead.",
            *(type(host.module).__name__, type(layer).__name__),
        )
    if rank > layer.in_features:
        raise naming(
            OptionError,
            "{head_only} is {0}, and the states of {1} have width {2}. Give a rank of at least 1 and at most {2}.",
            *(rank, host.name, layer.in_features),
        )
    if not _reads_final_state(host, layer):
        raise naming(
            CompatibilityError,
            "{head_only} trains on the model's final state, which {0} changes before its output head reads it: in "
            "decoding the head would read something else. Train an adapter instead.",
            type(host.module).__name__,
        )
    return layer


@torch.no_grad()
def _reads_final_state(host: HFModel, layer: nn.Linear) -> bool:
    """Whether the input of the output head is the state that sessions give, seen on a few tokens."""
    ids = torch.arange(min(8, host.num_embeddings), device=host.device)[None]
    seen: list[Tensor] = []
    handle = layer.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    try:
        host.module(input_ids=ids, use_cache=False)
    finally:
        handle.remove()
    states = host.states(ids, torch.arange(ids.shape[1], device=host.device)[None])
    return seen[0].shape == states.shape and torch.allclose(seen[0].float(), states.float(), rtol=0.05, atol=0.05)


def head_config(settings: ArmSettings, workspace: Path) -> RewardConfig:
    """TRL's configuration; in a process group the head's gradients come from beside the model's output."""
    config = arm_config(settings, workspace)
    config.ddp_find_unused_parameters = False
    return config


def head_parts(
    host: HFModel, train: TokenData, held: TokenData, settings: ArmSettings, world_size: int
) -> TrainerParts[ArmTrainer]:
    """What the trainer is built of (`build_trainer`)."""
    make = partial(HeadTrainer, weight=settings.mix_weight)
    adapter = head_adapter(host, settings.head_only, dropout=settings.lora_dropout)
    return parts_on_rows(host, train, held, settings, world_size, make, adapter=adapter)


def head_adapter(host: HFModel, rank: int, *, dropout: float) -> LoraConfig:
    """peft's configuration of a head. A is random and B is 0: the head adds nothing at first."""
    name = output_head(host.module)
    assert name is not None, "`output_layer` has looked"
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=rank,
        lora_alpha=rank,  # so that peft's scale, alpha / rank, is 1
        lora_dropout=dropout,
        target_modules=[name],
    )


def head_job(job: Job, layer: nn.Linear, rank: int, save_dtype: str) -> Job:
    """The job of a training that ends in a head beside this output layer: its card's facts, and what writes it."""
    shape = {"rank": rank, "hidden_size": layer.in_features, "vocab_size": layer.out_features}
    return replace(
        job, facts={**job.facts, "form": "head", "head": shape}, write=partial(write_head, save_dtype=save_dtype)
    )


def write_head(directory: Path, trainer: Trainer, weights: Mapping[str, Tensor], *, save_dtype: str) -> None:
    """The trained matrices as a head's file; `weights` are `sharding.whole_weights`."""
    down, up = (
        next(tensor for name, tensor in weights.items() if name.endswith(f"lora_{side}.{_ADAPTER}.weight"))
        for side in ("A", "B")
    )
    LowRankHead(down, up).save(directory, dtype=getattr(torch, save_dtype))
