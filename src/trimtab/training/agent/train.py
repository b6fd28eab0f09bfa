"""`train_agent`: an accept-reject agent from rewards (MARA, IJCAI 2025, arXiv 2505.19743).

A small network reads the base's state after each candidate token and accepts or rejects it (`guides.agent`). It is
trained by discrete soft actor-critic on its own answers: an episode is one answer, each decision a transition, rewarded
by a KL term to the base at once and by the rewards of the whole answer at the end.

Where it differs from the released code, beside what `agent_rewards`, `sac` and `replay` say of the formulas, the losses
and the buffer:

* Rounds: `rollout_batch` episodes are decoded together with one actor, then learnt from, each worth the same updates as
  theirs. Theirs are decoded one at a time by workers whose actor may lag behind. `rollout_batch` 1 is theirs.
* Workers hand a round's episodes back in order, so a run does not depend on who was faster.
* Every end-of-sequence token ends an answer; an episode in which nothing was asked is counted and leaves nothing.
* A reward that is not finite drops its episode.
* Network and initial weights are torch's own defaults, as theirs; the seed decides them.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import logging
import math
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from trimtab.core import LanguageModel, Prompt, Selection
from trimtab.errors import MissingExtraError, OptionError, naming
from trimtab.guides.agent import Agent
from trimtab.mixing.rules import FirstAccepted
from trimtab.storage.cards import write_card
from trimtab.storage.files import new_directory
from trimtab.training.agent.card import agent_card, versions
from trimtab.training.agent.model_source import ModelSource
from trimtab.training.agent.settings import AgentSettings
from trimtab.training.run import checkpoints
from trimtab.training.run.interruption import interruptible
from trimtab.training.run.prompt_data import check_prompts, prompt_card, templated
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
    template_options: Mapping[str, Any] | None = None,
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

    `model` is a name as in `load_model`, or a model that is loaded (then without workers). `template` says what a
    prompt of text is: "raw", text to go on with; "chat", a user's message; "auto", a message where the model has a chat
    template, which is told `template_options` with each prompt. `prompt_files` are names for the model card. With
    `workers`, so many Ray actors roll out, each with a model of its own, on this machine or on the cluster at
    `ray_address`; the learner stays here. Each claims `worker_cpus` and `worker_gpus` of a node (None: a GPU, or its
    part of one where there are fewer). `out` must not exist unless `overwrite`, or `resume`, which continues an
    interrupted run exactly where its last whole checkpoint stands.

    Raises OptionError, DataError and PromptError for what the caller gave, OutputExistsError, CheckpointError (also
    where the disk is full: the last checkpoint survives), ModelError where rewards are never finite or all workers
    died, NotFiniteError where the losses diverge. Interrupted (a KeyboardInterrupt) where SIGINT or SIGTERM asked the
    run to end: its round is finished and saved first, and a second signal ends it at once.
    """
    out, settings = Path(out), settings or AgentSettings()
    claims = (worker_cpus, worker_gpus)
    _check(model, prompts, rewards, template, workers, ray_address, claims)
    checkpoints.check_output(out, resume=resume, overwrite=overwrite)
    told = _told(rewards, settings, prompt_card(prompts, template, prompt_files, template_options))
    if resume and not checkpoints.workspace_of(out).exists() and out.exists():
        return _finished(out, told)
    rater = Rater(rewards, baseline=settings.baseline, reward_scale=settings.reward_scale)
    source = ModelSource(str(model), dtype, device, trust_remote_code, revision)
    rollouts = _rollouts(model, source, settings, workers, ray_address, claims)
    try:
        ready = templated(
            prompts, template, has_chat_template=rollouts.facts.has_chat_template, options=template_options
        )
        rollouts.check(ready)
        description = {"format": 1, "kind": "agent", **rollouts.facts.card, **told}
        workspace = checkpoints.open_workspace(out, description, resume=resume)
        return _run(rollouts, ready, rater, settings, workspace, out, description, progress)
    finally:
        rollouts.close()


