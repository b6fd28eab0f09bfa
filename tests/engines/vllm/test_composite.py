"""Guides inside vLLM answer as they do in the built-in engine, on both of vLLM's model runners."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.engines.vllm import house as houses

pytest.importorskip("vllm")

RUNNERS = pytest.mark.parametrize("version", ["v1", "v2"])
WEIGHTS = (0.0, 0.5, 1.0, 1.5)
BOTH_WAYS = (0.0, 0.5, 1.0, -0.5)
"""A shift's."""
ONE = {"near": "near"}
TWO = {"near": "near", "other": "other"}
LOGPROBS = {"logprobs": 1}


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return houses.build(tmp_path_factory.mktemp("house"))


def grid(
    names: list[str], number: int = 20, *, longest: int = 40, each: tuple[float, ...] = WEIGHTS, **params: Any
) -> list[dict[str, Any]]:
    """Every prompt at every weight, the second guide's turned by one, in an order that mixes them."""
    requests = []
    for turn in range(len(each)):
        for index, ids in enumerate(houses.prompts(number, longest=longest)):
            weights = {name: each[(turn + index + place) % 4] for place, name in enumerate(names)}
            requests.append({"ids": ids, "weights": weights, "params": {**LOGPROBS, **params}})
    return requests


@RUNNERS
@pytest.mark.parametrize(
    ("guides", "lora"),
    [(ONE, "shared"), (ONE, "merged"), ({"other": "other"}, "shared"), (TWO, "shared")],
    ids=["adapter", "adapter-merged", "model", "adapter-and-model"],
)
def test_greedy_answers_are_the_built_in_ones(
    house: Path, tmp_path: Path, version: str, guides: dict[str, str], lora: str
) -> None:
    requests = grid(list(guides))
    out = houses.served(house, guides, tmp_path / "served", lora=lora)
    found = houses.run(version, tmp_path, out, [requests])["waves"][0]
    wrong, gap = houses.differences(found, houses.expected(house, guides, requests))
    assert wrong == 0
    assert gap < 1e-3


@RUNNERS
def test_prompts_in_pieces_remembered_beginnings_and_evicted_requests(
    house: Path, tmp_path: Path, version: str
) -> None:
    guides = {**TWO, "far": "far", "weak": "weak"}
    first = grid(list(guides), 12, longest=60, max_tokens=30)
    second = [{**request, "weights": {"near": 0.7, "far": -0.3}} for request in first[:12]]
    out = houses.served(house, guides, tmp_path / "served")
    options = {
        "max_num_batched_tokens": 32,
        "enable_chunked_prefill": True,
        "enable_prefix_caching": True,
        "num_gpu_blocks_override": 24,
        "block_size": 32,
        "max_model_len": 96,
    }
    found = houses.run(version, tmp_path, out, [first, second], **options)
    assert found["metrics"]["vllm:num_preemptions"] > 0
    assert found["metrics"]["vllm:prefix_cache_hits"] > 0
    for requests, answers in zip((first, second), found["waves"], strict=True):
        wrong, gap = houses.differences(answers, houses.expected(house, guides, requests))
        assert wrong == 0
        assert gap < 1e-3


@RUNNERS
def test_requests_join_and_leave_while_others_go_on(house: Path, tmp_path: Path, version: str) -> None:
    requests = grid(list(TWO), 6)
    for index, request in enumerate(requests):
        request["arrive"] = index // 2
        request["params"] = {**LOGPROBS, "max_tokens": 3 + index % 9}
        if index % 5 == 4:
            request["abort"] = index // 2 + 2
    out = houses.served(house, TWO, tmp_path / "served")
    found = houses.run(version, tmp_path, out, [requests], max_num_seqs=5)["waves"][0]
    kept = [index for index, request in enumerate(requests) if "abort" not in request]
    answers = houses.expected(house, TWO, [requests[index] for index in kept])
    wrong, gap = houses.differences([found[index] for index in kept], answers)
    assert wrong == 0
    assert gap < 1e-3
    assert all(found[index]["finish"] == "abort" for index in range(len(requests)) if index not in kept)


@RUNNERS
def test_a_prompt_is_scored_under_the_guides(house: Path, tmp_path: Path, version: str) -> None:
    requests = [
        {"ids": ids, "weights": {"near": weight}, "params": {"prompt_logprobs": 0, "max_tokens": 1}}
        for ids in houses.prompts(4)
        for weight in (0.0, 1.5)
        if len(ids) > 1
    ]
    out = houses.served(house, ONE, tmp_path / "served")
    found = houses.run(version, tmp_path, out, [requests])["waves"][0]
    for request, answer in zip(requests, found, strict=True):
        mine = forced(house, request["ids"], request["weights"]["near"])
        assert answer["prompt_logprobs"] == pytest.approx(mine, abs=1e-3)


