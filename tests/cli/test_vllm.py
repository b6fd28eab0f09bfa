"""`trimtab vllm pack`, and `--engine vllm` where vLLM is not installed. What needs vLLM is in tests/engines/vllm."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Run, Tiny
from trimtab.cli.engines import _setting
from trimtab.engines.vllm import versions
from trimtab.engines.vllm.sources import Sources


@pytest.fixture
def without_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "installed", lambda: None)


@pytest.fixture
def with_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is taken to be there; nothing starts it, since what is asked is refused before."""
    monkeypatch.setattr(versions, "installed", lambda: "0.32.0")
    monkeypatch.setattr(versions, "installed_sources", lambda: Sources(Path()))
    monkeypatch.setattr(versions, "differences", lambda sources: [])
    versions._check.cache_clear()


def test_pack_writes_a_directory_and_says_how_to_serve_it(run: Run, tiny: Tiny, tmp_path: Path) -> None:
    out = tmp_path / "served"
    guides = ("--guide", f"kind={tiny.lora}:0.5", "--guide", f"other={tiny.separate}")
    outcome = run("vllm", "pack", "--model", tiny.model, *guides, "--out", str(out), "--json")
    assert outcome.code == 0, outcome.err
    written = json.loads(outcome.out)
    assert written["out"] == str(out)
    assert [(guide["name"], guide["way"], guide["weight"]) for guide in written["guides"]] == [
        ("kind", "shared", 0.5),
        ("other", "model", 0.0),
    ]
    assert json.loads((out / "config.json").read_text())["trimtab"]["guides"] == written["guides"]
    assert f"vllm serve {out}" in outcome.err
    assert "kind (product, shared, weight 0.5)" in outcome.err


def test_pack_says_nothing_on_standard_output_unless_asked(run: Run, tiny: Tiny, tmp_path: Path) -> None:
    argv = ("vllm", "pack", "--model", tiny.model, "--guide", f"kind={tiny.lora}", "--out", str(tmp_path / "served"))
    assert run(*argv, "--lora", "merged").out == ""
    again = run(*argv)
    assert again.code == 2
    assert "--overwrite" in again.err
    assert run(*argv, "--overwrite").code == 0


