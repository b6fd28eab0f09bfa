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

from trimtab import ArmSettings, load_model, read_pairs
from trimtab.statistics import proportion_interval
from trimtab.training.pairs.batches import PairCollator, evaluation_order
from trimtab.training.pairs.data import without_stock
from trimtab.training.pairs.losses import sequence_logprobs, token_logprobs
from trimtab.training.pairs.tokens import TokenPair, tokenise
from trimtab.training.run.output_head import head_at


@torch.inference_mode()
def rewards(module: Any, pairs: Sequence[TokenPair], batch_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Σ_t log π(y_t | x, y_<t) of the chosen and of the rejected responses: [N], [N]."""
    collate = PairCollator(0)
    chosen, rejected = [], []
    for start in range(0, len(pairs), batch_size):
        fields = [
            {"prompt_ids": pair.prompt_ids, "chosen_ids": pair.chosen_ids, "rejected_ids": pair.rejected_ids}
            for pair in pairs[start : start + batch_size]
        ]
        batch = collate(fields)
        predicting = torch.zeros_like(batch["response_mask"])
        predicting[:, :-1] = batch["response_mask"][:, 1:]
        with head_at(module.get_output_embeddings(), predicting):
            output = module(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False)
        logprobs = token_logprobs(output.logits, batch["input_ids"][:, 1:][predicting[:, :-1]])
        sums = sequence_logprobs(logprobs, predicting.nonzero()[:, 0], len(predicting))
        chosen.append(sums[batch["chosen_rows"]])
        rejected.append(sums[batch["rejected_rows"]])
    return torch.cat(chosen), torch.cat(rejected)


def accuracy(gaps: torch.Tensor, pairs: Sequence[TokenPair]) -> dict[str, float]:
    """Share of positive gaps with its interval over prompts, and the mean gap in nats."""
    found = proportion_interval((gaps > 0).tolist(), [pair.prompt_ids for pair in pairs])
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
    assert model.tokenizer is not None
    data = tokenise(
        without_stock(read_pairs([args.data]).pairs, ArmSettings().max_prompts_per_response),
        model.tokenizer,
        eos_ids=model.eos_ids,
        max_length=args.max_length,
        max_prompt_length=args.max_prompt_length,
    )
    pairs = [data.pairs[index] for index in evaluation_order(data.pairs)]
    base = torch.sub(*rewards(model.module, pairs, 4))
    guide = torch.sub(*rewards(peft.PeftModel.from_pretrained(model.module, args.guide).eval(), pairs, 4))
    report = {
        "num_pairs": len(pairs),
        "num_prompts": len({pair.prompt_ids for pair in pairs}),
        **{name: accuracy(gaps, pairs) for name, gaps in (("base", base), ("guide", guide), ("shift", guide - base))},
    }
    print(json.dumps(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
