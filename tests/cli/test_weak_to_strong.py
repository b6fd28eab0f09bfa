"""A guide of a small model beside a larger one, and its two forms, on every surface of the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from tests.cli.conftest import Run, Tiny
from tests.server_process import serving
from trimtab.decoding.decoder import Decoder
from trimtab.storage.loading import load_guide, load_model


@pytest.fixture(scope="module")
def large(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model of the same vocabulary and another width."""
    import torch
    import transformers

    directory = str(tmp_path_factory.mktemp("large") / "large")
    config = transformers.LlamaConfig.from_pretrained(tiny.model, hidden_size=48, intermediate_size=64)
    torch.manual_seed(7)
    transformers.LlamaForCausalLM(config).save_pretrained(directory)
    transformers.AutoTokenizer.from_pretrained(tiny.model).save_pretrained(directory)
    return directory


def expected(large: str, tiny: Tiny, form: str, weight: float) -> str:
    model = load_model(large, device="cpu")
    guide = load_guide(tiny.lora, model=load_model(tiny.model, device="cpu"), form=form)
    prompt = [{"role": "user", "content": "Hi"}]
    return next(Decoder(model, {"g": guide}).generate([prompt], weights={"g": weight}, seed=3, max_new_tokens=6)).text


CASES = [("product", 1.0), ("shift", 1.0), ("shift", -1.0)]


def test_the_cases_can_be_told_apart(large: str, tiny: Tiny) -> None:
    assert len({expected(large, tiny, form, weight) for form, weight in CASES}) == len(CASES)


@pytest.mark.parametrize(("form", "weight"), CASES)
def test_generate(run: Run, tiny: Tiny, large: str, form: str, weight: float) -> None:
    argv = ("generate", "--model", large, "--guide", f"g={tiny.lora}:{weight}", "--form", f"g={form}")
    outcome = run(*argv, "--prompt", "Hi", "--seed", "3", "--max-new-tokens", "6")
    assert outcome.code == 0, outcome.err
    assert outcome.out.rstrip("\n") == expected(large, tiny, form, weight).rstrip("\n")
    assert f"weight {weight:g}, as a {form}" in outcome.err


def test_one_line_says_what_runs_beside(run: Run, tiny: Tiny, large: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "trimtab"):
        run("generate", "--model", large, "--guide", f"g={tiny.lora}", "--prompt", "Hi", "--max-new-tokens", "1")
    said = [record.message for record in caplog.records if "beside" in record.message]
    assert said == [f"the guide {tiny.lora} was trained on {tiny.model}, which is loaded beside {large}"]


def test_a_base_that_cannot_be_had_is_refused_with_the_flag(run: Run, tiny: Tiny, large: str, tmp_path: Path) -> None:
    argv = ("generate", "--model", large, "--guide", f"g={tiny.lora}", "--prompt", "Hi")
    outcome = run(*argv, "--guide-base", f"g={tmp_path / 'nothing'}")
    assert outcome.code == 2
    assert f"--guide-base {tmp_path / 'nothing'} is not a model that can be loaded" in outcome.err
    assert f"(its card says {tiny.model}), or leave --guide-base out" in outcome.err
    assert "Unknown guide 'h'" in run(*argv, "--guide-base", f"h={tiny.model}").err
    assert "Did you mean 'shift'?" in run(*argv, "--form", "g=shfit").err


