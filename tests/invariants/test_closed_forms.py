"""One object, many methods: each against its closed form, at every step of answers decoded in one batch.

The closed forms are written out in float64 from the models' own tables; the decoder's policy comes from its traces.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.invariants.policies import policies_at, walk
from trimtab.core import Guide
from trimtab.decoding.decoder import Decoder
from trimtab.guides.arm import ARM
from trimtab.models.tabular import TabularModel

V = 7
BASE = TabularModel.random(V, seed=0, scale=1.5)
EXPERT = TabularModel.random(V, seed=1, scale=1.5)
OTHER = TabularModel.random(V, seed=2, scale=1.5)
PROMPTS = [[1], [2, 3, 4], [5, 5], [6, 0, 1, 2]]

Prefix = tuple[int, ...]


def probabilities(model: TabularModel, prefix: Prefix) -> Tensor:
    return model.next_logprobs(prefix).double().exp()


def assert_policies(steps: list[tuple[Prefix, Tensor]], closed_form: Callable[[Prefix], Tensor]) -> None:
    """Each step's policy is the closed form, which may be given up to a factor."""
    assert len(steps) == 5 * len(PROMPTS)
    for prefix, policy in steps:
        expected = closed_form(prefix)
        torch.testing.assert_close(policy.double().exp(), expected / expected.sum(), atol=2e-6, rtol=2e-5)


@pytest.mark.parametrize("w", [-1.5, -0.5, 0.0, 0.3, 1.0, 2.0, 10.0])
def test_an_arm_is_a_power_of_its_probability(w: float) -> None:
    """GenARM: π ∝ π_base · π_r^w. A negative power wants a plausibility mask; this one drops nothing."""
    decoder = Decoder(BASE, {"arm": ARM(EXPERT)})
    steps = walk(decoder, PROMPTS, weights={"arm": w}, plausibility=1e-30 if w < 0 else 0.0)
    assert_policies(steps, lambda prefix: probabilities(BASE, prefix) * probabilities(EXPERT, prefix) ** w)


def test_a_guide_left_out_of_the_weights_runs_at_its_own() -> None:
    decoder = Decoder(BASE, {"arm": ARM(EXPERT, weight=0.7)})
    assert_policies(
        walk(decoder, PROMPTS), lambda prefix: probabilities(BASE, prefix) * probabilities(EXPERT, prefix) ** 0.7
    )


def test_several_objectives_multiply() -> None:
    """GenARM with a preference vector: π ∝ π_base · Π π_i^(αᵢ/β), weights as they are, neither scaled nor averaged."""
    decoder = Decoder(BASE, {"one": ARM(EXPERT), "two": ARM(OTHER)})
    assert_policies(
        walk(decoder, PROMPTS, weights={"one": 0.8, "two": 1.7}),
        lambda prefix: (
            probabilities(BASE, prefix) * probabilities(EXPERT, prefix) ** 0.8 * probabilities(OTHER, prefix) ** 1.7
        ),
    )


def test_each_prompt_has_its_own_weights() -> None:
    weights = [{"one": 1.0, "two": 0.0}, {"one": 0.0, "two": -1.0}, {"one": 0.5, "two": 0.5}, {"one": 0.0, "two": 0.0}]
    decoder = Decoder(BASE, {"one": ARM(EXPERT), "two": ARM(OTHER)})
    steps = walk(decoder, PROMPTS, weights=weights, plausibility=1e-30)
    for row, mine in enumerate(weights):
        for prefix, policy in steps[5 * row : 5 * row + 5]:
            product = (
                probabilities(BASE, prefix)
                * probabilities(EXPERT, prefix) ** mine["one"]
                * probabilities(OTHER, prefix) ** mine["two"]
            )
            torch.testing.assert_close(policy.double().exp(), product / product.sum(), atol=2e-6, rtol=2e-5)


@pytest.mark.parametrize("w", [0.5, 1.0, 2.0])
def test_proxy_tuning(w: float) -> None:
    """Expert minus anti-expert (arXiv 2401.08565): π ∝ π_base · (π_expert / π_anti)^w."""
    decoder = Decoder(BASE, {"expert": ARM(EXPERT, weight=w), "anti": ARM(OTHER, weight=-w)})
    assert_policies(
        walk(decoder, PROMPTS),
        lambda prefix: (
            probabilities(BASE, prefix) * (probabilities(EXPERT, prefix) / probabilities(OTHER, prefix)) ** w
        ),
    )


