"""`trimtab check`: a guide is what its card says, or the line that says where not; 0, 1 and 2 as the page says."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from trimtab.cli import check
from trimtab.storage.cards import read_card, write_card
from trimtab.storage.files import file_digest

from .conftest import Run, Tiny

WEIGHTS = "adapter_model.safetensors"


@pytest.fixture
def guide(tiny: Tiny, tmp_path: Path) -> Path:
    directory = tmp_path / "guide"
    shutil.copytree(tiny.lora, directory)
    metrics = {"eval_accuracy": 0.8, "eval_accuracy_low": 0.7, "eval_accuracy_high": 0.9, "num_eval_pairs": 60}
    base = {"name": tiny.model, "architecture": "LlamaForCausalLM"}
    write_card(directory, {"format": 1, "kind": "arm", "guide_form": "shift", "base": base, "metrics": metrics})
    return directory


def _found(run: Run, *argv: str) -> tuple[int, dict[str, Any]]:
    outcome = run("check", *argv, "--json")
    return outcome.code, json.loads(outcome.out)


def test_a_guide_that_is_whole(run: Run, guide: Path) -> None:
    code, found = _found(run, str(guide))
    assert code == 0
    assert found["holds"]
    assert (found["kind"], found["form"]) == ("arm", "shift")
    assert {file["name"]: file["sha256"] for file in found["files"]}[WEIGHTS] == file_digest(guide / WEIGHTS)
    assert found["size"] == sum(file["size"] for file in found["files"])
    tensors = load_file(guide / WEIGHTS)
    assert found["weights"]["num_parameters"] == sum(tensor.numel() for tensor in tensors.values())
    assert [one["what"] for one in found["findings"] if one["holds"] is None] == []
    outcome = run("check", str(guide))
    assert outcome.code == 0
    assert "accuracy 0.800 [0.700, 0.900] on 60 held-out pairs" in outcome.out
    assert "DOES NOT HOLD" not in outcome.out


def _pickle(directory: Path) -> None:
    (directory / "extra.bin").write_bytes(b"x")


def _code(directory: Path) -> None:
    (directory / "modeling_mine.py").write_text("x = 1")


def _auto_map(directory: Path) -> None:
    path = directory / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "auto_map": {"AutoModel": "mine.Mine"}}))


def _last_byte(directory: Path) -> None:
    content = bytearray((directory / WEIGHTS).read_bytes())
    content[-1] ^= 1
    (directory / WEIGHTS).write_bytes(bytes(content))


def _nan(directory: Path) -> None:
    tensors = load_file(directory / WEIGHTS)
    first = next(iter(tensors))
    save_file({**tensors, first: torch.full_like(tensors[first], torch.nan)}, directory / WEIGHTS)
    write_card(directory, read_card(directory))


def _cut(directory: Path) -> None:
    (directory / WEIGHTS).write_bytes((directory / WEIGHTS).read_bytes()[:50])


def _stranger(directory: Path) -> None:
    (directory / "tokenizer.json").write_text("{}")


def _turned(directory: Path) -> None:
    metrics = {"eval_accuracy": 0.2, "eval_accuracy_low": 0.1, "eval_accuracy_high": 0.3, "num_eval_pairs": 60}
    write_card(directory, {**read_card(directory).written, "metrics": metrics})


def _only_pickles(directory: Path) -> None:
    (directory / WEIGHTS).rename(directory / "adapter_model.bin")


DAMAGE: dict[str, tuple[Callable[[Path], None], str, str]] = {
    "a pickle": (_pickle, "safety", "extra.bin (a pickle)"),
    "code": (_code, "safety", "modeling_mine.py (code)"),
    "named code": (_auto_map, "safety", "adapter_config.json (it names code, auto_map)"),
    "other weights": (_last_byte, "files", f"{WEIGHTS} has the SHA-256"),
    "weights that are no numbers": (_nan, "weights", "hold NaN or infinity"),
    "cut weights": (_cut, "weights", "cannot be read"),
    "a file that is not recorded": (_stranger, "files", "tokenizer.json is not recorded"),
    "a turned sign": (_turned, "accuracy", "below a coin's"),
    "pickles alone": (_only_pickles, "weights", "no safetensors"),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_what_does_not_hold_is_said_and_is_1(run: Run, guide: Path, tiny: Tiny, what: str) -> None:
    damage, subject, said = DAMAGE[what]
    damage(guide)
    code, found = _found(run, str(guide), "--model", tiny.model)
    assert code == 1
    assert not found["holds"]
    said_of = {one["what"]: one["said"] for one in found["findings"] if one["holds"] is False}
    assert said in said_of[subject]
    assert found["beside"] is None, "what does not hold is not loaded"
    assert f"DOES NOT HOLD: {subject}" in run("check", str(guide)).out


def test_what_cannot_be_told_is_no_fault(run: Run, tiny: Tiny) -> None:
    """An adapter of somebody else's has no card."""
    code, found = _found(run, tiny.lora)
    assert code == 0
    assert [one["what"] for one in found["findings"] if one["holds"] is None] == ["files", "card"]


