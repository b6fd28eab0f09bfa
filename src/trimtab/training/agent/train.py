"""`train_agent`: an accept-reject agent from rewards (MARA, IJCAI 2025, arXiv 2505.19743).

A small network reads the base's state after each candidate token and accepts or rejects it (`guides.agent`). It is
trained by discrete soft actor-critic on its own answers: an episode is one answer, each decision a transition, rewarded
by a KL term to the base at once and by the rewards of the whole answer at the end.

Where it differs from the released code, beside what `agent_rewards`, `sac` and `replay` say of the formulas, the losses
and the buffer:

* Rounds: `rollout_batch` episodes are decoded together with one actor, then learnt from, each worth the same updates as
  in the released code, which decodes one at a time on workers whose actor may lag behind, as `rollout_batch` 1 does.
* Workers hand a round's episodes back in order, so a run does not depend on who was faster.
* Every end-of-sequence token ends an answer; an episode in which nothing was asked is counted and leaves nothing.
* A reward that is not finite drops its episode.
* Network and initial weights are torch's own defaults, as theirs; the seed decides them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from trimtab.core import LanguageModel, Prompt, Selection
from trimtab.errors import require
from trimtab.guides.agent import Agent
from trimtab.mixing.rules import FirstAccepted
from trimtab.storage.cards import write_card
from trimtab.storage.model_source import ModelSource
from trimtab.training.agent.card import agent_card, versions
from trimtab.training.agent.settings import AgentSettings
from trimtab.training.agent.worker_options import WorkerOptions
from trimtab.training.run import checkpoints, precision, run
from trimtab.training.run.arguments import RunArguments
from trimtab.training.run.identity import Facts
from trimtab.training.run.interruption import interruptible
from trimtab.training.run.prompt_data import TrainingPrompts
from trimtab.training.run.rating import Rater, reward_contents, rewards_card
from trimtab.training.run.rewards import AgentReward, check_rewards
from trimtab.training.run.settings import TrainProgress

if TYPE_CHECKING:
    from trimtab.training.agent.rollouts import Rollouts
    from trimtab.training.agent.run import AgentRun

__all__ = ["AgentResult", "AgentReward", "AgentSettings", "TrainProgress", "train_agent"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class AgentResult:
    """A finished run."""

    out: Path
    num_episodes: int
    num_updates: int
    num_dropped: int
    """Episodes left out because a reward was not finite."""
    num_empty: int
    """Episodes in which nothing was ever asked."""
    num_lost_workers: int
    """Workers that died; their episodes were rolled out by others."""
    reward: float | None
    """Mean Σ multiplier · score of the last window of the curve; None where no episode in it had one."""
    metrics: Mapping[str, Any]
    """As in `guide.json`: the last line of the curve, counts and seconds."""


def train_agent(
    model: str | Path | LanguageModel,
    prompts: Sequence[Prompt],
    rewards: Sequence[AgentReward],
    *,
    out: str | Path,
    settings: AgentSettings | None = None,
    template: str = "raw",
    template_options: Facts | None = None,
    prompt_files: Sequence[str] = (),
    workers: int = 0,
    ray_address: str | None = None,
    worker_cpus: float = 1.0,
    worker_gpus: float | None = None,
    resume: bool = False,
    overwrite: bool = False,
    dtype: str = "auto",
    device: str | None = None,
    trust_remote_code: bool = False,
    revision: str | None = None,
    progress: Callable[[TrainProgress], None] | None = None,
) -> AgentResult:
    """Train an agent on a model's own answers to prompts and write a guide's directory that `load_guide` reads.

    `model` is a name as in `load_model`, or a loaded model (then without workers). `dtype` "auto" keeps one that is
    loaded here for a CPU in bfloat16 where that is faster. `template` says what a prompt of text is: "raw", text to go
    on with; "chat", a user's message; "auto", a message where the model has a chat template, which is told
    `template_options`. `prompt_files` are names for the model card. With `workers`, so many Ray actors roll out, each
    with a model of its own, here or on the cluster at `ray_address`; the learner stays here. Each claims `worker_cpus`
    and `worker_gpus` of a node (None: its part of the GPUs). `out` must not exist unless `overwrite`, or `resume`,
    which continues an interrupted run exactly where its last whole checkpoint stands.

    Raises what `train_arm` raises, PromptError, and ModelError where rewards are never finite or all workers died.
    """
    settings = settings or AgentSettings()
    arguments = RunArguments(
        out=Path(out),
        resume=resume,
        overwrite=overwrite,
        trust_remote_code=trust_remote_code,
        revision=revision,
        progress=progress,
    )
    data = TrainingPrompts(prompts, template, template_options, prompt_files)
    options = WorkerOptions(count=workers, address=ray_address, cpus=worker_cpus, gpus=worker_gpus)
    require_extra()
    data.check()
    check_rewards(rewards)
    options.check(is_loaded=not isinstance(model, str | Path))
    arguments.check()
    facts = _facts(rewards, settings, data.card)

    def work() -> Facts:
        rater = Rater(rewards, baseline=settings.baseline, reward_scale=settings.reward_scale)
        source = ModelSource(str(model), dtype, device, trust_remote_code, revision)
        base, kept = _base(model, source, options, arguments)
        with contextlib.closing(_rollouts(base, source, settings, options)) as rollouts:
            return _carry_out(rollouts, data, rater, settings, arguments, {**facts, **kept})

    return _result(arguments.out, run.once(arguments, {"kind": "agent", **facts}, work))


def require_extra() -> None:
    """Raise MissingExtraError where a package that training an agent needs is not installed."""
    require("torchrl", "tensordict", extra="agent", purpose="Training an agent")


def _base(
    model: str | Path | LanguageModel, source: ModelSource, options: WorkerOptions, arguments: RunArguments
) -> tuple[LanguageModel | None, Facts]:
    """The model that rolls out in this process, None where workers load theirs; and what is to be said of its dtype."""
    in_half: Facts = {"dtype": "bfloat16"}
    kept = in_half if source.dtype == "bfloat16" else {}
    if options.count:
        return None, kept
    if not isinstance(model, str | Path):
        return model, {}
    log.info("loading %s", source.name)
    host = source.load_in_transformers()
    if not precision.rolls_out_compact(source.dtype, host.module, arguments):
        return host, kept
    precision.compact(host.module)
    return host, in_half


def _rollouts(
    base: LanguageModel | None, source: ModelSource, settings: AgentSettings, options: WorkerOptions
) -> Rollouts:
    if base is None:
        from trimtab.training.agent.workers import RayRollouts

        return RayRollouts(source, settings, options)
    from trimtab.training.agent.rollouts import LocalRollouts

    return LocalRollouts(base, settings)


def _facts(rewards: Sequence[AgentReward], settings: AgentSettings, data: Mapping[str, object]) -> Facts:
    """What the caller decides of a run, as in `guide.json`; a resumed run must share it."""
    return {
        "hyperparameters": dataclasses.asdict(settings),
        "rewards": rewards_card(rewards),
        "contents": reward_contents(rewards),
        "data": data,
    }


def _carry_out(
    rollouts: Rollouts,
    data: TrainingPrompts,
    rater: Rater,
    settings: AgentSettings,
    arguments: RunArguments,
    facts: Facts,
) -> Facts:
    """Train and write; the content of `guide.json`."""
    from trimtab.training.agent.run import AgentRun

    prompts = data.templated(has_chat_template=rollouts.facts.has_chat_template)
    rollouts.check(prompts)
    description = {"format": 1, "kind": "agent", **rollouts.facts.card, **facts}
    checkpoints.open_workspace(arguments.out, description, resume=arguments.resume)
    started = time.monotonic()
    with interruptible("round") as interruption:
        rounds = AgentRun(rollouts, prompts, rater, settings, arguments, interruption)
        before = rounds.num_episodes
        rounds.run()
    metrics = {
        **{name: value for name, value in rounds.last_line.items() if name != "step"},
        "num_episodes": rounds.num_episodes,
        "last_window": settings.logging_episodes,
        "seconds": round(time.monotonic() - started, 1),
        "num_resumed": before,
    }
    card = {**description, "metrics": metrics, "versions": versions()}
    run.publish(arguments, lambda directory: _write(directory, rounds, settings, card))
    return card


def _write(directory: Path, rounds: AgentRun, settings: AgentSettings, card: Facts) -> None:
    """The guide's files into an empty directory."""
    selection = Selection(FirstAccepted(), settings.temperature, settings.top_k, settings.top_p)
    base = card["base"]["name"]
    agent = Agent(rounds.learner.actor.eval(), selection=selection, trained_on=base, card=card)
    with torch.no_grad():
        agent.save_files(directory)
    write_card(directory, agent.facts())
    (directory / "README.md").write_text(agent_card(card), encoding="utf-8")


def _result(out: Path, facts: Facts) -> AgentResult:
    metrics = facts["metrics"]
    counts = ("num_episodes", "num_updates", "num_dropped", "num_empty", "num_lost_workers")
    return AgentResult(
        out=out,
        **{name: int(metrics[name]) for name in counts},
        reward=metrics.get("reward"),
        metrics=dict(metrics),
    )
