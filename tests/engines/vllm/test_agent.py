"""An agent inside vLLM gives the built-in engine's tokens, and what it cannot do is refused. vLLM runs in processes of
its own (`rig`), on Model Runner V2.
"""

from __future__ import annotations

import random
from typing import Any

import pytest

pytest.importorskip("vllm")

from tests.engines.vllm.agent_world import World, build, rejections, request

SMALL = {"max_model_len": 128, "max_num_seqs": 4, "block_size": 32, "enable_prefix_caching": True}
DICE = random.Random(7)
START = [DICE.randrange(2, 61) for _ in range(40)]
PROMPTS = [[*START, *(DICE.randrange(2, 61) for _ in range(number))] for number in (1, 3, 20, 33)]
PROMPTS += [[DICE.randrange(2, 61) for _ in range(number)] for number in (1, 1, 2, 5, 17, 32, 33, 50)]
THRESHOLDS = (0.5, 0.2, 0.8, None, 0.95, 0.5, 0.05, 0.7, None, 0.99, 0.3, 0.6)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return build(tmp_path_factory.mktemp("agent"))


@pytest.fixture(scope="module")
def mixed(world: World) -> tuple[Any, list[list[dict[str, Any]]]]:
    """Two rounds of the same prompts under other thresholds, twelve tokens of prompts a step at most."""
    rounds = [
        [
            request(prompt, weight, 8, ignore_eos=row % 2 == 0)
            for row, (prompt, weight) in enumerate(_pairs(THRESHOLDS))
        ],
        [request(prompt, weight, 8) for prompt, weight in _pairs(THRESHOLDS[::-1])],
        [request(PROMPTS[4], 0.5, top_k=3), request(PROMPTS[5], 0.4, top_p=0.5), request(PROMPTS[6], 0.9, top_k=1)],
        [request(prompt, 0.0, top_k=1, ignore_eos=True) for prompt in PROMPTS[:4]],
        [request(prompt, weight, 5) for prompt, weight in zip(PROMPTS[4:8], (1e-9, 0.999999) * 2, strict=True)],
    ]
    wrong = [params for params, _ in WRONG]
    return world.run({**SMALL, "max_num_batched_tokens": 12}, rounds, refused=wrong), rounds


def _pairs(weights: tuple[float | None, ...]) -> list[tuple[list[int], float | None]]:
    return list(zip(PROMPTS, weights, strict=True))


def test_mixed_thresholds_in_chunks_give_the_tokens_of_the_builtin_engine(world: World, mixed: Any) -> None:
    found, rounds = mixed
    assert found["tokens"][0] == world.expected(rounds[0])
    assert rejections(found["metrics"]) > 200


def test_a_cached_prefix_serves_another_threshold(world: World, mixed: Any) -> None:
    found, rounds = mixed
    assert found["tokens"][1] == world.expected(rounds[1])
    assert _metric(found, "prefix_cache_hits") >= 32 * 8


def test_answers_end_at_an_end_of_sequence_token_that_is_kept(mixed: Any) -> None:
    ended = [tokens[-1] == 1 for tokens in mixed[0]["tokens"][1]]
    assert any(ended)
    assert not all(ended)
    assert all(len(tokens) == 8 for tokens in mixed[0]["tokens"][0][::2])  # these ignore it


def test_a_request_may_choose_other_candidates(world: World, mixed: Any) -> None:
    found, rounds = mixed
    assert found["tokens"][2] == world.expected(rounds[2])


def test_threshold_zero_is_the_base(world: World, mixed: Any) -> None:
    found, rounds = mixed
    assert found["tokens"][3] == world.expected(rounds[3])


