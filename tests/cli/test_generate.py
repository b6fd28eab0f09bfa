from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from trimtab.cli.answering import generate
from trimtab.cli.answering import requests as answering
from trimtab.core import SamplingParams
from trimtab.decoding.decoder import Decoder
from trimtab.decoding.requests import Request
from trimtab.storage.loading import load_guide, load_model

from .conftest import Outcome, Run, Tiny

ROWS = [
    {"prompt": "One"},
    {"prompt": [{"role": "user", "content": "Two, and longer"}], "weights": {"b": 0}, "seed": 5},
    {"prompt": "Three"},
    {"prompt": [70, 71, 72]},
    {"prompt": "Five", "weights": {"a": -0.5, "b": 2}},
]
FIELDS = ["prompt", "text", "token_ids", "finish_reason", "weights", "seed"]


@pytest.fixture
def prompts(tmp_path: Path) -> str:
    path = tmp_path / "p.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return str(path)


@pytest.fixture
def argv(tiny: Tiny, prompts: str, tmp_path: Path) -> list[str]:
    guides = ["--guide", f"a={tiny.lora}:0.7", "--guide", f"b={tiny.separate}:0.3"]
    return [
        *("generate", "--model", tiny.model, *guides, "--prompts", prompts, "--out", str(tmp_path / "answers.jsonl")),
        *("--max-new-tokens", "6", "--seed", "11"),
    ]


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_answers_are_those_of_the_decoder(run: Run, argv: list[str], tiny: Tiny, tmp_path: Path) -> None:
    outcome = run(*argv, "--json", "--batch-size", "2")
    assert outcome.code == 0, outcome.err
    rows = _rows(tmp_path / "answers.jsonl")
    assert [list(row) for row in rows] == [FIELDS] * 5
    assert [row["prompt"] for row in rows] == [row["prompt"] for row in ROWS]
    assert [row["seed"] for row in rows] == [11, 5, 13, 14, 15]
    assert [row["weights"] for row in rows] == [
        *({"a": 0.7, "b": 0.3}, {"a": 0.7, "b": 0.0}),
        *({"a": 0.7, "b": 0.3}, {"a": 0.7, "b": 0.3}, {"a": -0.5, "b": 2.0}),
    ]
    model = load_model(tiny.model)
    decoder = Decoder(model, {"a": load_guide(tiny.lora), "b": load_guide(tiny.separate)})
    for row in rows:
        chat = [{"role": "user", "content": row["prompt"]}] if isinstance(row["prompt"], str) else row["prompt"]
        (answer,) = decoder.generate([chat], weights=row["weights"], seed=row["seed"], max_new_tokens=6)
        assert row["token_ids"] == list(answer.token_ids)
        assert (row["text"], row["finish_reason"]) == (answer.text, answer.finish_reason)
    summary = json.loads(outcome.out)
    assert (summary["num_answers"], summary["num_resumed"]) == (5, 0)
    assert summary["num_new_tokens"] == sum(len(row["token_ids"]) for row in rows)


def test_the_batch_size_changes_no_answer(run: Run, argv: list[str], tmp_path: Path) -> None:
    for size in ("1", "5"):
        assert run(*argv, "--batch-size", size, "--overwrite").code == 0
        (tmp_path / "answers.jsonl").rename(tmp_path / size)
    assert (tmp_path / "1").read_text() == (tmp_path / "5").read_text()


@pytest.mark.parametrize("draft", ["lookup", "guide", "b", "model", "a --draft-quantize float16"])
def test_drafts_change_no_answer(run: Run, argv: list[str], tmp_path: Path, tiny: Tiny, draft: str) -> None:
    assert run(*argv).code == 0
    plain = (tmp_path / "answers.jsonl").read_text().splitlines()
    weighs_all = [row for row in plain if all(json.loads(row)["weights"].values())]
    prompts = tmp_path / "drafted.jsonl"
    kept = [json.loads(row) for row in weighs_all]
    prompts.write_text(
        "".join(json.dumps({key: row[key] for key in ("prompt", "weights", "seed")}) + "\n" for row in kept)
    )
    asked = [str(prompts) if part.endswith("p.jsonl") else part for part in argv]
    who = tiny.model if draft == "model" else draft
    outcome = run(*asked, "--overwrite", "--draft", *who.split(), "--draft-tokens", "3")
    assert outcome.code == 0, outcome.err
    assert (tmp_path / "answers.jsonl").read_text().splitlines() == weighs_all