def _check(
    model: str | Path | LanguageModel,
    prompts: Sequence[Prompt],
    rewards: Sequence[AgentReward],
    template: str,
    workers: int,
    ray_address: str | None,
    claims: tuple[float, float | None],
) -> None:
    """Raise for what can be seen to be wrong before anything is loaded."""
    for package in ("torchrl", "tensordict"):
        if importlib.util.find_spec(package) is None:
            raise MissingExtraError(package, "agent", "Training an agent")
    check_prompts(prompts, template)
    check_rewards(rewards)
    if workers < 0:
        raise naming(
            OptionError, "{workers} is {0}; give a whole number from 0 (0: roll out in this process).", workers
        )
    if ray_address is not None and not workers:
        raise naming(OptionError, "{ray_address} is of no use without {workers}; give how many.")
    if claims != (1.0, None) and not workers:
        raise naming(OptionError, "{worker_cpus} and {worker_gpus} are of no use without {workers}; give how many.")
    if not (math.isfinite(claims[0]) and claims[0] > 0) or (claims[1] is not None and not 0 <= claims[1] < math.inf):
        raise naming(
            OptionError,
            "{worker_cpus} is {0} and {worker_gpus} {1}; give finite numbers, above 0 and at least 0.",
            *claims,
        )
    if workers and not isinstance(model, str | Path):
        raise OptionError("Workers load the model themselves; give its name or directory, not a loaded model.")
    if workers and importlib.util.find_spec("ray") is None:
        raise MissingExtraError("ray", "ray", "Rolling out on workers")


def _rollouts(
    model: str | Path | LanguageModel,
    source: ModelSource,
    settings: AgentSettings,
    workers: int,
    ray_address: str | None,
    claims: tuple[float, float | None],
) -> Rollouts:
    if workers:
        from trimtab.training.agent.workers import RayRollouts

        return RayRollouts(source, settings, workers, address=ray_address, cpus=claims[0], gpus=claims[1])
    from trimtab.training.agent.rollouts import LocalRollouts

    return LocalRollouts(source.load() if isinstance(model, str | Path) else model, settings)


def _told(rewards: Sequence[AgentReward], settings: AgentSettings, data: Mapping[str, Any]) -> dict[str, Any]:
    """What the caller decides of a run, as in `guide.json`; a resumed run must share it."""
    return {
        "hyperparameters": dataclasses.asdict(settings),
        "rewards": rewards_card(rewards),
        "contents": reward_contents(rewards),
        "data": data,
    }


def _run(
    rollouts: Rollouts,
    prompts: Sequence[Prompt],
    rater: Rater,
    settings: AgentSettings,
    workspace: Path,
    out: Path,
    description: Mapping[str, Any],
    progress: Callable[[TrainProgress], None] | None,
) -> AgentResult:
    from trimtab.training.agent.run import AgentRun

    started = time.monotonic()
    with interruptible("round") as interruption:
        run = AgentRun(rollouts, prompts, rater, settings, workspace, interruption, progress)
        before = run.num_episodes
        run.run()
    metrics = {
        **{name: value for name, value in run.last_line.items() if name != "step"},
        "num_episodes": run.num_episodes,
        "last_window": settings.logging_episodes,
        "seconds": round(time.monotonic() - started, 1),
        "num_resumed": before,
    }
    with new_directory(out, overwrite=True) as temporary:
        _write(temporary, run, settings, {**description, "metrics": metrics, "versions": versions()})
        shutil.copy2(workspace / "metrics.jsonl", temporary / "metrics.jsonl")
    shutil.rmtree(workspace)
    return _result(out, metrics)


def _write(directory: Path, run: AgentRun, settings: AgentSettings, card: Mapping[str, Any]) -> None:
    """The guide's files into an empty directory."""
    selection = Selection(FirstAccepted(), settings.temperature, settings.top_k, settings.top_p)
    base = card["base"]["name"]
    agent = Agent(run.learner.actor.eval(), selection=selection, trained_on=base, card=card)
    with torch.no_grad():
        agent.save_files(directory)
    write_card(directory, agent.facts())
    (directory / "README.md").write_text(agent_card(card), encoding="utf-8")


def _finished(out: Path, told: Mapping[str, Any]) -> AgentResult:
    """The result of a run that came to its end before."""
    card = checkpoints.finished(out, {"kind": "agent", **told})
    return _result(out, card["metrics"])


def _result(out: Path, metrics: Mapping[str, Any]) -> AgentResult:
    counts = ("num_episodes", "num_updates", "num_dropped", "num_empty", "num_lost_workers")
    return AgentResult(
        out=out,
        **{name: int(metrics[name]) for name in counts},
        reward=metrics.get("reward"),
        metrics=dict(metrics),
    )
