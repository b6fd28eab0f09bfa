"""`trimtab bench`: what decoding costs (`decode`), and what a forward pass costs (`pass`)."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trimtab.cli import engines, options
from trimtab.cli.exits import Exit
from trimtab.cli.results import print_json
from trimtab.errors import OptionError
from trimtab.params import NO_DRAFT

if TYPE_CHECKING:
    from trimtab.engines.maker import EngineMaker
    from trimtab.evaluation.passes import PassTime
    from trimtab.evaluation.throughput import Row
    from trimtab.models.hf import HFModel
    from trimtab.storage.model_source import ModelSource


_DECODE = """Tokens a second and peak memory of guided decoding, beside transformers' own `generate`.

Every guide runs at the same weight, once for each of --weights; a row without a weight is the decoder without guides.
With --draft each row comes twice, without and with drafts. The prompts are made-up ids of one length: how often a draft
is right on them says nothing of real texts."""
_PASS = """Milliseconds of a forward pass by the number of rows and of new tokens in each: what drafts, an agent's looks
and prompts in pieces cost on this machine. The output head is left out. Figures are medians of turns."""


def register(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add the commands and their flags."""
    parser = subparsers.add_parser("bench", help="measure speed and memory", description="Measure speed and memory.")
    benches = parser.add_subparsers(dest="bench", metavar="WHAT", required=True)
    _register_decode(benches.add_parser("decode", help="guided decoding beside the unguided base", description=_DECODE))
    _register_pass(benches.add_parser("pass", help="a forward pass by rows and tokens", description=_PASS))


