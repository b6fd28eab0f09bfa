"""A guide by reinforcement through the mix: drawn from, learnt through and measured as decoding mixes it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("trl")

from tests.training.test_rl import PROMPTS, VOWELS, curve, length, weights
from trimtab.core import SamplingParams
from trimtab.decoding.decoder import Decoder
from trimtab.errors import OptionError
from trimtab.mixing.forms import PRODUCT, SHIFT
from trimtab.storage.loading import load_guide, load_model
from trimtab.training.rl.mixed import MixedTrainer
from trimtab.training.rl.train import AgentReward, GuideRLSettings, train_guide_rl
from trimtab.training.run import checkpoints
from trimtab.training.run import trainer as run_trainer

SETTINGS = GuideRLSettings(
    learning_rate=0.02,
    kl_weight=0.01,
    epochs=2,
    batch_size=8,
    gradient_accumulation=2,
    num_generations=4,
    max_new_tokens=6,
    logging_steps=1,
    save_steps=2,
    lora_dropout=0.1,
    through_mix=2.0,
)


def train(model: str, out: Path, terms: Any = (VOWELS,), **options: Any) -> Any:
    return train_guide_rl(model, PROMPTS, terms, out=out, **{"settings": SETTINGS, "template": "auto", **options})


@pytest.fixture(scope="module")
def finished(tiny: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The guide of a run from its beginning to its end."""
    out = tmp_path_factory.mktemp("guides") / "vowels"
    train(tiny, out)
    return out


@pytest.fixture
def trainer(tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., MixedTrainer]:
    """A trainer of a run that is over, its adapter made random; dropout is off."""

    def make(**changes: Any) -> MixedTrainer:
        seen: list[MixedTrainer] = []
        build = run_trainer.build_trainer

        def spy(*given: Any) -> Any:
            seen.append(build(*given))
            return seen[-1]

        monkeypatch.setattr(run_trainer, "build_trainer", spy)
        settings = dataclasses.replace(SETTINGS, epochs=0.5, save_steps=0, lora_dropout=0.0, **changes)
        train(tiny, tmp_path / "guide", settings=settings)
        [found] = seen
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for name, weight in found.model.named_parameters():
                if "lora_B" in name:
                    weight.copy_(torch.randn(weight.shape, generator=generator) * 0.3)
        found.model.eval()
        return found

    return make


