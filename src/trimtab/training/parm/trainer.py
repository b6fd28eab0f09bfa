"""The trainer of a preference-aware reward model: `ArmTrainer` at a preference that changes with every step.

Step t runs at one vector p drawn for it, on as many pairs of each objective, and its loss is
Σ_k p_k · mean(−log σ(β_k · (Σ log π_p(y_w) − Σ log π_p(y_l)) − γ)). The vector is a pure function of the seed and the
step, so a resumed run draws the same.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Hashable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy
import safetensors.torch
import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers.trainer_utils import TrainOutput
from trl import RewardConfig

from trimtab.guides.parm import corner, middle
from trimtab.statistics import Interval, proportion_interval
from trimtab.training.arm.trainer import ArmTrainer, arm_config
from trimtab.training.pairs.batches import (
    PairCollator,
    evaluation_order,
    packed_length,
    packed_of,
    prompts_in_order,
    training_order,
)
from trimtab.training.pairs.losses import arm_loss
from trimtab.training.pairs.meter import PairMeter
from trimtab.training.pairs.tokens import TokenData, TokenPair
from trimtab.training.pairs.trainer import pair_dataset
from trimtab.training.parm.adapter import Cores
from trimtab.training.parm.settings import MIDDLE, ParmSettings
from trimtab.training.run.trainer import TrainerParts

if TYPE_CHECKING:
    from trimtab.models.hf import HFModel

_CORES_FILE = "cores.safetensors"


class ParmTrainer(ArmTrainer):
    """ArmTrainer on batches of `ObjectiveCollator`, one objective's at a time, at the preference of each step.

    `held_prompts`: objective -> the prompt of each of its held-out pairs, in the order of its evaluation. The other
    options are TRL's.
    """

    def __init__(
        self,
        *,
        objectives: Sequence[str],
        settings: ParmSettings,
        held_prompts: Mapping[str, Sequence[Hashable]],
        **options: Any,
    ) -> None:
        super().__init__(beta=settings.beta, gamma=settings.gamma, **options)
        self.names, self.settings, self.held_prompts = tuple(objectives), settings, held_prompts
        self.cores = Cores(
            self.model,
            num_objectives=len(objectives),
            preference_rank=settings.preference_rank,
            seed=settings.seed,
        )
        self.model.add_module("preference_cores", self.cores)
        self.betas = torch.tensor(settings.betas_of(objectives))
        self.meter = PairMeter()
        self._meters = {name: PairMeter() for name in objectives}
        self._held: dict[str, float] | None = None
        self.accuracies: dict[tuple[str, str], Interval] = {}
        """(objective, probe) -> the accuracy of the objective's held-out pairs there, by this process."""
        self._outcomes: dict[str, list[bool]] = {}
        """Objective -> whether each of its held-out pairs is ranked as it was labelled, at its own corner."""

    @property
    def is_evaluated(self) -> bool:
        """Whether this process has evaluated the held-out pairs."""
        return bool(self.accuracies)

    @property
    def num_held_prompts(self) -> int:
        """How many different prompts the held-out pairs of all objectives have."""
        return len({prompt for prompts in self.held_prompts.values() for prompt in prompts})

    def accuracy(self) -> Interval:
        """Over all held-out pairs, each at its own objective's corner; the interval is over prompts."""
        prompts = [prompt for name in self._outcomes for prompt in self.held_prompts[name]]
        return proportion_interval([one for outcomes in self._outcomes.values() for one in outcomes], prompts)

    def train(self, *args: object, **options: object) -> TrainOutput:
        """TRL's, with W₁ and W₂ in the model's passes."""
        with self.cores.inserted():
            return super().train(*args, **options)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Mapping[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, Mapping[str, Tensor]]:
        """The mean loss of the batch's pairs; in training K · p_k times it, so that a step's mean is Σ_k p_k loss_k."""
        objectives = inputs["objective"]
        training = self.model.training
        if training:
            self.cores.run_at(self.preference(self.state.global_step))
        chosen, rejected = self._rewards(model, inputs, None)
        betas = self.betas.to(chosen.device)[objectives]
        loss = arm_loss(chosen, rejected, beta=betas, gamma=self.settings.gamma)
        num_tokens = packed_of(inputs).num_tokens
        if training:
            (index,) = set(objectives.tolist())
            self._meters[self.names[index]].add(self, betas * chosen, betas * rejected, loss, num_tokens)
            loss = loss * len(self.names) * self.preference(self.state.global_step)[index]
        self.meter.add(self, betas * chosen, betas * rejected, loss, num_tokens)
        mean = loss.mean()
        return (mean, {"chosen": chosen, "rejected": rejected}) if return_outputs else mean

    def preference(self, step: int) -> tuple[float, ...]:
        """The vector of a step: Dirichlet(c, …, c)."""
        rng = numpy.random.default_rng([self.settings.seed, step])
        drawn = rng.dirichlet([self.settings.concentration] * len(self.names))
        return tuple(float(share) for share in drawn)

    def open_window(self) -> dict[str, object]:
        """What was measured since the last report, on all pairs and on each objective's."""
        by_objective = {name: meter.open_window() for name, meter in self._meters.items()}
        return {**super().open_window(), "objectives": by_objective}

    def reopen_window(self, window: Mapping[str, Any]) -> None:
        """Continue from `open_window`."""
        super().reopen_window(window)
        for name, meter in self._meters.items():
            meter.reopen_window(window["objectives"][name])

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds what was measured since the last report; of an evaluation's parts one line is made at its end."""
        if self._held is not None:
            self.meter.report(self, logs)
            self._held = logs
            return
        if not any(key.startswith("eval_") for key in logs):
            for name, meter in self._meters.items():
                line: dict[str, float] = {}
                meter.report(self, line)
                logs.update({f"{key}_{name}": line[key] for key in ("loss", "accuracy") if key in line})
        super().log(logs, start_time)

    def evaluate(
        self, eval_dataset: object = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Every objective's held-out pairs at every corner and in the middle: one line of the curve.

        `eval_accuracy` and its like are over all pairs, each at its own objective's corner; `eval_accuracy_A_at_B` is
        that of A's pairs at B's corner. The numbers of pairs are `eval_num_pairs_A`.
        """
        num = len(self.names)
        probes = {**{name: corner(index, num) for index, name in enumerate(self.names)}, MIDDLE: middle(num)}
        lines = {
            (name, probe): self._measured(name, probe, vector, ignore_keys)
            for probe, vector in probes.items()
            for name in self.names
            if name in (self.eval_dataset or {})
        }
        self._outcomes = {name: self._outcomes[name] for name in self.names if name in self._outcomes}
        corners = [line for (name, probe), line in lines.items() if name == probe]
        pairs = sum(line["eval_num_pairs"] for line in corners)
        logs = {
            f"eval_{key}": sum(line[f"eval_{key}"] * line["eval_num_pairs"] for line in corners) / pairs
            for key in ("loss", "accuracy", "margin")
        }
        for key in ("num_correct", "num_pairs", "pairs_per_s", "tokens_per_s"):
            total = sum(line[f"eval_{key}"] for line in corners)
            logs[f"eval_{key}"] = total / len(corners) if key.endswith("_per_s") else total
        for (name, probe), line in lines.items():
            logs[f"eval_accuracy_{name}_at_{probe}"] = line["eval_accuracy"]
            logs[f"eval_num_pairs_{name}"] = line["eval_num_pairs"]
        self.log(logs)
        return logs

    def _measured(
        self, name: str, probe: str, vector: Sequence[float], ignore_keys: list[str] | None
    ) -> dict[str, float]:
        self._held = {}
        try:
            self.meter.prompts = self.held_prompts[name]
            with self.cores.inserted(), self.cores.at(vector):
                super().evaluate(name, ignore_keys)
            self.accuracies[name, probe] = self.meter.accuracy()
            if name == probe:
                self._outcomes[name] = self.meter.outcomes
            return self._held
        finally:
            self._held = None

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        super()._save(output_dir, state_dict)
        if not self.args.should_save:  # every process is asked; one writes
            return
        weights = {name: weight.detach().cpu().contiguous() for name, weight in self.cores.state_dict().items()}
        safetensors.torch.save_file(weights, Path(output_dir or self.args.output_dir) / _CORES_FILE)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        self.cores.load_state_dict(safetensors.torch.load_file(Path(resume_from_checkpoint) / _CORES_FILE))


class ObjectiveCollator:
    """A `PairCollator` whose batches say which objective each pair belongs to: `objective` [B] int64."""

    def __init__(self) -> None:
        self._pairs = PairCollator()

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        batch = self._pairs(examples)
        return {**batch, "objective": torch.tensor([example["objective"] for example in examples])}


def interleaved(
    pairs: Sequence[Sequence[TokenPair]], settings: ParmSettings, world_size: int
) -> list[tuple[int, TokenPair]]:
    """(objective, pair) in the order of training: within a step, batches of the objectives take turns.

    Every step has batch_size × gradient_accumulation pairs of each objective for each process, and all processes work
    on the same objective at the same time.
    """
    turn = settings.batch_size * world_size
    step_size = turn * settings.gradient_accumulation
    num_steps = math.ceil(max(1, max(round(settings.epochs * len(of_one)) for of_one in pairs)) / step_size)
    orders = [
        training_order(
            of_one,
            num_pairs=num_steps * step_size,
            step_size=step_size,
            micro_size=settings.batch_size,
            seed=settings.seed,
            share_rows=settings.share_rows,
            length=packed_length,
        )
        for of_one in pairs
    ]
    return [
        (objective, pairs[objective][index])
        for start in range(0, num_steps * step_size, turn)
        for objective, order in enumerate(orders)
        for index in order[start : start + turn]
    ]


def parm_config(settings: ParmSettings, num_objectives: int, workspace: Path) -> RewardConfig:
    """TRL's configuration: a step goes through the batches of every objective."""
    passes = num_objectives * settings.gradient_accumulation
    return arm_config(dataclasses.replace(settings, gradient_accumulation=passes), workspace)


def parm_parts(
    host: HFModel,
    train: Mapping[str, TokenData],
    held: Mapping[str, TokenData],
    settings: ParmSettings,
    world_size: int,
) -> TrainerParts[ParmTrainer]:
    """What the trainer is built of (`build_trainer`)."""
    assert host.tokenizer is not None
    measured = {
        name: _dataset([(index, data.pairs[i]) for i in evaluation_order(data.pairs)])
        for index, (name, data) in enumerate(held.items())
        if data.pairs
    }
    return TrainerParts(
        trainer=partial(
            ParmTrainer,
            reaches=host.reaches,
            objectives=tuple(train),
            settings=settings,
            held_prompts={name: prompts_in_order(data.pairs) for name, data in held.items() if data.pairs},
            data_collator=ObjectiveCollator(),
            eval_dataset=measured or None,
        ),
        module=host.module,
        tokenizer=host.tokenizer.hf,
        dataset=_dataset(interleaved([data.pairs for data in train.values()], settings, world_size)),
    )


def _dataset(pairs: Sequence[tuple[int, TokenPair]]) -> Dataset:
    return pair_dataset([pair for _, pair in pairs]).add_column("objective", [objective for objective, _ in pairs])
