"""TRL's reward trainer with another loss: the reward of a sequence is the sum of its response's log-probabilities.

Everything but the loss, and what is reported about it, is TRL's and transformers': optimiser, schedule, devices,
processes, checkpoints, resuming, trackers. Responses to one prompt share a row (`packing`), and the output head runs at
the positions that predict a response token and nowhere else. Where the loss asks for the base beside the guide, the
base is the model with its adapter off, or a frozen copy where all weights are trained.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from peft import LoraConfig, PeftModel
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from trl import RewardConfig, RewardTrainer

from trimtab.models.forward.row_cache import Reach
from trimtab.statistics import Interval, proportion_interval
from trimtab.training.pairs.batches import PairCollator, packed_length, packed_of, prompts_in_order
from trimtab.training.pairs.losses import (
    arm_loss,
    mixed_logprobs,
    sequence_logprobs,
    shift_logprobs,
    token_logprobs,
)
from trimtab.training.pairs.meter import PairMeter
from trimtab.training.pairs.packing import Packed
from trimtab.training.pairs.tokens import TokenData
from trimtab.training.pairs.trainer import (
    PairTrainer,
    frozen_copy,
    pair_dataset,
    pairs_to_measure_on,
    pairs_to_train_on,
)
from trimtab.training.run.configs import pair_options, spared_renamings
from trimtab.training.run.output_head import head_at
from trimtab.training.run.settings import ArmSettings, TokenRewardSettings
from trimtab.training.run.trainer import TrainerParts

if TYPE_CHECKING:
    from trimtab.models.hf import HFModel


log = logging.getLogger(__name__)

Beside = Callable[[Tensor, Tensor, Tensor], Tensor]
"""From the logits of guide and base [M, V] and the M tokens [M], the tokens' rewards [M] float32."""


class ArmTrainer(PairTrainer, RewardTrainer):  # type: ignore[misc]  # TRL carries no types
    """RewardTrainer on batches of `PairCollator`, with `losses.arm_loss` at β_r and γ.

    `reaches` is the model's (`HFModel.reaches`), `prompts` has the prompt of each held-out pair, in the order of
    evaluation. `beside` is what makes a reward of the guide's logits and its base's (`Beside`); without it the base
    is not run. The other options are TRL's.
    """

    pooled = staticmethod(sequence_logprobs)
    """From the rewards of tokens [M] and the response [M] of each to the rewards of the responses."""

    def __init__(
        self,
        *,
        model: PreTrainedModel,
        reaches: Mapping[str, Reach],
        beta: float,
        gamma: float,
        beside: Beside | None = None,
        prompts: Sequence[Hashable] = (),
        **options: object,
    ) -> None:
        with as_reward_model(model.config):
            super().__init__(model=model, **options)
        self.reaches, self.beta, self.gamma, self._beside = reaches, beta, gamma, beside
        is_copied = beside is not None and not isinstance(self.model, PeftModel)
        self._copy = frozen_copy(model) if is_copied else None
        self.meter = PairMeter(margin_scale=beta, names=("logps_chosen", "logps_rejected"), prompts=prompts)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Mapping[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, Mapping[str, Tensor]]:
        """The mean loss of the batch's pairs."""
        chosen, rejected = self._rewards(model, inputs, self._beside)
        loss = arm_loss(chosen, rejected, beta=self.beta, gamma=self.gamma)
        num_passes = 1 if self._beside is None else 2
        self.meter.add(self, chosen, rejected, loss, num_passes * packed_of(inputs).num_tokens)
        mean = loss.mean()
        return (mean, {"chosen": chosen, "rejected": rejected}) if return_outputs else mean

    def shift_accuracy(self) -> Interval | None:
        """The share of the held-out pairs that Σ log π_r − Σ log π_base ranks as they were labelled, over prompts.

        The sum alone holds how likely the base finds an answer; this is what training added, and what a shift steers
        by. None where the base is not at hand (all weights were trained without it, or they lie in shards), and where
        nothing was added.
        """
        plain = self.accelerator.unwrap_model(self.model)
        in_shards = self.is_fsdp_enabled or self.is_deepspeed_enabled
        if in_shards or (self._copy is None and not isinstance(plain, PeftModel)):
            return None
        self.model.eval()
        found: list[Tensor] = []
        for batch in self.get_eval_dataloader():
            with torch.no_grad(), self.compute_loss_context_manager():
                chosen, rejected = self._rewards(self.model, self._prepare_inputs(batch), shift_logprobs)
            found.append(self.accelerator.gather_for_metrics(chosen - rejected).cpu())
        gaps = torch.cat(found)
        if not bool(gaps.any()):
            log.warning("training changed nothing that the held-out pairs show: give it more steps or a higher rate")
            return None
        return proportion_interval((gaps > 0).tolist(), self.meter.prompts)

    def _rewards(self, model: nn.Module, inputs: Mapping[str, Tensor], beside: Beside | None) -> tuple[Tensor, Tensor]:
        """The rewards of both responses of each pair: [B], [B] float32."""
        rows = packed_of(inputs)
        plain = self.accelerator.unwrap_model(model)
        masks = rows.masks(self.reaches, plain.dtype)
        logprobs = self._token_rewards(model, rows, masks, beside)
        whole = self.pooled(logprobs, rows.rows, 2 * len(inputs["chosen_rows"]))
        return whole[inputs["chosen_rows"]], whole[inputs["rejected_rows"]]

    def _token_rewards(
        self, model: nn.Module, rows: Packed, masks: Tensor | dict[str, Tensor], beside: Beside | None
    ) -> Tensor:
        """[M] float32: the rewards of the M tokens of the responses."""
        logits = self._logits(model, rows, masks)
        if beside is None:
            return token_logprobs(logits, rows.token_ids)
        with torch.no_grad(), self._base(self.accelerator.unwrap_model(model)) as base:
            base_logits = self._logits(base, rows, masks)
        return beside(logits, base_logits, rows.token_ids)

    def _logits(self, model: nn.Module, rows: Packed, masks: Tensor | dict[str, Tensor]) -> Tensor:
        """[M, V]: what the M tokens of the responses are predicted by."""
        plain = self.accelerator.unwrap_model(model)
        with head_at(plain.get_output_embeddings(), rows.predicting):
            output = model(
                input_ids=rows.input_ids,
                attention_mask=masks,
                position_ids=rows.positions,
                use_cache=False,
            )
        logits: Tensor = output.logits
        return logits

    @contextmanager
    def _base(self, plain: PeftModel | PreTrainedModel) -> Iterator[nn.Module]:
        """The unwrapped model as it was before training."""
        if self._copy is not None:
            yield self._copy
            return
        with plain.disable_adapter():
            yield plain


