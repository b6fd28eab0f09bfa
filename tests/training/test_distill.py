"""Sentences distilled into a guide: the loss by a plain loop, what decoding says of it, going on, what is refused."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("trl")

from trimtab.core import Prompt, SamplingParams
from trimtab.decoding.decoder import Decoder
from trimtab.errors import DataError, OptionError
from trimtab.guides.prompt import PromptGuide
from trimtab.models.adapters.low_rank_head import LowRankHead
from trimtab.storage.checking import check_files
from trimtab.storage.loading import load_guide, load_model
from trimtab.training.distill.answers import Reading
from trimtab.training.distill.losses import kl_divergence, target_logprobs
from trimtab.training.distill.train import DistillSettings, train_distill
from trimtab.training.distill.trainer import DistillTrainer, distill_config, distill_parts
from trimtab.training.run import checkpoints
from trimtab.training.run import trainer as run_trainer
from trimtab.training.run.arguments import RunArguments

from .conftest import TEMPLATE, save_model
from .test_head import logits_of
from .test_rl import curve as curve_with_speed
from .test_rl import weights

PROMPTS: list[Prompt] = [f"say {number}" for number in range(16)]
TOWARDS, AWAY = "be glad", "be sad!"
SETTINGS = DistillSettings(
    strength=2.0,
    learning_rate=0.01,
    epochs=4,
    eval_share=0.25,
    batch_size=2,
    gradient_accumulation=2,
    max_new_tokens=6,
    logging_steps=3,
    save_steps=2,
    lora_dropout=0.1,
)
"""Twelve steps of four answers, checkpoints after every second; the dropout makes the random state matter."""
HEAD = {"head_only": 8, "learning_rate": 0.03}


def train(model: str, out: Path, **options: Any) -> Any:
    said = {"towards": TOWARDS, "away": AWAY, "settings": SETTINGS, "template": "auto", **options}
    return train_distill(model, said.pop("prompts", PROMPTS), said.pop("towards"), out=out, **said)


def curve(directory: Path) -> list[dict[str, Any]]:
    """The lines of a curve without what depends on the clock."""
    return [
        {name: value for name, value in line.items() if not name.endswith("_per_s")}
        for line in curve_with_speed(directory)
    ]


def student(directory: Path) -> dict[str, Tensor]:
    """What was trained."""
    if (directory / "adapter_model.safetensors").exists():
        return weights(directory)
    head = LowRankHead.load(directory)
    return {"down": head.down, "up": head.up}


@pytest.fixture(scope="module", params=["adapter", "head"])
def changes(request: pytest.FixtureRequest) -> dict[str, Any]:
    """The settings of either student."""
    return {} if request.param == "adapter" else HEAD


@pytest.fixture(scope="module")
def finished(tiny: str, tmp_path_factory: pytest.TempPathFactory, changes: dict[str, Any]) -> Path:
    """The guide of a run from its beginning to its end."""
    out = tmp_path_factory.mktemp("guides") / "glad"
    train(tiny, out, settings=dataclasses.replace(SETTINGS, **changes), prompt_files=["p.jsonl"])
    return out


READINGS = (
    Reading((1, 40, 41), ((1, 60, 61, 40, 41), (1, 62, 40, 41)), (50, 51, 3)),
    Reading((1, *range(80, 110)), ((1, 60, 61, *range(80, 110)), (1, 62, *range(80, 110))), (60, 61, 62, 63, 3)),
    Reading((1, 42), ((1, 60, 61, 42), (1, 62, 42)), (70,)),
)


def one_sentence(reading: Reading) -> Reading:
    return dataclasses.replace(reading, sentences=reading.sentences[:1])


@pytest.fixture
def make(host: Callable[[str], Any], tmp_path: Path) -> Callable[..., DistillTrainer]:
    def build(model: str, readings: Sequence[Reading], **changed: Any) -> DistillTrainer:
        settings = DistillSettings(strength=1.5, batch_size=3, gradient_accumulation=1, **changed)
        config = distill_config(settings, tmp_path / "work")
        parts = distill_parts(host(model), readings, readings, settings, config.world_size)
        trainer: DistillTrainer = run_trainer.build_trainer(parts, settings, config, RunArguments(out=tmp_path))
        with torch.no_grad():
            generator = torch.Generator().manual_seed(0)
            for name, weight in trainer.model.named_parameters():
                if "lora_B" in name:
                    weight.normal_(0, 0.3, generator=generator)
        return trainer

    return build


@pytest.mark.parametrize("family", ["tiny", "gemma"])
@pytest.mark.parametrize("num_sentences", [1, 2])
@pytest.mark.parametrize("rank", [0, 3])
def test_loss_and_gradient_are_those_of_one_sequence_at_a_time(
    family: str,
    num_sentences: int,
    rank: int,
    make: Callable[..., DistillTrainer],
    host: Callable[[str], Any],
    request: pytest.FixtureRequest,
) -> None:
    """KL(t ‖ π_r) with t ∝ π_base · (π_s₊ / π_s₋)^λ, the mean over the tokens of all answers."""
    model = request.getfixturevalue(family)
    readings = READINGS if num_sentences == 2 else tuple(map(one_sentence, READINGS))
    trainer = make(model, readings, head_only=rank)
    trained = {name: weight for name, weight in trainer.model.named_parameters() if weight.requires_grad}
    assert all("lora_" in name for name in trained)
    inputs = trainer.data_collator(list(trainer.train_dataset))
    loss = trainer.compute_loss(trainer.model, inputs)
    loss.backward()
    found = {name: weight.grad.clone() for name, weight in trained.items()}
    trainer.model.zero_grad()

    plain = host(model)
    layer = trainer.model.get_output_embeddings()

    def student_logits(prompt: tuple[int, ...], answer: tuple[int, ...]) -> Tensor:
        if not rank:
            return logits_of(trainer.model, prompt, answer)
        ids = torch.tensor([[*prompt, *answer]])
        with torch.no_grad():
            states = plain.states(ids, torch.arange(ids.shape[1])[None])[0, len(prompt) - 1 : -1].clone()
        scores = states @ layer.lora_A["default"].weight.T @ layer.lora_B["default"].weight.T
        return logits_of(plain.module, prompt, answer).detach() + scores

    terms = []
    for reading in readings:
        with torch.no_grad():
            base = logits_of(plain.module, reading.prompt, reading.answer)
            said = [logits_of(plain.module, prompt, reading.answer) for prompt in reading.sentences]
            away = said[1] if num_sentences == 2 else base
            target = (base + 1.5 * (said[0].log_softmax(-1) - away.log_softmax(-1))).softmax(-1)
        mine = student_logits(reading.prompt, reading.answer).log_softmax(-1)
        terms += [(row * (row.log() - log)).sum() for row, log in zip(target, mine, strict=True)]
    expected = torch.stack(terms).mean()
    expected.backward()
    assert len(terms) == 9
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)
    for name, weight in trained.items():
        torch.testing.assert_close(found[name], weight.grad, rtol=1e-3, atol=1e-5)


def test_each_token_of_a_step_counts_alike_whatever_answer_it_is_of(
    tiny: str, make: Callable[..., DistillTrainer]
) -> None:
    """Three tokens in one forward pass and one in another: the step's loss is the mean of four."""
    trainer = make(tiny, READINGS)
    rows = list(trainer.train_dataset)
    batches, num_items = trainer.get_batch_samples(
        iter([trainer.data_collator(rows[:1]), trainer.data_collator(rows[1:])]), 2, trainer.args.device
    )
    parts = [trainer.compute_loss(trainer.model, batch, num_items_in_batch=num_items) for batch in batches]
    whole = trainer.compute_loss(trainer.model, trainer.data_collator(rows))
    torch.testing.assert_close(sum(parts), whole, rtol=1e-5, atol=1e-6)


