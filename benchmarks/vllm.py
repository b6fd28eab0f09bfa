"""What guides cost inside vLLM: guided against unguided engines in one process, turn by turn.

    python benchmarks/vllm.py                                      # the demo model and the guide that ships
    python benchmarks/vllm.py --num-new-tokens 64 --num-repeats 5 --json figures.json

Needs vLLM. Engines: the base alone (`vllm serve` on its directory); the guide as an adapter on rows of the base's pass
(`shared`); the adapted model as a second one of equal size (`merged`); the built-in engine. Each turn runs all of them
on the same prompts, in an order that turns, at 1 and at 16 requests. Ratios are medians over turns of ratios in one
turn, with the range.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path = [path for path in sys.path if Path(path).resolve() != Path(__file__).resolve().parent]  # `vllm` is not this
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")

from trimtab.decoding import Decoder
from trimtab.directories import resolve_model
from trimtab.engines.vllm.admission import as_extra_args
from trimtab.engines.vllm.packing import pack
from trimtab.engines.vllm.versions import installed
from trimtab.evaluation import throughput
from trimtab.evaluation.prompts import demo_prompts
from trimtab.loading import load_guide, load_model

GUIDE = "positive"
CONCURRENCIES = (1, 16)
Run = Callable[[Sequence[list[int]], Sequence[float]], int]
"""Prompts and their weights, all at once -> how many tokens came."""
RATIOS: dict[str, tuple[str, str, dict[int, float]]] = {
    "second model of equal size": ("merged", "base", {1: 0.45, 16: 0.45}),
    "LoRA guide on the base's rows": ("shared", "base", {1: 0.75, 16: 0.5}),
    "mixing (weight 1 over weight 0)": ("shared", "shared, weight 0", {1: 0.95, 16: 0.95}),
    "half of the batch at weight 0, over none": ("shared, half at weight 0", "shared", {16: 1.0}),
    "over the built-in engine": ("shared", "built-in", {}),
    "built-in, guided over unguided": ("built-in", "built-in, unguided", {}),
}
"""Name -> what, over what, and the aims at each concurrency."""


def main() -> int:
    args = _arguments()
    with tempfile.TemporaryDirectory() as scratch:
        runs = _runs(args, Path(scratch))
        tokenizer = load_model(args.model).tokenizer
        assert tokenizer is not None
        prompts = [tokenizer.encode_chat(messages) for messages in demo_prompts()[: max(CONCURRENCIES)]]
        speeds = {number: _turns(runs, prompts[:number], args.num_repeats) for number in CONCURRENCIES}
    report = {
        "vllm": installed(),
        "num_new_tokens": args.num_new_tokens,
        "num_repeats": args.num_repeats,
        "tokens_per_second": {
            number: {name: round(statistics.median(found), 2) for name, found in table.items()}
            for number, table in speeds.items()
        },
        "ratios": {
            name: {number: _ratio(speeds[number][what], speeds[number][over], aims.get(number)) for number in speeds}
            for name, (what, over, aims) in RATIOS.items()
        },
    }
    print(throughput.write_report(report, args.json))
    return 0


def _turns(runs: dict[str, Run], prompts: Sequence[list[int]], num_repeats: int) -> dict[str, list[float]]:
    """Tokens a second of each run, turn by turn."""
    plans = {
        "base": ("base", 0.0),
        "merged": ("merged", 1.0),
        "shared": ("shared", 1.0),
        "shared, weight 0": ("shared", 0.0),
        "shared, half at weight 0": ("shared", None),
        "built-in": ("built-in", 1.0),
        "built-in, unguided": ("built-in", 0.0),
    }
    found: dict[str, list[float]] = {name: [] for name in plans}
    names = list(plans)
    for turn in range(num_repeats + 1):
        for name in [*names[turn % len(names) :], *names[: turn % len(names)]]:
            engine, weight = plans[name]
            weights = [float(index % 2) if weight is None else weight for index in range(len(prompts))]
            start = time.perf_counter()
            num_tokens = runs[engine](prompts, weights)
            if turn:  # the first warms up
                found[name].append(num_tokens / (time.perf_counter() - start))
    return found


def _ratio(what: Sequence[float], over: Sequence[float], aim: float | None) -> dict[str, Any]:
    each = sorted(one / other for one, other in zip(what, over, strict=True))
    return {"median": round(statistics.median(each), 3), "range": [round(each[0], 3), round(each[-1], 3)], "aim": aim}


def _runs(args: argparse.Namespace, scratch: Path) -> dict[str, Run]:
    base = resolve_model(args.model)
    for lora in ("shared", "merged"):
        pack(args.model, {GUIDE: args.guide}, scratch / lora, lora=lora)
    model = load_model(args.model)
    decoder = Decoder(model, {GUIDE: load_guide(args.guide, model=model)}, max_rows=max(CONCURRENCIES))
    return {
        "base": _vllm(args, str(base), guided=False),
        "merged": _vllm(args, str(scratch / "merged"), guided=True),
        "shared": _vllm(args, str(scratch / "shared"), guided=True),
        "built-in": _built_in(args, decoder),
    }


def _vllm(args: argparse.Namespace, directory: str, *, guided: bool) -> Run:
    from vllm import LLM, SamplingParams

    options = {"dtype": args.dtype, "enforce_eager": args.eager, "max_model_len": 1024}
    llm = LLM(directory, max_num_seqs=max(CONCURRENCIES), enable_prefix_caching=False, **options)

    def run(prompts: Sequence[list[int]], weights: Sequence[float]) -> int:
        params = [
            SamplingParams(
                temperature=0,
                max_tokens=args.num_new_tokens,
                ignore_eos=True,
                detokenize=False,
                extra_args=as_extra_args({GUIDE: weight}) if guided else None,
            )
            for weight in weights
        ]
        outputs = llm.generate([{"prompt_token_ids": ids} for ids in prompts], params, use_tqdm=False)
        return sum(len(output.outputs[0].token_ids) for output in outputs)

    return run


def _built_in(args: argparse.Namespace, decoder: Decoder) -> Run:
    def run(prompts: Sequence[list[int]], weights: Sequence[float]) -> int:
        answers = decoder.generate(
            prompts,
            weights=[{GUIDE: weight} for weight in weights],
            temperature=0,
            max_new_tokens=args.num_new_tokens,
            ignore_eos=True,
        )
        return sum(len(answer.token_ids) for answer in answers)

    return run


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo", help="the base (demo)")
    parser.add_argument("--guide", default="builtin:sentiment", help="a LoRA guide of it (builtin:sentiment)")
    parser.add_argument("--num-new-tokens", type=int, default=48, help="tokens an answer (48)")
    parser.add_argument("--num-repeats", type=int, default=5, help="turns that count (5)")
    parser.add_argument("--dtype", default="float32", help="vLLM's (float32)")
    parser.add_argument("--eager", action="store_true", help="without torch.compile and graphs")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there as well")
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
