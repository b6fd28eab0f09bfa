"""`trimtab bench decode`: tokens a second and peak memory of guided decoding, beside transformers' own `generate`.

Every guide runs at the same weight, once for each of --weights; a row without a weight is the decoder without guides.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from trimtab.cli import engines, options

if TYPE_CHECKING:
    from trimtab.engines.maker import EngineMaker
    from trimtab.evaluation.throughput import Row
    from trimtab.models.hf import HFModel
    from trimtab.storage.model_source import ModelSource


def register(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add the command and its flags."""
    parser = subparsers.add_parser("bench", help="measure speed and memory", description="Measure speed and memory.")
    benches = parser.add_subparsers(dest="bench", metavar="WHAT", required=True)
    decode = benches.add_parser("decode", help="guided decoding against the unguided base", description=__doc__)
    options.add_model_options(decode)
    decode.add_argument(
        "--batch", type=options.list_of(options.whole(1)), default=[1, 16], metavar="N,N,...", help="batch sizes (1,16)"
    )
    decode.add_argument(
        "--weights",
        type=options.list_of(options.any_number),
        default=[0.0, 1.0],
        metavar="W,W,...",
        help="strengths of the guides, or thresholds of an agent such as 0,0.5 (0,1)",
    )
    decode.add_argument("--num-new-tokens", type=options.whole(1), default=128, metavar="N", help="(%(default)s)")
    decode.add_argument("--num-prompt-tokens", type=options.whole(1), default=32, metavar="N", help="(%(default)s)")
    decode.add_argument(
        "--num-repeats", type=options.whole(1), default=3, metavar="N", help="medians over N (%(default)s)"
    )
    decode.add_argument(
        "--temperature", type=options.number(0), default=0.0, metavar="T", help="of both sides (%(default)g: greedy)"
    )
    decode.add_argument("--json", action="store_true", help="JSON on standard output")
    engines.add_engine_options(decode)


def run(args: argparse.Namespace) -> int:
    """Load, measure, show."""
    choice = engines.engine_choice(args)
    guides = engines.GuideFlags.of(args).sources()
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
            "machine": throughput.machine(model.device),
            "versions": throughput.versions(),
            "commit": throughput.commit(),
        }
        print(json.dumps(report))
    else:
        _print_table(rows)
    return 0


def _in_transformers(maker: EngineMaker, source: ModelSource) -> HFModel:
    """The base as transformers runs it: the engine's own where that is one of this process."""
    from trimtab.engines.maker import IN_PROCESS
    from trimtab.models.hf import HFModel

    if maker.runs([IN_PROCESS]) and isinstance(maker.model, HFModel):
        return maker.model
    return source.load_in_transformers()


def _print_table(rows: Sequence[Row]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for heading in ("batch", "weight", "tokens/s", "base tokens/s", "ratio to base", "peak memory, MiB"):
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(
            str(row.batch),
            "no guides" if row.weight is None else f"{row.weight:g}",
            f"{row.tokens_per_s:.1f}",
            f"{row.base_tokens_per_s:.1f}",
            f"{row.ratio_to_base:.3f}",
            f"{row.peak_memory_mb:.0f}",
        )
    Console().print(table)
