"""Where the time of a guided step goes, and what the machine could do at best.

    python benchmarks/profile_decode.py --model demo --guide builtin:sentiment --batch 1,16

For each batch size, medians over steps: the decoder stack with and without the adapter's rows, the output head, and all
the rest of a step (mixing, rule, sampling, text, bookkeeping). The limits are read off the machine in the same run: how
fast it reads memory (every weight must be read once a step) and how fast it multiplies matrices (every weight meets
every row).
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

from trimtab import Decoder, SamplingParams, load_guide, load_model
from trimtab.evaluation.throughput import benchmark_prompts, machine, versions
from trimtab.models.forward.row_cache import Layout, RowCache
from trimtab.models.hf import HFModel


class Clock:
    """Wraps a function and adds up its time."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.seconds = 0.0

    def __call__(self, *args: Any) -> Any:
        started = time.perf_counter()
        try:
            return self.function(*args)
        finally:
            self.seconds += time.perf_counter() - started


def step_parts(model: HFModel, guide: str | None, batch: int, num_steps: int) -> dict[str, float]:
    """Milliseconds a step: whole, stack, head, rest (medians)."""
    decoder = Decoder(model, {} if guide is None else {"g": load_guide(guide)}, max_rows=batch)
    for prompt in benchmark_prompts(model, batch, 32):
        decoder.add(prompt, SamplingParams(max_new_tokens=num_steps + 8, ignore_eos=True, seed=0))
    for _ in range(4):
        decoder.step()
    clocks = {"stack": Clock(model.forward), "head": Clock(model.head)}
    model.forward, model.head = clocks["stack"], clocks["head"]  # type: ignore[method-assign]
    samples: dict[str, list[float]] = {name: [] for name in ("whole", "stack", "head", "rest")}
    try:
        for _ in range(num_steps):
            for clock in clocks.values():
                clock.seconds = 0.0
            started = time.perf_counter()
            decoder.step()
            whole = time.perf_counter() - started
            samples["whole"].append(whole)
            for name, clock in clocks.items():
                samples[name].append(clock.seconds)
            samples["rest"].append(whole - sum(clock.seconds for clock in clocks.values()))
    finally:
        model.forward, model.head = (clock.function for clock in clocks.values())  # type: ignore[method-assign]
    return {name: 1e3 * statistics.median(values) for name, values in samples.items()}


def plain_stack(model: HFModel, num_rows: int, num_steps: int) -> float:
    """Milliseconds of one pass of the stack over `num_rows` rows of one token, no adapter among them (median)."""
    cache, times = RowCache(), []
    for step in range(num_steps + 4):
        layout = Layout.extend(list(range(num_rows)), [36 + step] * num_rows, 1, model.device)
        cache.begin(layout)
        started = time.perf_counter()
        model.forward(torch.full((num_rows, 1), 5, device=model.device), layout, cache, [])
        times.append(time.perf_counter() - started)
    return 1e3 * statistics.median(times[4:])


def limits(model: HFModel) -> dict[str, float]:
    """GB/s read from memory, GFLOP/s of a large matrix product, and the model's size in GB."""
    block = torch.ones(1 << 28)
    product = torch.ones(2048, 2048)
    reading = min(_seconds(block.sum) for _ in range(5))
    multiplying = min(_seconds(lambda: product @ product) for _ in range(5))
    weights = sum(weight.numel() * weight.element_size() for weight in model.module.parameters())
    return {
        "read_gb_per_s": block.numel() * 4 / reading / 1e9,
        "gflop_per_s": 2 * 2048**3 / multiplying / 1e9,
        "weights_gb": weights / 1e9,
    }


def _seconds(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--guide", default="builtin:sentiment")
    parser.add_argument("--batch", default="1,16")
    parser.add_argument("--num-steps", type=int, default=40)
    args = parser.parse_args()
    model = load_model(args.model)
    rows = []
    for batch in map(int, args.batch.split(",")):
        print(f"batch {batch}", file=sys.stderr)
        plain = {f"stack_{rows}_rows": plain_stack(model, rows, args.num_steps) for rows in (batch, 2 * batch)}
        rows.append(
            {
                "batch": batch,
                "unguided": step_parts(model, None, batch, args.num_steps),
                "guided": step_parts(model, args.guide, batch, args.num_steps),
                "stack_without_adapter": plain,
            }
        )
    report = {"rows": rows, "limits": limits(model), "machine": machine(model.device), "versions": versions()}
    print(json.dumps(report, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
