"""Models of transformers, driven row by row, against their own forward pass; adapters against peft."""

from __future__ import annotations

import threading
from pathlib import Path

import peft
import pytest
import torch

from tests.tiny import FAMILIES, VOCAB, tiny_module, tiny_tokenizer, write_lora
from trimtab.errors import BaseMismatchError, CheckpointError, CompatibilityError, NotFiniteError, PromptError
from trimtab.models.hf import HFModel
from trimtab.storage.loading import load_guide

PROMPTS = [[3, 4, 5, 6, 7, 8, 9, 10, 11], [12, 13], [14, 15, 16, 17, 18, 19]]


def reference(module: torch.nn.Module, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return torch.log_softmax(module(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].float(), -1)


def assert_rows(logprobs: torch.Tensor, module: torch.nn.Module, sequences: list[list[int]]) -> None:
    expected = torch.stack([reference(module, ids) for ids in sequences])
    torch.testing.assert_close(logprobs.clone(), expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_join_advance_fork_and_leave_like_the_models_own_forward(family: str) -> None:
    module = tiny_module(family)
    session = HFModel(module).open()
    sequences = [list(prompt) for prompt in PROMPTS]
    session.admit(PROMPTS[:2])
    assert_rows(session.logprobs(), module, sequences[:2])
    session.admit(PROMPTS[2:])
    for token in (20, 21, 22, 23):
        session.advance(torch.arange(3), torch.tensor([token, token + 1, token + 2]))
        for row, ids in enumerate(sequences):
            ids.append(token + row)
        assert_rows(session.logprobs(), module, sequences)
    session.keep(torch.tensor([2, 0, 2]))
    session.advance(torch.tensor([2, 0]), torch.tensor([30, 31]))
    sequences = [[*sequences[2], 31], sequences[0], [*sequences[2], 30]]
    assert_rows(session.logprobs(), module, sequences)
    session.keep(torch.tensor([1]))
    session.admit([[5, 6]])
    assert_rows(session.logprobs(), module, [sequences[1], [5, 6]])


@pytest.mark.parametrize("family", FAMILIES)
def test_peek_is_the_state_after_each_candidate_and_an_accepted_one_is_kept(family: str) -> None:
    module = tiny_module(family)
    session = HFModel(module).open()
    session.admit(PROMPTS)
    before = session.logprobs().clone()
    candidates = torch.tensor([[20, 21, 22], [23, 24, 25], [26, 27, 28]])
    hidden = session.peek(candidates)
    more = session.peek(candidates + 10)
    torch.testing.assert_close(session.logprobs(), before, rtol=0, atol=0)
    decoder = module.get_decoder() if hasattr(module, "get_decoder") else module.base_model
    for table, ids in ((hidden, candidates), (more, candidates + 10)):
        for row in range(3):
            for place in range(3):
                with torch.no_grad():
                    own = decoder(input_ids=torch.tensor([[*PROMPTS[row], int(ids[row, place])]])).last_hidden_state
                torch.testing.assert_close(table[row, place], own[0, -1], atol=2e-5, rtol=1e-4)
    chosen = torch.tensor([21, 23, 38])
    session.advance(torch.arange(3), chosen)
    sequences = [[*prompt, int(token)] for prompt, token in zip(PROMPTS, chosen, strict=True)]
    assert_rows(session.logprobs(), module, sequences)
    session.advance(torch.arange(3), torch.tensor([40, 41, 42]))
    assert_rows(session.logprobs(), module, [[*ids, 40 + row] for row, ids in enumerate(sequences)])


def test_an_accepted_candidate_costs_no_second_forward(monkeypatch: pytest.MonkeyPatch) -> None:
    model = HFModel(tiny_module())
    session = model.open()
    session.admit(PROMPTS)
    session.peek(torch.tensor([[20, 21]] * 3))
    passes: list[int] = []
    forward = model.forward
    monkeypatch.setattr(model, "forward", lambda *args: passes.append(1) or forward(*args))
    session.advance(torch.arange(3), torch.tensor([21, 20, 21]))
    session.logprobs()
    assert passes == []
    session.advance(torch.arange(3), torch.tensor([50, 50, 50]))
    session.logprobs()
    assert passes == [1]


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3"])
def test_a_lora_row_equals_peft_and_leaves_its_neighbours_alone(family: str, tmp_path: Path) -> None:
    module = tiny_module(family)
    write_lora(tmp_path / "a", module, seed=1)
    write_lora(tmp_path / "b", module, seed=2, use_rslora=True)
    model = HFModel(module)
    session = model.open()
    beside = [load_guide(tmp_path / name).bind(model).model.open(session) for name in ("a", "b")]
    session.admit(PROMPTS)
    for other in beside:
        other.admit(PROMPTS)
    for rows in (torch.arange(3), torch.tensor([1])):
        tokens = torch.tensor([33, 34, 35])[: len(rows)]
        for each in (session, *beside):
            each.advance(rows, tokens)
    sequences = [[*PROMPTS[0], 33], [*PROMPTS[1], 34, 33], [*PROMPTS[2], 35]]
    assert_rows(session.logprobs(), module, sequences)
    for name, other in zip(("a", "b"), beside, strict=True):
        theirs = peft.PeftModel.from_pretrained(tiny_module(family), tmp_path / name).eval()
        assert_rows(other.logprobs(), theirs, sequences)


def test_the_base_and_its_adapter_share_one_forward(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = tiny_module()
    model = HFModel(module)
    guide = load_guide(write_lora(tmp_path / "a", module)).bind(model)
    session = model.open()
    other = guide.model.open(session)
    session.admit(PROMPTS)
    other.admit(PROMPTS)
    session.logprobs(), other.logprobs()
    shapes: list[tuple[int, ...]] = []
    forward = model.forward
    monkeypatch.setattr(model, "forward", lambda ids, *rest: shapes.append(tuple(ids.shape)) or forward(ids, *rest))
    for each in (session, other):
        each.advance(torch.arange(3), torch.tensor([20, 21, 22]))
    session.logprobs(), other.logprobs()
    assert shapes == [(6, 1)]


def test_threads_with_different_adapters_do_not_mix(tmp_path: Path) -> None:
    module = tiny_module()
    model = HFModel(module)
    guides = [load_guide(write_lora(tmp_path / str(seed), module, seed=seed)).bind(model) for seed in range(3)]
    alone = []
    for guide in guides:
        session = guide.model.open()
        session.admit(PROMPTS)
        alone.append(session.logprobs().clone())
    wrong: list[int] = []

    def work(index: int) -> None:
        for _ in range(15):
            session = guides[index].model.open()
            session.admit(PROMPTS)
            if not torch.allclose(session.logprobs(), alone[index], atol=1e-5):
                wrong.append(index)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_an_error_in_a_forward_leaves_no_adapter_on(tmp_path: Path) -> None:
    module = tiny_module()
    model = HFModel(module)
    guide = load_guide(write_lora(tmp_path / "a", module)).bind(model)
    session = guide.model.open()
    session.admit([[VOCAB + 5]])  # outside the embedding table
    with pytest.raises(IndexError):
        session.logprobs()
    plain = model.open()
    plain.admit(PROMPTS)
    assert_rows(plain.logprobs(), module, PROMPTS)


def test_ids_without_a_token_are_never_proposed() -> None:
    module = tiny_module(vocab_size=VOCAB + 3)
    session = HFModel(module, tiny_tokenizer()).open()
    session.admit([[3, 4]])
    row = session.logprobs()[0]
    assert row[VOCAB:].isneginf().all()
    assert torch.isclose(row.exp().sum(), torch.tensor(1.0))


def test_end_ids_are_the_generation_configs_where_it_speaks() -> None:
    module = tiny_module(eos_token_id=[5, 7])
    assert HFModel(module, tiny_tokenizer()).eos_ids == {1, 5, 7}, "made of the config, it says nothing of its own"
    module.generation_config.eos_token_id = [9, 7]
    assert HFModel(module, tiny_tokenizer()).eos_ids == {7, 9}, "neither the config's 5 nor the tokenizer's 1"
    module.generation_config.eos_token_id = None
    assert HFModel(module, tiny_tokenizer()).eos_ids == {1, 5, 7}


def test_chat_has_exactly_one_bos() -> None:
    tokenizer = tiny_tokenizer()
    model = HFModel(tiny_module(), tokenizer)
    message = [{"role": "user", "content": "w3 w4"}]
    assert model.tokenizer is not None
    assert model.tokenizer.encode_chat(message) == [0, 5, 6, 11]
    tokenizer.chat_template = "{{ '<s> <s>' }}" + tokenizer.chat_template.removeprefix("{{ '<s>' }}")
    assert model.tokenizer.encode_chat(message) == [0, 5, 6, 11]


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ([], "at least one message"),
        ([{"role": "user"}], "content of message 1"),
        (["hello"], "a message is a mapping"),
    ],
)
def test_messages_that_are_none(messages: list[object], words: str) -> None:
    model = HFModel(tiny_module(), tiny_tokenizer())
    assert model.tokenizer is not None
    with pytest.raises(PromptError, match=words):
        model.tokenizer.encode_chat(messages)  # type: ignore[arg-type]


def test_half_of_a_character_is_no_prompt() -> None:
    tokenizer = HFModel(tiny_module(), tiny_tokenizer()).tokenizer
    assert tokenizer is not None
    with pytest.raises(PromptError, match="lone surrogate"):
        tokenizer.encode("w3 \ud800")
    with pytest.raises(PromptError, match="lone surrogate"):
        tokenizer.encode_chat([{"role": "user", "content": "\udfff"}])


def test_a_model_without_template_says_so() -> None:
    model = HFModel(tiny_module(), tiny_tokenizer(template=False))
    assert model.tokenizer is not None
    with pytest.raises(PromptError, match="no chat template"):
        model.tokenizer.encode_chat([{"role": "user", "content": "w3"}])


def test_prompts_longer_than_the_context_or_empty() -> None:
    session = HFModel(tiny_module()).open()
    with pytest.raises(PromptError, match="65 tokens; the model holds 64"):
        session.admit([[3], [3] * 65])
    assert session.num_rows == 0
    with pytest.raises(PromptError, match="empty"):
        session.admit([[]])
    session.admit([[3] * 64])
    session.logprobs()
    with pytest.raises(PromptError, match="65 tokens"):
        session.advance(torch.tensor([0]), torch.tensor([3]))


def test_a_model_of_nan_is_refused() -> None:
    module = tiny_module()
    with torch.no_grad():
        module.lm_head.weight[3] = float("nan")
    with pytest.raises(NotFiniteError, match="NaN"):
        HFModel(module)


def test_an_architecture_whose_head_does_more_is_refused() -> None:
    module = tiny_module()
    forward = module.forward

    def scaled(*args: object, **options: object) -> object:
        output = forward(*args, **options)
        output.logits = output.logits * 2
        return output

    module.forward = scaled
    with pytest.raises(CompatibilityError, match="row by row"):
        HFModel(module)


def test_layers_without_a_column_a_token_are_refused() -> None:
    module = tiny_module("qwen2")
    module.config.layer_types = ["full_attention", "linear_attention", "full_attention"]
    with pytest.raises(CompatibilityError, match="linear_attention"):
        HFModel(module)


class TestAdapters:
    def refuse(self, directory: Path, kind: type[Exception], words: str, **changes: object) -> None:
        model = HFModel(tiny_module(**changes))
        with pytest.raises(kind, match=words):
            load_guide(directory).bind(model)

    def test_of_another_shape(self, tmp_path: Path) -> None:
        write_lora(tmp_path / "a", tiny_module())
        self.refuse(tmp_path / "a", BaseMismatchError, "48 to 32 features", intermediate_size=40)
        self.refuse(tmp_path / "a", BaseMismatchError, "does not have", num_hidden_layers=2)

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"use_dora": True}, "DoRA"),
            ({"modules_to_save": ["lm_head"]}, "whole modules"),
            ({"peft_type": "IA3"}, "IA3"),
            ({"bias": "all"}, "biases"),
        ],
    )
    def test_that_are_more_than_lora(self, tmp_path: Path, changes: dict[str, object], words: str) -> None:
        write_lora(tmp_path / "a", tiny_module(), **changes)
        with pytest.raises(CheckpointError, match=words):
            load_guide(tmp_path / "a")

    def test_cut_short(self, tmp_path: Path) -> None:
        path = write_lora(tmp_path / "a", tiny_module()) / "adapter_model.safetensors"
        path.write_bytes(path.read_bytes()[:200])
        with pytest.raises(CheckpointError, match="does not load as an adapter"):
            load_guide(tmp_path / "a")

    def test_with_nan(self, tmp_path: Path) -> None:
        module = tiny_module()
        from safetensors.torch import load_file, save_file

        path = write_lora(tmp_path / "a", module) / "adapter_model.safetensors"
        tensors = load_file(path)
        next(iter(tensors.values()))[0, 0] = float("nan")
        save_file(tensors, path)
        with pytest.raises(CheckpointError, match="not finite"):
            load_guide(tmp_path / "a")