def test_an_agent_that_accepts_everything_or_nothing(world: World, mixed: Any) -> None:
    found, rounds = mixed
    assert found["tokens"][4] == world.expected(rounds[4])
    assert found["tokens"][4][::2] == world.expected(
        [request(one["prompt"], 0.0, 5, top_k=1) for one in rounds[4][::2]]
    )


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"logprobs": 1}, "logprobs is 1; an accept-reject agent in vLLM cannot honour it"),
    ({"prompt_logprobs": 1}, "prompt_logprobs is 1"),
    ({"repetition_penalty": 1.5}, "repetition_penalty is 1.5"),
    ({"presence_penalty": 0.5}, "presence_penalty is 0.5"),
    ({"frequency_penalty": 0.5}, "frequency_penalty is 0.5"),
    ({"top_k": 2000}, "Give at most 1024"),
    ({"extra_args": {"guidance": '{"safe": 1.0}'}}, "1 is not an acceptance threshold"),
    ({"extra_args": {"guidance": '{"safe": -0.5}'}}, "-0.5 is not an acceptance threshold"),
    ({"extra_args": {"guidance": '{"save": 0.5}'}}, "Did you mean 'safe'"),
    ({"extra_args": {"guidance": '{"safe": 0.5}', "guidance_trace": "1"}}, "Unknown key of vllm_xargs"),
    ({"seed": 3}, "not yet supported with diffusion"),
    ({"temperature": 0.5}, "not yet supported with diffusion"),
]


@pytest.mark.parametrize("number", range(len(WRONG)))
def test_what_a_request_may_not_ask_is_refused_at_the_door(mixed: Any, number: int) -> None:
    said = mixed[0]["refused"][number]
    assert said is not None
    assert WRONG[number][1] in said


@pytest.fixture(scope="module")
def crowded(world: World) -> tuple[Any, list[list[dict[str, Any]]]]:
    """Too small a cache; then requests that come and go; then what the front end should have refused."""
    long = [request(prompt, weight, 24, ignore_eos=True) for prompt, weight in _pairs(THRESHOLDS)[4:]]
    ends = [20, 3, 1, 12, 7, 16, 5, 9, 20, 2, 16, 4]
    busy = [
        request(prompt, weight, length, ignore_eos=True, at=3 * row)
        for row, ((prompt, weight), length) in enumerate(zip(_pairs(THRESHOLDS), ends, strict=True))
    ]
    leaver = request(PROMPTS[9], 0.99, 60, ignore_eos=True, at=2, gone_at=30)
    smuggled = [request(PROMPTS[6 + row], None, 8, **params) for row, params in enumerate(SMUGGLED)]
    rounds = [long, [*busy, leaver], smuggled]
    small = {**SMALL, "max_num_seqs": 8, "num_gpu_blocks_override": 9}
    return world.run(small, rounds, unchecked=True), rounds


SMUGGLED: list[dict[str, Any]] = [
    {"prompt_logprobs": 1},
    {"logprobs": 2},
    {"repetition_penalty": 1.5},
    {"extra_args": {"guidance": '{"safe": 1.5}'}},
    {"extra_args": {"guidance": "safe"}},
    {"extra_args": {"guidance": '{"other": 0.9}'}},
]


def test_preempted_requests_go_on_as_if_nothing_had_happened(world: World, crowded: Any) -> None:
    found, rounds = crowded
    assert _metric(found, "num_preemptions") > 0
    assert found["tokens"][0] == world.expected(rounds[0])


def test_requests_come_and_go_between_steps(world: World, crowded: Any) -> None:
    found, rounds = crowded
    assert found["tokens"][1][:-1] == world.expected(rounds[1][:-1])
    assert len(found["tokens"][1][-1] or []) < 60


def test_what_the_front_end_let_pass_does_not_end_the_engine(world: World, crowded: Any) -> None:
    """Log-probabilities are left out, penalties have no effect, unreadable thresholds are the agent's own."""
    found, rounds = crowded
    assert found["tokens"][2] == world.expected([request(one["prompt"], None, 8) for one in rounds[2]])


def _metric(found: Any, name: str) -> float:
    return sum(value for metric, value in found["metrics"].items() if metric.endswith(name))
