"""Reward models: what they read, that a batch is what each text is alone, and what is refused."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from tests.tiny import tiny_module, tiny_tokenizer
from tests.tiny_rewards import tiny_encoder_tokenizer, tiny_reward_model, tiny_reward_module, write_reward_model
from trimtab.core import Prompt
from trimtab.errors import CheckpointError, CompatibilityError, NotFiniteError, OptionError, PromptError
from trimtab.models.rewards.whole import RewardModel, load_whole_reward_model

FAMILIES = ("llama", "qwen2", "bert")
PROMPTS: list[Prompt] = ["w1 w2", "w3", [{"role": "user", "content": "w4 w5 w6"}], "w7 w8 w9 w10 w11 w12", ""]
# The third ends in the token that also pads.
ANSWERS = ["w4", "w5 w6 w7 w8 w9", "w1 </s>", "w2 w3", "w0"]


def _ids(tokenizer: Any, text: str) -> list[int]:
    found: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return found


def _rows(model: RewardModel) -> list[list[int]]:
    """What the model's forward is given, padding taken off."""
    seen: list[list[int]] = []

    def look(module: Any, args: Any, options: dict[str, Any]) -> None:
        token_ids = args[0] if args else options["input_ids"]
        for row, mask in zip(token_ids.tolist(), options["attention_mask"].tolist(), strict=True):
            assert mask == sorted(mask, reverse=True), "padding is not on the right"
            seen.append(row[: sum(mask)])

    model.module.base_model.register_forward_pre_hook(look, with_kwargs=True)
    return seen


