"""Tiny models on disk, and the command line in this process or in one of its own."""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from trimtab.cli.main import build_parser, main


@dataclass(frozen=True)
class Outcome:
    """What a command left behind."""

    code: int
    out: str
    err: str


@dataclass(frozen=True)
class Tiny:
    """Directories of random models of one byte-level vocabulary, 96 tokens of context."""

    model: str
    separate: str
    """Another model of the same vocabulary."""
    lora: str
    """An adapter of `model`."""
    plain: str
    """`model` without a chat template."""


Run = Callable[..., Outcome]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """`run("generate", "--model", ...)` in this process."""

    def call(*argv: str) -> Outcome:
        capsys.readouterr()
        code = main(argv)
        outcome = Outcome(code, *capsys.readouterr())
        assert ways_out_that_are_not_there(argv, outcome.err) == []
        return outcome

    return call


OTHERS = ("accelerate", "vllm serve", "lm_eval")
"""Programs whose flags an error may name too."""


def ways_out_that_are_not_there(argv: Sequence[str], err: str) -> list[str]:
    """What an error on the command line points to and the command does not have: flags of others, calls of Python's.

    What the user typed may be quoted, and another command be named with its own flags (`trimtab train rl --reward`).
    """
    found: list[str] = []
    for line in err.splitlines():
        said = re.sub(r"`trimtab[^`]*`", "", line)
        if line.startswith("trimtab: error: ") and not any(name in line for name in OTHERS):
            flags = {flag for flag in re.findall(r"(?<![\w-])--[a-z][a-z-]*", said) if not _typed(flag, argv)}
            found += sorted(flags - _flags(argv) - _flags_of_stages(argv, said))
            found += re.findall(r"\b(?:load|save)_\w+\(|\b\w+=(?:True|False|None)\b", said)
    return found


def _typed(flag: str, argv: Sequence[str]) -> bool:
    return any(part.partition("=")[0] == flag for word in argv for part in word.split())


def _flags_of_stages(argv: Sequence[str], said: str) -> set[str]:
    """The flags of the stages of `make` to which the text says how to hand them (--pairs-flags and the like)."""
    if argv[:1] != ("make",):
        return set()
    method = argv[argv.index("--method") + 1] if "--method" in argv else "arm"
    stages = {"pairs": ("pairs",), "train": ("train", method), "calibrate": ("calibrate",)}
    return {flag for stage, words in stages.items() if f"--{stage}-flags" in said for flag in _flags(words)}


def _flags(argv: Sequence[str]) -> set[str]:
    """The flags of the command that is meant, found word by word."""
    parser: argparse.ArgumentParser = build_parser()
    found = set(parser._option_string_actions)
    for word in argv:
        (choices,) = [one.choices for one in parser._actions if isinstance(one, argparse._SubParsersAction)] or [{}]
        assert isinstance(choices, dict)
        if word not in choices:
            break
        parser = choices[word]
        found |= set(parser._option_string_actions)
    return found


def spawn(argv: Sequence[str], *, stdin: str = "", cwd: Path | None = None) -> Outcome:
    """A command in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "trimtab.cli.main", *argv],
        input=stdin,
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        check=False,
    )
    return Outcome(done.returncode, done.stdout, done.stderr)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    root = tmp_path_factory.mktemp("tiny")
    names = {name: str(root / name) for name in ("model", "separate", "lora", "plain")}
    _save_model(names["model"], seed=0)
    _save_model(names["separate"], seed=1)
    _save_model(names["plain"], seed=0, template=False)
    _save_adapter(names["model"], names["lora"])
    return Tiny(**names)


def _save_model(directory: str, *, seed: int, template: bool = True) -> None:
    from tests.tiny import BYTE_TEMPLATE, byte_llama, byte_tokenizer

    tokenizer = byte_tokenizer(template=BYTE_TEMPLATE if template else None, model_max_length=96)
    byte_llama(tokenizer, max_length=96, seed=seed).save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def _save_adapter(model: str, directory: str) -> None:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "down_proj"], task_type="CAUSAL_LM")
    adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(model), config)
    torch.manual_seed(2)
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.5)
    adapted.save_pretrained(directory)
