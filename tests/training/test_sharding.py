"""Guides whose weights are spread over processes while they are trained (FSDP2, DeepSpeed), on two CPU processes.

The configurations are those of `recipes/`, with fewer processes and float32. What comes out is the guide of one process.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

pytest.importorskip("trl")

from safetensors.torch import load_file

from trimtab.cli.main import main
from trimtab.decoding import Decoder
from trimtab.loading import load_guide, load_model

from .conftest import save_model, vowel_pairs, write_rows

slow = pytest.mark.slow
"""Two processes that import torch and transformers."""

SHARDERS = [
    "fsdp",
    pytest.param(
        "deepspeed",
        marks=pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="needs the extra deepspeed"),
    ),
]

STOPS_AT_6 = """
import os, runpy, sys
from trimtab.training.curve import _Curve
tell = _Curve.on_step_end
def stop(self, args, state, control, **rest):
    if state.global_step == 6:
        os._exit(9)
    tell(self, args, state, control, **rest)
_Curve.on_step_end = stop
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@dataclass(frozen=True)
class Training:
    """One command line, for one process here or for two that share the weights."""

    directory: Path
    recipes: Path
    model: str

    def flags(self, name: str, *more: str) -> list[str]:
        return [
            *("train", "arm", "--model", self.model, "--out", str(self.directory / name)),
            *("--data", str(self.directory / "pairs.jsonl"), "--eval-data", str(self.directory / "held.jsonl")),
            *("--max-length", "128", "--max-prompt-length", "64", "--learning-rate", "0.01"),
            *("--logging-steps", "2", "--save-steps", "4", *more),
        ]

    def alone(self, name: str, *more: str) -> None:
        assert main(self.flags(name, "--batch-size", "2", "--gradient-accumulation", "2", *more)) == 0

    def together(self, sharder: str, name: str, *more: str, first: tuple[str, ...] = ()) -> str:
        """What two processes said; each takes half of the pairs of a step."""
        done = self.launch(sharder, name, *more, first=first)
        assert done.returncode == 0, done.stderr[-4000:]
        return done.stderr

    def launch(
        self, sharder: str, name: str, *more: str, first: tuple[str, ...] = ()
    ) -> subprocess.CompletedProcess[str]:
        launcher = (sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "2")
        config = ("--mixed_precision", "no", "--config_file", str(self.recipes / f"arm_7b_{sharder}.yaml"))
        flags = self.flags(name, "--batch-size", "2", "--gradient-accumulation", "1", *more)
        return subprocess.run(
            [*launcher, *config, *first, str(self.recipes / "dry_run.py"), *flags],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"},
        )

    def curve(self, name: str) -> list[Mapping[str, float]]:
        lines = (self.directory / name / "metrics.jsonl").read_text().splitlines()
        return [{key: value for key, value in json.loads(line).items() if not key.endswith("_s")} for line in lines]

    def weights(self, name: str) -> dict[str, torch.Tensor]:
        (path,) = (self.directory / name).glob("*.safetensors")
        return load_file(path)

    def assert_same(self, name: str, other: str) -> None:
        """The same curve and the same weights, but for the order in which floats are added."""
        for ours, theirs in zip(self.curve(name), self.curve(other), strict=True):
            assert dict(theirs) == pytest.approx(dict(ours), rel=1e-3, abs=1e-5)
        ours, theirs = self.weights(name), self.weights(other)
        assert ours.keys() == theirs.keys()
        for key, tensor in ours.items():
            torch.testing.assert_close(theirs[key], tensor, rtol=1e-3, atol=1e-4)


@pytest.fixture
def training(tmp_path: Path, repository: Path) -> Training:
    for name, count, seed in (("pairs", 32, 0), ("held", 7, 1)):
        rows = [
            {"prompt": pair.prompt[0]["content"], "chosen": pair.chosen, "rejected": pair.rejected}
            for pair in vowel_pairs(count, seed=seed)
        ]
        write_rows(tmp_path / f"{name}.jsonl", rows)
    # Wide enough that ZeRO-3 splits its matrices too: it leaves those of less than 100,000 numbers whole.
    model = save_model(tmp_path / "model", hidden_size=384)
    return Training(tmp_path, repository / "recipes", model)


def _continuation(training: Training, guide: str) -> str:
    """What the model says under a guide that `load_guide` reads, greedily."""
    decoder = Decoder(load_model(training.model), {"guide": load_guide(training.directory / guide)})
    (answer,) = decoder.generate(["say 5"], weights={"guide": 1.0}, max_new_tokens=8, temperature=0)
    return answer.text


@slow
@pytest.mark.parametrize("form", ["lora", "full"])
@pytest.mark.parametrize("sharder", SHARDERS)
def test_a_guide_trained_in_shards_is_the_guide_of_one_process(training: Training, sharder: str, form: str) -> None:
    more = ("--full", "--learning-rate", "0.001") if form == "full" else ("--gradient-checkpointing",)
    training.alone("one", *more)
    said = training.together(sharder, "two", *more)
    assert said.count("step 8/8") == 1, "one process talks"
    training.assert_same("one", "two")
    assert _continuation(training, "two") == _continuation(training, "one")


@slow
@pytest.mark.parametrize("sharder", SHARDERS)
def test_a_sharded_run_goes_on_where_it_was_cut(training: Training, sharder: str) -> None:
    training.alone("one")
    (training.directory / "stops.py").write_text(STOPS_AT_6)
    cut = training.launch(sharder, "two", first=(str(training.directory / "stops.py"),))
    assert cut.returncode != 0
    workspace = training.directory / "two.partial"
    assert [path.name for path in workspace.glob("checkpoint-*")] == ["checkpoint-4"], cut.stderr[-4000:]
    said = training.together(sharder, "two", "--resume")
    assert "continuing from checkpoint-4" in said
    training.assert_same("one", "two")
