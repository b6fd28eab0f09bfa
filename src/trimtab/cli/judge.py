"""`trimtab judge`: pairwise win rates of the methods of a comparison against a baseline.

Every method is compared with the baseline prompt by prompt and seed by seed, by a language model that sees both answers
in both orders, or by a reward. Verdicts are kept in RUN/judgements.jsonl, so a run that was cut goes on where it was,
and asks again for what did not come. The result goes to RUN/win_rates.json.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trimtab import environment
from trimtab.cli import options
from trimtab.cli.exits import Exit
from trimtab.cli.results import print_json
from trimtab.errors import OptionError

if TYPE_CHECKING:
    from trimtab.evaluation.comparison.records import Row
    from trimtab.evaluation.judging.judges import Judge
    from trimtab.evaluation.judging.run import Contender, Judged
    from trimtab.evaluation.judging.win_rates import Judgement, WinRate
    from trimtab.statistics import Interval

_STRENGTH_FORM = "METHOD=NUMBER or METHOD=NUMBER,NUMBER,..., for example genarm=1.0"
_EXPORTS = ("alpaca_eval",)


def register(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "judge", help="win rates of the methods of a comparison", description=__doc__, allow_abbrev=False
    )
    parser.add_argument("run_directory", metavar="RUN", help="what `trimtab compare` wrote")
    parser.add_argument(
        "--judge",
        metavar="NAME",
        help="openai:MODEL, reward:PATH, or scorer:NAME (sentiment, offence, module:function, FILE.py:function)",
    )
    parser.add_argument(
        "--lower-is-better", action="store_true", help="the judge is a cost model (scorer:offence is known to be one)"
    )
    _add_pairs(parser)
    add_endpoint(parser)
    group = parser.add_argument_group("output")
    group.add_argument(
        "--export", nargs=2, metavar=("FORMAT", "DIR"), help="also write the answers; FORMAT: alpaca_eval"
    )
    group.add_argument("--overwrite", action="store_true", help="replace files of an earlier --export")
    group.add_argument("--json", action="store_true", help="the result as JSON on standard output")
    parser.set_defaults(run=run)


def _add_pairs(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what is compared")
    group.add_argument("--baseline", metavar="METHOD", help="what the others are compared with (the unguided model)")
    group.add_argument(
        "--strength",
        dest="strengths",
        action="append",
        default=[],
        type=_strength,
        metavar="METHOD=VALUE",
        help="the strength of a method (the one chosen on validation prompts); repeat for several",
    )
    group.add_argument("--split", choices=("test", "validation"), default="test", help="whose prompts (%(default)s)")
    group.add_argument(
        "--common", action="store_true", help="leave out prompts that one of the two methods has not answered"
    )


def add_endpoint(parser: argparse.ArgumentParser, *, prefix: str = "") -> None:
    """How a judge behind an endpoint is asked; `prefix` stands before what a command says of its own model too."""
    group = parser.add_argument_group("a judge behind an endpoint (openai:MODEL); its key is read from OPENAI_API_KEY")
    group.add_argument("--base-url", metavar="URL", help="of any endpoint that speaks OpenAI's (OpenAI's own)")
    group.add_argument("--concurrency", type=options.whole(1), default=4, metavar="N", help="calls at a time (4)")
    group.add_argument(
        "--timeout",
        type=options.number(0, open_low=True),
        default=60.0,
        metavar="S",
        help="seconds of one call in all (60)",
    )
    group.add_argument(
        "--max-attempts", type=options.whole(1), default=5, metavar="N", help="calls for one verdict at most (5)"
    )
    group.add_argument(
        f"--{prefix}temperature",
        type=options.any_number,
        default=0.0,
        metavar="T",
        help="of the judge; below 0: not sent (0)",
    )
    group.add_argument(
        f"--{prefix}max-tokens",
        type=options.whole(0),
        default=256,
        metavar="N",
        help="of a reply; 0: not sent (256)",
    )


def run(args: argparse.Namespace) -> Exit:
    """Judge a comparison, export it, or both."""
    if args.judge is None and args.export is None:
        raise OptionError("Nothing to do: give --judge NAME, or --export alpaca_eval DIR.")
    if args.export is not None and args.export[0] not in _EXPORTS:
        from trimtab.errors import unknown_name

        raise unknown_name("format", args.export[0], _EXPORTS)
    from trimtab.evaluation.comparison.records import read_answers
    from trimtab.evaluation.comparison.run import RunFiles, read_run
    from trimtab.evaluation.judging.contenders import contenders_of

    directory = Path(args.run_directory)
    read_run(directory)
    rows = read_answers(RunFiles(directory).answers)
    given = dict(args.strengths)
    baseline, others = contenders_of(directory, rows, split=args.split, given=given, baseline=args.baseline)
    rows = [row for row in rows if row.key.split == args.split]
    result: dict[str, Any] = {}
    if args.export is not None:
        result["exported"] = _export(args, rows, [baseline, *others])
    if args.judge is not None:
        judgement = _judge(args, directory, rows, baseline, others)
        result.update(_result(directory, judgement))
        if not args.json:
            _print(judgement)
    if args.json:
        print_json(result)
    return Exit.DONE


def _export(args: argparse.Namespace, rows: Sequence[Row], contenders: Sequence[Contender]) -> list[str]:
    from trimtab.evaluation.judging.alpaca_export import export_alpaca_eval

    name = Path(args.run_directory).resolve().name
    paths = export_alpaca_eval(rows, contenders, Path(args.export[1]), dataset=name, overwrite=args.overwrite)
    options.say(f"wrote {', '.join(str(path) for path in paths)}")
    return [str(path) for path in paths]


def _judge(
    args: argparse.Namespace, directory: Path, rows: Sequence[Row], baseline: Contender, others: Sequence[Contender]
) -> Judgement:
    from trimtab.cli.progress import Progress
    from trimtab.evaluation.judging.run import check_any_verdict, cost_on_file, judge_pairs, pairs_against
    from trimtab.evaluation.judging.win_rates import Judgement, write_win_rates

    if not others:
        raise OptionError(f"The run has only {baseline.method}; there is nothing to compare it with.")
    # All sets are checked before anybody is asked.
    groups = [pairs_against(rows, other, baseline, common=args.common) for other in others]
    judge = load_judge(JudgeChoice.of(args))
    sizes = ", ".join(f"{other}: {len(pairs)}" for other, pairs in zip(others, groups, strict=True))
    options.say(f"{judge.name} compares with {baseline}: pairs of {sizes}")
    judged: list[list[Judged]] = []
    for other, pairs in zip(others, groups, strict=True):
        with Progress(str(other)) as bar:
            judged.append(judge_pairs(directory, pairs, judge, progress=bar.move))
    check_any_verdict(judge, judged)
    judgement = Judgement.of(judge, baseline, args.split, judged, cost_on_file(directory, judge))
    options.say(f"wrote {write_win_rates(directory, judgement)}")
    return judgement


@dataclass(frozen=True, slots=True)
class JudgeChoice:
    """What --judge, --lower-is-better and the flags of `add_endpoint` say."""

    name: str
    lower_is_better: bool
    base_url: str | None
    concurrency: int
    timeout_s: float
    max_attempts: int
    temperature: float | None
    max_tokens: int | None

    @classmethod
    def of(cls, args: argparse.Namespace, *, prefix: str = "") -> JudgeChoice:
        temperature, max_tokens = (getattr(args, f"{prefix}{name}") for name in ("temperature", "max_tokens"))
        return cls(
            args.judge,
            args.lower_is_better,
            args.base_url,
            args.concurrency,
            args.timeout,
            args.max_attempts,
            temperature if temperature >= 0 else None,
            max_tokens or None,
        )


def load_judge(choice: JudgeChoice) -> Judge:
    """The judge that is chosen, ready to be asked."""
    from trimtab.evaluation.judging.judges import COSTS, RewardJudge, split_judge

    kind, name = split_judge(choice.name)
    if kind == "openai":
        if choice.lower_is_better:
            raise OptionError(f"--lower-is-better is of a judge that gives numbers, and {choice.name} gives none.")
        from trimtab.evaluation.judging.chat_judge import ChatJudge, Endpoint

        return ChatJudge(
            Endpoint(
                model=name,
                base_url=choice.base_url,
                api_key=_api_key(choice.base_url),
                concurrency=choice.concurrency,
                timeout_s=choice.timeout_s,
                max_attempts=choice.max_attempts,
                temperature=choice.temperature,
                max_tokens=choice.max_tokens,
            )
        )
    if choice.base_url is not None:
        raise OptionError(f"--base-url is of a judge behind an endpoint, and {choice.name} is none. Leave it out.")
    from trimtab.storage.scorers import load_scorer

    scorer = load_scorer(name if kind == "scorer" or "/" in name else f"./{name}")
    return RewardJudge(choice.name, scorer, lower_is_better=choice.lower_is_better or name in COSTS)


def _api_key(base_url: str | None) -> str | None:
    key = environment.JUDGE_KEY.read() or None
    if key is None and base_url is None:
        raise OptionError(
            f"OpenAI's endpoint wants a key: set {environment.JUDGE_KEY.name} in the environment, or give --base-url."
        )
    return key


def _result(directory: Path, judgement: Judgement) -> Mapping[str, Any]:
    from trimtab.evaluation.judging.win_rates import as_json

    return {"run": str(directory), **as_json(judgement)}


def _print(judgement: Judgement) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    title = Text(f"against {judgement.baseline} ({judgement.split} prompts)")
    table = Table(title=title, title_justify="left")
    for heading in ("method", "win rate [95 %]", "length-controlled", "win / tie / loss", "missing", "order flips"):
        table.add_column(heading, justify="left" if heading == "method" else "right")
    for rate in judgement.methods:
        table.add_row(*map(Text, _cells(rate)))
    console = Console()
    # Where it is not a terminal that wraps, a row stays a line.
    (console if console.is_terminal else Console(width=120)).print(table)
    print(f"Judge: {judgement.judge}, {judgement.description}.")
    for rate in judgement.methods:
        for note in rate.notes:
            print(f"{rate.contender}: {note}.")
    for reason in judgement.reasons:
        print(f"No verdict: {reason}.")
    if judgement.caution:
        print(f"{judgement.caution}.")
    cost = judgement.cost
    if cost.num_calls:
        print(
            f"Cost: {cost.num_calls:,} calls ({cost.num_retries:,} of them retries), {cost.prompt_tokens:,} prompt and "
            f"{cost.completion_tokens:,} completion tokens."
        )


def _cells(rate: WinRate) -> list[str]:
    controlled = rate.length_controlled.win_rate if rate.length_controlled else None
    flips = rate.position.flipped if rate.position else None
    return [
        str(rate.contender),
        _percent(rate.win_rate),
        _percent(controlled),
        f"{rate.win} / {rate.tie} / {rate.loss}",
        str(rate.missing),
        f"{100 * flips.value:.0f} %" if flips else "–",
    ]


def _percent(interval: Interval | None) -> str:
    if interval is None:
        return "–"
    return f"{100 * interval.value:.1f} % [{100 * interval.low:.1f}, {100 * interval.high:.1f}]"


def _strength(text: str) -> tuple[str, Any]:
    name, equals, value = text.rpartition("=")
    try:
        numbers = [float(part) for part in value.split(",")]
    except ValueError:
        numbers = []
    if not (equals and name and numbers):
        raise argparse.ArgumentTypeError(f"{text!r} is not accepted; give {_STRENGTH_FORM}")
    return name, numbers[0] if len(numbers) == 1 else tuple(numbers)
