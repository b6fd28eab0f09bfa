"""`trimtab make` on tiny models: the stages as commands, what is written, how it goes on, what it refuses."""

from __future__ import annotations

import errno
import json
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("trl")

from tests.cli.conftest import Run, Tiny
from trimtab.cli.main import build_parser
from trimtab.cli.make import command as make
from trimtab.making.calibration import Decision, Peak
from trimtab.statistics import Interval
from trimtab.storage.cards import read_card

SCORERS = """\
def early(prompts, texts):
    'How many letters are before n.'
    return [sum('a' <= letter < 'n' for letter in text.lower()) for text in texts]

def same(prompts, texts):
    return [1.0] * len(texts)
"""
PAIRS_FLAGS = "--num-samples 4 --min-length-ratio 0 --no-whole-sentences"
TRAIN_FLAGS = "--max-length 64 --max-prompt-length 40 --batch-size 4"
FAST = (
    *("--max-new-tokens", "12", "--seed", "3", "--strengths", "1,2,4"),
    *("--pairs-flags", PAIRS_FLAGS, "--train-flags", TRAIN_FLAGS),
)
REWARD = ("--reward", "scorers_for_make.py:early")
SENTENCES = ("--towards", "Be kind.", "--away", "Be rude.")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    Path("prompts.jsonl").write_text("".join(json.dumps({"prompt": f"question {n}"}) + "\n" for n in range(20)))
    Path("scorers_for_make.py").write_text(SCORERS)
    monkeypatch.delitem(sys.modules, "scorers_for_make", raising=False)
    yield tmp_path
    sys.modules.pop("scorers_for_make", None)


@pytest.fixture
def a_peak(monkeypatch: pytest.MonkeyPatch) -> Peak:
    """Whatever is measured, the decision is a shift at 2."""
    at = Interval(0.4, 0.2, 0.6)
    peak = Peak("shift", 2.0, 1.0, 4.0, at, at, Interval(3.0, 2.5, 3.5), None)
    monkeypatch.setattr("trimtab.making.calibration.decide", lambda base, points: Decision(peak, "So.", (peak,), 12))
    return peak


def _make(tiny: Tiny, *argv: str, way: tuple[str, ...] = REWARD, guide: str = "guides/mine") -> tuple[str, ...]:
    return ("make", guide, "--model", tiny.model, "--prompts", "prompts.jsonl", *way, *FAST, *argv)


def _commands(err: str) -> list[list[str]]:
    """The command of each stage, as it was printed."""
    return [shlex.split(line) for line in re.findall(r"^\[\d/\d\] \w+\n(trimtab .*)$", err, re.MULTILINE)]


def _everything(root: str) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(Path(root).rglob("*")) if path.is_file()}


def test_a_reward_becomes_a_guide_with_its_report(run: Run, tiny: Tiny, a_peak: Peak) -> None:
    outcome = run(*_make(tiny, "--json"))
    assert outcome.code == 0, outcome.err
    said = json.loads(outcome.out)
    assert list(said) == [
        *("guide", "stages", "eval_accuracy", "eval_accuracy_low", "eval_accuracy_high", "eval_shift_accuracy"),
        *("eval_shift_accuracy_low", "eval_shift_accuracy_high", "num_eval_pairs", "calibration", "why", "report"),
    ]
    assert [stage["name"] for stage in said["stages"]] == ["pairs", "train", "calibrate", "report"]
    assert Path(said["report"]).is_file()
    card = read_card(Path("guides/mine"))
    assert card.calibration is not None
    assert said["calibration"] == card.calibration.as_json()
    assert (card.form(), card.weight) == ("shift", 2.0)
    readme = Path("guides/mine/README.md").read_text()
    assert readme.index("## Measured") < readme.index("## Strength") < readme.index("## Compared")
    assert "| guide | 2 |" in readme
    assert "guide at strength 2 was chosen on other prompts" in Path(said["report"]).read_text()
    assert "4 test prompts" in readme
    recipe = json.loads(Path("guides/mine.work/report/run.json").read_text())["recipe"]
    assert [(entry["method"], entry.get("strengths")) for entry in recipe["methods"]] == [
        ("base", None),
        ("sharpened", [0.5, 1.0, 2.0]),
        ("policy", [2.0]),
        ("policy", [1, 4]),
    ]
    counts = [len(Path(f"guides/mine.work/{part}.jsonl").read_text().splitlines()) for part in make_parts()]
    assert counts == [12, 4, 4]