def test_a_draft_that_is_nothing_is_said_before_the_model_is_loaded(run: Run, tiny: Tiny, tmp_path: Path) -> None:
    outcome = run("generate", "--model", tiny.model, "--prompt", "Hi", "--draft", str(tmp_path / "nothing"))
    assert outcome.code == 2
    assert "nothing" in outcome.err
    assert "loading" not in outcome.err


def test_text_is_a_users_message_unless_told_otherwise(run: Run, tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    add = Decoder.add

    def spy(self: Decoder, prompt: Any, params: SamplingParams | None = None) -> int:
        asked.append(prompt)
        return add(self, prompt, params)

    monkeypatch.setattr(Decoder, "add", spy)
    message = [{"role": "user", "content": "Hi"}]
    short = ["generate", "--prompt", "Hi", "--max-new-tokens", "1"]
    assert run(*short, "--model", tiny.model).code == 0
    assert run(*short, "--model", tiny.model, "--chat").code == 0
    assert run(*short, "--model", tiny.model, "--raw").code == 0
    assert run(*short, "--model", tiny.plain).code == 0
    assert asked == [message, message, "Hi", "Hi"]
    outcome = run(*short, "--model", tiny.plain, "--chat")
    assert outcome.code == 2
    assert "--raw" in outcome.err


def test_one_prompt_prints_its_text_and_json_its_row(run: Run, tiny: Tiny) -> None:
    argv = [
        "generate",
        "--model",
        tiny.model,
        "--prompt",
        "Hi",
        "--prompt",
        "Ho",
        "--max-new-tokens",
        "4",
        "--seed",
        "3",
    ]
    rows = [json.loads(line) for line in run(*argv, "--json").out.splitlines()]
    assert [row["prompt"] for row in rows] == ["Hi", "Ho"]
    assert run(*argv).out == "".join(f"{row['text']}\n" for row in rows)


def test_without_a_seed_one_is_drawn_and_told(run: Run, tiny: Tiny) -> None:
    argv = ["generate", "--model", tiny.model, "--prompt", "Hi", "--max-new-tokens", "8", "--json"]
    first, second = (json.loads(run(*argv).out) for _ in range(2))
    assert first["seed"] != second["seed"]
    again = json.loads(run(*argv, "--seed", str(first["seed"])).out)
    assert again == first


def test_a_trace_is_plain_json(run: Run, argv: list[str], tmp_path: Path) -> None:
    # Plausibility puts -inf into the policy, which JSON has no word for.
    assert run(*argv, "--trace", "--num-alternatives", "3", "--plausibility", "0.5").code == 0

    def refuse(word: str) -> None:
        raise AssertionError(word)

    lines = (tmp_path / "answers.jsonl").read_text().splitlines()
    rows = [json.loads(line, parse_constant=refuse) for line in lines]
    assert all(len(row["trace"]) == len(row["token_ids"]) for row in rows)
    step = rows[0]["trace"][0]
    assert step["chosen"]["token_id"] == rows[0]["token_ids"][0]
    assert set(step["chosen"]["guide_scores"]) == {"a", "b"}
    assert any(
        rival["mixed_logprob"] is None for row in rows for step in row["trace"] for rival in step["alternatives"]
    )


def test_an_existing_file_is_kept_unless_told_otherwise(run: Run, argv: list[str], tmp_path: Path) -> None:
    out = tmp_path / "answers.jsonl"
    out.write_text("mine\n")
    outcome = run(*argv)
    assert outcome.code == 2
    assert "--resume to continue it, --overwrite to replace it" in outcome.err
    assert "loading" not in outcome.err, "found out only after loading a model"
    assert out.read_text() == "mine\n"
    assert run(*argv, "--overwrite").code == 0
    assert len(_rows(out)) == 5


@pytest.mark.parametrize(
    ("kept", "torn"), [(0, b""), (0, b"{"), (1, b""), (3, b'{"prompt": "Th'), (4, b"{}"), (5, b"")]
)
def test_a_cut_file_is_continued_exactly(run: Run, argv: list[str], tmp_path: Path, kept: int, torn: bytes) -> None:
    out = tmp_path / "answers.jsonl"
    assert run(*argv).code == 0
    whole = out.read_bytes()
    out.write_bytes(b"".join(whole.splitlines(keepends=True)[:kept]) + torn)
    outcome = run(*argv, "--resume", "--batch-size", "1", "--json")
    assert outcome.code == 0, outcome.err
    assert out.read_bytes() == whole
    assert json.loads(outcome.out)["num_resumed"] == kept


def test_resume_keeps_the_seed_that_was_drawn(run: Run, argv: list[str], tmp_path: Path) -> None:
    out = tmp_path / "answers.jsonl"
    unseeded = argv[: argv.index("--seed")]
    assert run(*unseeded, "--resume").code == 0
    whole = out.read_bytes()
    out.write_bytes(whole.splitlines(keepends=True)[0])
    assert run(*unseeded, "--resume").code == 0
    assert out.read_bytes() == whole


def _other_prompts(argv: list[str]) -> None:
    path = Path(argv[argv.index("--prompts") + 1])
    path.write_text(path.read_text().replace("Three", "Four"))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (["--temperature", "0.5"], "temperature was null, is 0.5"),
        (["--seed", "12"], "seed was 11, is 12"),
        (["--raw"], 'template was "auto", is "raw"'),
        (["--stop", "x"], "stop was [], is"),
        (["--trace"], "trace was false, is true"),
        (_other_prompts, "prompts was"),
    ],
)
def test_a_file_begun_otherwise_is_not_continued(
    run: Run, argv: list[str], tmp_path: Path, change: Any, named: str
) -> None:
    assert run(*argv).code == 0
    out = tmp_path / "answers.jsonl"
    out.write_bytes(out.read_bytes()[:-5])
    before = out.read_bytes()
    if callable(change):
        change(argv)
    outcome = run(*argv, "--resume", *(change if isinstance(change, list) else []))
    assert outcome.code == 2
    assert named in outcome.err
    assert out.read_bytes() == before


