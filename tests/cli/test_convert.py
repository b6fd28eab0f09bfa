"""`trimtab convert`: from a released checkpoint to a guide that steers."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from tests.cli.conftest import Run, Tiny
from trimtab.guides.agent import Agent, AgentNetwork
from trimtab.storage.loading import load_guide


def test_a_released_agent_becomes_a_guide(run: Run, tmp_path: Path, tiny: Tiny) -> None:
    network = AgentNetwork(32, 64)
    torch.save(network.state_dict(), tmp_path / "actor_9.pth")
    out = tmp_path / "agent"
    outcome = run("convert", "agent", str(tmp_path / "actor_9.pth"), str(out), "--width", "32", "--base", "x", "--json")
    assert outcome.code == 0, outcome.err
    assert json.loads(outcome.out) == {"out": str(out), "kind": "agent"}
    agent = load_guide(out)
    assert isinstance(agent, Agent)
    assert (agent.trained_on, agent.card["source"]["file"]) == ("x", "actor_9.pth")
    steered = run("generate", "--model", tiny.model, "--guide", f"a={out}", "--prompt", "hi", "--max-new-tokens", "4")
    assert steered.code == 0, steered.err
    again = run("convert", "agent", str(tmp_path / "actor_9.pth"), str(out), "--width", "32")
    assert again.code == 2
    assert "already exists" in again.err
    assert run("convert", "agent", str(tmp_path / "actor_9.pth"), str(out), "--width", "32", "--overwrite").code == 0


def test_what_is_no_agent_of_this_width_is_refused(run: Run, tmp_path: Path) -> None:
    torch.save(AgentNetwork(8, 16).state_dict(), tmp_path / "actor.pth")
    outcome = run("convert", "agent", str(tmp_path / "actor.pth"), str(tmp_path / "agent"), "--width", "4096")
    assert outcome.code == 2
    assert "--width 8" in outcome.err
    assert not (tmp_path / "agent").exists()
