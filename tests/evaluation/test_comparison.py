"""A comparison's run: every answer once, cut and continued at will, never mixed with another's."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.evaluation import comparison_fakes as fakes
from trimtab.errors import DataError, NotFiniteError, OptionError, OutputExistsError, ScoreError
from trimtab.evaluation.comparison.fingerprints import content_digests, run_settings
from trimtab.evaluation.comparison.recipe import MethodSpec, Recipe
from trimtab.evaluation.comparison.records import read_answers, read_costs
from trimtab.evaluation.comparison.run import RunFiles, draw_seed, keys_of, open_run, read_run, run_comparison
from trimtab.storage.same_run import differences
from trimtab.storage.scorers import Scorer

MODEL = {"architecture": "Tiny", "norms": [1.0]}
CPU = torch.device("cpu")


def settings(recipe: Recipe) -> dict[str, Any]:
    return run_settings(recipe, fakes.PROMPTS, MODEL)


def begin(directory: Path, recipe: Recipe, *, resume: bool = False) -> RunFiles:
    return open_run(directory, recipe, settings(recipe), {"machine": {"processor": "a test"}}, resume=resume)


def run(directory: Path, recipe: Recipe, build: Callable[[MethodSpec], Any] = fakes.build, **options: Any) -> int:
    files = begin(directory, recipe, **options)
    return run_comparison(recipe, fakes.PROMPTS, fakes.SCORERS, build, files, device=CPU)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("whole") / "run"
    run(directory, fakes.recipe())
    return directory


def lines(directory: Path) -> list[str]:
    return sorted((directory / "answers.jsonl").read_text(encoding="utf-8").splitlines())


def test_every_answer_is_made_once(whole: Path) -> None:
    rows = read_answers(whole / "answers.jsonl")
    # (12 + 14) prompts, 2 seeds: base 1 strength, arm 3, best-of-n 2 strengths on 10 + 10 prompts, aligner 1.
    assert len(rows) == 52 + 3 * 52 + 2 * 40 + 52
    assert {row.key for row in rows} == set(keys_of(fakes.recipe(), fakes.PROMPTS))
    assert len(lines(whole)) == len(rows)
    assert max(row.key.prompt_index for row in rows if row.key.method == "best-of-n") == 9


class EachPolicy(fakes.FakePolicy):
    """Answers at several strengths in one batch; remembers its batches."""

    def __init__(self, method: str, batches: list[list[tuple[Any, Any]]]) -> None:
        super().__init__(method)
        self._batches = batches

    def answer(self, prompts: Any, strength: Any, params: Any, seeds: Any) -> Any:
        self._batches.append([(str(prompt), strength) for prompt in prompts])
        return super().answer(prompts, strength, params, seeds)

    def answer_each(self, prompts: Any, strengths: Any, params: Any, seeds: Any) -> Any:
        self._batches.append([(str(prompt), strength) for prompt, strength in zip(prompts, strengths, strict=True)])
        for prompt, strength, seed in zip(prompts, strengths, seeds, strict=True):
            yield from fakes.FakePolicy.answer(self, [prompt], strength, params, [seed])


def test_shared_prompts_give_the_same_answers_and_no_times(tmp_path: Path, whole: Path) -> None:
    """Strengths and seeds of a prompt stand in one batch, where a method can; else its seeds do."""
    batches: dict[str, list[list[tuple[Any, Any]]]] = {}

    def build(spec: MethodSpec) -> fakes.FakePolicy:
        kind = fakes.KL_KINDS.get(spec.method, "exact")
        if spec.method != "genarm":
            return fakes.FakePolicy(spec.method, kind)
        return EachPolicy(spec.method, batches.setdefault(spec.name, []))

    recipe = fakes.recipe(batch_size=6)
    files = begin(tmp_path, recipe)
    run_comparison(recipe, fakes.PROMPTS, fakes.SCORERS, build, files, device=CPU, share_prompts=True)
    assert lines(tmp_path) == lines(whole)
    assert read_costs(files.costs) == []
    first, *_ = batches["arm"][1:]  # the one before it warms up
    assert first == [(str(fakes.PROMPTS["validation"][0]), strength) for strength in (0.5, 0.5, 1.0, 1.0, 2.0, 2.0)]
    assert len(batches["arm"]) == 1 + (12 + 14) * 6 / 6


def test_a_run_that_was_cut_goes_on_with_shared_prompts(tmp_path: Path, whole: Path) -> None:
    recipe = fakes.recipe(batch_size=6)
    files = begin(tmp_path, recipe)
    kept = (whole / "answers.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)[:100]
    files.answers.write_text("".join(kept))
    run_comparison(recipe, fakes.PROMPTS, fakes.SCORERS, fakes.build, files, device=CPU, share_prompts=True)
    assert lines(tmp_path) == lines(whole)


def test_a_row_says_what_it_is_and_what_it_earned(whole: Path) -> None:
    fields = json.loads((whole / "answers.jsonl").read_text(encoding="utf-8").splitlines()[-1])
    assert list(fields) == [
        *("method", "strength", "seed", "split", "prompt_index", "prompt", "text", "token_ids", "num_tokens"),
        *("finish_reason", "rewards", "kl", "kl_kind", "base_logprob", "acted", "num_needed"),
    ]
    assert (fields["method"], fields["strength"], fields["seed"], fields["prompt_index"]) == ("aligner", 1.0, 1, 13)
    assert (fields["split"], fields["kl"], fields["kl_kind"]) == ("test", None, "unknown")
    assert fields["prompt"] == fakes.PROMPTS["test"][13]
    good = fields["text"].split().count("good")
    assert fields["rewards"]["good"] == good / 12
    assert fields["rewards"]["brief"] == -fakes.brevity([fields["prompt"]], [fields["text"]])[0]  # its weight is -1
    assert (fields["num_tokens"], fields["base_logprob"]) == (12, -18.0)


def test_costs_add_up(whole: Path) -> None:
    costs = read_costs(whole / "costs.jsonl")
    rows = read_answers(whole / "answers.jsonl")
    assert sum(cost.num_answers for cost in costs) == len(rows)
    assert sum(cost.num_tokens for cost in costs) == sum(row.num_tokens for row in rows)
    assert all(cost.decoded_tokens == 3 * cost.num_tokens for cost in costs)  # the warm-up is nobody's
    assert max(cost.num_answers for cost in costs) == 5
    assert all(cost.seconds > 0 and cost.peak_memory_mb > 0 for cost in costs)


def test_seeds_differ_by_prompt_and_seed() -> None:
    assert len({draw_seed(seed, index) for seed in range(5) for index in range(1000)}) == 5000


@pytest.mark.parametrize("cut", [0, 1, 200, 5000, 30000])
def test_a_cut_run_continues_to_the_same_answers(whole: Path, tmp_path: Path, cut: int) -> None:
    """Cut at any byte: the torn line goes, exactly the missing answers are made, and they are those of the whole."""
    begin(tmp_path, fakes.recipe())
    content = (whole / "answers.jsonl").read_bytes()
    (tmp_path / "answers.jsonl").write_bytes(content[:-cut] if cut else content)
    (tmp_path / "costs.jsonl").write_bytes((whole / "costs.jsonl").read_bytes()[:-3])
    num_kept = len(read_answers(tmp_path / "answers.jsonl"))
    asked: list[fakes.FakePolicy] = []

    def counting(spec: MethodSpec) -> fakes.FakePolicy:
        asked.append(fakes.build(spec))
        return asked[-1]

    num_made = run(tmp_path, fakes.recipe(), counting, resume=True)
    assert lines(tmp_path) == lines(whole)
    assert num_made == len(lines(whole)) - num_kept
    assert sum(policy.num_asked for policy in asked) == num_made + len(asked)  # one warm-up each
    assert (cut == 0) == (asked == [])
    read_costs(tmp_path / "costs.jsonl")


def test_the_batch_size_changes_no_answer(whole: Path, tmp_path: Path) -> None:
    run(tmp_path / "run", fakes.recipe(batch_size=64))
    assert lines(tmp_path / "run") == lines(whole)


_SLOW = """
import sys, time
from pathlib import Path
from tests.evaluation import comparison_fakes as fakes, test_comparison as test
class Slow(fakes.FakePolicy):
    def answer(self, prompts, strength, params, seeds):
        time.sleep(0.03)
        yield from super().answer(prompts, strength, params, seeds)
