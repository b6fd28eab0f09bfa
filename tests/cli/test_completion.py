"""The script of a shell, run in bash: what is offered for a line that is half written."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from trimtab.cli.completion import DIRECTORIES, FILES, SHELLS, _actions
from trimtab.cli.main import COMMANDS, build_parser

from .conftest import Run

ASK = """
source ./script
COMP_WORDS=("$@"); COMP_CWORD=$(( $# - 1 ))
_shtab_trimtab 2>/dev/null
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture
def offered(run: Run, tmp_path: Path):  # type: ignore[no-untyped-def]
    """`offered("generate", "--mo")`: what bash would offer, in a directory with two files and a folder."""
    outcome = run("completion", "bash")
    assert (outcome.code, outcome.err) == (0, "")
    (tmp_path / "script").write_text(outcome.out)
    (tmp_path / "answers.jsonl").touch()
    (tmp_path / "runs").mkdir()

    def ask(*words: str) -> set[str]:
        argv = ["bash", "-c", ASK, "bash", "trimtab", *words]
        done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, check=True)
        return set(done.stdout.split())

    return ask


def test_bash_completes_commands_flags_choices_and_files(offered) -> None:  # type: ignore[no-untyped-def]
    assert set(COMMANDS) <= offered("")
    assert offered("exp") == {"explain", "export"}
    assert offered("train", "r") == {"reward", "rl"}
    assert {"--model", "--prompts", "--json"} <= offered("generate", "--")
    assert "--model" not in offered("doctor", "--")
    assert offered("generate", "--engine", "b") == {"builtin"}
    assert offered("generate", "--prompts", "") == {"answers.jsonl", "runs", "script"}
    assert offered("generate", "--model", "ru") == {"runs"}
    assert offered("judge", "") == {"runs"}
    assert offered("completion", "") == set(SHELLS)


def test_bash_falls_back_on_files(run: Run) -> None:
    assert run("completion", "bash").out.rstrip().splitlines()[-1].startswith("complete -o bashdefault -o default ")


@pytest.mark.parametrize("shell", SHELLS)
def test_every_shell_has_a_script_with_every_command(run: Run, shell: str, tmp_path: Path) -> None:
    outcome = run("completion", shell)
    assert outcome.code == 0
    assert all(name in outcome.out for name in COMMANDS)
    if shutil.which(shell):
        (tmp_path / "script").write_text(outcome.out)
        assert subprocess.run([shell, "-n", str(tmp_path / "script")], check=False).returncode == 0


def test_another_shell_is_refused_by_name(run: Run) -> None:
    outcome = run("completion", "elvish")
    assert outcome.code == 2
    assert "invalid choice: 'elvish'" in outcome.err


def test_what_stands_for_paths_is_still_used_in_help() -> None:
    """A word that is renamed in help would be completed no more, in silence."""
    assert {*FILES, *DIRECTORIES} <= {action.metavar for action in _actions(build_parser())}
