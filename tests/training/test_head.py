"""A head alone: its loss and gradients by a plain loop, what is learnt and written, going on, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("trl")

from trimtab.cli.main import main
from trimtab.core import SamplingParams
from trimtab.decoding.decoder import Decoder
from trimtab.errors import CompatibilityError, OptionError
from trimtab.guides.head import Head
from trimtab.models.adapters.low_rank_head import LowRankHead
from trimtab.storage.checking import check_files
from trimtab.storage.loading import load_guide, load_model
from trimtab.training.arm.head import HeadTrainer, head_config, head_parts, output_layer
from trimtab.training.arm.train import ArmSettings, train_arm
from trimtab.training.pairs.data import PairData
from trimtab.training.pairs.tokens import TokenData
from trimtab.training.run import checkpoints
from trimtab.training.run.arguments import RunArguments
from trimtab.training.run.trainer import build_trainer

from .conftest import vowel_pairs
from .test_arm import TOGETHER, curve
from .test_trainer import PAIRS as TOKEN_PAIRS
from .test_trainer import batch, logits_of

PAIRS, HELD = vowel_pairs(48), vowel_pairs(24, seed=1)
SETTINGS = ArmSettings(
    head_only=4,
    learning_rate=0.05,
    batch_size=4,
    gradient_accumulation=2,
    epochs=2,
    max_length=64,
    max_prompt_length=32,
    logging_steps=2,
    save_steps=4,
    lora_dropout=0.1,
)
"""Twelve steps of eight pairs, checkpoints after 4, 8 and 12; the dropout makes the random state matter."""


def weights(directory: Path) -> tuple[Tensor, Tensor]:
    head = LowRankHead.load(directory)
    return head.down, head.up


def same(one: Path, other: Path) -> bool:
    return all(torch.equal(a, b) for a, b in zip(weights(one), weights(other), strict=True))


@pytest.fixture(scope="module")
def finished(tiny: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The head of a run from its beginning to its end."""
    out = tmp_path_factory.mktemp("heads") / "vowels"
    train_arm(tiny, PairData(tuple(PAIRS), ("pairs.jsonl",)), eval_pairs=HELD, out=out, settings=SETTINGS)
    return out


@pytest.fixture
def make(host: Callable[[str], Any], tmp_path: Path) -> Callable[..., HeadTrainer]:
    def build(model: str, settings: ArmSettings) -> HeadTrainer:
        data = TokenData(TOKEN_PAIRS, 0, 0, 0)
        config = head_config(settings, tmp_path / "work")
        parts = head_parts(host(model), data, data, settings, config.world_size)
        trainer = build_trainer(parts, settings, config, RunArguments(out=tmp_path))
        assert isinstance(trainer, HeadTrainer)
        return trainer

    return build


