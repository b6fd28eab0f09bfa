"""Accept-reject agents: our decoder against a plain sequential reference, and against the unguided base.

    python benchmarks/agent.py                     # SmolLM2-135M, an agent that accepts 30 % of the candidates
    python benchmarks/agent.py --training          # memory of a training run of 2000 episodes, on a small model

The reference (tests/agents/sequential.py) is the paper's decoding as its released code does it: one row, one candidate
at a time, with a key-value cache. Both get the same random network, its bias set so that it accepts the wanted share of
the candidates met along the reference's own answers, and the same prompts; their tokens are compared. The arms take
turns in one process, and figures are medians of their speeds with the smallest and the largest. Both sides answer the
same rows: at batch 1 a few, one after the other, at batch 16 all. --json writes the figures.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from tests.agents.sequential import Sequential, make_accept
from trimtab.decoding.decoder import Decoder
from trimtab.evaluation import throughput
from trimtab.evaluation.acceptance import acceptance_of, counted_passes
from trimtab.evaluation.prompt_sets import demo_prompts
from trimtab.guides.agent import Agent, AgentNetwork
from trimtab.prompts import encode_prompt
from trimtab.storage.loading import load_model

BATCHES = (1, 16)
AIMS = {"reference, batch 1": 2.0, "reference, batch 16": 10.0, "unguided generate, batch 1": 0.5}


def main() -> int:
    args = _arguments()
    if args.training:
        report: dict[str, Any] = _training_memory(args.episodes)
    else:
        report = _speeds(args)
    print(throughput.write_report(report, args.json))
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo", help="as in trimtab generate (%(default)s)")
    parser.add_argument("--share", type=float, default=0.3, help="of candidates that the agent accepts (%(default)s)")
    parser.add_argument("--num-new-tokens", type=int, default=24, help="a row (%(default)s)")
    parser.add_argument("--num-single-rows", type=int, default=4, help="rows taken one by one at batch 1 (%(default)s)")
    parser.add_argument("--num-repeats", type=int, default=3, help="turns of each arm (%(default)s)")
    parser.add_argument("--training", action="store_true", help="measure the memory of training instead")
    parser.add_argument("--episodes", type=int, default=2000, help="with --training (%(default)s)")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    return parser.parse_args()


def _speeds(args: argparse.Namespace) -> dict[str, Any]:
    model = load_model(args.model)
    prompts = [list(encode_prompt(model, chat)) for chat in demo_prompts()[: max(BATCHES)]]
    plain = Sequential(model.module, _network(model, prompts, args.share), model.eos_ids)
    agent = Agent(plain.network)  # type: ignore[arg-type]
    tokens = args.num_new_tokens
    alone = prompts[: args.num_single_rows]
    arms: dict[str, Callable[[], int]] = {
        "unguided generate, batch 1": lambda: sum(_generate(model, prompt, tokens) for prompt in alone),
        "reference, the rows of batch 1": lambda: _reference(plain, alone, tokens),
        "reference, the rows of batch 16": lambda: _reference(plain, prompts, tokens),
        "agent, batch 1": lambda: sum(_ours(model, agent, [prompt], tokens) for prompt in alone),
        "agent, batch 16": lambda: _ours(model, agent, prompts, tokens),
    }
    speeds: dict[str, list[float]] = {name: [] for name in arms}
    for turn in range(args.num_repeats + 1):  # the first turn warms up
        for name, arm in arms.items():
            started = time.perf_counter()
            count = arm()
            if turn:
                speeds[name].append(count / (time.perf_counter() - started))
    middle = {name: statistics.median(values) for name, values in speeds.items()}
    ratios = {
        "reference, batch 1": middle["agent, batch 1"] / middle["reference, the rows of batch 1"],
        "reference, batch 16": middle["agent, batch 16"] / middle["reference, the rows of batch 16"],
        "unguided generate, batch 1": middle["agent, batch 1"] / middle["unguided generate, batch 1"],
    }
    return {
        "tokens_per_s": {name: [round(v, 2) for v in (middle[name], min(vs), max(vs))] for name, vs in speeds.items()},
        "ratios": {name: round(ratio, 2) for name, ratio in ratios.items()},
        "aims": {name: f"at least {aim}: {'met' if ratios[name] >= aim else 'NOT met'}" for name, aim in AIMS.items()},
        "num_repeats": args.num_repeats,
        **_behaviour(model, agent, plain, prompts, tokens),
    }


def _network(model: Any, prompts: Sequence[Sequence[int]], share: float) -> AgentNetwork:
    """A random network that accepts a share of the candidates met: its bias is set on the states along its answers."""
    torch.manual_seed(0)
    network = AgentNetwork(model.hidden_size).eval().requires_grad_(False)
    for _ in range(3):  # what it accepts decides what it meets
        make_accept(network, _states_met(model, network, prompts), share)
    return network


def _states_met(model: Any, network: AgentNetwork, prompts: Sequence[Sequence[int]]) -> torch.Tensor:
    """[N, D]: what the network was asked about along the reference's answers."""
    states: list[torch.Tensor] = []
    hook = network.register_forward_pre_hook(lambda _, inputs: states.append(inputs[0].reshape(-1, model.hidden_size)))
    for prompt in prompts:
        Sequential(model.module, network, model.eos_ids).answer(prompt, 8, ignore_eos=True)
    hook.remove()
    return torch.cat(states)


