"""Stand-ins for the shared pairs and prompts, random models, and stages that run in this process."""

from __future__ import annotations

import json
import os
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from trimtab.cli.main import main

WORDS = ("sun", "rain", "tea", "mud", "song", "moth", "oak", "sea")


def _text(number: int, length: int = 3) -> str:
    return " ".join(WORDS[(number * 3 + at * (number + 1)) % len(WORDS)] for at in range(length)) + f" {number}"


def _user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def _answer(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory of the shape of the shared one, every text made up."""
    root = tmp_path_factory.mktemp("data")

    def write(name: str, rows: list[dict[str, object]]) -> None:
        path = root / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))

    for start, aim in ((0, "helpful"), (500, "harmless")):
        for split, num in (("train", 24), ("validation", 24)):
            begin = start + (200 if split == "validation" else 0)
            write(
                f"{aim}/{split}.jsonl",
                [
                    {
                        "prompt": _user(_text(begin + at)),
                        "chosen": _answer("good " + _text(at, 2 + at % 3)),
                        "rejected": _answer("bad " + _text(at + 1, 2 + at % 2)),
                    }
                    for at in range(num)
                ],
            )
    for number, name in enumerate(("hh_train", "hh_test", "safe_rlhf_train", "safe_rlhf_test", "beavertails")):
        write(f"prompts/{name}.jsonl", [{"prompt": _user(_text(1000 * (number + 1) + at))} for at in range(40)])
    write(
        "gsm8k/test.jsonl",
        [{"prompt": _user(f"{at} and 1?"), "answer": str(at + 1), "solution": "so"} for at in range(12)],
    )
    return root


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model of a byte's tokens with a chat template."""
    from tests.tiny import byte_llama, byte_tokenizer

    directory = tmp_path_factory.mktemp("model")
    tokenizer = byte_tokenizer(model_max_length=256)
    byte_llama(tokenizer, max_length=256).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def guide(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random adapter of the random model."""
    from tests.tiny import write_lora
    from trimtab import load_model

    directory: Path = write_lora(tmp_path_factory.mktemp("guides") / "one", load_model(str(model)).module, seed=0)
    return directory


@pytest.fixture
def execute(data: Path, monkeypatch: pytest.MonkeyPatch, repository: Path) -> Callable[[list[str]], int]:
    """Runs a stage's command here: a process for each would spend its time on imports."""
    monkeypatch.setenv("JUDGE_DATA", str(data))
    monkeypatch.setenv("ARITHMETIC", str(data / "gsm8k" / "test.jsonl"))
    monkeypatch.syspath_prepend(str(repository / "recipes"))

    def run(words: list[str]) -> int:
        assert words[0] == sys.executable
        if words[1:3] == ["-m", "trimtab.cli.main"]:
            return main(words[3:])
        monkeypatch.setattr(sys, "argv", words[1:])
        try:
            runpy.run_path(words[1], run_name="__main__")
        except SystemExit as stop:
            return int(stop.code or 0)
        return 0

    os.environ.setdefault("OMP_NUM_THREADS", "1")
    return run
