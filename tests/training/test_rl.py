"""A policy from rewards: what is learnt, what is written, what is refused, and going on after the worst."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("trl")

import safetensors.torch

from tests.tiny import byte_llama
from tests.tiny_tokenizers import made
from trimtab.core import Prompt
from trimtab.errors import DataError, ModelError, OptionError, OutputExistsError
from trimtab.models.adapters.lora import LoRA
from trimtab.models.hf import HFModel
from trimtab.storage.loading import load_model
from trimtab.training.rl.train import AgentReward, RLSettings, train_rl
from trimtab.training.rl.trainer import Panel
from trimtab.training.run import checkpoints
from trimtab.training.run.prompt_data import PromptIds

from .conftest import save_model

PROMPTS: list[Prompt] = [f"say {number}" for number in range(8)]
SETTINGS = RLSettings(
    learning_rate=0.02,
    kl_weight=0.01,
    epochs=4,
    batch_size=8,
    gradient_accumulation=2,
    num_generations=4,
    max_new_tokens=6,
    logging_steps=1,
    save_steps=2,
    lora_dropout=0.1,
)
"""Eight steps of four prompts with four answers each; the dropout and the answers make the random state matter."""


def vowels(prompts: Sequence[Prompt], texts: Sequence[str]) -> list[float]:
    """The share of vowels."""
    return [sum(letter in "aeiou" for letter in text) / max(1, len(text)) for text in texts]


def length(prompts: Sequence[Prompt], texts: Sequence[str]) -> list[float]:
    return [float(len(text)) for text in texts]


def sometimes(prompts: Sequence[Prompt], texts: Sequence[str]) -> list[float]:
    """NaN for about half of the answers."""
    return [math.nan if len(text) % 2 else 1.0 for text in texts]


def never(prompts: Sequence[Prompt], texts: Sequence[str]) -> list[float]:
    return [math.nan] * len(texts)


VOWELS = AgentReward("vowels", vowels)


def train(model: str, out: Path, rewards: Sequence[AgentReward] = (VOWELS,), **options: Any) -> Any:
    told = {"settings": SETTINGS, "template": "auto", **options}
    return train_rl(model, told.pop("prompts", PROMPTS), rewards, out=out, **told)


def weights(directory: Path) -> dict[str, torch.Tensor]:
    return dict(safetensors.torch.load_file(directory / "adapter_model.safetensors"))


def curve(directory: Path) -> list[dict[str, Any]]:
    """The lines of a curve without what depends on the clock."""
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds_per_step"} for line in lines]


@pytest.fixture(scope="module")
def finished(tiny: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The policy of a run from its beginning to its end, for two rewards."""
    out = tmp_path_factory.mktemp("policies") / "morl"
    train(tiny, out, [VOWELS, AgentReward("cost", length, -0.05)], prompt_files=["p.jsonl"])
    return out


def test_the_directory_says_what_it_is_and_is_whole(finished: Path, tiny: str) -> None:
    card = json.loads((finished / "guide.json").read_text())
    assert (card["format"], card["kind"], card["form"], card["method"]) == (1, "policy", "lora", "rloo")
    assert card["base"] == load_model(tiny).describe()
    assert [(term["name"], term["multiplier"]) for term in card["rewards"]] == [("vowels", 1.0), ("cost", -0.05)]
    assert (card["data"]["files"], card["data"]["num_prompts"]) == (["p.jsonl"], 8)
    assert card["metrics"]["num_answers"] == 8 * 16
    assert "1 × vowels + -0.05 × cost" in (finished / "README.md").read_text()
    assert sorted(path.name for path in finished.iterdir()) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "guide.json",
        "metrics.jsonl",
    ]
    assert [path.name for path in finished.parent.iterdir()] == ["morl"]


def test_the_reward_is_the_weighted_sum_of_the_rewards(finished: Path) -> None:
    lines = curve(finished)
    assert [line["step"] for line in lines] == list(range(1, 9))
    for line in lines:
        assert line["reward"] == pytest.approx(line["reward_vowels"] - 0.05 * line["reward_cost"], abs=1e-5)
        assert line["kl"] == pytest.approx(line["kl_per_token"] * line["length"], rel=1e-4, abs=1e-5)
    assert abs(lines[0]["kl"]) < 1e-5
    assert lines[-1]["kl"] > 0.01


