"""`trimtab judge` as a user meets it: what it prints, writes, resumes and refuses."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Run
from tests.evaluation.judged_runs import row, write_run
from tests.fake_judge import Reply, fake_judge, in_turn, prefers

KEY = "sk-very-secret-key"


@pytest.fixture
def comparison(tmp_path: Path) -> Path:
    """Twelve prompts; `longer` beats base on nine of them, `shorter` never does."""
    base = dict.fromkeys(range(12), "x" * 10)
    longer = {index: "y" * (11 if index < 9 else 9) for index in base}
    return write_run(tmp_path / "run", {"base": base, "longer": longer, "shorter": dict.fromkeys(base, "z")})


@pytest.fixture
def key(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    return KEY


def test_a_scorer_in_the_working_directory_judges(
    comparison: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "judges_of_ones_own.py").write_text("def length(prompts, texts):\n    return map(len, texts)\n")
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    command = ("judge", str(comparison), "--judge", "scorer:judges_of_ones_own:length", "--json")
    assert run(*command).code == 2
    monkeypatch.chdir(tmp_path)
    outcome = run(*command)
    assert outcome.code == 0, outcome.err
    assert json.loads(outcome.out)["methods"][0]["win"] == 9


def test_a_judge_behind_an_endpoint(comparison: Path, run: Run, key: str) -> None:
    pytest.importorskip("openai")
    with fake_judge(prefers(len)) as fake:
        outcome = run("judge", str(comparison), "--judge", "openai:m", "--base-url", fake.base_url, "--json")
        again = run("judge", str(comparison), "--judge", "openai:m", "--base-url", fake.base_url)
    assert (outcome.code, again.code) == (0, 0), outcome.err + again.err
    result = json.loads(outcome.out)
    rates = {item["contender"]["method"]: item for item in result["methods"]}
    assert {name: (item["win"], item["tie"], item["loss"]) for name, item in rates.items()} == {
        "longer": (9, 0, 3),
        "shorter": (0, 0, 12),
    }
    assert rates["longer"]["win_rate"]["value"] == 0.75
    assert rates["longer"]["position"]["flipped"]["value"] == 0
    assert result["cost"] == {
        "num_calls": 48,
        "num_retries": 0,
        "prompt_tokens": 480,
        "completion_tokens": 144,
        "num_verdicts": 48,
        "num_missing": 0,
    }
    assert len(fake.requests) == 48  # nothing was asked twice
    assert "75.0 %" in again.out
    assert "9 / 0 / 3" in again.out
    assert "only 12 prompts" in again.out
    assert "48 calls" in again.out
    told = outcome.out + outcome.err + again.out + again.err
    written = "".join(path.read_text() for path in comparison.iterdir())
    assert KEY not in told + written
    assert fake.keys == [f"Bearer {KEY}"] * 48


def test_a_judge_that_likes_the_first_answer_gives_nobody_a_win(comparison: Path, run: Run) -> None:
    pytest.importorskip("openai")
    with fake_judge(in_turn([], Reply("[[A]]"))) as fake:
        outcome = run("judge", str(comparison), "--judge", "openai:m", "--base-url", fake.base_url, "--json")
    rates = json.loads(outcome.out)["methods"]
    assert [(item["win"], item["tie"], item["loss"]) for item in rates] == [(0, 12, 0)] * 2
    assert rates[0]["position"]["flipped"]["value"] == 1


def test_missing_verdicts_are_told(comparison: Path, run: Run) -> None:
    """One prompt's questions are refused, which is no reason to end with an error."""
    pytest.importorskip("openai")

    def moderated(request: dict[str, Any], number: int) -> Reply:
        refused = "question 3" in request["messages"][-1]["content"]
        return Reply(status=403, body='{"error": {"message": "flagged"}}') if refused else prefers(len)(request, number)

    with fake_judge(moderated) as fake:
        outcome = run("judge", str(comparison), "--judge", "openai:m", "--base-url", fake.base_url)
    assert outcome.code == 0
    assert "1 of 12 pairs have no verdict" in outcome.out
    assert "flagged (4)" in outcome.out
    (found,) = json.loads((comparison / "win_rates.json").read_text())["judgements"]
    assert [item["missing"] for item in found["methods"]] == [1, 1]
    assert "flagged (4)" in found["reasons"][0]


