"""Who runs a GGUF file, and that a command says which; what cannot be had is refused with a sentence."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tiny import write_lora
from tests.tiny_gguf import gguf_module, write_gguf
from trimtab.cli.main import main
from trimtab.errors import CheckpointError, CompatibilityError, MissingExtraError, OptionError
from trimtab.guides.arm import ARM
from trimtab.models.hf import HFModel
from trimtab.models.llama import library, probe
from trimtab.models.llama.header import read_header
from trimtab.storage import gguf_files
from trimtab.storage.gguf_files import Asked, choose_backend, load_llama
from trimtab.storage.loading import load_guide, load_model
from trimtab.storage.model_source import ModelSource


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if a binding were installed."""
    monkeypatch.setattr(library, "is_installed", lambda: True)
    monkeypatch.setattr(library, "library", lambda: None)


@pytest.mark.usefixtures("installed")
def test_llama_runs_a_gguf_file_where_it_is_installed(file: Path) -> None:
    assert choose_backend(file, Asked()) == "llama"
    assert choose_backend(file, Asked("transformers")) == "transformers"
    assert choose_backend(file, Asked(dtype="bfloat16")) == "transformers"
    assert choose_backend(file, Asked(quantize="int8")) == "transformers"
    assert choose_backend("demo", Asked()) == "transformers"
    assert choose_backend("demo", Asked("llama")) == "llama"
    assert choose_backend("some/model", Asked()) == "transformers"
    assert choose_backend(file, Asked(), has_options=True) == "llama"


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    ("name", "asked", "has_options", "sentence"),
    [
        ("some/model", Asked("llama"), False, "runs GGUF files, and some/model is none"),
        (
            "x.gguf",
            Asked("llama", dtype="bfloat16"),
            False,
            "--dtype bfloat16 is about weights that transformers holds",
        ),
        ("x.gguf", Asked("llama", device="cuda"), False, "n_gpu_layers"),
        ("x.gguf", Asked("transformers"), True, "--llama is about --backend llama"),
        ("x.gguf", Asked("lama"), False, "Unknown backend 'lama'. Did you mean 'llama'"),
    ],
)
def test_what_does_not_go_together_is_refused(name: str, asked: Asked, has_options: bool, sentence: str) -> None:
    with pytest.raises(OptionError, match=sentence):
        choose_backend(name, asked, has_options=has_options)


def test_without_a_binding_a_file_is_dequantised_and_a_line_says_so(
    file: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    library.library.cache_clear()
    monkeypatch.setattr(library, "_installed", lambda: None)
    with caplog.at_level("INFO", "trimtab"):
        assert choose_backend(file, Asked()) == "transformers"
    assert 'is not installed (pip install "trimtab[llama]")' in caplog.text
    with pytest.raises(MissingExtraError):
        choose_backend(file, Asked("llama"))
    monkeypatch.setattr(library, "_installed", lambda: (library.BINDINGS[0], Path()))
    monkeypatch.setattr(library, "_version", lambda binding: "1")
    assert choose_backend(file, Asked()) == "transformers"
    with pytest.raises(CompatibilityError):
        choose_backend(file, Asked("llama"))


@pytest.mark.parametrize(("code", "survived"), [(0, True), (1, True), (-11, False), (134, False)])
def test_a_first_try_that_dies_is_remembered(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, survived: bool
) -> None:
    tries: list[list[str]] = []

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[bytes]:
        tries.append(command)
        return subprocess.CompletedProcess(command, code, b"", b"")

    monkeypatch.setattr(probe, "_kind", lambda header: f"a machine {code}")
    monkeypatch.setattr(subprocess, "run", run)
    assert probe.repacks(read_header(file), tmp_path) is survived
    assert probe.repacks(read_header(file), tmp_path) is survived
    assert len(tries) == 1
    assert tries[0][-1] == str(file)


@pytest.mark.usefixtures("needs_llama")
def test_the_first_try_ends_well_here(file: Path, tmp_path: Path) -> None:
    assert probe.repacks(read_header(file), tmp_path)
    [remembered] = tmp_path.glob("llama-*.json")
    assert json.loads(remembered.read_text())["repacks"] is True


@pytest.mark.usefixtures("needs_llama")
def test_generate_runs_the_file_and_says_so(
    file: Path, module: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    guide = write_lora(tmp_path / "lora", module)
    command = ["generate", "--model", str(file), "--guide", f"g={guide}:0.5", "--prompt", "ab", "--json"]
    options = ["--max-new-tokens", "4", "--temperature", "0", "--ignore-eos"]
    answers = []
    with caplog.at_level("INFO", "trimtab"):
        for backend in (["--llama", "type_k=f32", "--llama", "type_v=f32"], ["--backend", "transformers"]):
            assert main([*command, *options, *backend]) == 0
            answers.append(json.loads(capsys.readouterr().out)["token_ids"])
    assert answers[0] == answers[1]
    assert "tiny.gguf runs in llama.cpp as it is" in caplog.text
    assert "Dequantising tiny.gguf into" in caplog.text


@pytest.mark.usefixtures("needs_llama")
def test_text_is_that_of_the_dequantised_model(file: Path) -> None:
    ours, other = load_llama(file), load_model(file)
    assert ours.tokenizer is not None
    assert other.tokenizer is not None
    assert ours.tokenizer.fingerprint == other.tokenizer.fingerprint
    chat = [{"role": "user", "content": "Why äöü 🙂 ab?"}]
    assert ours.tokenizer.encode_chat(chat) == other.tokenizer.encode_chat(chat)
    assert ours.tokenizer.encode("ab äb") == other.tokenizer.encode("ab äb")
    assert ours.eos_ids >= other.eos_ids
    assert {**ours.describe(), "name": ""} == {**other.describe(), "name": ""}


@pytest.mark.usefixtures("needs_llama")
def test_guides_of_another_file_run_as_they_are(file: Path, tmp_path: Path) -> None:
    small_module = gguf_module(num_hidden_layers=1, seed=4)
    small = write_gguf(tmp_path / "small.gguf", small_module)
    base = load_llama(file)
    whole = load_guide(small, beside=base)
    assert isinstance(whole, ARM)
    assert whole.model.__class__ is base.__class__
    guide = write_lora(tmp_path / "lora", small_module, base_model_name_or_path=str(small))
    weak = load_guide(guide, beside=base, guide_base=small)
    assert isinstance(weak, ARM)
    assert weak.model.__class__ is base.__class__
    assert isinstance(load_guide(small, beside=None), ARM)
    dequantised = load_guide(guide, beside=load_model(file), guide_base=small)
    assert isinstance(dequantised, ARM)
    sessions = [one.model.open() for one in (weak, dequantised)]
    for session in sessions:
        session.admit([[5, 6, 7]])
    assert torch.allclose(sessions[0].logprobs(), sessions[1].logprobs(), atol=0.02)  # keys and values of 16 bits


@pytest.mark.usefixtures("needs_llama")
def test_a_source_loads_what_it_says(file: Path) -> None:
    assert isinstance(ModelSource(str(file), backend="transformers").load(), HFModel)
    model = ModelSource(str(file), llama=(("n_ctx", "512"),)).load()
    assert not isinstance(model, HFModel)
    assert model.file.options.n_ctx == 512
    with pytest.raises(CheckpointError, match="cannot be read"):
        ModelSource("absent.gguf", backend="llama").load()
    assert gguf_files.llama_options_of(model) == model.file.options