def test_explain_chat_and_bench(run: Run, tiny: Tiny, large: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import io
    import sys

    guided = ("--model", large, "--guide", f"g={tiny.lora}:1", "--form", "g=shift")
    outcome = run("explain", *guided, "--prompt", "Hi", "--seed", "3", "--max-new-tokens", "6", "--json")
    assert json.loads(outcome.out)["text"] == expected(large, tiny, "shift", 1.0)
    monkeypatch.setattr(sys, "stdin", io.StringIO("/weight g -1\nHi\n"))
    outcome = run("chat", *guided, "--seed", "3", "--max-new-tokens", "6", "--json")
    assert json.loads(outcome.out)["text"] == expected(large, tiny, "shift", -1.0)
    sizes = ("--batch", "1", "--num-new-tokens", "3", "--num-prompt-tokens", "4", "--num-repeats", "1")
    assert run("bench", "decode", *guided, *sizes, "--json").code == 0


@pytest.mark.parametrize(
    ("method", "form", "weight"), [("genarm", "product", 1.0), ("policy", "shift", 1.0), ("policy", "shift", -1.0)]
)
def test_methods_weigh_it_in_their_own_form(
    run: Run, tiny: Tiny, large: str, method: str, form: str, weight: float
) -> None:
    argv = ("generate", "--model", large, "--guide", f"g={tiny.lora}:{weight}", "--method", method)
    outcome = run(*argv, "--prompt", "Hi", "--seed", "3", "--max-new-tokens", "6")
    assert outcome.out.rstrip("\n") == expected(large, tiny, form, weight).rstrip("\n"), outcome.err
    assert run(*argv, "--prompt", "Hi", "--max-new-tokens", "1", "--guide-base", f"g={tiny.model}").code == 0
    err = run(*argv, "--prompt", "Hi", "--form", "g=product").err
    assert f"--form does not go with --method {method}: genarm weighs guides as products" in err


def test_compare_and_pack(run: Run, tiny: Tiny, large: str, tmp_path: Path) -> None:
    (tmp_path / "prompts.jsonl").write_text("".join(f'{{"prompt": "Question {n}?"}}\n' for n in range(2)))
    recipe = {
        "title": "Weak to strong",
        "model": large,
        "prompts": {"test": {"path": "prompts.jsonl"}},
        "decoding": {"max_new_tokens": 3},
        "rewards": {"sentiment": {"scorer": "sentiment"}},
        "methods": [
            {"method": "base"},
            {"name": "product", "method": "genarm", "guides": {"g": tiny.lora}, "strengths": [1]},
            {"name": "shift", "method": "policy", "path": tiny.lora, "guide_base": tiny.model, "strengths": [-1, 1]},
        ],
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    outcome = run("compare", str(tmp_path / "recipe.yaml"), "--out", str(tmp_path / "run"), "--json")
    assert outcome.code == 0, outcome.err
    rows = [json.loads(line) for line in (tmp_path / "run" / "answers.jsonl").read_text().splitlines()]
    assert {(row["method"], row["strength"]) for row in rows} >= {("product", 1.0), ("shift", -1.0), ("shift", 1.0)}
    out = str(tmp_path / "served")
    packed = run(
        "vllm", "pack", "--model", large, "--guide", f"g={tiny.lora}", "--form", "g=shift", "--out", out, "--json"
    )
    guide = json.loads(packed.out)["guides"][0]
    assert (guide["form"], guide["base"]) == ("shift", str(Path(tiny.model).resolve()))


def test_a_server_of_a_configuration_says_its_forms_and_refuses_what_means_nothing(
    tiny: Tiny, large: str, tmp_path: Path, run: Run
) -> None:
    from tests.cli.test_serve import call

    entry = {"path": tiny.lora, "form": "shift", "guide_base": tiny.model}
    config = {"model": large, "name": "big", "guides": {"s": entry, "p": tiny.lora}, "presets": {"away": {"s": -1.0}}}
    path = tmp_path / "serve.yaml"
    path.write_text(yaml.safe_dump(config))
    with serving("--config", str(path)) as (_, port):
        forms = {one["id"]: one["form"] for one in call(port, "/v1/guides")[1]["data"]}
        body = {"model": "away", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 6, "seed": 3}
        reply = call(port, "/v1/chat/completions", body)[1]
        refused = call(port, "/v1/chat/completions", {**body, "model": "big", "guidance": {"weights": {"p": -1.0}}})
        masked = {"weights": {"p": -1.0}, "plausibility": 0.1}
        accepted = call(port, "/v1/chat/completions", {**body, "model": "big", "guidance": masked})[0]
    assert forms == {"s": "shift", "p": "product"}
    assert reply["choices"][0]["message"]["content"] == expected(large, tiny, "shift", -1.0)
    assert refused[0] == 400
    assert "Guide p is a product" in refused[1]["error"]["message"]
    assert accepted == 200
    path.write_text(yaml.safe_dump({**config, "presets": {"away": {"p": -1.0}}}))
    outcome = run("serve", "--config", str(path), "--port", "0")
    assert outcome.code == 2
    assert "The model name 'away' cannot be served. Guide p is a product" in outcome.err
    path.write_text(yaml.safe_dump({**config, "guides": {"s": {**entry, "form": "shifted"}}, "presets": {}}))
    assert "guides.s.form is 'shifted'; give product or shift" in run("serve", "--config", str(path)).err


def test_a_strength_that_means_nothing_is_refused_before_anything_is_loaded(
    run: Run, tiny: Tiny, tmp_path: Path
) -> None:
    argv = ("generate", "--model", tiny.model, "--prompt", "Hi", "--method")
    outcome = run(*argv, "genarm", "--guide", f"g={tiny.lora}:-1")
    assert outcome.code == 2
    assert "weigh the guide as a shift: the method policy" in outcome.err
    assert "loading" not in outcome.err
    assert (
        run(*argv, "genarm", "--guide", f"g={tiny.lora}:-1", "--plausibility", "0.1", "--max-new-tokens", "1").code == 0
    )
    assert "give at least 0" in run(*argv, "sharpened", "--strength", "-0.5").err
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "Question?"}\n')
    recipe = {
        "model": tiny.model,
        "prompts": {"test": {"path": "prompts.jsonl"}},
        "rewards": {"sentiment": {"scorer": "sentiment"}},
        "methods": [{"method": "base"}, {"method": "genarm", "guides": {"g": tiny.lora}, "strengths": [1, -1]}],
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    outcome = run("compare", str(tmp_path / "recipe.yaml"), "--out", str(tmp_path / "run"))
    assert "methods[1].strengths: a strength of genarm is -1" in outcome.err
    assert "loading" not in outcome.err


def test_a_base_of_another_vocabulary_is_the_flags_fault(run: Run, tiny: Tiny, tmp_path: Path) -> None:
    import transformers

    from tests.tiny import byte_llama, byte_tokenizer

    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["another"])
    other = tmp_path / "other"
    byte_llama(tokenizer, max_length=96).save_pretrained(other)
    tokenizer.save_pretrained(other)
    assert isinstance(tokenizer, transformers.PreTrainedTokenizerBase)
    argv = ("generate", "--model", tiny.model, "--guide", f"g={tiny.lora}", "--prompt", "Hi")
    assert f"--guide-base {other} has another vocabulary" in run(*argv, "--guide-base", f"g={other}").err


def test_a_list_may_begin_with_a_negative_number(run: Run, tiny: Tiny) -> None:
    argv = ("bench", "decode", "--model", tiny.model, "--guide", f"g={tiny.lora}", "--form", "g=shift", "--batch", "1")
    outcome = run(*argv, "--weights", "-1,0.5", "--num-new-tokens", "2", "--num-repeats", "1", "--json")
    assert outcome.code == 0, outcome.err
    assert [row["weight"] for row in json.loads(outcome.out)["rows"]] == [None, -1.0, 0.5]
    assert "Unknown option '--weigths'" in run(*argv, "--weigths", "-1,0.5").err
