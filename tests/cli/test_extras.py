"""With what trimtab always needs and no extra: a command works, or says which extra it lacks and how to install it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from trimtab.cli.doctor.packages import import_names, normal, read_requirement, requirements

from .conftest import Outcome, Tiny

BARE = """
import importlib.util, sys
blocked = set(sys.argv[1].split(","))
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in blocked:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())
find_spec = importlib.util.find_spec
def absent(name, package=None):
    return None if name.partition(".")[0] in blocked else find_spec(name, package)
importlib.util.find_spec = absent
from trimtab.cli.main import main
sys.exit(main(sys.argv[2:]))
"""


def _always_there() -> set[str]:
    """What pip installs with trimtab alone: its requirements, and theirs."""
    found: set[str] = set()
    left = [*requirements()[""]]
    while left:
        name = left.pop()
        if name in found:
            continue
        found.add(name)
        try:
            lines = metadata.requires(name) or []
        except metadata.PackageNotFoundError:  # of another system
            continue
        left += [normal(read_requirement(line)[0].partition("[")[0]) for line in lines if "extra ==" not in line]
    return found


@pytest.fixture(scope="module")
def absent() -> str:
    """The modules of packages that only extras bring, and the demo's scorer with them."""
    modules, there = import_names(), _always_there()
    of_extras = {name for extra, wanted in requirements().items() if extra for name in wanted} - there
    assert {"peft", "fastapi", "matplotlib", "llguidance", "openai"} <= of_extras
    return ",".join(sorted({modules[name] for name in of_extras if name in modules}))


def _run(absent: str, argv: list[str], cwd: Path) -> Outcome:
    done = subprocess.run(
        [sys.executable, "-c", BARE, absent, *argv], capture_output=True, text=True, cwd=cwd, check=False
    )
    return Outcome(done.returncode, done.stdout, done.stderr)


PAIR = {"prompt": "a", "chosen": "b", "rejected": "c"}
PROMPTS = ["--prompts", "p.jsonl"]
LACKS: dict[str, tuple[str, str]] = {
    "train arm --model MODEL --data p.jsonl --out o": ("train", "trl"),
    "train reward --model MODEL --data p.jsonl --out o": ("train", "trl"),
    "train dpo --model MODEL --data p.jsonl --out o": ("train", "trl"),
    "train parm --model MODEL --data a=p.jsonl --data b=p.jsonl --out o": ("train", "trl"),
    "train rl --model MODEL --prompts p.jsonl --reward a=mine.py:score --out o": ("train", "trl"),
    "train agent --model MODEL --prompts p.jsonl --reward a=mine.py:score --out o": ("agent", "torchrl"),
    "serve --model MODEL": ("serve", "fastapi"),
    "generate --model MODEL --prompt a --regex a": ("structured", "llguidance"),
    "generate --model MODEL --prompt a --engine vllm": ("vllm", "vllm"),
    "generate --model demo --prompt a --backend llama": ("llama", "xllamacpp"),
    "demo --out o": ("report", "matplotlib"),
    "compare RECIPE --out o": ("demo", "vaderSentiment"),
    "make o --model MODEL --prompts p.jsonl --reward mine.py:score": ("train", "trl"),
    "calibrate GUIDE --model MODEL --prompts p.jsonl --reward sentiment --out o": ("", ""),
    "pairs --model MODEL --prompts p.jsonl --reward sentiment --out o.jsonl": ("demo", "vaderSentiment"),
    "pairs --model MODEL --prompts p.jsonl --reward offence --out o.jsonl": ("scorers", "alt-profanity-check"),
    "bench pass --model MODEL --plot o.png": ("", ""),
}


@pytest.mark.parametrize("command", LACKS)
def test_a_command_says_which_extra_it_lacks(
    command: str, absent: str, tiny: Tiny, tmp_path: Path, repository: Path
) -> None:
    rows = [{**PAIR, "prompt": f"Say {number}"} for number in range(30)]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "mine.py").write_text("def score(prompts, texts):\n    return [float(len(text)) for text in texts]\n")
    names = {"MODEL": tiny.model, "GUIDE": tiny.lora, "RECIPE": str(repository / "recipes" / "smoke.yaml")}
    argv = [names.get(word, word) for word in command.split()]
    outcome = _run(absent, argv, tmp_path)
    assert outcome.code == 2, outcome.err
    extra, package = LACKS[command]
    found = re.search(
        r'needs (\S+), which is not installed\. Run: pip install "trimtab\[([\w-]+)\]"$', outcome.err.strip()
    )
    assert found, outcome.err
    if extra:
        assert found[2] == extra
    if package:
        assert found[1] == package


WORKS = (
    "generate --model MODEL --guide g=GUIDE:1 --prompt a --max-new-tokens 2 --json",
    "explain --model MODEL --guide g=GUIDE --prompt a --max-new-tokens 2 --json",
    "check GUIDE --model MODEL",
    "soup POLICY:1 --out o",
)


@pytest.mark.parametrize("command", WORKS)
def test_what_needs_no_extra_works(command: str, absent: str, tiny: Tiny, tmp_path: Path) -> None:
    argv = command.replace("MODEL", tiny.model).replace("GUIDE", tiny.lora).replace("POLICY", tiny.lora).split()
    outcome = _run(absent, argv, tmp_path)
    assert outcome.code == 0, outcome.err
