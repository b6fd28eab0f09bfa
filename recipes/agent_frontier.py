"""Agents, reward models and the bare base on the same held-out prompts: reward, KL, preference rate, work done.

    python recipes/agent_frontier.py --model demo --prompts HELD_OUT.jsonl --num-prompts 128 \
        --agent agent=guides/agent:0.3,0.5,0.7 --arm positive=builtin:sentiment:0.5,1,2 \
        --reward sentiment=sentiment:1 --out runs/sentiment.json
    python recipes/agent_frontier.py ... --reward helpful=rewards/helpful:1 --reward harmless=rewards/harmless:1 \
        --judge-data DATA --out runs/safety.json

Arms: the base greedy; the base sampled at temperature 1 and as MARA samples it (top-k, top-p, temperature 0.8 of the
agent); each agent at each threshold, and at its own with the other rules and with a random network in its place (a
control: what rejecting at random does); each ARM at each strength, sampled at temperature 1. Every KL is to the base at
temperature 1, over the whole vocabulary; that of an arm that is certain of its token is −log π_base of it.

`--judge-data` adds judges that are not the rewards' models: Bradley-Terry on words and length, fitted to the pairs of
DATA/helpful and DATA/harmless (see two_guides.py); it needs scikit-learn. Preference rates are against the greedy base.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from trimtab import (
    Agent,
    AgentNetwork,
    Answer,
    Decoder,
    acceptance_of,
    counted_passes,
    load_guide,
    load_model,
    load_scorer,
    preference_rate,
    read_pairs,
)
from trimtab.statistics import difference_interval, mean_interval


@dataclasses.dataclass(frozen=True)
class Arm:
    """A way of answering: the options of `Decoder.generate`, and the guides of its decoder."""

    guides: dict[str, Any]
    options: dict[str, Any]


Rewards = dict[str, Callable[[Sequence[Any], Sequence[str]], list[float]]]


def main() -> int:
    args = _arguments()
    model = load_model(args.model)
    prompts = [[{"role": "user", "content": text}] for text in _texts(args.prompts, args.num_prompts)]
    rewards = _rewards(args)
    arms = _arms(args, model)
    report: dict[str, Any] = {"num_prompts": len(prompts), "max_new_tokens": args.max_new_tokens, "arms": {}}
    scores: dict[str, dict[str, list[float]]] = {}
    for name, arm in arms.items():
        started = time.monotonic()
        with counted_passes(model) as passes:
            decoder = Decoder(model, arm.guides, max_rows=args.batch_size)
            options = {"max_new_tokens": args.max_new_tokens, "seed": args.seed, "trace": True, **arm.options}
            answers = list(decoder.generate(prompts, **options))
        texts = [answer.text for answer in answers]
        scores[name] = {reward: score(prompts, texts) for reward, score in rewards.items()}
        row = _row(answers, scores[name], scores["base, greedy"], list(rewards)[: len(args.reward)])
        tokens = sum(len(answer.token_ids) for answer in answers)
        row["columns_per_token"] = round(passes.num_columns / tokens, 2)
        row["seconds"] = round(time.monotonic() - started, 1)
        row["sample"] = texts[0]
        report["arms"][name] = row
        print(name, json.dumps({key: value for key, value in row.items() if key != "sample"}), flush=True)
        args.out.write_text(json.dumps({**report, "texts": None}, indent=1) + "\n", encoding="utf-8")
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo", help="as in trimtab generate (%(default)s)")
    parser.add_argument("--prompts", type=Path, required=True, help=".jsonl with a prompt a line; held out")
    parser.add_argument("--num-prompts", type=int, default=128, help="the first so many (%(default)s)")
    parser.add_argument("--agent", action="append", default=[], metavar="NAME=PATH:T,T", help="agents and thresholds")
    parser.add_argument("--arm", action="append", default=[], metavar="NAME=PATH:W,W", help="ARMs and strengths")
    parser.add_argument("--reward", action="append", default=[], required=True, metavar="NAME=SOURCE:M")
    parser.add_argument("--judge-data", type=Path, help="the directory of helpful/ and harmless/ pairs")
    parser.add_argument("--max-new-tokens", type=int, default=48, help="(%(default)s)")
    parser.add_argument("--batch-size", type=int, default=32, help="(%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="(%(default)s)")
    parser.add_argument("--no-controls", action="store_true", help="leave out other rules and the random network")
    parser.add_argument("--out", type=Path, required=True, help="a JSON file of everything that was measured")
    return parser.parse_args()


def _texts(path: Path, count: int) -> list[str]:
    rows = [json.loads(line)["prompt"] for line in path.read_text(encoding="utf-8").splitlines()]
    return [row if isinstance(row, str) else row[-1]["content"] for row in rows[:count]]


def _rewards(args: argparse.Namespace) -> Rewards:
    found: Rewards = {}
    for text in args.reward:
        name, source, multiplier = _split(text)
        scorer, sign = load_scorer(source), float(multiplier)
        found[name] = lambda prompts, texts, scorer=scorer, sign=sign: [  # type: ignore[misc]
            sign * reward for reward in scorer(prompts, texts)
        ]
    if args.judge_data is not None:
        found |= _judges(args.judge_data)
    return found


def _judges(data: Path) -> Rewards:
    from two_guides import Judge

    judges: Rewards = {}
    for name in ("helpful", "harmless"):
        judge = Judge(read_pairs([data / name / "train.jsonl"]).without_stock(10).pairs)
        held = read_pairs([data / name / "validation.jsonl"]).without_stock(10).pairs
        print(f"judge {name}: accuracy {judge.accuracy(held):.3f} on {len(held)} pairs", flush=True)
        judges[f"judge_{name}"] = lambda prompts, texts, judge=judge: judge.reward(list(texts))  # type: ignore[misc]
    return judges


def _arms(args: argparse.Namespace, model: Any) -> dict[str, Arm]:
    arms = {
        "base, greedy": Arm({}, {"temperature": 0.0}),
        "base, temperature 1": Arm({}, {"temperature": 1.0}),
    }
    for text in args.agent:
        name, path, thresholds = _split(text)
        agent = load_guide(path)
        assert isinstance(agent, Agent)
        filters = {"top_k": agent.selection.top_k, "top_p": agent.selection.top_p}
        arms["base, as MARA samples"] = Arm({}, {"temperature": agent.selection.temperature, **filters})
        for threshold in map(float, thresholds.split(",")):
            weights = {"weights": {name: threshold}, "temperature": 1.0}
            arms[f"{name}, above {threshold:g}"] = Arm({name: agent}, weights)
        if not args.no_controls:
            for rule in ("random", "most"):
                arms[f"{name}, {rule} accepted"] = Arm({name: agent.ruled_by(rule)}, {"temperature": 1.0})
            torch.manual_seed(0)
            blind = dataclasses.replace(agent, network=AgentNetwork(model.hidden_size).eval().requires_grad_(False))
            arms[f"{name}, untrained"] = Arm({name: blind}, {"temperature": 1.0})
    for text in args.arm:
        name, path, strengths = _split(text)
        arm = load_guide(path, form="product")  # the paper's, whatever the guide's card says
        for strength in map(float, strengths.split(",")):
            arms[f"{name} (ARM), {strength:g}"] = Arm({name: arm}, {"weights": {name: strength}, "temperature": 1.0})
    return arms


def _split(text: str) -> tuple[str, str, str]:
    """`NAME=PATH:LIST` in its three parts."""
    name, _, rest = text.partition("=")
    path, _, values = rest.rpartition(":")
    return name, path, values


def _row(
    answers: Sequence[Answer],
    scores: dict[str, list[float]],
    base: dict[str, list[float]],
    objectives: Sequence[str],
) -> dict[str, Any]:
    row: dict[str, Any] = {
        "rewards": {name: _figures(mean_interval(values)) for name, values in scores.items()},
        "kl": _figures(mean_interval([answer.kl or 0.0 for answer in answers])),
        "mean_length": round(sum(len(answer.token_ids) for answer in answers) / len(answers), 1),
        "repetition": round(sum(map(_repetition, answers)) / len(answers), 3),
    }
    if scores != base:
        row["gain_over_greedy"] = {
            name: _figures(difference_interval(values, base[name])) for name, values in scores.items()
        }
        for label in ("", "judge_"):
            names = [label + name for name in objectives if label + name in scores]
            if len(names) > 1:
                found = preference_rate({name: scores[name] for name in names}, {name: base[name] for name in names})
                row[f"{label}preference_rate"] = _figures(found.rate)
    if answers[0].trace and answers[0].trace[0].choice is not None:
        seen = acceptance_of(answers)
        row["agent"] = {
            "acceptance_rate": round(seen.acceptance_rate, 3),
            "mean_index": round(seen.mean_index, 2),
            "none_accepted": round(seen.num_none / max(1, seen.num_asked), 3),
            "not_asked": round(seen.num_only / seen.num_tokens, 3),
            "calls_per_token": round(seen.num_examined / seen.num_tokens, 2),
        }
    return row


def _repetition(answer: Answer) -> float:
    """The share of 3-grams of tokens that stood in the answer before (rep-3 of arXiv 2402.01694, as a share)."""
    ids = answer.token_ids
    grams = [ids[at : at + 3] for at in range(len(ids) - 2)]
    return 1 - len(set(grams)) / (len(grams) + 1) if grams else 0.0


def _figures(interval: Any) -> list[float]:
    return [round(value, 4) for value in (interval.value, interval.low, interval.high)]


if __name__ == "__main__":
    sys.exit(main())
