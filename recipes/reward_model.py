"""A small Bradley-Terry reward model from preference pairs, on a CPU in minutes: a frozen base and a fitted head.

    python recipes/reward_model.py --model demo --data DATA/harmless/train.jsonl \
        --eval-data DATA/harmless/validation.jsonl --out rewards/harmless

The loss is Ouyang et al.'s (arXiv 2203.02155, equation 1), −log σ(r(chosen) − r(rejected)), over the last state of the
base at the end of prompt and answer. The base is frozen, so each state is computed once, and what is left is a logistic
regression without intercept on differences of states. It differs from the paper in that: only the head learns, so what
the base does not already tell apart, the reward model does not either. The strength of the L2 penalty is chosen by the
loss on held-out training prompts; the evaluation pairs choose nothing.

Writes a sequence-classification model (bfloat16 safetensors, tokenizer) that transformers and `trimtab` load, and
`reward.json`: what was measured, with which data and settings. What is measured is the model as it is written.
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from torch.nn.functional import softplus

from trimtab import ArmSettings, HFModel, PairData, PreferencePair, RewardModel, load_model, read_pairs
from trimtab.errors import OutputExistsError
from trimtab.statistics import proportion_interval

STRENGTHS = tuple(10 ** (power / 2) for power in range(-6, 3))
"""L2 penalties tried, on standardised features and the mean loss."""
HELD_OUT_SHARE = 0.2
SLICE = 256
NEWTON_STEPS = 50


def load_base(name: str, max_length: int) -> RewardModel:
    """The base with a head that is still random, in float32, its weights already as bfloat16 writes them."""
    base = load_model(name, dtype="bfloat16")
    assert base.tokenizer is not None
    tokenizer = base.tokenizer.hf
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.model_max_length = max_length  # so that whoever loads the model cuts where it was trained to
    return RewardModel(with_head(base, tokenizer.pad_token_id).float(), tokenizer, name=name)


def with_head(base: HFModel, pad_token_id: int) -> transformers.PreTrainedModel:
    """A sequence classifier of one label whose trunk has the weights of the base."""
    config = copy.deepcopy(base.module.config)
    config.num_labels, config.pad_token_id = 1, pad_token_id
    module = transformers.AutoModelForSequenceClassification.from_config(config, dtype=torch.bfloat16)
    module.base_model.load_state_dict(base.module.base_model.state_dict())
    return module.to(base.device).eval()


def pair_states(model: RewardModel, pairs: Sequence[PreferencePair], what: str) -> tuple[Tensor, Tensor]:
    """[N, D] float64 last states of the chosen and of the rejected answers."""
    prompts = [pair.prompt for pair in pairs for _ in range(2)]
    answers = [answer for pair in pairs for answer in (pair.chosen, pair.rejected)]
    # Long texts with long ones: batches are sorted again inside, but only within a slice.
    order = sorted(range(len(answers)), key=lambda index: len(str(prompts[index])) + len(answers[index]))
    states = [torch.empty(0)] * len(answers)
    begin = time.perf_counter()
    for start in range(0, len(order), SLICE):
        part = order[start : start + SLICE]
        found = model.states([prompts[index] for index in part], [answers[index] for index in part])
        for index, state in zip(part, found, strict=True):
            states[index] = state
        done = start + len(part)
        say(f"{what}: {done} of {len(order)} answers, {time.perf_counter() - begin:.0f} s")
    stacked = torch.stack(states).double()
    return stacked[0::2], stacked[1::2]


def fit(differences: Tensor, strength: float) -> Tensor:
    """[D] weights w that minimise mean softplus(−w·d) + strength/2·|w|², by Newton's method with halved steps."""
    weights = torch.zeros(differences.shape[1], dtype=torch.float64)
    eye = torch.eye(len(weights), dtype=torch.float64)

    def objective(candidate: Tensor) -> float:
        return float(loss(differences @ candidate) + strength / 2 * candidate.square().sum())

    for _ in range(NEWTON_STEPS):
        wrong = torch.sigmoid(-(differences @ weights))
        gradient = strength * weights - differences.T @ wrong / len(differences)
        hessian = (differences.T * (wrong * (1 - wrong))) @ differences / len(differences) + strength * eye
        step = torch.linalg.solve(hessian, gradient)
        size, before = 1.0, objective(weights)
        while objective(weights - size * step) > before and size > 1e-6:
            size /= 2
        weights = weights - size * step
        if float(gradient.abs().max()) < 1e-8:
            break
    return weights


def loss(margins: Tensor) -> Tensor:
    """Mean −log σ(margin): [N] -> scalar."""
    return softplus(-margins).mean()


