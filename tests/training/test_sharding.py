"""Guides whose weights are spread over processes while they are trained (FSDP2, DeepSpeed), on two CPU processes.

The configurations are those of `recipes/`, with fewer processes and float32. What comes out is one process's.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("trl")

from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser
from safetensors.torch import load_file
from torch.distributed.fsdp import fully_shard

from trimtab.cli.main import main
from trimtab.decoding.decoder import Decoder
from trimtab.errors import OptionError
from trimtab.storage.loading import load_guide, load_model
from trimtab.training.run.configs import uses_bfloat16
from trimtab.training.run.settings import ArmSettings
from trimtab.training.run.sharding import whole_weights

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
from trimtab.training.run.curve import _Curve
tell = _Curve.on_step_end
def stop(self, args, state, control, **rest):
    if state.global_step == 6:
        os._exit(9)
    tell(self, args, state, control, **rest)
_Curve.on_step_end = stop
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""

KEEPS_NOTHING_WHOLE = """
import runpy, sys
from accelerate.utils import DeepSpeedPlugin
made = DeepSpeedPlugin.__post_init__
def made_small(self):
    made(self)
    names = ("max_live_parameters", "max_reuse_distance", "param_persistence_threshold")
    self.hf_ds_config.config["zero_optimization"].update({f"stage3_{name}": 0 for name in names})
DeepSpeedPlugin.__post_init__ = made_small
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
"""ZeRO-3 leaves what a tiny model has whole after its last pass; of a 7B model it leaves nothing."""


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
        assert main(self.flags(name, "--batch-size", "2", "--gradient-accumulation", "4", *more)) == 0

    def together(self, sharder: str, name: str, *more: str, first: tuple[str, ...] = ()) -> str:
        """What two processes said; each takes half of the pairs of a step."""
        done = self.launch(sharder, name, *more, first=first)
        assert done.returncode == 0, done.stderr[-4000:]
        return done.stderr

    def launch(
        self, sharder: str, name: str, *more: str, first: tuple[str, ...] = ()
    ) -> subprocess.CompletedProcess[str]:
        if sharder == "deepspeed":
            path = self.directory / "keeps_nothing_whole.py"
            path.write_text(KEEPS_NOTHING_WHOLE)
            first = (str(path), *first)
        launcher = (sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "2")
        config = ("--mixed_precision", "no", "--config_file", str(self.recipes / f"arm_7b_{sharder}.yaml"))
        flags = self.flags(name, "--batch-size", "2", "--gradient-accumulation", "2", *more)
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
            # Adam turns noise in a small gradient into a step of up to the learning rate, 0.01.
            torch.testing.assert_close(theirs[key], tensor, rtol=1e-3, atol=5e-4)


@pytest.fixture
def training(tmp_path: Path, repository: Path) -> Training:
    for name, count, seed in (("pairs", 64, 0), ("held", 7, 1)):
        rows = [
            {"prompt": pair.prompt[0]["content"], "chosen": pair.chosen, "rejected": pair.rejected}
            for pair in vowel_pairs(count, seed=seed)
        ]
        write_rows(tmp_path / f"{name}.jsonl", rows)
    return Training(tmp_path, repository / "recipes", save_model(tmp_path / "model"))


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


@slow
def test_the_recipe_runs_dry(training: Training) -> None:
    paths = (training.model, str(training.directory / "pairs.jsonl"), str(training.directory / "dry"))
    more = ("--max-length", "128", "--max-prompt-length", "64", "--eval-share", "0")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        [str(training.recipes / "arm_7b.sh"), *paths, "lora", "fsdp", *more],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "DRY_RUN": "1", "OMP_NUM_THREADS": "1", "PATH": path},
    )
    assert done.returncode == 0, done.stderr[-4000:]
    card = json.loads((training.directory / "dry" / "guide.json").read_text())
    assert (card["metrics"]["num_steps"], card["hyperparameters"]["beta"]) == (8, 0.05)
    assert len(training.weights("dry")) == 28


REFUSED = {
    "FSDP without accelerators": (
        {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"},
        "asks for FSDP, and accelerate shards only between accelerators",
    ),
    "the first FSDP": ({"ACCELERATE_USE_FSDP": "true"}, "Set fsdp_version: 2"),
    "DeepSpeed without accelerators": ({"ACCELERATE_USE_DEEPSPEED": "true"}, "asks for DeepSpeed,"),
    "another precision": ({"ACCELERATE_MIXED_PRECISION": "fp16"}, "mixed_precision is fp16, and --dtype is auto"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_the_launcher_asks_for_is_honoured_or_refused(
    name: str, training: Training, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked, problem = REFUSED[name]
    for variable, value in asked.items():
        monkeypatch.setenv(variable, value)
    assert main(training.flags("refused")) == 2
    assert problem in capsys.readouterr().err
    assert not list(training.directory.glob("refused*")), "nothing is in the way of the next try"


def test_the_precision_of_the_launcher_is_that_of_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not uses_bfloat16(ArmSettings())
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert uses_bfloat16(ArmSettings())
    with pytest.raises(OptionError, match="mixed_precision is bf16, and dtype is float32"):
        uses_bfloat16(ArmSettings(dtype="float32"))


def test_a_method_that_was_not_made_for_shards_is_refused(
    training: Training, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    flags = training.flags("refused")
    assert main([flags[0], "dpo", *flags[2:]]) == 2
    assert "only train arm can spread its weights over processes" in capsys.readouterr().err
    assert main([*flags, "--through-mix", "1"]) == 2
    assert "where the base is not in its loss" in capsys.readouterr().err


def test_a_process_that_is_not_the_first_is_quiet(
    training: Training, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")  # ends before training
    assert main(training.flags("refused")) == 2
    assert "format preference" not in capsys.readouterr().err


@pytest.fixture
def one_process() -> Iterator[None]:
    """A process group of one."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def test_weights_in_shards_are_gathered_and_tied_ones_stay_one(one_process: None) -> None:
    module = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4), torch.nn.Linear(4, 4, bias=False))
    module[2].weight = module[0].weight
    module[1].requires_grad_(False)
    before = {name: weight.detach().clone() for name, weight in module.state_dict().items()}
    fully_shard(module)
    accelerator = SimpleNamespace(unwrap_model=lambda model: model, is_main_process=True)
    trainer = SimpleNamespace(model=module, accelerator=accelerator, is_deepspeed_enabled=False)
    weights = whole_weights(trainer)
    assert set(weights) == {"0.weight", "0.bias", "2.weight"}, "what is frozen is not"
    assert all(type(weight) is torch.Tensor and torch.equal(weight, before[name]) for name, weight in weights.items())
    assert weights["2.weight"] is weights["0.weight"]


@pytest.mark.parametrize("sharder", ["fsdp", "deepspeed"])
def test_a_recipe_holds_what_accelerate_reads(sharder: str, repository: Path) -> None:
    """Its launcher passes over keys that it does not know."""
    config = load_config_from_file(str(repository / "recipes" / f"arm_7b_{sharder}.yaml"))
    flags = vars(launch_command_parser().parse_args(["script.py"]))
    given = config.fsdp_config or config.deepspeed_config
    assert given
    assert set(given) - set(flags) == set()
    assert (config.num_processes, config.mixed_precision) == (8, "bf16")
    assert "fsdp_made_up" not in flags
