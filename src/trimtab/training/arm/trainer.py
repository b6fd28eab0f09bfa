"""TRL's reward trainer with another loss: the reward of a sequence is the sum of its response's log-probabilities.

Everything but the loss, and what is reported about it, is TRL's and transformers': optimiser, schedule, devices,
processes, checkpoints, resuming, trackers. There is no reference model. The output head runs at the positions that
predict a response token and nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import PrinterCallback
from trl import RewardConfig, RewardTrainer

from trimtab.training.pairs.batches import PairCollator, evaluation_order, prompts_in_order, training_order
from trimtab.training.pairs.losses import arm_loss, sequence_logprobs, token_logprobs
from trimtab.training.pairs.meter import PairMeter
from trimtab.training.pairs.tokens import TokenData, TokenPair
from trimtab.training.run.adapter_targets import adapter_config, known_targets
from trimtab.training.run.configs import made_trainable, pair_options, spared_renamings
from trimtab.training.run.curve import curve
from trimtab.training.run.settings import ArmSettings, TrainProgress

if TYPE_CHECKING:
    from trimtab.models.hf import HFModel


class ArmTrainer(RewardTrainer):  # type: ignore[misc]  # TRL carries no types
    """RewardTrainer on batches of `PairCollator`; `set_objective` before training."""

    def set_objective(self, *, beta: float, gamma: float) -> None:
        """β_r and γ of `losses.arm_loss`."""
        self.beta, self.gamma = beta, gamma
        self.meter = PairMeter(margin_scale=beta, names=("logps_chosen", "logps_rejected"))

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
        self.meter.add(self, chosen, rejected, loss, int(inputs["attention_mask"].sum()))
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

    def open_window(self) -> dict[str, Any]:
        """What was measured since the last report."""
        return {"pairs": self.meter.open_window()}

    def reopen_window(self, window: Mapping[str, Any]) -> None:
        """Continue from `open_window`."""
        self.meter.reopen_window(window["pairs"])

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds what was measured on all pairs since the last report. Raises NotFiniteError for a NaN loss."""
        self.meter.report(self, logs)
        super().log(logs, start_time)


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


def trainer_config(settings: ArmSettings, workspace: Path) -> RewardConfig:
    """TRL's configuration. Raises OptionError for a tracker that is unknown or not installed."""
    options = pair_options(settings, workspace)
    with spared_renamings():
        # The dropout that is left is the adapter's.
        return RewardConfig(**options, max_length=None, disable_dropout=False)


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
    made_trainable(module, settings)
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
    with known_targets(settings), as_reward_model(module.config), spared_renamings():
        trainer = ArmTrainer(
            model=module,
            args=config,
            data_collator=PairCollator(tokenizer.pad_token_id or 0),
            train_dataset=pair_dataset([train.pairs[i] for i in order]),
            eval_dataset=pair_dataset([held.pairs[i] for i in evaluation_order(held.pairs)]) if held.pairs else None,
            processing_class=tokenizer,
            peft_config=adapter_config(module, settings),
            callbacks=[curve(progress)],
        )
    trainer.remove_callback(PrinterCallback)  # it prints on standard output
    trainer.set_objective(beta=settings.beta, gamma=settings.gamma)
    trainer.meter.prompts = prompts_in_order(held.pairs)
    return trainer


@contextmanager
def as_reward_model(config: Any) -> Iterator[None]:
    """Inside, the configuration is what TRL asks of a reward model: one number a sequence, which ours gives."""
    labels = config.id2label
    config.num_labels = 1
    try:
        yield
    finally:
        config.id2label = labels
        config.label2id = {label: index for index, label in (labels or {}).items()}


def pair_dataset(pairs: Sequence[TokenPair]) -> Dataset:
    """Pairs as a data set of three columns of ids."""
    fields = ("prompt_ids", "chosen_ids", "rejected_ids")
    return Dataset.from_dict({name: [list(getattr(pair, name)) for pair in pairs] for name in fields})