def make_parts() -> tuple[str, ...]:
    return ("train", "validation", "test")


def test_each_printed_command_is_what_runs(run: Run, tiny: Tiny, a_peak: Peak, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parsed by hand, it gives the very options that its stage was run with."""
    seen: list[dict[str, Any]] = []
    real = make._run

    def watched(args: Any, name: str, command: list[str]) -> Any:
        before = args.commands[command[0]].parse_args

        def parse(words: list[str]) -> Any:
            parsed = before(words)
            seen.append(dict(vars(parsed)))
            return parsed

        monkeypatch.setattr(args.commands[command[0]], "parse_args", parse)
        try:
            return real(args, name, command)
        finally:
            monkeypatch.setattr(args.commands[command[0]], "parse_args", before)

    monkeypatch.setattr(make, "_run", watched)
    outcome = run(*_make(tiny, way=SENTENCES))
    assert outcome.code == 0, outcome.err
    commands = _commands(outcome.err)
    assert [words[1] for words in commands] == ["pairs", "train", "calibrate", "compare"]
    for words, options in zip(commands, seen, strict=True):
        again = vars(build_parser().parse_args(words[1:]))
        own = {"command", "verbose", "given"}
        assert {key: value for key, value in again.items() if key not in own and not callable(value)} == {
            key: value for key, value in options.items() if key not in own and not callable(value)
        }


def test_a_finished_make_is_gone_through_without_making_anything(run: Run, tiny: Tiny, a_peak: Peak) -> None:
    first = run(*_make(tiny))
    assert first.code == 0, first.err
    before = _everything("guides")
    again = run(*_make(tiny, "--resume"))
    assert again.code == 0, again.err
    assert again.err.count("0 answers made") == 2
    assert "12 prompts are answered" in again.err
    after = _everything("guides")
    kept = ("answers.jsonl", "samples.jsonl", ".safetensors", "guide.json")
    answers = [name for name in before if name.endswith(kept)]
    assert {name: after[name] for name in answers} == {name: before[name] for name in answers}
    assert again.out == first.out


def test_what_was_cut_goes_on_where_it_was(run: Run, tiny: Tiny, a_peak: Peak, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run(*_make(tiny, guide="guides/whole"))
    assert whole.code == 0, whole.err
    with monkeypatch.context() as patch:
        patch.setattr(make.calibrate, "calibrate", lambda args: (_ for _ in ()).throw(KeyboardInterrupt))
        cut = run(*_make(tiny))
    assert cut.code == 130
    assert "make guides/mine --model" in cut.err
    assert cut.err.rstrip().endswith("--resume")
    assert not Path("guides/mine.work/calibration").exists()
    rest = run(*_make(tiny, "--resume"))
    assert rest.code == 0, rest.err
    names = ("mine.work/calibration/answers.jsonl", "mine.work/pairs.jsonl", "mine/adapter_model.safetensors")
    for name in names:
        assert Path("guides", name).read_bytes() == Path("guides", name.replace("mine", "whole", 1)).read_bytes()


def test_another_make_is_not_continued(run: Run, tiny: Tiny, a_peak: Peak) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(make, "_run", lambda *_: (130, None))
        assert run(*_make(tiny)).code == 130
    before = _everything("guides")
    other = run(*_make(tiny, "--resume", "--method", "dpo"))
    assert other.code == 2
    assert 'given.--method was "arm", is "dpo"' in other.err
    Path("prompts.jsonl").write_text('{"prompt": "another"}\n' + Path("prompts.jsonl").read_text())
    other = run(*_make(tiny, "--resume"))
    assert "prompts.train was" in other.err
    assert _everything("guides") == before
    kept = run(*_make(tiny))
    assert kept.code == 2
    assert "guides/mine.work already exists" in kept.err


def test_finished_pairs_stay_those_that_the_guide_was_trained_on(run: Run, tiny: Tiny, a_peak: Peak) -> None:
    """Settings of a stage may change until the training has begun, those of the stages behind it at any time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(make.train, "run", lambda _: 130)
        assert run(*_make(tiny)).code == 130
    other = f"{PAIRS_FLAGS} --min-margin 1"
    assert run(*_make(tiny, "--resume", "--pairs-flags", other)).code == 0
    before = _everything("guides")
    for flag, value in (("--pairs-flags", PAIRS_FLAGS), ("--train-flags", f"{TRAIN_FLAGS} --epochs 2")):
        refused = run(*_make(tiny, "--resume", "--pairs-flags", other, flag, value))
        assert refused.code == 2
        before_it, _, now = refused.err.partition(f"given.{flag} was ")[2].partition(", is ")
        assert "--" in before_it
        assert before_it not in now
    assert _everything("guides") == before


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("--gold", "sentment"), "Did you mean 'sentiment'"),
        (("--gold", "scorers_for_make.py:erly"), "erly"),
        (("--gold", "rewards/none"), "'rewards/none'"),
        (("--gold", "a_guide"), "no score head"),
        (("--strengths", "2"), "names one strength"),
    ],
)
def test_what_a_later_stage_would_refuse_is_refused_first(
    argv: tuple[str, ...], message: str, run: Run, tiny: Tiny
) -> None:
    pytest.importorskip("vaderSentiment")
    Path("a_guide").mkdir()
    Path("a_guide/guide.json").write_text('{"format": 1, "kind": "arm"}')
    outcome = run(*_make(tiny, *argv))
    assert outcome.code == 2
    assert message in outcome.err
    assert not Path("guides").exists()


