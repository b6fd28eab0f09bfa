"""What a run tells TRL: the trainer's configuration, from the settings that runs share.

Everything a trainer does beside its loss (optimiser, schedule, devices, processes, checkpoints, resuming, trackers) is
TRL's and transformers'.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from torch import nn
from transformers import TrainingArguments
from transformers.integrations import integration_utils

from trimtab import environment
from trimtab.errors import OptionError, naming, unknown_name
from trimtab.training.run.settings import PairSettings, RunSettings
from trimtab.training.run.sharding import check_installed


def uses_bfloat16(settings: RunSettings) -> bool:
    """Whether to compute in bfloat16 (see `RunSettings.dtype`).

    Raises OptionError where `accelerate launch` asks for another precision, since it would have its way.
    """
    launched = environment.MIXED_PRECISION.read() or "no"
    if launched not in ("no", "bf16") or (launched == "bf16" and settings.dtype == "float32"):
        raise naming(
            OptionError,
            "accelerate's mixed_precision is {0}, and {dtype} is {1}. Accepted: mixed_precision no, or bf16 with "
            '{dtype} auto or bfloat16. Launch with --mixed_precision "no" or bf16.',
            *(launched, settings.dtype),
        )
    if launched == "bf16":
        return True
    if settings.dtype == "auto":
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    return settings.dtype == "bfloat16"


def run_options(settings: RunSettings, workspace: Path) -> dict[str, Any]:
    """Options of transformers' TrainingArguments that every run shares.

    Raises OptionError for a tracker that is unknown or not installed, MissingExtraError where the launcher asks for
    DeepSpeed and there is none.
    """
    check_trackers(settings.report_to)
    check_installed()
    return {
        "output_dir": str(workspace),
        "use_cpu": not torch.accelerator.is_available(),  # said aloud, or several processes would not find each other
        "per_device_train_batch_size": settings.batch_size,
        "gradient_accumulation_steps": settings.gradient_accumulation,
        "learning_rate": settings.learning_rate,
        "lr_scheduler_type": "cosine",
        "warmup_steps": settings.warmup_share,
        "weight_decay": settings.weight_decay,
        "max_grad_norm": settings.max_grad_norm,
        "optim": "adamw_torch",
        "bf16": uses_bfloat16(settings),
        "gradient_checkpointing": settings.gradient_checkpointing,
        "logging_strategy": "steps",
        "logging_steps": settings.logging_steps,
        "logging_nan_inf_filter": False,
        "save_strategy": "no",  # `saving` decides
        "save_total_limit": 2,
        "report_to": list(settings.report_to) or "none",
        "seed": settings.seed,
        "data_seed": settings.seed,
        "remove_unused_columns": False,
        "disable_tqdm": True,
        "dataloader_pin_memory": torch.cuda.is_available(),
    }


def pair_options(settings: PairSettings, workspace: Path) -> dict[str, Any]:
    """`ordered_options` of a run on pairs."""
    return ordered_options(settings, workspace, eval_steps=settings.eval_steps)


def ordered_options(settings: RunSettings, workspace: Path, *, eval_steps: int) -> dict[str, Any]:
    """`run_options` where order and number of the examples are in the data set, so one sequential epoch is all.

    `eval_steps` are the steps between evaluations; 0: only at the end.
    """
    return {
        **run_options(settings, workspace),
        "per_device_eval_batch_size": 2 * settings.batch_size,
        "num_train_epochs": 1,
        "train_sampling_strategy": "sequential",
        "eval_strategy": "steps" if eval_steps else "no",
        "eval_steps": eval_steps or None,
    }


def check_trackers(names: Sequence[str]) -> None:
    """Raise OptionError for a tracker that transformers does not know, or that is not installed."""
    for name in names:
        if name not in integration_utils.INTEGRATION_TO_CALLBACK:
            raise unknown_name("tracker", name, integration_utils.INTEGRATION_TO_CALLBACK)
        if name not in integration_utils.get_available_reporting_integrations():
            raise naming(
                OptionError, "The tracker {0} is not installed. Install it, or leave it out of {report_to}.", name
            )


@contextmanager
def spared_renamings() -> Iterator[None]:
    """Inside, no warnings about TRL's use of options that transformers is renaming: a user cannot act on them."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is deprecated and will be removed in v6", category=FutureWarning)
        yield


def processes(config: TrainingArguments) -> PartialState:
    """The process group that the configuration has joined."""
    state = config.distributed_state
    return state if isinstance(state, PartialState) else PartialState()


def made_trainable(module: nn.Module, settings: RunSettings) -> None:
    """A model's own dropout is off; its weights are trained only where all of them are."""
    for part in module.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
    module.requires_grad_(settings.full)
