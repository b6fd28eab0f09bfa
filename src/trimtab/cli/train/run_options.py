"""What every kind of training shares on the command line: settings, output, what errors call them."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from trimtab.cli import options
from trimtab.errors import TrimtabError, renamed
from trimtab.training.run.settings import DTYPES, RunSettings

above_zero = options.number(0, open_low=True)
below_one = options.number(0, 1)
from_zero = options.number(0)
count = options.whole(1)
count_or_none = options.whole(0)

Settings = Mapping[str, tuple[Callable[[str], Any], str]]
"""Settings of one number: name -> (type, help)."""

PROMPT_LENGTH = "tokens of the prompt, cut from the left; not given: half of --max-length"
SAVE_MINUTES = "minutes between checkpoints, longer where writing one takes long; 0: none by minutes"

OPTIMISER: Settings = {
    "learning_rate": (above_zero, "peak of the cosine schedule"),
    "warmup_share": (below_one, "share of the steps in which the learning rate rises"),
    "weight_decay": (from_zero, "of AdamW"),
    "max_grad_norm": (above_zero, "longer gradients are clipped"),
}
ADAPTER: Settings = {
    "lora_rank": (count, "rank of the adapter"),
    "lora_alpha": (above_zero, "scale of the adapter: alpha / rank"),
    "lora_dropout": (below_one, "before the adapter"),
    "lora_last_layers": (count_or_none, "adapt only so many of the last blocks; 0: all"),
}
STEPS: Settings = {
    "logging_steps": (count, "steps between lines of the curve"),
    "save_steps": (count_or_none, "steps between checkpoints; 0: none by steps"),
    "save_minutes": (from_zero, SAVE_MINUTES),
}

_OTHERS = ("lora_targets", "dtype", "save_dtype", "gradient_checkpointing", "report_to")


def add_weight_options(group: argparse._ArgumentGroup, defaults: RunSettings) -> None:
    """Which layers are adapted, and in what precision."""
    group.add_argument(
        "--lora-targets",
        type=lambda text: tuple(text.split(",")),
        default=defaults.lora_targets,
        metavar="NAME,NAME,...",
        help="layers to adapt, such as q_proj,v_proj; all-linear: every linear layer that can run row by row, but the "
        f"output head ({','.join(defaults.lora_targets)})",
    )
    group.add_argument("--dtype", choices=DTYPES, default=defaults.dtype, help="to compute in (%(default)s)")
    group.add_argument("--save-dtype", choices=DTYPES[1:], default=defaults.save_dtype, help="of the weights in --out")
    group.add_argument("--gradient-checkpointing", action="store_true", help="less memory, more time")


def add_outputs(parser: argparse.ArgumentParser, where: str) -> None:
    """Where the directory goes, and who else is told."""
    group = options.add_run_outputs(parser, where)
    group.add_argument(
        "--report-to",
        type=lambda text: tuple(text.split(",")),
        default=(),
        metavar="NAME,...",
        help="trackers: tensorboard, wandb, trackio, mlflow, ... (none)",
    )
    group.add_argument("--push-to-hub", metavar="OWNER/NAME", help="upload the finished directory to this repository")


def given(args: argparse.Namespace, names: Iterable[str]) -> dict[str, Any]:
    """The settings that are named, `full`, and those of `add_weight_options` and `add_outputs`."""
    return {name: getattr(args, name) for name in ("full", *_OTHERS, *names)}


def is_main() -> bool:
    """Whether this is the process of its group that talks (`accelerate launch` numbers them)."""
    return os.environ.get("RANK", "0") == "0"


def flags_of(parser: argparse.ArgumentParser) -> dict[str, str]:
    """Setting -> the flag that sets it."""
    found: dict[str, list[str]] = {}
    for action in parser._actions:
        if action.option_strings:
            flag = action.option_strings[-1]
            says_no = isinstance(action, argparse._StoreFalseAction)
            found.setdefault(action.dest, []).append(f"{action.dest} ({flag})" if says_no else flag)
    flags = {name: " or ".join(own) for name, own in found.items()}
    for action in parser._actions:
        for flag in action.option_strings:  # one that is repeated is kept under a plural
            flags.setdefault(flag.lstrip("-").replace("-", "_"), flag)
    return flags | ({"eval_pairs": flags["eval_data"]} if "eval_data" in flags else {})


@contextmanager
def naming_flags(flags: Mapping[str, str]) -> Iterator[None]:
    """Inside, an error that names settings names their flags."""
    try:
        yield
    except TrimtabError as error:
        text = renamed(error, lambda name: flags.get(name, name))
        if text is not None:
            error.args = (text,)
        raise
