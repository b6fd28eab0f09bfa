"""`answers` and `generate` run in the engine that they are called on, beside what is queued there."""

from __future__ import annotations

from collections.abc import Iterator

from tests.invariants.test_frequencies import BASE, GUIDES
from trimtab.answers import Answer, Step
from trimtab.core import SamplingParams
from trimtab.decoding.decoder import Decoder

PROMPTS = ["abc", "b", "ca"]
HOW = {"max_new_tokens": 7, "ignore_eos": True}


def alone(prompt: str, seed: int) -> list[int]:
    return list(next(Decoder(BASE, GUIDES).generate(prompt, seed=seed, **HOW)).token_ids)


def queued(decoder: Decoder, seeds: range) -> dict[int, int]:
    """Request id -> its seed."""
    return {decoder.add("abc", SamplingParams(seed=seed, **HOW)): seed for seed in seeds}


def by_request(steps: list[Step]) -> dict[int, list[int | None]]:
    found: dict[int, list[int | None]] = {}
    for step in steps:
        found.setdefault(step.request_id, []).append(step.token_id)
    return found


def test_what_is_queued_runs_on_and_loses_no_step() -> None:
    decoder = Decoder(BASE, GUIDES, max_rows=4)
    requests = queued(decoder, range(3))
    seen = decoder.step()
    answers = list(decoder.generate(PROMPTS, seed=20, **HOW))
    assert decoder.num_running == 3, "they have ended, and their last steps wait to be taken"
    seen += decoder.step()
    assert decoder.num_running == 0
    assert by_request(seen) == {request: alone("abc", seed) for request, seed in requests.items()}
    assert [list(answer.token_ids) for answer in answers] == [alone(p, 20 + i) for i, p in enumerate(PROMPTS)]


def test_nobody_else_is_told_of_the_steps_of_answers() -> None:
    decoder = Decoder(BASE, GUIDES)
    running = decoder.generate(PROMPTS, seed=1, **HOW)
    next(running)
    assert decoder.num_running > 0 or decoder.num_waiting == 0
    assert decoder.step() == []


def test_two_may_be_read_in_turn() -> None:
    decoder = Decoder(BASE, GUIDES, max_rows=2)
    first, second = (decoder.generate(PROMPTS, seed=seed, **HOW) for seed in (3, 30))
    pairs = list(zip(first, second, strict=True))
    assert [list(one.token_ids) for one, _ in pairs] == [alone(p, 3 + i) for i, p in enumerate(PROMPTS)]
    assert [list(other.token_ids) for _, other in pairs] == [alone(p, 30 + i) for i, p in enumerate(PROMPTS)]


def test_one_that_is_left_half_read_frees_its_rows() -> None:
    decoder = Decoder(BASE, GUIDES)
    running: Iterator[Answer] = decoder.generate(PROMPTS, seed=1, max_new_tokens=50, ignore_eos=True)
    next(running)
    running.close()  # type: ignore[attr-defined]
    assert (decoder.num_running, decoder.num_waiting, decoder.num_rows) == (0, 0, 0)


def test_an_answer_shares_what_is_fed_already() -> None:
    """A second batch would know nothing of the rows of the first."""
    decoder = Decoder(BASE, GUIDES)
    queued(decoder, range(1))
    decoder.step()
    running = decoder.generate("abc", seed=0, **HOW)
    next(running)
    assert decoder.num_rows <= 1, "the row of the queued one, or none where it has ended"