test.run(Path(sys.argv[1]), fakes.recipe(), lambda spec: Slow(spec.method, fakes.KL_KINDS.get(spec.method, "exact")))
"""


def test_kill_9_loses_nothing_and_changes_nothing(whole: Path, tmp_path: Path, repository: Path) -> None:
    directory = tmp_path / "run"
    env = {**os.environ, "PYTHONPATH": str(repository)}
    process = subprocess.Popen([sys.executable, "-c", _SLOW, str(directory)], cwd=repository, env=env)
    deadline = time.monotonic() + 120
    while not (directory / "answers.jsonl").exists() or len(lines(directory)) < 60:
        assert process.poll() is None, "it ended by itself"
        assert time.monotonic() < deadline, "it never began"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    with (directory / "answers.jsonl").open("a") as stream:
        stream.write('{"method": "arm", "str')  # as a write that was cut would leave it
    num_kept = len(read_answers(directory / "answers.jsonl"))
    assert 60 <= num_kept < len(lines(whole))
    assert run(directory, fakes.recipe(), resume=True) == len(lines(whole)) - num_kept
    assert lines(directory) == lines(whole)


def test_a_run_in_the_way(whole: Path) -> None:
    with pytest.raises(OutputExistsError, match="--resume"):
        begin(whole, fakes.recipe())


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"decoding": {"max_new_tokens": 12, "temperature": 0.5}}, "decoding.temperature was 1.0, is 0.5"),
        ({"model": "other"}, 'model.name was "demo", is "other"'),
        (
            {"rewards": {"good": {"scorer": "offence"}, "brief": {"scorer": "offence", "weight": -1}}},
            "rewards.good.scorer",
        ),
        ({"rewards": {"good": {"scorer": "sentiment"}}}, "rewards.brief was"),
        ({"template": "raw"}, 'template was "auto", is "raw"'),
    ],
)
def test_runs_of_different_settings_are_not_mixed(whole: Path, changes: dict[str, Any], difference: str) -> None:
    before = (whole / "run.json").read_bytes()
    with pytest.raises(OptionError, match="Cannot continue") as caught:
        begin(whole, fakes.recipe(**changes), resume=True)
    assert difference in str(caught.value)
    assert (whole / "run.json").read_bytes() == before


def test_other_prompts_or_another_model_of_the_same_name_are_other_settings(whole: Path) -> None:
    recipe = fakes.recipe()
    prompts = {**fakes.PROMPTS, "test": [*fakes.PROMPTS["test"][:-1], "Another?"]}
    for other in (run_settings(recipe, prompts, MODEL), run_settings(recipe, fakes.PROMPTS, {**MODEL, "norms": [2.0]})):
        with pytest.raises(OptionError, match=r"prompts\.test\.sha256 was|model\.norms was"):
            open_run(whole, recipe, other, {}, resume=True)


def test_a_guide_trained_anew_is_another_setting(tmp_path: Path) -> None:
    guide = tmp_path / "guides" / "g"
    guide.mkdir(parents=True)
    (guide / "guide.json").write_text("{}")
    (guide / "model.safetensors").write_bytes(b"old")
    before = dict(content_digests({"a": [str(guide), f"{guide}:0.5", "builtin:x", "owner/name"]}))
    assert list(before) == ["a.0", "a.1"]
    (guide / "model.safetensors").write_bytes(b"new")
    assert dict(content_digests(str(guide))) != before
    assert differences({"methods": {"m": {"files": before}}}, {"methods": {"m": {"files": {"g": "x"}}}}) != []


def test_two_guides_whose_directories_have_one_name_are_two(tmp_path: Path) -> None:
    for run_name in "xy":
        (tmp_path / run_name / "guide").mkdir(parents=True)
        (tmp_path / run_name / "guide" / "model.safetensors").write_text(run_name)
    guides = {name: str(tmp_path / name / "guide") for name in "xy"}
    before = dict(content_digests({"guides": guides}))
    (tmp_path / "x" / "guide" / "model.safetensors").write_text("trained anew")
    after = dict(content_digests({"guides": guides}))
    assert [name for name in after if after[name] != before[name]] == ["guides.x"]


def test_a_bare_word_that_is_a_directory_here_has_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`load_guide` would take it."""
    (tmp_path / "guide").mkdir()
    (tmp_path / "guide" / "model.safetensors").write_text("old")
    monkeypatch.chdir(tmp_path)
    assert list(dict(content_digests({"guides": {"g": "guide"}}))) == ["guides.g"]


