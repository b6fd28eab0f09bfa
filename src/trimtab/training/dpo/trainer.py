"""TRL's DPO trainer on our own token ids: the prompt exactly as decoding will see it, the response with its end.

The loss, the reference, optimiser, devices, checkpoints and resuming are TRL's and transformers'. What is ours: the ids
(`tokens.tokenise`) and a report on all pairs. The reference is the base with the adapter off, in the same forward road;
where all weights are trained, a frozen copy of the model.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasets import Dataset
from torch import Tensor, nn
from transformers import PrinterCallback
from trl import DPOConfig, DPOTrainer

from trimtab.training.arm.trainer import pair_dataset
from trimtab.training.dpo.settings import DpoSettings
from trimtab.training.pairs.batches import evaluation_order, prompts_in_order, training_order
from trimtab.training.pairs.losses import dpo_loss
from trimtab.training.pairs.meter import PairMeter
from trimtab.training.pairs.tokens import TokenData
from trimtab.training.run.adapter_targets import adapter_config, known_targets
from trimtab.training.run.configs import made_trainable, pair_options, spared_renamings
from trimtab.training.run.curve import curve
from trimtab.training.run.settings import TrainProgress

if TYPE_CHECKING:
    from trimtab.models.hf import HFModel


class PairDpoTrainer(DPOTrainer):  # type: ignore[misc]  # TRL carries no types
    """DPOTrainer on pairs of ids that reports on all of them; `begin` before training."""

    def begin(self) -> None:
        """Start to report. The rewards are DPO's implicit ones, β·(log π − log π_ref)."""
        self.meter = PairMeter()
        trained = self.accelerator.unwrap_model(self.model)
        self._policy = trained.get_base_model() if hasattr(trained, "peft_config") else trained

    def _prepare_dataset(self, dataset: Dataset, *_: Any) -> Dataset:
        """The pairs are ids already."""
        return dataset

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Mapping[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """The mean loss of the batch's pairs, by TRL."""
        networks = [self._policy] if self.ref_model is None else [self._policy, self.ref_model]
        with sequence_sums(networks) as sums, spared_renamings():
            result = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        self._metrics["train" if self.model.training else "eval"].clear()  # of batches; the meter's are of pairs
        policy, reference = sums[:2]
        chosen, rejected = (policy - reference).chunk(2)
        loss = dpo_loss(chosen, rejected, beta=self.beta)
        tokens = 2 * int(inputs["attention_mask"].sum())  # through the policy and the reference
        self.meter.add(self, self.beta * chosen, self.beta * rejected, loss, tokens)
        return result

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
def sequence_sums(networks: list[nn.Module]) -> Iterator[list[Tensor]]:
    """Inside, each forward pass of a network adds Σ_t log π(y_t | x, y_<t) of its rows, [2B] float32, to the list.

    TRL computes the policy first, the reference second, and keeps only their means.
    """
    sums: list[Tensor] = []

    def note(_: nn.Module, __: Any, output: Any) -> None:
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


def build_dpo_trainer(
    host: HFModel,
    train: TokenData,
    held: TokenData,
    settings: DpoSettings,
    config: DPOConfig,
    progress: Callable[[TrainProgress], None] | None,
) -> PairDpoTrainer:
    """A trainer on a model that it takes over. Raises OptionError for layers to adapt that the model does not have."""
    module = host.module
    made_trainable(module, settings)
    order = training_order(
        train.pairs,
        num_pairs=max(1, round(settings.epochs * len(train.pairs))),
        step_size=settings.batch_size * settings.gradient_accumulation * config.world_size,
        micro_size=settings.batch_size,
        seed=settings.seed,
        share_rows=False,
    )
    assert host.tokenizer is not None
    with known_targets(settings), spared_renamings():
        trainer = PairDpoTrainer(
            model=module,
            ref_model=copy.deepcopy(module).eval().requires_grad_(False) if settings.full else None,
            args=config,
            train_dataset=pair_dataset([train.pairs[i] for i in order]),
            eval_dataset=pair_dataset([held.pairs[i] for i in evaluation_order(held.pairs)]) if held.pairs else None,
            processing_class=host.tokenizer.hf,
            peft_config=adapter_config(module, settings),
            callbacks=[curve(progress)],
        )
    trainer.remove_callback(PrinterCallback)  # it prints on standard output
    trainer.begin()
    trainer.meter.prompts = prompts_in_order(held.pairs)
    return trainer
