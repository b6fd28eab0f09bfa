"""What guides cost inside vLLM: guided against unguided engines in one process, turn by turn.

    python benchmarks/vllm.py                                      # the demo model and the guide that ships
    python benchmarks/vllm.py --num-new-tokens 64 --num-repeats 5 --json figures.json

    python -m tests.engines.vllm.rig v2 python benchmarks/vllm.py --speculation       # Model Runner V2 on a processor

Needs vLLM. Engines: the base alone (`vllm serve` on its directory); the guide as an adapter on rows of the base's pass
(`shared`); the adapted model as a second one of equal size (`merged`); the built-in engine. Each turn runs all of them
on the same prompts, in an order that turns, at 1 and at 16 requests. Ratios are medians over turns of ratios in one
turn, with the range.

`--speculation` asks instead what n-grams and a draft model gain guided decoding on texts that are to be repeated word
for word, one engine a process. The draft model is the base itself, unguided, so a draft costs as much as a base's step:
it shows that answers stay, not what a small draft would gain.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from trimtab.decoding.decoder import Decoder
from trimtab.engines.vllm.admission import as_extra_args
from trimtab.engines.vllm.packing import pack
from trimtab.engines.vllm.versions import installed
from trimtab.evaluation import throughput
from trimtab.evaluation.prompt_sets import demo_prompts
from trimtab.storage.directories import resolve_model
from trimtab.storage.loading import load_guide, load_model

GUIDE = "positive"
CONCURRENCIES = (1, 16)
SENTENCES = (
    "The red kettle stands beside the blue cup, and the blue cup stands beside the green plate.",
    "Monday, Tuesday, Wednesday, Thursday, Friday, Saturday, Sunday, and then Monday again.",
)
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


def _prepare() -> None:
    """Let `vllm` be vLLM and not a file beside this one, and keep its engine in this process."""
    sys.path = [path for path in sys.path if Path(path).resolve() != Path(__file__).resolve().parent]
    for name, value in (
        ("ENABLE_V1_MULTIPROCESSING", "0"),
        ("CPU_OMP_THREADS_BIND", "nobind"),
        ("CPU_KVCACHE_SPACE", "1"),
    ):
        os.environ.setdefault(f"VLLM_{name}", value)


def main() -> int:
    args = _arguments()
    _prepare()
    report = _speculation(args) if args.speculation else _costs(args)
    print(throughput.write_report({"vllm": installed(), **report}, args.json))
    return 0


def _costs(args: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as scratch:
        runs = _runs(args, Path(scratch))
        tokenizer = load_model(args.model).tokenizer
        assert tokenizer is not None
        prompts = [tokenizer.encode_chat(messages) for messages in demo_prompts()[: max(CONCURRENCIES)]]
        speeds = {number: _turns(runs, prompts[:number], args.num_repeats) for number in CONCURRENCIES}
    return {
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


def _speculation(args: argparse.Namespace) -> dict[str, Any]:
    drafts: dict[str, dict[str, Any] | None] = {
        "none": None,
        "ngram": {
            "method": "ngram",
            "num_speculative_tokens": args.num_drafts,
            "prompt_lookup_max": 4,
            "prompt_lookup_min": 2,
        },
        "draft_model": {"model": str(resolve_model(args.model)), "num_speculative_tokens": args.num_drafts},
    }
    with tempfile.TemporaryDirectory() as scratch:
        served = Path(scratch) / "served"
        pack(args.model, {GUIDE: args.guide}, served)
        prompts = _repetitive(args.model)
        turns = [
            {name: _apart(args, served, prompts, draft) for name, draft in drafts.items()}
            for _ in range(args.num_repeats)
        ]
    return {
        "num_new_tokens": args.num_new_tokens,
        "num_drafts": args.num_drafts,
        "methods": {name: _summary(turns, name) for name in drafts},
    }


def _repetitive(model: str) -> list[list[int]]:
    tokenizer = load_model(model).tokenizer
    assert tokenizer is not None
    texts = [f"Repeat this text five times, word for word: {sentence}" for sentence in SENTENCES]
    return [tokenizer.encode_chat([{"role": "user", "content": text}]) for text in texts]


def _summary(turns: list[dict[str, dict[str, Any]]], name: str) -> dict[str, Any]:
    gains = sorted(turn[name]["tokens_per_second"] / turn["none"]["tokens_per_second"] for turn in turns)
    return {
        "over none": {"median": round(statistics.median(gains), 3), "range": [round(gains[0], 3), round(gains[-1], 3)]},
        "tokens per step": turns[0][name]["tokens_per_step"],
        "same answers": all(turn[name]["token_ids"] == turn["none"]["token_ids"] for turn in turns),
    }


def _apart(
    args: argparse.Namespace, served: Path, prompts: list[list[int]], draft: dict[str, Any] | None
) -> dict[str, Any]:
    """One engine, in a process of its own."""
    with tempfile.TemporaryDirectory() as scratch:
        answer = Path(scratch) / "answer.json"
        process = multiprocessing.get_context("spawn").Process(
            target=_run_apart, args=(args.num_new_tokens, str(served), prompts, draft, str(answer))
        )
        process.start()
        process.join()
        found: dict[str, Any] = json.loads(answer.read_text(encoding="utf-8"))
    return found


def _run_apart(
    num_new_tokens: int, served: str, prompts: list[list[int]], draft: dict[str, Any] | None, answer: str
) -> None:
    _prepare()
    from vllm import LLM, SamplingParams

    llm = LLM(
        served,
        dtype="float32",
        enforce_eager=True,
        max_model_len=1024,
        max_num_seqs=4,
        enable_prefix_caching=False,
        speculative_config=draft,
    )
    params = SamplingParams(
        temperature=0,
        max_tokens=num_new_tokens,
        ignore_eos=True,
        detokenize=False,
        extra_args=as_extra_args({GUIDE: 1.0}),
    )
    inputs = [{"prompt_token_ids": ids} for ids in prompts]
    llm.generate(inputs, params, use_tqdm=False)  # warms up
    steps, step = [0], llm.llm_engine.step
    llm.llm_engine.step = lambda: (steps.__setitem__(0, steps[0] + 1), step())[1]
    start = time.perf_counter()
    token_ids = [list(output.outputs[0].token_ids) for output in llm.generate(inputs, params, use_tqdm=False)]
    seconds = time.perf_counter() - start
    found = {
        "tokens_per_second": sum(map(len, token_ids)) / seconds,
        "tokens_per_step": round(num_new_tokens / steps[0], 2),
        "token_ids": token_ids,
    }
    Path(answer).write_text(json.dumps(found), encoding="utf-8")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo", help="the base (demo)")
    parser.add_argument("--guide", default="builtin:sentiment", help="a LoRA guide of it (builtin:sentiment)")
    parser.add_argument("--num-new-tokens", type=int, default=48, help="tokens an answer (48)")
    parser.add_argument("--num-repeats", type=int, default=5, help="turns that count (5)")
    parser.add_argument("--dtype", default="float32", help="vLLM's (float32)")
    parser.add_argument("--eager", action="store_true", help="without torch.compile and graphs")
    parser.add_argument("--speculation", action="store_true", help="n-grams and a draft model instead")
    parser.add_argument("--num-drafts", type=int, default=4, help="with --speculation: tokens drafted at a time (4)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there as well")
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
