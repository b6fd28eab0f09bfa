from __future__ import annotations

import json

from .conftest import Run, Tiny

SMALL = ["--num-new-tokens", "4", "--num-prompt-tokens", "5", "--num-repeats", "1"]
KEYS = {"batch", "weight", "tokens_per_s", "base_tokens_per_s", "ratio_to_base", "peak_memory_mb"}


def test_json_has_a_row_for_each_batch_and_weight(run: Run, tiny: Tiny) -> None:
    argv = ["bench", "decode", "--model", tiny.model, "--guide", f"a={tiny.lora}", "--batch", "1,3", *SMALL]
    outcome = run(*argv, "--json")
    assert outcome.code == 0, outcome.err
    report = json.loads(outcome.out)
    assert [(row["batch"], row["weight"]) for row in report["rows"]] == [
        *((1, None), (1, 0.0), (1, 1.0)),
        *((3, None), (3, 0.0), (3, 1.0)),
    ]
    for row in report["rows"]:
        assert set(row) >= KEYS
        assert row["ratio_to_base"] == row["tokens_per_s"] / row["base_tokens_per_s"]
        assert row["peak_memory_mb"] > 10
    assert set(report) == {"rows", "workload", "machine", "versions", "commit"}
    assert {"trimtab", "torch", "transformers"} <= set(report["versions"])
    assert report["machine"]["num_cores"] >= 1
    assert "repetition 1 of 1" in outcome.err


def test_a_table_for_people_without_guides(run: Run, tiny: Tiny) -> None:
    outcome = run("bench", "decode", "--model", tiny.model, "--batch", "2", *SMALL)
    assert outcome.code == 0, outcome.err
    heading, row = outcome.out.splitlines()
    assert heading.startswith("batch ")
    assert row.split()[:3] == ["2", "no", "guides"]
