"""What drafts give: one guided request at a time, with drafts and without, beside the unguided model.

    python benchmarks/drafts.py                  # the demo model and its guide, look-up drafts
    python benchmarks/drafts.py --model large.gguf --guide small.gguf --draft guide --temperature 0.7

Arms take turns in one process, each on the same prompts, and answer one prompt after another; figures are medians over
turns of each arm's tokens a second over the unguided arm's of the same turn, with the smallest and the largest. Three
kinds of text: *repetition* (the answer can be looked up in the prompt), *prompts* (the demo's), and *adversarial* (the
prompt is full of pairs of words that come again, and the answer is drawn at temperature 2, so that guesses are made and
none is right). The tokens of the drafted arm must be those of the undrafted one; how many are is in the report.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from trimtab.answers import Answer
from trimtab.core import Guide, Prompt
from trimtab.decoding.decoder import Decoder
from trimtab.evaluation import throughput
from trimtab.evaluation.prompt_sets import demo_prompts
from trimtab.guides.arm import AdapterARM
from trimtab.models.hf import HFModel
from trimtab.prompts import encode_prompt
from trimtab.storage.loading import load_guide, load_model

AIMS = {
    "repetition: guided, lookup, over transformers' unguided generate": 1.0,
    "prompts: guided, lookup, over transformers' unguided generate": 0.95,
    "prompts: guided, guide drafts, over the unguided base in this engine": 1.05,
    "adversarial: drafted over not drafted": 0.97,
}
GUIDE = "steering"
LIST = [
    "Paris is the capital of France, and the Seine runs through it.",
    "Rome is the capital of Italy, and the Tiber runs through it.",
    "Vienna is the capital of Austria, and the Danube runs through it.",
]
REPEATED = [
    f"Copy this text, word for word, three times:\n{' '.join(LIST[index:] + LIST[:index])}" for index in range(3)
]


def main() -> int:
    args = _arguments()
    model = load_model(args.model)
    guide = load_guide(args.guide, beside=model, weight=args.weight)
    copies = {} if args.draft_quantize is None else {GUIDE: _copy(args, model)}
    found = {kind: _measured(args, model, guide, copies, kind) for kind in args.kinds}
    settings = {name: value for name, value in vars(args).items() if name != "json"}
    print(throughput.write_report({"drafts": found, "settings": settings, "aims": AIMS}, args.json))
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo", help="as in trimtab generate (%(default)s)")
    parser.add_argument("--guide", default="builtin:sentiment", help="a guide (%(default)s)")
    parser.add_argument("--weight", type=float, default=1.0, help="its weight (%(default)s)")
    parser.add_argument("--draft", default="lookup", help="lookup or guide (%(default)s)")
    parser.add_argument("--draft-quantize", help="int8 or float16: a copy of the guide with such weights drafts (none)")
    parser.add_argument("--draft-tokens", type=int, help="tokens guessed at a time (as many as pay)")
    parser.add_argument(
        "--temperature", type=float, default=0.0, help="of all arms but adversarial text's (%(default)s)"
    )
    parser.add_argument("--kinds", nargs="+", default=["repetition", "prompts", "adversarial"], help="of text")
    parser.add_argument("--num-prompts", type=int, default=3, help="of each kind (%(default)s)")
    parser.add_argument("--num-new-tokens", type=int, default=96, help="an answer (%(default)s)")
    parser.add_argument("--num-repeats", type=int, default=5, help="turns (%(default)s)")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    return parser.parse_args()


def _prompts(kind: str, num: int) -> list[Prompt]:
    if kind == "prompts":
        return list(demo_prompts()[:num])
    if kind == "repetition":
        return [[{"role": "user", "content": text}] for text in (REPEATED * num)[:num]]
    pairs = [f"{first} {second}" for first in ("red", "blue", "old", "new") for second in ("house", "tree", "road")]
    return [" ".join(random.Random(seed).choices(pairs, k=60)) for seed in range(num)]


def _copy(args: argparse.Namespace, model: HFModel) -> Guide:
    """The guide with weights of fewer bits; an adapter of the base on a base with such weights."""
    copy = load_guide(args.guide, beside=model, weight=args.weight, quantize=args.draft_quantize)
    return copy.bind(load_model(args.model, quantize=args.draft_quantize)) if isinstance(copy, AdapterARM) else copy


def _measured(
    args: argparse.Namespace, model: HFModel, guide: Guide, copies: Mapping[str, Guide], kind: str
) -> Mapping[str, object]:
    prompts = [encode_prompt(model, prompt) for prompt in _prompts(kind, args.num_prompts)]
    temperature = 2.0 if kind == "adversarial" else args.temperature
    how = {"max_new_tokens": args.num_new_tokens, "temperature": temperature, "ignore_eos": True, "seed": 1}
    alone, guided = Decoder(model), Decoder(model, {GUIDE: guide}, drafters=copies)

    def decode(decoder: Decoder, **more: Any) -> list[Answer]:
        return [answer for prompt in prompts for answer in decoder.generate([prompt], **how, **more)]

    drafts = {"draft": args.draft, "draft_tokens": args.draft_tokens}
    base_drafts = {} if args.draft == "guide" else {"unguided, drafts": lambda: decode(alone, **drafts)}
    arms: dict[str, Callable[[], Sequence[object]]] = {
        "unguided": lambda: decode(alone),
        "transformers' generate": generate_arm(model, prompts, temperature, args.num_new_tokens),
        **base_drafts,
        "guided": lambda: decode(guided),
        "guided, drafts": lambda: decode(guided, **drafts),
    }
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for turn in range(args.num_repeats + 1):  # the first warms up
        for name, arm in arms.items():
            started = time.perf_counter()
            arm()
            if turn:
                seconds[name].append(time.perf_counter() - started)
    plain, drafted = decode(guided), decode(guided, **drafts)
    answers = zip(plain, drafted, strict=True)
    tokens = [pair for ours, other in answers for pair in zip(ours.token_ids, other.token_ids, strict=True)]
    return {
        "tokens_per_s": {
            name: round(args.num_new_tokens * len(prompts) / statistics.median(times), 2)
            for name, times in seconds.items()
        },
        **{f"over {base}": _ratios(seconds, base) for base in ("unguided", "transformers' generate", "guided")},
        "same_tokens": sum(first == second for first, second in tokens) / len(tokens),
    }


def generate_arm(
    model: HFModel, prompts: Sequence[Sequence[int]], temperature: float, num_new: int
) -> Callable[[], Sequence[object]]:
    """transformers' own generate, one prompt after another."""
    sampling: dict[str, Any] = {"do_sample": temperature > 0}
    if temperature > 0:
        sampling |= {"temperature": temperature, "top_k": 0, "top_p": 1.0}

    def run() -> list[object]:
        with torch.inference_mode():
            return [
                model.module.generate(
                    torch.tensor([list(prompt)]), max_new_tokens=num_new, min_new_tokens=num_new, **sampling
                )
                for prompt in prompts
            ]

    return run


def _ratios(seconds: Mapping[str, Sequence[float]], base: str) -> dict[str, list[float]]:
    """Median, smallest and largest of each arm's speed over another's, turn by turn."""
    found = {}
    for name, times in seconds.items():
        ratios = [slow / quick for slow, quick in zip(seconds[base], times, strict=True)]
        found[name] = [round(value, 3) for value in (statistics.median(ratios), min(ratios), max(ratios))]
    return found


if __name__ == "__main__":
    sys.exit(main())
