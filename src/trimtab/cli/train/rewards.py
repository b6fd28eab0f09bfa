"""What the kinds of training on prompts share on the command line: the prompts, and what their answers are worth."""

from __future__ import annotations

import argparse
import dataclasses
import re
from collections.abc import Callable
from pathlib import Path

from trimtab.cli.flags import argument
from trimtab.cli.template_options import add_ignored_columns, add_template_options
from trimtab.errors import OptionError
from trimtab.training.run.rewards import AgentReward

_REWARD_FORM = "NAME=SOURCE[:MULTIPLIER], for example kind=sentiment:2.0 or cost=models/cost:-1.0"
_SHORT_FORM = "[NAME=]SOURCE[:MULTIPLIER], for example sentiment, kind=sentiment:2.0 or models/cost:-1.0"


REWARD_HELP = (
    "a scorer, the directory or hub id of a reward model, module:function (looked for in the working directory first) "
    "or FILE.py:function, and how much it counts (1; negative for a cost)"
)
"""What a reward may be."""


def add_prompts(parser: argparse.ArgumentParser, group: argparse._ArgumentGroup) -> None:
    """--prompts, and how they are read."""
    group.add_argument(
        "--prompts", required=True, metavar="FILE", help=".jsonl rows with a prompt, a .txt with one a line, or -"
    )
    add_template_options(parser)
    add_ignored_columns(parser)
    group.add_argument("--skip-bad-lines", action="store_true", help="go on without lines that cannot be used")


def add_prompts_and_rewards(parser: argparse.ArgumentParser, group: argparse._ArgumentGroup) -> None:
    """--prompts, how they are read, and --reward."""
    add_prompts(parser, group)
    group.add_argument(
        "--reward",
        dest="rewards",
        action="append",
        required=True,
        type=argument(parse_reward),
        metavar="NAME=SOURCE[:MULTIPLIER]",
        help=f"a term of the reward: {REWARD_HELP}; repeat for several",
    )


def add_rewards(
    group: argparse._ArgumentGroup, flag: str, help_text: str, *, read: Callable[[str], object] | None = None
) -> None:
    """A flag that names rewards, each `[NAME=]SOURCE[:MULTIPLIER]`, and may be repeated.

    `--reward` fills `rewards`; `read` is the argparse type (left out: `reward_argument`).
    """
    group.add_argument(
        flag,
        dest=f"{flag.removeprefix('--')}s",
        action="append",
        default=[],
        type=read or reward_argument,
        metavar="[NAME=]SOURCE[:MULTIPLIER]",
        help=help_text,
    )


def parse_reward(text: str, form: str = _REWARD_FORM) -> AgentReward:
    """`NAME=SOURCE[:MULTIPLIER]` -> AgentReward; without a multiplier it is 1. `form` says in errors what is accepted.

    SOURCE is a scorer's name, the directory or hub id of a reward model, module:function or FILE.py:function. What
    follows the last colon is the multiplier if it is a number, unless the whole names something that exists. Raises
    OptionError.
    """
    name, equals, target = text.partition("=")
    if not equals or not name or not target:
        raise OptionError(f"{text!r} is not a reward. Accepted: {form}.")
    source, colon, tail = target.rpartition(":")
    if not colon or Path(target).exists():
        return AgentReward(name, target)
    try:
        multiplier = float(tail)
    except ValueError:
        if _is_function(target):
            return AgentReward(name, target)
        raise OptionError(f"The multiplier {tail!r} of reward {name} is not a number. Accepted: {form}.") from None
    if not source:
        raise OptionError(f"{text!r} names no source. Accepted: {form}.")
    return AgentReward(name, source, multiplier)


def _is_function(target: str) -> bool:
    from trimtab.storage.scorers import SCORERS, is_function_name

    head = target.rpartition(":")[0]
    return is_function_name(target) and head not in SCORERS and not Path(head).is_dir()


@argument
def reward_argument(text: str) -> AgentReward:
    """An argparse type: `[NAME=]SOURCE[:MULTIPLIER]`; a reward without a name is called after its source's end."""
    if re.match(r"[A-Za-z0-9_.-]+=", text):
        return parse_reward(text, _SHORT_FORM)
    found = parse_reward(f"reward={text}", _SHORT_FORM)
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", str(found.source).rstrip("/").rpartition("/")[2]).strip("-")
    return dataclasses.replace(found, name=name or found.name)