def test_a_guide_trained_anew_is_another_guide(run: Run, argv: list[str], tiny: Tiny, tmp_path: Path) -> None:
    guide = tmp_path / "guide"
    guide.mkdir()
    for file in Path(tiny.lora).iterdir():
        (guide / file.name).write_bytes(file.read_bytes())
    argv[argv.index(f"a={tiny.lora}:0.7")] = f"a={guide}:0.7"
    assert run(*argv).code == 0
    config = json.loads((guide / "adapter_config.json").read_text())
    (guide / "adapter_config.json").write_text(json.dumps({**config, "lora_alpha": 16}))
    outcome = run(*argv, "--resume")
    assert outcome.code == 2
    assert "guides.a.source was" in outcome.err


def test_an_edited_scorer_is_another_scorer(run: Run, prompts: str, tiny: Tiny, tmp_path: Path) -> None:
    scorer = tmp_path / "letters_generate.py"
    scorer.write_text("def length(prompts, texts):\n    return [len(text) for text in texts]\n")
    argv = ["generate", "--model", tiny.model, "--prompts", prompts, "--out", str(tmp_path / "answers.jsonl")]
    argv += ["--method", "best-of-n", "--strength", "2", "--option", f"scorer={scorer}:length", "--max-new-tokens", "2"]
    Path(prompts).write_text(json.dumps({"prompt": "One"}) + "\n")
    assert run(*argv).code == 0
    assert run(*argv, "--resume").code == 0
    scorer.write_text("def length(prompts, texts):\n    return [-len(text) for text in texts]\n")
    outcome = run(*argv, "--resume")
    assert outcome.code == 2
    assert "contents.method.scorer.letters_generate.py was" in outcome.err


def test_a_bad_line_stops_before_anything_is_loaded_or_written(run: Run, argv: list[str], tmp_path: Path) -> None:
    with Path(argv[argv.index("--prompts") + 1]).open("a") as stream:
        stream.write("{\n")
    outcome = run(*argv)
    assert outcome.code == 2
    assert "p.jsonl, line 6: not JSON" in outcome.err
    assert "loading" not in outcome.err
    assert [path.name for path in tmp_path.iterdir()] == ["p.jsonl"]
    assert run(*argv, "--skip-bad-lines").code == 0
    assert len(_rows(tmp_path / "answers.jsonl")) == 5


def test_a_prompt_that_is_too_long_stops_before_anything_is_written(run: Run, argv: list[str], tmp_path: Path) -> None:
    path = Path(argv[argv.index("--prompts") + 1])
    path.write_text(json.dumps({"prompt": "x" * 200}) + "\n" + path.read_text())
    outcome = run(*argv)
    assert outcome.code == 2
    assert "p.jsonl, line 1: " in outcome.err
    assert "96" in outcome.err
    assert [item.name for item in tmp_path.iterdir()] == ["p.jsonl"]
    assert run(*argv, "--skip-bad-lines").code == 0
    rows = _rows(tmp_path / "answers.jsonl")
    assert (rows[0]["finish_reason"], rows[0]["text"], rows[0]["token_ids"]) == ("error", "", [])
    assert "96" in rows[0]["error"]
    assert [row["finish_reason"] for row in rows[1:]].count("error") == 0
    assert len(rows) == 6


