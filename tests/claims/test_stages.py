"""Stages go on where they were, know a changed recipe, and say beforehand what they take; rows are kept whole."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from recipes.claims import rows, stages
from recipes.claims.__main__ import main
from recipes.claims.recipe import CLAIMS, SCALES, Claim, names, read, read_file
from tests.claims.test_graphs import MODELS
from trimtab.errors import DataError, OptionError

RECIPE = """
row: 1
claim: Two files can be written
paper: {{figure: none, where: nowhere}}
question: Can they?
fixed: {{}}
verdict: []
stages:
  - {{name: first, run: "$python $claim/write.py $work/first {extra}", makes: $work/first,
     hours: {{here: 0.5, paper: 2}}}}
  - {{name: second, run: "$python $claim/write.py $work/second.jsonl $word {needs}", makes: $work/second.jsonl,
     rows: second.jsonl, hours: {{here: 1, paper: 3}}}}
scales:
  here: {{hardware: two processor cores, values: {{word: a}}}}
  paper: {{hardware: a cluster, values: {{word: b}}}}
  tiny: {{hardware: any, values: {{word: c}}}}
"""
SCRIPT = """
import json, pathlib, sys
pathlib.Path(sys.argv[1]).write_text(json.dumps({"word": sys.argv[2]}) + "\\n")
"""


def claim(directory: Path, extra: str = "x", needs: str = "$work/first") -> Claim:
    directory.mkdir(exist_ok=True)
    (directory / "write.py").write_text(SCRIPT)
    (directory / "recipe.yaml").write_text(RECIPE.format(extra=extra, needs=needs))
    return read_file(directory / "recipe.yaml")


def said() -> tuple[list[str], stages.Say]:
    lines: list[str] = []
    return lines, lines.append


def test_a_finished_stage_is_not_run_again_and_a_cut_one_is(tmp_path: Path) -> None:
    plan = stages.plan(claim(tmp_path / "c"), "here", tmp_path / "w", {})
    calls: list[str] = []

    def cut(words: list[str]) -> int:
        calls.append(words[2])
        return 1 if words[2].endswith("second.jsonl") else stages._subprocess(words, None)

    with pytest.raises(stages.StageError, match="second ended with 1"):
        stages.run(plan, said()[1], execute=cut)
    assert [plan.state(one) for one in plan.stages] == ["finished", "to do"]
    assert stages.run(plan, said()[1]) == 1
    assert len(calls) == 2
    assert stages.run(plan, said()[1]) == 0


def test_a_stage_whose_output_is_gone_is_made_again(tmp_path: Path) -> None:
    plan = stages.plan(claim(tmp_path / "c"), "here", tmp_path / "w", {})
    stages.run(plan, said()[1])
    (tmp_path / "w" / "first").unlink()
    assert stages.run(plan, said()[1]) == 1


def test_a_command_that_makes_nothing_has_not_succeeded(tmp_path: Path) -> None:
    plan = stages.plan(claim(tmp_path / "c"), "here", tmp_path / "w", {})
    with pytest.raises(stages.StageError, match="did not make"):
        stages.run(plan, said()[1], execute=lambda words: 0)
    assert plan.state(plan.stages[0]) == "to do"


@pytest.mark.parametrize("what", ["command", "script"])
def test_a_changed_recipe_is_noticed_with_all_that_came_after(tmp_path: Path, what: str) -> None:
    stages.run(stages.plan(claim(tmp_path / "c"), "here", tmp_path / "w", {}), said()[1])
    changed = claim(tmp_path / "c", extra="y" if what == "command" else "x")
    if what == "script":
        (tmp_path / "c" / "write.py").write_text(SCRIPT + "# another\n")
    plan = stages.plan(changed, "here", tmp_path / "w", {})
    assert [plan.state(one) for one in plan.stages] == ["changed", "changed"]
    with pytest.raises(OptionError, match="another recipe"):
        stages.run(plan, said()[1])


def test_a_stage_depends_on_those_whose_output_it_names(tmp_path: Path) -> None:
    """And not on one whose output begins alike."""
    for needs, wanted in (("$work/first", "changed"), ("$work/first/a", "changed"), ("$work/first-of-all", "finished")):
        work = tmp_path / wanted / str(len(needs))
        stages.run(stages.plan(claim(tmp_path / "c", needs=needs), "here", work, {}), said()[1])
        plan = stages.plan(claim(tmp_path / "c", extra="y", needs=needs), "here", work, {})
        assert [plan.state(one) for one in plan.stages] == ["changed", wanted]


def test_claims_that_share_a_working_directory_make_alike_what_is_named_alike() -> None:
    """Else the one would refuse what the other has made."""
    for scale in SCALES:
        known: dict[tuple[str, str], str] = {}
        for name in names():
            found = read(name)
            given = {key: key for key in stages.used(found) if key in ("data", "models")}
            given |= {} if scale != "tiny" else {key: key for key in MODELS if key in stages.used(found)}
            for planned in stages.plan(found, scale, CLAIMS, given).stages if found.shares else ():
                place = (str(found.shares), planned.stage.name)
                assert known.setdefault(place, planned.digest) == planned.digest, (scale, name, place)
        assert known


def test_where_a_run_lies_changes_nothing(tmp_path: Path) -> None:
    found = [stages.plan(claim(tmp_path / "c"), "here", tmp_path / one, {}).stages[-1].digest for one in "ab"]
    assert found[0] == found[1]


def test_rows_of_the_recipe_alone_are_kept_beside_it(tmp_path: Path) -> None:
    mine = claim(tmp_path / "c")
    for scale, given in (("tiny", {}), ("here", {"word": "z"})):
        stages.run(stages.plan(mine, scale, tmp_path / f"{scale}{len(given)}", given), said()[1])
        assert not mine.rows_of("second").exists()
    stages.run(stages.plan(mine, "here", tmp_path / "w", {}), said()[1])
    assert rows.read(mine.rows_of("second")) == [{"word": "a"}]


def test_a_stage_alone_needs_those_whose_output_it_names(tmp_path: Path) -> None:
    free = stages.plan(claim(tmp_path / "c", needs=""), "here", tmp_path / "free", {})
    assert stages.run(free, said()[1], only="second") == 1
    plan = stages.plan(claim(tmp_path / "c"), "here", tmp_path / "w", {})
    with pytest.raises(OptionError, match="needs first"):
        stages.run(plan, said()[1], only="second")
    with pytest.raises(OptionError, match="Unknown stage"):
        stages.run(plan, said()[1], only="third")
    assert stages.run(plan, said()[1], only="first") == 1
    assert stages.run(plan, said()[1], only="second") == 1


def test_times_are_said_beforehand_and_those_of_the_paper_are_not_called_measured(tmp_path: Path) -> None:
    lines, say = said()
    stages.describe(stages.plan(claim(tmp_path / "c"), "paper", tmp_path / "w", {}), say)
    text = "\n".join(lines)
    assert "a cluster; 5 hours" in text
    assert "expected, not measured" in text
    assert "2 hours" in text
    assert "write.py" in text


def test_values_that_are_missing_or_not_used_are_named(tmp_path: Path) -> None:
    mine = claim(tmp_path / "c", extra="$data")
    with pytest.raises(OptionError, match="--data DIR"):
        stages.plan(mine, "here", tmp_path, {})
    with pytest.raises(OptionError, match=r"Unknown value 'wrod'.*'word'"):
        stages.plan(mine, "here", tmp_path, {"data": "d", "wrod": "x"})


@pytest.mark.parametrize("argv", [["list"], ["run", "fronts", "--scale", "paper"], ["run", "agents", "--dry-run"]])
def test_printing_loads_no_torch(argv: list[str], repository: Path) -> None:
    code = f"import sys; from recipes.claims.__main__ import main; main({argv!r}); print('torch' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], cwd=repository, capture_output=True, text=True, check=True)
    assert shown.stdout.splitlines()[-1] == "False"


def test_wrong_requests_have_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    for argv, words in (
        (["run", "front"], "Did you mean 'fronts'"),
        (["run", "costs", "--set", "x"], "KEY=VALUE"),
        (["run", "match-dpo", "--work", "w", "--stage", "gude", "--data", "."], "Did you mean 'guide'"),
        (["run", "match-dpo", "--work", "w", "--stage", "gude", "--dry-run"], "Did you mean 'guide'"),
        (["run", "match-dpo", "--work", "w"], "--data DIR"),
        (["run", "weak-to-strong", "--work", "w", "--data", "."], "--models DIR"),
        (["run", "newer-methods", "--work", "w", "--data", ".", "--dry-run"], "Leave --data out"),
    ):
        assert main(argv) == 2, argv
        assert words in capsys.readouterr().err


def test_one_stage_can_be_looked_at(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "match-dpo", "--work", "w", "--stage", "guide", "--dry-run"]) == 0
    shown = [line for line in capsys.readouterr().out.splitlines() if line[:1].isdigit()]
    assert [line.split()[1] for line in shown] == ["guide:"]


def test_a_list_says_what_a_claim_needs_and_ends_with_its_reader(
    capsys: pytest.CaptureFixture[str], repository: Path
) -> None:
    assert main(["list"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    needs = {name: [word for word in rest if word.startswith("--")] for _, name, *rest in lines}
    assert needs["newer-methods"] == []
    assert needs["match-dpo"] == ["--data"]
    assert needs["weak-to-strong"] == ["--data", "--models"]
    line = f"{sys.executable} -m recipes.claims list | head -0"
    ended = subprocess.run(["bash", "-c", f"set -o pipefail; {line}"], cwd=repository, capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (141, "")


def test_kept_rows_hold_no_prompt_and_the_same_bytes(tmp_path: Path) -> None:
    answer = dict.fromkeys(rows.KEPT, 0) | {"prompt": "secret", "token_ids": [1, 2], "text": "an answer"}
    kept = rows.packed([answer, answer])
    assert "secret" not in json.dumps(kept)
    assert kept[0]["prompt_sha256"] != rows.packed([{**answer, "prompt": "other"}])[0]["prompt_sha256"]
    rows.write(tmp_path / "a.jsonl.gz", kept)
    rows.write(tmp_path / "b.jsonl.gz", kept)
    assert (tmp_path / "a.jsonl.gz").read_bytes() == (tmp_path / "b.jsonl.gz").read_bytes()
    assert rows.read(tmp_path / "a.jsonl.gz") == kept
    (tmp_path / "a.jsonl.gz").write_bytes((tmp_path / "a.jsonl.gz").read_bytes()[:-9])
    with pytest.raises(DataError, match="not rows"):
        rows.read(tmp_path / "a.jsonl.gz")


def test_rows_that_are_too_many_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "MAX_FILE", 10)
    with pytest.raises(DataError, match="Split the stage"):
        rows.write(tmp_path / "a.jsonl.gz", [{"a": 1}])
    assert not (tmp_path / "a.jsonl.gz").exists()


def test_what_is_kept_is_small_and_whole() -> None:
    sizes = {path: path.stat().st_size for path in CLAIMS.glob("*/rows/*")}
    assert sizes
    assert {
        path.name for path, size in sizes.items() if size > rows.MAX_FILE or not path.name.endswith(".jsonl.gz")
    } == set()
    assert sum(sizes.values()) <= rows.MAX_ALL
    for path in sizes:
        assert rows.read(path), path
