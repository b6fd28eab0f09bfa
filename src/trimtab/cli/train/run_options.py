"""What every kind of training shares on the command line: the model, the output, what errors call the settings."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from trimtab import environment
from trimtab.cli import options
from trimtab.errors import TrimtabError, renamed

NOT_SETTINGS = ("share_rows", "report_to")
"""Settings that are not among the training flags: the first has none, the second stands with the output."""


def add_model_options(group: argparse._ArgumentGroup, *, placed: bool = False) -> None:
    """--model and how it is loaded; with `placed`, in which precision and on which device."""
    group.add_argument("--model", required=True, metavar="NAME", help='a hub id, a directory, a .gguf file, or "demo"')
    if placed:
        group.add_argument(
            "--dtype",
            default="auto",
            help="auto (on a CPU float32, or bfloat16 where that is found to be faster and there are no workers), "
            "float32, bfloat16 or float16",
        )
        group.add_argument("--device", help="cpu, cuda, cuda:1, ... (a GPU where there is one)")
    options.add_threads_option(group)
    group.add_argument("--revision", help="branch, tag or commit of a model on the hub")
    group.add_argument("--trust-remote-code", action="store_true", help="let the model run its own code")


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


def is_main() -> bool:
    """Whether this is the process of its group that talks (`accelerate launch` numbers them)."""
    return environment.RANK.whole(0) == 0


def flags_of(parser: argparse.ArgumentParser) -> dict[str, str]:
    """Setting -> the flag that sets it."""
    flags: dict[str, list[str]] = {}
    for action in parser._actions:
        if action.option_strings:
            flag = action.option_strings[-1]
            says_no = isinstance(action, argparse._StoreFalseAction)
            flags.setdefault(action.dest, []).append(f"{action.dest} ({flag})" if says_no else flag)
    flag_of = {name: " or ".join(written) for name, written in flags.items()}
    for action in parser._actions:
        for flag in action.option_strings:  # one that is repeated is kept under a plural
            flag_of.setdefault(flag.lstrip("-").replace("-", "_"), flag)
    return flag_of | ({"eval_pairs": flag_of["eval_data"]} if "eval_data" in flag_of else {})


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
