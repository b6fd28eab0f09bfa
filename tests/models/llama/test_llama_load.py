"""Many requests that come and go: what each answers, and what they leave behind.

The file is in float32, so that a request in company answers as it does alone, to the token.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tiny import write_lora
from trimtab.core import Guide
from trimtab.decoding.decoder import Decoder
from trimtab.guides.agent import Agent, AgentNetwork
from trimtab.guides.arm import AdapterARM
from trimtab.models.adapters.lora import LoRA
from trimtab.models.llama.file import LlamaFile
from trimtab.models.llama.model import LlamaModel
from trimtab.models.llama.options import LlamaOptions
from trimtab.params import SamplingParams

pytestmark = pytest.mark.usefixtures("needs_llama")

_NUM_REQUESTS = 40


@pytest.fixture(scope="module")
def model(file: Path) -> LlamaModel:
    options = LlamaOptions(type_k="f32", type_v="f32", flash_attn="off", n_threads=1, n_threads_batch=1, n_batch=32)
    return LlamaModel(LlamaFile(file, options), None)


@pytest.fixture(scope="module")
def guides(model: LlamaModel, module: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Guide]:
    torch.manual_seed(1)
    lora = LoRA.load(write_lora(tmp_path_factory.mktemp("lora"), module))
    network = AgentNetwork(model.hidden_size, 16).eval().requires_grad_(False)
    return {"g": AdapterARM(lora, form="shift"), "a": Agent(network)}


def _request(number: int) -> tuple[list[int], SamplingParams]:
    """A prompt, some longer than a call takes, and how it is answered."""
    dice = random.Random(number)
    prompt = [dice.randrange(3, 250) for _ in range(dice.choice([1, 5, 20, 90]))]
    weights = {"g": dice.choice([0.0, 0.5, 1.0, -0.5]), "a": dice.choice([0.0, 0.5])}
    draft = "none" if weights["a"] else dice.choice(["none", "lookup"])  # a guide that selects lets nothing be drafted
    length = dice.randrange(1, 14)
    return prompt, SamplingParams(max_new_tokens=length, seed=number, ignore_eos=True, weights=weights, draft=draft)


def _alone(model: LlamaModel, guides: dict[str, Guide], number: int) -> list[int]:
    prompt, params = _request(number)
    decoder = Decoder(model, guides, max_rows=1)
    decoder.add(prompt, params)
    tokens = []
    while decoder.num_running or decoder.num_waiting:
        tokens += [step.token_id for step in decoder.step() if step.token_id is not None]
    return tokens


def test_a_seeded_request_answers_alike_alone_and_among_others_that_come_and_go(
    model: LlamaModel, guides: dict[str, Guide]
) -> None:
    dice = random.Random(0)
    decoder = Decoder(model, guides, max_rows=7)
    waiting, cancelled = list(range(_NUM_REQUESTS)), set()
    tokens: dict[int, list[int]] = {}
    number_of: dict[int, int] = {}
    while waiting or decoder.num_running or decoder.num_waiting:
        for _ in range(min(len(waiting), dice.randrange(4))):
            number = waiting.pop(0)
            number_of[decoder.add(*_request(number))] = number
            tokens[number] = []
        if tokens and dice.random() < 0.2:
            request = dice.choice(list(number_of))
            decoder.cancel(request)
            cancelled.add(number_of[request])
        for step in decoder.step():
            assert step.error is None
            if step.token_id is not None:
                tokens[number_of[step.request_id]].append(step.token_id)
    expected = {number: _alone(model, guides, number) for number in range(_NUM_REQUESTS)}
    assert 2 <= len(cancelled) <= _NUM_REQUESTS / 2
    for number in range(_NUM_REQUESTS):
        length = len(tokens[number])
        assert length == len(expected[number]) or number in cancelled
        assert tokens[number] == expected[number][:length]


@pytest.mark.slow
def test_five_hundred_requests_leave_no_memory_behind(model: LlamaModel, guides: dict[str, Guide]) -> None:
    decoder = Decoder(model, guides, max_rows=7)
    sizes = []
    for number in range(500):
        decoder.add(*_request(number))
        if number % 5 == 4:
            decoder.step()
            decoder.cancel(number)
        while decoder.num_running or decoder.num_waiting:
            decoder.step()
        if number % 100 == 99:
            sizes.append(_resident())
    print(f"resident after 100, 200, ... requests, in MB: {[round(size / 1e6, 1) for size in sizes]}")
    assert sizes[-1] - sizes[0] < 8e6


def _resident() -> int:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        pytest.skip("what a process holds is read on Linux alone")
    [line] = [line for line in lines if line.startswith("VmRSS")]
    return int(line.split()[1]) * 1024
