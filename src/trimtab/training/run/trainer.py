"""One way to build a trainer of TRL's: what a method brings (`TrainerParts`), and what is the same for all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from datasets import Dataset
from peft import LoraConfig
from torch import nn
from transformers import PreTrainedTokenizerBase, PrinterCallback, Trainer, TrainingArguments

from trimtab.training.run.adapter_targets import adapter_config, known_targets
from trimtab.training.run.arguments import RunArguments
from trimtab.training.run.configs import made_trainable, spared_renamings
from trimtab.training.run.curve import curve
from trimtab.training.run.settings import RunSettings

TrainerT = TypeVar("TrainerT", bound=Trainer)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerParts(Generic[TrainerT]):
    """What a method brings to its trainer."""

    trainer: Callable[..., TrainerT]
    """TRL's trainer with the method's own arguments bound: its loss, its collator, what it measures and on what."""
    module: nn.Module
    """The model to be trained, which the trainer takes over."""
    tokenizer: PreTrainedTokenizerBase
    dataset: Dataset
    """The rows to train on, in the order of training."""
    task: str = "CAUSAL_LM"
    """peft's name for what the model does."""
    whole: Sequence[str] = ()
    """Modules that are trained as they are, beside the adapter."""
    adapter: LoraConfig | None = None
    """peft's configuration of what is trained, where the settings do not say it."""
    unit: str = "pairs"
    """What a step consists of, for the log."""


def build_trainer(
    parts: TrainerParts[TrainerT], settings: RunSettings, config: TrainingArguments, arguments: RunArguments
) -> TrainerT:
    """A trainer, ready to train. Raises OptionError for layers to adapt that the model does not have."""
    made_trainable(parts.module, settings)
    with known_targets(settings), spared_renamings():
        trainer = parts.trainer(
            model=parts.module,
            args=config,
            train_dataset=parts.dataset,
            processing_class=parts.tokenizer,
            peft_config=parts.adapter or adapter_config(parts.module, settings, task=parts.task, whole=parts.whole),
            callbacks=[curve(arguments.progress, parts.unit)],
        )
    trainer.remove_callback(PrinterCallback)  # it prints on standard output
    return trainer
