"""Trajectory reward models: what is learnt, that scoring reads what training read, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("trl")

import safetensors.torch

from trimtab.errors import (
    BaseMismatchError,
    CheckpointError,
    CompatibilityError,
    DataError,
    OptionError,
    VocabularyMismatchError,
)
from trimtab.models.rewards.whole import RewardModel
from trimtab.storage.cards import read_card, write_card
from trimtab.storage.scorers import load_reward_model, load_scorer
from trimtab.training.pairs.data import PairData
from trimtab.training.pairs.formats import PreferencePair
from trimtab.training.reward import trainer as reward_trainer
from trimtab.training.reward.train import RewardSettings, train_reward, untrained_reward_model
from trimtab.training.run import run
from trimtab.training.run.arguments import RunArguments
from trimtab.training.run.trainer import build_trainer

from .conftest import save_model, vowel_pairs

PAIRS, HELD = vowel_pairs(48), vowel_pairs(24, seed=1)
SETTINGS = RewardSettings(
    learning_rate=0.005,
    batch_size=4,
    gradient_accumulation=2,
    epochs=2,
    max_length=64,
    logging_steps=2,
    save_steps=4,
    lora_dropout=0.1,
)
"""Twelve steps of eight pairs, checkpoints after 4, 8 and 12."""
SHORT = dataclasses.replace(SETTINGS, epochs=0.5, save_steps=0, lora_dropout=0.0)


def rewards(model: RewardModel, pairs: Sequence[PreferencePair]) -> list[float]:
    prompts = [pair.prompt for pair in pairs for _ in range(2)]
    return model.rewards(prompts, [answer for pair in pairs for answer in (pair.chosen, pair.rejected)])


@pytest.fixture(scope="module")
def finished(tiny: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("rewards") / "vowels"
    train_reward(tiny, PairData(tuple(PAIRS), ("pairs.jsonl",)), eval_pairs=HELD, out=out, settings=SETTINGS)
    return out


def card_of(directory: Path) -> dict[str, Any]:
    card: dict[str, Any] = json.loads((directory / "guide.json").read_text())
    return card


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    """A finished adapter to be broken."""
    shutil.copytree(finished, tmp_path / "copy")
    return tmp_path / "copy"


def test_it_prefers_what_it_was_shown(finished: Path) -> None:
    metrics = card_of(finished)["metrics"]
    assert metrics["num_eval_pairs"] == len(HELD)
    assert metrics["eval_accuracy"] >= 0.9
    found = rewards(load_reward_model(finished), HELD)
    right = sum(chosen > rejected for chosen, rejected in zip(found[::2], found[1::2], strict=True))
    assert right / len(HELD) == metrics["eval_accuracy"]


def test_guide_json_says_what_it_is(finished: Path) -> None:
    card = card_of(finished)
    assert (card["format"], card["kind"], card["form"]) == (1, "reward", "lora")
    assert card["reward"]["max_length"] == 64
    assert card["data"]["files"] == ["pairs.jsonl"]
    readme = (finished / "README.md").read_text()
    assert "Bradley and Terry" in readme
    assert "Accuracy on 24 pairs" in readme
    assert json.loads((finished / "adapter_config.json").read_text())["modules_to_save"] == ["score"]


def test_the_mean_and_the_spread_are_those_of_the_held_out_answers(finished: Path) -> None:
    found = torch.tensor(rewards(load_reward_model(finished), HELD), dtype=torch.float64)
    recorded = card_of(finished)["reward"]
    assert recorded["mean"] == pytest.approx(float(found.mean()), abs=1e-4)
    assert recorded["std"] == pytest.approx(float(found.std()), rel=1e-4)


@pytest.mark.parametrize("full", [False, True])
def test_what_is_loaded_back_gives_the_rewards_of_the_model_that_was_trained(
    full: bool, tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[float] = []
    moments = reward_trainer.reward_moments

    def spy(trainer: Any, model: RewardModel, pairs: Sequence[PreferencePair]) -> Any:
        trainer.model.eval()
        seen.extend(rewards(model, HELD))
        return moments(trainer, model, pairs)

    monkeypatch.setattr(reward_trainer, "reward_moments", spy)
    train_reward(tiny, PAIRS, out=tmp_path / "r", settings=dataclasses.replace(SHORT, full=full))
    assert card_of(tmp_path / "r")["form"] == ("full" if full else "lora")
    assert rewards(load_reward_model(tmp_path / "r"), HELD) == pytest.approx(seen, abs=1e-5)
    assert max(seen) - min(seen) > 0.1, "the rewards differ, so the comparison says something"
    if full:
        assert load_reward_model(tmp_path / "r").max_length == 64


def test_training_reads_the_ids_that_scoring_reads(finished: Path, tiny: str) -> None:
    model = untrained_reward_model(run.load_host(tiny, SETTINGS), SETTINGS)
    long = PreferencePair(HELD[0].prompt, "a" * 100, "b" * 100)
    rows = reward_trainer.reward_rows(model, [*HELD, long])
    scoring = load_reward_model(finished)
    for side, ids in (("chosen", "chosen_ids"), ("rejected", "rejected_ids")):
        texts = [getattr(pair, side) for pair in (*HELD, long)]
        expected = scoring.token_ids([pair.prompt for pair in (*HELD, long)], texts)
        assert [list(getattr(row, ids)) for row in rows.pairs] == expected
    assert rows.num_cut == 2
    assert len(rows.pairs[-1].chosen_ids) == 64
    # The template's end of turn is there: the reward is read after it.
    assert scoring.tokenizer.convert_ids_to_tokens(list(rows.pairs[0].chosen_ids[-2:])) == ["<end>", "Ċ"]


def build(tiny: str, tmp_path: Path, settings: RewardSettings, *, pad: str = "<pad>") -> tuple[Any, RewardModel]:
    host = run.load_host(tiny, settings)
    assert host.tokenizer is not None
    host.tokenizer.hf.pad_token = pad
    model = untrained_reward_model(host, settings)
    rows = reward_trainer.reward_rows(model, PAIRS[:4])
    config = reward_trainer.reward_config(settings, tmp_path / "work")
    parts = reward_trainer.reward_parts(model, rows, rows, settings, config.world_size)
    return build_trainer(parts, settings, config, RunArguments(out=tmp_path)), model


@pytest.mark.parametrize("center", [0.0, 0.01])
@pytest.mark.parametrize("pad", ["<pad>", "Ċ"])
def test_the_loss_is_bradley_and_terrys_at_the_last_token(pad: str, center: float, tiny: str, tmp_path: Path) -> None:
    """Every text ends with a line break: with that as padding, the last token that is no padding is another one."""
    trainer, model = build(tiny, tmp_path, dataclasses.replace(SHORT, center_rewards=center), pad=pad)
    trainer.model.eval()
    batch = trainer.data_collator([trainer.train_dataset[index] for index in range(4)])
    ids = [trainer.train_dataset[index]["chosen_ids"] for index in range(4)]
    order = [next(i for i, row in enumerate(model.token_ids(*_chosen())) if row == one) for one in ids]
    with torch.no_grad():
        found = float(trainer.compute_loss(trainer.model, batch))
    expected = []
    for index in order:
        better, worse = rewards(model, [PAIRS[index]])  # one text at a time: no padding at all
        expected.append(math.log1p(math.exp(worse - better)) + center * (better + worse) ** 2)
    assert found == pytest.approx(sum(expected) / 4, abs=1e-6)


def _chosen() -> tuple[list[Any], list[str]]:
    return [pair.prompt for pair in PAIRS[:4]], [pair.chosen for pair in PAIRS[:4]]


def test_only_the_adapter_and_the_head_are_trained(tiny: str, tmp_path: Path) -> None:
    trainer, _ = build(tiny, tmp_path, SHORT)
    trained = {name for name, weight in trainer.model.named_parameters() if weight.requires_grad}
    assert any("score" in name for name in trained)
    assert all("lora_" in name or "score.modules_to_save" in name for name in trained)


def test_the_head_moves(finished: Path, tiny: str) -> None:
    start = untrained_reward_model(run.load_host(tiny, SETTINGS), SETTINGS).module.score.weight
    written = safetensors.torch.load_file(finished / "adapter_model.safetensors")["base_model.model.score.weight"]
    assert written.shape == start.shape
    assert not torch.allclose(written, start, atol=1e-3)


def test_a_turned_sign_is_warned_of(tiny: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    turned = [PreferencePair(pair.prompt, pair.rejected, pair.chosen) for pair in HELD]
    settings = dataclasses.replace(SETTINGS, save_steps=0)
    with caplog.at_level(logging.WARNING, "trimtab"):
        train_reward(tiny, PAIRS, eval_pairs=turned, out=tmp_path / "r", settings=settings)
    assert "the sign may be turned" in caplog.text
    assert "the sign may be turned" in (tmp_path / "r" / "README.md").read_text()
    caplog.clear()
    load_reward_model(tmp_path / "r")
    assert "the sign may be turned" in caplog.text


def test_a_sign_that_is_right_is_not_warned_of(finished: Path, caplog: pytest.LogCaptureFixture) -> None:
    load_reward_model(finished)
    assert caplog.text == ""


def test_it_is_a_scorer(finished: Path) -> None:
    scorer = load_scorer(str(finished))
    prompts, texts = ["say 3", "say 3"], ["aeiou", "bcdfg"]
    better, worse = scorer(prompts, texts)
    assert better > worse
    assert load_reward_model(finished).rewards(prompts, texts) == [better, worse]


def test_a_text_longer_than_the_model_holds_is_refused(tiny: str, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"max_length 512 is more than the 256 tokens"):
        train_reward(tiny, PAIRS, out=tmp_path / "r", settings=dataclasses.replace(SHORT, max_length=512))
    assert not list(tmp_path.iterdir())


def test_texts_that_become_the_same_teach_nothing(tiny: str, tmp_path: Path) -> None:
    same = [PreferencePair(pair.prompt, "a" + "x" * 80, "b" + "x" * 80) for pair in PAIRS]
    settings = dataclasses.replace(SHORT, max_prompts_per_response=0)
    with pytest.raises(DataError, match="became the same"):
        train_reward(tiny, same, out=tmp_path / "r", settings=settings)
    assert not (tmp_path / "r").exists()


# What is refused when it is loaded: no reward comes from a head that was made up, or from another base.


def edit_card(directory: Path, **changes: Any) -> None:
    (directory / "guide.json").write_text(json.dumps({**card_of(directory), **changes}))


def edit_weights(directory: Path, **changes: torch.Tensor | None) -> None:
    path = directory / "adapter_model.safetensors"
    tensors: dict[str, Any] = {**safetensors.torch.load_file(path), **changes}
    tensors = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    safetensors.torch.save_file(tensors, path, metadata={"format": "pt"})
    write_card(directory, read_card(directory))  # which records them: what is asked here is what reads them


SCORE = "base_model.model.score.weight"


def test_an_adapter_without_its_head_is_refused(copied: Path) -> None:
    edit_weights(copied, **{SCORE: None})
    with pytest.raises(CheckpointError, match=r"'score' are missing or not finite"):
        load_reward_model(copied)


@pytest.mark.parametrize(("shape", "problem"), [((2, 32), "has one row"), ((1, 16), "is \\[1, 16\\]")])
def test_a_head_of_another_shape_is_refused(shape: tuple[int, int], problem: str, copied: Path) -> None:
    edit_weights(copied, **{SCORE: torch.ones(shape)})
    with pytest.raises(CheckpointError, match=problem):
        load_reward_model(copied)


def test_a_head_that_is_not_finite_is_refused(copied: Path) -> None:
    edit_weights(copied, **{SCORE: torch.full((1, 32), math.nan)})
    with pytest.raises(CheckpointError, match="not finite"):
        load_reward_model(copied)


def test_another_base_of_the_same_shape_is_refused(copied: Path, tmp_path: Path) -> None:
    other = Path(save_model(tmp_path / "other", seed=1))
    path = other / "model.safetensors"
    tensors = safetensors.torch.load_file(path)
    tensors["model.norm.weight"] = tensors["model.norm.weight"] * 1.5
    safetensors.torch.save_file(tensors, path, metadata={"format": "pt"})
    edit_card(copied, base={**card_of(copied)["base"], "name": str(other)})
    with pytest.raises(BaseMismatchError, match="same shape but other weights"):
        load_reward_model(copied)


def test_a_base_with_another_vocabulary_is_refused(copied: Path) -> None:
    edit_card(copied, vocabulary={"fingerprint": "0" * 64, "size": 262})
    with pytest.raises(VocabularyMismatchError, match="another vocabulary"):
        load_reward_model(copied)


def test_an_adapter_that_names_no_base_is_refused(copied: Path) -> None:
    (copied / "guide.json").unlink()
    with pytest.raises(CheckpointError, match="names its base"):
        load_reward_model(copied)


def test_another_chat_template_is_refused(copied: Path, tiny: str, tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(tiny, base)
    template = base / "chat_template.jinja"
    template.write_text(template.read_text().replace("<end>", "</s>"))
    edit_card(copied, base={**card_of(copied)["base"], "name": str(base)})
    with pytest.raises(CompatibilityError, match="another chat template"):
        load_reward_model(copied)


def test_a_guide_of_another_kind_is_refused(copied: Path) -> None:
    edit_card(copied, kind="arm")
    with pytest.raises(CheckpointError, match="kind 'arm', which has no score head"):
        load_reward_model(copied)


def test_the_reader_of_whole_models_sends_an_adapter_to_the_right_door(finished: Path) -> None:
    from trimtab.models.rewards.whole import load_whole_reward_model as load_whole

    with pytest.raises(CheckpointError, match=r"trimtab\.load_reward_model"):
        load_whole(finished)