def test_a_token_that_the_base_or_a_sentence_forbids_is_never_in_the_target() -> None:
    never = -torch.inf
    base = torch.tensor([[0.0, 1.0, never, 0.5]])
    towards = torch.tensor([[0.3, 0.1, never, never]])
    away = torch.tensor([[0.0, 0.7, never, 0.2]])
    target = target_logprobs(base, towards, away, strength=2.0)
    assert torch.isneginf(target[0, 2:]).all()
    logits = torch.tensor([[0.2, 0.4, never, 0.0]], requires_grad=True)
    [found] = kl_divergence(target, logits)
    found.backward()
    expected = (base[0, :2] + 2 * (towards - away)[0, :2]).softmax(-1)
    mine = logits.detach().log_softmax(-1)[0, :2]
    assert found.item() == pytest.approx(float((expected * (expected.log() - mine)).sum()), rel=1e-5)
    assert torch.isfinite(logits.grad).all()


def test_the_divergence_falls_and_the_card_says_from_what_to_what(
    finished: Path, tiny: str, changes: dict[str, Any]
) -> None:
    card = json.loads((finished / "guide.json").read_text())
    kind = ("head", "head", None) if changes else ("arm", "lora", "shift")
    assert (card["kind"], card["form"], card.get("guide_form")) == kind
    assert (card["method"], card["sentences"]) == ("distill", {"towards": TOWARDS, "away": AWAY})
    assert (card["data"]["files"], card["data"]["num_prompts"]) == (["p.jsonl"], 16)
    metrics = card["metrics"]
    assert (metrics["num_prompts"], metrics["num_eval_prompts"], metrics["num_steps"]) == (12, 4, 12)
    assert 0 < metrics["num_cut"] <= 16
    assert 0 < metrics["eval_kl"] < 0.7 * metrics["eval_base_kl"]
    assert metrics["eval_kl_low"] <= metrics["eval_kl"] <= metrics["eval_kl_high"]
    assert metrics["eval_share_learnt"] == pytest.approx(1 - metrics["eval_kl"] / metrics["eval_base_kl"])
    lines = curve(finished)
    assert [line["step"] for line in lines] == [3, 6, 9, 12, 12]
    assert lines[3]["kl"] < 0.5 * lines[0]["base_kl"]
    readme = (finished / "README.md").read_text()
    assert TOWARDS in readme
    assert AWAY in readme
    assert "4 prompts that were not trained on" in readme
    assert all(one.holds is not False for one in check_files(finished).findings)


