"""`trimtab train rl`: a policy from rewards, by reinforcement on its own answers (RLOO).

Several rewards, each with its multiplier, make it multi-objective RL. A LoRA adapter of the model, or all of its
weights with --full; the KL is to the model as it was. Interrupted, it goes on with --resume exactly where its last
checkpoint stands.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from trimtab import environment
from trimtab.cli import flags
from trimtab.cli.exits import Exit
from trimtab.cli.progress import Progress
from trimtab.cli.prompts import read_prompts
from trimtab.cli.results import print_json
from trimtab.cli.train.rewards import add_prompts_and_rewards
from trimtab.cli.train.run_options import NOT_SETTINGS, add_model_options, add_outputs, is_main
from trimtab.cli.train.spec import PromptsSpec, RunSpec
from trimtab.training.rl.settings import RLSettings
from trimtab.training.run.rewards import check_rewards

if TYPE_CHECKING:
    from trimtab.training.rl.train import RLResult, TrainProgress


Trains: TypeAlias = "Callable[..., RLResult]"
"""A training by reinforcement, such as `train_rl`."""


def register(methods: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the sub-command."""
    parser = methods.add_parser("rl", help="a policy from rewards (RLOO)", description=__doc__, allow_abbrev=False)
    add_options(parser, RLSettings(), "where the policy goes")


def add_options(parser: argparse.ArgumentParser, settings: RLSettings, where: str) -> None:
    """Add what every training by reinforcement takes, and the flags of its settings."""
    group = parser.add_argument_group("model, prompts and rewards")
    add_model_options(group)
    add_prompts_and_rewards(parser, group)
    flags.add_fields(parser.add_argument_group("training"), settings, but=NOT_SETTINGS)
    add_outputs(parser, where)


def run(args: argparse.Namespace) -> Exit:
    """Train a policy by reinforcement."""
    return run_method(args, RLSettings, _load)


def _load() -> Trains:
    from trimtab.training.rl.train import train_rl

    return train_rl


def run_method(args: argparse.Namespace, settings: type[RLSettings], load: Callable[[], Trains]) -> Exit:
    """Train by what `load` imports."""
    environment.NO_TELEMETRY.give()
    chosen = flags.read_fields(settings, args)
    return _train(load, chosen, PromptsSpec.of(args), RunSpec.of(args), push_to_hub=args.push_to_hub)


def _train(
    load: Callable[[], Trains],
    settings: RLSettings,
    source: PromptsSpec,
    run: RunSpec,
    *,
    push_to_hub: str | None,
) -> Exit:
    check_rewards(source.rewards)
    rows = read_prompts(source.path, (), skip_bad_lines=source.skip_bad_lines, ignore_columns=source.ignore_columns)
    with Progress("steps", active=is_main()) as progress:
        progress.say(f"{len(rows)} prompts to train on")
        train = load()
        with contextlib.redirect_stdout(sys.stderr):  # as in `pairs.train`
            result = train(
                run.model,
                [row.prompt for row in rows],
                source.rewards,
                settings=settings,
                out=run.out,
                template=source.template,
                template_options=source.template_options,
                prompt_files=[Path(source.path).name],
                resume=run.resume,
                overwrite=run.overwrite,
                trust_remote_code=run.trust_remote_code,
                revision=run.revision,
                push_to_hub=push_to_hub,
                progress=progress.following(_line),
            )
        progress.say(_summary(result))
    if run.as_json:
        print_json(_as_json(result))
    return Exit.DONE


def _line(progress: TrainProgress) -> str:
    metrics = progress.metrics
    rewards = {name.removeprefix("reward_"): name for name in metrics if name.startswith("reward_")}
    rewards.pop("std", None)
    shown = {"reward": "reward", **rewards, "KL": "kl", "tokens": "length", "s/step": "seconds_per_step"}
    values = "  ".join(f"{label} {metrics[name]:.3g}" for label, name in shown.items() if name in metrics)
    left_out = f"  left out {metrics['num_dropped']:g}" if metrics.get("num_dropped") else ""
    return f"step {progress.step:>{len(str(progress.num_steps))}}/{progress.num_steps}  {values}{left_out}"


def _summary(result: RLResult) -> str:
    reward = "no reward" if result.reward is None else f"mean reward {result.reward:.4g}"
    start = result.metrics.get("reward_at_start")
    before = "" if start is None else f" ({start:.4g} at the start)"
    return (
        f"{result.out}: {reward}{before} at the end of {result.num_answers} answers to {result.num_prompts} prompts; "
        f"{result.num_dropped} left out"
    )


def _as_json(result: RLResult) -> dict[str, object]:
    names = ("num_prompts", "num_answers", "num_dropped", "reward")
    return {
        "out": str(result.out),
        **{name: getattr(result, name) for name in names},
        "metrics": dict(result.metrics),
    }