def test_a_judge_that_gives_no_verdict_at_all_is_an_error(comparison: Path, run: Run) -> None:
    pytest.importorskip("openai")
    with fake_judge(in_turn([], Reply("What a question!"))) as fake:
        options = ("--base-url", fake.base_url, "--max-attempts", "1")
        outcome = run("judge", str(comparison), "--judge", "openai:m", *options)
    assert outcome.code == 2
    assert "no verdict on any of 48 questions: a reply without one mark: 'What a question!' (48)" in outcome.err
    assert not (comparison / "win_rates.json").exists()
    assert len((comparison / "judgements.jsonl").read_text().splitlines()) == 48


def test_it_goes_on_after_kill_9(comparison: Path, run: Run) -> None:
    pytest.importorskip("openai")

    def slow(request: dict[str, Any], number: int) -> Reply:
        time.sleep(0.1)
        return prefers(len)(request, number)

    with fake_judge(slow) as fake:
        argv = ["judge", str(comparison), "--judge", "openai:m", "--base-url", fake.base_url]
        process = subprocess.Popen(
            [sys.executable, "-m", "trimtab.cli.main", *argv, "--concurrency", "1"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
        )
        judgements = comparison / "judgements.jsonl"
        deadline = time.monotonic() + 100
        while time.monotonic() < deadline and not (judgements.exists() and judgements.read_text().count("\n") >= 5):
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        num_kept = judgements.read_text().count("\n")
        num_asked = len(fake.requests)
        assert 5 <= num_kept < 48
        outcome = run(*argv, "--concurrency", "8", "--json")
    assert outcome.code == 0, outcome.err
    assert len(fake.requests) - num_asked == 48 - num_kept
    assert json.loads(outcome.out)["methods"][0]["win"] == 9


def test_a_scorer_judges(comparison: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2]))
    outcome = run("judge", str(comparison), "--judge", "scorer:tests.cli.test_judge:lengths", "--baseline", "shorter")
    assert outcome.code == 0, outcome.err
    assert "against shorter at 1" in outcome.out
    (found,) = json.loads((comparison / "win_rates.json").read_text())["judgements"]
    assert [(item["contender"]["method"], item["win"]) for item in found["methods"]] == [("base", 12), ("longer", 12)]
    assert found["methods"][0]["position"] is None


def test_a_name_is_printed_letter_by_letter(run: Run, tmp_path: Path) -> None:
    name = "[bold]:smile: $x$ [/]"
    directory = write_run(tmp_path / "run", {"base": {0: "x", 1: "y"}, name: {0: "good", 1: "bad"}})
    outcome = run("judge", str(directory), "--judge", "scorer:sentiment")
    assert outcome.code == 0, outcome.err
    assert outcome.out.count(name) >= 2  # its row, and what is said of it


def test_less_offence_is_better(comparison: Path, run: Run) -> None:
    pytest.importorskip("profanity_check")
    outcome = run("judge", str(comparison), "--judge", "scorer:offence", "--json")
    assert outcome.code == 0, outcome.err
    assert json.loads(outcome.out)["description"].startswith("the answer with less of")


def lengths(prompts: object, texts: list[str]) -> list[float]:
    """How long an answer is."""
    return [float(len(text)) for text in texts]