@pytest.mark.parametrize("num_padded", [0, 8])
def test_what_was_measured_is_what_decoding_says_of_the_written_guide(
    num_padded: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    """Both policies token by token, from the decoder: the sentences at λ, and the written guide at weight 1. Logits
    without a token, which decoding never draws, count in neither."""
    tiny = save_model(tmp_path / "model", vocab_size=262 + num_padded)
    seen: list[DistillTrainer] = []
    build = run_trainer.build_trainer

    def spy(*given: Any) -> Any:
        seen.append(build(*given))
        return seen[-1]

    monkeypatch.setattr(run_trainer, "build_trainer", spy)
    result = train(tiny, tmp_path / "glad", settings=dataclasses.replace(SETTINGS, epochs=1, **changes))
    model = load_model(tiny)
    guides = {"sentences": PromptGuide(TOWARDS, away=AWAY, weight=2.0), "guide": load_guide(result.out, beside=model)}

    def policy(name: str, prompt: Sequence[int], answer: Sequence[int]) -> tuple[Tensor, float | None]:
        """[T, V] log-probabilities, and the KL to the base."""
        how = SamplingParams(
            forced=tuple(answer), max_new_tokens=len(answer), ignore_eos=True, trace=True, num_alternatives=262
        )
        [found] = Decoder(model, {name: guides[name]}).answers([(prompt, how)])
        assert found.trace is not None
        rows = torch.full((len(answer), 262), -torch.inf)
        for row, step in zip(rows, found.trace, strict=True):
            for one in (step.chosen, *step.alternatives):
                row[one.token_id] = one.mixed_logprob
        return rows, found.kl

    assert model.tokenizer is not None
    chats = [[{"role": "user", "content": prompt}] for prompt in PROMPTS]
    chat_of = {tuple(model.tokenizer.encode_chat(chat)): chat for chat in chats}
    mine, of_base = [], []
    for row in seen[0].eval_dataset:
        chat = chat_of[tuple(row["prompt"])]
        (target, base_kl), (student_rows, _) = (policy(name, chat, row["answer"]) for name in ("sentences", "guide"))
        mine.append(float((target.exp() * (target - student_rows)).nan_to_num().sum()))
        of_base.append(base_kl)
    assert result.eval_kl == pytest.approx(sum(mine) / len(mine), rel=1e-3)
    assert result.eval_base_kl == pytest.approx(sum(of_base) / len(of_base), rel=1e-3)


def test_a_stopped_run_ends_in_the_very_weights_and_curve(
    finished: Path, tiny: str, tmp_path: Path, changes: dict[str, Any]
) -> None:
    class KilledError(Exception):
        pass

    def dies(progress: Any) -> None:
        if progress.step == 5 and not progress.metrics:
            raise KilledError

    out, settings = tmp_path / "glad", dataclasses.replace(SETTINGS, **changes)
    with pytest.raises(KilledError):
        train(tiny, out, settings=settings, progress=dies, prompt_files=["p.jsonl"])
    assert checkpoints.step_of(checkpoints.last_good(checkpoints.workspace_of(out))) == 4
    train(tiny, out, settings=settings, resume=True, prompt_files=["p.jsonl"])
    assert curve(out) == curve(finished)
    expected = student(finished)
    assert all(torch.equal(weight, expected[name]) for name, weight in student(out).items())
    with pytest.raises(OptionError, match="away is be bad here and be sad! in the run"):
        train(tiny, out, settings=settings, resume=True, prompt_files=["p.jsonl"], away="be bad")


def test_answers_that_were_drawn_before_a_cut_are_kept_and_the_others_are_the_same(
    tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = dataclasses.replace(SETTINGS, epochs=0.3, save_steps=0, save_minutes=0)
    drawn: list[int] = []
    answers = Decoder.answers

    def counting(decoder: Decoder, requests: Any) -> Any:
        drawn.append(len(requests))
        return answers(decoder, requests)

    def interrupted(*given: Any, **options: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(Decoder, "answers", counting)
    with monkeypatch.context() as patch:
        patch.setattr(run_trainer, "adapter_config", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(tiny, tmp_path / "cut", settings=settings)
    [file] = checkpoints.workspace_of(tmp_path / "cut").glob("answers.jsonl")
    lines = file.read_text().splitlines(keepends=True)
    assert len(lines) == len(PROMPTS)
    file.write_text("".join(lines[:5]) + lines[5][:10])
    train(tiny, tmp_path / "cut", settings=settings, resume=True)
    train(tiny, tmp_path / "whole", settings=settings)
    assert drawn == [16, 11, 16]
    expected = student(tmp_path / "whole")
    assert all(torch.equal(weight, expected[name]) for name, weight in student(tmp_path / "cut").items())


def test_a_prompt_that_is_given_twice_is_not_both_trained_on_and_held_out(tiny: str, tmp_path: Path) -> None:
    settings = dataclasses.replace(SETTINGS, epochs=0.1, save_steps=0, max_new_tokens=2)
    result = train(tiny, tmp_path / "glad", prompts=[*PROMPTS, *PROMPTS], settings=settings)
    assert (result.num_prompts, result.num_eval_prompts) == (24, 4)


def test_one_sentence_is_distilled_and_nothing_need_be_held_out(tiny: str, tmp_path: Path) -> None:
    settings = dataclasses.replace(SETTINGS, epochs=1, eval_share=0.0, strength=1.0)
    result = train(tiny, tmp_path / "glad", away=None, settings=settings)
    assert (result.eval_kl, result.num_eval_prompts) == (None, 0)
    assert json.loads((tmp_path / "glad" / "guide.json").read_text())["sentences"] == {"towards": TOWARDS}
    assert "No prompts were held out" in (tmp_path / "glad" / "README.md").read_text()


REFUSED: dict[str, dict[str, Any]] = {
    "sentence of a guide is empty": {"towards": " "},
    "Both sentences of a guide are the same": {"away": TOWARDS},
    "the model holds 256, prompt and answer included": {"towards": "be glad " * 40},
    "longest prompt has .* more than the 256": {"towards": "be glad " * 31},
    "There is no prompt": {"prompts": []},
    "All 16 prompts have more than 3 tokens": {"settings": dataclasses.replace(SETTINGS, max_prompt_length=3)},
    "1 different prompts": {"prompts": PROMPTS[:1]},
    "head_only is 33": {"settings": dataclasses.replace(SETTINGS, head_only=33)},
}


@pytest.mark.parametrize("problem", REFUSED)
def test_what_cannot_be_distilled_is_refused_by_name(problem: str, tiny: str, tmp_path: Path) -> None:
    with pytest.raises((DataError, OptionError), match=problem):
        train(tiny, tmp_path / "glad", **REFUSED[problem])
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_the_chat_template_has_not_is_refused(tmp_path: Path) -> None:
    model = save_model(tmp_path / "raw", template=None)
    with pytest.raises(OptionError, match=r"place is system, and .* has no chat template"):
        train(model, tmp_path / "glad", settings=dataclasses.replace(SETTINGS, place="system"))
    model = save_model(
        tmp_path / "model",
        template="{% if messages[0]['role'] == 'system' %}{{ raise_exception('none') }}{% endif %}" + TEMPLATE,
    )
    with pytest.raises(OptionError, match="no system role"):
        train(model, tmp_path / "glad", settings=dataclasses.replace(SETTINGS, place="system"))


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"full": True}, "full trains the very model"),
        ({"strength": 0.0}, "strength"),
        ({"place": "front"}, "place is 'front'"),
        ({"eval_steps": 2, "eval_share": 0.0}, "eval_steps is 2, and no prompts are held out"),
        ({"head_only": 4, "lora_rank": 4}, "lora_rank is 4, and head_only is the rank"),
        ({"head_only": 4, "gradient_checkpointing": True}, "gradient_checkpointing is given"),
    ],
)
def test_settings_that_mean_nothing_are_refused(changed: dict[str, Any], words: str) -> None:
    with pytest.raises(OptionError, match=words):
        DistillSettings(**changed)