@pytest.mark.parametrize("text", ["{", '{"format": 9}', '{"format": 1, "kind": "nothing"}'])
def test_a_card_that_cannot_be_read_is_2(run: Run, guide: Path, text: str) -> None:
    (guide / "guide.json").write_text(text)
    assert run("check", str(guide)).code == 2


def test_a_guide_that_is_not_there_is_2(run: Run, guide: Path, tiny: Tiny) -> None:
    assert run("check", "guides/nowhere").code == 2
    assert run("check", str(guide / WEIGHTS)).code == 2
    assert run("check", str(guide), "--model", "nowhere/at-all").code == 2


def test_a_guide_of_sentences_has_no_files(run: Run) -> None:
    code, found = _found(run, 'prompt:"Be kind."')
    assert (code, found["kind"], found["files"]) == (0, "prompt", [])


def test_it_is_tried_beside_a_model(run: Run, guide: Path, tiny: Tiny) -> None:
    code, found = _found(run, str(guide), "--model", tiny.model)
    assert code == 0
    assert [one["holds"] for one in found["findings"] if one["what"] in ("fit", "laws")] == [True, True]
    assert found["beside"]["digests"]["config.json"] == file_digest(Path(tiny.model) / "config.json")


def test_a_guide_of_another_model_does_not_fit(run: Run, tmp_path: Path, tiny: Tiny) -> None:
    from tests.tiny import tiny_module, write_lora

    write_lora(tmp_path / "narrow", tiny_module())
    code, found = _found(run, str(tmp_path / "narrow"), "--model", tiny.model)
    assert code == 1
    assert [one["what"] for one in found["findings"] if one["holds"] is False] == ["fit"]


def test_a_broken_law_is_found(run: Run, guide: Path, tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    from trimtab.guides.stateless import StatelessGuide

    class Forgetful(StatelessGuide):
        calls = 0

        def score(self, rows: Any, candidates: Any) -> Any:
            self.calls += 1
            return torch.full(candidates.token_ids.shape, float(self.calls))

    monkeypatch.setattr(check, "_loaded", lambda name, model: Forgetful().bind(model))
    code, found = _found(run, str(guide), "--model", tiny.model)
    assert code == 1
    assert [one["what"] for one in found["findings"] if one["holds"] is False] == ["laws"]


def test_a_name_that_is_empty_is_no_directory(run: Run) -> None:
    outcome = run("check", "")
    assert outcome.code == 2
    assert "is empty" in outcome.err


def test_what_is_no_file_is_not_read(run: Run, tiny: Tiny, tmp_path: Path) -> None:
    copied = tmp_path / "guide"
    shutil.copytree(tiny.lora, copied)
    os.mkfifo(copied / "pipe.safetensors")
    assert run("check", str(copied)).code == 0
