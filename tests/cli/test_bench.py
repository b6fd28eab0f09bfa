from __future__ import annotations

import json
from pathlib import Path

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


def test_drafts_come_beside_rows_without_and_weights_of_fewer_bits_are_named(run: Run, tiny: Tiny) -> None:
    argv = ["bench", "decode", "--model", tiny.model, "--guide", f"a={tiny.lora}", "--batch", "1", "--weights", "0,1"]
    copies = ["--draft", "guide", "--draft-quantize", "float16"]
    outcome = run(*argv, *SMALL, *copies, "--quantize", "float16", "--json")
    assert outcome.code == 0, outcome.err
    rows = json.loads(outcome.out)["rows"]
    assert [(row["weight"], row["draft"]) for row in rows] == [
        (None, "none"),
        (0.0, "none"),
        (1.0, "none"),
        (1.0, "guide"),
    ]
    assert {(row["dtype"], row["quantize"]) for row in rows} == {("float32", "float16")}
    outcome = run(*argv, *SMALL, "--draft", "lookup")
    assert [line.split()[-6] for line in outcome.out.splitlines()[1:]] == ["none", "lookup"] * 3


def test_what_cannot_draft_is_refused_before_a_model_is_loaded(run: Run, tiny: Tiny) -> None:
    argv = ["bench", "decode", "--model", tiny.model, "--batch", "1", *SMALL]
    for more, problem in (
        (["--draft", "nowhere/none"], "nowhere/none"),
        (["--draft-quantize", "int8"], "give --draft guide with it"),
    ):
        outcome = run(*argv, *more)
        assert outcome.code == 2
        assert problem in outcome.err
        assert "loading" not in outcome.err


def test_passes_by_rows_and_tokens(run: Run, tiny: Tiny, tmp_path: Path) -> None:
    argv = ["bench", "pass", "--model", tiny.model, "--rows", "1,3", "--tokens", "2,4", "--num-repeats", "2"]
    outcome = run(*argv, "--num-prompt-tokens", "5", "--json")
    assert outcome.code == 0, outcome.err
    report = json.loads(outcome.out)
    assert [(one["rows"], one["tokens"]) for one in report["passes"]] == [(1, 2), (1, 4), (3, 2), (3, 4)]
    for one in report["passes"]:
        assert 0 < one["low"] <= one["milliseconds"] <= one["high"]
        assert one["ratio"] > 0
    assert set(report) == {"passes", "machine", "versions", "commit"}
    drawn = tmp_path / "curve.svg"
    outcome = run(*argv, "--num-prompt-tokens", "5", "--plot", str(drawn))
    assert outcome.code == 0, outcome.err
    assert len(outcome.out.splitlines()) == 5
    assert drawn.read_text().count("rows: ") == 2


def test_what_bench_pass_cannot_do_is_refused(run: Run, tiny: Tiny) -> None:
    argv = ["bench", "pass", "--model", tiny.model]
    for more, problem in (
        (["--plot", "curve.pdf"], "neither a .png nor an .svg"),
        (["--backend", "llama"], "the passes of transformers"),
        (["--tokens", "0"], "'0'"),
        (["--tokens", "100000"], "Ask for fewer"),
    ):
        outcome = run(*argv, *more)
        assert outcome.code == 2
        assert problem in outcome.err
