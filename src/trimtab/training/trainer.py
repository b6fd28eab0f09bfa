"""TRL's reward trainer with another loss: the reward of a sequence is the sum of its response's log-probabilities.

Everything but the loss, and what is reported about it, is TRL's and transformers': optimiser, schedule, devices,
processes, checkpoints, resuming, trackers. There is no reference model. The output head runs at the positions that
predict a response token and nowhere else.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import PartialState
from datasets import Dataset
from peft import LoraConfig
from torch import Tensor, nn
from transformers import PrinterCallback
from transformers.integrations import integration_utils
from transformers.pytorch_utils import Conv1D
from trl import RewardConfig, RewardTrainer

from trimtab.errors import NotFiniteError, OptionError, unknown_name
from trimtab.training.batches import PairCollator, evaluation_order, training_order
from trimtab.training.curve import curve
from trimtab.training.losses import arm_loss, correct, margins, sequence_logprobs, token_logprobs
from trimtab.training.settings import ArmSettings, TrainProgress
from trimtab.training.tokens import TokenData, TokenPair

if TYPE_CHECKING:
    from trimtab.models.hf import HFModel


class ArmTrainer(RewardTrainer):  # type: ignore[misc]  # TRL carries no types
    """RewardTrainer on batches of `PairCollator`; `set_objective` before training."""

    def set_objective(self, *, beta: float, gamma: float) -> None:
        """β_r and γ of `losses.arm_loss`."""
        self.beta, self.gamma = beta, gamma
        self._sums: dict[bool, list[Tensor]] = {True: [], False: []}
        self._num_tokens = 0
        self._clock = time.monotonic()

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Mapping[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """The mean loss of the batch's pairs."""
        chosen, rejected = self._rewards(model, inputs)
        loss = arm_loss(chosen, rejected, beta=self.beta, gamma=self.gamma)
        training = self.model.training
        # Evaluation pads its last batch with repeats, which gather_for_metrics takes out again.
        gather = self.accelerator.gather if training else self.accelerator.gather_for_metrics
        self._sums[training].append(gather(torch.stack([chosen, rejected, loss], dim=1).detach()).cpu())
        self._num_tokens += int(inputs["attention_mask"].sum())
        mean = loss.mean()
        return (mean, {"chosen": chosen, "rejected": rejected}) if return_outputs else mean

    def _rewards(self, model: nn.Module, inputs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Σ_t log π_r(y_t | x, y_<t) of both responses of each pair: [B], [B] float32."""
        input_ids, labelled = inputs["input_ids"], inputs["response_mask"]
        # The token at t is predicted at t − 1.
        predicting = torch.zeros_like(labelled)
        predicting[:, :-1] = labelled[:, 1:]
        head = self.accelerator.unwrap_model(model).get_output_embeddings()
        with head_at(head, predicting):
            output = model(input_ids=input_ids, attention_mask=inputs["attention_mask"], use_cache=False)
        rows = predicting.nonzero()[:, 0]
        logprobs = token_logprobs(output.logits, input_ids[:, 1:][predicting[:, :-1]])
        sums = sequence_logprobs(logprobs, rows, len(input_ids))
        return sums[inputs["chosen_rows"]], sums[inputs["rejected_rows"]]

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds what was measured on all pairs since the last report. Raises NotFiniteError for a NaN loss."""
        evaluating = any(key.startswith("eval_") for key in logs)
        parts, self._sums[not evaluating] = self._sums[not evaluating], []
        if parts:
            prefix = "eval_" if evaluating else ""
            measured = self._measures(torch.cat(parts), prefix)
            if not math.isfinite(measured[f"{prefix}loss"]):
                raise NotFiniteError(
                    f"The loss is {measured[f'{prefix}loss']} at step {self.state.global_step}. "
                    "Start anew (--overwrite) with a lower --learning-rate or --beta, or in float32."
                )
            logs.update(measured)
        super().log(logs, start_time)

    def _measures(self, table: Tensor, prefix: str) -> dict[str, float]:
        """From [N, 3] (chosen, rejected, loss) of N pairs."""
        chosen, rejected, loss = table.double().unbind(dim=1)
        now, started = time.monotonic(), self._clock
        tokens, self._num_tokens, self._clock = self._num_tokens, 0, now
        # A single process knows its own tokens; the others' batches are of like size.
        rate = self.accelerator.num_processes / max(now - started, 1e-9)
        return {
            f"{prefix}loss": float(loss.mean()),
            f"{prefix}accuracy": float(correct(chosen, rejected).double().mean()),
            f"{prefix}num_correct": int(correct(chosen, rejected).sum()),
            f"{prefix}num_pairs": len(table),
            f"{prefix}margin": float(margins(chosen, rejected, beta=self.beta).double().mean()),
            f"{prefix}logps_chosen": float(chosen.mean()),
            f"{prefix}logps_rejected": float(rejected.mean()),
            f"{prefix}pairs_per_s": len(table) / max(now - started, 1e-9),
            f"{prefix}tokens_per_s": tokens * rate,
        }


@contextmanager
def head_at(head: nn.Module, positions: Tensor) -> Iterator[None]:
    """Inside, `head` sees only some positions of its input: [R, L, D] at `positions` [R, L] bool is [N, D].

    What a model does to its logits after the head (soft caps, scales) works on [N, V] as on [R, L, V].
    """
    handle = head.register_forward_pre_hook(lambda _, args: (args[0][positions.to(args[0].device)], *args[1:]))
    try:
        yield
    finally:
        handle.remove()


def uses_bfloat16(settings: ArmSettings) -> bool:
    """Whether to compute in bfloat16 (see `ArmSettings.dtype`)."""
    if settings.dtype == "auto":
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    return settings.dtype == "bfloat16"


def trainer_config(settings: ArmSettings, workspace: Path) -> RewardConfig:
    """TRL's configuration. Order and number of pairs are in the data set, so one sequential epoch is all.

    Raises OptionError for a tracker that is unknown or not installed.
    """
    _check_trackers(settings.report_to)
    with _spared_renamings():
        return _config(settings, workspace)


def _check_trackers(names: Sequence[str]) -> None:
    """Raise OptionError for a tracker that transformers does not know, or that is not installed."""
    for name in names:
        if name not in integration_utils.INTEGRATION_TO_CALLBACK:
            raise unknown_name("tracker", name, integration_utils.INTEGRATION_TO_CALLBACK)
        if name not in integration_utils.get_available_reporting_integrations():
            raise OptionError(f"The tracker {name} is not installed. Install it, or leave it out of --report-to.")


def _config(settings: ArmSettings, workspace: Path) -> RewardConfig:
    return RewardConfig(
        output_dir=str(workspace),
        use_cpu=not torch.accelerator.is_available(),  # said aloud, or several processes would not find each other
        per_device_train_batch_size=settings.batch_size,
        per_device_eval_batch_size=2 * settings.batch_size,
        gradient_accumulation_steps=settings.gradient_accumulation,
        num_train_epochs=1,
        train_sampling_strategy="sequential",
        learning_rate=settings.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=settings.warmup_share,
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        optim="adamw_torch",
        bf16=uses_bfloat16(settings),
        gradient_checkpointing=settings.gradient_checkpointing,
        logging_strategy="steps",
        logging_steps=settings.logging_steps,
        logging_nan_inf_filter=False,
        eval_strategy="steps" if settings.eval_steps else "no",
        eval_steps=settings.eval_steps or None,
        save_strategy="steps" if settings.save_steps else "no",
        save_steps=settings.save_every or 1,
        save_total_limit=2,
        report_to=list(settings.report_to) or "none",
        seed=settings.seed,
        data_seed=settings.seed,
        remove_unused_columns=False,
        max_length=None,
        disable_dropout=False,  # of the adapter; the base's own is off, see build_trainer
        disable_tqdm=True,
        dataloader_pin_memory=torch.cuda.is_available(),
    )


@contextmanager
def _spared_renamings() -> Iterator[None]:
    """Inside, no warnings about TRL's use of options that transformers is renaming: a user cannot act on them."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is deprecated and will be removed in v6", category=FutureWarning)
        yield


def processes(config: RewardConfig) -> PartialState:
    """The process group that the configuration has joined."""
    state = config.distributed_state
    return state if isinstance(state, PartialState) else PartialState()


def build_trainer(
    host: HFModel,
    train: TokenData,
    held: TokenData,
    settings: ArmSettings,
    config: RewardConfig,
    progress: Callable[[TrainProgress], None] | None,
) -> ArmTrainer:
    """A trainer on a model that it takes over. Raises OptionError for layers to adapt that the model does not have."""
    module = host.module
    for part in module.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
    module.requires_grad_(settings.full)
    step_size = settings.batch_size * settings.gradient_accumulation * config.world_size
    order = training_order(
        train.pairs,
        num_pairs=max(1, round(settings.epochs * len(train.pairs))),
        step_size=step_size,
        micro_size=settings.batch_size,
        seed=settings.seed,
        share_rows=settings.share_rows,
    )
    assert host.tokenizer is not None
    tokenizer = host.tokenizer.hf
    try:
        with _as_reward_model(module.config), _spared_renamings():
            trainer = ArmTrainer(
                model=module,
                args=config,
                data_collator=PairCollator(tokenizer.pad_token_id or 0),
                train_dataset=_dataset([train.pairs[i] for i in order]),
                eval_dataset=_dataset([held.pairs[i] for i in evaluation_order(held.pairs)]) if held.pairs else None,
                processing_class=tokenizer,
                peft_config=None if settings.full else _adapter(host, settings),
                callbacks=[curve(progress)],
            )
    except ValueError as error:
        if "arget modules" not in str(error):
            raise
        raise OptionError(f"lora_targets {', '.join(settings.lora_targets)}: {error}") from error
    trainer.remove_callback(PrinterCallback)  # it prints on standard output
    trainer.set_objective(beta=settings.beta, gamma=settings.gamma)
    return trainer


@contextmanager
def _as_reward_model(config: Any) -> Iterator[None]:
    """Inside, the configuration is what TRL asks of a reward model: one number a sequence, which ours gives."""
    labels = config.id2label
    config.num_labels = 1
    try:
        yield
    finally:
        config.id2label = labels
        config.label2id = {label: index for index, label in (labels or {}).items()}


def _dataset(pairs: Sequence[TokenPair]) -> Dataset:
    fields = ("prompt_ids", "chosen_ids", "rejected_ids")
    return Dataset.from_dict({name: [list(getattr(pair, name)) for pair in pairs] for name in fields})


def _adapter(host: HFModel, settings: ArmSettings) -> LoraConfig:
    num_layers = int(host.describe()["num_layers"])
    last = settings.lora_last_layers
    if last > num_layers:
        raise OptionError(f"lora_last_layers is {last}; {host.name} has {num_layers} blocks.")
    targets: str | list[str] = list(settings.lora_targets)
    if settings.lora_targets == ("all-linear",):
        targets = _linear_names(host.module) if last else "all-linear"
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=settings.lora_rank,
        lora_alpha=settings.lora_alpha,
        lora_dropout=settings.lora_dropout,
        target_modules=targets,
        layers_to_transform=list(range(num_layers - last, num_layers)) if last else None,
    )


def _linear_names(module: nn.Module) -> list[str]:
    """What peft's "all-linear" stands for, which it does not take together with a choice of blocks."""
    parts: Mapping[str, nn.Module] = dict(module.named_modules())
    head: Any = module.get_output_embeddings  # an nn.Module's attributes are of no known type
    linear = {name for name, part in parts.items() if isinstance(part, nn.Linear | Conv1D) and part is not head()}
    return sorted({name.rsplit(".", 1)[-1] for name in linear})
