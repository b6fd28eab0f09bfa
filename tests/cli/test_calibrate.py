"""`trimtab calibrate` on tiny models: what it measures, what it writes, what it refuses."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import Run, Tiny
from trimtab.making.calibration import Decision, Peak
from trimtab.statistics import Interval
from trimtab.storage.cards import read_card

README = "# A guide\n\n## Measured\n\nMuch.\n\n## Settings\n\n| a | b |\n"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("prompts.jsonl").write_text("".join(json.dumps({"prompt": f"question {n}"}) + "\n" for n in range(12)))
    Path("by_length.py").write_text("def length(prompts, texts):\n    return [float(len(text)) for text in texts]\n")
    monkeypatch.delitem(sys.modules, "by_length", raising=False)  # another test's
    return tmp_path


@pytest.fixture
def guide(tiny: Tiny, elsewhere: Path) -> str:
    shutil.copytree(tiny.lora, "guide")
    Path("guide/README.md").write_text(README)
    return "guide"


@pytest.fixture
def a_peak(monkeypatch: pytest.MonkeyPatch) -> Peak:
    """Whatever is measured, the decision is a shift at 2."""
    at = Interval(0.4, 0.2, 0.6)
    peak = Peak("shift", 2.0, 1.0, 4.0, at, at, Interval(3.0, 2.5, 3.5), None)
    monkeypatch.setattr("trimtab.making.calibration.decide", lambda base, points: Decision(peak, "So.", (peak,), 12))
    return peak


def _calibrate(
    tiny: Tiny, *argv: str, reward: tuple[str, ...] = ("--reward", "by_length.py:length")
) -> tuple[str, ...]:
    fast = ("--prompts", "prompts.jsonl", "--max-new-tokens", "3", "--strengths", "1,2,4")
    return ("calibrate", "guide", "--model", tiny.model, *fast, *reward, *argv)


def test_what_cannot_be_named_is_refused_with_the_table_and_the_reason(run: Run, tiny: Tiny, guide: str) -> None:
    before = Path("guide/guide.json").exists()
    outcome = run(*_calibrate(tiny, "--write"))
    assert outcome.code == 2
    assert "No strength is named." in outcome.err
    for wanted in ("shift 1", "shift 4", "product 2", "length (95 % interval)", "KL, nats an answer", "Report: "):
        assert wanted in outcome.out
    assert Path("guide/guide.json").exists() == before
    assert Path("guide/README.md").read_text() == README
    rows = Path("guide.work/calibration/answers.jsonl").read_text().splitlines()
    assert len(rows) == 12 * 7
    again = run(*_calibrate(tiny, "--resume"))
    assert "0 answers made" in again.err
    kept = run(*_calibrate(tiny))
    assert kept.code == 2
    assert "already exists" in kept.err


def test_prompts_too_few_to_name_a_strength_are_said_first(run: Run, tiny: Tiny, guide: str) -> None:
    few = Path("prompts.jsonl").read_text().splitlines()[:3]
    Path("few.jsonl").write_text("\n".join(few) + "\n")
    outcome = run(*_calibrate(tiny, "--prompts", "few.jsonl", "--strengths", "1,2"))
    assert outcome.code == 2
    before, _, after = outcome.err.partition("loading ")
    assert "no strength will be named: 3 prompts are too few for an interval" in before
    assert "--resume" not in after.partition("No strength is named.")[2]


def test_a_peak_is_written_into_the_card_and_the_readme(run: Run, tiny: Tiny, guide: str, a_peak: Peak) -> None:
    outcome = run(*_calibrate(tiny, "--write", "--json"))
    assert outcome.code == 0, outcome.err
    said = json.loads(outcome.out)
    found = read_card(Path("guide")).calibration
    assert found is not None
    assert said["calibration"] == found.as_json()
    assert said["written"] is True
    assert (found.form, found.strength, found.strength_low, found.strength_high) == ("shift", 2.0, 1.0, 4.0)
    assert (found.reward, found.gold, found.num_prompts) == ("by_length.py-length", None, 12)
    assert found.tried == {"shift": [1, 2, 4], "product": [1, 2, 4]}
    readme = Path("guide/README.md").read_text()
    assert readme.index("## Measured") < readme.index("## Strength") < readme.index("## Settings")
    assert "as a shift, at strength 2 where nobody says otherwise" in readme
    # The calibration is none of what the answers depend on, so the comparison can be continued, and written again.
    again = run(*_calibrate(tiny, "--write", "--resume"))
    assert again.code == 0, again.err
    assert "0 answers made" in again.err
    assert Path("guide/README.md").read_text() == readme


def test_without_write_nothing_is_written(run: Run, tiny: Tiny, guide: str, a_peak: Peak) -> None:
    outcome = run(*_calibrate(tiny))
    assert outcome.code == 0, outcome.err
    assert "Run guide as a shift, at 2" in " ".join(outcome.out.split())
    assert read_card(Path("guide")).calibration is None


def test_gold_decides_beside_the_reward(run: Run, tiny: Tiny, guide: str, a_peak: Peak) -> None:
    outcome = run(*_calibrate(tiny, "--gold", "kind=sentiment:2", "--write"))
    assert outcome.code == 0, outcome.err
    found = read_card(Path("guide")).calibration
    assert found is not None
    assert (found.reward, found.gold) == ("by_length.py-length", "kind")
    run_file = json.loads(Path("guide.work/calibration/run.json").read_text())
    assert run_file["recipe"]["rewards"]["kind"] == {"scorer": "sentiment", "weight": 2.0, "role": "measured"}
    alone = run(*_calibrate(tiny, "--gold", "sentiment", "--out", "alone", "--write", reward=()))
    assert alone.code == 0, alone.err
    found = read_card(Path("guide")).calibration
    assert found is not None
    assert (found.reward, found.gold) == ("", "sentiment")
    assert "What it was trained for was not measured" in Path("guide/README.md").read_text()


def test_two_sentences_are_a_reward(run: Run, tiny: Tiny, guide: str) -> None:
    outcome = run(*_calibrate(tiny, "--forms", "shift", reward=("--towards", "Be glad.", "--away", "Be sad.")))
    assert outcome.code == 2
    assert "sentences (95 % interval)" in outcome.out
    assert "No strength is named" in outcome.err
    assert "product" not in outcome.out


@pytest.mark.parametrize(
    ("argv", "problem"),
    [
        ((), "Nothing says which answers are better"),
        (("--reward", "sentiment", "--towards", "a.", "--away", "b."), "both say what is better"),
        (("--reward", "sentiment", "--gold", "sentiment"), "Two rewards are named 'sentiment'"),
        (("--reward", "sentiment", "--strengths", "1"), "--strengths names one strength"),
        (("--reward", "sentiment", "--strengths", "0,1"), "--strengths"),
        (("--reward", "sentiment", "--forms", "sum"), "'sum' is not a form"),
        (("--reward", "sentiment", "--prompts", "-"), "standard input"),
        (("--reward", "sentiment", "--prompts", "none.jsonl"), "no such file"),
        (("--reward", "none.py:f"), "there is no file"),
        (("--towards", "a."), "--away is missing"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_loaded(
    run: Run, tiny: Tiny, guide: str, monkeypatch: pytest.MonkeyPatch, argv: tuple[str, ...], problem: str
) -> None:
    monkeypatch.setattr("trimtab.storage.loading.load_model", lambda *_, **__: pytest.fail("loaded a model"))
    outcome = run(*_calibrate(tiny, *argv, reward=()))
    assert outcome.code == 2
    assert problem in outcome.err
    assert not Path("guide.work").exists()


@pytest.mark.parametrize(
    ("kind", "argv", "problem"),
    [
        ("parm", (), "a preference of several numbers"),
        ("policy", ("--forms", "product"), "cannot be run as a product; accepted: shift"),
        ("agent", ("--forms", "shift"), "it has none; leave forms out"),
    ],
)
def test_a_kind_says_what_it_has(
    run: Run, tiny: Tiny, elsewhere: Path, kind: str, argv: tuple[str, ...], problem: str
) -> None:
    Path("guide").mkdir()
    Path("guide/guide.json").write_text(json.dumps({"format": 1, "kind": kind}))
    outcome = run(*_calibrate(tiny, *argv))
    assert outcome.code == 2
    assert problem in outcome.err


def test_a_guide_that_is_no_directory_cannot_be_written_to(run: Run, tiny: Tiny) -> None:
    flags = ("--model", tiny.model, "--prompts", "prompts.jsonl", "--reward", "sentiment")
    outcome = run("calibrate", "builtin:sentiment", *flags, "--write")
    assert outcome.code == 2
    assert "is not a directory here" in outcome.err
    outcome = run("calibrate", "builtin:sentiment", *flags)
    assert outcome.code == 2
    assert "--out is missing" in outcome.err


def test_an_interrupt_says_how_to_go_on(
    run: Run, tiny: Tiny, guide: str, a_peak: Peak, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("trimtab.cli.compare.make_answers", interrupted)
        cut = run(*_calibrate(tiny))
    assert cut.code == 130
    assert "what is there stays" in cut.err
    assert cut.err.rstrip().endswith("--resume")
