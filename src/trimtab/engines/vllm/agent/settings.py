"""What an agent's engine asks of vLLM's settings, and what a packed directory has to say for it.

Settings that cannot be honoured are refused at start-up, in a sentence; those that nobody chose are set.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from trimtab.engines.vllm.manifest import AGENT_ARCHITECTURE, Manifest
from trimtab.errors import CompatibilityError
from trimtab.guides.agent import Agent
from trimtab.mixing.rules import FirstAccepted
from trimtab.storage.directories import read_guide_card

MOST_CANDIDATES = 1024
"""The most candidates of one token; each costs a step of the engine."""


@dataclass(frozen=True, slots=True)
class EngineBase:
    """What `Agent.bind` asks of a base."""

    hidden_size: int
    name: str
    device: torch.device


def agent_overrides() -> dict[str, Any]:
    """What config.json needs beside the base's own entries and `trimtab`.

    `canvas_length` makes vLLM schedule a candidate as a diffusion model's canvas: one token, fed, then kept or not.
    """
    return {"architectures": [AGENT_ARCHITECTURE], "canvas_length": 1}


def check_agent_engine(vllm_config: Any) -> None:
    """For `verify_and_update_config`: raise CompatibilityError for settings that an agent cannot run under.

    Where nobody has chosen, it sets synchronous scheduling, a canvas of one token and vLLM's own sampling defaults, and
    has vLLM ask `agent_requests` about every request. Raises CheckpointError or BaseMismatchError for an agent that is
    damaged or of another width.
    """
    from vllm.config.diffusion import DiffusionConfig

    for check, problem in REFUSED:
        if check(vllm_config):
            raise CompatibilityError(problem)
    model_config = vllm_config.model_config
    manifest = Manifest.of(model_config.hf_config)
    base = EngineBase(model_config.hf_text_config.hidden_size, str(model_config.model), torch.device("cpu"))
    read_agent(manifest, base)
    vllm_config.scheduler_config.async_scheduling = False
    if model_config.generation_config == "auto":  # its temperature would be refused in requests that give none
        model_config.generation_config = "vllm"
    if vllm_config.diffusion_config is None:
        vllm_config.diffusion_config = DiffusionConfig(canvas_length=1)
    path = "trimtab.engines.vllm.agent.requests:AgentRequests"
    others = model_config.logits_processors or []
    model_config.logits_processors = [*(other for other in others if other != path), path]


def read_agent(manifest: Manifest, base: EngineBase) -> Agent:
    """The agent of a packed directory, on the base's device, its weight the manifest's.

    Raises CompatibilityError for another rule than `FirstAccepted` or too many candidates, CheckpointError for a
    damaged directory, BaseMismatchError for another width of states.
    """
    if [guide.kind for guide in manifest.guides] != ["agent"]:
        raise CompatibilityError(
            "An accept-reject agent has an engine of its own in vLLM: one agent, and no other guide. Pack it alone, or "
            "use the built-in engine, where both run in one batch."
        )
    guide = manifest.guides[0]
    directory = Path(guide.path)
    agent = Agent.of_directory(directory, read_guide_card(directory))
    rule, top_k = agent.selection.rule, agent.selection.top_k
    if not isinstance(rule, FirstAccepted):
        raise CompatibilityError(
            f"Agent {guide.name} chooses by {type(rule).__name__}, which asks about every candidate; in vLLM each "
            "costs a step. Accepted there: FirstAccepted. Use the built-in engine, or set selection.rule to `first` in "
            f"{directory / 'guide.json'}."
        )
    if not 1 <= top_k <= MOST_CANDIDATES:
        raise CompatibilityError(
            f"Agent {guide.name} asks for top_k {top_k} (0: all); in vLLM each candidate costs a step. Accepted there: "
            f"1 to {MOST_CANDIDATES}. Change selection.top_k in {directory / 'guide.json'}."
        )
    agent.selection.rule.check_weight(guide.weight)
    return agent.bind(base)


def _other_canvas(config: Any) -> bool:
    asked = config.diffusion_config
    return getattr(config.model_config.hf_config, "canvas_length", None) != 1 or (
        asked is not None and asked.canvas_length != 1
    )


REFUSED: tuple[tuple[Callable[[Any], bool], str], ...] = (
    (
        lambda config: not config.use_v2_model_runner,
        "An accept-reject agent needs vLLM's Model Runner V2; this engine would use V1. Leave "
        "VLLM_USE_V2_MODEL_RUNNER=0 out, and run where Triton is (a GPU); elsewhere use the built-in engine.",
    ),
    (
        lambda config: bool(config.scheduler_config.async_scheduling),
        "An accept-reject agent decides what is fed next, so a step cannot be scheduled before the last one is over. "
        "Leave --async-scheduling out.",
    ),
    (
        lambda config: config.speculative_config is not None,
        "An accept-reject agent feeds its candidates the way that speculative decoding feeds its drafts, so the two "
        "exclude each other. Leave --speculative-config out.",
    ),
    (
        lambda config: config.parallel_config.pipeline_parallel_size > 1,
        "An accept-reject agent was not tried under pipeline parallelism. Use --tensor-parallel-size instead, and "
        "leave --pipeline-parallel-size out.",
    ),
    (
        lambda config: (
            config.parallel_config.prefill_context_parallel_size > 1
            or config.parallel_config.decode_context_parallel_size > 1
        ),
        "An accept-reject agent was not tried under context parallelism. Leave --prefill-context-parallel-size and "
        "--decode-context-parallel-size out.",
    ),
    (
        lambda config: bool(config.cache_config.kv_sharing_fast_prefill),
        "An accept-reject agent reads the state after a prompt's last token, which --kv-sharing-fast-prefill skips. "
        "Leave it out.",
    ),
    (
        lambda config: config.kv_transfer_config is not None,
        "An accept-reject agent was not tried with keys and values from another engine. Leave "
        "--kv-transfer-config out.",
    ),
    (
        lambda config: bool(config.model_config.enable_prompt_embeds),
        "An accept-reject agent's engine reads token ids; leave --enable-prompt-embeds out.",
    ),
    (
        lambda config: config.lora_config is not None,
        "vLLM's own adapters (--enable-lora) cannot be switched under an accept-reject agent. Merge the adapter into "
        "the base.",
    ),
    (
        _other_canvas,
        "An accept-reject agent's engine feeds one candidate at a time: a canvas of one token. Leave "
        "--diffusion-config out, and pack the directory again if its config.json has no canvas_length 1.",
    ),
)
"""Whether a setting cannot be honoured, and what is said of it."""