def fit_head(pairs: PairData, chosen: Tensor, rejected: Tensor, seed: int) -> tuple[Tensor, dict[str, Any]]:
    """The head on raw states, [D], and how the penalty was chosen."""
    scale = torch.cat([chosen, rejected]).std(0).clamp_min(1e-6)
    differences = (chosen - rejected) / scale
    held = {id(pair) for pair in pairs.hold_out(HELD_OUT_SHARE, seed=seed)[1].pairs}
    is_held = torch.tensor([id(pair) in held for pair in pairs.pairs])
    tried = {}
    for strength in STRENGTHS:
        margins = differences[is_held] @ fit(differences[~is_held], strength)
        tried[strength] = {"loss": float(loss(margins)), "accuracy": float((margins > 0).double().mean())}
        say(f"L2 {strength:.3g}: held-out loss {tried[strength]['loss']:.4f}, {tried[strength]['accuracy']:.3f} right")
    best = min(tried, key=lambda strength: tried[strength]["loss"])
    head = fit(differences, best) / scale
    found = [{"l2": strength, **values} for strength, values in tried.items()]
    return head, {"l2": best, "num_held_out_pairs": int(is_held.sum()), "l2_tried": found}


def accuracy(pairs: Sequence[PreferencePair], chosen: Tensor, rejected: Tensor, head: Tensor) -> dict[str, Any]:
    """Share of pairs whose chosen answer has the higher reward, with its 95 % Wilson interval over prompts."""
    margins = (chosen - rejected) @ head
    prompts = [str(pair.prompt) for pair in pairs]
    found = proportion_interval((margins > 0).tolist(), prompts)
    return {
        "num_pairs": len(margins),
        "num_prompts": len(set(prompts)),
        "accuracy": found.value,
        "low": found.low,
        "high": found.high,
        "loss": float(loss(margins)),
    }


def clean_pairs(path: Path, max_pairs: int, seed: int) -> PairData:
    """The pairs of a file, without responses that answer many prompts."""
    pairs = read_pairs([path]).without_stock(ArmSettings().max_prompts_per_response)
    return pairs.sample(max_pairs, seed=seed) if max_pairs else pairs


def main() -> int:
    args = _arguments()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    transformers.logging.set_verbosity_error()  # it warns that the head is new, which is the point
    transformers.logging.disable_progress_bar()
    if args.out.exists() and not args.overwrite:
        raise OutputExistsError(args.out)
    begin = time.perf_counter()
    pairs = clean_pairs(args.data, args.max_pairs, args.seed)
    model = load_base(args.model, args.max_length)
    chosen, rejected = pair_states(model, pairs.pairs, "training")
    head, report = fit_head(pairs, chosen, rejected, args.seed)
    head = head.bfloat16().double()
    rewards = torch.cat([chosen, rejected]) @ head
    report |= {"train": accuracy(pairs.pairs, chosen, rejected, head)}
    report |= {"reward": {"mean": float(rewards.mean()), "std": float(rewards.std())}}
    if args.eval_data:
        evaluation = clean_pairs(args.eval_data, 0, args.seed)
        report |= {"eval": accuracy(evaluation.pairs, *pair_states(model, evaluation.pairs, "evaluation"), head)}
        report |= {"eval_fingerprint": evaluation.fingerprint}
    report |= {"seconds": time.perf_counter() - begin, "num_cut": model.num_cut, "fingerprint": pairs.fingerprint}
    settings = ("model", "max_pairs", "max_length", "seed")
    report |= {"settings": {name: getattr(args, name) for name in settings}, "data": args.data.name}
    write(model, head, report, args.out)
    print(json.dumps({name: report.get(name) for name in ("train", "eval", "l2", "seconds", "num_cut")}, indent=1))
    return 0


def write(model: RewardModel, head: Tensor, report: dict[str, Any], directory: Path) -> None:
    """The model with its head, its tokenizer, and the report, into a directory, which is there once it is whole."""
    model.module.score.weight.data.copy_(head[None])
    partial = directory.with_name(f".{directory.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    model.module.bfloat16().save_pretrained(partial)
    model.tokenizer.save_pretrained(partial)
    (partial / "reward.json").write_text(json.dumps(report, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    if directory.exists():
        shutil.rmtree(directory)
    partial.rename(directory)


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--data", type=Path, required=True, help="preference pairs, as `trimtab train arm` reads them")
    parser.add_argument("--eval-data", type=Path, help="pairs to measure on; they choose nothing")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--overwrite", action="store_true", help="replace what lies in --out")
    parser.add_argument("--max-pairs", type=int, default=0, help="a random sample of so many pairs; 0: all")
    parser.add_argument("--max-length", type=int, default=192, help="tokens of prompt and answer, cut from the left")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