def test_methods_strengths_and_seeds_may_be_added(tmp_path: Path) -> None:
    methods = fakes.source()["methods"]
    run(tmp_path, fakes.recipe(methods=methods[:1], seeds=[0]))
    assert run(tmp_path, fakes.recipe(methods=methods[1:2] + methods[:1], seeds=[0]), resume=True) == 3 * 26
    assert run(tmp_path, fakes.recipe(), resume=True) == len(lines(tmp_path)) - 4 * 26
    # A method that was left out for a while is still held to what it was.
    assert run(tmp_path, fakes.recipe(methods=methods[:1]), resume=True) == 0
    changed = [{**methods[1], "guides": {"good": "other"}}, methods[0]]
    with pytest.raises(OptionError, match=r"methods\.arm\.options\.guides\.good was"):
        begin(tmp_path, fakes.recipe(methods=changed), resume=True)


def test_answers_without_a_run_are_refused(tmp_path: Path) -> None:
    (tmp_path / "answers.jsonl").write_text("{}\n")
    with pytest.raises(DataError, match=r"no run\.json"):
        begin(tmp_path, fakes.recipe())


def test_a_broken_line_inside_is_an_error_with_its_number(whole: Path, tmp_path: Path) -> None:
    begin(tmp_path, fakes.recipe())
    content = (whole / "answers.jsonl").read_bytes().splitlines(keepends=True)
    for broken, problem in ((b"oops\n", "no JSON object"), (b'{"method": "arm"}\n', "not an answer")):
        (tmp_path / "answers.jsonl").write_bytes(b"".join([*content[:2], broken, *content[2:4]]))
        with pytest.raises(DataError, match=f"line 3: {problem}"):
            run(tmp_path, fakes.recipe(), resume=True)


