"""`trimtab compare` on tiny models: what it makes, prints, continues and refuses."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cli.conftest import Run, Tiny

pytest.importorskip("vaderSentiment")
pytest.importorskip("matplotlib")


@pytest.fixture
def recipe(tiny: Tiny, tmp_path: Path) -> Path:
    return write(tmp_path, tiny)


def write(directory: Path, tiny: Tiny, **changes: Any) -> Path:
    source = {
        "title": "Tiny",
        "model": tiny.model,
        "prompts": {
            "validation": {"path": "prompts.jsonl", "num": 10},
            "test": {"path": "prompts.jsonl", "start": 10, "num": 11},
        },
        "decoding": {"max_new_tokens": 4},
        "seeds": [0, 1],
        "batch_size": 8,
        "rewards": {"sentiment": {"scorer": "sentiment"}},
        "methods": [
            {"method": "base"},
            {"name": "arm", "method": "genarm", "guides": {"g": tiny.lora}, "strengths": [0.5, 1]},
            {"method": "best-of-n", "scorer": "sentiment", "strengths": [2], "max_prompts": 10},
        ],
        **changes,
    }
    lines = [json.dumps({"prompt": f"Question {index}?"}) for index in range(21)]
    (directory / "prompts.jsonl").write_text("\n".join(lines) + "\n")
    path = directory / "recipe.yaml"
    path.write_text(yaml.safe_dump(source, sort_keys=False))
    return path


def answers(out: Path) -> list[dict[str, Any]]:
    """The rows in one order; float32 numbers without the digits that depend on how many rows a batch has."""
    lines = (out / "answers.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line, parse_float=lambda text: round(float(text), 4)) for line in lines]
    return sorted(rows, key=lambda row: json.dumps(row, sort_keys=True))


def test_a_run_its_report_and_its_continuation(run: Run, recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    outcome = run("compare", str(recipe), "--out", str(out), "--json")
    assert outcome.code == 0, outcome.err
    summary = json.loads(outcome.out)
    assert list(summary) == [
        "findings",
        "num_answers",
        "num_missing",
        "methods",
        "costs",
        "fronts",
        "front_differences",
        "report",
    ]
    # 21 prompts, 2 seeds, one base and two strengths; best-of-n on 10 + 10 prompts.
    assert (summary["num_answers"], summary["num_missing"]) == (3 * 42 + 40, 0)
    assert [one["method"] for one in summary["methods"]] == ["base", "arm", "best-of-n"]
    assert summary["methods"][1]["kl"] > 0
    assert summary["methods"][2]["kl_kind"] == "bound"
    assert Path(summary["report"]).read_text(encoding="utf-8").startswith("<!doctype html>")
    assert "arm: loading" in outcome.err
    first = answers(out)
    assert first[0]["prompt"][0]["role"] == "user"  # the model has a chat template

    assert run("compare", str(recipe), "--out", str(out)).code == 2
    content = (out / "answers.jsonl").read_bytes()
    (out / "answers.jsonl").write_bytes(content[:-4000])
    again = run("compare", str(recipe), "--out", str(out), "--resume")
    assert again.code == 0, again.err
    assert answers(out) == first
    assert "Report: " in again.out


def test_the_report_can_be_drawn_again(run: Run, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "run"
    assert run("compare", str(recipe), "--out", str(out)).code == 0
    before = (out / "answers.jsonl").read_bytes()
    (out / "report.html").unlink()
    monkeypatch.setattr("trimtab.storage.loading.load_model", lambda *args, **options: pytest.fail("it loads a model"))
    outcome = run("compare", str(out), "--report-only")
    assert outcome.code == 0, outcome.err
    assert (out / "report.html").is_file()
    assert (out / "answers.jsonl").read_bytes() == before


def test_other_settings_are_refused_and_overwrite_begins_anew(run: Run, tiny: Tiny, tmp_path: Path) -> None:
    out = tmp_path / "run"
    methods = [{"method": "base"}]
    assert run("compare", str(write(tmp_path, tiny, methods=methods)), "--out", str(out)).code == 0
    changed = str(write(tmp_path, tiny, methods=methods, decoding={"max_new_tokens": 3}))
    outcome = run("compare", changed, "--out", str(out), "--resume")
    assert outcome.code == 2
    assert "decoding.max_new_tokens was 4, is 3" in outcome.err
    assert run("compare", changed, "--out", str(out), "--overwrite").code == 0
    assert max(row["num_tokens"] for row in answers(out)) == 3


def test_a_scorer_beside_the_recipe_is_found(run: Run, tiny: Tiny, tmp_path: Path) -> None:
    """Wherever the command runs, as files beside it are; a reward's and a method's."""
    lines = ["def length(prompts, texts):", "    return [len(text) for text in texts]"]
    (tmp_path / "rewards_beside_a_recipe.py").write_text("\n".join(lines))
    name = "rewards_beside_a_recipe:length"
    methods = [{"method": "base"}, {"method": "best-of-n", "scorer": name, "strengths": [2]}]
    rewards = {"length": {"scorer": name}, "file": {"scorer": "rewards_beside_a_recipe.py:length"}}
    path = write(tmp_path, tiny, methods=methods, rewards=rewards)
    outcome = run("compare", str(path), "--out", str(tmp_path / "run"))
    assert outcome.code == 0, outcome.err
    assert all(row["rewards"]["length"] == len(row["text"]) for row in answers(tmp_path / "run"))
    settings = json.loads((tmp_path / "run" / "run.json").read_text())["settings"]
    assert list(settings["rewards"]["length"]["files"]) == ["rewards_beside_a_recipe.py"]  # --resume sees it change


def test_a_method_without_its_scorer_is_refused_before_anything_is_made(run: Run, tiny: Tiny, tmp_path: Path) -> None:
    methods = [{"method": "base"}, {"method": "best-of-n", "scorer": "no_such_module:f", "strengths": [2]}]
    outcome = run("compare", str(write(tmp_path, tiny, methods=methods)), "--out", str(tmp_path / "run"))
    assert outcome.code == 2
    assert "'no_such_module' cannot be imported" in outcome.err
    assert "loading" not in outcome.err
    assert not (tmp_path / "run").exists()


def test_methods_may_be_added(run: Run, tiny: Tiny, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert run("compare", str(write(tmp_path, tiny, methods=[{"method": "base"}])), "--out", str(out)).code == 0
    more = write(tmp_path, tiny, methods=[{"method": "base"}, {"method": "sharpened", "strengths": [1]}])
    outcome = run("compare", str(more), "--out", str(out), "--resume")
    assert outcome.code == 0, outcome.err
    assert "42 answers made" in outcome.err


def test_every_problem_of_a_recipe_at_once(run: Run, tiny: Tiny, tmp_path: Path) -> None:
    methods = [{"method": "bas"}, {"method": "genarm", "guide": "x"}, {"method": "best-of-n", "strengths": [0]}]
    outcome = run("compare", str(write(tmp_path, tiny, methods=methods, sede=1)), "--out", str(tmp_path / "run"))
    assert outcome.code == 2
    for problem in (
        "methods[0].method: Unknown method 'bas'. Did you mean 'base'?",
        "methods[1].guide: Unknown option of genarm 'guide'. Did you mean 'guides'?",
        "genarm needs guides",
        "best-of-n needs scorer",
        "a strength of best-of-n is 0.0",
        "sede: Unknown key 'sede'. Did you mean 'seeds'?",
    ):
        assert problem in outcome.err
    assert not (tmp_path / "run").exists()


def test_paths_that_lead_nowhere_are_said_first(run: Run, tiny: Tiny, tmp_path: Path) -> None:
    methods = [
        {"method": "base"},
        {"method": "genarm", "guides": {"a": "./nowhere", "b": "../gone/b"}},
        {"method": "prompt", "guide": "prompt:@no-sentence.txt"},
        {"method": "guides", "guides": {"a": "prompt:Be brief:1:2"}},
    ]
    rewards = {"mine": {"scorer": "./lost"}, "read": {"scorer": "prompt:"}}
    outcome = run("compare", str(write(tmp_path, tiny, methods=methods, rewards=rewards)), "--out", str(tmp_path / "r"))
    assert outcome.code == 2
    for place in (
        "methods[1].guides: there is no ./nowhere",
        "no ../gone/b",
        "rewards.mine.scorer: there is no ./lost",
        "methods[2].guide: There is no file",
        "methods[3].guides: 'Be brief:1:2' ends in 1:2, which may be part of the sentence or its weight",
        "rewards.read.scorer: 'prompt:' has no sentence behind the colon",
    ):
        assert place in outcome.err
    assert "loading" not in outcome.err


@pytest.mark.parametrize(
    ("prompts", "problem"),
    [
        (
            {"test": {"path": "prompts.jsonl", "num": 22}},
            "prompts.test asks for rows 0 to 22 of prompts.jsonl, which has 21",
        ),
        ({"test": {"builtin": "demo", "start": 64}}, "which has 64"),
        ({"test": {"path": "gone.jsonl"}}, "there is no such file"),
        (
            {"validation": {"builtin": "demo", "num": 5}, "test": {"builtin": "demo", "start": 4, "num": 3}},
            "1 prompts are in both splits",
        ),
    ],
)
def test_prompts_that_are_not_there(run: Run, tiny: Tiny, tmp_path: Path, prompts: Any, problem: str) -> None:
    outcome = run("compare", str(write(tmp_path, tiny, prompts=prompts)), "--out", str(tmp_path / "run"))
    assert outcome.code == 2
    assert problem in outcome.err


def test_a_bad_line_names_no_flag_of_another_command(run: Run, recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.jsonl").write_text("{\n")
    outcome = run("compare", str(recipe), "--out", str(tmp_path / "run"))  # `run` looks at the flags that it names
    assert outcome.code == 2
    assert "prompts.jsonl, line 1: not JSON" in outcome.err


@pytest.mark.parametrize(
    ("argv", "problem"),
    [
        (("recipe.yaml",), "--out is missing"),
        (("run", "--report-only", "--out", "x"), "leave --out out"),
        (("nothing", "--report-only"), "no run.json"),
        (("recipe.yaml", "--report-only"), "recipe.yaml is a file. Give the directory of a run"),
        ((".", "--out", "x"), "this is a directory"),
        (("gone.yaml", "--out", "x"), "no such file; give a recipe"),
        (("recipe.yaml", "--out", "recipe.yaml"), "is a file"),
        (("recipe.yaml", "--out", "x", "--sede", "1"), "--sede"),
    ],
)
def test_what_is_refused(
    run: Run, recipe: Path, monkeypatch: pytest.MonkeyPatch, argv: tuple[str, ...], problem: str
) -> None:
    monkeypatch.chdir(recipe.parent)
    outcome = run("compare", *argv)
    assert outcome.code == 2
    assert problem in outcome.err


def test_a_missing_package_is_said_before_the_model_is_loaded(
    run: Run, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    outcome = run("compare", str(recipe), "--out", str(tmp_path / "run"))
    assert outcome.code == 2
    assert 'pip install "trimtab[compare]"' in outcome.err
    assert "loading" not in outcome.err


def test_the_recipe_that_ships_is_sound(repository: Path) -> None:
    from trimtab.cli.compare import _read_all
    from trimtab.evaluation.comparison.catalogued import known_methods
    from trimtab.evaluation.comparison.recipe_reader import path_problems, read_recipe
    from trimtab.methods.catalogue import check_method

    found = read_recipe(repository / "recipes" / "smoke.yaml", known_methods(), check_method)
    assert path_problems(found) == []
    assert {split: len(items) for split, items in _read_all(found).items()} == {"validation": 10, "test": 10}


@pytest.mark.parametrize(("batch_size", "rows"), [(70, 70), (8, 64)])
def test_more_answers_at_a_time_than_an_engine_takes_by_itself_run_at_a_time(
    batch_size: int, rows: int, run: Run, tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A small batch leaves the engine its own room: best-of-n asks for several answers to each prompt."""
    from trimtab.decoding.decoder import Decoder

    most_at_once = 0
    decoded = Decoder._decoded

    def watched(decoder: Decoder) -> Any:
        nonlocal most_at_once
        steps = decoded(decoder)
        most_at_once = max(most_at_once, len({one.request_id for one in steps}))
        return steps

    monkeypatch.setattr(Decoder, "_decoded", watched)
    methods = [{"method": "base"}, {"method": "best-of-n", "scorer": "sentiment", "strengths": [10]}]
    changes = {"methods": methods, "seeds": [0, 1, 2, 3], "decoding": {"max_new_tokens": 1}, "batch_size": batch_size}
    recipe = write(tmp_path, tiny, **changes)
    outcome = run("compare", str(recipe), "--out", str(tmp_path / "run"))
    assert outcome.code == 0, outcome.err
    assert most_at_once == rows


