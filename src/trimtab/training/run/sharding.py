"""Weights that are spread over the processes of a run (FSDP2, DeepSpeed's ZeRO): what is refused, how to gather them.

How weights are spread is accelerate's and is configured by its launcher; a trainer's loss knows nothing of it. What
has to know is what reads weights: the directory that is written at the end.
"""

from __future__ import annotations

import importlib.util

import torch
from accelerate.utils import DistributedType
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import Trainer, TrainingArguments

from trimtab import environment
from trimtab.errors import MissingExtraError, OptionError


def check_installed() -> None:
    """Raise MissingExtraError where `accelerate launch` asks for a package that is not here; it does not look."""
    if _ASKED["DeepSpeed"].is_true() and importlib.util.find_spec("deepspeed") is None:
        raise MissingExtraError("deepspeed", "deepspeed", "The launch, which asks for DeepSpeed,")


def check_launch(config: TrainingArguments, *, in_shards: bool) -> None:
    """Raise OptionError where `accelerate launch` asks for sharding that a run could not honour.

    `config` has joined the process group; `in_shards` is whether the method can.
    """
    sharder = next((name for name, variable in _ASKED.items() if variable.is_true()), None)
    if sharder is None:
        return
    if not in_shards:
        raise OptionError(
            f"The launch asks for {sharder}, and only train arm can spread its weights over processes, where the base "
            "is not in its loss. Set distributed_type: MULTI_GPU, where every process holds them all."
        )
    if sharder == "FSDP" and environment.FSDP_VERSION.read() != "2":
        raise OptionError(
            "The launch asks for FSDP 1, whose weights trimtab does not gather. Set fsdp_version: 2 in fsdp_config."
        )
    if config.distributed_state is None or config.distributed_state.distributed_type in _UNSHARDED:
        raise OptionError(
            f"The launch asks for {sharder}, and accelerate shards only between accelerators: there is none here. For "
            "CPU processes use recipes/two_processes_cpu.yaml; recipes/dry_run.py tries a sharded configuration."
        )


def whole_weights(trainer: Trainer) -> dict[str, Tensor]:
    """What was trained, and the buffers, whole and on the CPU: name in the model -> weight, in the main process.

    Every process has to call it; the others get none. Weights that are tied are one tensor. ZeRO's are the optimiser's
    own copies in float32 where it keeps some.
    """
    state = trainer.accelerator.unwrap_model(trainer.model).state_dict(keep_vars=True)
    gathered: dict[int, Tensor] = {}
    for value in state.values():
        trained = value.requires_grad or not isinstance(value, nn.Parameter | DTensor)
        if trained and id(value) not in gathered:
            whole = _whole(value, zero=trainer.is_deepspeed_enabled)  # all processes take part
            gathered[id(value)] = whole.detach().to("cpu") if trainer.accelerator.is_main_process else torch.empty(0)
    if not trainer.accelerator.is_main_process:
        return {}
    return {name: gathered[id(value)] for name, value in state.items() if id(value) in gathered}


def _whole(value: Tensor, *, zero: bool) -> Tensor:
    if isinstance(value, DTensor):
        return value.full_tensor()
    if zero and value.requires_grad:
        from deepspeed.utils import safe_get_full_fp32_param

        whole: Tensor | None = safe_get_full_fp32_param(value)
        return value if whole is None else whole
    return value


_ASKED = {"FSDP": environment.USE_FSDP, "DeepSpeed": environment.USE_DEEPSPEED}
"""What can shard -> the variable by which accelerate's launcher asks for it."""
_UNSHARDED = (DistributedType.NO, DistributedType.MULTI_CPU)
