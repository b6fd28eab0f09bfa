"""`trimtab train agent`: an accept-reject agent from rewards (MARA).

A small network that reads the model's state after each candidate token and accepts or rejects it, trained on the
model's own answers to prompts. Interrupted, it goes on with --resume exactly where its last checkpoint stands.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from trimtab.cli import options
from trimtab.cli.prompts import read_prompts
from trimtab.cli.train import run_options
from trimtab.cli.train.progress import Progress
from trimtab.cli.train.rewards import add_prompts_and_rewards, run_arguments
from trimtab.engines.registry import ENGINES
from trimtab.errors import OptionError
from trimtab.training.agent.settings import STATE_DTYPES, AgentSettings
from trimtab.training.run.rewards import BASE, check_rewards

if TYPE_CHECKING:
    from trimtab.training.agent.train import AgentResult, TrainProgress

_DEFAULTS = AgentSettings()

_above_zero = options.number(0, open_low=True)
_from_zero = options.number(0)
_share = options.number(0, 1)
_open_share = options.number(0, 1, open_low=True)
_count = options.whole(1)
_count_or_none = options.whole(0)

_SETTINGS: Mapping[str, tuple[Callable[[str], Any], str]] = {
    "episodes": (_count, "answers to learn from"),
    "rollout_batch": (_count, "episodes rolled out together, then learnt from"),
    "max_new_tokens": (_count, "tokens of an answer"),
    "top_k": (_count, "candidates at most"),
    "top_p": (_open_share, "candidates up to this probability"),
    "temperature": (_above_zero, "of the base's probabilities in the KL reward"),
    "hidden_dim": (options.whole(4), "width of the networks' first hidden layer"),
    "actor_learning_rate": (_above_zero, "of the agent"),
    "critic_learning_rate": (_above_zero, "of the critics"),
    "alpha_learning_rate": (_above_zero, "of the entropy's weight"),
    "alpha_init": (_above_zero, "the entropy's weight to begin with"),
    "target_entropy_share": (_share, "target entropy as a share of ln 2"),
    "max_grad_norm": (_above_zero, "longer gradients are clipped"),
    "batch_size": (_count, "transitions in one update"),
    "buffer_size": (_count, "transitions remembered; not given: more where updates wait for more"),
    "warmup_batches": (
        _count_or_none,
        "updates begin once the buffer holds so many batches; not given: fewer where --buffer-size holds fewer",
    ),
    "updates_per_episode": (_count, "updates for each new episode"),
    "gamma": (_share, "discount"),
    "tau": (_open_share, "how far target critics go towards the critics after each episode's updates"),
    "kl_weight": (_from_zero, "of the KL reward"),
    "reward_scale": (_above_zero, "multiplies the reward less its baseline"),
    "seed": (options.seed_number, "of the weights, the episodes and what is drawn from the buffer"),
    "logging_episodes": (_count, "episodes between lines of the curve"),
    "save_episodes": (_count_or_none, "episodes between checkpoints; 0: none by episodes"),
    "save_minutes": (_from_zero, run_options.SAVE_MINUTES),
}
"""Settings of one number: name -> (type, help)."""


def register(methods: argparse._SubParsersAction[Any]) -> None:
    """Add the sub-command."""
    parser = methods.add_parser("agent", help="an accept-reject agent (MARA)", description=__doc__, allow_abbrev=False)
    _add_inputs(parser)
    group = parser.add_argument_group("training")
    options.add_settings(group, _SETTINGS, _DEFAULTS)
    group.add_argument(
        "--baseline",
        type=_baseline,
        default=_DEFAULTS.baseline,
        metavar="X|base",
        help="subtracted from the reward: a number, or base: the reward of the model's own greedy answer (0)",
    )
    group.add_argument(
        "--no-postback", dest="postback", action="store_false", help="only the last decision is rewarded"
    )
    group.add_argument(
        "--state-dtype",
        choices=STATE_DTYPES,
        default=_DEFAULTS.state_dtype,
        help="of the buffer's states (%(default)s)",
    )
    options.add_run_outputs(parser, "where the agent goes")


def run(args: argparse.Namespace) -> int:
    """Train an accept-reject agent."""
    settings = AgentSettings(
        baseline=args.baseline,
        postback=args.postback,
        state_dtype=args.state_dtype,
        **{name: getattr(args, name) for name in _SETTINGS},
    )
    check_rewards(args.rewards)
    _check_engine(args.engine)
    rows = read_prompts(args.prompts, (), skip_bad_lines=args.skip_bad_lines, ignore_columns=args.ignore_columns)
    with Progress("episodes", _line) as progress:
        progress.say(f"{len(rows)} prompts to train on")
        from trimtab.training.agent.train import train_agent

        result = train_agent(
            args.model,
            [row.prompt for row in rows],
            args.rewards,
            settings=settings,
            **run_arguments(args),
            workers=args.workers,
            ray_address=args.ray_address,
            worker_cpus=args.worker_cpus,
            worker_gpus=args.worker_gpus,
            dtype=args.dtype,
            device=args.device,
            progress=progress.show,
        )
        progress.say(_summary(result))
    if args.json:
        print(json.dumps(_as_json(result), allow_nan=False))
    return 0


def _add_inputs(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("model, prompts and rewards")
    group.add_argument("--model", required=True, metavar="NAME", help='a hub id, a directory, a .gguf file, or "demo"')
    group.add_argument("--dtype", default="auto", help="auto (float32 on a CPU), float32, bfloat16 or float16")
    group.add_argument("--device", help="cpu, cuda, cuda:1, ... (a GPU where there is one)")
    group.add_argument("--revision", help="branch, tag or commit of a model on the hub")
    group.add_argument("--trust-remote-code", action="store_true", help="let the model run its own code")
    add_prompts_and_rewards(parser, group)
    group = parser.add_argument_group("workers")
    group.add_argument(
        "--workers", type=_count_or_none, default=0, metavar="N", help="roll out on N Ray actors; 0: here (0)"
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


def _as_json(result: AgentResult) -> dict[str, Any]:
    names = ("num_episodes", "num_updates", "num_dropped", "num_empty", "num_lost_workers", "reward")
    return {
        "out": str(result.out),
        **{name: getattr(result, name) for name in names},
        "metrics": dict(result.metrics),
    }
