"""`trimtab compare` with an agent behind gates: beside the agent without one, and beside chance."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from tests.cli.conftest import Run, Tiny
from trimtab.guides.agent import Agent, AgentNetwork
from trimtab.storage.loading import save_guide

pytest.importorskip("vaderSentiment")
pytest.importorskip("matplotlib")

from tests.cli.test_compare import answers, write


def test_an_agent_behind_gates_beside_itself(run: Run, tiny: Tiny, tmp_path: Path) -> None:
    torch.manual_seed(3)
    network = AgentNetwork(32, 16)
    torch.nn.init.normal_(network.output_linear.weight, std=3.0)
    agent = str(save_guide(Agent(network), tmp_path / "agent"))
    gates = [("matters", "significance:1.2"), ("chance", "random:0.5")]
    methods = [
        {"method": "base"},
        {"name": "agent", "method": "mara", "guide": agent, "strengths": [0.9]},
        *({"name": name, "method": "gated", "path": agent, "gate": gate, "strengths": [0.9]} for name, gate in gates),
    ]
    path = write(tmp_path, tiny, methods=methods, decoding={"max_new_tokens": 12}, seeds=[0])
    assert run("compare", str(path), "--out", str(tmp_path / "run")).code == 0
    rows = answers(tmp_path / "run")
    acted = {name: [row["acted"]["guide"] for row in rows if row["method"] == name] for name in ("agent", "matters")}
    assert set(acted["agent"]) == {1.0}
    assert 0.1 < sum(acted["matters"]) / len(acted["matters"]) < 0.9
    report = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert re.search(r"matters at strength 0.9 [\d.]+ a token \([1-9]\d*% fewer than agent at strength 0.9", report)
    wrong = [methods[0], {**methods[2], "gate": "bet:0.1", "strengths": [1]}]
    outcome = run("compare", str(write(tmp_path, tiny, methods=wrong)), "--out", str(tmp_path / "wrong"))
    assert (outcome.code, "it has no policy to bet against" in outcome.err) == (2, True)
