"""`train_rl`: a policy trained on its own answers, by reinforcement, for one reward or several.

RLOO (Ahmadian et al., ACL 2024, arXiv 2402.14740), by TRL: a step answers some prompts several times each; an answer's
advantage is its reward less the mean reward of the prompt's other answers; the reward is Σ_k w_k r_k(x, y) less
kl_weight · (log π_θ(y|x) − log π_base(y|x)). Several rewards make it multi-objective RL: one run a weight vector.

Where it differs from the paper: a LoRA adapter unless all weights are asked for, so the reference is the base with the
adapter off and costs no second model; the schedule is a cosine; an answer that a scorer has no finite reward for is
left out of its step and counted. Where it differs from TRL's trainer: prompts become the token ids that decoding will
see, every end-of-sequence id of the model ends an answer, and the order of the prompts is part of the data.

`train_guide_rl` trains a guide so, through the mix of base and guide that decoding draws from (UniR, arXiv 2505.19075,
`mixed`). Where it differs from that paper: the advantage is RLOO's, an answer's reward less the mean of the prompt's
others, not divided by their spread; the ratio is of whole answers; the guide is a LoRA of the base that it is trained
beside, and the KL of the mix to the base is taken off the reward.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trimtab.core import Prompt
from trimtab.training.rl.settings import GuideRLSettings, RLSettings
from trimtab.training.run import run
from trimtab.training.run.arguments import RunArguments
from trimtab.training.run.card import About
from trimtab.training.run.identity import Facts
from trimtab.training.run.prompt_data import TrainingPrompts, tokenised
from trimtab.training.run.rating import Rater, reward_contents, rewards_card
from trimtab.training.run.rewards import AgentReward, check_rewards
from trimtab.training.run.run import Job, Training
from trimtab.training.run.settings import TrainProgress

if TYPE_CHECKING:
    from transformers import Trainer

    from trimtab.models.hf import HFModel
    from trimtab.training.rl.trainer import PolicyTrainer
    from trimtab.training.run.trainer import TrainerParts

__all__ = [
    "AgentReward",
    "GuideRLSettings",
    "RLResult",
    "RLSettings",
    "TrainProgress",
    "train_guide_rl",
    "train_rl",
]


@dataclass(frozen=True, slots=True)
class RLResult:
    """A finished run."""

    out: Path
    num_prompts: int
    """Prompts that were trained on."""
    num_answers: int
    num_dropped: int
    """Answers left out because a reward was not finite."""
    reward: float | None
    """Mean Σ multiplier · score of the last window of the curve; None where no answer in it had one."""
    metrics: Mapping[str, Any]
    """As in `guide.json`: the last line of the curve, the reward of the first, counts and seconds."""


def train_rl(
    model: str | Path,
    prompts: Sequence[Prompt],
    rewards: Sequence[AgentReward],
    *,
    out: str | Path,
    settings: RLSettings | None = None,
    template: str = "raw",
    template_options: Facts | None = None,
    prompt_files: Sequence[str] = (),
    resume: bool = False,
    overwrite: bool = False,
    trust_remote_code: bool = False,
    revision: str | None = None,
    push_to_hub: str | None = None,
    progress: Callable[[TrainProgress], None] | None = None,
) -> RLResult:
    """Train a policy on a model's own answers to prompts and write its directory.

    `model` is a name as in `load_model`. `template` says what a prompt of text is: "raw", text to go on with; "chat", a
    user's message; "auto", a message where the model has a chat template, which is told `template_options` with each
    prompt. `prompt_files` are names for the card. `out`
    must not exist unless `overwrite`, or `resume`, which continues an interrupted run exactly where its last whole
    checkpoint stands. In a process group (`accelerate launch`) every process calls this; the first one writes.

    Raises OptionError, DataError and PromptError for what the caller gave, OutputExistsError, CheckpointError (also
    where the disk is full: the last checkpoint survives), ModelError where rewards are never finite, NotFiniteError
    where the loss diverges, Interrupted as `arm.train_arm`.
    """
    return _train(
        *(model, TrainingPrompts(prompts, template, template_options, prompt_files), rewards),
        settings or RLSettings(),
        RunArguments(
            out=Path(out),
            resume=resume,
            overwrite=overwrite,
            trust_remote_code=trust_remote_code,
            revision=revision,
            push_to_hub=push_to_hub,
            progress=progress,
        ),
    )


def train_guide_rl(
    model: str | Path,
    prompts: Sequence[Prompt],
    rewards: Sequence[AgentReward],
    *,
    out: str | Path,
    settings: GuideRLSettings | None = None,
    template: str = "raw",
    template_options: Facts | None = None,
    prompt_files: Sequence[str] = (),
    resume: bool = False,
    overwrite: bool = False,
    trust_remote_code: bool = False,
    revision: str | None = None,
    push_to_hub: str | None = None,
    progress: Callable[[TrainProgress], None] | None = None,
) -> RLResult:
    """Train a guide on answers of base and guide together (UniR, arXiv 2505.19075) and write its directory.

    The base is frozen, and the guide is a LoRA of it that steers in `settings.form`; arguments and errors are those of
    `train_rl`.
    """
    return _train(
        *(model, TrainingPrompts(prompts, template, template_options, prompt_files), rewards),
        settings or GuideRLSettings(),
        RunArguments(
            out=Path(out),
            resume=resume,
            overwrite=overwrite,
            trust_remote_code=trust_remote_code,
            revision=revision,
            push_to_hub=push_to_hub,
            progress=progress,
        ),
    )


def _train(
    model: str | Path,
    prompt_data: TrainingPrompts,
    rewards: Sequence[AgentReward],
    settings: RLSettings,
    arguments: RunArguments,
) -> RLResult:
    run.require_extra()
    prompt_data.check()
    check_rewards(rewards)
    arguments.check()
    training = Training(
        kind=settings.kind,
        model=model,
        data=prompt_data.card,
        settings=settings,
        arguments=arguments,
        facts={"rewards": rewards_card(rewards), "contents": reward_contents(rewards)},
    )

    facts = run.train(training, lambda: _job_maker(prompt_data, rewards, arguments))
    return _result(arguments.out, facts)


def _job_maker(
    data: TrainingPrompts, rewards: Sequence[AgentReward], arguments: RunArguments
) -> Callable[[HFModel, RLSettings], Job]:
    """Load what rates, before the model; what makes the job of the model."""
    rater = Rater(rewards)  # without a baseline: RLOO has one of its own
    return lambda host, settings: _job(host, data, rater, rewards, settings, arguments)


def _job(
    host: HFModel,
    data: TrainingPrompts,
    rater: Rater,
    rewards: Sequence[AgentReward],
    settings: RLSettings,
    arguments: RunArguments,
) -> Job:
    from trimtab.training.rl.trainer import Panel, rl_config, rl_parts

    prompts, num_long = tokenised(host, data, settings)
    config = rl_config(settings, arguments.workspace, [reward.multiplier for reward in rewards])
    counts = {"num_prompts": len(prompts), "num_long": num_long}

    def parts() -> TrainerParts[PolicyTrainer]:
        panel = Panel(host, prompts, rater, [reward.name for reward in rewards])
        return rl_parts(host, panel, settings, config.generation_batch_size, _maker(settings))

    return Job(
        config=config,
        parts=parts,
        measure=lambda trainer, seconds: {"metrics": _metrics(trainer, counts, seconds)},
        about=_about(rewards, settings),
        facts={"method": "rloo", **_form(settings)},
    )


def _maker(settings: RLSettings) -> Callable[..., PolicyTrainer] | None:
    """What makes the trainer; None: that of a policy."""
    if not isinstance(settings, GuideRLSettings):
        return None
    from trimtab.training.rl.mixed import MixedTrainer

    return partial(MixedTrainer, weight=settings.through_mix, form=settings.form)


def _metrics(trainer: Trainer, counts: Mapping[str, int], seconds: float) -> Facts:
    """`metrics` of `guide.json`."""
    lines = [line for line in trainer.state.log_history if "num_dropped" in line]
    last = {key: value for key, value in lines[-1].items() if key not in ("step", "epoch", "learning_rate")}
    start = {"reward_at_start": lines[0]["reward"]} if "reward" in lines[0] else {}
    args = trainer.args
    return {
        **last,
        **start,
        "num_steps": trainer.state.global_step,
        "num_answers": trainer.state.global_step * args.generation_batch_size,
        **counts,
        "seconds": round(seconds, 1),
    }


def _result(out: Path, facts: Facts) -> RLResult:
    metrics = facts["metrics"]
    return RLResult(
        out=out,
        num_prompts=metrics["num_prompts"],
        num_answers=metrics["num_answers"],
        num_dropped=metrics["num_dropped"],
        reward=metrics.get("reward"),
        metrics=dict(metrics),
    )


def _terms(rewards: Sequence[AgentReward]) -> str:
    return " + ".join(f"{reward.multiplier:g} × {reward.name}" for reward in rewards)


def _guide_about(rewards: Sequence[AgentReward], settings: GuideRLSettings) -> About:
    return About(
        f"trained by reinforcement through the mix that decoding draws from (UniR, arXiv 2505.19075; RLOO, arXiv "
        f"2402.14740), at weight {settings.through_mix:g}, for the reward {_terms(rewards)}, with "
        f"{settings.kl_weight:g} times the KL of the mix to the base taken off. It steers a frozen model with the same "
        "vocabulary, token by token.",
        (
            "model = trimtab.load_model({base})",
            f'guide = trimtab.load_guide("path/to/this/directory", weight={settings.through_mix:g})',
            'decoder = trimtab.Decoder(model, guides={{"guide": guide}})',
        ),
        tags=("reward-guided-decoding", "rloo"),
        measured=_measured,
    )


def _form(settings: RLSettings) -> dict[str, str]:
    return {"guide_form": settings.form} if isinstance(settings, GuideRLSettings) else {}


def _about(rewards: Sequence[AgentReward], settings: RLSettings) -> About:
    if isinstance(settings, GuideRLSettings):
        return _guide_about(rewards, settings)
    return About(
        f"trained by reinforcement (RLOO, arXiv 2402.14740) for the reward {_terms(rewards)}, with "
        f"{settings.kl_weight:g} times the KL to the base taken off. As a guide of weight 1 it is the trained policy; "
        "between 0 and 1 it is between the base and the policy (arXiv 2402.02992).",
        (
            "model = trimtab.load_model({base})",
            'policy = trimtab.load_guide("path/to/this/directory")',
            'decoder = trimtab.Decoder(model, guides={{"policy": policy}})',
        ),
        tags=("rloo",),
        measured=_measured,
    )


def _measured(metrics: Facts) -> list[str]:
    shown = {"reward": "reward", "kl": "nats an answer from the base", "length": "tokens an answer"}
    parts = [f"{metrics[key]:.4g} {what}" for key, what in shown.items() if key in metrics]
    return [
        f"Means of the last window of training, after {metrics['num_answers']} answers to {metrics['num_prompts']} "
        f"prompts: {', '.join(parts)}; {metrics['num_dropped']} answers had no finite reward and were left out. These "
        "are training answers, not a measurement of what it does with others."
    ]