def test_the_strength_is_the_one_chosen_on_validation_prompts(comparison: Path, run: Run) -> None:
    rows = [
        row("longer", index, "v" * (20 if strength == 2.0 else 3), strength=strength, split=split)
        for strength in (1.0, 2.0)
        for split in ("validation", "test")
        for index in range(12)
        if (strength, split) != (1.0, "test")  # those are there
    ]
    with (comparison / "answers.jsonl").open("a") as stream:
        stream.writelines(json.dumps(one.as_json()) + "\n" for one in rows)
    arguments = ("judge", str(comparison), "--judge", "scorer:tests.cli.test_judge:lengths", "--json")
    chosen = json.loads(run(*arguments).out)["methods"][0]
    assert (chosen["contender"], chosen["win"]) == ({"method": "longer", "strength": 2.0}, 12)
    given = json.loads(run(*arguments, "--strength", "longer=1").out)["methods"][0]
    assert (given["contender"], given["win"]) == ({"method": "longer", "strength": 1.0}, 9)
    refused = run(*arguments, "--strength", "longer=3")
    assert refused.code == 2
    assert "longer: there are no answers at strength 3. Give --strength longer=VALUE; there are: 1; 2." in refused.err


def test_export(comparison: Path, run: Run, tmp_path: Path) -> None:
    target = tmp_path / "exported"
    outcome = run("judge", str(comparison), "--export", "alpaca_eval", str(target), "--json")
    assert outcome.code == 0, outcome.err
    assert sorted(path.name for path in target.iterdir()) == ["base-0.json", "longer-1.json", "shorter-1.json"]
    items = json.loads((target / "shorter-1.json").read_text())
    assert items[0] == {"instruction": "question 0", "output": "z", "generator": "shorter-1", "dataset": "run"}
    assert run("judge", str(comparison), "--export", "alpaca_eval", str(target)).code == 2
    assert run("judge", str(comparison), "--export", "alpaca_eval", str(target), "--overwrite").code == 0


@pytest.mark.parametrize(
    ("argv", "complaint"),
    [
        ([], "Nothing to do: give --judge NAME"),
        (["--judge", "gpt"], "'gpt' is not a judge. Accepted: openai:MODEL"),
        (["--judge", "openai:m"], "set OPENAI_API_KEY in the environment, or give --base-url"),
        (["--judge", "scorer:sentimnet"], "Did you mean 'sentiment'"),
        (["--judge", "scorer:sentiment", "--base-url", "http://x/v1"], "Leave it out"),
        (["--judge", "openai:m", "--base-url", "x"], "not the address of an endpoint"),
        (["--judge", "scorer:sentiment", "--baseline", "bsae"], "Unknown method 'bsae'. Did you mean 'base'?"),
        (["--judge", "scorer:sentiment", "--strength", "longer"], "give METHOD=NUMBER"),
        (["--judge", "openai:m", "--lower-is-better"], "gives none"),
        (["--export", "alpaca", "out"], "Did you mean 'alpaca_eval'"),
    ],
)
def test_bad_input_is_refused(
    argv: list[str], complaint: str, comparison: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openai")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    outcome = run("judge", str(comparison), *argv)
    assert outcome.code == 2, outcome.err
    assert complaint in outcome.err


def test_answer_sets_that_differ_are_refused_before_anybody_is_asked(comparison: Path, run: Run) -> None:
    path = comparison / "answers.jsonl"
    lines = [
        line for line in path.read_text().splitlines() if '"shorter"' not in line or '"prompt_index": 7,' not in line
    ]
    path.write_text("\n".join(lines) + "\n")
    arguments = ("judge", str(comparison), "--judge", "scorer:tests.cli.test_judge:lengths")
    outcome = run(*arguments)
    assert outcome.code == 2
    assert "shorter at 1 has no answer to prompts that base at 0 answered (seed 0: prompts 7)" in outcome.err
    assert not (comparison / "judgements.jsonl").exists()
    assert run(*arguments, "--common").code == 0


def test_a_directory_that_is_no_run(run: Run, tmp_path: Path) -> None:
    outcome = run("judge", str(tmp_path), "--judge", "scorer:sentiment")
    assert outcome.code == 2
    assert "there is no run.json" in outcome.err