@pytest.mark.parametrize(
    ("method", "problem"),
    [
        ({"method": "guides", "guides": {"a": "nowhere"}}, "nowhere"),
        ({"method": "guides", "guides": {"a": "LORA", "b": "LORA"}, "strengths": [1]}, "one each for a, b"),
        ({"method": "guides", "guides": {"a": "builtin:none"}}, "Unknown shipped guide 'builtin:none'"),
        ({"method": "genarm", "guides": {"a": "nowhere"}}, "nowhere"),
        ({"method": "few-shot", "examples": "none.jsonl"}, "no file of examples"),
        ({"method": "few-shot", "examples": "few.jsonl", "num": 3}, "holds 1 examples, and num is 3"),
        ({"method": "prompt", "guide": "LORA"}, "is no guide made of a sentence"),
        ({"method": "system", "guide": 'prompt:"Be kind."/"Be rude."'}, "system takes one sentence"),
        ({"method": "system", "guide": 'prompt:"Be kind."', "strengths": [0.5]}, "means nothing to system"),
        ({"method": "mara", "guide": "LORA"}, "accept-reject agent"),
        ({"method": "parm", "guide": "LORA"}, "no preference vector"),
        ({"method": "args", "reward": "LORA"}, "a reward model is wanted"),
        ({"method": "transfer-q", "reward": "LORA"}, "a reward model is wanted"),
        ({"method": "best-of-n", "scorer": "sentment"}, "Did you mean 'sentiment'"),
        ({"method": "segments", "scorer": "sentment", "target": 1}, "Did you mean 'sentiment'"),
        ({"method": "cards", "scorer": "LORA", "target": 1}, "no guide.json that names its base"),
        ({"method": "aligner", "guide": "nowhere"}, "nowhere"),
        ({"method": "policy", "path": 'prompt:"Be kind."'}, "guide of another kind"),
        ({"method": "prompt", "guide": 'prompt:"Be kind.":2'}, "ends in a weight"),
        ({"method": "system", "guide": "prompt:Be kind.:1"}, "ends in a weight"),
        ({"method": "guides", "guides": {"a": 'prompt:"Be kind.":2'}}, "ends in a weight"),
        ({"method": "gated", "path": "prompt:Be kind.:2", "gate": "entropy:1"}, "ends in a weight"),
        ({"method": "aligner", "guide": "prompt:Be kind.:2"}, "ends in a weight"),
        ({"method": "policies", "paths": ["LORA"], "strengths": [1]}, "There are 1 policies, and a strength is 1"),
        ({"method": "soup", "paths": ["LORA", "MODEL"], "strengths": [[0.5, 0.5]]}, "is a whole model"),
        ({"method": "soup", "paths": ["LORA", "LORA"], "strengths": [1]}, "has 1 numbers"),
    ],
)
def test_what_a_method_has_to_open_is_opened_before_the_model_is_loaded(
    run: Run, tiny: Tiny, tmp_path: Path, method: dict[str, Any], problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "few.jsonl").write_text('{"prompt": "a", "answer": "b"}\n')
    monkeypatch.chdir(tmp_path)
    text = json.dumps(method).replace("LORA", tiny.lora).replace("MODEL", tiny.model)
    text = text.replace("few.jsonl", str(tmp_path / "few.jsonl"))
    methods = [{"method": "base"}, json.loads(text)]
    outcome = run("compare", str(write(tmp_path, tiny, methods=methods)), "--out", "run")
    assert outcome.code == 2
    assert problem in outcome.err
    assert f"methods[1] ({method['method']})" in outcome.err
    assert "loading" not in outcome.err
    assert not (tmp_path / "run").exists()


