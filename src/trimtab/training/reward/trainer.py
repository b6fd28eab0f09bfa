"""TRL's reward trainer on the very token ids that `models.reward.RewardModel` scores, read at the very same token.

The loss, optimiser, devices, checkpoints and resuming are TRL's and transformers'. What is ours: the rows come from
`RewardModel.token_ids`, and the reward is read at a row's last token by its length, where transformers' classifier
looks for the last token that is not padding and is misled by text that ends with that id.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import PrinterCallback
from trl import RewardConfig, RewardTrainer

from trimtab.errors import DataError, naming
from trimtab.models.rewards.adapter import SCORE
from trimtab.models.rewards.whole import RewardModel
from trimtab.training.pairs.batches import evaluation_order, training_order
from trimtab.training.pairs.data import PreferencePair
from trimtab.training.pairs.losses import bradley_terry_loss
from trimtab.training.pairs.meter import PairMeter
from trimtab.training.pairs.tokens import TokenPair
from trimtab.training.reward.settings import RewardSettings
from trimtab.training.run.adapter_targets import adapter_config, known_targets
from trimtab.training.run.configs import made_trainable, pair_options, spared_renamings
from trimtab.training.run.curve import curve
from trimtab.training.run.settings import TrainProgress


@dataclass(frozen=True, slots=True)
class RewardRows:
    """Pairs as whole rows: `chosen_ids` and `rejected_ids` hold the conversation, `prompt_ids` nothing."""

    pairs: tuple[TokenPair, ...]
    prompts: tuple[str, ...]
    """The prompt of each, as text."""
    num_cut: int
    """Texts that lost their beginning."""
    num_dropped: int
    """Pairs whose texts became the same when cut; they teach nothing."""

    @property
    def counts(self) -> dict[str, int]:
        """What the model's card says of the tokens."""
        num_tokens = sum(len(pair.chosen_ids) + len(pair.rejected_ids) for pair in self.pairs)
        return {"num_tokens": num_tokens, "num_texts_cut": self.num_cut, "num_dropped": self.num_dropped}


def reward_rows(model: RewardModel, pairs: Sequence[PreferencePair]) -> RewardRows:
    """The ids that the model reads of each pair. Raises DataError where every pair was dropped."""
    before = model.num_cut
    for number, pair in enumerate(pairs, 1):
        if lost := next((name for keys in (pair.chosen_keys, pair.rejected_keys) for name in keys), None):
            raise DataError(
                f"Pair {number} has an answer with {lost!r}; a reward model reads an answer's text. Put all that it is "
                "to read into `content`, or leave the key out."
            )
    prompts = [pair.prompt for pair in pairs]
    chosen = model.token_ids(prompts, [pair.chosen for pair in pairs])
    rejected = model.token_ids(prompts, [pair.rejected for pair in pairs])
    rows = zip(chosen, rejected, strict=True)
    found = [
        (str(prompt), TokenPair((), tuple(better), tuple(worse)))
        for prompt, (better, worse) in zip(prompts, rows, strict=True)
        if better != worse
    ]
    kept = tuple(pair for _, pair in found)
    if pairs and not kept:
        raise naming(
            DataError,
            "In {max_length} {0} the two texts of every pair became the same. Give a larger {max_length}.",
            model.max_length,
        )
    return RewardRows(kept, tuple(prompt for prompt, _ in found), model.num_cut - before, len(pairs) - len(kept))


