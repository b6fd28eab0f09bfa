"""The KL that a trace records is that of the policy a token is drawn from to the frozen base at temperature 1.

Whatever moves the policy counts: guides, penalties, the plausibility mask, temperature, filters, a rule that takes one
token for sure. The expected policies are computed here from their definitions, in float64.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from tests.agents.test_equality import PROMPTS, world
from tests.invariants.test_frequencies import BASE, CASES, GUIDES, PROMPT, Case, expected
from trimtab.answers import Answer
from trimtab.decoding.decoder import Decoder
from trimtab.guides.agent import Agent
from trimtab.methods.best_of_n import BestOfN
from trimtab.methods.method import Guided
from trimtab.models.tabular import TabularModel
from trimtab.storage.scorers import Scorer

GREEDY = {"greedy": Case(temperature=0.0), "greedy and guided": Case({"expert": 1.0, "other": 0.5}, temperature=0.0)}


def nats(policy: torch.Tensor, base: torch.Tensor) -> float:
    """KL(policy ‖ base) in nats of two rows of log-probabilities, each normalised first."""
    policy, base = policy.double().log_softmax(0), base.double().log_softmax(0)
    return float(torch.where(torch.isneginf(policy), 0.0, policy.exp() * (policy - base)).sum())


def decoded(case: Case, seed: int, num: int = 3, **options: object) -> Answer:
    asked = {field: getattr(case, field) for field in case.__dataclass_fields__}
    decoder = Decoder(BASE, GUIDES)
    return next(
        decoder.generate([PROMPT], max_new_tokens=num, seed=seed, ignore_eos=True, trace=True, **asked, **options)
    )


@pytest.mark.parametrize("name", [*CASES, *GREEDY])
def test_kl_is_that_of_what_is_drawn_from_to_the_base_at_temperature_1(name: str) -> None:
    case = (CASES | GREEDY)[name]
    definition = expected(replace(case, temperature=case.temperature or 1e-3))
    for seed in range(4):
        answer = decoded(case, seed)
        for count, step in enumerate(answer.trace or ()):
            prefix = (*PROMPT, *answer.token_ids[:count])
            policy = definition.next_logprobs(prefix)
            assert step.kl == pytest.approx(nats(policy, BASE.next_logprobs(prefix)), abs=2e-5)
            drawn = policy.double().log_softmax(0)[answer.token_ids[count]]
            assert step.sampled_logprob == pytest.approx(float(drawn), abs=2e-5)


def test_a_mask_on_the_base_moves_the_base() -> None:
    answer = decoded(Case(), 0, plausibility=0.9)
    for count, step in enumerate(answer.trace or ()):
        base = BASE.next_logprobs((*PROMPT, *answer.token_ids[:count])).double()
        kept = base >= base.max() + math.log(0.9)
        assert step.kl == pytest.approx(nats(base.masked_fill(~kept, -torch.inf), base), abs=2e-5)
        assert step.kl > 0.05


@pytest.mark.parametrize("name", [*CASES, *GREEDY])
def test_the_entropy_is_that_of_the_base_alone(name: str) -> None:
    answer = decoded((CASES | GREEDY)[name], 1)
    for count, step in enumerate(answer.trace or ()):
        base = BASE.next_logprobs((*PROMPT, *answer.token_ids[:count])).double()
        assert step.base_entropy == pytest.approx(-float((base.exp() * base).nan_to_num().sum()), abs=2e-5)


@pytest.mark.parametrize("temperature", [0.5, 0.8, 1.0])
def test_a_rule_that_takes_one_token_for_sure_pays_its_surprise_at_any_temperature(temperature: float) -> None:
    model, network = world("llama", 0.3)
    decoder = Decoder(model, {"agent": Agent(network)})
    for answer in decoder.generate(PROMPTS[:3], temperature=temperature, trace=True, seed=3, max_new_tokens=4):
        assert answer.kl == pytest.approx(-(answer.base_logprob or 0.0), abs=1e-4)


def test_a_policy_reports_the_kl_of_its_answers() -> None:
    policy = Guided(Decoder(BASE), lambda _: {})
    for temperature in (0.0, 0.6, 1.0):
        answer = decoded(Case(temperature=temperature), 1)
        assert policy.kl(answer, 0.0) == answer.kl


def test_the_bound_of_best_of_n_is_to_the_base_at_temperature_1() -> None:
    """KL(best of N ‖ base) <= ln N − (N − 1)/N + E[log π_T(y) − log π_base(y)], enumerated; false without the last."""
    temperature, count, size = 0.5, 3, 5
    base = TabularModel(lambda _: torch.tensor([0.5, 0.2, 0.15, 0.1, 0.05]).log(), size, eos_ids=())
    rewards = [4.0, 0.0, 1.0, 3.0, 2.0]
    scorer = Scorer("place", "", lambda prompts, texts: [rewards["abcde".index(text)] for text in texts])
    policy = BestOfN(Decoder(base), scorer)
    cold = (base.next_logprobs([0]) / temperature).softmax(0).double()
    worse = torch.tensor([float(cold[[r < mine for r in rewards]].sum()) for mine in rewards]).double()
    best = (worse + cold) ** count - worse**count
    exact = nats(best.log(), base.next_logprobs([0]))
    bounds = _bounds(base, policy, temperature, count)
    expectation = sum(float(best[token]) * bound for token, bound in bounds.items())
    to_the_drafts = math.log(count) - (count - 1) / count
    assert to_the_drafts < exact <= expectation <= exact + to_the_drafts


def _bounds(base: TabularModel, policy: BestOfN, temperature: float, count: int) -> dict[int, float]:
    """Token -> the bound that the policy gives for it."""
    found: dict[int, float] = {}
    decoder, prompts = Decoder(base), [[0]] * 300
    sampled: Sequence[Answer] = list(
        decoder.generate(prompts, temperature=temperature, max_new_tokens=1, trace=True, seed=0)
    )
    for answer in sampled:
        bound = policy.kl(answer, float(count))
        assert bound is not None
        found[answer.token_ids[0]] = bound
    assert len(found) == base.vocab_size
    return found