LONG = "a word or two " * 6


@pytest.mark.parametrize(
    "method",
    [
        {"method": "few-shot", "examples": "long.jsonl", "num": 1},
        {"method": "prompt", "guide": f'prompt:"{LONG}."'},
        {"method": "system", "guide": f'prompt:"{LONG}."'},
        {"method": "guides", "guides": {"a": "LORA", "b": f'prompt:"{LONG}."'}, "strengths": [[1, 1]]},
    ],
)
def test_what_does_not_fit_the_context_is_said_before_the_first_answer(
    run: Run, tiny: Tiny, tmp_path: Path, method: dict[str, Any]
) -> None:
    (tmp_path / "long.jsonl").write_text(json.dumps({"prompt": LONG, "answer": "b"}) + "\n")
    text = json.dumps(method).replace("LORA", tiny.lora).replace("long.jsonl", str(tmp_path / "long.jsonl"))
    methods = [{"method": "base"}, json.loads(text)]
    outcome = run("compare", str(write(tmp_path, tiny, methods=methods)), "--out", str(tmp_path / "run"))
    assert outcome.code == 2
    assert f"methods[1] ({method['method']}), prompt 0 of validation: " in outcome.err
    assert "96" in outcome.err
    assert not (tmp_path / "run").exists()


def test_a_sentence_that_no_prompt_would_fit_with_is_said_with_its_method(run: Run, tiny: Tiny, tmp_path: Path) -> None:
    methods = [{"method": "base"}, {"method": "prompt", "guide": f'prompt:"{LONG * 2}."'}]
    outcome = run("compare", str(write(tmp_path, tiny, methods=methods)), "--out", str(tmp_path / "run"))
    assert outcome.code == 2
    assert "methods[1] (prompt): " in outcome.err
    assert "Shorten the sentence" in outcome.err
    assert not (tmp_path / "run").exists()