class PairRewardTrainer(RewardTrainer):  # type: ignore[misc]  # TRL carries no types
    """RewardTrainer that reads rewards by length and reports on all pairs; `begin` before training."""

    def begin(self, head: nn.Module) -> None:
        """`head` is the part of the model that gives the reward of a state, as it is trained."""
        self.head = head
        self.meter = PairMeter()

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """The mean loss of the batch's pairs, by TRL."""
        lengths = inputs["attention_mask"].sum(1)
        with scored_at(self.head, lengths - 1):
            mean, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        self._metrics["train" if self.model.training else "eval"].clear()  # of batches; the meter's are of pairs
        chosen, rejected = outputs.logits.detach().squeeze(-1).float().chunk(2)
        loss = bradley_terry_loss(chosen, rejected, center=self.args.center_rewards_coefficient or 0.0)
        self.meter.add(self, chosen, rejected, loss, int(lengths.sum()))
        return (mean, outputs) if return_outputs else mean

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
def scored_at(head: nn.Module, positions: Tensor) -> Iterator[None]:
    """Inside, `head` gives each row's reward at `positions` [B], wherever in the row its caller looks.

    [B, L, D] states in, [B, L, 1] out, of which only one state a row goes through the head.
    """
    width = 0

    def select(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        nonlocal width
        states = args[0]
        width = states.shape[1]
        at = positions.to(states.device)
        return (states[torch.arange(len(states), device=states.device), at][:, None], *args[1:])

    def spread(_: nn.Module, __: Any, output: Tensor) -> Tensor:
        return output.expand(-1, width, -1)

    handles = head.register_forward_pre_hook(select), head.register_forward_hook(spread)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def reward_config(settings: RewardSettings, workspace: Path) -> RewardConfig:
    """TRL's configuration. Raises OptionError for a tracker that is unknown or not installed."""
    options = pair_options(settings, workspace)
    with spared_renamings():
        return RewardConfig(
            **options,
            max_length=None,  # the rows are cut already
            disable_dropout=False,  # what is left is the adapter's
            center_rewards_coefficient=settings.center_rewards or None,
        )


def build_reward_trainer(
    model: RewardModel,
    train: RewardRows,
    held: RewardRows,
    settings: RewardSettings,
    config: RewardConfig,
    progress: Callable[[TrainProgress], None] | None,
) -> PairRewardTrainer:
    """A trainer on a reward model whose module it takes over: an adapter and the head are trained, or everything."""
    module = model.module
    made_trainable(module, settings)
    getattr(module, SCORE).float()  # trained in float32, whatever the decoder is kept in
    order = training_order(
        train.pairs,
        num_pairs=max(1, round(settings.epochs * len(train.pairs))),
        step_size=settings.batch_size * settings.gradient_accumulation * config.world_size,
        micro_size=settings.batch_size,
        seed=settings.seed,
        share_rows=False,
    )
    with known_targets(settings), spared_renamings():
        trainer = PairRewardTrainer(
            model=module,
            args=config,
            train_dataset=_dataset([train.pairs[i] for i in order]),
            eval_dataset=_dataset([held.pairs[i] for i in evaluation_order(held.pairs)]) if held.pairs else None,
            processing_class=model.tokenizer,
            peft_config=adapter_config(module, settings, task="SEQ_CLS", whole=(SCORE,)),
            callbacks=[curve(progress)],
        )
    trainer.remove_callback(PrinterCallback)  # it prints on standard output
    trainer.begin(getattr(module, SCORE))  # peft has put its own in the head's place
    trainer.meter.prompts = [held.prompts[index] for index in evaluation_order(held.pairs)]
    return trainer


def _dataset(pairs: Sequence[TokenPair]) -> Dataset:
    fields = ("chosen_ids", "rejected_ids")
    return Dataset.from_dict({name: [list(getattr(pair, name)) for pair in pairs] for name in fields})


def reward_moments(
    trainer: PairRewardTrainer, model: RewardModel, pairs: Sequence[PreferencePair]
) -> Mapping[str, Any]:
    """Mean and standard deviation of the trained model's rewards over both answers of some pairs."""
    trainer.model.eval()
    prompts = [pair.prompt for pair in pairs for _ in range(2)]
    answers = [answer for pair in pairs for answer in (pair.chosen, pair.rejected)]
    with trainer.accelerator.autocast():
        rewards = torch.tensor(model.rewards(prompts, answers), dtype=torch.float64)
    return {"mean": float(rewards.mean()), "std": float(rewards.std()), "num_answers": len(answers)}