def test_run_json_says_what_was_done(whole: Path, tmp_path: Path) -> None:
    found = read_run(whole)
    assert found["recipe"] == fakes.source()
    assert found["machine"] == {"processor": "a test"}
    assert len(found["fingerprint"]) == 64
    assert found["settings"]["prompts"]["test"]["num"] == 14
    with pytest.raises(DataError, match="no run of"):
        read_run(tmp_path)
    (tmp_path / "run.json").write_text('{"format": 99}')
    with pytest.raises(DataError, match="format 1"):
        read_run(tmp_path)


class Fussy:
    """A scorer that cannot score one prompt, until it is told otherwise."""

    def __init__(self, fault: Any) -> None:
        self.fault = fault
        self.num_scored = 0

    def __call__(self, prompts: Sequence[Any], texts: Sequence[str]) -> list[Any]:
        self.num_scored += len(texts)
        rewards: list[Any] = list(fakes.goodness(prompts, texts))
        for index, prompt in enumerate(prompts):
            if "prompt 7" in str(prompt) and self.fault is not None:
                rewards[index] = self.fault() if callable(self.fault) else self.fault
        return rewards


def _scorers(function: Any) -> dict[str, Scorer]:
    return {**fakes.SCORERS, "good": Scorer("mine:good", "", function)}


def _fail() -> float:
    raise ZeroDivisionError("division by zero")


@pytest.mark.parametrize(
    "fault", [_fail, "good", float("nan"), 1e308, True], ids=lambda fault: getattr(fault, "__name__", str(fault))
)
def test_a_scorer_that_fails_names_the_prompt_and_loses_no_answer(whole: Path, tmp_path: Path, fault: Any) -> None:
    recipe, scorer = fakes.recipe(), Fussy(fault)
    asked: list[fakes.FakePolicy] = []

    def counting(spec: MethodSpec) -> fakes.FakePolicy:
        asked.append(fakes.build(spec))
        return asked[-1]

    place = r"Scorer mine:good .*prompt_index 7 of the validation prompts \(base at strength 0, seed 0\)"
    with pytest.raises(ScoreError, match=place):
        run_comparison(recipe, fakes.PROMPTS, _scorers(scorer), counting, begin(tmp_path, recipe), device=CPU)
    rows = read_answers(tmp_path / "answers.jsonl")
    # Prompts 5 to 9 were one batch; 7 failed.
    assert sorted(row.key.prompt_index for row in rows) == [0, 1, 2, 3, 4, 5, 6, 8, 9]
    assert [row.key.prompt_index for row in read_answers(tmp_path / "unscored.jsonl")] == [7]
    assert sum(cost.num_answers for cost in read_costs(tmp_path / "costs.jsonl")) == 10

    scorer.fault = None
    files = begin(tmp_path, recipe, resume=True)
    assert run_comparison(recipe, fakes.PROMPTS, _scorers(scorer), counting, files, device=CPU) == len(lines(whole)) - 9
    assert lines(tmp_path) == lines(whole)
    assert sum(policy.num_asked for policy in asked) == len(lines(whole)) + len(asked)  # nothing twice; the warm-ups
    assert not (tmp_path / "unscored.jsonl").exists()
    assert sum(cost.num_answers for cost in read_costs(tmp_path / "costs.jsonl")) == len(lines(whole))