@pytest.mark.parametrize("family", ["tiny", "gemma"])
@pytest.mark.parametrize("weight", [0.0, 2.5])
def test_loss_and_gradients_are_those_of_a_plain_loop(
    family: str,
    weight: float,
    make: Callable[..., HeadTrainer],
    host: Callable[[str], Any],
    request: pytest.FixtureRequest,
) -> None:
    """−log σ(β·(mean log m(y_w) − mean log m(y_l)) − γ), the head added after Gemma's soft caps."""
    model = request.getfixturevalue(family)
    settings = ArmSettings(
        head_only=3, batch_size=4, gradient_accumulation=1, gamma=0.1, beta=1.5, through_mix=weight, warmup_share=0.0
    )
    trainer = make(model, settings)
    layer = trainer.model.get_output_embeddings()
    down, up = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    with torch.no_grad():
        up.normal_(0, 0.3, generator=torch.Generator().manual_seed(3))
    loss = trainer.compute_loss(trainer.model, batch(trainer, TOKEN_PAIRS))
    loss.backward()

    plain = host(model)
    one, other = (part.detach().clone().requires_grad_() for part in (down, up))

    def mean(prompt: tuple[int, ...], response: tuple[int, ...]) -> Tensor:
        with torch.no_grad():
            logits = logits_of(plain.module, prompt, response)
            ids = torch.tensor([[*prompt, *response]])
            states = plain.states(ids, torch.arange(ids.shape[1])[None])[0, len(prompt) - 1 : -1]
        mixed = (logits + (weight or 1.0) * states @ one.T @ other.T).log_softmax(-1)
        return torch.stack([mixed[at, token] for at, token in enumerate(response)]).mean()

    losses = [
        -torch.nn.functional.logsigmoid(
            1.5 * (mean(pair.prompt_ids, pair.chosen_ids) - mean(pair.prompt_ids, pair.rejected_ids)) - 0.1
        )
        for pair in TOKEN_PAIRS
    ]
    expected = torch.stack(losses).mean()
    expected.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(down.grad, one.grad, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(up.grad, other.grad, rtol=1e-3, atol=1e-5)


def test_nothing_but_the_two_matrices_is_trained_and_they_add_nothing_at_first(
    tiny: str, make: Callable[..., HeadTrainer]
) -> None:
    trainer = make(tiny, dataclasses.replace(SETTINGS, lora_dropout=0.0))
    trained = {name: weight for name, weight in trainer.model.named_parameters() if weight.requires_grad}
    assert sorted(name.split("lora_")[-1] for name in trained) == ["A.default.weight", "B.default.weight"]
    assert {tuple(weight.shape) for weight in trained.values()} == {(4, 32), (262, 4)}
    assert not next(weight for name, weight in trained.items() if "lora_B" in name).any()


def test_it_prefers_what_it_was_shown_and_its_card_says_so(finished: Path, tiny: str) -> None:
    card = json.loads((finished / "guide.json").read_text())
    assert (card["kind"], card["form"]) == ("head", "head")
    assert card["head"] == {"rank": 4, "hidden_size": 32, "vocab_size": 262}
    assert "guide_form" not in card
    assert (card["hyperparameters"]["head_only"], card["hyperparameters"]["beta"]) == (4, 1.0)
    metrics = card["metrics"]
    assert metrics["eval_accuracy"] >= 0.9
    assert metrics["eval_accuracy_low"] < metrics["eval_accuracy"] <= metrics["eval_accuracy_high"]
    assert metrics["num_eval_prompts"] == len(HELD)
    assert sorted(path.name for path in finished.iterdir()) == [
        "README.md",
        "guide.json",
        "metrics.jsonl",
        "model.safetensors",
    ]
    readme = (finished / "README.md").read_text()
    assert f"A low-rank head on the final state of `{tiny}`" in readme
    assert "Accuracy on 24 pairs" in readme
    assert all(one.holds is not False for one in check_files(finished).findings)


def test_decoding_gives_the_probabilities_that_the_accuracy_was_measured_by(finished: Path, tiny: str) -> None:
    """The measured accuracy, once more by the decoder: means of log-probabilities of forced answers."""
    model = load_model(tiny)
    head = load_guide(finished, beside=model)
    assert isinstance(head, Head)
    assert model.tokenizer is not None
    decoder = Decoder(model, {"head": head})

    def reward(pair: Any, response: str) -> tuple[float, float]:
        assert model.tokenizer is not None
        forced = (*model.tokenizer.hf(response, add_special_tokens=False)["input_ids"], 3)
        how = SamplingParams(forced=forced, max_new_tokens=len(forced), ignore_eos=True, trace=True)
        [answer] = decoder.answers([(list(pair.prompt), how)])
        assert answer.trace is not None
        shift = sum(step.chosen.mixed_logprob - step.chosen.base_logprob for step in answer.trace)
        return sum(step.chosen.mixed_logprob for step in answer.trace) / len(forced), shift / len(forced)

    rewards = [(reward(pair, pair.chosen), reward(pair, pair.rejected)) for pair in HELD]
    metrics = json.loads((finished / "guide.json").read_text())["metrics"]
    for index, name in enumerate(("eval_accuracy", "eval_shift_accuracy")):
        assert sum(chosen[index] > rejected[index] for chosen, rejected in rewards) / len(HELD) == metrics[name]


def test_a_stopped_run_goes_on_exactly(
    finished: Path, tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, save = tmp_path / "vowels", torch.save

    def full(content: Any, path: Any, *args: Any, **options: Any) -> None:
        if "checkpoint-8" in str(path):
            raise OSError(28, "No space left on device")
        save(content, path, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full)
        with pytest.raises(Exception, match="No space left"):
            train_arm(tiny, PAIRS, eval_pairs=HELD, out=out, settings=SETTINGS)
    small = checkpoints.workspace_of(out) / "checkpoint-4"
    assert sum(path.stat().st_size for path in small.glob("*.safetensors")) < 20_000  # the head, not the model
    train_arm(tiny, PAIRS, eval_pairs=HELD, out=out, settings=SETTINGS, resume=True)
    assert same(out, finished)
    assert curve(out) == curve(finished)


@pytest.mark.slow
def test_two_processes_draw_the_curve_of_one(tiny: str, tmp_path: Path, repository: Path) -> None:
    one = dataclasses.replace(SETTINGS, lora_dropout=0.0)
    two = dataclasses.replace(one, gradient_accumulation=1)  # of each process
    train_arm(tiny, PAIRS, eval_pairs=HELD, out=tmp_path / "one", settings=one)
    rows = [[[pair.prompt, pair.chosen, pair.rejected] for pair in pairs] for pairs in (PAIRS, HELD)]
    (tmp_path / "run.py").write_text(TOGETHER)
    config = repository / "recipes" / "two_processes_cpu.yaml"
    launch = (sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config))
    asked = json.dumps([tiny, str(tmp_path / "two"), dataclasses.asdict(two), *rows])
    done = subprocess.run(
        [*launch, str(tmp_path / "run.py"), asked],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    for ours, other in zip(curve(tmp_path / "one"), curve(tmp_path / "two"), strict=True):
        assert dict(other) == pytest.approx(dict(ours), rel=1e-3, abs=1e-5)
    for ours, other in zip(weights(tmp_path / "one"), weights(tmp_path / "two"), strict=True):
        torch.testing.assert_close(other, ours, rtol=1e-3, atol=1e-4)


def test_tied_embeddings_stay_as_they_are(tiny: str, tmp_path: Path) -> None:
    from .conftest import save_model

    tied = save_model(tmp_path / "tied", tie_word_embeddings=True)
    settings = dataclasses.replace(SETTINGS, save_steps=0, epochs=0.5, save_dtype="bfloat16")
    train_arm(tied, PAIRS, eval_pairs=HELD, out=tmp_path / "head", settings=settings)
    head = load_guide(tmp_path / "head", beside=load_model(tied))
    assert isinstance(head, Head)
    assert head.map.facts()["head"] == {"rank": 4, "hidden_size": 32, "vocab_size": 262}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"full": True}, "full is given, and head_only trains nothing but a head"),
        ({"lora_rank": 4}, "lora_rank is 4, and head_only is the rank"),
        ({"lora_alpha": 4.0}, "lora_alpha is 4, and head_only trains no adapter"),
        ({"lora_targets": ("q_proj",)}, "lora_targets is q_proj, and head_only trains no layer"),
        ({"lora_last_layers": 1}, "lora_last_layers is 1, and head_only trains no layer"),
        ({"gradient_checkpointing": True}, "gradient_checkpointing is given, and head_only has no backward pass"),
        ({"reference": "base", "form": "shift"}, "reference is base, and head_only trains what is added"),
        ({"form": "shift"}, "form is shift, and head_only trains what is added"),
    ],
)
def test_what_says_nothing_of_a_head_is_refused_by_name(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(OptionError, match=said):
        ArmSettings(head_only=4, **changes)


def test_beta_follows_what_is_trained_and_is_kept_where_it_is_given() -> None:
    assert (ArmSettings().beta, ArmSettings(head_only=4).beta) == (0.05, 1.0)
    assert ArmSettings(head_only=4, beta=0.05).beta == 0.05
    assert dataclasses.replace(ArmSettings(head_only=4), seed=3).beta == 1.0
    with pytest.raises(OptionError, match="head_only is -1; give a whole number of at least 0"):
        ArmSettings(head_only=-1)


def test_a_rank_above_the_width_is_refused_before_anything_is_written(tiny: str, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"head_only is 33, and the states of .* have width 32\. Give a rank of at"):
        train_arm(tiny, PAIRS, out=tmp_path / "g", settings=dataclasses.replace(SETTINGS, head_only=33))
    assert not list(tmp_path.iterdir())


def test_a_model_that_changes_its_state_before_its_output_head_is_refused(
    tiny: str, host: Callable[[str], Any]
) -> None:
    model = host(tiny)
    layer = model.module.get_output_embeddings()
    assert output_layer(model, 4) is layer
    layer.register_forward_pre_hook(lambda _, args: (args[0] / 8, *args[1:]), prepend=True)
    with pytest.raises(CompatibilityError, match="final state, which LlamaForCausalLM changes before"):
        output_layer(model, 4)


def test_the_command_trains_one(tiny: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"prompt": f"say {at}", "chosen": pair.chosen, "rejected": pair.rejected} for at, pair in enumerate(PAIRS)]
    data = tmp_path / "pairs.jsonl"
    data.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    flags = ["--head-only", "2", "--learning-rate", "0.05", "--batch-size", "8", "--gradient-accumulation", "1"]
    command = ["train", "arm", "--model", tiny, "--data", str(data), "--out", str(tmp_path / "head"), *flags]
    assert main([*command, "--max-length", "64", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["num_pairs"] > 40
    assert weights(tmp_path / "head")[0].shape == (2, 32)
    assert main([*command, "--lora-rank", "4", "--overwrite"]) == 2
    assert "--lora-rank is 4, and --head-only is the rank of what is trained" in capsys.readouterr().err
