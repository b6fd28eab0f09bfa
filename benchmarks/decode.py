"""The table of speed and memory: guided decoding as ratios to transformers' own `generate` of the unguided base.

    python benchmarks/decode.py                    # SmolLM2-135M with a LoRA guide and with a separate model
    python benchmarks/decode.py --device cuda --dtype bfloat16 --json table.json

Speeds are measured in one process, in turns (see trimtab.evaluation.throughput). Peak memory is that of a whole process
from its start: the base with transformers' `generate`, the base in our decoder, and the base with the LoRA guide each
run in fresh ones, three times. Prints a Markdown table and what became of each aim; --json writes the figures.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from trimtab.decoding.decoder import Decoder
from trimtab.evaluation import throughput
from trimtab.evaluation.throughput import Row, Workload
from trimtab.storage.loading import load_guide, load_model

BATCHES = (1, 16)
MEMORY_OF = ("base", "decoder", "guided")


def main() -> int:
    args = _arguments()
    if args.memory_of is not None:
        print(_peak_of_this_process(args))
        return 0
    memory = {what: _peaks_of_fresh_processes(args, what) for what in MEMORY_OF}
    rows, device = _speeds(args)
    aims = _aims(rows, memory)
    report = {
        "rows": [{"guide": guide, **dataclasses.asdict(row)} for guide, row in rows],
        "peak_memory_mb": memory,
        "aims": aims,
        "workload": dataclasses.asdict(_workload(args)),
        "dtype": args.dtype,
        "machine": throughput.machine(device),
        "versions": throughput.versions(),
        "commit": throughput.commit(),
    }
    print(_markdown(report))
    if args.json is not None:
        args.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo", help="as in trimtab generate (%(default)s)")
    parser.add_argument("--lora", default="builtin:sentiment", help="a guide that is a LoRA of the model (%(default)s)")
    parser.add_argument("--separate", default="demo", help="a guide that is a model of its own (%(default)s)")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--device", default=None)
    parser.add_argument("--num-new-tokens", type=int, default=128)
    parser.add_argument("--num-prompt-tokens", type=int, default=32)
    parser.add_argument("--num-repeats", type=int, default=5)
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--memory-of", choices=MEMORY_OF, help=argparse.SUPPRESS)
    return parser.parse_args()


def _workload(args: argparse.Namespace) -> Workload:
    return Workload(args.num_new_tokens, args.num_prompt_tokens, 0.0, args.num_repeats)


def _load(args: argparse.Namespace, guide: str | None) -> tuple[Any, dict[str, Any]]:
    model = load_model(args.model, dtype=args.dtype, device=args.device)
    guides = {} if guide is None else {"guide": load_guide(guide, dtype=args.dtype, device=args.device)}
    return model, guides


def _speeds(args: argparse.Namespace) -> tuple[list[tuple[str, Row]], torch.device]:
    rows: list[tuple[str, Row]] = []
    for kind, name, weights in (("LoRA of the base", args.lora, (0.0, 1.0)), ("separate model", args.separate, (1.0,))):
        model, guides = _load(args, name)
        print(f"measuring: {kind}", file=sys.stderr, flush=True)
        found = throughput.measure(
            model, guides, batches=BATCHES, weights=weights, workload=_workload(args), progress=_progress
        )
        rows += [("none" if row.weight is None else kind, row) for row in found]
    return rows, model.device


def _progress(message: str) -> None:
    print(f"  {message}", file=sys.stderr, flush=True)


def _peaks_of_fresh_processes(args: argparse.Namespace, what: str) -> list[float]:
    print(f"measuring: peak memory, {what}", file=sys.stderr, flush=True)
    command = [sys.executable, __file__, "--memory-of", what, "--model", args.model, "--lora", args.lora]
    command += ["--dtype", args.dtype, "--num-new-tokens", str(args.num_new_tokens)]
    command += ["--num-prompt-tokens", str(args.num_prompt_tokens)]
    command += [] if args.device is None else ["--device", args.device]
    runs = [subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True) for _ in range(3)]
    return [float(run.stdout) for run in runs]


def _peak_of_this_process(args: argparse.Namespace) -> float:
    model, guides = _load(args, args.lora if args.memory_of == "guided" else None)
    prompts = throughput.benchmark_prompts(model, 1, args.num_prompt_tokens)
    if args.memory_of == "base":
        arm = throughput.base_arm(model, prompts, 0.0)
    else:
        arm = throughput.engine_arm(Decoder(model, guides), 1.0 if guides else None, prompts, 0.0)
    arm(args.num_new_tokens)
    return throughput.peak_memory_mb(model.device)


def _aims(rows: list[tuple[str, Row]], memory: dict[str, list[float]]) -> list[dict[str, Any]]:
    """Each aim: what is measured, the figure, the bound, whether it is met."""
    lora = {(row.batch, row.weight): row for guide, row in rows if guide == "LoRA of the base"}
    separate = {row.batch: row for guide, row in rows if guide == "separate model"}
    alone = {row.batch: row for guide, row in reversed(rows) if guide == "none"}
    peaks = {what: statistics.median(values) for what, values in memory.items()}
    aims: list[tuple[str, float, str, float]] = [
        ("LoRA guide, batch 1: tokens/s to the base's", lora[1, 1.0].ratio_to_base, "at least", 0.8),
        ("separate model, batch 1: tokens/s to the base's", separate[1].ratio_to_base, "at least", 0.5),
        (
            "LoRA guide: tokens/s at batch 16 to batch 1",
            lora[16, 1.0].tokens_per_s / lora[1, 1.0].tokens_per_s,
            "at least",
            5.0,
        ),
        ("LoRA guide: peak memory to the base alone", peaks["guided"] / peaks["base"], "at most", 1.15),
        *(
            (
                f"weight 0, batch {batch}: time to that of no guide",
                alone[batch].tokens_per_s / lora[batch, 0.0].tokens_per_s,
                "at most",
                1.05,
            )
            for batch in BATCHES
        ),
    ]
    return [
        {
            "what": what,
            "figure": figure,
            "bound": f"{kind} {bound:g}",
            "met": figure >= bound if kind == "at least" else figure <= bound,
        }
        for what, figure, kind, bound in aims
    ]


def _markdown(report: dict[str, Any]) -> str:
    machine = report["machine"]
    lines = [
        f"{machine['processor']}, {machine['num_threads']} threads, {machine['device']}, dtype {report['dtype']}; "
        f"{report['workload']['num_new_tokens']} new tokens, medians of {report['workload']['num_repeats']}; "
        f"torch {report['versions']['torch']}, transformers {report['versions']['transformers']}; "
        f"commit {report['commit']}",
        "",
        "| guide | batch | weight | tokens/s (range) | base tokens/s | ratio to base |",
        "|---|---|---|---|---|---|",
        *(_line(row) for row in report["rows"]),
        "",
        "| a whole process, batch 1 | peak memory, MiB |",
        "|---|---|",
        *(f"| {what} | {statistics.median(values):.0f} |" for what, values in report["peak_memory_mb"].items()),
        "",
        "| aim | figure | bound | met |",
        "|---|---|---|---|",
        *(
            f"| {aim['what']} | {aim['figure']:.3f} | {aim['bound']} | {'yes' if aim['met'] else 'no'} |"
            for aim in report["aims"]
        ),
    ]
    return "\n".join(lines)


def _line(row: dict[str, Any]) -> str:
    weight = "" if row["weight"] is None else f"{row['weight']:g}"
    speed = f"{row['tokens_per_s']:.1f} ({row['tokens_per_s_low']:.1f} to {row['tokens_per_s_high']:.1f})"
    return (
        f"| {row['guide']} | {row['batch']} | {weight} | {speed} | {row['base_tokens_per_s']:.1f} "
        f"| {row['ratio_to_base']:.3f} |"
    )


if __name__ == "__main__":
    sys.exit(main())
