"""GGUF files run by llama.cpp behind our loop, beside llama.cpp's own greedy loop over its C interface.

    python benchmarks/llama.py --model demo --guide builtin:sentiment --rows 1,16
    python benchmarks/llama.py --model large.gguf --guide small.gguf --rows 1

Arms take turns in one process on the same prompts; a figure is the median over turns of an arm's tokens a second over
another's of the same turn, with the smallest and the largest. *raw* is a batch of greedy rows with no sampler and no
loop of ours; *ours* the unguided `Decoder`; *guided* the same with the guide at weight 1; *repeat* and *repeat guided*
copy text that stands in the prompt, with look-up drafts. With `--transformers` the dequantised float32 model too.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence

import torch

from trimtab.core import Guide, LanguageModel
from trimtab.decoding.decoder import Decoder
from trimtab.evaluation.prompt_sets import demo_prompts
from trimtab.models.llama.context import Fed, LlamaContext
from trimtab.models.llama.model import LlamaModel
from trimtab.models.processor import cpu_info
from trimtab.prompts import encode_prompt
from trimtab.storage.gguf_files import load_llama
from trimtab.storage.loading import load_guide, load_model

LIST = (
    "Paris is the capital of France, and the Seine runs through it. Rome is the capital of Italy, and the Tiber runs "
    "through it. Vienna is the capital of Austria, and the Danube runs through it."
)
REPEATED = f"Copy this text, word for word, three times:\n{LIST}\n{LIST}\n{LIST}"


def main() -> int:
    args = _arguments()
    model = load_llama(args.model)
    guides = {} if args.guide is None else {"g": load_guide(args.guide, beside=model, weight=1.0)}
    found = {}
    for rows in args.rows:
        arms = _arms(model, guides, rows, args)
        turns = [{name: arm() for name, arm in arms.items()} for _ in range(args.turns + 1)][1:]
        found[rows] = {**{f"{name}, tokens/s": _summary([turn[name] for turn in turns]) for name in arms}}
        for one, other in (("ours", "raw"), ("guided", "ours"), ("repeat guided", "repeat plain"), ("ours", "float32")):
            if one in arms and other in arms:
                found[rows][f"{one} over {other}"] = _summary([turn[one] / turn[other] for turn in turns])
    machine = {"processor": cpu_info("model name"), "threads": torch.get_num_threads()}
    print(json.dumps({"model": args.model, "guide": args.guide, "rows": found, **machine}, indent=2))
    return 0


def _arms(
    model: LlamaModel, guides: dict[str, Guide], rows: int, args: argparse.Namespace
) -> dict[str, Callable[[], float]]:
    prompts = [encode_prompt(model, prompt) for prompt in demo_prompts()][:rows]
    repeated = [encode_prompt(model, [{"role": "user", "content": REPEATED}])] * rows
    num = args.num_new_tokens
    arms: dict[str, Callable[[], float]] = {
        "raw": lambda: _raw(model, prompts, num),
        "ours": lambda: _ours(model, {}, prompts, num),
    }
    if guides:
        arms["guided"] = lambda: _ours(model, guides, prompts, num)
        if rows == 1:
            arms["repeat plain"] = lambda: _ours(model, {}, repeated, num)
            arms["repeat guided"] = lambda: _ours(model, guides, repeated, num, draft="lookup")
    if args.transformers:
        other = load_model(args.model)
        arms["float32"] = lambda: _ours(other, {}, prompts, num)
    return arms


def _raw(model: LlamaModel, prompts: Sequence[Sequence[int]], num: int) -> float:
    """Greedy rows on a context of their own; prompts are not counted."""
    context = LlamaContext(model.file, None, 4096, max(32, len(prompts)))
    tokens = []
    for row, prompt in enumerate(prompts):
        last = len(prompt) - 1
        logits, _ = context.decode([Fed(token, at, row, at == last) for at, token in enumerate(prompt)])
        tokens.append(int(logits[0].argmax()))
    started = time.perf_counter()
    for step in range(num - 1):
        fed = [Fed(token, len(prompts[row]) + step, row, True) for row, token in enumerate(tokens)]
        tokens = context.decode(fed)[0].argmax(1).tolist()
    return len(prompts) * (num - 1) / (time.perf_counter() - started)


def _ours(
    model: LanguageModel, guides: dict[str, Guide], prompts: Sequence[Sequence[int]], num: int, *, draft: str = "none"
) -> float:
    """Greedy rows in our loop; its first step, in which prompts are read, is not counted."""
    from trimtab.params import SamplingParams

    decoder = Decoder(model, guides, max_rows=len(prompts))
    params = SamplingParams(max_new_tokens=num, temperature=0, ignore_eos=True, draft=draft)
    for prompt in prompts:
        decoder.add(list(prompt), params)
    first = len(decoder.step())
    started = time.perf_counter()
    counted = 0
    while decoder.num_running or decoder.num_waiting:
        counted += len(decoder.step())
    return counted * 1.0 / (time.perf_counter() - started) if first else 0.0


def _summary(values: Sequence[float]) -> list[float]:
    """The median, the smallest and the largest."""
    return [round(value, 3) for value in (statistics.median(values), min(values), max(values))]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--guide")
    parser.add_argument("--rows", type=lambda text: [int(part) for part in text.split(",")], default=[1, 16])
    parser.add_argument("--num-new-tokens", type=int, default=48)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--transformers", action="store_true", help="the dequantised model in float32 too")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
