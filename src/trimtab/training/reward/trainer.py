"""TRL's reward trainer on the very token ids that `models.reward.RewardModel` scores, read at the very same token.

The loss, optimiser, devices, checkpoints and resuming are TRL's and transformers'. What is ours: the rows come from
`RewardModel.token_ids`, and the reward is read at a row's last token by its length, where transformers' classifier
looks for the last token that is not padding and is misled by text that ends with that id.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from trl import RewardConfig, RewardTrainer

from trimtab.errors import DataError, naming
from trimtab.models.rewards.adapter import SCORE
from trimtab.models.rewards.whole import RewardModel
from trimtab.training.pairs.batches import evaluation_order
from trimtab.training.pairs.data import PreferencePair
from trimtab.training.pairs.losses import bradley_terry_loss
from trimtab.training.pairs.meter import PairMeter
from trimtab.training.pairs.tokens import TokenPair
from trimtab.training.pairs.trainer import PairTrainer, pair_dataset, pairs_to_measure_on, pairs_to_train_on
from trimtab.training.reward.settings import RewardSettings
from trimtab.training.run.configs import pair_options, spared_renamings
from trimtab.training.run.trainer import TrainerParts


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
    differing = [
        (str(prompt), TokenPair((), tuple(better), tuple(worse)))
        for prompt, (better, worse) in zip(prompts, rows, strict=True)
        if better != worse
    ]
    kept = tuple(pair for _, pair in differing)
    if pairs and not kept:
        raise naming(
            DataError,
            "In {max_length} {0} the two texts of every pair became the same. Give a larger {max_length}.",
            model.max_length,
        )
    return RewardRows(kept, tuple(prompt for prompt, _ in differing), model.num_cut - before, len(pairs) - len(kept))


class PairRewardTrainer(PairTrainer, RewardTrainer):  # type: ignore[misc]  # TRL carries no types
    """RewardTrainer that reads rewards by length and reports on all pairs.

    `prompts` has the prompt of each held-out pair, in the order of evaluation; the other options are TRL's.
    """

    def __init__(self, *, model: PreTrainedModel, prompts: Sequence[Hashable] = (), **options: object) -> None:
        super().__init__(model=model, **options)
        self.head = getattr(model, SCORE)  # peft has put its own in the head's place
        self.meter = PairMeter(prompts=prompts)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, Mapping[str, Tensor]]:
        """The mean loss of the batch's pairs, by TRL."""
        lengths = inputs["attention_mask"].sum(1)
        with scored_at(self.head, lengths - 1):
            mean, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        self._metrics["train" if self.model.training else "eval"].clear()  # of batches; the meter's are of pairs
        chosen, rejected = outputs.logits.detach().squeeze(-1).float().chunk(2)
        loss = bradley_terry_loss(chosen, rejected, center=self.args.center_rewards_coefficient or 0.0)
        self.meter.add(self, chosen, rejected, loss, int(lengths.sum()))
        return (mean, outputs) if return_outputs else mean


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

    def spread(_: nn.Module, __: object, output: Tensor) -> Tensor:
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


def reward_parts(
    model: RewardModel, train: RewardRows, held: RewardRows, settings: RewardSettings, world_size: int
) -> TrainerParts[PairRewardTrainer]:
    """What the trainer is built of (`build_trainer`): an adapter and the head are trained, or everything."""
    getattr(model.module, SCORE).float()  # trained in float32, whatever the decoder is kept in
    columns = ("chosen_ids", "rejected_ids")
    return TrainerParts(
        trainer=partial(
            PairRewardTrainer,
            prompts=[held.prompts[index] for index in evaluation_order(held.pairs)],
            eval_dataset=pairs_to_measure_on(held.pairs, columns),
        ),
        module=model.module,
        tokenizer=model.tokenizer,
        dataset=pair_dataset(pairs_to_train_on(train.pairs, settings, world_size), columns),
        task="SEQ_CLS",
        whole=(SCORE,),
    )


def reward_moments(trainer: PairRewardTrainer, model: RewardModel, pairs: Sequence[PreferencePair]) -> dict[str, float]:
    """Mean and standard deviation of the trained model's rewards over both answers of some pairs."""
    trainer.model.eval()
    prompts = [pair.prompt for pair in pairs for _ in range(2)]
    answers = [answer for pair in pairs for answer in (pair.chosen, pair.rejected)]
    with trainer.accelerator.autocast():
        rewards = torch.tensor(model.rewards(prompts, answers), dtype=torch.float64)
    return {"mean": float(rewards.mean()), "std": float(rewards.std()), "num_answers": len(answers)}
