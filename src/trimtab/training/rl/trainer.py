"""TRL's RLOO trainer on prompts of ours, scored by scorers of ours.

Everything else is TRL's and transformers': sampling answers, advantages, the loss, the KL to the base, optimiser,
schedule, devices, processes, checkpoints, resuming, trackers. Where log-probabilities are taken, the answers to one
prompt share a row (`rl_packing`): the same numbers from a fraction of the tokens.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import Trainer
from transformers.trainer_utils import TrainOutput
from trl import RLOOConfig, RLOOTrainer

from trimtab.decoding.text import text_of
from trimtab.errors import NotFiniteError, naming
from trimtab.models.forward.row_cache import Reach
from trimtab.training.pairs.losses import token_logprobs
from trimtab.training.pairs.packing import Packed
from trimtab.training.rl.packing import pack
from trimtab.training.rl.settings import RLSettings
from trimtab.training.run.configs import run_options, spared_renamings
from trimtab.training.run.logs import filtered
from trimtab.training.run.output_head import head_at
from trimtab.training.run.prompt_data import prompt_order
from trimtab.training.run.rating import Rater
from trimtab.training.run.trainer import TrainerParts

if TYPE_CHECKING:
    from trimtab.models.hf import HFModel
    from trimtab.training.run.prompt_data import PromptIds

log = logging.getLogger(__name__)

RewardColumn = Callable[..., list[float]]


class Panel:
    """The prompts by number, and the scores of answers to them: one column a reward.

    TRL knows a prompt by its number written out; an answer that any scorer has no finite reward for gets NaN in every
    column, which TRL leaves out of its group.
    """

    def __init__(self, host: HFModel, prompts: Sequence[PromptIds], rater: Rater, names: Sequence[str]) -> None:
        assert host.tokenizer is not None
        self.prompts = prompts
        self.rater = rater
        self.names = tuple(names)
        self._tokenizer = host.tokenizer
        self._eos_ids = host.eos_ids
        self._scores: list[dict[str, float]] = []

    def columns(self) -> list[RewardColumn]:
        """What TRL asks for the rewards, in the order of the names; the first rates for all."""
        return [self._column(name) for name in self.names]

    def _column(self, name: str) -> RewardColumn:
        def score(prompts: Sequence[str], completion_ids: Sequence[Sequence[int]], **_: object) -> list[float]:
            if name == self.names[0]:
                self._rate([int(number) for number in prompts], completion_ids)
            return [scores[name] for scores in self._scores]

        score.__name__ = name  # TRL reports it by this name
        return score

    def _rate(self, numbers: Sequence[int], completion_ids: Sequence[Sequence[int]]) -> None:
        texts = [self._text(number, ids) for number, ids in zip(numbers, completion_ids, strict=True)]
        ratings = self.rater.rate(numbers, [self.prompts[number].prompt for number in numbers], texts)
        nothing = dict.fromkeys(self.names, math.nan)
        self._scores = [nothing if rating is None else dict(rating.scores) for rating in ratings]

    def _text(self, number: int, token_ids: Sequence[int]) -> str:
        """The text of an answer to a prompt, as decoding gives it; the token that ends it has none."""
        ids = token_ids[:-1] if token_ids and token_ids[-1] in self._eos_ids else token_ids
        return text_of(self._tokenizer, self.prompts[number].token_ids, ids)[0]


class PolicyTrainer(RLOOTrainer):  # type: ignore[misc]  # TRL carries no types
    """RLOOTrainer on the numbered prompts of a panel, whose answers share a row (`packing`).

    `reaches` is the model's (`HFModel.reaches`); the other options are TRL's.
    """

    _buffered_inputs: list[dict[str, Tensor]] | None

    def __init__(self, *, panel: Panel, reaches: Mapping[str, Reach], **options: object) -> None:
        super().__init__(reward_funcs=panel.columns(), **options)
        self.panel, self.reaches = panel, reaches
        self._has_warned = False
        self._losses: list[float] = []
        """Losses since the last line of the curve; transformers' own sum of them is not in its checkpoints."""

    def open_window(self) -> dict[str, object]:
        """What was measured since the last line of the curve."""
        return {"losses": self._losses, "metrics": dict(self._metrics["train"]), "rater": self.panel.rater.state()}

    def reopen_window(self, window: Mapping[str, Any]) -> None:
        """Continue from `open_window`."""
        self._losses = list(window["losses"])
        self._metrics["train"].update({name: list(values) for name, values in window["metrics"].items()})
        self.panel.rater.restore(window["rater"])

    def train(self, *args: object, **options: object) -> TrainOutput:
        """TRL's, without its message for each answer that has no reward: `Rater` counts and tells them."""
        with filtered(logging.getLogger("trl.trainer.rloo_trainer"), _has_reward):
            return super().train(*args, **options)

    def training_step(self, model: nn.Module, inputs: object, num_items_in_batch: Tensor | int | None = None) -> Tensor:
        """TRL's, with its part of the step's loss kept."""
        loss: Tensor = super().training_step(model, inputs, num_items_in_batch)
        self._losses.append(float(self.accelerator.gather(loss.detach()).mean()))
        return loss

    def _tokenize_prompts(self, prompts: list[str]) -> tuple[list[list[int]], None, dict[str, object]]:
        """The ids that decoding will see."""
        return [list(self.panel.prompts[int(number)].token_ids) for number in prompts], None, {}

    def _prepare_inputs(self, generation_batch: object) -> Mapping[str, Tensor]:
        """TRL's, with the answers to a prompt in one forward pass again: TRL has shuffled them."""
        before = self._buffered_inputs
        inputs: Mapping[str, Tensor] = super()._prepare_inputs(generation_batch)
        if self._buffered_inputs is None or self._buffered_inputs is before:
            return inputs
        self._buffered_inputs = together(self._buffered_inputs)
        step: int = self._step % self.args.steps_per_generation
        return self._buffered_inputs[step]

    def _get_per_token_logps_and_entropies(
        self,
        model: nn.Module,
        input_ids: Tensor,
        attention_mask: Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        compute_entropy: bool = False,
        **_: object,
    ) -> tuple[Tensor, Tensor | None, None]:
        """[N, C] log-probabilities of the answers' tokens and entropies of the policy there, 0 for padding."""
        size = batch_size or len(input_ids)
        logps, entropies = [], []
        for ids, mask in zip(torch.split(input_ids, size), torch.split(attention_mask, size), strict=True):
            packed = pack(ids, mask, logits_to_keep)
            logits = self._answer_logits(model, packed)
            shape = (len(ids), logits_to_keep)
            logps.append(packed.unpack(token_logprobs(logits, packed.token_ids), shape))
            if compute_entropy:
                entropies.append(packed.unpack(_entropy(logits.detach()), shape))
        return torch.cat(logps), torch.cat(entropies) if compute_entropy else None, None

    def _answer_logits(self, model: nn.Module, packed: Packed) -> Tensor:
        """[M, V] float32, divided by the temperature."""
        plain = self.accelerator.unwrap_model(model)
        with head_at(plain.get_output_embeddings(), packed.predicting), self.accelerator.autocast():
            output = model(
                input_ids=packed.input_ids,
                attention_mask=packed.masks(self.reaches, plain.dtype),
                position_ids=packed.positions,
                use_cache=False,
            )
        logits: Tensor = output.logits.float() / self.temperature
        return logits

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Our line of the curve instead of TRL's. Raises NotFiniteError for a NaN loss."""
        window = self._metrics["train"]
        if window.get("reward"):
            if "loss" in logs:
                logs["loss"] = sum(self._losses) * self.args.gradient_accumulation_steps / max(1, len(self._losses))
            self._losses.clear()
            if not math.isfinite(logs.get("loss", 0.0)):
                raise naming(
                    NotFiniteError,
                    "The loss is {0} at step {1}. Start anew (--overwrite) with a lower {learning_rate}, or in "
                    "float32.",
                    *(logs["loss"], self.state.global_step),
                )
            logs.update(self._line(window))
            window.clear()
            self._warn_of_even_rewards(logs)
        Trainer.log(self, logs, start_time)

    def _warn_of_even_rewards(self, logs: Mapping[str, float]) -> None:
        if logs.get("share_even") == 1 and not self._has_warned:
            self._has_warned = True
            log.warning(
                "all answers to each prompt got one reward up to step %d of this window, so nothing is learnt from "
                "them: the reward does not tell them apart. Give more answers to a prompt, a higher temperature, "
                "longer answers, or another reward",
                self.state.global_step,
            )

    def _line(self, window: dict[str, list[float]]) -> dict[str, float]:
        kl = [nats * tokens for nats, tokens in zip(window["kl"], window["completions/mean_length"], strict=False)]
        values = {
            "reward": window["reward"],
            "reward_std": window["reward_std"],
            **{f"reward_{name}": window[f"rewards/{name}/mean"] for name in self.panel.names},
            "kl": kl,
            "kl_per_token": window["kl"],
            "entropy_per_token": window["entropy"],
            "length": window["completions/mean_length"],
            "share_cut": window["completions/clipped_ratio"],
            "share_even": window["frac_reward_zero_std"],
            "seconds_per_step": window["step_time"],
        }
        finite = {name: [value for value in column if math.isfinite(value)] for name, column in values.items()}
        means = {name: sum(column) / len(column) for name, column in finite.items() if column}
        return {**means, "num_dropped": self.panel.rater.num_dropped}


