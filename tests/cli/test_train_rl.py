"""`trimtab train rl` as a user meets it: streams, exit codes, refusals."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import pytest

pytest.importorskip("trl")

from .conftest import Run, Tiny

SMALL = (
    *("--epochs", "2", "--batch-size", "4", "--gradient-accumulation", "2", "--num-generations", "4"),
    *("--max-new-tokens", "5", "--learning-rate", "0.01", "--kl-weight", "0.1", "--lora-targets", "q_proj,v_proj"),
)


def length(prompts: Sequence[object], texts: Sequence[str]) -> list[float]:
    """How long the answer is."""
    return [float(len(text)) for text in texts]


def never(prompts: Sequence[object], texts: Sequence[str]) -> list[float]:
    return [math.nan] * len(texts)


@pytest.fixture
def prompts(tmp_path: Path) -> str:
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"say {number}"}) + "\n" for number in range(5)), encoding="utf-8")
    return str(path)


def command(tiny: Tiny, prompts: str, out: Path, *more: str) -> tuple[str, ...]:
    told = ("train", "rl", "--model", tiny.model, "--prompts", prompts, "--out", str(out))
    return (*told, "--reward", f"length={__name__}:length:0.5", *SMALL, *more)


def test_a_run_prints_one_json_object_and_its_curve_on_the_other_stream(
    run: Run, tiny: Tiny, prompts: str, tmp_path: Path
) -> None:
    out = tmp_path / "policy"
    outcome = run(*command(tiny, prompts, out, "--reward", f"cost={__name__}:length:-0.25", "--json"))
    assert outcome.code == 0, outcome.err
    result = json.loads(outcome.out)
    assert (result["out"], result["num_prompts"], result["num_answers"], result["num_dropped"]) == (str(out), 5, 40, 0)
    metrics = result["metrics"]
    assert result["reward"] == metrics["reward"] == pytest.approx(0.25 * metrics["reward_length"])
    lines = [line for line in outcome.err.splitlines() if line.startswith("step ")]
    assert len(lines) == 5
    assert all(word in lines[-1] for word in ("5/5", "reward", "length", "cost", "KL", "tokens", "s/step"))
    assert "at the end of 40 answers to 5 prompts" in outcome.err
    card = json.loads((out / "guide.json").read_text())
    assert (card["kind"], card["data"]["files"], card["data"]["template"]) == ("policy", ["prompts.jsonl"], "auto")
    assert [term["multiplier"] for term in card["rewards"]] == [0.5, -0.25]


def test_the_policy_steers_and_makes_a_soup(run: Run, tiny: Tiny, prompts: str, tmp_path: Path) -> None:
    out, mixed = tmp_path / "policy", tmp_path / "soup"
    outcome = run(*command(tiny, prompts, out))
    assert (outcome.code, outcome.out) == (0, ""), outcome.err
    assert run("soup", f"{out}:0.5", f"{tiny.lora}:0.5", "--out", str(mixed)).code == 0
    asked = ("generate", "--model", tiny.model, "--prompt", "say 3", "--max-new-tokens", "4", "--seed", "1")
    for path in (out, mixed):
        outcome = run(*asked, "--guide", f"policy={path}")
        assert outcome.code == 0, outcome.err


def test_what_cannot_be_trained_is_refused_in_one_line(run: Run, tiny: Tiny, prompts: str, tmp_path: Path) -> None:
    refused = {
        ("--num-generations", "3"): "8 answers, which --num-generations 3 to a prompt",
        ("--num-generations", "1"): "whole number of at least 2",
        ("--lora-targets", "nothing"): "--lora-targets nothing",
        ("--reward", f"length={__name__}:length"): "Two rewards are named 'length'",
        ("--reward", "x=sentimnt"): "Did you mean 'sentiment'",
        ("--max-new-tokens", "95"): "more than the 96 that",
        ("--reward", f"x={__name__}:never", "--epochs", "30"): "64 episodes in a row have no finite reward",
        ("--kl-wait", "1"): "Did you mean '--kl-weight'",
    }
    for more, sentence in refused.items():
        outcome = run(*command(tiny, prompts, tmp_path / "policy", *more, "--overwrite"))
        assert outcome.code == 2, (more, outcome.err)
        assert sentence in outcome.err, (more, outcome.err)
        assert "Traceback" not in outcome.err
        assert not (tmp_path / "policy").exists()