def _generate(model: Any, prompt: Sequence[int], tokens: int) -> int:
    ids = torch.tensor([list(prompt)])
    model.module.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False
    )
    return tokens


def _reference(plain: Sequential, prompts: Sequence[Sequence[int]], tokens: int) -> int:
    return sum(len(plain.answer(prompt, tokens, ignore_eos=True)) for prompt in prompts)


def _ours(model: Any, agent: Agent, prompts: Sequence[Sequence[int]], tokens: int) -> int:
    answers = Decoder(model, {"agent": agent}).generate(prompts, max_new_tokens=tokens, ignore_eos=True, seed=0)
    return sum(len(answer.token_ids) for answer in answers)


def _behaviour(
    model: Any, agent: Agent, plain: Sequential, prompts: Sequence[Sequence[int]], tokens: int
) -> dict[str, Any]:
    """What the two did: the same tokens, how many candidates, how many forward passes."""
    before = plain.num_forwards
    expected = [plain.answer(prompt, tokens, ignore_eos=True) for prompt in prompts[:2]]
    reference = (plain.num_forwards - before) / (2 * tokens)
    found: dict[str, Any] = {"reference_forwards_per_token": round(reference, 3)}
    for batch in BATCHES:
        with counted_passes(model) as passes:
            decoder = Decoder(model, {"agent": agent})
            options = {"max_new_tokens": tokens, "ignore_eos": True, "seed": 0, "trace": True}
            answers = list(decoder.generate(prompts[:batch], **options))  # type: ignore[arg-type]
        seen = acceptance_of(answers)
        found[f"batch {batch}"] = {
            "passes_per_step": round(passes.num_passes / tokens, 3),
            "columns_per_token": round(passes.num_columns / (batch * tokens), 3),
            "acceptance_rate": round(seen.acceptance_rate, 3),
            "candidates_per_asked_token": round(seen.num_candidates / seen.num_asked, 2),
            "examined_per_asked_token": round(seen.num_examined / seen.num_asked, 2),
            "agent_calls_per_token": round(seen.num_examined / seen.num_tokens, 2),
            "equal_to_reference": [
                list(answer.token_ids) == want for answer, want in zip(answers, expected, strict=False)
            ],
        }
    return found


def _training_memory(episodes: int) -> dict[str, Any]:
    """Peak resident memory of a run, once the buffer is full; a model so small that the run takes minutes."""
    import resource

    from trimtab.models.tabular import TabularModel
    from trimtab.training.agent.train import AgentReward, AgentSettings, train_agent

    sizes: dict[int, tuple[int, int]] = {}

    def note(progress: Any) -> None:
        if progress.metrics:
            peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            sizes[progress.step] = (peak_kib, int(progress.metrics["buffer"]))

    settings = AgentSettings(
        episodes=episodes, max_new_tokens=16, hidden_dim=64, batch_size=64, warmup_batches=1, updates_per_episode=1,
        buffer_size=4096, logging_episodes=100, save_episodes=0,
    )  # fmt: skip
    reward = AgentReward("length", lambda prompts, texts: [float(len(text)) for text in texts])
    model = TabularModel.random(12, seed=0, order=2)
    with tempfile.TemporaryDirectory() as directory:
        train_agent(model, ["ab", "ba"], [reward], out=Path(directory) / "agent", settings=settings, progress=note)
    full = {step: size for step, (size, buffer) in sizes.items() if buffer == settings.buffer_size}
    first, last = full[min(full)], full[max(full)]
    return {
        "episodes": episodes,
        "peak_kib_by_episode": {step: size for step, (size, _) in sizes.items()},
        "buffer_full_from_episode": min(full),
        "growth_kib_after_that": last - first,
        "growth_bytes_an_episode": round((last - first) * 1024 / (max(full) - min(full)), 1),
    }


if __name__ == "__main__":
    sys.exit(main())