@pytest.mark.slow
def test_a_policy_learns_what_it_is_rewarded_for(tiny: str, tmp_path: Path) -> None:
    settings = dataclasses.replace(SETTINGS, epochs=20, lora_dropout=0.0, kl_weight=0.0, save_steps=0)
    result = train(tiny, tmp_path / "out", settings=settings)
    rewards = [line["reward"] for line in curve(tmp_path / "out")]
    assert sum(rewards[-8:]) / 8 > 2 * sum(rewards[:4]) / 4 > 0
    assert "kl" not in result.metrics


def test_the_sign_of_a_multiplier_decides_what_is_learnt(tiny: str, tmp_path: Path) -> None:
    """Σ w_k r_k is what the gradient sees: of two equal rewards that cancel, nothing is learnt."""
    settings = dataclasses.replace(SETTINGS, epochs=0.5, kl_weight=0.0, lora_dropout=0.0, warmup_share=0.0)
    for name, multipliers in {"plus": (1.0, 1.0), "minus": (-1.0, -1.0), "nought": (1.0, -1.0)}.items():
        terms = [AgentReward(f"r{i}", length, multiplier) for i, multiplier in enumerate(multipliers)]
        train(tiny, tmp_path / name, terms, settings=settings)
    names = ("plus", "minus", "nought")
    ups = {name: {key: w for key, w in weights(tmp_path / name).items() if "lora_B" in key} for name in names}
    assert all(not w.any() for w in ups["nought"].values())
    # One Adam step from zero: the sign of the gradient alone.
    assert any(w.abs().max() > 0.005 for w in ups["plus"].values())
    for key, w in ups["plus"].items():
        torch.testing.assert_close(w, -ups["minus"][key], rtol=1e-3, atol=1e-5)


def test_the_adapter_changes_and_the_base_does_not(finished: Path, tiny: str) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = load_model(tiny)
    ours = LoRA.load(finished, json.loads((finished / "guide.json").read_text())).on(base).open()
    plain = base.open()
    for session in (ours, plain):
        session.admit([[1, 40, 41]])
    wrapped = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny), str(finished)).eval()
    with torch.no_grad():
        theirs = torch.log_softmax(wrapped(input_ids=torch.tensor([[1, 40, 41]])).logits[0, -1], dim=-1)
    torch.testing.assert_close(ours.logprobs()[0], theirs, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(ours.logprobs(), plain.logprobs(), atol=1e-3)


def test_the_kl_of_the_curve_is_to_the_base_with_the_adapter_off(tiny: str, tmp_path: Path) -> None:
    """The trainer's own weights of the base stay as they were, so that the KL is what it says."""
    from trimtab.training.rl import trainer as rl_trainer

    seen: dict[str, Any] = {}
    parts = rl_trainer.rl_parts

    def spy(host: Any, *rest: Any) -> Any:
        seen["before"] = {name: weight.clone() for name, weight in host.module.named_parameters()}
        seen["module"] = host.module
        return parts(host, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rl_trainer, "rl_parts", spy)
        train(tiny, tmp_path / "out")
    after = {name.replace(".base_layer", ""): weight for name, weight in seen["module"].named_parameters()}
    assert all(torch.equal(after[name], weight) for name, weight in seen["before"].items())


def test_the_prompts_are_what_decoding_sees(tiny: str, tmp_path: Path) -> None:
    """Chat through the template with one BOS, raw text, and ids as they are."""
    from trimtab.training.rl import trainer as rl_trainer

    fed: list[list[int]] = []
    generate = rl_trainer.PolicyTrainer._generate_single_turn

    def spy(self: Any, prompt_ids: list[list[int]], *rest: Any) -> Any:
        fed.extend(prompt_ids)
        return generate(self, prompt_ids, *rest)

    chat = [{"role": "user", "content": "ab"}]
    given: list[Prompt] = [chat, "ab", [1, 40, 41], "cd"]
    settings = dataclasses.replace(SETTINGS, epochs=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rl_trainer.PolicyTrainer, "_generate_single_turn", spy)
        train(tiny, tmp_path / "out", prompts=given, settings=settings, template="raw")
    tokenizer = load_model(tiny).tokenizer
    assert tokenizer is not None
    expected = [tokenizer.encode_chat(chat), tokenizer.encode("ab"), [1, 40, 41], tokenizer.encode("cd")]
    assert sorted({tuple(ids) for ids in fed}) == sorted(map(tuple, expected))
    assert len(fed) == 16


def test_every_end_of_sequence_id_ends_an_answer(tmp_path: Path) -> None:
    """The generation configuration names two of them, of which the tokenizer has one."""
    from trimtab.training.run import trainer as run_trainer

    model = save_model(tmp_path / "model")
    (tmp_path / "model" / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 3]}))
    seen = []
    build = run_trainer.build_trainer

    def spy(*given: Any) -> Any:
        seen.append(build(*given))
        return seen[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_trainer, "build_trainer", spy)
        train(model, tmp_path / "out", settings=dataclasses.replace(SETTINGS, epochs=0.5))
    assert set(seen[0].eos_token_ids) == {2, 3}


