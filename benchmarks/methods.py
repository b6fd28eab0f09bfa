"""What each method costs: tokens a second, forward passes and columns a token, memory, beside the unguided base.

    python benchmarks/methods.py --reward rewards/sentiment --guide builtin:sentiment --policy policies/dpo
    python benchmarks/methods.py --reward rewards/sentiment --references     # ARGS and Transfer-Q done plainly

Methods take turns in one process, each on the same prompts; figures are medians of their ratios to the base of the same
turn, with the smallest and the largest. --draft measures every method with drafts too, against the same base without;
--dtype and --quantize change the base of all.

With --references, a plain ARGS (each candidate's whole text through the reward model, one by one) and a plain
Transfer-Q (each candidate completed by transformers' generate, one by one) run the same first tokens of the first
prompt; theirs and ours must be the same. Memory is the process's, so give --only for a method's own. --json writes the
figures.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import DynamicCache

from trimtab.core import SamplingParams
from trimtab.decoding.decoder import Decoder
from trimtab.evaluation import throughput
from trimtab.evaluation.acceptance import counted_passes
from trimtab.evaluation.prompt_sets import demo_prompts
from trimtab.guides.args import TrajectoryGuide
from trimtab.guides.transfer_q import RolloutGuide
from trimtab.methods.catalogue import build_policy
from trimtab.methods.method import Policy, Strength
from trimtab.models.hf import HFModel
from trimtab.models.networks.backbone import cache_argument
from trimtab.params import NO_DRAFT
from trimtab.prompts import encode_prompt
from trimtab.storage.loading import load_model, load_rewards
from trimtab.storage.scorers import load_reward_model

AIMS = {"args, batch 1": ("of the base", 0.5), "transfer-q": ("times its plain reference", 10.0)}


def main() -> int:
    args = _arguments()
    model = load_model(args.model, dtype=args.dtype, quantize=args.quantize)
    report = _references(args, model) if args.references else _methods(args, model)
    report |= {"aims": AIMS}
    print(throughput.write_report(report, args.json))
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo", help="as in trimtab generate (%(default)s)")
    parser.add_argument("--reward", help="directory of a reward model: args, transfer-q, best-of-n, segments")
    parser.add_argument("--guide", help="an autoregressive reward model: genarm")
    parser.add_argument("--head", help="a low-rank head on the base's final state: palc")
    parser.add_argument("--agent", help="an accept-reject agent: mara")
    parser.add_argument("--policy", help="a tuned policy: policy")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16], help="rows (1 16)")
    parser.add_argument("--dtype", default="auto", help="of the base, as in trimtab generate (%(default)s)")
    parser.add_argument("--quantize", help="weights of fewer bits for the base, as in trimtab generate")
    parser.add_argument("--draft", help="measure every method with these drafts too: lookup or guide")
    parser.add_argument("--num-new-tokens", type=int, default=24, help="a row (%(default)s)")
    parser.add_argument("--num-repeats", type=int, default=3, help="turns (%(default)s)")
    parser.add_argument("--parm", help="a guide for several objectives: parm")
    parser.add_argument("--leave-out", nargs="+", default=[], metavar="NAME", help="methods not to measure")
    parser.add_argument("--only", metavar="NAME", help="this method and the base: its memory is then its own")
    parser.add_argument("--references", action="store_true", help="measure ARGS and Transfer-Q against plain ones")
    parser.add_argument(
        "--num-rows",
        type=int,
        default=1,
        help="with --references: prompts that we answer at a time; the plain way answers the first alone (%(default)s)",
    )
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    return parser.parse_args()


def _arms(args: argparse.Namespace) -> dict[str, tuple[Mapping[str, Any], Strength]]:
    """Method -> its options and a strength, as far as what it reads was given."""
    arms: dict[str, tuple[Mapping[str, Any], Strength]] = {"base": ({}, 0.0), "aligner": ({}, 1.0)}
    if args.guide:
        arms["genarm"] = ({"guides": {"g": args.guide}}, 1.0)
    if args.head:
        arms["palc"] = ({"guide": args.head}, 1.0)
    if args.agent:
        arms["mara"] = ({"guide": args.agent}, 0.5)
    if args.policy:
        arms["policy"] = ({"path": args.policy}, 1.0)
    if args.parm:
        arms["parm"] = ({"guide": args.parm}, (0.5, 0.5))
    if args.reward:
        arms |= {
            "args": ({"reward": args.reward}, 1.0),
            "transfer-q": ({"reward": args.reward}, 1.0),
            "best-of-n": ({"scorer": args.reward}, 10.0),
            "segments": ({"scorer": args.reward, "target": 1.0}, 2.0),
        }
    wanted = arms if args.only is None else ("base", args.only)
    return {name: arm for name, arm in arms.items() if name in wanted and name not in args.leave_out}


def _methods(args: argparse.Namespace, model: HFModel) -> dict[str, Any]:
    policies = {
        name: (build_policy(model, name, options), strength) for name, (options, strength) in _arms(args).items()
    }
    drafts = [NO_DRAFT] if args.draft is None else [NO_DRAFT, args.draft]
    arms = {(name, draft): arm for name, arm in policies.items() for draft in drafts}
    rows: list[dict[str, Any]] = []
    for batch in args.batches:
        speeds: dict[tuple[str, str], list[float]] = {arm: [] for arm in arms}
        counts: dict[tuple[str, str], dict[str, float]] = {}
        for turn in range(args.num_repeats + 1):  # the first turn warms up and counts
            for (name, draft), (policy, strength) in arms.items():
                answers = _Answers(policy, strength, batch, args.num_new_tokens, draft)
                if turn == 0:
                    counts[name, draft] = _counted(model, answers)
                else:
                    speeds[name, draft].append(answers.speed())
        for (name, draft), found in speeds.items():
            ratios = [speed / base for speed, base in zip(found, speeds["base", NO_DRAFT], strict=True)]
            ratio = (statistics.median(ratios), min(ratios), max(ratios))
            rows.append(
                {
                    "method": name,
                    "batch": batch,
                    "draft": draft,
                    "dtype": str(model.module.dtype).removeprefix("torch."),
                    "quantize": args.quantize,
                    "tokens_per_s": round(statistics.median(found), 2),
                    "ratio_to_base": [round(value, 3) for value in ratio],
                    **counts[name, draft],
                }
            )
    return {"methods": rows, "num_repeats": args.num_repeats, "num_new_tokens": args.num_new_tokens}


@dataclass(frozen=True)
class _Answers:
    """What one arm answers, turn by turn."""

    policy: Policy
    strength: Strength
    batch: int
    num_tokens: int
    draft: str

    def make(self) -> int:
        """Answer the prompts once -> the number of tokens."""
        params = SamplingParams(max_new_tokens=self.num_tokens, ignore_eos=True, draft=self.draft)
        prompts = demo_prompts()[: self.batch]
        answers = self.policy.answer(prompts, self.strength, params, list(range(self.batch)))
        return sum(len(answer.token_ids) for answer in answers)

    def speed(self) -> float:
        """Tokens a second of one turn."""
        started = time.perf_counter()
        return self.make() / (time.perf_counter() - started)


def _counted(model: HFModel, answers: _Answers) -> dict[str, float]:
    throughput.reset_peak_memory(model.device)
    with counted_passes(model) as passes:
        count = answers.make()
    return {
        "passes_per_step": round(passes.num_passes / answers.num_tokens, 2),
        "columns_per_token": round(passes.num_columns / count, 2),
        "peak_memory_mb": round(throughput.peak_memory_mb(model.device)),
    }


def _references(args: argparse.Namespace, model: HFModel) -> dict[str, Any]:
    """Ours and the plain way, greedy, on the same rows; the tokens are compared."""
    module = load_reward_model(args.reward).module
    rewards = load_rewards(args.reward)
    prompts = demo_prompts()[: args.num_rows]
    plain = _Plain(model, lambda ids: _plain_reward(module, ids))
    found: dict[str, Any] = {}
    for name, guide, rollout in (
        ("args", TrajectoryGuide(rewards), 0),
        ("transfer-q", RolloutGuide(rewards), 20),
    ):
        ours, plain_tokens = [], []
        for _ in range(args.num_repeats):
            started = time.perf_counter()
            decoder = Decoder(model, {"r": guide})
            answer, *_ = decoder.generate(prompts, temperature=0, max_new_tokens=args.num_new_tokens, ignore_eos=True)
            middle = time.perf_counter()
            expected = plain.answer(list(encode_prompt(model, prompts[0])), args.num_new_tokens, rollout)
            ours.append(args.num_rows * args.num_new_tokens / (middle - started))
            plain_tokens.append(args.num_new_tokens / (time.perf_counter() - middle))
        ratios = [one / other for one, other in zip(ours, plain_tokens, strict=True)]
        found[name] = {
            "tokens_per_s": round(statistics.median(ours), 3),
            "reference_tokens_per_s": round(statistics.median(plain_tokens), 3),
            "times_faster": [round(value, 2) for value in (statistics.median(ratios), min(ratios), max(ratios))],
            "same_tokens": list(answer.token_ids) == expected,
        }
    measured = {name: getattr(args, name) for name in ("num_repeats", "num_new_tokens", "num_rows")}
    return {"references": found, **measured}


class _Plain:
    """ARGS and Transfer-Q candidate by candidate, the base with a cache of its own."""

    def __init__(self, model: HFModel, reward: Callable[[Sequence[int]], float]) -> None:
        self._module = model.module
        self._eos_ids = model.eos_ids
        self._reward = reward

    @torch.inference_mode()
    def answer(self, prompt: Sequence[int], tokens: int, rollout: int, top_k: int = 10) -> list[int]:
        ids, cache, fed = list(prompt), DynamicCache(config=self._module.config), 0
        named = {cache_argument(self._module): cache}
        for _ in range(tokens):
            output = self._module(input_ids=torch.tensor([ids[fed:]]), use_cache=True, **named)
            fed = len(ids)
            logprobs = torch.log_softmax(output.logits[0, -1].float(), dim=-1)
            best = logprobs.topk(top_k).indices.tolist()
            scores = [float(logprobs[token]) + self._reward(self._completed([*ids, token], rollout)) for token in best]
            ids.append(best[max(range(top_k), key=scores.__getitem__)])
        return ids[len(prompt) :]

    def _completed(self, ids: list[int], tokens: int) -> list[int]:
        if tokens == 0 or ids[-1] in self._eos_ids:
            return ids
        given = torch.tensor([ids])
        found = self._module.generate(
            given, attention_mask=torch.ones_like(given), max_new_tokens=tokens, do_sample=False, temperature=None,
            top_p=None, top_k=None, eos_token_id=sorted(self._eos_ids), pad_token_id=0,
        )  # fmt: skip
        return found[0].tolist()


@torch.inference_mode()
def _plain_reward(module: Any, ids: Sequence[int]) -> float:
    states = module.base_model(input_ids=torch.tensor([list(ids)]), use_cache=False).last_hidden_state
    return float(module.score(states[0, -1]))


if __name__ == "__main__":
    sys.exit(main())
