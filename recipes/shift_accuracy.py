"""What a guide has learnt beyond its base: accuracy of Σ log π_r − Σ log π_base on held-out pairs, beside each alone.

    python recipes/shift_accuracy.py --guide guides/harmless --data DATA/harmless/validation.jsonl

An autoregressive reward model starts as its base, so its reward, Σ log π_r, begins as how likely the base finds an
answer, and its accuracy begins at the base's. The difference of the two is what training added, and what steers beyond
sharpening. Prints JSON: for base, guide and shift the accuracy with its 95 % interval (Wilson).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any

import peft
import torch
from torch import Tensor

from trimtab import ArmSettings, HFModel, PreferencePair, load_model, read_pairs
from trimtab.statistics import proportion_interval

Ids = tuple[int, ...]


def token_ids(pair: PreferencePair, model: HFModel, max_length: int, max_prompt_length: int) -> tuple[Ids, Ids, Ids]:
    """Prompt, chosen and rejected response as a training reads them: the one cut from the left, the others from the
    right."""
    assert model.tokenizer is not None
    chosen, rejected = model.tokenizer.conversations.exchanges(pair.prompt, pair.answers, model.eos_ids)
    prompt = chosen.prompt_ids
    if len(prompt) > max_prompt_length:
        start = prompt[:1] if prompt[0] == model.tokenizer.hf.bos_token_id else []
        prompt = [*start, *prompt[len(start) - max_prompt_length :]]
    room = max_length - len(prompt)
    return tuple(prompt), tuple(chosen.answer_ids[:room]), tuple(rejected.answer_ids[:room])


@torch.inference_mode()
def rewards(module: Any, pairs: Sequence[tuple[Ids, Ids, Ids]]) -> tuple[Tensor, Tensor]:
    """Σ_t log π(y_t | x, y_<t) of the chosen and of the rejected responses: [N], [N]."""
    found = [[reward(module, prompt, response) for response in responses] for prompt, *responses in pairs]
    chosen, rejected = torch.tensor(found).T
    return chosen, rejected


def reward(module: Any, prompt: Ids, response: Ids) -> float:
    """Σ_t log π(y_t | x, y_<t) of one response."""
    ids = torch.tensor([[*prompt, *response]], device=module.device)
    logits = module(input_ids=ids, use_cache=False, logits_to_keep=len(response) + 1).logits[0, :-1]
    logprobs = logits.float().log_softmax(-1)
    return float(logprobs.gather(-1, ids[0, len(prompt) :, None]).sum())


def accuracy(gaps: torch.Tensor, pairs: Sequence[tuple[Ids, Ids, Ids]]) -> dict[str, float]:
    """Share of positive gaps with its interval over prompts, and the mean gap in nats."""
    found = proportion_interval((gaps > 0).tolist(), [prompt for prompt, *_ in pairs])
    return {"accuracy": found.value, "low": found.low, "high": found.high, "mean_gap": float(gaps.mean())}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--guide", required=True, help="a LoRA guide's directory")
    parser.add_argument("--data", required=True)
    parser.add_argument("--max-length", type=int, default=256)
    parser.add_argument("--max-prompt-length", type=int, default=160)
    args = parser.parse_args()
    model = load_model(args.model)
    data = read_pairs([args.data]).without_stock(ArmSettings().max_prompts_per_response)
    cut = [token_ids(pair, model, args.max_length, args.max_prompt_length) for pair in data.pairs]
    pairs = [(prompt, chosen, rejected) for prompt, chosen, rejected in cut if chosen != rejected]
    base = torch.sub(*rewards(model.module, pairs))
    guide = torch.sub(*rewards(peft.PeftModel.from_pretrained(model.module, args.guide).eval(), pairs))
    report = {
        "num_pairs": len(pairs),
        "num_prompts": len({prompt for prompt, *_ in pairs}),
        **{name: accuracy(gaps, pairs) for name, gaps in (("base", base), ("guide", guide), ("shift", guide - base))},
    }
    print(json.dumps(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