def test_an_answer_without_a_finite_reward_is_left_out_and_counted(tiny: str, tmp_path: Path) -> None:
    settings = dataclasses.replace(SETTINGS, epochs=1, save_steps=0)
    result = train(tiny, tmp_path / "out", [VOWELS, AgentReward("odd", sometimes)], settings=settings)
    assert 0 < result.num_dropped < result.num_answers
    assert all(torch.isfinite(weight).all() for weight in weights(tmp_path / "out").values())
    for line in curve(tmp_path / "out"):
        assert line["reward_odd"] == 1.0
        assert line["reward"] == pytest.approx(1 + line["reward_vowels"])


def test_trls_logger_is_left_as_it_was_and_says_nothing_of_answers_without_a_reward(
    tiny: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    logger = logging.getLogger("trl.trainer.rloo_trainer")
    filters = list(logger.filters)
    settings = dataclasses.replace(SETTINGS, epochs=0.5, save_steps=0)
    with caplog.at_level(logging.WARNING):
        result = train(tiny, tmp_path / "out", [AgentReward("odd", sometimes)], settings=settings)
    assert result.num_dropped > 0
    assert "returned None" not in caplog.text
    assert logger.filters == filters


def test_rewards_that_are_never_finite_end_the_run_with_a_sentence(tiny: str, tmp_path: Path) -> None:
    settings = dataclasses.replace(SETTINGS, epochs=10)
    with pytest.raises(ModelError, match="64 episodes in a row have no finite reward"):
        train(tiny, tmp_path / "out", [AgentReward("never", never)], settings=settings)
    assert not (tmp_path / "out").exists()


def test_all_weights_can_be_trained(tiny: str, tmp_path: Path) -> None:
    settings = dataclasses.replace(SETTINGS, full=True, epochs=2, learning_rate=1e-3)
    train(tiny, tmp_path / "out", settings=settings)
    before, after = (load_model(name).module for name in (tiny, tmp_path / "out"))
    changed = [not torch.equal(a, b) for a, b in zip(before.parameters(), after.parameters(), strict=True)]
    assert all(changed)
    assert curve(tmp_path / "out")[-1]["kl"] != 0


@pytest.mark.slow
def test_the_same_seed_gives_the_same_policy(finished: Path, tiny: str, tmp_path: Path) -> None:
    terms = [VOWELS, AgentReward("cost", length, -0.05)]
    train(tiny, tmp_path / "again", terms)
    train(tiny, tmp_path / "other", terms, settings=dataclasses.replace(SETTINGS, seed=1))
    mine, again, other = (weights(path) for path in (finished, tmp_path / "again", tmp_path / "other"))
    assert all(torch.equal(again[name], weight) for name, weight in mine.items())
    assert any(not torch.equal(other[name], weight) for name, weight in mine.items())


def interrupt(model: str, out: Path, terms: Sequence[AgentReward], step: int, **options: Any) -> None:
    """A run that dies after so many steps."""

    class KilledError(Exception):
        pass

    def dies(progress: Any) -> None:
        if progress.step == step and not progress.metrics:
            raise KilledError

    with pytest.raises(KilledError):
        train(model, out, terms, progress=dies, **options)


def test_a_resumed_run_ends_in_the_very_weights_and_curve(finished: Path, tiny: str, tmp_path: Path) -> None:
    out, terms = tmp_path / "out", [VOWELS, AgentReward("cost", length, -0.05)]
    interrupt(tiny, out, terms, 5, prompt_files=["p.jsonl"])
    assert checkpoints.step_of(checkpoints.last_good(checkpoints.workspace_of(out))) == 4
    train(tiny, out, terms, prompt_files=["p.jsonl"], resume=True)
    assert all(torch.equal(weights(out)[name], weight) for name, weight in weights(finished).items())
    assert curve(out) == curve(finished)
    assert not checkpoints.workspace_of(out).exists()


@pytest.mark.slow
def test_a_resumed_run_goes_on_counting(tiny: str, tmp_path: Path) -> None:
    terms = [AgentReward("odd", sometimes)]
    whole = train(tiny, tmp_path / "whole", terms)
    interrupt(tiny, tmp_path / "out", terms, 5)
    assert train(tiny, tmp_path / "out", terms, resume=True).num_dropped == whole.num_dropped > 0


def test_a_run_is_not_continued_as_another(finished: Path, tiny: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    interrupt(tiny, out, [VOWELS], 3)
    with pytest.raises(OptionError, match="cannot be continued with other settings"):
        train(tiny, out, [AgentReward("vowels", vowels, 2.0)], resume=True)
    with pytest.raises(OutputExistsError):
        train(tiny, out)
    with pytest.raises(OptionError, match=r"is finished.*: rewards is vowels="):
        train(tiny, finished, [VOWELS], prompt_files=["p.jsonl"], resume=True)


def test_a_finished_run_is_told_again(finished: Path, tiny: str) -> None:
    terms = [VOWELS, AgentReward("cost", length, -0.05)]
    result = train(tiny, finished, terms, prompt_files=["p.jsonl"], resume=True)
    assert result.num_answers == 128
    assert result.reward == result.metrics["reward"]


def test_long_prompts_are_left_out_and_a_sample_is_taken(tiny: str, tmp_path: Path) -> None:
    prompts = [*PROMPTS, "x" * 200]
    settings = dataclasses.replace(SETTINGS, epochs=0.5, max_prompt_length=40, max_prompts=4)
    result = train(tiny, tmp_path / "out", prompts=prompts, settings=settings)
    assert (result.num_prompts, result.metrics["num_long"]) == (4, 1)
    with pytest.raises(DataError, match="All 1 prompts have more than 40 tokens"):
        train(tiny, tmp_path / "none", prompts=prompts[-1:], settings=settings)
    with pytest.raises(OptionError, match="more than the 256 that"):
        train(tiny, tmp_path / "none", settings=dataclasses.replace(SETTINGS, max_new_tokens=250))


REFUSED = {
    "num_generations is 1": {"num_generations": 1},
    "16 answers, which num_generations 3 to a prompt": {"num_generations": 3},
    "temperature is 0": {"temperature": 0.0},
    "kl_weight is -1": {"kl_weight": -1.0},
    "max_new_tokens is 0": {"max_new_tokens": 0},
    "learning_rate is nan": {"learning_rate": math.nan},
}


@pytest.mark.parametrize("words", REFUSED)
def test_settings_that_cannot_be_used(words: str) -> None:
    with pytest.raises(OptionError, match=words):
        dataclasses.replace(SETTINGS, **REFUSED[words])


def test_nothing_to_learn_from_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no prompt"):
        train("no model", tmp_path / "out", prompts=[])
    with pytest.raises(OptionError, match="no reward"):
        train("no model", tmp_path / "out", [])
    with pytest.raises(OptionError, match="Two rewards are named 'vowels'"):
        train("no model", tmp_path / "out", [VOWELS, VOWELS])


def test_rewards_read_the_text_that_decoding_gives() -> None:
    """With its first space, without the token that ends it."""
    tokenizer = made("llama")
    tokenizer.pad_token = tokenizer.eos_token
    host, read = HFModel(byte_llama(tokenizer, max_length=16), tokenizer), []

    class Reads:
        def rate(self, numbers: object, prompts: object, texts: Sequence[str]) -> list[None]:
            read.extend(texts)
            return [None] * len(texts)

    prompt, word, end = tokenizer.convert_tokens_to_ids(["a", "▁was", "</s>"])
    [column] = Panel(host, [PromptIds("a", (prompt,))], Reads(), ["r"]).columns()
    assert math.isnan(column(["0"], [[word, word, end]])[0])
    assert read == [" was was"]
