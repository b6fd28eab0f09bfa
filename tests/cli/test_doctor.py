"""`trimtab doctor`: what is here, what is wrong with it, and what would be faster; also where torch is broken."""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from trimtab.cli.doctor import machine, packages
from trimtab.cli.doctor.advice import Facts, faster, problems
from trimtab.cli.doctor.machine import Processor
from trimtab.cli.doctor.packages import Package, extras, is_within, read_requirement, requirements

from .conftest import Run

SECRET = "hf_thisIsASecret"


def _doctor(*argv: str, path: Path | None = None, **env: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own; `path` comes before what is installed."""
    found = os.pathsep.join([*([str(path)] if path else []), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, "-m", "trimtab", "doctor", *argv],
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_TOKEN": SECRET, "PYTHONPATH": found, **env},
        check=False,
    )


SLOW_TO_IMPORT = ("peft", "openai", "alt-profanity-check", "datasets", "fastapi", "ray")


def _stub(root: Path, *, every: bool) -> None:
    """Empty modules in the place of what is slow to import, or of every package."""
    for name, module in packages.import_names().items():
        if every or name in SLOW_TO_IMPORT:
            (root / f"{module}.py").write_text("")


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    root = tmp_path_factory.mktemp("stubs")
    _stub(root, every=False)
    done = _doctor("--json", path=root, OMP_NUM_THREADS="1")
    assert done.returncode in (0, 1), done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_it_says_what_is_installed(here: dict[str, Any]) -> None:
    assert here["versions"]["trimtab"] == importlib.metadata.version("trimtab")
    assert here["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
    for name in ("torch", "transformers", "numpy"):
        assert here["packages"][name]["version"] == importlib.metadata.version(name)
        assert here["packages"][name]["problem"] == ""
    assert here["threads"]["environment"]["OMP_NUM_THREADS"] == "1"
    assert here["threads"]["torch"] == 1
    assert 1 <= here["threads"]["auto"] <= here["processor"]["cores"]
    assert here["memory"]["total"] >= here["memory"]["available"] > 0
    assert here["disk"]["free"] > 0


def test_every_extra_is_listed_with_the_way_to_install_it(here: dict[str, Any]) -> None:
    declared = set(importlib.metadata.metadata("trimtab").get_all("Provides-Extra") or [])
    assert set(here["extras"]) == declared - {"dev", "docs"}
    for name, extra in here["extras"].items():
        assert extra["install"] == ("" if not extra["missing"] else f'pip install "trimtab[{name}]"')


def test_it_can_be_pasted(tmp_path: Path) -> None:
    """Neither secrets nor directories; with --paths the directories, and still no secrets."""
    _stub(tmp_path, every=True)
    for argv in ((), ("--json",)):
        done = _doctor(*argv, path=tmp_path, TRIMTAB_CACHE="/somewhere/of/mine")
        assert SECRET not in done.stdout + done.stderr
        assert "/somewhere" not in done.stdout + done.stderr
        assert str(Path.home()) + "/" not in done.stdout
    done = _doctor("--paths", path=tmp_path, TRIMTAB_CACHE="/somewhere/of/mine")
    assert "/somewhere/of/mine" in done.stdout
    assert SECRET not in done.stdout


BROKEN = {
    "torch is not there": ("torch.py", "raise ModuleNotFoundError(\"No module named 'torch'\")", "No module named"),
    "torch does not load": ("torch.py", "raise OSError('libc10.so: cannot open shared object file')", "libc10.so"),
    "torch ends the process": ("torch.py", "import os, signal; os.kill(os.getpid(), signal.SIGILL)", "SIGILL"),
    "peft does not load": ("peft.py", "raise ImportError(f'cannot import name x from {__file__}')", "cannot import"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_it_works_where_a_package_does_not(what: str, tmp_path: Path) -> None:
    file, source, said = BROKEN[what]
    _stub(tmp_path, every=file == "torch.py")
    (tmp_path / file).write_text(source)
    done = _doctor("--json", path=tmp_path)
    assert done.returncode == 1, done.stderr
    found = json.loads(done.stdout)
    name = file.removesuffix(".py")
    assert said in found["packages"][name]["problem"]
    assert str(tmp_path) not in done.stdout
    assert any(line.startswith(name) and said in line for line in found["problems"])
    assert found["packages"]["huggingface-hub"]["problem"] == ""  # those after it were tried all the same
    assert (found["threads"]["auto"] is None) == (name == "torch")


def test_the_page_has_every_part(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "try_imports", lambda names: packages.Tried({}))
    outcome = run("doctor")
    assert outcome.code == 0
    assert f"trimtab {importlib.metadata.version('trimtab')}" in outcome.out
    for heading in ("processor", "threads", "GPU", "memory", "disk", "packages", "extras", "problems", "faster here"):
        assert f"\n{heading}" in outcome.out, heading


# What is wrong and what would be faster are read off the facts alone.

PROCESSOR = Processor("AMD EPYC", "AuthenticAMD", 8, None, 0.1, ("avx2", "avx512_bf16"))
TORCH = {"threads": 8, "auto": 8, "cuda": None, "gpus": [], "quantized": ["fbgemm"], "version": "2.13.0"}
FACTS = Facts(
    processor=PROCESSOR,
    torch=TORCH,
    has_nvidia=False,
    environment={},
    packages={"torch": Package("torch", "2.13.0", ">=2.13,<3", "")},
    missing={},
    disk_free=100 << 30,
    available=20 << 30,
)

SLOW = {
    "threads that wait for each other": (replace(FACTS, torch={**TORCH, "auto": 2}), "--threads 2"),
    "fewer threads than cores": (
        replace(FACTS, torch={**TORCH, "threads": 1}, environment={"OMP_NUM_THREADS": "1"}),
        "OMP_NUM_THREADS",
    ),
    "a quota below the cores": (replace(FACTS, processor=replace(PROCESSOR, quota=2.0)), "--threads 2"),
    "a GPU that torch cannot use": (replace(FACTS, has_nvidia=True), "build of torch"),
    "no llama.cpp": (replace(FACTS, missing={"llama": ("xllamacpp",)}), 'pip install "trimtab[llama]"'),
    "a processor": (FACTS, "--quantize float16"),
    "a processor with AMX": (replace(FACTS, processor=replace(PROCESSOR, flags=("amx_bf16",))), "--dtype bfloat16"),
}


@pytest.mark.parametrize("what", SLOW)
def test_what_would_be_faster(what: str) -> None:
    facts, how = SLOW[what]
    assert [one for one in faster(facts) if how in one.how], faster(facts)


def test_what_is_not_so_is_not_advised() -> None:
    hows = " ".join(one.how for one in faster(FACTS))
    assert "--threads" not in hows
    assert "llama" not in hows
    assert "bfloat16" not in hows
    with_gpu = replace(FACTS, torch={**TORCH, "cuda": "13.0", "gpus": [{"name": "H100", "memory": 80 << 30}]})
    assert [one.how for one in faster(with_gpu) if "quantize" in one.how or "thread" in one.how] == []
    unsupported = replace(FACTS, torch={**TORCH, "quantized": ["qnnpack"]})
    assert [one.how for one in faster(unsupported) if "quantize" in one.how] == []
    assert faster(replace(FACTS, torch=None)) == []


def test_what_is_wrong() -> None:
    assert problems(FACTS) == []
    old = Package("peft", "0.20.0", ">=0.21,<0.22", "")
    (line,) = problems(replace(FACTS, packages={**FACTS.packages, "peft": old}))
    assert "peft 0.20.0" in line
    assert ">=0.21,<0.22" in line
    (line,) = problems(replace(FACTS, packages={"torch": Package("torch", None, ">=2.13,<3", "")}))
    assert "torch is not installed" in line
    assert problems(replace(FACTS, disk_free=10 << 20))


@pytest.mark.parametrize(
    ("version", "bounds", "within"),
    [
        ("2.13.0+cpu", ">=2.13,<3", True),
        ("3.0", ">=2.13,<3", False),
        ("2.12.9", ">=2.13,<3", False),
        ("0.4.0.post1", ">=0.4.0.post1,<1", True),
        ("2026.10.11549", "==2026.10.11549", True),
        ("2026.10.1", "==2026.10.11549", False),
        ("1.0rc1", ">=1.0,<2", True),
        ("weird", ">=1.0", True),
    ],
)
def test_ranges(version: str, bounds: str, within: bool) -> None:
    assert is_within(version, bounds) is within


def test_requirements_are_those_of_the_package(repository: Path) -> None:
    assert read_requirement('trl<1.17,>=1.16; extra == "train"') == ("trl", "<1.17,>=1.16", "train")
    assert read_requirement("torch<3,>=2.13") == ("torch", "<3,>=2.13", "")
    found = requirements()
    assert "torch" in found[""]
    assert "peft" in found["deepspeed"], "an extra holds those that it names"
    assert set(extras()) == set(found) - {"", "dev", "docs"}


def test_a_directory_in_a_message_is_left_out() -> None:
    text = "cannot import name 'x' from 'y' (/Users/someone/my project/.venv/lib/y/__init__.py) or /a/b.so: bad"
    assert machine.without_directories(text, home="/Users/someone") == (
        "cannot import name 'x' from 'y' (…/__init__.py) or …/b.so: bad"
    )
