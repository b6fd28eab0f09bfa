"""A guide whose card holds a calibration runs so wherever nothing else is said: generate, chat, explain, serve."""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import pytest

from tests.cli.conftest import Run, Tiny
from trimtab import load_guide
from trimtab.cli import serve
from trimtab.cli.main import build_parser
from trimtab.serving.config import read_config
from trimtab.storage.calibrated import Calibration
from trimtab.storage.cards import read_card, write_card


@pytest.fixture
def calibrated(tiny: Tiny, tmp_path: Path) -> str:
    """The tiny adapter, calibrated as a shift at 2.5."""
    directory = tmp_path / "calibrated"
    shutil.copytree(tiny.lora, directory)
    found = Calibration(
        form="shift", strength=2.5, strength_low=1.0, strength_high=4.0, reward="sentiment", num_prompts=48
    )
    write_card(directory, read_card(directory).with_calibration(found))
    return str(directory)


def _generated(run: Run, tiny: Tiny, *flags: str) -> tuple[dict[str, object], str]:
    base = ("generate", "--model", tiny.model, "--prompt", "a", "--max-new-tokens", "4", "--seed", "1", "--json")
    outcome = run(*base, *flags)
    assert outcome.code == 0, outcome.err
    return json.loads(outcome.out), outcome.err


def test_generate_runs_a_guide_as_it_was_calibrated(run: Run, tiny: Tiny, calibrated: str) -> None:
    row, err = _generated(run, tiny, "--guide", f"kind={calibrated}")
    assert row["weights"] == {"kind": 2.5}
    assert "weight 2.5, as a shift, as it was calibrated: sentiment peaks there on 48 prompts, interval 1 to 4" in err
    said, _ = _generated(run, tiny, "--guide", f"kind={calibrated}:2.5", "--form", "kind=shift")
    assert said["token_ids"] == row["token_ids"]


def test_what_is_said_goes_before_the_calibration(run: Run, tiny: Tiny, calibrated: str) -> None:
    row, err = _generated(run, tiny, "--guide", f"kind={calibrated}:0.5")
    assert row["weights"] == {"kind": 0.5}
    assert "as it was calibrated" not in err
    other, err = _generated(run, tiny, "--guide", f"kind={calibrated}", "--form", "kind=product")
    assert other["weights"] == {"kind": 1.0}  # a strength as a shift says nothing of a product
    assert "as it was calibrated" not in err


def test_a_method_that_runs_one_guide_takes_the_strength_in_its_form(run: Run, tiny: Tiny, calibrated: str) -> None:
    row, err = _generated(run, tiny, "--guide", f"kind={calibrated}", "--method", "policy")
    assert row["weights"] == {"policy": 2.5}
    assert "kind runs at 2.5, the strength that its card keeps" in err
    refused = run(
        *("generate", "--model", tiny.model, "--prompt", "a", "--guide", f"kind={calibrated}", "--method", "genarm")
    )
    assert refused.code == 2
    assert "needs a strength" in refused.err


def test_explain_and_chat_run_it_so_too(run: Run, tiny: Tiny, calibrated: str, monkeypatch: pytest.MonkeyPatch) -> None:
    flags = ("--model", tiny.model, "--guide", f"kind={calibrated}", "--max-new-tokens", "2", "--seed", "1", "--json")
    explained = json.loads(run("explain", *flags, "--prompt", "a").out)
    assert explained["weights"] == {"kind": 2.5}
    import io

    monkeypatch.setattr("sys.stdin", io.StringIO("hello\n"))
    assert json.loads(run("chat", *flags).out)["weights"] == {"kind": 2.5}


def test_python_loads_it_so(calibrated: str) -> None:
    guide = load_guide(calibrated)
    assert (guide.weight, guide.form) == (2.5, "shift")  # type: ignore[attr-defined]
    assert load_guide(calibrated, form="product").weight == 1.0
    assert load_guide(calibrated, weight=-1.0).weight == -1.0


def _specs(*argv: str, config: str | None = None) -> dict[str, float | None]:
    args: argparse.Namespace = build_parser().parse_args(["serve", *argv])
    from trimtab.cli import engines
    from trimtab.serving.config import ServeConfig

    args.verbose = False
    read = ServeConfig() if config is None else read_config(Path(config))
    wanted = serve._wanted(args, read, engines.engine_choice(args))
    return {spec.name: spec.weight for spec in wanted.guides.specs}


def test_serve_runs_what_was_calibrated_and_leaves_the_others_off(tiny: Tiny, calibrated: str, tmp_path: Path) -> None:
    flags = ("--model", tiny.model, "--guide", f"kind={calibrated}", "--guide", f"plain={tiny.lora}")
    assert _specs(*flags) == {"kind": 2.5, "plain": 0.0}
    assert _specs(*flags, "--form", "kind=product") == {"kind": 0.0, "plain": 0.0}
    assert _specs("--model", tiny.model, "--guide", f"kind={calibrated}:0") == {"kind": 0.0}
    path = tmp_path / "serve.yaml"
    path.write_text(f"model: {tiny.model}\nguides:\n  kind: {calibrated}\n  off: {{path: {calibrated}, weight: 0}}\n")
    assert _specs(config=str(path)) == {"kind": 2.5, "off": 0.0}
