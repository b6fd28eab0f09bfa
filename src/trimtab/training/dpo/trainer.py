"""TRL's DPO trainer on our own token ids: the prompt exactly as decoding will see it, the response with its end.

The loss, the reference, optimiser, devices, checkpoints and resuming are TRL's and transformers'. What is ours: the ids
(`tokens.tokenise`) and a report on all pairs. The reference is the base with the adapter off, in the same forward road;
where all weights are trained, a frozen copy of the model.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasets import Dataset
from torch import Tensor, nn
from transformers import PreTrainedModel
from trl import DPOConfig, DPOTrainer

from trimtab.training.dpo.settings import DpoSettings
from trimtab.training.pairs.batches import prompts_in_order
from trimtab.training.pairs.losses import dpo_loss
from trimtab.training.pairs.meter import PairMeter
from trimtab.training.pairs.tokens import TokenData
from trimtab.training.pairs.trainer import (
    PairTrainer,
    frozen_copy,
    pair_dataset,
    pairs_to_measure_on,
    pairs_to_train_on,
)
from trimtab.training.run.configs import pair_options, spared_renamings
from trimtab.training.run.trainer import TrainerParts

if TYPE_CHECKING:
    from trimtab.models.hf import HFModel


class PairDpoTrainer(PairTrainer, DPOTrainer):  # type: ignore[misc]  # TRL carries no types
    """DPOTrainer on pairs of ids that reports on all of them.

    The rewards are DPO's implicit ones, β·(log π − log π_ref). `prompts` has the prompt of each held-out pair, in the
    order of evaluation. Where all weights are trained, the reference is a frozen copy of the model. The other options
    are TRL's.
    """

    def __init__(
        self, *, model: PreTrainedModel, full: bool, prompts: Sequence[Hashable] = (), **options: object
    ) -> None:
        reference = frozen_copy(model) if full else None
        super().__init__(model=model, ref_model=reference, **options)
        self.meter = PairMeter(prompts=prompts)
        trained = self.accelerator.unwrap_model(self.model)
        self._policy = trained.get_base_model() if hasattr(trained, "peft_config") else trained

    def _prepare_dataset(self, dataset: Dataset, *_: object) -> Dataset:
        """The pairs are ids already."""
        return dataset

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Mapping[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, Mapping[str, Tensor]]:
        """The mean loss of the batch's pairs, by TRL."""
        networks = [self._policy] if self.ref_model is None else [self._policy, self.ref_model]
        with sequence_sums(networks) as sums, spared_renamings():
            given = (model, inputs, return_outputs, num_items_in_batch)
            result: Tensor | tuple[Tensor, Mapping[str, Tensor]] = super().compute_loss(*given)
        self._metrics["train" if self.model.training else "eval"].clear()  # of batches; the meter's are of pairs
        policy, reference = sums[:2]
        chosen, rejected = (policy - reference).chunk(2)
        loss = dpo_loss(chosen, rejected, beta=self.beta)
        tokens = 2 * int(inputs["attention_mask"].sum())  # through the policy and the reference
        self.meter.add(self, self.beta * chosen, self.beta * rejected, loss, tokens)
        return result


@contextmanager
def sequence_sums(networks: list[nn.Module]) -> Iterator[list[Tensor]]:
    """Inside, each forward pass of a network adds Σ_t log π(y_t | x, y_<t) of its rows, [2B] float32, to the list.

    TRL computes the policy first, the reference second, and keeps only their means.
    """
    sums: list[Tensor] = []

    def note(_: nn.Module, __: object, output: Any) -> None:
        sums.append(output.log_probs.detach().float().sum(1))

    handles = [network.register_forward_hook(note) for network in networks]
    try:
        yield sums
    finally:
        for handle in handles:
            handle.remove()


def dpo_config(settings: DpoSettings, workspace: Path) -> DPOConfig:
    """TRL's configuration. Raises OptionError for a tracker that is unknown or not installed."""
    options = pair_options(settings, workspace)
    with spared_renamings():
        return DPOConfig(
            **options,
            beta=settings.beta,
            loss_type=["sigmoid"],
            max_length=None,  # the pairs are cut already
            disable_dropout=False,  # what is left is the adapter's
        )


def dpo_parts(
    host: HFModel, train: TokenData, held: TokenData, settings: DpoSettings, world_size: int
) -> TrainerParts[PairDpoTrainer]:
    """What the trainer is built of (`build_trainer`)."""
    assert host.tokenizer is not None
    return TrainerParts(
        trainer=partial(
            PairDpoTrainer,
            full=settings.full,
            prompts=prompts_in_order(held.pairs),
            eval_dataset=pairs_to_measure_on(held.pairs),
        ),
        module=host.module,
        tokenizer=host.tokenizer.hf,
        dataset=pair_dataset(pairs_to_train_on(train.pairs, settings, world_size)),
    )
