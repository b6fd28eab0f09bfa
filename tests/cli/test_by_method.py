"""`generate --method`: any method of a comparison, with its strength and options, on the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from trimtab.core import SamplingParams
from trimtab.methods.catalogue import build_policy
from trimtab.storage.loading import load_model

from .conftest import Run, Tiny


def answers(run: Run, *argv: str) -> list[dict[str, Any]]:
    outcome = run("generate", *argv, "--max-new-tokens", "5", "--seed", "3", "--json")
    assert outcome.code == 0, outcome.err
    return [json.loads(line) for line in outcome.out.splitlines()]


def test_a_method_gives_its_policys_answers(run: Run, tiny: Tiny) -> None:
    argv = ["--model", tiny.model, "--method", "best-of-n", "--guide", "best=sentiment:3"]
    rows = answers(run, *argv, "--prompt", "One", "--prompt", "Two", "--batch-size", "1")
    policy = build_policy(load_model(tiny.model), "best-of-n", {"scorer": "sentiment"})
    prompts = [[{"role": "user", "content": text}] for text in ("One", "Two")]
    found = list(policy.answer(prompts, 3.0, SamplingParams(max_new_tokens=5), [3, 4]))
    assert [row["token_ids"] for row in rows] == [list(answer.token_ids) for answer in found]
    assert [row["text"] for row in rows] == [answer.text for answer in found]
    assert [row["weights"] for row in rows] == [{"best-of-n": 3.0}] * 2
    assert [row["seed"] for row in rows] == [3, 4]


def test_several_guides_and_a_strength_for_each(run: Run, tiny: Tiny) -> None:
    mixed = answers(run, "--model", tiny.model, "--guide", f"a={tiny.separate}:0.5", "--prompt", "One")
    own = ["--method", "genarm", "--guide", f"a={tiny.separate}:0.5", "--guide", f"b={tiny.lora}:0"]
    assert [row["text"] for row in answers(run, "--model", tiny.model, *own, "--prompt", "One")] == [
        row["text"] for row in mixed
    ]


def test_a_tuned_policy_at_one_is_the_policy(run: Run, tiny: Tiny) -> None:
    own = answers(run, "--model", tiny.separate, "--prompt", "One")
    tuned = ["--model", tiny.model, "--method", "policy", "--guide", f"p={tiny.separate}:1"]
    assert [row["text"] for row in answers(run, *tuned, "--prompt", "One")] == [row["text"] for row in own]


def test_a_method_is_part_of_the_settings_that_a_file_is_continued_with(run: Run, tiny: Tiny, tmp_path: Path) -> None:
    argv = ["generate", "--model", tiny.model, "--method", "sharpened", "--prompt", "One", "--max-new-tokens", "3"]
    out = ["--out", str(tmp_path / "answers.jsonl")]
    assert run(*argv, "--strength", "1", *out).code == 0
    assert run(*argv, "--strength", "1", *out, "--resume").code == 0
    refused = run(*argv, "--strength", "2", *out, "--resume")
    assert refused.code != 0
    assert "method" in refused.err


WRONG = {
    "an unknown method": (["--method", "argz"], "did you mean 'args'"),
    "an unknown option": (["--method", "best-of-n", "--guide", "b=sentiment:2", "--option", "sing=1"], "'sign'"),
    "no strength": (["--method", "sharpened"], "needs a strength"),
    "two strengths": (["--method", "best-of-n", "--guide", "b=sentiment:2", "--strength", "3"], "given twice"),
    "two guides for one": (
        ["--method", "best-of-n", "--guide", "b=sentiment:2", "--guide", "c=offence:2"],
        "one guide",
    ),
    "a guide for none": (["--method", "sharpened", "--guide", "b=sentiment:2"], "reads no guide"),
    "nothing to read": (["--method", "args", "--strength", "1"], "needs reward"),
    "an option of no method": (["--option", "top_k=3"], "--method NAME"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_means_nothing_is_refused_before_anything_is_loaded(run: Run, what: str) -> None:
    argv, words = WRONG[what]
    outcome = run("generate", "--model", "/nowhere", *argv, "--prompt", "One")
    assert outcome.code != 0
    assert words in outcome.err


def test_weights_of_a_row_and_a_method_do_not_go_together(run: Run, tiny: Tiny, tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(json.dumps({"prompt": "One", "weights": {"b": 0.5}}) + "\n")
    argv = ["--model", tiny.model, "--method", "genarm", "--guide", f"b={tiny.lora}:1", "--prompts", str(path)]
    outcome = run("generate", *argv)
    assert outcome.code != 0
    assert "one strength for all" in outcome.err
