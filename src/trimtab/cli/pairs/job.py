"""What the flags of `trimtab pairs` ask for: one frozen job, checked before anything large is read."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trimtab.cli import engines, flags, options
from trimtab.cli.judge import JudgeChoice, add_endpoint
from trimtab.cli.sentences import read_sentence
from trimtab.cli.template_options import add_ignored_columns, add_template_options, template_options
from trimtab.cli.train.rewards import REWARD_HELP, add_rewards
from trimtab.errors import OptionError
from trimtab.making.settings import AWAY, TOWARDS, ChoiceSettings, SampleSettings

if TYPE_CHECKING:
    from trimtab.cli.engines import EngineChoice
    from trimtab.core import SamplingParams
    from trimtab.engines.maker import GuideSource
    from trimtab.storage.model_source import ModelSource
    from trimtab.training.run.rewards import AgentReward

_WAYS = "--reward R, --towards SENTENCE with --away SENTENCE, or --judge J"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Every flag of the command."""
    options.add_model_options(parser)
    group = parser.add_argument_group("prompts")
    group.add_argument(
        "--prompts", required=True, metavar="FILE", help=".jsonl rows with a prompt, a .txt with one a line, or -"
    )
    add_template_options(parser)
    add_ignored_columns(parser)
    group.add_argument("--skip-bad-lines", action="store_true", help="go on without prompts that cannot be used")
    _add_ways(parser)
    group = parser.add_argument_group("answers and pairs")
    flags.add_fields(group, SampleSettings())
    flags.add_fields(group, ChoiceSettings())
    group = parser.add_argument_group("output")
    group.add_argument("--out", required=True, metavar="FILE.jsonl", help="where the pairs go, one a line")
    existing = group.add_mutually_exclusive_group()
    existing.add_argument("--resume", action="store_true", help="go on with the answers and opinions that are there")
    existing.add_argument("--overwrite", action="store_true", help="replace --out and what is kept beside it")
    group.add_argument("--json", action="store_true", help="the account of the pairs as JSON on standard output")
    group.add_argument(
        "--batch-size", type=options.whole(1), default=16, metavar="N", help="answers at a time (%(default)s)"
    )
    options.add_sampling_options(parser)
    engines.add_engine_options(parser)


def _add_ways(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what tells two answers apart")
    add_rewards(
        group,
        "--reward",
        f"{REWARD_HELP}; repeat for several",
    )
    group.add_argument(
        "--towards", metavar="SENTENCE", help="chosen answers are sampled with this before the prompt; @FILE: its text"
    )
    group.add_argument("--away", metavar="SENTENCE", help="rejected answers are sampled with this before the prompt")
    group.add_argument(
        "--judge",
        metavar="NAME",
        help="openai:MODEL, reward:PATH, or scorer:NAME (sentiment, offence, module:function, FILE.py:function)",
    )
    group.add_argument(
        "--lower-is-better",
        action="store_true",
        help="the judge is a cost model (scorer:offence is known to be one)",
    )
    add_endpoint(parser, prefix="judge-")


@dataclass(frozen=True, slots=True)
class Job:
    """What the flags ask for, read once."""

    model: ModelSource
    engine: EngineChoice
    guides: Mapping[str, GuideSource]
    params: SamplingParams
    draft_quantize: str | None
    template: str
    template_options: Mapping[str, Any]
    rewards: Sequence[AgentReward]
    sentences: Mapping[str, str]
    judge: JudgeChoice | None
    samples: SampleSettings
    choice: ChoiceSettings
    batch_size: int
    skip_bad_lines: bool
    prompts: str


def job_of(args: argparse.Namespace) -> Job:
    """The flags, checked as far as nothing large has to be read for it."""
    options.check_guide_names(args.guides)
    engine = engines.engine_choice(args)
    params = options.sampling_params(args, weights={}, seed=None)
    engine.maker.check_params(params)
    samples = flags.read_fields(SampleSettings, args)
    choice = flags.read_fields(ChoiceSettings, args)
    sentences = sentences_of(args)
    if sentences:
        samples.num_under(TOWARDS)
    _check_way(args)
    return Job(
        model=options.model_source(args),
        engine=engine,
        guides=engines.GuideFlags.of(args).sources(params),
        params=params,
        draft_quantize=args.draft_quantize,
        template=args.template,
        template_options=template_options(args),
        rewards=args.rewards,
        sentences=sentences,
        judge=None if args.judge is None else JudgeChoice.of(args, prefix="judge_"),
        samples=samples,
        choice=choice,
        batch_size=args.batch_size,
        skip_bad_lines=args.skip_bad_lines,
        prompts="standard input" if args.prompts == "-" else f"`{Path(args.prompts).name}`",
    )


def _check_way(args: argparse.Namespace) -> None:
    """Raise OptionError unless there is one way to tell answers apart, and no flag of another."""
    given = [
        name
        for name, value in (("--reward", args.rewards), ("--towards", args.towards), ("--judge", args.judge))
        if value
    ]
    if not given:
        raise OptionError(f"Nothing tells two answers apart; give {_WAYS}.")
    if len(given) > 1:
        raise OptionError(f"{' and '.join(given)} both tell answers apart; give one of them: {_WAYS}.")
    if args.rewards:
        from trimtab.training.run.rewards import check_rewards

        check_rewards(args.rewards)
    elif args.min_margin is not None:
        raise OptionError(f"--min-margin is a difference in reward, and {given[0]} gives none; give --reward with it.")
    if args.judge is None and (args.lower_is_better or args.base_url is not None):
        flag = "--lower-is-better" if args.lower_is_better else "--base-url"
        raise OptionError(f"{flag} is of a judge; give --judge NAME with it.")


def sentences_of(args: argparse.Namespace) -> dict[str, str]:
    """The two sentences, from the flags or their files. Raises OptionError for one alone, an empty one, equal ones."""
    given = {TOWARDS: args.towards, AWAY: args.away}
    if all(text is None for text in given.values()):
        return {}
    found = {}
    for name, text in given.items():
        if text is None:
            raise OptionError(
                f"--{name} is missing: chosen answers are sampled --towards one sentence, rejected ones "
                "--away, under another."
            )
        found[name] = read_sentence(name, text)
    if found[TOWARDS] == found[AWAY]:
        raise OptionError("--towards and --away are the same sentence; give two that ask for different answers.")
    return found
