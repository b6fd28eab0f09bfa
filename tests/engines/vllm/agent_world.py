"""A tiny base, agents, the packed directory of both, and the tokens that the built-in engine gives: for tests.

`PROGRAM` answers prompts with vLLM in a process of its own; what it is given and answers is JSON (`rig.run_program`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tests.agents.sequential import make_accept
from tests.engines.vllm.rig import run_program, runner_environment
from tests.tiny import tiny_module, tiny_tokenizer
from trimtab.core import SamplingParams
from trimtab.decoding.decoder import Decoder
from trimtab.engines.vllm.agent.settings import agent_overrides
from trimtab.engines.vllm.manifest import KEY, Manifest, ServedGuide
from trimtab.guides.agent import Agent, AgentNetwork
from trimtab.models.hf import HFModel
from trimtab.storage.loading import save_guide

PROGRAM = """
import json, os, sys
from pathlib import Path

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"


def main(given, answer):
    asked = json.loads(given.read_text())
    from trimtab.engines.vllm.plugin import register
    register()
    from vllm import LLM, SamplingParams
    from vllm.exceptions import VLLMValidationError
    llm = LLM(asked["model"], dtype="float32", enforce_eager=True, disable_log_stats=False, **asked["options"])
    engine = llm.llm_engine
    if asked.get("unchecked"):  # as if the front end had let everything pass
        engine.input_processor.validate_logits_processors_params = lambda params: None
    assert engine.vllm_config.use_v2_model_runner
    found, refused, answers = [], [], 0
    for wrong in asked.get("refused", ()):
        try:
            llm.generate({"prompt_token_ids": [5]}, SamplingParams(detokenize=False, **wrong), use_tqdm=False)
            refused.append(None)
        except VLLMValidationError as error:
            refused.append(str(error))
    for requests in asked["rounds"]:
        tokens, waiting, step = {}, list(enumerate(requests)), 0
        while waiting or engine.has_unfinished_requests():
            for number, request in [one for one in waiting if one[1].get("at", 0) <= step]:
                params = SamplingParams(detokenize=False, **request["params"])
                engine.add_request(str(answers + number), {"prompt_token_ids": request["prompt"]}, params)
                waiting.remove((number, request))
            engine.abort_request([str(answers + n) for n, r in enumerate(requests) if r.get("gone_at") == step])
            for output in engine.step():
                tokens[int(output.request_id) - answers] = list(output.outputs[0].token_ids)
            step += 1
        answers += len(requests)
        found.append([tokens.get(number) for number in range(len(requests))])
    metrics = {}
    for metric in llm.get_metrics():
        if type(metric).__name__ == "Counter":
            metrics[metric.name] = metrics.get(metric.name, 0) + metric.value
    answer.write_text(json.dumps({"tokens": found, "refused": refused, "metrics": metrics}))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
"""


@dataclass
class World:
    """A base and an agent "safe", and where both are packed."""

    directory: Path
    base: HFModel
    agent: Agent

    @property
    def packed(self) -> Path:
        return self.directory / "packed"

    def run(self, options: Mapping[str, Any], rounds: Sequence[Sequence[Mapping[str, Any]]], **more: Any) -> Any:
        """What `PROGRAM` answers: each round's tokens, what refused requests were told, vLLM's counters."""
        given = {"model": str(self.packed), "options": dict(options), "rounds": rounds, **more}
        return run_program(PROGRAM, given, runner_environment("v2", self.directory / "rig"), self.directory)

    def expected(self, requests: Sequence[Mapping[str, Any]]) -> list[list[int]]:
        """The built-in engine's tokens."""
        asked = [(request["prompt"], _builtin(request["params"])) for request in requests]
        return [list(answer.token_ids) for answer in Decoder(self.base, {"safe": self.agent}).answers(asked)]


def build(directory: Path, *, share: float = 0.3, family: str = "llama", seed: int = 0) -> World:
    """A world in `directory` whose agent accepts about this share of candidates at ½."""
    module = tiny_module(family, seed=seed, head_dim=32, max_position_embeddings=256)
    base = HFModel(module)
    torch.manual_seed(seed + 1)
    network = AgentNetwork(base.hidden_size, 64).eval().requires_grad_(False)
    torch.nn.init.normal_(network.output_linear.weight, std=2.0)
    session = base.open()
    session.admit([[5, 9, 11], [7], [2, 40]])
    make_accept(network, session.peek(torch.arange(40).expand(3, -1)).flatten(0, 1), share)
    world = World(directory, base, Agent(network))
    module.save_pretrained(world.packed)
    tiny_tokenizer().save_pretrained(world.packed)
    save_guide(world.agent, directory / "agent")
    config = json.loads((world.packed / "config.json").read_text())
    guide = ServedGuide("safe", "agent", str(directory / "agent"), "head", world.agent.weight)
    entry = Manifest(str(world.packed), tuple(config["architectures"]), (guide,)).as_config()
    (world.packed / "config.json").write_text(json.dumps({**config, **agent_overrides(), KEY: entry}))
    return world


def request(prompt: Sequence[int], weight: float | None = None, num_tokens: int = 12, **params: Any) -> dict[str, Any]:
    """A request as vLLM's parameters say it; `at` and `gone_at` are steps of the engine."""
    timing = {name: params.pop(name) for name in ("at", "gone_at") if name in params}
    if weight is not None:
        params["extra_args"] = {"guidance": json.dumps({"safe": weight})}
    return {"prompt": list(prompt), "params": {"max_tokens": num_tokens, **params}, **timing}


def rejections(metrics: Mapping[str, float]) -> float:
    """Candidates that were fed and taken back."""
    kept, fed = (
        next(value for name, value in metrics.items() if word in name)
        for word in ("diffusion_num_committed_tokens", "diffusion_num_denoising_steps")
    )
    return fed - kept


def _builtin(params: Mapping[str, Any]) -> SamplingParams:
    said = json.loads(params.get("extra_args", {}).get("guidance", "{}"))
    same = {name: params[name] for name in ("top_k", "top_p", "ignore_eos") if name in params}
    return SamplingParams(weights=said, max_new_tokens=params["max_tokens"], seed=0, **same)