def together(batches: Sequence[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
    """A step's batches with rows of the same prompt beside each other: the same rows, in batches of the same sizes."""
    whole = {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}
    prompts = whole["prompt_ids"].tolist()
    order = torch.tensor(sorted(range(len(prompts)), key=prompts.__getitem__), device=whole["prompt_ids"].device)
    sizes = [len(batch["prompt_ids"]) for batch in batches]
    split = {name: torch.split(column[order], sizes) for name, column in whole.items()}
    return [{name: parts[index] for name, parts in split.items()} for index in range(len(batches))]


@torch.no_grad()
def _entropy(logits: Tensor) -> Tensor:
    """[M, V] -> [M] nats."""
    logprobs = torch.log_softmax(logits, dim=-1)
    return -(logprobs.exp() * logprobs).sum(dim=-1)


def rl_config(settings: RLSettings, workspace: Path, multipliers: Sequence[float]) -> RLOOConfig:
    """TRL's configuration; the order and the number of prompts are in the data set, so one pass is all."""
    with spared_renamings():
        return RLOOConfig(
            **run_options(settings, workspace),
            num_train_epochs=1,
            shuffle_dataset=False,
            num_generations=settings.num_generations,
            max_completion_length=settings.max_new_tokens,
            temperature=settings.temperature,
            beta=settings.kl_weight,
            reward_weights=list(multipliers),
            disable_dropout=False,  # of the adapter; the base's own is off
        )


def rl_parts(
    host: HFModel,
    panel: Panel,
    settings: RLSettings,
    generation_batch_size: int,
    make: Callable[..., PolicyTrainer] | None = None,
) -> TrainerParts[PolicyTrainer]:
    """What the trainer is built of (`build_trainer`); `make` makes it of these and TRL's options."""
    host.module.generation_config.eos_token_id = sorted(host.eos_ids)
    assert host.tokenizer is not None
    step_size = generation_batch_size // settings.num_generations
    order = prompt_order(len(panel.prompts), step_size, epochs=settings.epochs, seed=settings.seed)
    return TrainerParts(
        trainer=partial(make or PolicyTrainer, panel=panel, reaches=host.reaches),
        module=host.module,
        tokenizer=host.tokenizer.hf,
        dataset=Dataset.from_dict({"prompt": [str(number) for number in order]}),
        unit="answers",
    )


def _has_reward(record: logging.LogRecord) -> bool:
    """Whether a message of TRL's is about something else than an answer without a reward."""
    return "returned None" not in record.getMessage()
