"""`trimtab train rl`: a policy from rewards, by reinforcement on its own answers (RLOO).

Several rewards, each with its multiplier, make it multi-objective RL. A LoRA adapter of the model, or all of its
weights with --full; the KL is to the model as it was. Interrupted, it goes on with --resume exactly where its last
checkpoint stands.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from typing import TYPE_CHECKING, Any

from trimtab.cli import options
from trimtab.cli.prompts import read_prompts
from trimtab.cli.train import run_options
from trimtab.cli.train.progress import Progress
from trimtab.cli.train.rewards import add_prompts_and_rewards, run_arguments
from trimtab.training.rl.settings import RLSettings
from trimtab.training.run.rewards import check_rewards

if TYPE_CHECKING:
    from trimtab.training.rl.train import RLResult, TrainProgress

_DEFAULTS = RLSettings()

_SETTINGS: run_options.Settings = {
    "kl_weight": (run_options.from_zero, "of the KL to the model as it was, taken off the reward"),
    "num_generations": (options.whole(2), "answers to each prompt of a step"),
    "max_new_tokens": (run_options.count, "tokens of an answer"),
    "temperature": (run_options.above_zero, "of the answers"),
    "epochs": (run_options.above_zero, "passes over the prompts; fractions are accepted"),
    "batch_size": (run_options.count, "answers in one forward pass of a process"),
    "gradient_accumulation": (
        run_options.count,
        "forward passes in one step; not given: the fewest from 2 on that --num-generations fills evenly",
    ),
    "max_prompts": (run_options.count_or_none, "train on a random sample of so many prompts; 0: all"),
    "max_prompt_length": (run_options.count, "prompts of more tokens are left out and counted"),
    "seed": (options.seed_number, "of the adapter, the order, the sample and the answers"),
    **run_options.OPTIMISER,
    **run_options.ADAPTER,
    **run_options.STEPS,
}
"""Settings of one number: name -> (type, help)."""


def register(methods: argparse._SubParsersAction[Any]) -> None:
    """Add the sub-command."""
    parser = methods.add_parser("rl", help="a policy from rewards (RLOO)", description=__doc__, allow_abbrev=False)
    group = parser.add_argument_group("model, prompts and rewards")
    group.add_argument("--model", required=True, metavar="NAME", help='a hub id, a directory, a .gguf file, or "demo"')
    group.add_argument("--revision", help="branch, tag or commit of a model on the hub")
    group.add_argument("--trust-remote-code", action="store_true", help="let the model run its own code")
    add_prompts_and_rewards(parser, group)
    group = parser.add_argument_group("training")
    group.add_argument("--full", action="store_true", help="train all weights, not an adapter")
    options.add_settings(group, _SETTINGS, _DEFAULTS)
    run_options.add_weight_options(group, _DEFAULTS)
    run_options.add_outputs(parser, "where the policy goes")


def run(args: argparse.Namespace) -> int:
    """Train a policy by reinforcement."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # TRL would report each run
    settings = RLSettings(**run_options.given(args, _SETTINGS))
    check_rewards(args.rewards)
    talks = run_options.is_main()
    rows = read_prompts(args.prompts, (), skip_bad_lines=args.skip_bad_lines, ignore_columns=args.ignore_columns)
    with Progress("steps", _line, active=talks) as progress:
        progress.say(f"{len(rows)} prompts to train on")
        from trimtab.training.rl.train import train_rl

        with contextlib.redirect_stdout(sys.stderr):  # as in `train_pairs.train`
            result = train_rl(
                args.model,
                [row.prompt for row in rows],
                args.rewards,
                settings=settings,
                **run_arguments(args),
                push_to_hub=args.push_to_hub,
                progress=progress.show,
            )
        progress.say(_summary(result))
    if args.json and talks:
        print(json.dumps(_as_json(result), allow_nan=False))
    return 0


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


def _as_json(result: RLResult) -> dict[str, Any]:
    names = ("num_prompts", "num_answers", "num_dropped", "reward")
    return {
        "out": str(result.out),
        **{name: getattr(result, name) for name in names},
        "metrics": dict(result.metrics),
    }
