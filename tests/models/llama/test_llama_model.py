"""A GGUF file behind the seam: the laws, and the tokens of the transformers model that it was written from.

The files are in float32, and so are keys and values, so that nothing is rounded: what differs here is wrong.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tiny import write_lora
from tests.tiny_gguf import TOKENS, gguf_module, write_gguf
from trimtab.decoding.decoder import Decoder
from trimtab.errors import BaseMismatchError, CheckpointError, ModelError, PromptError
from trimtab.guides.agent import Agent, AgentNetwork
from trimtab.guides.arm import ARM, AdapterARM
from trimtab.models.adapters.lora import LoRA
from trimtab.models.hf import HFModel
from trimtab.models.llama import trunk as trunks
from trimtab.models.llama.file import LlamaFile
from trimtab.models.llama.header import read_header
from trimtab.models.llama.model import LlamaModel
from trimtab.models.llama.options import LlamaOptions
from trimtab.models.llama.session import LlamaSession
from trimtab.params import SamplingParams
from trimtab.testing import check_guide, check_model

pytestmark = pytest.mark.usefixtures("needs_llama")

EXACT = LlamaOptions(type_k="f32", type_v="f32", flash_attn="off", n_threads=1, n_threads_batch=1)


@pytest.fixture(scope="module")
def model(file: Path) -> LlamaModel:
    return _model(file)


@pytest.fixture(scope="module")
def reference(module: Any) -> HFModel:
    return HFModel(module)


@pytest.fixture(scope="module")
def lora(module: Any, tmp_path_factory: pytest.TempPathFactory) -> LoRA:
    return LoRA.load(write_lora(tmp_path_factory.mktemp("lora"), module))


def _model(path: Path, **options: Any) -> LlamaModel:
    exact = {name: getattr(EXACT, name) for name in ("type_k", "type_v", "flash_attn", "n_threads", "n_threads_batch")}
    return LlamaModel(LlamaFile(path, LlamaOptions(**{**exact, **options})), None)


def _session(model: LlamaModel) -> LlamaSession:
    session = model.open()
    assert isinstance(session, LlamaSession)
    return session


def _prompts(count: int, *, seed: int = 0, most: int = 24) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, most, (count,), generator=generator).tolist()
    return [torch.randint(3, 250, (length,), generator=generator).tolist() for length in lengths]


def test_the_laws_hold(model: LlamaModel) -> None:
    check_model(model, num_steps=3, tolerance=1e-4)


@pytest.mark.parametrize("family", ["Qwen2", "Qwen3"])
def test_the_laws_hold_for_other_architectures(family: str, tmp_path: Path) -> None:
    module = gguf_module(family)
    model = _model(write_gguf(tmp_path / "other.gguf", module))
    check_model(model, num_steps=2, tolerance=1e-4)
    [prompt] = _prompts(1)
    session = model.open()
    session.admit([prompt])
    expected = HFModel(module).open()
    expected.admit([prompt])
    assert torch.allclose(session.logprobs(), expected.logprobs(), atol=1e-4)
    assert torch.allclose(session.context(), expected.context(), atol=1e-3)


@pytest.mark.parametrize("form", ["product", "shift"])
def test_the_laws_hold_for_a_lora_on_it(model: LlamaModel, lora: LoRA, form: str) -> None:
    check_guide(AdapterARM(lora, form=form), model, num_steps=2, tolerance=1e-3)


def test_the_laws_hold_for_an_agent_and_a_second_file(model: LlamaModel, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = AgentNetwork(model.hidden_size, 16).eval().requires_grad_(False)
    check_guide(Agent(network), model, num_steps=2, tolerance=1e-3)
    second = _model(write_gguf(tmp_path / "second.gguf", gguf_module("Qwen2", seed=1)))
    check_guide(ARM(second), model, num_steps=2, tolerance=1e-3)


@pytest.mark.parametrize("weight", [0.0, 0.5, 1.0, -0.5])
def test_guided_tokens_are_those_of_transformers(
    model: LlamaModel, reference: HFModel, lora: LoRA, weight: float
) -> None:
    prompts = _prompts(20)
    found, expected = (
        Decoder(base, {"g": AdapterARM(lora, form="shift")}, max_rows=7).generate(
            prompts, weights={"g": weight}, temperature=0, max_new_tokens=8, ignore_eos=True
        )
        for base in (model, reference)
    )
    assert [answer.token_ids for answer in found] == [answer.token_ids for answer in expected]


def test_seeded_tokens_of_an_agent_with_a_guide_are_those_of_transformers(
    model: LlamaModel, reference: HFModel, lora: LoRA
) -> None:
    torch.manual_seed(3)
    agent = Agent(AgentNetwork(model.hidden_size, 16).eval().requires_grad_(False))
    found, expected = (
        Decoder(base, {"g": AdapterARM(lora, form="shift"), "a": agent}).generate(
            _prompts(6), weights={"g": 0.5, "a": 0.5}, seed=1, max_new_tokens=6, ignore_eos=True
        )
        for base in (model, reference)
    )
    assert [answer.token_ids for answer in found] == [answer.token_ids for answer in expected]


def test_an_agent_behind_a_gate_of_significance_gives_the_tokens_of_transformers(
    model: LlamaModel, reference: HFModel
) -> None:
    torch.manual_seed(3)
    network = AgentNetwork(model.hidden_size, 16)
    torch.nn.init.normal_(network.output_linear.weight, std=2.0)
    agent = Agent(network.eval().requires_grad_(False))
    found, expected = (
        list(
            Decoder(base, {"a": agent}).generate(
                _prompts(6), gates={"a": "significance:1.2"}, seed=1, max_new_tokens=12, ignore_eos=True, trace=True
            )
        )
        for base in (model, reference)
    )
    assert [answer.token_ids for answer in found] == [answer.token_ids for answer in expected]
    assert [answer.acted for answer in found] == [answer.acted for answer in expected]
    assert all(0 < (answer.acted or {})["a"] < 1 for answer in found)


def test_drafts_change_no_token(model: LlamaModel) -> None:
    prompts = [[5, 6, 7, 8, 5, 6, 7, 8, 5, 6], [9, 10, 11, 9, 10, 11, 9]]
    drafted, plain = (
        Decoder(model).generate(prompts, temperature=0, max_new_tokens=24, ignore_eos=True, draft=draft)
        for draft in ("lookup", "none")
    )
    assert [answer.token_ids for answer in drafted] == [answer.token_ids for answer in plain]


def test_ids_that_no_token_has_are_never_drawn(tmp_path: Path) -> None:
    from trimtab.storage.gguf_files import load_llama

    padded = write_gguf(tmp_path / "padded.gguf", gguf_module(vocab_size=len(TOKENS) + 12))
    model = LlamaModel(LlamaFile(padded, EXACT), None)
    session = model.open()
    session.admit([[4, 5]])
    assert bool(torch.isfinite(session.logprobs()).all())  # without a tokenizer nobody knows
    known = load_llama(padded)
    assert known.tokenizer is not None
    nameless = set(range(known.vocab_size)) - set(known.tokenizer.tokens.values())
    session = known.open()
    session.admit([[4, 5]])
    assert set(torch.isneginf(session.logprobs()[0]).nonzero().flatten().tolist()) == nameless


def test_what_begins_alike_is_fed_once(model: LlamaModel) -> None:
    [start] = [list(range(10, 50))]
    session = _session(model)
    session.admit([[*start, 60], [*start, 61], [*start, 62, 63]])
    read = session.logprobs()
    assert session.trunk.num_fed == 41 + 1 + 2
    assert session.known([*start, 99]) == 40
    session.admit([[*start, 61]])
    session.logprobs()
    assert session.trunk.num_fed == 44  # the same prompt again: its numbers are there
    alone = _session(model)
    alone.admit([[*start, 62, 63]])
    assert torch.allclose(alone.logprobs()[0], read[2], atol=1e-4)


def test_an_accepted_candidate_costs_no_pass(model: LlamaModel) -> None:
    session = _session(model)
    session.admit([[3, 4, 5], [6, 7]])
    session.logprobs()
    session.peek(torch.tensor([[8, 9, 10], [11, 12, 13]]))
    passes = session.trunk.num_passes
    session.advance(torch.tensor([0, 1]), torch.tensor([9, 13]))
    found = session.logprobs()
    assert session.trunk.num_passes == passes
    fresh = _session(model)
    fresh.admit([[3, 4, 5, 9], [6, 7, 13]])
    assert torch.allclose(found, fresh.logprobs(), atol=1e-4)


def test_a_context_grows_and_nothing_changes(model: LlamaModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trunks, "_CELLS", 256)
    monkeypatch.setattr(trunks, "_SEQUENCES", 2)
    session, prompts = _session(model), _prompts(6, most=30)
    session.admit(prompts)
    session.logprobs()
    rows = torch.arange(6)
    for step in range(60):
        token = 20 + step
        session.advance(rows, torch.full((6,), token))
        if step % 7 == 0:
            session.peek(torch.tensor([[5, 6]] * 6))
        session.logprobs()
        prompts = [[*prompt, token] for prompt in prompts]
    assert session.trunk.num_columns > 256
    fresh = _session(model)
    fresh.admit(prompts)
    assert torch.allclose(session.logprobs(), fresh.logprobs(), atol=1e-4)


def test_a_context_that_may_not_grow_ends_requests_and_not_the_process(file: Path) -> None:
    model = _model(file, n_ctx=256)
    decoder = Decoder(model, max_rows=4)
    params = SamplingParams(max_new_tokens=20, ignore_eos=True, temperature=0)
    ids = {decoder.add([7 + row] * 90, params) for row in range(3)}
    ended: dict[int, str] = {}
    while decoder.num_running or decoder.num_waiting:
        ended.update({step.request_id: step.finish_reason for step in decoder.step() if step.finish_reason})
    assert set(ended) == ids
    assert set(ended.values()) == {"length"}  # each in a batch of its own, where they did not fit together
    session = _session(model)
    session.admit([[7 + row] * 90 for row in range(3)])
    with pytest.raises(ModelError, match="n_ctx=256"):
        session.logprobs()


def test_rows_and_lengths_beyond_the_limits_are_refused(model: LlamaModel) -> None:
    session = _session(model)
    with pytest.raises(PromptError, match="129 tokens; the model holds 128"):
        session.admit([[5] * 129])
    session.admit([[5]] * 300)
    with pytest.raises(ModelError, match=r"llama.cpp holds 256"):
        session.logprobs()


def test_hang_ups_leave_no_sequence_behind(model: LlamaModel) -> None:
    session = _session(model)
    generator = torch.Generator().manual_seed(0)
    for turn in range(200):
        session.admit(_prompts(1 + turn % 3, seed=turn))
        session.logprobs()
        if turn % 5 == 0:
            session.peek(torch.full((session.num_rows, 3), 9))
        if turn % 2:
            session.advance(torch.arange(session.num_rows), torch.full((session.num_rows,), 9))  # what was looked at
        order = torch.randperm(session.num_rows, generator=generator)
        session.keep(order[: turn % 4])
        assert session.trunk.num_sequences <= 2 * session.num_rows  # a row, and the candidate that it was shown
    session.keep(torch.tensor([], dtype=torch.int64))
    assert session.trunk.num_sequences == 0
    assert session.trunk.num_rows == 0


def test_an_adapter_of_another_base_is_refused(model: LlamaModel, tmp_path: Path) -> None:
    other = LoRA.load(write_lora(tmp_path / "wide", gguf_module(hidden_size=48, num_attention_heads=6)))
    with pytest.raises(BaseMismatchError, match=r"features; that of tiny.gguf"):
        AdapterARM(other).bind(model)


def test_a_file_that_the_build_does_not_know_is_refused(file: Path, tmp_path: Path) -> None:
    strange = tmp_path / "strange.gguf"
    strange.write_bytes(file.read_bytes().replace(b"llama", b"lllma"))
    with pytest.raises(CheckpointError, match=r"does not load .*strange.gguf \(architecture lllma\).*--backend"):
        LlamaFile(strange, EXACT)
    assert read_header(strange).architecture == "lllma"
