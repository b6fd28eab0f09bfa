"""Requests that would hold more than fits wait, or are refused; and no answer depends on it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.tiny import tiny_module, write_lora
from trimtab.caches import token_bytes
from trimtab.core import SamplingParams
from trimtab.decoding.decoder import Decoder
from trimtab.errors import OptionError, PromptError
from trimtab.guides.agent import Agent, AgentNetwork
from trimtab.guides.arm import ARM
from trimtab.mixing.forms import SHIFT
from trimtab.models.forward.shelves import bound
from trimtab.models.forward.trunk import TrunkSession
from trimtab.models.hf import HFModel
from trimtab.models.tabular import TabularModel
from trimtab.storage.loading import load_guide


def params(num_tokens: int, seed: int = 0, **weights: float) -> SamplingParams:
    return SamplingParams(max_new_tokens=num_tokens, ignore_eos=True, seed=seed, weights=weights)


def finished(decoder: Decoder) -> dict[int, list[int | None]]:
    """The tokens of all requests, decoded to their ends."""
    found: dict[int, list[int | None]] = {}
    while decoder.num_running or decoder.num_waiting:
        for step in decoder.step():
            found.setdefault(step.request_id, []).append(step.token_id)
    return found


def test_requests_wait_until_what_they_may_hold_fits() -> None:
    model = TabularModel.random(11, seed=0)
    decoder = Decoder(model, max_cached_tokens=20)
    wanted = [([1, 2, 3], 5), ([1] * 6, 6), ([2], 3)]  # 8, 12 and 4 tokens
    ids = [decoder.add(prompt, params(number)) for prompt, number in wanted]
    first = decoder.step()
    assert [step.request_id for step in first] == ids[:2]  # 20 tokens; the third waits
    assert (decoder.num_running, decoder.num_waiting) == (2, 1)
    tokens = finished(decoder)
    assert list(map(len, (tokens[request_id] for request_id in ids))) == [4, 5, 3]
    free = Decoder(model)
    for prompt, number in wanted:
        free.add(prompt, params(number))
    together = [step.token_id for step in free.step()]
    rest = finished(free)
    assert [rest[request_id] for request_id in ids] == [tokens[ids[0]], tokens[ids[1]], tokens[ids[2]][1:]]
    assert together == [first[0].token_id, first[1].token_id, tokens[ids[2]][0]]


def test_one_that_never_fits_is_refused_and_the_others_go_on() -> None:
    decoder = Decoder(TabularModel.random(11, seed=0), max_cached_tokens=20)
    decoder.add([1, 2], params(4))
    with pytest.raises(PromptError, match=r"may come to 21 tokens .* 20 fit"):
        decoder.add([1] * 11, params(10))
    assert decoder.num_waiting == 1
    with pytest.raises(OptionError, match="max_cached_tokens is 0"):
        Decoder(TabularModel.random(11, seed=0), max_cached_tokens=0)


def test_a_guides_tokens_count_for_what_they_take(tmp_path: Path) -> None:
    module = tiny_module()
    model, small = HFModel(module), HFModel(tiny_module(num_hidden_layers=1))
    guides = {
        "lora": load_guide(write_lora(tmp_path, module)),
        "small": ARM(small),
        "from": ARM(small, form=SHIFT, reference=HFModel(tiny_module(seed=1))),
        "agent": Agent(AgentNetwork(module.config.hidden_size, 4)),
    }
    decoder = Decoder(model, guides)
    layers = module.config.num_hidden_layers
    assert decoder.capacity.shares["lora"] == 1.0
    assert decoder.capacity.shares["agent"] == 0.0  # it remembers nothing
    assert decoder.capacity.shares["small"] == pytest.approx(1 / layers)
    assert decoder.capacity.shares["from"] == pytest.approx(1 + 1 / layers)


def test_what_a_token_takes_is_what_the_cache_holds() -> None:
    for family in ("llama", "gpt2", "gemma2"):
        session = HFModel(tiny_module(family)).open()
        assert isinstance(session, TrunkSession)
        session.admit([[3, 4, 5], [6]])
        session.logprobs()
        assert token_bytes(session) * session.trunk.num_columns == session.trunk.num_bytes > 0
    assert token_bytes(TabularModel.random(11, seed=0).open()) == 0


def test_columns_stay_within_the_bound_whoever_comes(tmp_path: Path) -> None:
    """Many more requests than fit, of any length: the cache holds no more than the bound says."""
    module = tiny_module(max_position_embeddings=1024)
    model = HFModel(module)
    decoder = Decoder(
        model, {"lora": load_guide(write_lora(tmp_path, module))}, max_cached_tokens=900, prefill_chunk=128
    )
    generator = torch.Generator().manual_seed(0)
    for number in range(40):
        length = int(torch.randint(1, 12, (), generator=generator)) if number % 8 else 300
        decoder.add([5 + number % 7] * length, params(5, seed=number, lora=float(number % 2)))
    most = running = 0
    while decoder.num_running or decoder.num_waiting:
        decoder.step()
        most, running = max(most, decoder.capacity.num_columns), max(running, decoder.num_running)
    assert running > 5
    assert 300 < most <= bound(900, running * 2)
    assert decoder.capacity.num_columns == 0
