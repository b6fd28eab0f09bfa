"""`trimtab demo` on tiny models: what it prints, what it writes, what it refuses."""

from __future__ import annotations

import json
import re
import shlex
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import Run, Tiny
from trimtab.cli.demo import sentiment
from trimtab.cli.main import build_parser
from trimtab.cli.make import command as make

FAST = ("--prompts", "4", "--max-new-tokens", "3", "--batch-size", "4")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Commands write into the directory they are run in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


BOTH = [
    *(("shift", weight) for weight in (-1.0, 0.0, 0.5, 1.0, 2.0)),
    *(("product", weight) for weight in (0.5, 1.0, 2.0)),
]


def _demo(tiny: Tiny, *argv: str) -> tuple[str, ...]:
    return ("demo", "--model", tiny.model, "--guide", tiny.lora, *FAST, *argv)


def test_json_is_what_the_manual_says(run: Run, tiny: Tiny) -> None:
    outcome = run(*_demo(tiny, "--json"))
    assert outcome.code == 0, outcome.err
    summary = json.loads(outcome.out)
    assert list(summary) == ["strengths", "base_tokens_per_s", "report"]
    assert [(row["form"], row["weight"]) for row in summary["strengths"]] == BOTH
    for row in summary["strengths"]:
        assert list(row) == ["form", "weight", "reward", "reward_low", "reward_high", "kl", "tokens_per_s"]
        assert row["reward_low"] is row["reward_high"] is None  # 4 prompts are too few for an interval
        assert row["tokens_per_s"] > 0
    kls = [row["kl"] for row in summary["strengths"]]
    assert [kl == 0.0 for kl in kls] == [weight == 0 for _, weight in BOTH]
    assert summary["base_tokens_per_s"] > 0
    assert Path(summary["report"]).is_file()


def test_ten_prompts_have_an_interval(run: Run, tiny: Tiny) -> None:
    outcome = run(*_demo(tiny, "--json", "--prompts", "10", "--strengths", "0,1"))
    assert outcome.code == 0, outcome.err
    for row in json.loads(outcome.out)["strengths"]:
        assert row["reward_low"] <= row["reward"] <= row["reward_high"]


def test_the_demo_is_a_run_of_compare(run: Run, tiny: Tiny) -> None:
    """Its report can be drawn again, and holds the numbers that the demo gave; base, one guide, one reward."""
    shown = json.loads(run(*_demo(tiny, "--json", "--strengths", "0,1")).out)
    again = run("compare", "runs/demo", "--report-only", "--json")
    assert again.code == 0, again.err
    methods = json.loads(again.out)["methods"]
    named = [(row["method"], row["strength"]) for row in methods]
    assert named == [("base", "0"), ("shift", "0"), ("shift", "1"), ("product", "1")]
    for row, before in zip(methods[1:], shown["strengths"], strict=True):
        assert row["kl"] == before["kl"]
        assert row["reward_sentiment"] == before["reward"]