def plain_logits(trainer: MixedTrainer, ids: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Guide's and base's logits after each of these tokens, [L, V] each, without our code."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    with torch.no_grad():
        guide = model(input_ids=torch.tensor([ids])).logits[0].float()
        with model.disable_adapter():
            base = model(input_ids=torch.tensor([ids])).logits[0].float()
    return guide, base


def mixed(guide: torch.Tensor, base: torch.Tensor, weight: float, form: str) -> torch.Tensor:
    return base + weight * guide if form == PRODUCT else base + weight * (guide - base)


@pytest.mark.parametrize(("form", "weight"), [(PRODUCT, 2.0), (SHIFT, 0.5)])
def test_log_probabilities_are_the_mixs_and_their_reference_is_the_base(
    trainer: Callable[..., MixedTrainer], form: str, weight: float
) -> None:
    found = trainer(form=form, through_mix=weight, temperature=0.5)
    prompts, answers = [[1, 40, 41], [1, 50]], [[60, 61, 62], [70, 71]]
    ids = torch.tensor([[*prompts[0], *answers[0]], [0, *prompts[1], *answers[1], 0]])
    mask = torch.tensor([[1] * 6, [0, 1, 1, 1, 1, 0]])
    with torch.no_grad():
        logps, entropies, _ = found._get_per_token_logps_and_entropies(found.model, ids, mask, 3, compute_entropy=True)
        with found.accelerator.unwrap_model(found.model).disable_adapter():
            reference, _, _ = found._get_per_token_logps_and_entropies(found.model, ids, mask, 3)
    assert entropies is not None
    for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        guide, base = plain_logits(found, [*prompt, *answer])
        for kept, logits in ((logps, mixed(guide, base, weight, form)), (reference, base)):
            table = torch.log_softmax(logits / 0.5, dim=-1)[len(prompt) - 1 : -1]
            wanted = table.gather(1, torch.tensor(answer)[:, None])[:, 0]
            torch.testing.assert_close(kept[row, : len(answer)], wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("form", "weight"), [(PRODUCT, 2.0), (SHIFT, 0.5)])
def test_answers_are_drawn_from_the_mix_whatever_their_prompts_are_padded_with(
    trainer: Callable[..., MixedTrainer], form: str, weight: float
) -> None:
    """At a low temperature every draw is the mix's most probable token, which a plain loop finds."""
    found = trainer(form=form, through_mix=weight, temperature=1e-4)
    prompts = [[1, 40, 41, 42, 43], [1, 50], [1, 60, 61]]
    answers = found._generate_single_turn(prompts, None, {})
    for prompt, answer in zip(prompts, answers, strict=True):
        assert 0 < len(answer) <= 6
        guide, base = plain_logits(found, [*prompt, *answer])
        best = mixed(guide, base, weight, form).argmax(dim=-1)[len(prompt) - 1 : -1]
        assert answer == best.tolist()
    assert "generate" not in vars(found.accelerator.unwrap_model(found.model))


def test_the_decoder_draws_from_what_was_trained_through(finished: Path, tiny: str) -> None:
    card = json.loads((finished / "guide.json").read_text())
    assert (card["kind"], card["form"], card["guide_form"], card["method"]) == ("arm", "lora", PRODUCT, "rloo")
    assert card["hyperparameters"]["through_mix"] == 2.0
    assert "2505.19075" in (finished / "README.md").read_text()
    model = load_model(tiny)
    decoder = Decoder(model, {"g": load_guide(finished, model=model)})
    params = SamplingParams(weights={"g": 2.0}, max_new_tokens=6, trace=True, seed=0)
    answers = list(decoder.answers([("say 3", params)]))
    assert answers[0].kl is not None
    assert answers[0].kl > 0


def test_only_the_adapter_changes_and_the_curve_has_rewards_and_kl(finished: Path) -> None:
    lines = curve(finished)
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert {"reward", "reward_vowels", "kl", "length", "share_even"} <= lines[-1].keys()
    assert any(weight.any() for name, weight in weights(finished).items() if "lora_B" in name)


def test_a_resumed_run_ends_in_the_very_weights_and_curve(finished: Path, tiny: str, tmp_path: Path) -> None:
    class KilledError(Exception):
        pass

    def dies(progress: Any) -> None:
        if progress.step == 3 and not progress.metrics:
            raise KilledError

    out = tmp_path / "out"
    with pytest.raises(KilledError):
        train(tiny, out, progress=dies)
    assert checkpoints.step_of(checkpoints.last_good(checkpoints.workspace_of(out))) == 2
    train(tiny, out, resume=True)
    assert all(torch.equal(weights(out)[name], weight) for name, weight in weights(finished).items())
    assert curve(out) == curve(finished)


def test_the_sign_of_a_reward_decides_what_is_learnt(tiny: str, tmp_path: Path) -> None:
    settings = dataclasses.replace(SETTINGS, epochs=0.5, kl_weight=0.0, lora_dropout=0.0, warmup_share=0.0)
    for name, multiplier in {"plus": 1.0, "minus": -1.0}.items():
        train(tiny, tmp_path / name, [AgentReward("length", length, multiplier)], settings=settings)
    ups = [{k: w for k, w in weights(tmp_path / name).items() if "lora_B" in k} for name in ("plus", "minus")]
    assert any(weight.abs().max() > 0.005 for weight in ups[0].values())
    for key, weight in ups[0].items():
        torch.testing.assert_close(weight, -ups[1][key], rtol=1e-3, atol=1e-5)


def test_a_reward_that_is_the_same_for_every_answer_is_warned_about_once(
    tiny: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def flat(prompts: Any, texts: list[str]) -> list[float]:
        return [1.0] * len(texts)

    settings = dataclasses.replace(SETTINGS, epochs=1, kl_weight=0.0, save_steps=0)
    with caplog.at_level("WARNING"):
        train(tiny, tmp_path / "out", [AgentReward("flat", flat)], settings=settings)
    assert caplog.text.count("does not tell them apart") == 1
    assert not any(weight.any() for name, weight in weights(tmp_path / "out").items() if "lora_B" in name)


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"full": True}, "full"), ({"through_mix": 0.0}, "through_mix"), ({"form": "sum"}, "form")],
)
def test_settings_that_mean_nothing_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(OptionError, match=words):
        GuideRLSettings(**changes)