def test_pairs_that_are_not_there_are_missed_first(run: Run, tiny: Tiny) -> None:
    given = ("--data", "none.jsonl", "--gold", "scorers_for_make.py:early")
    outcome = run("make", "guides/mine", "--model", tiny.model, "--prompts", "prompts.jsonl", *given)
    assert outcome.code == 2
    assert "none.jsonl" in outcome.err
    assert not Path("guides").exists()


def test_a_strength_that_cannot_be_named_is_said_and_the_guide_is_kept(run: Run, tiny: Tiny) -> None:
    outcome = run(*_make(tiny, "--json"))
    assert outcome.code == 0, outcome.err
    said = json.loads(outcome.out)
    assert said["calibration"] is None
    assert "4 prompts are too few for an interval" in said["why"]
    assert f"no strength is named: {said['why']}" in outcome.err
    before = outcome.err.partition("[1/4]")[0]
    assert "no strength will be named: 4 prompts are too few for an interval" in before
    assert read_card(Path("guides/mine")).calibration is None
    recipe = json.loads(Path("guides/mine.work/report/run.json").read_text())["recipe"]
    assert [entry.get("name") for entry in recipe["methods"][2:]] == ["guide, shift", "guide, product"]


def test_two_sentences_are_compared_with_themselves(run: Run, tiny: Tiny) -> None:
    outcome = run(*_make(tiny, "--method", "dpo", way=SENTENCES))
    assert outcome.code == 0, outcome.err
    for wanted in ("system prompt", "sentences weighed", "guide, shift", "sentences", "Strength: not named."):
        assert wanted in outcome.out
    assert read_card(Path("guides/mine")).kind == "policy"


