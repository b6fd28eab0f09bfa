"""`trimtab train agent`: an accept-reject agent from rewards (MARA).

A small network that reads the model's state after each candidate token and accepts or rejects it, trained on the
model's own answers to prompts. Interrupted, it goes on with --resume exactly where its last checkpoint stands.
"""

from __future__ import annotations

import argparse
import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from trimtab.cli import flags, options
from trimtab.cli.exits import Exit
from trimtab.cli.progress import Progress
from trimtab.cli.prompts import read_prompts
from trimtab.cli.results import print_json
from trimtab.cli.train.rewards import add_prompts_and_rewards
from trimtab.cli.train.run_options import add_model_options
from trimtab.cli.train.spec import PromptsSpec, RunSpec
from trimtab.engines.registry import ENGINES
from trimtab.errors import OptionError
from trimtab.training.agent.settings import AgentSettings
from trimtab.training.run.rewards import BASE, check_rewards

if TYPE_CHECKING:
    from trimtab.training.agent.train import AgentResult, TrainProgress

_above_zero = options.number(0, open_low=True)
_from_zero = options.number(0)


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkersSpec:
    """Where rollouts run, and on what."""

    workers: int
    """0: in this process."""
    ray_address: str | None
    worker_cpus: float
    worker_gpus: float | None
    dtype: str
    device: str | None

    @classmethod
    def of(cls, args: argparse.Namespace) -> WorkersSpec:
        """What --workers and the flags beside it say."""
        return cls(
            workers=args.workers,
            ray_address=args.ray_address,
            worker_cpus=args.worker_cpus,
            worker_gpus=args.worker_gpus,
            dtype=args.dtype,
            device=args.device,
        )


def register(methods: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the sub-command."""
    parser = methods.add_parser("agent", help="an accept-reject agent (MARA)", description=__doc__, allow_abbrev=False)
    _add_inputs(parser)
    group = parser.add_argument_group("training")
    flags.add_fields(group, AgentSettings())
    group.add_argument(
        "--baseline",
        type=_baseline,
        default=AgentSettings().baseline,
        metavar="X|base",
        help="subtracted from the reward: a number, or base: the reward of the model's own greedy answer (0)",
    )
    options.add_run_outputs(parser, "where the agent goes")


def run(args: argparse.Namespace) -> Exit:
    """Train an accept-reject agent."""
    settings = dataclasses.replace(flags.read_fields(AgentSettings, args), baseline=args.baseline)
    _check_engine(args.engine)
    return _train(settings, PromptsSpec.of(args), RunSpec.of(args), WorkersSpec.of(args))


def _train(settings: AgentSettings, source: PromptsSpec, run: RunSpec, where: WorkersSpec) -> Exit:
    check_rewards(source.rewards)
    rows = read_prompts(source.path, (), skip_bad_lines=source.skip_bad_lines, ignore_columns=source.ignore_columns)
    with Progress("episodes") as progress:
        progress.say(f"{len(rows)} prompts to train on")
        from trimtab.training.agent.train import train_agent

        result = train_agent(
            run.model,
            [row.prompt for row in rows],
            source.rewards,
            settings=settings,
            out=run.out,
            template=source.template,
            template_options=source.template_options,
            prompt_files=[Path(source.path).name],
            workers=where.workers,
            ray_address=where.ray_address,
            worker_cpus=where.worker_cpus,
            worker_gpus=where.worker_gpus,
            resume=run.resume,
            overwrite=run.overwrite,
            dtype=where.dtype,
            device=where.device,
            trust_remote_code=run.trust_remote_code,
            revision=run.revision,
            progress=progress.following(_line),
        )
        progress.say(_summary(result))
    if run.as_json:
        print_json(_as_json(result))
    return Exit.DONE


def _add_inputs(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("model, prompts and rewards")
    add_model_options(group, placed=True)
    add_prompts_and_rewards(parser, group)
    group = parser.add_argument_group("workers")
    group.add_argument(
        "--workers", type=options.whole(0), default=0, metavar="N", help="roll out on N Ray actors; 0: here (0)"
    )
    group.add_argument(
        "--engine", choices=ENGINES, default="builtin", help="what rolls out (%(default)s; not vllm yet)"
    )
    group.add_argument("--ray-address", metavar="ADDRESS", help="of a Ray cluster: host:port, ray://host:port or auto")
    group.add_argument(
        "--worker-cpus", type=_above_zero, default=1.0, metavar="X", help="CPUs of a node that a worker claims (1)"
    )
    group.add_argument(
        "--worker-gpus",
        type=_from_zero,
        metavar="X",
        help="GPUs of a node that a worker claims, a part of one too (one, or an equal part where there are fewer)",
    )


def _check_engine(engine: str) -> None:
    if engine == "vllm":
        raise OptionError(
            "--engine vllm cannot roll out for training: the learner needs the base's state after every candidate and "
            "decisions drawn from an actor that changes each round, and vLLM's engine for agents gives out neither. "
            "Roll out with the built-in engine, on several machines with --workers N --ray-address ADDRESS."
        )


def _baseline(text: str) -> float | str:
    return BASE if text == BASE else options.any_number(text)


def _line(progress: TrainProgress) -> str:
    metrics = progress.metrics
    shown = {
        "reward": "reward",
        "acceptance": "acceptance",
        "entropy": "decision_entropy",
        "KL": "kl",
        "tokens": "num_tokens",
        "alpha": "alpha",
        "critic loss": "critic_loss",
    }
    values = "  ".join(f"{label} {metrics[name]:.3g}" for label, name in shown.items() if name in metrics)
    where = f"episode {progress.step:>{len(str(progress.num_steps))}}/{progress.num_steps}"
    left_out = f"  left out {metrics['num_dropped']:g}" if metrics["num_dropped"] else ""
    return (
        f"{where}  {values}  buffer {metrics['buffer']:g}{left_out}  {metrics['episodes_per_s']:.3g} episodes/s  "
        f"base {100 * metrics['share_base']:.0f}%"
    )


def _summary(result: AgentResult) -> str:
    reward = "no reward" if result.reward is None else f"mean reward {result.reward:.4g}"
    return (
        f"{result.out}: {reward} at the end of {result.num_episodes} episodes, {result.num_updates} updates; "
        f"{result.num_dropped} left out, {result.num_empty} without a decision"
    )


def _as_json(result: AgentResult) -> dict[str, object]:
    names = ("num_episodes", "num_updates", "num_dropped", "num_empty", "num_lost_workers", "reward")
    return {
        "out": str(result.out),
        **{name: getattr(result, name) for name in names},
        "metrics": dict(result.metrics),
    }