@pytest.mark.parametrize("alpha", [1e-30, 0.1, 0.4, 1.0])
def test_contrastive_decoding(alpha: float) -> None:
    """Li et al. (arXiv 2210.15097): π_base / π_amateur among tokens with π_base ≥ α · max π_base."""
    decoder = Decoder(BASE, {"amateur": ARM(OTHER, weight=-1.0)})

    def closed_form(prefix: Prefix) -> Tensor:
        base = probabilities(BASE, prefix)
        return torch.where(base >= alpha * base.max(), base / probabilities(OTHER, prefix), 0.0)

    steps = walk(decoder, PROMPTS, plausibility=alpha)
    assert_policies(steps, closed_form)
    masked = [int((policy == -torch.inf).sum()) for _, policy in steps]
    assert (max(masked) > 0) == (alpha > 1e-3)
    if alpha == 1:
        assert set(masked) == {V - 1}


def test_greedy_contrastive_decoding_takes_the_best_of_the_contrast() -> None:
    decoder = Decoder(BASE, {"amateur": ARM(OTHER, weight=-1.0)})
    for answer in decoder.generate(PROMPTS, temperature=0, plausibility=0.1, max_new_tokens=5, ignore_eos=True):
        for count, token in enumerate(answer.token_ids):
            prefix = (*answer.prompt_ids, *answer.token_ids[:count])
            base = probabilities(BASE, prefix)
            contrast = torch.where(base >= 0.1 * base.max(), base / probabilities(OTHER, prefix), 0.0)
            assert token == int(contrast.argmax())


@pytest.mark.parametrize("strength", [0.0, 0.25, 1.0, 2.0])
def test_decoding_time_realignment(strength: float) -> None:
    """Liu et al. (arXiv 2402.02992): π_ref^(1−λ) · π_aligned^λ; λ = 1 is the aligned model, 0 the reference."""
    decoder = Decoder(BASE, {"aligned": ARM(EXPERT, weight=strength), "reference": ARM(BASE, weight=-strength)})
    assert_policies(
        walk(decoder, PROMPTS),
        lambda prefix: probabilities(BASE, prefix) ** (1 - strength) * probabilities(EXPERT, prefix) ** strength,
    )


@pytest.mark.parametrize("gamma", [0.5, 1.5, 3.0])
def test_classifier_free_guidance(gamma: float) -> None:
    """Sanchez et al. (arXiv 2306.17806): π(y | x)^γ · π(y | negative)^(1−γ), both reading the same answer."""
    negative = [6, 6]
    itself: dict[str, Guide] = {
        "prompted": ARM(BASE, weight=gamma - 1),
        "negative": ARM(BASE, weight=1 - gamma, prompt=negative),
    }
    steps = walk(Decoder(BASE, itself), PROMPTS)
    starts = [tuple(prompt) for prompt in PROMPTS for _ in range(5)]
    assert len(steps) == len(starts)
    for start, (prefix, policy) in zip(starts, steps, strict=True):
        answer = prefix[len(start) :]
        away = probabilities(BASE, (*negative, *answer))
        product = probabilities(BASE, prefix) ** gamma * away ** (1 - gamma)
        torch.testing.assert_close(policy.double().exp(), product / product.sum(), atol=2e-6, rtol=2e-5)


def test_what_the_base_forbids_stays_forbidden_under_every_method() -> None:
    """π_base is 0 at a token: no expert, no negative weight, no negative prompt brings it back."""
    table = torch.randn(V, V, generator=torch.Generator().manual_seed(3))
    table[:, 4] = -torch.inf
    base = TabularModel.of_table(table)
    table = table.clone()
    table[:, 2] = -torch.inf
    vetoing = TabularModel.of_table(table)
    for w in (-5.0, -1.0, 1.0, 5.0):
        decoder = Decoder(base, {"for": ARM(EXPERT, weight=abs(w)), "veto": ARM(vetoing, weight=w)})
        for _, policy in walk(decoder, PROMPTS):
            assert (policy == -torch.inf).nonzero().flatten().tolist() == [2, 4]


def test_a_constant_added_to_the_scores_changes_nothing() -> None:
    shifted = TabularModel(lambda prefix: EXPERT.next_logprobs(prefix), V)
    shifted.next_logprobs = lambda prefix: EXPERT.next_logprobs(prefix) + 3.0 * len(prefix) - 10  # type: ignore[method-assign]
    plain, other = (Decoder(BASE, {"arm": ARM(model, weight=1.5)}) for model in (EXPERT, shifted))
    torch.testing.assert_close(policies_at(plain, PROMPTS), policies_at(other, PROMPTS), atol=3e-5, rtol=0)