def test_pairs_that_are_there_are_trained_on(run: Run, tiny: Tiny, a_peak: Peak) -> None:
    rows = [{"prompt": f"p{n}", "chosen": "aaa" * (n + 1), "rejected": "zzz" * (n + 1)} for n in range(8)]
    Path("pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    way = ("--data", "pairs.jsonl", "--gold", "scorers_for_make.py:early", "--pairs-flags", "")
    outcome = run(*_make(tiny, way=(), guide="guides/mine"), *way)
    assert outcome.code == 0, outcome.err
    assert [words[1] for words in _commands(outcome.err)] == ["train", "calibrate", "compare"]
    found = read_card(Path("guides/mine")).calibration
    assert found is not None
    assert (found.reward, found.gold) == ("", "scorers_for_make.py-early")


def test_a_judge_that_scores_is_the_reward_too(run: Run, tiny: Tiny, a_peak: Peak) -> None:
    way = ("--judge", "scorer:scorers_for_make.py:early")
    outcome = run(*_make(tiny, way=way))
    assert outcome.code == 0, outcome.err
    pairs, _, calibrate, _ = _commands(outcome.err)
    assert pairs[pairs.index("--judge") + 1] == "scorer:scorers_for_make.py:early"
    assert calibrate[calibrate.index("--reward") + 1] == "scorers_for_make.py:early"


def test_a_reward_that_is_always_the_same_is_a_sentence(run: Run, tiny: Tiny) -> None:
    outcome = run(*_make(tiny, way=("--reward", "scorers_for_make.py:same")))
    assert outcome.code == 2
    assert "the stage pairs ended with an error" in outcome.err
    assert "same" in outcome.err
    assert not Path("guides/mine").exists()
    assert not Path("guides/mine.work/pairs.jsonl").exists()


def test_prompts_that_yield_no_pair_say_how_many_were_tried(run: Run, tiny: Tiny) -> None:
    flags = ("--pairs-flags", f"{PAIRS_FLAGS} --min-margin 1000")
    outcome = run(*_make(tiny, *flags))
    assert outcome.code == 2
    assert "to 12 prompts" in outcome.err
    assert "sample more answers (--num-samples in --pairs-flags)" in outcome.err
    kept = outcome.err.partition("With --resume, ")[2].partition("With --overwrite, ")[0]
    assert "--min-margin in --pairs-flags" in kept
    assert not Path("guides/mine.work/pairs.jsonl").exists()


@pytest.mark.parametrize(
    ("flags", "way", "problem"),
    [
        (("--pairs-flags", "--num-samples 5"), SENTENCES, "--num-samples in --pairs-flags is 5"),
        (("--pairs-flags", "--min-margin 1"), SENTENCES, "--min-margin in --pairs-flags is a difference in reward"),
        (
            ("--train-flags", "--max-length 30 --max-prompt-length 40"),
            REWARD,
            '--train-flags="--max-prompt-length 40"',
        ),
    ],
)
def test_a_stage_names_a_flag_as_it_is_typed_and_where(
    flags: tuple[str, str], way: tuple[str, ...], problem: str, run: Run, tiny: Tiny
) -> None:
    """Whether the error names a setting, or the stage's command wrote the flag into its sentence."""
    outcome = run(*_make(tiny, *flags, way=way))
    assert outcome.code == 2
    assert problem in outcome.err


@pytest.mark.parametrize("stage", ["pairs", "train", "calibrate", "report"])
def test_a_full_disk_is_a_sentence_and_leaves_nothing_half_written(
    run: Run, tiny: Tiny, a_peak: Peak, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    """Whatever a stage writes under its last name, it writes whole or not at all."""
    from trimtab.storage import files

    real, begun = files.sync, {"stage": ""}
    real_run = make._run

    def watched(args: Any, name: str, command: list[str]) -> Any:
        begun["stage"] = name
        return real_run(args, name, command)

    def full(path: Path) -> None:
        if begun["stage"] == stage and "checkpoint" not in str(path):
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        real(path)

    monkeypatch.setattr(make, "_run", watched)
    monkeypatch.setattr(files, "sync", full)
    monkeypatch.setattr("trimtab.making.files.sync", full)
    outcome = run(*_make(tiny))
    assert outcome.code == 1
    assert "No space left on device" in outcome.err
    assert "Traceback" not in outcome.err
    assert not list(Path("guides").rglob("*.tmp"))
    if stage in ("pairs", "train"):
        assert not Path("guides/mine").exists()
    if stage == "pairs":
        assert not Path("guides/mine.work/pairs.jsonl").exists()
    begun["stage"] = ""
    monkeypatch.undo()
    monkeypatch.chdir(Path.cwd())


@pytest.mark.parametrize(
    ("argv", "way", "problem"),
    [
        ((), (), "Nothing says what is wanted"),
        ((), (*REWARD, *SENTENCES), "--reward and --towards both say what is wanted"),
        ((), ("--towards", "Be kind."), "--away is missing"),
        ((), ("--data", "pairs.jsonl"), "Give --gold R"),
        ((), ("--judge", "openai:gpt"), "Give --gold R"),
        (("--lower-is-better",), REWARD, "--lower-is-better is of a judge"),
        (("--method", "parm"), REWARD, "trimtab train parm"),
        (("--method", "arms"), REWARD, "--method arms is not known. Accepted: arm, head, dpo, agent"),
        (("--method", "agent"), SENTENCES, "give --reward R"),
        (("--num-test", "30"), REWARD, "20 different prompts are too few: 4 to validate and 30 to test"),
        (("--pairs-flags", "--num-sample 3"), REWARD, "Did you mean '--num-samples'"),
        (
            ("--pairs-flags", "--num-samples 1"),
            REWARD,
            "--pairs-flags does not fit `trimtab pairs`: argument --num-samples",
        ),
        (("--calibrate-flags", "--forms shft"), REWARD, "argument --forms: 'shft' is not a form"),
        (
            ("--calibrate-flags", "--strengths 1"),
            REWARD,
            "--calibrate-flags does not fit `trimtab calibrate`: --strengths names one strength",
        ),
        (("--train-flags", '--form "'), REWARD, "Close the quote"),
        (("--prompts", "builtin:none"), REWARD, "builtin:training"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(
    run: Run, tiny: Tiny, argv: tuple[str, ...], way: tuple[str, ...], problem: str
) -> None:
    outcome = run(*_make(tiny, *argv, way=way))
    assert outcome.code == 2
    assert problem in outcome.err
    assert not Path("guides").exists()


def test_an_agent_is_made_of_a_reward_without_pairs(run: Run, tiny: Tiny) -> None:
    """The last --train-flags and --strengths are those that count."""
    pytest.importorskip("torchrl")
    few = "--episodes 2 --batch-size 8 --warmup-batches 1 --updates-per-episode 1 --top-k 4"
    flags = ("--method", "agent", "--pairs-flags", "", "--train-flags", few, "--strengths", "0.3,0.7")
    outcome = run(*_make(tiny, *flags))
    assert outcome.code == 0, outcome.err
    commands = _commands(outcome.err)
    assert [words[1] for words in commands] == ["train", "calibrate", "compare"]
    assert "scorers_for_make.py-early=scorers_for_make.py:early:1" in commands[0]
    assert read_card(Path("guides/mine")).kind == "agent"
    recipe = json.loads(Path("guides/mine.work/report/run.json").read_text())["recipe"]
    assert [entry["method"] for entry in recipe["methods"]] == ["base", "sharpened", "mara"]


def test_a_head_is_made_of_pairs_as_an_arm_is(run: Run, tiny: Tiny) -> None:
    flags = ("--method", "head", "--train-flags", f"{TRAIN_FLAGS} --head-only 4", "--strengths", "1,4")
    outcome = run(*_make(tiny, *flags))
    assert outcome.code == 0, outcome.err
    commands = _commands(outcome.err)
    assert [words[1:3] for words in commands if words[1] == "train"] == [["train", "arm"]]
    card = read_card(Path("guides/mine"))
    assert (card.kind, card.head["rank"]) == ("head", 4)
    recipe = json.loads(Path("guides/mine.work/report/run.json").read_text())["recipe"]
    assert {entry["method"] for entry in recipe["methods"]} == {"base", "sharpened", "palc"}
