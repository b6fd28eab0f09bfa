"""Training on preference pairs: our steps against a plain reference, in float32 and in bfloat16.

    python benchmarks/training.py                  # SmolLM2-135M, a LoRA of its last 15 blocks

The reference is what a plain trainer does: a row for each response, padded to the longest, and log-probabilities of
every token of it, in float32. Ours shares a prompt's row between the responses to it and runs the output head where a
response's token is predicted (training/pairs/packing.py). Both run the same adapter on the same pairs of random tokens
(a prompt's are shared by a few pairs, as in preference data), forwards and backwards, and their losses are compared.
The arms take turns in one process; figures are medians of ratios with the smallest and the largest. --json writes them.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trimtab.evaluation import throughput
from trimtab.storage.loading import load_model
from trimtab.training.arm.trainer import ArmTrainer, arm_config, arm_parts
from trimtab.training.pairs.losses import arm_loss
from trimtab.training.pairs.tokens import TokenData, TokenPair
from trimtab.training.run.arguments import RunArguments
from trimtab.training.run.precision import bfloat16_gain, compact
from trimtab.training.run.settings import ArmSettings
from trimtab.training.run.trainer import build_trainer


def main() -> int:
    args = _arguments()
    pairs = _pairs(args)
    exact, half = (_trainer(args, pairs, dtype) for dtype in ("float32", "bfloat16"))
    batches = [pairs[start : start + args.batch_size] for start in range(0, len(pairs), args.batch_size)]
    arms: dict[str, Callable[[], float]] = {
        "reference": lambda: sum(_backwards(_plain_loss(exact, batch)) for batch in batches),
        "float32": lambda: sum(_backwards(_our_loss(exact, batch)) for batch in batches),
        "bfloat16": lambda: sum(_backwards(_our_loss(half, batch)) for batch in batches),
    }
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    losses: dict[str, float] = {}
    for turn in range(args.num_repeats + 1):  # the first turn warms up
        for name, arm in arms.items():
            started = time.perf_counter()
            losses[name] = arm() / len(batches)
            if turn:
                seconds[name].append(time.perf_counter() - started)
    report = {
        "pairs_per_s": {name: _spread([len(pairs) / one for one in found]) for name, found in seconds.items()},
        "over_reference": {
            name: _spread([plain / one for plain, one in zip(seconds["reference"], found, strict=True)])
            for name, found in seconds.items()
        },
        "loss": losses,
        "bfloat16_gain_of_a_product": round(bfloat16_gain(exact.model), 2),
        "num_threads": torch.get_num_threads(),
        "num_repeats": args.num_repeats,
    }
    print(throughput.write_report(report, args.json))
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo", help="as in trimtab train arm (%(default)s)")
    parser.add_argument("--num-pairs", type=int, default=16, help="in each turn (%(default)s)")
    parser.add_argument("--batch-size", type=int, default=2, help="pairs in one forward pass (%(default)s)")
    parser.add_argument("--lora-last-layers", type=int, default=15, help="blocks to adapt (%(default)s)")
    parser.add_argument("--prompt-tokens", type=int, default=62, help="of each prompt (%(default)s)")
    parser.add_argument("--answer-tokens", type=int, default=130, help="of the longest response (%(default)s)")
    parser.add_argument("--num-repeats", type=int, default=5, help="turns of each arm (%(default)s)")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    return parser.parse_args()


def _pairs(args: argparse.Namespace) -> tuple[TokenPair, ...]:
    """Pairs of random tokens, of like length as training sorts them."""
    rng = random.Random(0)

    def ids(count: int) -> tuple[int, ...]:
        return tuple(rng.randrange(100, 20_000) for _ in range(count))

    lengths = [(rng.randint(args.answer_tokens // 3, args.answer_tokens), args.answer_tokens) for _ in range(99)]
    pairs = [TokenPair(ids(args.prompt_tokens), *map(ids, rng.choice(lengths))) for _ in range(args.num_pairs)]
    return tuple(sorted(pairs, key=lambda pair: pair.length + len(pair.chosen_ids)))


def _trainer(args: argparse.Namespace, pairs: tuple[TokenPair, ...], dtype: str) -> ArmTrainer:
    model = load_model(args.model, dtype="float32", device="cpu")
    if dtype == "bfloat16":
        compact(model.module)
    settings = ArmSettings(dtype=dtype, batch_size=args.batch_size, lora_last_layers=args.lora_last_layers)
    with tempfile.TemporaryDirectory() as directory:
        data = TokenData(pairs, 0, 0, 0)
        parts = arm_parts(model, data, TokenData((), 0, 0, 0), settings, 1)
        config = arm_config(settings, Path(directory))
        return build_trainer(parts, settings, config, RunArguments(out=Path(directory) / "out"))


def _our_loss(trainer: ArmTrainer, pairs: Sequence[TokenPair]) -> Tensor:
    names = ("prompt_ids", "chosen_ids", "rejected_ids")
    batch = trainer.data_collator([{name: getattr(pair, name) for name in names} for pair in pairs])
    with trainer.compute_loss_context_manager(), trainer.accelerator.autocast():
        loss: Tensor = trainer.compute_loss(trainer.model, batch)
    return loss


def _plain_loss(trainer: ArmTrainer, pairs: Sequence[TokenPair]) -> Tensor:
    responses = [ids for pair in pairs for ids in (pair.chosen_ids, pair.rejected_ids)]
    prompts = [pair.prompt_ids for pair in pairs for _ in range(2)]
    length = max(len(prompt) + len(ids) for prompt, ids in zip(prompts, responses, strict=True))
    input_ids, mask, answered = (torch.zeros(len(prompts), length, dtype=torch.int64) for _ in range(3))
    for row, (prompt, ids) in enumerate(zip(prompts, responses, strict=True)):
        end = len(prompt) + len(ids)
        input_ids[row, :end] = torch.tensor([*prompt, *ids])
        mask[row, :end] = 1
        answered[row, len(prompt) : end] = 1
    logits = trainer.model(input_ids=input_ids, attention_mask=mask, use_cache=False).logits[:, :-1]
    logprobs = logits.log_softmax(-1).gather(-1, input_ids[:, 1:, None]).squeeze(-1)
    sums = (logprobs * answered[:, 1:]).sum(1)
    return arm_loss(sums[::2], sums[1::2], beta=trainer.beta, gamma=trainer.gamma).mean()


def _backwards(loss: Tensor) -> float:
    torch.autograd.backward(loss)
    return float(loss.detach())


def _spread(values: Sequence[float]) -> list[float]:
    """Median, smallest and largest."""
    found: list[Any] = [statistics.median(values), min(values), max(values)]
    return [round(value, 2) for value in found]


if __name__ == "__main__":
    raise SystemExit(main())