def forced(house: Path, ids: list[int], weight: float) -> list[float]:
    """The mixed log-probability of each token of a text but the first."""
    from trimtab import Decoder, SamplingParams, load_guide, load_model

    model = load_model(house / "base")
    params = SamplingParams(
        weights={"near": weight}, forced=tuple(ids[1:]), max_new_tokens=len(ids) - 1, ignore_eos=True, trace=True
    )
    answer = next(Decoder(model, {"near": load_guide(house / "near", model=model)}).answers([(ids[:1], params)]))
    assert answer.trace is not None
    return [step.chosen.mixed_logprob for step in answer.trace]


@RUNNERS
def test_a_tuned_policy_scores_by_what_it_changed(house: Path, tmp_path: Path, version: str) -> None:
    tuned = tmp_path / "tuned"
    tuned.mkdir()
    for path in (house / "near").iterdir():
        (tuned / path.name).write_bytes(path.read_bytes())
    (tuned / "guide.json").write_text('{"format": 1, "kind": "policy"}')
    requests = grid(["tuned"], 8, each=BOTH_WAYS)
    out = houses.served(house, {"tuned": str(tuned)}, tmp_path / "served")
    found = houses.run(version, tmp_path, out, [requests])["waves"][0]
    assert houses.differences(found, houses.expected(house, {"tuned": str(tuned)}, requests)) == (
        0,
        pytest.approx(0, abs=1e-3),
    )


FORMS = {"near": "shift", "far": "product", "other": "shift", "weak": "product", "weaker": "shift", "whole": "shift"}


@RUNNERS
def test_forms_and_guides_on_a_smaller_base(house: Path, tmp_path: Path, version: str) -> None:
    """Shifts from the base and from a smaller one, products beside them, at weights of both signs in one batch."""
    guides = {**{name: name for name in FORMS}, "whole": "other"}
    bases = {"whole": house / "small"}
    shifts = [name for name, form in FORMS.items() if form == "shift"]
    requests = grid(shifts, 6, each=BOTH_WAYS)
    for index, request in enumerate(requests):
        request["weights"].update({"far": 0.5 * (index % 3), "weak": 0.5 * (index % 2)})
    out = houses.served(house, guides, tmp_path / "served", forms=FORMS, bases=bases)
    found = houses.run(version, tmp_path, out, [requests])["waves"][0]
    wrong, gap = houses.differences(found, houses.expected(house, guides, requests, FORMS, bases))
    assert wrong == 0
    assert gap < 1e-3


@pytest.mark.parametrize("form", ["product", "shift"])
def test_an_adapter_of_a_smaller_base_may_be_merged_into_it(house: Path, tmp_path: Path, form: str) -> None:
    guides, forms = {"weak": "weak", "near": "near"}, {"weak": form, "near": "shift"}
    requests = grid(list(guides), 6, each=BOTH_WAYS if form == "shift" else WEIGHTS)
    out = houses.served(house, guides, tmp_path / "served", forms=forms, lora="merged")
    found = houses.run("v1", tmp_path, out, [requests])["waves"][0]
    wrong, gap = houses.differences(found, houses.expected(house, guides, requests, forms))
    assert wrong == 0
    assert gap < 1e-3


@RUNNERS
@pytest.mark.parametrize("windowed", ["base", "guide"])
def test_a_window_is_the_models_own(tmp_path: Path, version: str, windowed: str) -> None:
    here = tmp_path / "house"
    shape = {**houses.SHAPE, "num_attention_heads": 4}
    window = {"sliding_window": 5}
    houses.save(
        here / "base", "mistral", seed=1, **shape, **(window if windowed == "base" else {"sliding_window": None})
    )
    houses.save(
        here / "other",
        "mistral",
        seed=4,
        **houses.OTHER,
        **(window if windowed == "guide" else {"sliding_window": None}),
    )
    requests = grid(["other"], 8)
    out = houses.served(here, {"other": "other"}, tmp_path / "served")
    found = houses.run(version, tmp_path, out, [requests])["waves"][0]
    wrong, gap = houses.differences(found, houses.expected(here, {"other": "other"}, requests))
    assert wrong == 0
    assert gap < 1e-3


@RUNNERS
def test_two_ranks_answer_like_one(house: Path, tmp_path: Path, version: str) -> None:
    here = houses.build(tmp_path / "even", num_attention_heads=4, num_key_value_heads=2)
    guides, forms = {**TWO, "weak": "weak"}, {"weak": "shift"}
    requests = grid(list(guides), 6)
    out = houses.served(here, guides, tmp_path / "served", forms=forms)
    found = houses.run(version, tmp_path, out, [requests], tensor_parallel_size=2)["waves"][0]
    wrong, gap = houses.differences(found, houses.expected(here, guides, requests, forms))
    assert wrong == 0
    assert gap < 1e-3
