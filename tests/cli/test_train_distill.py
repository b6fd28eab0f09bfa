"""`trimtab train distill` as a user meets it: streams, exit codes, refusals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("trl")

from .conftest import Run, Tiny

SMALL = (
    *("--towards", "be glad", "--epochs", "2", "--batch-size", "2", "--gradient-accumulation", "2"),
    *("--max-new-tokens", "5", "--learning-rate", "0.01", "--eval-share", "0.3"),
)


@pytest.fixture
def prompts(tmp_path: Path) -> str:
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"say {number}"}) + "\n" for number in range(7)), encoding="utf-8")
    return str(path)


def command(tiny: Tiny, prompts: str, out: Path, *more: str) -> tuple[str, ...]:
    told = ("train", "distill", "--model", tiny.model, "--prompts", prompts, "--out", str(out))
    return (*told, *SMALL, *more)


@pytest.mark.parametrize("student", [("--lora-targets", "q_proj,v_proj"), ("--head-only", "4")])
def test_a_run_prints_one_json_object_and_its_guide_steers(
    run: Run, tiny: Tiny, prompts: str, tmp_path: Path, student: tuple[str, ...]
) -> None:
    out, sentence = tmp_path / "guide", tmp_path / "sad.txt"
    sentence.write_text("be sad\n", encoding="utf-8")
    outcome = run(*command(tiny, prompts, out, *student, "--away", f"@{sentence}", "--strength", "2", "--json"))
    assert outcome.code == 0, outcome.err
    result = json.loads(outcome.out)
    assert (result["out"], result["num_prompts"], result["num_eval_prompts"]) == (str(out), 5, 2)
    assert result["eval_kl"] == result["metrics"]["eval_kl"] > 0
    lines = [line for line in outcome.err.splitlines() if line.startswith("step ")]
    assert all(word in lines[0] for word in ("loss", "KL", "of the base", "tokens/s"))
    assert "nats an answer from what the sentences do, on 2 held-out prompts" in outcome.err
    card = json.loads((out / "guide.json").read_text())
    assert card["sentences"] == {"towards": "be glad", "away": "be sad"}
    assert card["hyperparameters"]["strength"] == 2.0
    outcome = run("check", str(out))
    assert "measured: KL from the sentences' mix " in outcome.out
    assert "nats an answer on 2 held-out prompts; the base's " in outcome.out
    asked = ("generate", "--model", tiny.model, "--prompt", "say 3", "--max-new-tokens", "4", "--seed", "1")
    outcome = run(*asked, "--guide", f"glad={out}")
    assert outcome.code == 0, outcome.err


def test_what_cannot_be_distilled_is_refused_in_one_line(run: Run, tiny: Tiny, prompts: str, tmp_path: Path) -> None:
    refused = {
        ("--towards", " "): "--towards is empty",
        ("--away", "be glad"): "Both sentences of a guide are the same",
        ("--away", "@nowhere.txt"): "--away @nowhere.txt: No such file",
        ("--full",): "--full trains the very model",
        ("--strength", "0"): "--strength",
        ("--place", "front"): "--place",
        ("--head-only", "4", "--lora-rank", "4"): "--lora-rank is 4, and --head-only is the rank",
        ("--eval-share", "0", "--eval-steps", "2"): "--eval-steps is 2",
        ("--max-new-tokens", "95"): "(--max-new-tokens)",
    }
    for flags, problem in refused.items():
        outcome = run(*command(tiny, prompts, tmp_path / "guide", *flags))
        assert outcome.code in (1, 2), flags
        assert problem in outcome.err, (flags, outcome.err)
        assert not (tmp_path / "guide").exists()
    without = [word for word in command(tiny, prompts, tmp_path / "guide") if word not in ("--towards", "be glad")]
    outcome = run(*without)
    assert "--towards" in outcome.err
    assert outcome.code != 0
