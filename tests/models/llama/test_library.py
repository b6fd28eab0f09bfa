"""Which builds of llama.cpp are trusted, and which options are handed on. None of this needs one."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from trimtab.errors import CompatibilityError, MissingExtraError, OptionError
from trimtab.models.llama import library, structs
from trimtab.models.llama.options import LlamaOptions


def _defaults() -> structs.ContextParams:
    return structs.ContextParams(**structs.CONTEXT_DEFAULTS)


def test_known_defaults_pass() -> None:
    structs.check(_defaults(), structs.CONTEXT_DEFAULTS, "a build")


@pytest.mark.parametrize(("name", "value"), [("n_ctx", 1), ("kv_unified", True), ("type_v", 0), ("n_samplers", 7)])
def test_a_structure_that_is_laid_out_otherwise_is_refused(name: str, value: int) -> None:
    params = _defaults()
    setattr(params, name, value)
    with pytest.raises(CompatibilityError, match=f"a build lays out its settings in another way .*: {name} is"):
        structs.check(params, structs.CONTEXT_DEFAULTS, "a build")


def test_without_a_binding_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    library.library.cache_clear()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert not library.is_installed()
    with pytest.raises(MissingExtraError, match=r"trimtab\[llama\]"):
        library.library()


def test_a_build_that_was_not_tried_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    library.library.cache_clear()
    monkeypatch.setattr(library, "_installed", lambda: (library.BINDINGS[0], tmp_path))
    monkeypatch.setattr(library, "_version", lambda binding: "1.0")
    with pytest.raises(CompatibilityError, match=r"xllamacpp 1.0 is installed.*Accepted: 2026"):
        library.library()
    monkeypatch.setattr(library, "_version", lambda binding: binding.versions[0])
    with pytest.raises(CompatibilityError, match="carries no library"):
        library.library()
    (tmp_path / "xllamacpp.so").write_bytes(b"no library")
    with pytest.raises(CompatibilityError, match="does not open"):
        library.library()
    library.library.cache_clear()


def test_options_are_read_by_their_names() -> None:
    read = LlamaOptions.of_pairs([("n-gpu-layers", "99"), ("type_k", "q8_0"), ("use_extra_bufts", "false")])
    assert (read.n_gpu_layers, read.type_k, read.use_extra_bufts) == (99, "q8_0", False)
    assert LlamaOptions.of_pairs([]) == LlamaOptions()


@pytest.mark.parametrize(
    ("pair", "sentence"),
    [
        (("n_gpu_layer", "1"), "Unknown option of llama.cpp 'n_gpu_layer'. Did you mean 'n_gpu_layers'"),
        (("n_ctx", "12"), "n_ctx=12: '12' is not accepted; give a whole number of at least 256"),
        (("type_k", "q3"), "accepted|one of f16"),
        (("check_tensors", "maybe"), "check_tensors=maybe is not accepted; give true or false"),
    ],
)
def test_an_option_that_is_none_is_refused(pair: tuple[str, str], sentence: str) -> None:
    with pytest.raises(OptionError, match=sentence):
        LlamaOptions.of_pairs([pair])
    with pytest.raises(OptionError, match="needs flash attention"):
        LlamaOptions.of_pairs([("type_v", "q8_0"), ("flash_attn", "off")])