@pytest.mark.parametrize("stop", [KeyboardInterrupt, MemoryError])
def test_answers_are_on_the_disk_before_they_are_scored(whole: Path, tmp_path: Path, stop: type[BaseException]) -> None:
    """Whatever ends a scorer, a signal too."""

    def interrupted(prompts: Sequence[Any], texts: Sequence[str]) -> list[float]:
        assert len(read_answers(tmp_path / "unscored.jsonl")) == len(texts)
        raise stop

    files = begin(tmp_path, fakes.recipe())
    with pytest.raises((KeyboardInterrupt, ScoreError)):
        run_comparison(fakes.recipe(), fakes.PROMPTS, _scorers(interrupted), fakes.build, files, device=CPU)
    assert len(read_answers(tmp_path / "unscored.jsonl")) == 5
    run(tmp_path, fakes.recipe(), resume=True)
    assert lines(tmp_path) == lines(whole)


def test_a_weight_that_makes_a_reward_too_large_is_said(tmp_path: Path) -> None:
    recipe = fakes.recipe(rewards={"good": {"scorer": "sentiment", "weight": 1e30}})
    scorers = {"good": Scorer("mine:large", "", lambda prompts, texts: [100.0] * len(texts))}
    with pytest.raises(ScoreError, match=r"mine:large gave 100\.0 for prompt_index 0 .* times its weight 1e\+30"):
        run_comparison(recipe, fakes.PROMPTS, scorers, fakes.build, begin(tmp_path, recipe), device=CPU)


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_is_no_failure_of_a_method(
    tmp_path: Path, stop: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    class Interrupted(fakes.FakePolicy):
        def answer(self, prompts: Any, *rest: Any) -> Any:
            for index, answer in enumerate(super().answer(prompts, *rest)):
                if index == 3:
                    raise stop
                yield answer

    with pytest.raises(stop):
        run(tmp_path, fakes.recipe(), lambda spec: Interrupted(spec.method))
    assert caplog.text == ""
    assert [row.key.prompt_index for row in read_answers(tmp_path / "unscored.jsonl")] == [0, 1, 2]


def test_a_method_that_fails_in_the_middle_of_a_batch_loses_no_answer(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Three answers came before the error; they are scored and on file."""

    class Broken(fakes.FakePolicy):
        def answer(self, prompts: Any, *rest: Any) -> Any:
            for index, answer in enumerate(super().answer(prompts, *rest)):
                if index == 3:
                    raise NotFiniteError("NaN")
                yield answer

    with pytest.raises(NotFiniteError):
        run(tmp_path, fakes.recipe(), lambda spec: Broken(spec.method))
    assert "base failed at strength 0" in caplog.text
    assert [row.key.prompt_index for row in read_answers(tmp_path / "answers.jsonl")] == [0, 1, 2]
    assert sum(cost.num_answers for cost in read_costs(tmp_path / "costs.jsonl")) == 3


def test_a_method_that_fails_is_named_and_what_was_made_stays(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Broken(fakes.FakePolicy):
        def answer(self, *rest: Any) -> Any:
            raise NotFiniteError("NaN")

    def build(spec: MethodSpec) -> fakes.FakePolicy:
        policy = fakes.build(spec)
        if spec.name == "arm":
            policy.answer = lambda prompts, *rest: (  # type: ignore[method-assign]
                Broken("x").answer() if len(prompts) > 1 else iter(())
            )
        return policy

    with caplog.at_level(logging.ERROR), pytest.raises(NotFiniteError):
        run(tmp_path, fakes.recipe(), build)
    assert "arm failed at strength 0.5" in caplog.text
    assert len(read_answers(tmp_path / "answers.jsonl")) == 52