def test_pack_says_in_a_line_that_a_guide_runs_on_a_model_of_its_own(
    run: Run, tiny: Tiny, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    guides = ("--guide", f"near={tiny.lora}", "--guide", f"far={tiny.separate}:-0.5")
    more = ("--guide-base", f"near={tiny.plain}", "--form", "far=shift", "--form", "near=product")
    outcome = run("vllm", "pack", "--model", tiny.model, *guides, *more, "--out", str(tmp_path / "served"), "--json")
    assert outcome.code == 0, outcome.err
    packed = json.loads(outcome.out)["guides"]
    assert [(guide["form"], guide["base"], guide["weight"]) for guide in packed] == [
        ("product", tiny.plain, 0.0),
        ("shift", None, -0.5),
    ]
    told = f"the guide {tiny.lora} was trained on {tiny.plain}, which is loaded beside {tiny.model}"
    assert [record.getMessage() for record in caplog.records if record.name == "trimtab.storage.guide_bases"] == [told]
    assert "near (product, shared, weight 0), far (shift, model, weight -0.5)" in outcome.err


PACK: dict[str, tuple[tuple[str, ...], str]] = {
    "no guide": ((), "There is no guide to pack"),
    "two of a name": (("--guide", "a=x", "--guide", "a=y"), "names 'a' twice"),
    "no form": (("--guide", "a=x", "--form", "a=sum"), "Accepted: product, shift"),
    "a form for nobody": (
        ("--guide", "a=x", "--form", "shift"),
        "does not name a guide and a form: NAME=product|shift",
    ),
    "a form for another": (("--guide", "a=x", "--form", "b=shift"), "--form b=shift: Unknown guide 'b'"),
    "two forms": (("--guide", "a=x", "--form", "a=shift", "--form", "a=product"), "--form names 'a' twice"),
    "a base for another": (("--guide", "a=x", "--guide-base", "b=y"), "--guide-base b=y: Unknown guide 'b'"),
    "a base for nobody": (("--guide", "a=x", "--guide-base", "a="), "does not name a guide and a model: NAME=MODEL"),
    "an unknown way": (("--guide", "a=x", "--lora", "mergd"), "invalid choice"),
}


@pytest.mark.parametrize("name", PACK)
def test_pack_refuses(run: Run, tiny: Tiny, tmp_path: Path, name: str) -> None:
    more, sentence = PACK[name]
    outcome = run("vllm", "pack", "--model", tiny.model, "--out", str(tmp_path / "served"), *more)
    assert outcome.code == 2
    assert sentence in outcome.err
    assert not (tmp_path / "served").exists()


def commands(tiny: Tiny, directory: Path) -> dict[str, tuple[str, ...]]:
    recipe = directory / "recipe.yaml"
    recipe.write_text(
        f"title: T\nmodel: {tiny.model}\nprompts: {{test: {{builtin: demo, num: 10}}}}\n"
        "rewards: {sentiment: {scorer: sentiment}}\nmethods:\n- {method: base}\n"
        f"- {{method: soup, paths: ['{tiny.lora}', '{tiny.lora}'], strengths: [[0.5, 0.5]]}}\n"
        f"- {{method: genarm, guides: {{g: '{tiny.lora}'}}, strengths: [1]}}\n"
    )
    return {
        "generate": ("generate", "--model", tiny.model, "--prompt", "Hello"),
        "chat": ("chat", "--model", tiny.model),
        "explain": ("explain", "--model", tiny.model, "--prompt", "Hello"),
        "bench": ("bench", "decode", "--model", tiny.model),
        "compare": ("compare", str(recipe), "--out", str(directory / "run")),
        "serve": ("serve", "--model", tiny.model, "--port", "0"),
    }


@pytest.mark.parametrize("command", ["generate", "chat", "explain", "bench", "compare", "serve"])
@pytest.mark.usefixtures("without_vllm")
def test_without_vllm_the_engine_is_refused_and_the_extra_named(
    run: Run, tiny: Tiny, tmp_path: Path, command: str
) -> None:
    outcome = run(*commands(tiny, tmp_path)[command], "--engine", "vllm")
    assert outcome.code == 2
    assert outcome.out == ""
    assert 'needs vllm, which is not installed. Run: pip install "trimtab[vllm]"' in outcome.err


@pytest.mark.parametrize("command", ["generate", "chat", "explain", "bench", "compare", "serve"])
def test_options_of_another_engine_are_refused(run: Run, tiny: Tiny, tmp_path: Path, command: str) -> None:
    outcome = run(*commands(tiny, tmp_path)[command], "--engine-option", "max_model_len=64")
    assert outcome.code == 2
    assert "the engine builtin has no options of its own" in outcome.err


REFUSED: dict[str, tuple[tuple[str, ...], str]] = {
    "a device": (("--device", "cpu"), "--device cannot be used with --engine vllm"),
    "a rule": (("--rule", "most"), "--rule cannot be used with --engine vllm"),
    "a preference": (("--guide", "g=x", "--preference", "g=0.5,0.5"), "--preference cannot be used"),
    "a method": (
        ("--method", "mara", "--guide", "g=x", "--strength", "0.5"),
        "--method mara cannot be used with --engine vllm: there, guides tilt every token",
    ),
    "a penalty": (("--repetition-penalty", "1.2"), "another formula"),
    "two filters": (("--top-p", "0.9", "--min-p", "0.1"), "--top-p and --min-p together"),
    "no setting": (("--engine-option", "max_model_len"), "give KEY=VALUE"),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.usefixtures("with_vllm")
def test_what_vllm_does_not_have_is_refused_before_anything_is_loaded(run: Run, tiny: Tiny, name: str) -> None:
    more, sentence = REFUSED[name]
    outcome = run("generate", "--model", tiny.model, "--prompt", "Hello", "--engine", "vllm", *more)
    assert outcome.code == 2
    assert sentence in outcome.err
    assert "starting" not in outcome.err


@pytest.mark.usefixtures("with_vllm")
def test_a_comparison_names_the_methods_that_vllm_runs(run: Run, tiny: Tiny, tmp_path: Path) -> None:
    pytest.importorskip("vaderSentiment")
    outcome = run(*commands(tiny, tmp_path)["compare"], "--engine", "vllm")
    assert outcome.code == 2
    assert "cannot run soup" in outcome.err
    assert "Accepted: base, sharpened, genarm, guides, best-of-n, segments, cards, policy, policies" in outcome.err


@pytest.mark.usefixtures("with_vllm")
def test_a_packed_model_has_its_guides_already(run: Run, tiny: Tiny, tmp_path: Path) -> None:
    out = str(tmp_path / "served")
    assert run("vllm", "pack", "--model", tiny.model, "--guide", f"kind={tiny.lora}", "--out", out).code == 0
    for flag, value in (("--guide", f"g={tiny.lora}"), ("--form", "kind=shift"), ("--guide-base", "kind=x")):
        outcome = run("generate", "--engine", "vllm", "--model", out, flag, value, "--prompt", "Hello")
        assert outcome.code == 2
        assert f"packed with its guides; leave {flag} out" in outcome.err


def test_training_an_agent_says_why_it_does_not_roll_out_there(run: Run, tiny: Tiny, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("Hello\n")
    argv = ("--prompts", str(prompts), "--reward", "mood=sentiment", "--out", str(tmp_path / "agent"))
    outcome = run("train", "agent", "--model", tiny.model, *argv, "--engine", "vllm")
    assert outcome.code == 2
    assert "state after every candidate" in outcome.err
    assert "--workers" in outcome.err


SETTINGS: dict[str, tuple[str, Any]] = {
    "max-model-len=64": ("max_model_len", 64),
    "gpu_memory_utilization=0.5": ("gpu_memory_utilization", 0.5),
    "enforce_eager=true": ("enforce_eager", True),
    "kv_cache_dtype=fp8": ("kv_cache_dtype", "fp8"),
    'compilation_config={"mode": 0}': ("compilation_config", {"mode": 0}),
    "load_format=": ("load_format", ""),
}


@pytest.mark.parametrize("text", SETTINGS)
def test_a_setting_is_read_as_json_where_it_is_some(text: str) -> None:
    assert _setting(text) == SETTINGS[text]


@pytest.fixture
def unpacked(tmp_path: Path) -> Path:
    """The sources of a vLLM that has nothing of what guides rely on."""
    for name, text in {"vllm/__init__.py": "", "vllm-9.9.0.dist-info/METADATA": "Name: vllm\nVersion: 9.9.0\n"}.items():
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(text)
    return tmp_path


def test_check_says_in_what_a_vllm_differs(run: Run, unpacked: Path) -> None:
    outcome = run("vllm", "check", "--sources", str(unpacked))
    assert outcome.code == 1
    assert "vLLM 9.9.0 differs" in outcome.out
    assert "vllm.forward_context.get_forward_context is not there." in outcome.out
    found = json.loads(run("vllm", "check", "--sources", str(unpacked), "--json").out)
    assert (found["version"], found["standing"], found["accepted"]) == ("9.9.0", "unknown", False)
    assert f"in {len(found['differences'])} places" in outcome.out


def test_check_refuses_a_directory_without_vllm(run: Run, tmp_path: Path) -> None:
    outcome = run("vllm", "check", "--sources", str(tmp_path))
    assert outcome.code == 2
    assert str(tmp_path) in outcome.err


def test_check_without_vllm_names_the_extra(run: Run, without_vllm: None) -> None:
    outcome = run("vllm", "check")
    assert outcome.code == 2
    assert "trimtab[vllm]" in outcome.err
