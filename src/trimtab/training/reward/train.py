"""`train_reward`: a trajectory reward model from preference pairs (Bradley and Terry 1952).

A causal language model's decoder with a linear head on the last token's state gives a whole answer one number, trained
by −log σ(r(x, y_w) − r(x, y_l)) (Ouyang et al., arXiv 2203.02155, equation 1; here one rejected answer to each chosen
one). ARGS, Transfer-Q, best-of-N and reinforcement learning are given such a model; `scorers` loads it.

Where it differs from usual practice: LoRA and the head are trained, not all weights, unless asked for; the head starts
at small random weights of its own seed, N(0, 1/(D + 1)) (Huang et al., arXiv 2403.17031); no dropout.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from trimtab.training.pairs.run import PairMethod, PairResult, Pairs, PairSplit, pair_metrics, train_on_pairs
from trimtab.training.reward.settings import RewardSettings
from trimtab.training.run import run
from trimtab.training.run.arguments import RunArguments
from trimtab.training.run.card import About
from trimtab.training.run.identity import Facts
from trimtab.training.run.run import Job
from trimtab.training.run.settings import TrainProgress

if TYPE_CHECKING:
    from torch import Tensor

    from trimtab.models.hf import HFModel
    from trimtab.models.rewards.whole import RewardModel
    from trimtab.training.reward.trainer import PairRewardTrainer

__all__ = ["RewardSettings", "TrainProgress", "train_reward"]

_NUM_MOMENT_PAIRS = 128
"""Pairs whose answers give the mean and the standard deviation of the rewards."""


def train_reward(
    model: str | Path,
    pairs: Pairs,
    *,
    out: str | Path,
    eval_pairs: Pairs | None = None,
    settings: RewardSettings | None = None,
    resume: bool = False,
    overwrite: bool = False,
    trust_remote_code: bool = False,
    revision: str | None = None,
    push_to_hub: str | None = None,
    progress: Callable[[TrainProgress], None] | None = None,
) -> PairResult:
    """Train on preference pairs and write a directory that `scorers.load_reward_model` reads.

    Arguments, resuming and errors are those of `arm.train_arm`. Raises CompatibilityError for an architecture without a
    sequence-classification model in transformers.
    """
    arguments = RunArguments(
        out=Path(out),
        resume=resume,
        overwrite=overwrite,
        trust_remote_code=trust_remote_code,
        revision=revision,
        push_to_hub=push_to_hub,
        progress=progress,
    )
    return train_on_pairs(_METHOD, model, pairs, eval_pairs, settings or RewardSettings(), arguments)


def _job(host: HFModel, split: PairSplit, settings: RewardSettings, arguments: RunArguments) -> Job:
    from trimtab.training.reward.trainer import reward_config, reward_moments, reward_parts, reward_rows

    run.check_length(host, settings.max_length)
    model = untrained_reward_model(host, settings)
    train, held = reward_rows(model, split.train), reward_rows(model, split.held)
    config = reward_config(settings, arguments.workspace)

    def measure(trainer: PairRewardTrainer, seconds: float) -> Facts:
        metrics = pair_metrics(trainer, split, train.counts, seconds)
        moments = reward_moments(trainer, model, (split.held or split.train)[:_NUM_MOMENT_PAIRS])
        return {"metrics": metrics, "reward": {**moments, "max_length": model.max_length, "template": model.template}}

    def write(directory: Path, trainer: PairRewardTrainer, weights: Mapping[str, Tensor]) -> None:
        model.tokenizer.model_max_length = settings.max_length  # whoever else loads it cuts where it was trained to
        run.write_weights(directory, trainer, weights, host, settings)

    return Job(
        config=config,
        parts=lambda: reward_parts(model, train, held, settings, config.world_size),
        measure=measure,
        write=write,
        about=_ABOUT,
    )


_METHOD: PairMethod[Pairs, RewardSettings, PairSplit] = PairMethod("reward", PairSplit, _job)


def untrained_reward_model(host: HFModel, settings: RewardSettings) -> RewardModel:
    """The model's decoder with a head that is still random, as the seed decides."""
    import torch

    from trimtab.models.rewards.adapter import with_score_head
    from trimtab.models.rewards.whole import RewardModel

    assert host.tokenizer is not None
    generator = torch.Generator().manual_seed(settings.seed)
    weight = torch.randn(1, host.hidden_size, generator=generator) / (host.hidden_size + 1) ** 0.5
    module = with_score_head(host.module, weight)
    return RewardModel(module, host.tokenizer.hf, name=host.name, max_length=settings.max_length)


_ABOUT = About(
    "trained as a trajectory reward model (Bradley and Terry 1952; Ouyang et al., arXiv 2203.02155): the number that "
    "its head gives at the last token is the reward of the whole answer. Higher is better; only differences between "
    "answers to one prompt mean something.",
    (
        "from trimtab import load_reward_model",
        "",
        'model = load_reward_model("path/to/this/directory")',
        'rewards = model.rewards(["a prompt"], ["an answer"])',
    ),
    title="A reward model for trimtab",
    tags=("reward-model",),
    correct="whose preferred answer has the higher reward",
)