def test_a_strength_that_means_nothing_is_refused_before_anything_is_loaded(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("trimtab.storage.loading.load_model", lambda *_, **__: pytest.fail("loaded a model"))
    agent = tmp_path / "agent"
    agent.mkdir()
    (agent / "guide.json").write_text(json.dumps({"format": 1, "kind": "agent"}))
    outcome = run("demo", "--guide", str(agent), "--strengths=-1,0.5")
    assert outcome.code == 2
    assert "a strength of mara is -1" in outcome.err


def test_the_table_and_the_answers_are_shown(run: Run, tiny: Tiny) -> None:
    outcome = run(*_demo(tiny, "--strengths", "0,1"))
    assert outcome.code == 0, outcome.err
    for wanted in (
        "strength",
        "95 % interval",
        "KL",
        "tokens/s",
        "ratio to base",
        "Describe a rainy Monday",
        "Report: ",
    ):
        assert wanted in outcome.out
    assert "loading" in outcome.err
    assert "4 answers of the base, then at shift 0, 1; product 1" in outcome.err
    assert re.findall(r"^  (\d+) of 16$", outcome.err, re.MULTILINE) == [
        "2",
        "4",
        "5",
        "7",
        "8",
        "10",
        "12",
        "13",
        "15",
        "16",
    ]
    assert "loading" not in outcome.out


def test_the_report_lies_in_a_new_directory_each_time(run: Run, tiny: Tiny) -> None:
    reports = [json.loads(run(*_demo(tiny, "--json", "--strengths", "1")).out)["report"] for _ in range(2)]
    assert reports == ["runs/demo/report.html", "runs/demo-2/report.html"]
    names = {"answers.jsonl", "frontier.csv", "frontier.png", "report.html"}
    run_files = {"run.json", "costs.jsonl", "methods.csv", "costs.csv"}
    assert {path.name for path in Path("runs/demo").iterdir()} == names | run_files


def test_the_page_says_how_it_was_done(run: Run, tiny: Tiny) -> None:
    run(*_demo(tiny, "--out", "here", "--seed", "5", "--strengths", "1"))
    page = Path("here/report.html").read_text(encoding="utf-8")
    for wanted in ("max new tokens 3", "<dt>Seeds</dt><dd>5;", "VADER", "4 of our own", "its own card says", "BCa"):
        assert wanted in page
    assert "labelled the pairs" not in page  # nobody knows what this guide was trained on


def test_the_same_seed_gives_the_same_answers(run: Run, tiny: Tiny) -> None:
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        run(*_demo(tiny, "--out", name, "--seed", seed, "--strengths", "1"))
    first, again, other = (Path(name, "answers.jsonl").read_text() for name in "abc")
    assert first == again
    assert first != other


def test_an_existing_directory_is_kept(run: Run, tiny: Tiny) -> None:
    Path("mine").mkdir()
    Path("mine/notes.txt").write_text("keep me")
    outcome = run(*_demo(tiny, "--out", "mine"))
    assert outcome.code == 2
    assert "mine already exists" in outcome.err
    assert run(*_demo(tiny, "--out", "mine", "--overwrite", "--strengths", "1")).code == 0
    assert Path("mine/notes.txt").read_text() == "keep me"
    assert Path("mine/report.html").is_file()


@pytest.mark.parametrize(
    ("argv", "problem"),
    [
        (("--train", "--guide", "x"), "leave --guide out"),
        (("--resume",), "--resume continues a training"),
        (("--train", "--resume"), "--resume continues a training"),
        (("--train", "--strengths=-1,1"), "which looks for a peak above 0"),
        (("--overwrite",), "give --out DIR with it"),
        (("--train", "--out", "x", "--resume", "--overwrite"), "not allowed with"),
        (("--prompts", "1"), "at least 2"),
        (("--prompts", "65"), "at most 64"),
        (("--strengths", "0,nan"), "'nan' is not accepted"),
        (("--strengths", ""), "'' is not accepted"),
        (("--scorer", "sentimant"), "Did you mean 'sentiment'"),
        (("--out", "file"), "is a file"),
        (("--strenghts", "1"), "--strengths"),
    ],
)
def test_what_is_refused_is_refused_before_anything_is_loaded(
    run: Run, monkeypatch: pytest.MonkeyPatch, argv: tuple[str, ...], problem: str
) -> None:
    monkeypatch.setattr("trimtab.storage.loading.load_model", lambda *_, **__: pytest.fail("loaded a model"))
    Path("file").write_text("")
    before = sorted(Path().rglob("*"))
    outcome = run("demo", *argv)
    assert outcome.code == 2
    assert problem in outcome.err
    assert outcome.out == ""
    assert sorted(Path().rglob("*")) == before


@pytest.mark.parametrize(("missing", "argv"), [("matplotlib", ()), ("trl", ("--train",))])
def test_a_missing_extra_is_named_before_anything_is_loaded(
    run: Run, monkeypatch: pytest.MonkeyPatch, missing: str, argv: tuple[str, ...]
) -> None:
    monkeypatch.setattr("trimtab.storage.loading.load_model", lambda *_, **__: pytest.fail("loaded a model"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == missing else object())
    outcome = run("demo", *argv)
    assert outcome.code == 2
    assert f"needs {missing}" in outcome.err


def test_a_guide_that_does_not_fit_leaves_nothing_behind(run: Run, tiny: Tiny) -> None:
    outcome = run("demo", "--model", tiny.model, "--guide", "nowhere", *FAST, "--out", "new")
    assert outcome.code == 2
    assert "nowhere" in outcome.err
    assert not Path("new").exists()


@pytest.fixture
def spread(monkeypatch: pytest.MonkeyPatch) -> str:
    """A scorer that counts characters, of which random models give different numbers."""
    Path("spread.py").write_text(
        "def score(prompts, texts):\n    return [len(text) + ord((text + 'a')[0]) % 7 for text in texts]\n"
    )
    monkeypatch.delitem(sys.modules, "spread", raising=False)
    return "spread.py:score"


def test_training_is_make_with_prompts_that_ship(
    run: Run, tiny: Tiny, monkeypatch: pytest.MonkeyPatch, spread: str
) -> None:
    seen = []
    monkeypatch.setattr(make, "run", lambda args: seen.append(args) or 0)
    outcome = run("demo", "--train", "--model", tiny.model, "--scorer", spread, "--seed", "4", "--prompts", "10")
    assert outcome.code == 0, outcome.err
    (args,) = seen
    assert (args.guide, args.prompts, args.test_prompts) == (
        "runs/demo-train/guide",
        "builtin:training",
        "builtin:demo",
    )
    assert (args.rewards, args.num_test, args.num_train, args.seed) == ([spread], 10, 150, 4)
    line = next(line for line in outcome.err.splitlines() if line.startswith("trimtab make "))
    assert vars(build_parser().parse_args(shlex.split(line)[1:]))["rewards"] == [spread]
    assert args.given[-2:] == ["--out", "runs/demo-train"]
    again = run("demo", "--train", "--out", "road", "--resume", "--json", "--strengths", "1,3")
    assert again.code == 0, again.err
    assert (seen[1].resume, seen[1].json, seen[1].strengths) == (True, True, [1.0, 3.0])


def test_how_the_shipped_guide_was_made_still_makes_one(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, spread: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from trimtab.evaluation import prompt_sets as prompts
    from trimtab.training.pairs import synthetic as preferences

    chats = prompts.training_prompts()[:8]
    monkeypatch.setattr(prompts, "training_prompts", lambda: chats)
    monkeypatch.setattr(sentiment, "NUM_HELD_OUT_PROMPTS", 3)
    monkeypatch.setattr(preferences, "whole_sentences", lambda text: text)
    argv = ["--model", tiny.model, "--scorer", spread, "--batch-size", "4", "--out", "road"]
    assert sentiment.main(argv) == 0
    assert "accuracy on" in capsys.readouterr().err
    road = Path("road")
    pairs, held_out = (
        {json.loads(line)["prompt"][0]["content"] for line in (road / name).read_text().splitlines()}
        for name in ("pairs.jsonl", "held_out.jsonl")
    )
    assert pairs <= {chat[0]["content"] for chat in chats[:5]}
    assert held_out <= {chat[0]["content"] for chat in chats[5:]}
    card = json.loads((road / "guide" / "guide.json").read_text())
    assert card["metrics"]["num_eval_pairs"] == len((road / "held_out.jsonl").read_text().splitlines())
    monkeypatch.setattr("trimtab.training.pairs.synthetic.sample_answers", lambda *_, **__: iter(()))  # all are there
    assert sentiment.main([*argv, "--resume"]) == 0
    assert sentiment.main(argv) == 2
