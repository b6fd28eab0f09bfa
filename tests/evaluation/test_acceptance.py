"""What is counted of an agent's choices, against choices counted by hand and against the plain reference."""

from __future__ import annotations

import pytest

from tests.agents.sequential import Sequential
from tests.agents.test_equality import PROMPTS, world
from trimtab.answers import Alternative, Answer, Choice, TokenTrace, Trial
from trimtab.decoding.decoder import Decoder
from trimtab.errors import InputError
from trimtab.evaluation.acceptance import acceptance_of, counted_passes
from trimtab.guides.agent import Agent


def step(scores: list[float | None], index: int, reason: str) -> TokenTrace:
    trials = tuple(Trial(token, -1.0, score, (score or -1) > 0) for token, score in enumerate(scores))
    chosen = Alternative(index, -1.0, {}, 0.0, 0, 0)
    return TokenTrace(chosen, (), 1.0, Choice("agent", trials, index, reason))


def answer(*steps: TokenTrace, traced: bool = True) -> Answer:
    return Answer("x", (1,), tuple(range(len(steps))), "", "length", {"agent": 0.5}, 0, steps if traced else None)


def test_choices_counted_by_hand() -> None:
    found = acceptance_of(
        [
            answer(step([-1.0, -2.0, 3.0, 1.0, None], 2, "accepted"), step([None], 0, "only")),
            answer(step([-1.0, -2.0], 0, "none"), step([2.0, None, None], 0, "accepted")),
        ]
    )
    assert (found.num_tokens, found.num_only, found.num_none, found.num_asked) == (4, 1, 1, 3)
    assert (found.num_candidates, found.num_examined, found.num_needed) == (10, 7, 6)
    assert found.indices == {0: 2, 2: 1}
    assert found.acceptance_rate == pytest.approx(2 / 6)
    assert found.mean_index == pytest.approx(2 / 3)


def test_an_answer_without_a_trace_is_refused() -> None:
    with pytest.raises(InputError, match="has no trace"):
        acceptance_of([answer(step([None], 0, "only"), traced=False)])


def test_what_is_needed_is_what_the_sequential_reference_feeds() -> None:
    model, network = world("llama")
    plain = Sequential(model.module, network, model.eos_ids)
    for prompt in PROMPTS:
        plain.answer(prompt, 8, ignore_eos=True)
    own = Decoder(model, {"agent": Agent(network)})
    answers = list(own.generate(PROMPTS, max_new_tokens=8, ignore_eos=True, trace=True))
    found = acceptance_of(answers)
    assert found.num_tokens == 8 * len(PROMPTS)
    # One pass for each prompt, one for each candidate tried, one more to feed what was not fed as accepted.
    assert plain.num_forwards == len(PROMPTS) + found.num_needed + found.num_only + found.num_none


def test_passes_are_counted_and_the_model_is_left_as_it_was() -> None:
    model, _ = world("llama")
    with counted_passes(model) as passes:
        list(Decoder(model).generate([PROMPTS[0]], max_new_tokens=5, ignore_eos=True))
    assert (passes.num_passes, passes.num_columns) == (5, 3 + 4)
    assert passes.by_shape == {(1, 3): 1, (1, 1): 4}
    list(Decoder(model).generate([PROMPTS[0]], max_new_tokens=5, ignore_eos=True))
    assert passes.num_passes == 5