def beside_base(settings: ArmSettings) -> Beside | None:
    """What makes the tokens' rewards of a guide's logits and its base's; None: the guide's own are enough."""
    if settings.through_mix:
        return partial(mixed_logprobs, weight=settings.through_mix, form=settings.form)
    return shift_logprobs if settings.is_beside_base else None


def arm_config(settings: TokenRewardSettings, workspace: Path) -> RewardConfig:
    """TRL's configuration. Raises OptionError for a tracker that is unknown or not installed."""
    options = pair_options(settings, workspace)
    with spared_renamings():
        # The dropout that is left is the adapter's.
        return RewardConfig(**options, max_length=None, disable_dropout=False)


def arm_parts(
    host: HFModel, train: TokenData, held: TokenData, settings: ArmSettings, world_size: int
) -> TrainerParts[ArmTrainer]:
    """What the trainer is built of (`build_trainer`)."""
    make = partial(ArmTrainer, beside=beside_base(settings))
    return parts_on_rows(host, train, held, settings, world_size, make)


def parts_on_rows(
    host: HFModel,
    train: TokenData,
    held: TokenData,
    settings: ArmSettings,
    world_size: int,
    make: Callable[..., ArmTrainer],
    *,
    adapter: LoraConfig | None = None,
) -> TrainerParts[ArmTrainer]:
    """What a trainer on batches of `PairCollator` is built of; `make` makes it of these arguments and TRL's."""
    assert host.tokenizer is not None
    share_rows = settings.share_rows
    pairs = pairs_to_train_on(train.pairs, settings, world_size, share_rows=share_rows, length=packed_length)
    return TrainerParts(
        trainer=partial(
            make,
            reaches=host.reaches,
            beta=settings.beta,
            gamma=settings.gamma,
            prompts=prompts_in_order(held.pairs),
            data_collator=PairCollator(),
            eval_dataset=pairs_to_measure_on(held.pairs),
        ),
        module=host.module,
        tokenizer=host.tokenizer.hf,
        dataset=pair_dataset(pairs),
        adapter=adapter,
    )


@contextmanager
def as_reward_model(config: PreTrainedConfig) -> Iterator[None]:
    """Inside, the configuration is what TRL asks of a reward model: one number a sequence, which ours gives."""
    labels = config.id2label
    config.num_labels = 1
    try:
        yield
    finally:
        config.id2label = labels
        config.label2id = {label: index for index, label in (labels or {}).items()}
