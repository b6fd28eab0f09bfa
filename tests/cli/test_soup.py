"""`trimtab soup` as a user meets it: what it writes, what it notes, what it refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from trimtab.cli.soup import parse_part
from trimtab.errors import OptionError
from trimtab.models.adapters.lora import LoRA
from trimtab.storage.cards import read_card
from trimtab.storage.loading import load_model

from .conftest import Run, Tiny


def policy(source: str, directory: Path, base: str, **changes: object) -> str:
    """A directory as `trimtab train rl` leaves it."""
    shutil.copytree(source, directory)
    model = load_model(base, device="cpu")
    assert model.tokenizer is not None
    card = {
        "format": 1,
        "kind": "policy",
        "base": model.describe(),
        "vocabulary": {"fingerprint": model.tokenizer.fingerprint, "size": len(model.tokenizer.tokens)},
        "data": {"fingerprint": "abc"},
        **changes,
    }
    (directory / "guide.json").write_text(json.dumps(card))
    return str(directory)


def test_a_soup_of_adapters_is_a_policy_of_its_own(run: Run, tiny: Tiny, tmp_path: Path) -> None:
    a = policy(tiny.lora, tmp_path / "a", tiny.model)
    out = tmp_path / "soup"
    outcome = run("soup", f"{a}:0.5", f"{tiny.lora}:0.25", "--out", str(out), "--json")
    assert outcome.code == 0, outcome.err
    assert json.loads(outcome.out) == {
        "out": str(out),
        "parts": [{"path": a, "weight": 0.5}, {"path": tiny.lora, "weight": 0.25}],
        "average": "deltas",
    }
    assert "the weights sum to 0.75, not to 1; they are taken as they are" in outcome.err
    card = read_card(out).written
    assert (card["kind"], card["form"], card["hyperparameters"]) == ("policy", "lora", {"average": "deltas"})
    assert card["base"] == read_card(Path(a)).written["base"]
    assert [(part["weight"], part["data"]) for part in card["soup"]] == [(0.5, "abc"), (0.25, "")]
    assert f"| {a} | 0.5 |" in (out / "README.md").read_text()
    one, mixed = LoRA.load(Path(a)), LoRA.load(out, read_card(out).trained_on)
    for name, (down, up) in one.pairs.items():
        torch.testing.assert_close(mixed.pairs[name][1] @ mixed.pairs[name][0], 0.75 * up @ down)


def test_factors_are_averaged_when_asked_for(run: Run, tiny: Tiny, tmp_path: Path) -> None:
    out = tmp_path / "soup"
    outcome = run("soup", f"{tiny.lora}:0.5", f"{tiny.lora}:0.5", "--average", "factors", "--out", str(out))
    assert (outcome.code, outcome.out) == (0, ""), outcome.err
    assert "not to 1" not in outcome.err
    assert read_card(out).written["hyperparameters"] == {"average": "factors"}
    one, mixed = LoRA.load(Path(tiny.lora)), LoRA.load(out)
    assert all(mixed.pairs[name][0].shape == down.shape for name, (down, _) in one.pairs.items())


def test_whole_models_are_averaged_tensor_by_tensor(run: Run, tiny: Tiny, tmp_path: Path) -> None:
    out = tmp_path / "soup"
    outcome = run("soup", f"{tiny.model}:0.25", f"{tiny.separate}:0.75", "--out", str(out))
    assert outcome.code == 0, outcome.err
    first, second, mixed = (load_file(Path(path) / "model.safetensors") for path in (tiny.model, tiny.separate, out))
    assert mixed.keys() == first.keys()
    for name, weight in mixed.items():
        torch.testing.assert_close(weight, 0.25 * first[name] + 0.75 * second[name])
    assert read_card(out).written["form"] == "full"
    mixed_model, start = load_model(out, device="cpu"), load_model(tiny.model, device="cpu")
    assert mixed_model.tokenizer is not None
    assert start.tokenizer is not None
    assert mixed_model.tokenizer.fingerprint == start.tokenizer.fingerprint


def test_a_failure_leaves_nothing_behind(run: Run, tiny: Tiny, tmp_path: Path) -> None:
    out = tmp_path / "soup"
    cut = tmp_path / "cut"
    shutil.copytree(tiny.lora, cut)
    data = (cut / "adapter_model.safetensors").read_bytes()
    (cut / "adapter_model.safetensors").write_bytes(data[:-8])
    outcome = run("soup", f"{tiny.lora}:0.5", f"{cut}:0.5", "--out", str(out))
    assert outcome.code == 2
    assert "does not load as an adapter" in outcome.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cut"]


def test_what_does_not_belong_together_is_refused_in_one_line(run: Run, tiny: Tiny, tmp_path: Path) -> None:
    lora, other = policy(tiny.lora, tmp_path / "a", tiny.model), policy(tiny.lora, tmp_path / "b", tiny.separate)
    arm = policy(tiny.lora, tmp_path / "arm", tiny.model, kind="arm")
    words = policy(tiny.lora, tmp_path / "c", tiny.model, vocabulary={"fingerprint": "other"})
    refused = {
        (f"{lora}:0.5", f"{tiny.model}:0.5"): "Some of these policies are LoRA adapters and others whole models",
        (f"{lora}:0.5", f"{arm}:0.5"): "holds a guide of kind 'arm'; a soup averages policies",
        (f"{lora}:0.5", f"{words}:0.5"): "were trained with other vocabularies",
        (f"{lora}:0.5", f"{tmp_path}:0.5"): "holds no policy",
        (f"{lora}:-0.5", f"{other}:1.5"): "A weight is -0.5; give finite numbers of at least 0",
        (lora,): "has no weight" if ":" not in lora else "is not a number",
    }
    for parts, sentence in refused.items():
        outcome = run("soup", *parts, "--out", str(tmp_path / "soup"))
        assert outcome.code == 2, parts
        assert sentence in outcome.err
        assert "Traceback" not in outcome.err
        assert not (tmp_path / "soup").exists()


def test_a_path_may_hold_a_colon() -> None:
    part = parse_part("runs:1/a:0.5")
    assert (part.path, part.weight) == ("runs:1/a", 0.5)
    for text, words in (("a", "has no weight"), (":1", "has no weight"), ("a:half", "'half' of a is not a number")):
        with pytest.raises(OptionError, match=words):
            parse_part(text)


def test_what_is_in_the_way_stays(run: Run, tiny: Tiny, tmp_path: Path) -> None:
    out = tmp_path / "soup"
    asked = ("soup", f"{tiny.lora}:1", "--out", str(out))
    assert run(*asked).code == 0
    refused = run(*asked)
    assert refused.code == 2
    assert "already exists" in refused.err
    assert run(*asked, "--overwrite").code == 0