def _register_decode(parser: argparse.ArgumentParser) -> None:
    options.add_model_options(parser)
    _add_list(parser, "--batch", options.whole(1), [1, 16], "batch sizes")
    _add_list(
        parser,
        "--weights",
        options.any_number,
        [0.0, 1.0],
        "strengths of the guides, or thresholds of an agent such as 0,0.5",
    )
    _add_counts(parser, num_new_tokens=128, num_prompt_tokens=32, num_repeats=3)
    parser.add_argument(
        "--temperature", type=options.number(0), default=0.0, metavar="T", help="of both sides (%(default)g: greedy)"
    )
    parser.add_argument(
        "--draft", default=NO_DRAFT, metavar="WHAT", help="drafts to measure too, as in trimtab generate (%(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="JSON on standard output")
    engines.add_engine_options(parser)
    parser.set_defaults(measure=_decode)


def _register_pass(parser: argparse.ArgumentParser) -> None:
    options.add_base_options(parser)
    _add_list(parser, "--rows", options.whole(1), [1, 4, 16], "numbers of rows")
    _add_list(parser, "--tokens", options.whole(1), [1, 2, 3, 4, 8, 16, 48], "numbers of new tokens in each row")
    _add_counts(parser, num_prompt_tokens=32, num_repeats=7)
    parser.add_argument("--plot", metavar="FILE", help="draw the curves to this .png or .svg file (pip: report)")
    parser.add_argument("--json", action="store_true", help="JSON on standard output")
    parser.set_defaults(measure=_pass)


def _add_list(
    parser: argparse.ArgumentParser, flag: str, item: Callable[[str], float], default: Sequence[float], what: str
) -> None:
    shown = ",".join(f"{number:g}" for number in default)
    parser.add_argument(flag, type=options.list_of(item), default=default, metavar="N,N,...", help=f"{what} ({shown})")


def _add_counts(parser: argparse.ArgumentParser, **defaults: int) -> None:
    words = {"num_new_tokens": "new tokens", "num_prompt_tokens": "tokens of a prompt", "num_repeats": "medians over N"}
    for name, default in defaults.items():
        flag = "--" + name.replace("_", "-")
        parser.add_argument(
            flag, type=options.whole(1), default=default, metavar="N", help=f"{words[name]} (%(default)s)"
        )


def run(args: argparse.Namespace) -> Exit:
    """Load, measure, show."""
    measure: Callable[[argparse.Namespace], Exit] = args.measure
    return measure(args)


def _decode(args: argparse.Namespace) -> Exit:
    choice = engines.engine_choice(args)
    guides = engines.GuideFlags.of(args).sources()
    models = engines.draft_models([args.draft], guides)
    engines.check_copies(args.draft_quantize, [args.draft], guides)
    source = options.model_source(args)
    options.say(f"loading {source.name}")
    from trimtab.evaluation import throughput

    workload = throughput.Workload(args.num_new_tokens, args.num_prompt_tokens, args.temperature, args.num_repeats)
    maker = choice.open(source)
    model = _in_transformers(maker, source)
    try:
        rows = throughput.measure(
            model,
            guides,
            batches=args.batch,
            weights=args.weights,
            workload=workload,
            drafts=throughput.Drafts(args.draft, next(iter(models), None), args.draft_quantize),
            engines=maker,
            progress=options.say,
        )
    finally:
        maker.close()
    if args.json:
        report = {
            "rows": [dataclasses.asdict(row) for row in rows],
            "workload": dataclasses.asdict(workload),
            **({} if choice.is_builtin else {"engine": choice.name}),
            **_where(model),
        }
        print_json(report)
    else:
        _print_table(rows)
    return Exit.DONE


def _pass(args: argparse.Namespace) -> Exit:
    plot = None if args.plot is None else Path(args.plot)
    if plot is not None and plot.suffix not in (".png", ".svg"):
        raise OptionError(f"--plot {args.plot} is neither a .png nor an .svg file; give a name that ends so.")
    if args.backend == "llama" or args.llama_options:
        raise OptionError("bench pass measures the passes of transformers; leave --backend llama and --llama out.")
    source = options.model_source(args)
    options.say(f"loading {source.name}")
    model = source.load_in_transformers()
    from trimtab.evaluation import passes

    found = passes.measure(
        model,
        rows=args.rows,
        tokens=args.tokens,
        num_prompt_tokens=args.num_prompt_tokens,
        num_repeats=args.num_repeats,
        progress=options.say,
    )
    if plot is not None:
        passes.draw(found, plot)
        options.say(f"drew {plot}")
    if args.json:
        print_json({"passes": [dataclasses.asdict(one) for one in found], **_where(model)})
    else:
        _print_passes(found)
    return Exit.DONE


def _where(model: HFModel) -> dict[str, object]:
    """What figures were measured on."""
    from trimtab.evaluation import throughput

    return {
        "machine": throughput.machine(model.device),
        "versions": throughput.versions(),
        "commit": throughput.commit(),
    }


def _in_transformers(maker: EngineMaker, source: ModelSource) -> HFModel:
    """The base as transformers runs it: the engine's own where that is one of this process."""
    from trimtab.engines.maker import IN_PROCESS
    from trimtab.models.hf import HFModel

    if maker.runs([IN_PROCESS]) and isinstance(maker.model, HFModel):
        return maker.model
    return source.load_in_transformers()


def _print_table(rows: Sequence[Row]) -> None:
    headings = ("batch", "weight", "draft", "dtype", "tokens/s", "base tokens/s", "ratio", "peak MiB")
    _print(
        headings,
        [
            (
                str(row.batch),
                "no guides" if row.weight is None else f"{row.weight:g}",
                row.draft,
                row.dtype if row.quantize is None else row.quantize,
                f"{row.tokens_per_s:.1f}",
                f"{row.base_tokens_per_s:.1f}",
                f"{row.ratio_to_base:.3f}",
                f"{row.peak_memory_mb:.0f}",
            )
            for row in rows
        ],
    )


def _print_passes(found: Sequence[PassTime]) -> None:
    longest = max(one.milliseconds for one in found)
    _print(
        ("rows", "tokens", "ms", "range", "times one token", ""),
        [
            (
                str(one.rows),
                str(one.tokens),
                f"{one.milliseconds:.1f}",
                f"{one.low:.1f} to {one.high:.1f}",
                f"{one.ratio:.2f}",
                "█" * max(1, round(20 * one.milliseconds / longest)),
            )
            for one in found
        ],
        left=1,
    )


def _print(headings: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 0) -> None:
    """A table whose columns, but for the last `left`, are numbers."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for index, heading in enumerate(headings):
        table.add_column(heading, justify="left" if index >= len(headings) - left else "right")
    for row in rows:
        table.add_row(*row)
    Console().print(table)