@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_gives_what_each_text_gives_alone(family: str) -> None:
    model = tiny_reward_model(family)
    together = model.rewards(PROMPTS, ANSWERS)
    alone = [model.rewards([prompt], [answer])[0] for prompt, answer in zip(PROMPTS, ANSWERS, strict=True)]
    assert together == pytest.approx(alone, abs=1e-5)
    assert len({round(reward, 3) for reward in together}) == len(together), "texts that are told apart"
    again = model.rewards(PROMPTS[::-1], ANSWERS[::-1])
    assert again[::-1] == pytest.approx(together, abs=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("batch_tokens", [1, 12, 20])
def test_the_size_of_batches_changes_nothing(family: str, batch_tokens: int) -> None:
    model = tiny_reward_model(family, batch_tokens=batch_tokens)
    assert model.rewards(PROMPTS, ANSWERS) == pytest.approx(
        tiny_reward_model(family).rewards(PROMPTS, ANSWERS), abs=1e-5
    )


def test_batches_hold_texts_of_like_length_and_no_more_tokens_than_they_may() -> None:
    model = tiny_reward_model(batch_tokens=12)
    shapes = []
    model.module.base_model.register_forward_pre_hook(
        lambda module, args, options: shapes.append(tuple(options["input_ids"].shape)), with_kwargs=True
    )
    # With <s>: 3, 9, 4, 3, 5 and 13 tokens, the last alone over the limit.
    texts = ["w1", "w1 " * 7, "w1 w2", "w1", "w1 w2 w3", "w1 " * 11]
    model.rewards(["w1"] * 6, texts)
    assert shapes == [(1, 13), (1, 9), (2, 5), (2, 3)]


def test_a_text_past_the_length_where_positions_are_scaled_changes_no_other() -> None:
    model = tiny_reward_model("phi3")
    answers = ["w1 w2 w3", "w5 w7 w11 w13 " * 6, "w4 w5", "w8 w9 " * 11]
    alone = [model.rewards(["w1"], [answer])[0] for answer in answers]
    assert model.rewards(["w1"] * 4, answers) == pytest.approx(alone, abs=1e-5)
    module = tiny_reward_module("phi3")
    for answer, reward in zip(answers, alone, strict=True):
        ids = torch.tensor(model.token_ids(["w1"], [answer]))
        assert module(input_ids=ids).logits.item() == pytest.approx(reward, abs=1e-5)


def test_a_text_is_cut_to_the_positions_that_there_are() -> None:
    """RoBERTa's table has 64 rows, and begins after the padding's id, which is 2."""
    model = tiny_reward_model("roberta")
    assert model.max_length == 61
    assert math.isfinite(model.rewards(["w1 " * 40], ["w3 " * 40])[0])
    assert model.num_cut == 1


@pytest.mark.parametrize("family", ["llama", "qwen2", "bert"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_accepted(family: str, dtype: torch.dtype) -> None:
    RewardModel(
        tiny_reward_module(family).to(dtype), tiny_encoder_tokenizer() if family == "bert" else tiny_tokenizer()
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_an_encoder_that_reads_its_padding_is_refused_in_any_precision(dtype: torch.dtype) -> None:
    module = tiny_reward_module("bert").to(dtype)
    module.base_model.register_forward_pre_hook(
        lambda part, args, options: (args, {**options, "attention_mask": None}), with_kwargs=True
    )
    with pytest.raises(CompatibilityError, match="looks at the padding"):
        RewardModel(module, tiny_encoder_tokenizer())


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_the_reward_is_the_heads_value_at_the_last_token(family: str) -> None:
    model = tiny_reward_model(family)
    token_ids = _ids(tiny_tokenizer(), "<s> w1 w2 w4 </s>")
    assert token_ids[-1] == tiny_tokenizer().pad_token_id
    with torch.no_grad():
        states = model.module.model(input_ids=torch.tensor([token_ids])).last_hidden_state[0]
        expected = (states @ model.module.score.weight[0]).tolist()
    assert abs(expected[-1] - expected[-2]) > 1e-2
    assert model.rewards(["w1 w2"], ["w4 </s>"]) == pytest.approx(expected[-1:], abs=1e-5)
    found = model.states(["w3", "w1 w2"], ["w1", "w4 </s>"])
    assert found.shape == (2, 32)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found[1], states[-1])


def test_an_encoders_reward_is_its_own() -> None:
    model = tiny_reward_model("bert")
    token_ids = [0, *_ids(tiny_tokenizer(), "w1 w2 w3"), 1]
    expected = model.module(input_ids=torch.tensor([token_ids])).logits[0, 0]
    assert model.rewards(["w1 w2", "w1"], ["w3", "w2 w3 w4 w5"])[0] == pytest.approx(float(expected), abs=1e-5)


def test_an_encoder_has_no_last_state() -> None:
    with pytest.raises(CompatibilityError, match="BertForSequenceClassification"):
        tiny_reward_model("bert").states(["w1"], ["w2"])


def test_nothing_is_written_to_the_model() -> None:
    model = tiny_reward_model()
    before = {name: tensor.clone() for name, tensor in model.module.state_dict().items()}
    model.rewards(PROMPTS, ANSWERS)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.module.state_dict().items())
    assert not any(weight.requires_grad for weight in model.module.parameters())


def test_no_texts_no_rewards() -> None:
    assert tiny_reward_model().rewards([], []) == []


class TestWhatItReads:
    def test_a_text_is_one_message_of_the_user(self) -> None:
        model = tiny_reward_model()
        seen = _rows(model)
        first, second = model.rewards(["w1 w2", [{"role": "user", "content": "w1 w2"}]], ["w3", "w3"])
        assert first == pytest.approx(second)
        assert seen == [_ids(tiny_tokenizer(), "<s> w1 w2 w3")] * 2

    def test_the_conversation_is_finished_and_has_its_roles(self) -> None:
        tokenizer = tiny_tokenizer()
        tokenizer.chat_template = (
            "{% for m in messages %}{{ {'user': 'w20 ', 'assistant': 'w21 '}[m['role']] + m['content'] + ' </s> ' }}"
            "{% endfor %}{% if add_generation_prompt %}{{ 'w22' }}{% endif %}"
        )
        model = RewardModel(tiny_reward_module(), tokenizer)
        seen = _rows(model)
        prompt = [
            {"role": "user", "content": "w1"},
            {"role": "assistant", "content": "w2"},
            {"role": "user", "content": "w3"},
        ]
        model.rewards([prompt], ["w4"])
        assert seen == [_ids(tokenizer, "w20 w1 </s> w21 w2 </s> w20 w3 </s> w21 w4 </s>")]

    def test_an_answer_that_was_begun_is_continued(self) -> None:
        model = tiny_reward_model()
        seen = _rows(model)
        prompt = [{"role": "user", "content": "w1"}, {"role": "assistant", "content": "w2"}]
        model.rewards([prompt], ["3 w4"])
        assert seen == [_ids(tiny_tokenizer(), "<s> w1 w23 w4")]
        assert prompt[-1]["content"] == "w2", "the caller's messages were changed"

    @pytest.mark.parametrize(
        ("habit", "template", "expected"),
        [
            (True, "{{ '<s> ' }}", "<s> w1 w2"),
            (True, "", "<s> w1 w2"),
            (False, "{{ '<s> ' }}", "<s> w1 w2"),
            (False, "", "w1 w2"),
            (True, "{{ '<s> <s> ' }}", "<s> w1 w2"),
        ],
    )
    def test_one_bos(self, habit: bool, template: str, expected: str) -> None:
        tokenizer = tiny_encoder_tokenizer() if habit else tiny_tokenizer()
        tokenizer.chat_template = template + "{% for m in messages %}{{ m['content'] + ' ' }}{% endfor %}"
        model = RewardModel(tiny_reward_module(), tokenizer)
        seen = _rows(model)
        model.rewards(["w1"], ["w2"])
        assert seen == [_ids(tiny_tokenizer(), expected)]

    def test_without_a_template_lines_are_joined(self) -> None:
        model = RewardModel(tiny_reward_module("bert"), tiny_encoder_tokenizer())
        texts = []
        plain = model._text._hf

        def look(text: str, **options: Any) -> Any:
            texts.append(text)
            return plain(text, **options)

        class Watched:
            chat_template = None
            bos_token_id = plain.bos_token_id
            __call__ = staticmethod(look)

        model._text._hf = Watched()
        seen = _rows(model)
        messages = [{"role": "user", "content": "w1"}, {"role": "assistant", "content": "w2"}]
        model.rewards(["w1 w2", [*messages, {"role": "user", "content": "w3"}]], ["w4", "w5"])
        assert texts == ["w1 w2\nw4", "w1\nw2\nw3\nw5"]
        assert seen == [[0, *_ids(plain, "w1 w2 w3 w5"), 1], [0, *_ids(plain, "w1 w2 w4"), 1]]

    def test_token_ids_are_refused(self) -> None:
        with pytest.raises(PromptError, match="2 token ids"):
            tiny_reward_model().rewards([[3, 4]], ["w1"])

    def test_a_prompt_without_messages_is_refused(self) -> None:
        with pytest.raises(PromptError, match="empty"):
            tiny_reward_model().rewards([[]], ["w1"])

    def test_a_text_of_no_token_is_refused(self) -> None:
        model = RewardModel(tiny_reward_module(), tiny_tokenizer(template=False))
        with pytest.raises(PromptError, match="answer 1 give no token"):
            model.rewards(["w1", ""], ["w1", ""])
        with pytest.raises(PromptError, match="answer 0 give no token"):
            tiny_reward_model().rewards([""], [""])

    def test_each_prompt_has_its_answer(self) -> None:
        with pytest.raises(PromptError, match="2 prompts and 1 answers"):
            tiny_reward_model().rewards(["w1", "w2"], ["w1"])

    def test_messages_that_the_template_refuses(self) -> None:
        tokenizer = tiny_tokenizer()
        tokenizer.chat_template = "{{ raise_exception('no system message, please') }}"
        with pytest.raises(PromptError, match="no system message, please"):
            RewardModel(tiny_reward_module(), tokenizer).rewards(["w1"], ["w2"])


class TestLength:
    def test_the_beginning_is_cut_and_bos_stays(self) -> None:
        model = tiny_reward_model(max_length=4)
        seen = _rows(model)
        model.rewards(["w1 w2 w3", "w1"], ["w4 w5", "w2"])
        assert seen == [_ids(tiny_tokenizer(), "<s> w3 w4 w5"), _ids(tiny_tokenizer(), "<s> w1 w2")]
        assert model.num_cut == 1

    def test_an_encoders_frame_stays(self) -> None:
        model = tiny_reward_model("bert", max_length=4)
        seen = _rows(model)
        model.rewards(["w1 w2"], ["w3"])
        assert seen == [[0, *_ids(tiny_tokenizer(), "w2 w3"), 1]]

    def test_what_fits_exactly_is_not_cut(self) -> None:
        model = tiny_reward_model(max_length=3)
        model.rewards(["w1"], ["w2"])
        assert model.num_cut == 0

    def test_one_warning_that_counts_then_counting(self, caplog: pytest.LogCaptureFixture) -> None:
        model = tiny_reward_model(max_length=3)
        with caplog.at_level(logging.WARNING, logger="trimtab"):
            model.rewards(["w1"] * 3, ["w2", "w2 w3", "w2 w3 w4"])
            model.rewards(["w1"], ["w2 w3"])
        assert len(caplog.records) == 1
        assert "2 of 3 texts are longer than 3 tokens" in caplog.records[0].getMessage()
        assert model.num_cut == 3

    def test_the_smallest_limit_holds(self) -> None:
        assert tiny_reward_model().max_length == 64
        assert tiny_reward_model(max_length=100).max_length == 64
        tokenizer = tiny_tokenizer()
        tokenizer.model_max_length = 7
        assert RewardModel(tiny_reward_module(), tokenizer).max_length == 7

    @pytest.mark.parametrize("max_length", [0, -1])
    def test_no_room_at_all(self, max_length: int) -> None:
        with pytest.raises(OptionError, match="at least 1"):
            tiny_reward_model(max_length=max_length)

    def test_no_room_beside_what_the_tokenizer_adds(self) -> None:
        with pytest.raises(OptionError, match="adds 2 tokens"):
            tiny_reward_model("bert", max_length=2)


class TestProbe:
    def test_a_decoder_that_finds_its_last_token_by_the_padding_is_refused(self) -> None:
        with pytest.raises(CompatibilityError, match=r"CTRLForSequenceClassification .*looks at the padding"):
            RewardModel(tiny_reward_module("ctrl"), tiny_tokenizer())

    def test_a_model_that_takes_no_batches_is_refused(self) -> None:
        module = tiny_reward_module("ctrl")
        module.config.pad_token_id = None
        with pytest.raises(CompatibilityError, match="does not take a batch"):
            RewardModel(module, tiny_tokenizer())

    def test_a_model_that_ignores_the_mask_is_refused(self) -> None:
        module = tiny_reward_module("bert")
        forward = module.forward
        module.forward = lambda input_ids, attention_mask=None: forward(input_ids=input_ids)
        with pytest.raises(CompatibilityError, match="looks at the padding"):
            RewardModel(module, tiny_encoder_tokenizer())

    def test_a_head_on_something_else_is_refused(self) -> None:
        module = tiny_reward_module()
        forward = module.forward
        module.forward = lambda input_ids: transformers.modeling_outputs.SequenceClassifierOutput(
            logits=forward(input_ids=input_ids).logits * 2
        )
        with pytest.raises(CompatibilityError, match="in a batch"):
            RewardModel(module, tiny_tokenizer())

    def test_damaged_weights_are_refused(self) -> None:
        module = tiny_reward_module()
        module.score.weight.data.fill_(math.nan)
        with pytest.raises(NotFiniteError):
            RewardModel(module, tiny_tokenizer())

    def test_nan_for_one_text_is_passed_on(self) -> None:
        """The caller drops such answers and counts them (`Scorer.raw`)."""
        model = tiny_reward_model()
        token_id = _ids(tiny_tokenizer(), "w50")[0]
        model.module.get_input_embeddings().weight.data[token_id] = math.nan
        bad, good = model.rewards(["w1", "w1"], ["w50", "w2"])
        assert math.isnan(bad)
        assert math.isfinite(good)


class TestLoading:
    @pytest.mark.parametrize(
        "family", ["llama", "bert"]
    )  # transformers reads every qwen2's words with its own tokenizer
    def test_what_was_saved_is_what_is_loaded(self, family: str, tmp_path: Path) -> None:
        model = load_whole_reward_model(write_reward_model(tmp_path / "reward", family))
        assert model.rewards(PROMPTS, ANSWERS) == pytest.approx(
            tiny_reward_model(family).rewards(PROMPTS, ANSWERS), abs=1e-5
        )

    def test_half_precision_runs_in_float32_on_a_cpu(self, tmp_path: Path) -> None:
        directory = tmp_path / "reward"
        tiny_reward_module().bfloat16().save_pretrained(directory)
        tiny_tokenizer().save_pretrained(directory)
        assert load_whole_reward_model(directory, device="cpu").module.dtype == torch.float32
        half = load_whole_reward_model(directory, device="cpu", dtype="bfloat16")
        assert half.module.dtype == torch.bfloat16
        assert half.rewards(["w1"], ["w2"]) == pytest.approx(
            load_whole_reward_model(directory, device="cpu").rewards(["w1"], ["w2"]), rel=0.1, abs=0.1
        )

    def test_its_length_can_be_given(self, tmp_path: Path) -> None:
        assert load_whole_reward_model(write_reward_model(tmp_path / "reward"), max_length=9).max_length == 9

    def test_a_directory_without_safetensors(self, tmp_path: Path) -> None:
        directory = write_reward_model(tmp_path / "reward")
        weights = load_file(directory / "model.safetensors")
        (directory / "model.safetensors").unlink()
        torch.save(weights, directory / "pytorch_model.bin")
        with pytest.raises(CheckpointError, match="no safetensors"):
            load_whole_reward_model(directory)

    def test_a_head_that_is_not_in_the_file(self, tmp_path: Path) -> None:
        directory = write_reward_model(tmp_path / "reward")
        weights = load_file(directory / "model.safetensors")
        del weights["score.weight"]
        save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(CheckpointError, match=r"lacks 1 weights \(first: score.weight\)"):
            load_whole_reward_model(directory)

    @pytest.mark.parametrize("num_labels", [2, 3])
    def test_another_number_of_labels(self, num_labels: int, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match=f"has {num_labels} labels"):
            load_whole_reward_model(write_reward_model(tmp_path / "reward", num_labels=num_labels))
        with pytest.raises(CheckpointError, match=f"has {num_labels} labels"):
            RewardModel(tiny_reward_module(num_labels=num_labels), tiny_tokenizer())

    def test_a_language_model(self, tmp_path: Path) -> None:
        tiny_module().save_pretrained(tmp_path)
        tiny_tokenizer().save_pretrained(tmp_path)
        with pytest.raises(CheckpointError, match="language model without a score head"):
            load_whole_reward_model(tmp_path)

    def test_a_damaged_file(self, tmp_path: Path) -> None:
        directory = write_reward_model(tmp_path / "reward")
        (directory / "model.safetensors").write_bytes(b"\x00" * 100)
        with pytest.raises(CheckpointError, match="does not load"):
            load_whole_reward_model(directory)

    def test_code_of_a_checkpoint_does_not_run(self, tmp_path: Path) -> None:
        directory = write_reward_model(tmp_path / "reward")
        config = (directory / "config.json").read_text()
        auto = '{"auto_map": {"AutoConfig": "own.OwnConfig"}, "model_type": "own-kind",'
        (directory / "config.json").write_text(config.replace('"model_type": "llama",', "").replace("{", auto, 1))
        (directory / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
        with pytest.raises(CheckpointError, match="does not load"):
            load_whole_reward_model(directory)
        assert not (tmp_path / "ran").exists()
