"""An agent's engine does not start under settings that it cannot honour, and says why; the others it sets itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm")

from tests.engines.vllm.agent_world import build
from tests.engines.vllm.rig import run_program, runner_environment
from trimtab.core import Selection
from trimtab.guides.agent import Agent, AgentNetwork
from trimtab.mixing.rules import MostAccepted, RandomAccepted
from trimtab.storage.loading import save_guide

PROGRAM = """
import json, os, sys
from pathlib import Path


def main(given, answer):
    directory, trials = json.loads(given.read_text())
    from trimtab.engines.vllm.plugin import register
    register()
    from vllm.engine.arg_utils import EngineArgs
    said = []
    for entries, environment, options in trials:
        config = Path(directory) / "config.json"
        before = config.read_text()
        config.write_text(json.dumps({**json.loads(before), **entries}))
        os.environ.update(environment)
        try:
            made = EngineArgs(model=directory, dtype="float32", max_model_len=64, **options).create_engine_config()
            said.append({
                "async": made.scheduler_config.async_scheduling,
                "scheduler": str(made.scheduler_config.scheduler_cls),
                "canvas": made.num_speculative_tokens,
                "sampling": made.model_config.get_diff_sampling_param(),
                "processors": made.model_config.logits_processors,
            })
        except Exception as error:
            said.append(str(error))
        os.environ["VLLM_USE_V2_MODEL_RUNNER"] = "1"
        config.write_text(before)
    answer.write_text(json.dumps(said))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
"""

LORA = {"enable_lora": True}
NGRAM = {"speculative_config": {"method": "ngram", "num_speculative_tokens": 2, "prompt_lookup_max": 3}}
TRIALS: dict[str, tuple[dict[str, Any], dict[str, str], dict[str, Any], str]] = {
    "runner": ({}, {"VLLM_USE_V2_MODEL_RUNNER": "0"}, {}, "needs vLLM's Model Runner V2; this engine would use V1"),
    "async": ({}, {}, {"async_scheduling": True}, "Leave --async-scheduling out"),
    "speculation": ({}, {}, NGRAM, "Leave --speculative-config out"),
    "pipeline": ({}, {}, {"pipeline_parallel_size": 2}, "Use --tensor-parallel-size instead"),
    "lora": ({}, {}, LORA, "Merge the adapter into the base"),
    "embeds": ({}, {}, {"enable_prompt_embeds": True}, "leave --enable-prompt-embeds out"),
    "canvas": ({}, {}, {"diffusion_config": {"canvas_length": 8}}, "Leave --diffusion-config out"),
    "no canvas": ({"canvas_length": None}, {}, {}, "pack the directory again"),
}


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Trial -> what vLLM said of it, or the settings that it made."""
    directory = tmp_path_factory.mktemp("start")
    world = build(directory)
    trials = {name: trial[:3] for name, trial in TRIALS.items()}
    for rule in (RandomAccepted(), MostAccepted()):
        name = type(rule).__name__
        save_guide(Agent(world.agent.network, selection=Selection(rule)), directory / name)
        trials[name] = (_with(world.packed, path=str(directory / name)), {}, {})
    save_guide(Agent(world.agent.network, selection=Selection(world.agent.selection.rule, top_k=0)), directory / "all")
    save_guide(Agent(AgentNetwork(16, 16)), directory / "narrow")
    trials["all"] = (_with(world.packed, path=str(directory / "all")), {}, {})
    trials["narrow"] = (_with(world.packed, path=str(directory / "narrow")), {}, {})
    trials["threshold"] = (_with(world.packed, weight=1.5), {}, {})
    trials["recurrent"] = (_with(world.packed, architectures=["MambaForCausalLM"]), {}, {})
    trials["two"] = (_with(world.packed, twice=True), {}, {})
    (world.packed / "generation_config.json").write_text(json.dumps({"temperature": 0.6, "eos_token_id": [1, 2]}))
    trials["good"] = ({}, {}, {})
    environment = runner_environment("v2", directory / "rig")
    answers = run_program(PROGRAM, [str(world.packed), list(trials.values())], environment, directory)
    return dict(zip(trials, answers, strict=True))


def _with(
    packed: Path, *, twice: bool = False, architectures: list[str] | None = None, **changes: Any
) -> dict[str, Any]:
    entry = json.loads((packed / "config.json").read_text())["trimtab"]
    entry["architectures"] = architectures or entry["architectures"]
    guides = [{**entry["guides"][0], **changes}]
    if twice:
        guides.append({**entry["guides"][0], "name": "kind", "kind": "arm"})
    return {"trimtab": {**entry, "guides": guides}}


@pytest.mark.parametrize("name", TRIALS)
def test_a_setting_that_cannot_be_honoured_is_refused(said: dict[str, Any], name: str) -> None:
    assert isinstance(said[name], str)
    assert TRIALS[name][3] in said[name]


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("RandomAccepted", "chooses by RandomAccepted, which asks about every candidate"),
        ("MostAccepted", "chooses by MostAccepted, which asks about every candidate"),
        ("all", "asks for top_k 0 (0: all)"),
        ("narrow", "reads states of width 16; the model's have 32"),
        ("threshold", "1.5 is not an acceptance threshold"),
        ("recurrent", "MambaForCausalLM keeps a recurrent state"),
        ("two", "one agent, and no other guide"),
    ],
)
def test_an_agent_that_cannot_run_is_refused(said: dict[str, Any], name: str, problem: str) -> None:
    assert isinstance(said[name], str)
    assert problem in said[name]


def test_what_nobody_chose_is_set(said: dict[str, Any]) -> None:
    good = said["good"]
    assert good["async"] is False
    assert good["scheduler"].endswith("DiffusionScheduler")
    assert good["canvas"] == 1
    assert good["sampling"] == {}  # a temperature there would be refused in every request that gives none
    assert any(path.endswith("AgentRequests") for path in good["processors"])
