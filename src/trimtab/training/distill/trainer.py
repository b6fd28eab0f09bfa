"""A trainer whose loss is the KL from the target that sentences make to a student that does not read them.

Everything but the loss, and what is reported about it, is transformers' and peft's. The target is computed in the step
that learns from it, by the base, the model with its adapter off: behind the prompt alone and behind it with each
sentence. Nothing of it is stored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import PreTrainedModel, Trainer, TrainingArguments
from transformers.trainer_utils import set_seed

from trimtab.models.forward.row_cache import Reach
from trimtab.training.arm.head import head_adapter, keep_head_out, spared_ties, taken_out
from trimtab.training.distill.answers import Reading
from trimtab.training.distill.losses import kl_divergence, target_logprobs
from trimtab.training.distill.meter import KLMeter
from trimtab.training.pairs.packing import Packed, packed
from trimtab.training.run.configs import ordered_options, spared_renamings
from trimtab.training.run.output_head import head_at
from trimtab.training.run.prompt_data import prompt_order
from trimtab.training.run.trainer import TrainerParts

if TYPE_CHECKING:
    from trimtab.models.hf import HFModel
    from trimtab.training.distill.settings import DistillSettings

_SENTENCES = "sentences_"
"""What the names of a batch's rows with sentences begin with."""


class ReadingCollator:
    """Makes a batch of rows of `Reading`: the answers behind their prompts (the fields of `Packed`), and behind their
    prompts with each sentence, all of the first sentence before all of the second."""

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        alone = packed([(row["prompt"], [(at, row["answer"])]) for at, row in enumerate(rows)])
        num_sentences = len(rows[0]["sentences"])
        said = packed(
            [
                (row["sentences"][which], [(at, row["answer"])])
                for which in range(num_sentences)
                for at, row in enumerate(rows)
            ]
        )
        return {
            **{name: getattr(alone, name) for name in Packed.__slots__},
            **{f"{_SENTENCES}{name}": getattr(said, name) for name in Packed.__slots__},
        }


def _rows(batch: Mapping[str, Tensor], prefix: str = "") -> Packed:
    return Packed(**{name: batch[f"{prefix}{name}"] for name in Packed.__slots__})