def test_an_answer_that_fails_costs_no_other(
    run: Run, argv: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(*argv).code == 0
    whole = _rows(tmp_path / "answers.jsonl")
    sound = Request.push

    def broken(self: Request, *args: Any) -> Any:
        if self.seed == 13 and self.token_ids:
            raise RuntimeError("no such thing")
        return sound(self, *args)

    monkeypatch.setattr(Request, "push", broken)
    outcome = run(*argv, "--overwrite")
    rows = _rows(tmp_path / "answers.jsonl")
    assert outcome.code == 2
    assert "1 of 5 answers failed while they were made; their rows say why" in outcome.err
    assert [row for row in rows if row["seed"] != 13] == [row for row in whole if row["seed"] != 13]
    assert (rows[2]["finish_reason"], rows[2]["token_ids"]) == ("error", whole[2]["token_ids"][:1])
    assert "RuntimeError" in rows[2]["error"]


@pytest.mark.parametrize("options", [["--num-alternatives", "2"], ["--resume"], ["--overwrite"], ["--skip-bad-lines"]])
def test_an_option_that_would_do_nothing_is_refused(run: Run, tiny: Tiny, options: list[str]) -> None:
    outcome = run("generate", "--model", tiny.model, "--prompt", "Hi", *options)
    assert outcome.code == 2
    assert options[0] in outcome.err


def test_an_unknown_guide_directory_is_an_error_and_writes_nothing(run: Run, argv: list[str], tmp_path: Path) -> None:
    outcome = run(*argv, "--guide", f"c={tmp_path / 'nowhere'}")
    assert outcome.code == 2
    assert "nowhere" in outcome.err
    assert [path.name for path in tmp_path.iterdir()] == ["p.jsonl"]


def test_each_answer_is_on_disk_before_the_next_is_worked_on(
    run: Run, argv: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[int] = []

    def spy(decoder: Decoder, running: Any, requests: Any) -> Iterator[Any]:
        for request in answering.in_order(decoder, running, requests):
            found.append((tmp_path / "answers.jsonl").read_bytes().count(b"\n"))
            yield request

    monkeypatch.setattr(generate, "in_order", spy)
    assert run(*argv).code == 0
    assert found == [0, 1, 2, 3, 4]


def test_a_killed_process_leaves_whole_lines_and_is_continued(run: Run, argv: list[str], tmp_path: Path) -> None:
    """As `kill -9` in the middle of a run: what had been answered is on disk."""
    out, slow = tmp_path / "answers.jsonl", ["--batch-size", "1", "--max-new-tokens", "60", "--ignore-eos"]
    process = subprocess.Popen(
        [sys.executable, "-m", "trimtab.cli.main", *argv, *slow],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    while process.poll() is None and not (out.exists() and out.read_bytes().count(b"\n") >= 1):
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    torn = out.read_bytes()
    assert run(*argv, *slow, "--resume").code == 0
    continued = out.read_bytes()
    assert continued.startswith(torn[: torn.rindex(b"\n") + 1])
    assert run(*argv, *slow, "--overwrite").code == 0
    assert out.read_bytes() == continued


def test_a_full_disk_says_how_to_go_on(run: Run, argv: list[str], tmp_path: Path) -> None:
    """No file may grow beyond this length: the nearest thing to a full disk that a test can have."""
    assert run(*argv).code == 0
    whole = (tmp_path / "answers.jsonl").read_bytes()
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) - 20, limit[1]))
    try:
        outcome = run(*argv, "--overwrite")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert (outcome.code, outcome.out) == (1, "")
    assert "answers.jsonl" in outcome.err
    assert "--resume continues it" in outcome.err
    assert run(*argv, "--resume").code == 0
    assert (tmp_path / "answers.jsonl").read_bytes() == whole


def test_outcome_is_plain(run: Run, argv: list[str]) -> None:
    """Without --json, a run into a file leaves standard output empty."""
    outcome: Outcome = run(*argv)
    assert (outcome.code, outcome.out) == (0, "")
    assert "5 answers in " in outcome.err