def test_prompts_that_a_method_leaves_out_need_not_fit(run: Run, tiny: Tiny, tmp_path: Path) -> None:
    method = {"method": "prompt", "guide": 'prompt:"Be kind."', "strengths": [1], "max_prompts": 2}
    path = write(tmp_path, tiny, methods=[{"method": "base", "max_prompts": 2}, method], seeds=[0])
    rows = (tmp_path / "prompts.jsonl").read_text().splitlines()
    rows[5] = json.dumps({"prompt": LONG})
    (tmp_path / "prompts.jsonl").write_text("\n".join(rows) + "\n")
    outcome = run("compare", str(path), "--out", str(tmp_path / "run"))
    assert outcome.code == 0, outcome.err


def test_an_interrupt_says_how_to_go_on(
    run: Run, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It names no method as failed, and what it says goes on."""
    import trimtab.evaluation.comparison.run as module

    out = str(tmp_path / "run")

    def interrupted(*_: object, **__: object) -> int:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "run_comparison", interrupted)
        cut = run("compare", str(recipe), "--out", out)
    assert cut.code == 130
    assert "failed" not in cut.err
    assert cut.err.rstrip().endswith(f"compare {recipe} --out {out} --resume")
    assert run("compare", str(recipe), "--out", out, "--resume").code == 0