class DistillTrainer(Trainer):  # type: ignore[misc]  # transformers carries no types here
    """transformers' trainer on batches of `ReadingCollator`, of an adapter at `strength`.

    `reaches` and `nameless` are the model's (`HFModel`), `peft_config` is what of it is trained; the other options are
    transformers' own.
    """

    def __init__(
        self,
        *,
        model: PreTrainedModel,
        args: TrainingArguments,
        peft_config: LoraConfig,
        reaches: Mapping[str, Reach],
        nameless: Tensor | None,
        strength: float,
        **options: Any,
    ) -> None:
        set_seed(args.seed)  # the adapter is random
        adapted = get_peft_model(model, peft_config)
        if args.gradient_checkpointing:
            adapted.enable_input_require_grads()
        super().__init__(model=adapted, args=args, **options)
        self.model_accepts_loss_kwargs = True  # the loss is of the step's tokens, not of the forward pass's
        self.reaches, self._nameless, self._strength = reaches, nameless, strength
        self.meter = KLMeter()

    def get_batch_samples(self, *given: Any) -> tuple[list[Any], Tensor | None]:
        """transformers', with the number of tokens that a step of all processes learns from."""
        batches, _ = super().get_batch_samples(*given)
        if not batches:
            return batches, None
        count = torch.tensor(sum(len(batch["token_ids"]) for batch in batches), device=self.args.device)
        return batches, self.accelerator.gather(count).sum()

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Mapping[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        """The mean of KL(t ‖ student) over the tokens of the step's answers; without their number, of the batch's."""
        rows, said = _rows(inputs), _rows(inputs, _SENTENCES)
        base, student = (self._without_nameless(logits) for logits in self._base_and_student(model, rows))
        plain = self.accelerator.unwrap_model(model)
        with torch.no_grad():
            with plain.disable_adapter():
                towards, *others = torch.split(self._logits(plain, said), len(base))
            target = target_logprobs(base, towards, others[0] if others else base, strength=self._strength)
            before = kl_divergence(target, base)
        found = kl_divergence(target, student)
        self.meter.add(self, found, before, rows, self._passes * rows.num_tokens + said.num_tokens)
        if num_items_in_batch is None:
            loss = found.mean()
        else:  # gradients are averaged over the processes
            loss = found.sum() * self.accelerator.num_processes / num_items_in_batch
        return (loss, {"kl": found}) if return_outputs else loss

    def prediction_step(
        self,
        model: nn.Module,
        inputs: Mapping[str, Tensor],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor, None, None]:
        """The loss of a held-out batch."""
        with torch.no_grad(), self.compute_loss_context_manager():
            loss, _ = self.compute_loss(model, self._prepare_inputs(inputs), return_outputs=True)
        return loss.detach(), None, None

    def open_window(self) -> dict[str, object]:
        """What was measured since the last report."""
        return {"answers": self.meter.open_window()}

    def reopen_window(self, window: Mapping[str, list[list[float]]]) -> None:
        """Continue from `open_window`."""
        self.meter.reopen_window(window["answers"])

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds what was measured since the last report. Raises NotFiniteError for a NaN loss."""
        self.meter.report(self, logs)
        super().log(logs, start_time)

    _passes = 2
    """Forward passes over the prompts alone."""

    def _base_and_student(self, model: nn.Module, rows: Packed) -> tuple[Tensor, Tensor]:
        """[M, V] logits each: the base's, and the student's as it steers at weight 1."""
        student = self._logits(model, rows)
        plain = self.accelerator.unwrap_model(model)
        with torch.no_grad(), plain.disable_adapter():
            return self._logits(plain, rows), student

    def _logits(self, model: nn.Module, rows: Packed) -> Tensor:
        """[M, V]: what the M tokens of the answers are predicted by."""
        plain = self.accelerator.unwrap_model(model)
        with head_at(plain.get_output_embeddings(), rows.predicting):
            output = model(
                input_ids=rows.input_ids,
                attention_mask=rows.masks(self.reaches, plain.dtype),
                position_ids=rows.positions,
                use_cache=False,
            )
        logits: Tensor = output.logits
        return logits

    def _without_nameless(self, logits: Tensor) -> Tensor:
        """[M, V] without the ids that decoding never draws."""
        if self._nameless is None:
            return logits
        return logits.index_fill(-1, self._nameless.to(logits.device), -torch.inf)


class HeadDistillTrainer(DistillTrainer):
    """`DistillTrainer` of a low-rank head on the base's final state, whose scores are added to the base's logits."""

    _passes = 1

    def __init__(self, **options: Any) -> None:
        with spared_ties():
            super().__init__(**options)
        keep_head_out(self.model)

    def _base_and_student(self, model: nn.Module, rows: Packed) -> tuple[Tensor, Tensor]:
        plain: PeftModel = self.accelerator.unwrap_model(model)
        with taken_out(plain) as scores:
            base = self._logits(model, rows)
        return base.detach(), base.detach().float() + scores[0].float()


def distill_config(settings: DistillSettings, workspace: Path) -> TrainingArguments:
    """transformers' configuration. Raises OptionError for a tracker that is unknown or not installed."""
    with spared_renamings():
        config = TrainingArguments(
            **ordered_options(settings, workspace, eval_steps=settings.eval_steps), label_names=["token_ids"]
        )
    config.ddp_find_unused_parameters = False  # a step uses all that is trained, a head beside the model's output
    return config


def distill_parts(
    host: HFModel, train: Sequence[Reading], held: Sequence[Reading], settings: DistillSettings, world_size: int
) -> TrainerParts[DistillTrainer]:
    """What the trainer is built of (`build_trainer`)."""
    assert host.tokenizer is not None
    step_size = settings.batch_size * settings.gradient_accumulation * world_size
    order = prompt_order(len(train), step_size, epochs=settings.epochs, seed=settings.seed)
    rank = settings.head_only
    return TrainerParts(
        trainer=partial(
            HeadDistillTrainer if rank else DistillTrainer,
            reaches=host.reaches,
            nameless=host.nameless,
            strength=settings.strength,
            data_collator=ReadingCollator(),
            eval_dataset=_dataset(held) if held else None,
        ),
        module=host.module,
        tokenizer=host.tokenizer.hf,
        dataset=_dataset([train[number] for number in order]),
        adapter=head_adapter(host, rank, dropout=settings.lora_dropout) if rank else None,
        unit="answers",
    )


def _dataset(readings: Sequence[Reading]) -> Dataset:
    return Dataset.from_list([asdict(reading) for reading in readings])
