"""The tokenizer of a GGUF file cuts text into words as the file says."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import transformers

from tests.tiny_gguf import gguf_module, write_gguf
from trimtab.errors import CheckpointError
from trimtab.models.gguf_text import read_tokenizer, write_tokenizer
from trimtab.models.llama.header import read_header
from trimtab.storage import directories

LIST = "ab\n\n1"


@pytest.mark.parametrize("pre", ["smollm", "starcoder", "command-r"])
def test_digits_are_cut_off_first_where_the_file_says_so(pre: str, tmp_path: Path) -> None:
    tokenizer = read_tokenizer(read_header(write_gguf(tmp_path / "tiny.gguf", gguf_module(), pre=pre)))
    assert tokenizer.tokenize(LIST) == ["ab", "ĊĊ", "1"]
    assert tokenizer.decode(tokenizer.encode(LIST, add_special_tokens=False)) == LIST


def test_gpt2s_way_takes_the_white_space_before_a_number_apart(tmp_path: Path) -> None:
    tokenizer = read_tokenizer(read_header(write_gguf(tmp_path / "tiny.gguf", gguf_module())))
    assert tokenizer.tokenize(LIST) == ["ab", "Ċ", "Ċ", "1"]


def test_a_way_that_transformers_knows_is_left_to_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write_gguf(tmp_path / "tiny.gguf", gguf_module(), pre="llama-bpe")
    plain = transformers.AutoTokenizer.from_pretrained(tmp_path, gguf_file=path.name)
    assert str(read_tokenizer(read_header(path)).backend_tokenizer.pre_tokenizer) == str(
        plain.backend_tokenizer.pre_tokenizer
    )
    assert not caplog.records


def test_a_way_that_nobody_knows_is_warned_of_by_name(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write_gguf(tmp_path / "tiny.gguf", gguf_module(), pre="of-another-year")
    with caplog.at_level(logging.WARNING):
        read_tokenizer(read_header(path))
    [record] = caplog.records
    assert "tiny.gguf" in record.getMessage()
    assert "'of-another-year'" in record.getMessage()


def test_a_written_tokenizer_reads_as_the_file_does(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "tiny.gguf", gguf_module(), pre="smollm")
    write_tokenizer(path, tmp_path)
    assert transformers.AutoTokenizer.from_pretrained(tmp_path).tokenize(LIST) == ["ab", "ĊĊ", "1"]


def test_what_is_no_gguf_file_has_no_tokenizer(tmp_path: Path) -> None:
    path = tmp_path / "text.gguf"
    path.write_text("nothing of the kind")
    with pytest.raises(CheckpointError, match="is no GGUF file"):
        read_tokenizer(read_header(path))


@pytest.fixture
def converted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """A file, and the directory into which a trimtab converted it that cut text GPT-2's way."""
    pytest.importorskip("accelerate", reason="needs accelerate, to dequantise a file")
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path / "cache"))
    path = write_gguf(tmp_path / "tiny.gguf", gguf_module(), pre="smollm")
    directory = directories.resolve_model(str(path))
    (directory / f"gguf-text-{directories.GGUF_READING}").unlink()
    transformers.AutoTokenizer.from_pretrained(tmp_path, gguf_file=path.name).save_pretrained(directory)
    assert transformers.AutoTokenizer.from_pretrained(directory).tokenize(LIST) == ["ab", "Ċ", "Ċ", "1"]
    return path, directory


def test_a_directory_of_an_earlier_reading_gets_the_tokenizer_and_keeps_its_weights(
    converted: tuple[Path, Path],
) -> None:
    path, directory = converted
    weights = (directory / "model.safetensors").stat().st_mtime_ns
    for _ in range(2):
        assert directories.resolve_model(str(path)) == directory
        assert transformers.AutoTokenizer.from_pretrained(directory).tokenize(LIST) == ["ab", "ĊĊ", "1"]
    assert (directory / "model.safetensors").stat().st_mtime_ns == weights


def test_a_directory_of_an_earlier_reading_that_cannot_be_written_is_warned_of(
    converted: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path, directory = converted

    def refuse(*_: object) -> None:
        raise PermissionError("Read-only file system")

    monkeypatch.setattr("trimtab.models.gguf_text.write_tokenizer", refuse)
    with caplog.at_level(logging.WARNING):
        assert directories.resolve_model(str(path)) == directory
    assert "Read-only file system" in caplog.text
    assert str(directory) in caplog.text
