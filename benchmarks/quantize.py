"""What weights of fewer bits give and cost on a processor: speed, distance to float32, the guide's reward, company.

    python benchmarks/quantize.py                         # the demo model, unguided and guided, and its quality
    python benchmarks/quantize.py --kinds int8 --batches 1 --no-quality --json figures.json

Speeds are of whole answers, prompts included, in one process; the float32 model and its quantised copies take turns,
and a ratio is of two arms of one turn. KL is of the next token after each of the demo's prompts, float32 to quantised.
Rewards are of answers guided at weight 1 with a seed for each prompt; the difference to float32 is paired by prompt.
Company is the mean of |Δ log π| of a row beside 15 others and alone, a token after its prompt. Intervals are 95 %,
bootstrapped over prompts.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from trimtab.core import Prompt
from trimtab.decoding.decoder import Decoder
from trimtab.evaluation import throughput
from trimtab.evaluation.prompt_sets import demo_prompts
from trimtab.models.hf import HFModel
from trimtab.models.quantize.layers import KINDS
from trimtab.statistics import difference_interval, mean_interval
from trimtab.storage.loading import load_guide, load_model
from trimtab.storage.scorers import load_scorer

PLAIN = "float32"
GUIDE = "positive"
AIMS = {1: 1.6, 16: 1.3}
"""Requests at a time -> times the speed of float32, at least."""


def main() -> int:
    args = _arguments()
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    arms = {kind: _decoder(args, kind) for kind in (PLAIN, *args.kinds)}
    report: dict[str, object] = {
        "speeds": _speeds(args, arms),
        "aims": {str(batch): aim for batch, aim in AIMS.items()},
        "threads": torch.get_num_threads(),
        "amx": bool(torch.cpu._is_amx_tile_supported()),
    }
    if args.quality:
        report["quality"] = _quality(args, arms)
    print(throughput.write_report(report, args.json))
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo", help="as in trimtab generate (%(default)s)")
    parser.add_argument("--guide", default="builtin:sentiment", help="(%(default)s)")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), help="(all)")
    parser.add_argument(
        "--batches", nargs="*", type=int, default=list(AIMS), help="requests at a time; none: no speeds (1 16)"
    )
    parser.add_argument("--num-new-tokens", type=int, default=32, help="(%(default)s)")
    parser.add_argument("--num-repeats", type=int, default=5, help="(%(default)s)")
    parser.add_argument("--threads", type=int, help="(torch's own choice)")
    parser.add_argument("--quality", action=argparse.BooleanOptionalAction, default=True, help="KL, reward, company")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    return parser.parse_args()


def _decoder(args: argparse.Namespace, kind: str) -> Decoder:
    model = load_model(args.model, quantize=None if kind == PLAIN else kind, device="cpu")
    return Decoder(model, {GUIDE: load_guide(args.guide, beside=model)})


def _speeds(args: argparse.Namespace, arms: Mapping[str, Decoder]) -> list[dict[str, object]]:
    """A row for each batch, strength and kind: tokens a second, and the ratio to float32 in the same turn."""
    found = []
    for batch in args.batches:
        for weight in (0.0, 1.0):
            turns: dict[str, list[float]] = {kind: [] for kind in arms}
            for repeat in range(args.num_repeats + 1):
                for kind, decoder in arms.items():
                    speed = _speed(decoder, demo_prompts()[:batch], weight, args.num_new_tokens)
                    if repeat:  # the first turn warms up
                        turns[kind].append(speed)
            for kind, speeds in turns.items():
                ratios = [speed / plain for speed, plain in zip(speeds, turns[PLAIN], strict=True)]
                row = {"batch": batch, "weight": weight, "kind": kind, "tokens_per_s": _spread(speeds)}
                found.append({**row, "over_float32": _spread(ratios)})
    return found


def _speed(decoder: Decoder, prompts: Sequence[Prompt], weight: float, num_new_tokens: int) -> float:
    started = time.perf_counter()
    options = {"max_new_tokens": num_new_tokens, "temperature": 0.0, "ignore_eos": True}
    answers = list(decoder.generate(prompts, weights={GUIDE: weight}, **options))
    return sum(len(answer.token_ids) for answer in answers) / (time.perf_counter() - started)


def _quality(args: argparse.Namespace, arms: Mapping[str, Decoder]) -> dict[str, dict[str, object]]:
    """Of each kind: KL, rewards less those of float32, and how far a row's numbers depend on its company."""
    first = _tables(arms[PLAIN].model, 1)[0].argmax(-1)
    tables = {kind: _tables(decoder.model, 1, first) for kind, decoder in arms.items()}
    beside = {kind: _tables(decoder.model, 16, first)[1] for kind, decoder in arms.items()}
    rewards = {kind: _rewards(decoder, args.num_new_tokens) for kind, decoder in arms.items()}
    plain, _ = tables[PLAIN]
    found: dict[str, dict[str, object]] = {}
    for kind, (alone, later) in tables.items():
        found[kind] = {"company": float((beside[kind] - later).abs()[later > -20].mean())}
        found[kind]["reward"] = dataclasses.asdict(mean_interval(rewards[kind]))
        if kind != PLAIN:
            divergence = (plain.exp() * (plain - alone)).sum(-1).tolist()
            found[kind]["kl"] = dataclasses.asdict(mean_interval(divergence))
            found[kind]["same_best_token"] = float((plain.argmax(-1) == alone.argmax(-1)).float().mean())
            found[kind]["reward_less_float32"] = dataclasses.asdict(difference_interval(rewards[kind], rewards[PLAIN]))
    return found


def _tables(model: object, size: int, following: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """[64, V] log-probabilities after the demo's prompts, and after one token more of each, `size` rows at a time."""
    assert isinstance(model, HFModel)
    assert model.tokenizer is not None
    prompts = [model.tokenizer.encode_chat(list(prompt)) for prompt in demo_prompts()]
    first, second = [], []
    for at in range(0, len(prompts), size):
        session = model.open()
        session.admit(prompts[at : at + size])
        first.append(session.logprobs())
        if following is not None:
            session.advance(torch.arange(session.num_rows), following[at : at + size])
        second.append(session.logprobs())
    return torch.cat(first), torch.cat(second)


def _rewards(decoder: Decoder, num_new_tokens: int) -> list[float]:
    prompts = demo_prompts()
    answers = list(decoder.generate(prompts, weights={GUIDE: 1.0}, max_new_tokens=num_new_tokens, seed=0))
    return list(load_scorer("sentiment")(prompts, [answer.text for answer in answers]))


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


if __name__ == "__main__":
    raise SystemExit(main())
