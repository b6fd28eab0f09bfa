"""The loss against numbers worked out by hand, and its gradient against the formula."""

from __future__ import annotations

import math

import pytest
import torch

from trimtab.mixing.rules import mix, tilt
from trimtab.training.pairs.losses import (
    arm_loss,
    bradley_terry_loss,
    correct,
    dpo_loss,
    margins,
    mixed_logprobs,
    sequence_logprobs,
    token_logprobs,
)


def test_token_logprobs_by_hand() -> None:
    logits = torch.tensor([[0.0, math.log(3.0)], [2.0, 2.0]])
    found = token_logprobs(logits, torch.tensor([1, 0]))
    assert found.tolist() == pytest.approx([math.log(3 / 4), math.log(1 / 2)])


def test_token_logprobs_are_float32_whatever_the_model_computes_in() -> None:
    logits = torch.randn(5, 300, generator=torch.Generator().manual_seed(0)).bfloat16()
    labels = torch.arange(5)
    found = token_logprobs(logits, labels)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, logits.double().log_softmax(-1)[range(5), labels].float())


@pytest.mark.parametrize(("form", "odds"), [("product", 9.0), ("shift", 3.0 * (9 / 3) ** 0.5)])
def test_the_mix_of_a_token_by_hand(form: str, odds: float) -> None:
    """The base's odds are 3, the guide's 9, its weight 1/2: 3 · 9^(1/2), and 3 · (9 / 3)^(1/2)."""
    base, guide = torch.tensor([[1.0, 3.0]]).log(), torch.tensor([[1.0, 9.0]]).log() + 2.0
    found = mixed_logprobs(guide, base, torch.tensor([1]), weight=0.5, form=form)
    assert found.exp().tolist() == pytest.approx([odds / (1 + odds)])


def test_the_mix_is_the_one_that_decoding_draws_from() -> None:
    generator = torch.Generator().manual_seed(0)
    guide, base = torch.randn(6, 40, generator=generator), torch.randn(6, 40, generator=generator)
    labels = torch.arange(6)
    for weight in (0.0, 0.5, 1.0, 3.0):
        for form in ("product", "shift"):
            score = guide.log_softmax(-1) - (base.log_softmax(-1) if form == "shift" else 0.0)
            added = mix(base, [(score, torch.full((6,), weight))])
            expected = tilt(base.log_softmax(-1), added).log_softmax(-1)[range(6), labels]
            found = mixed_logprobs(guide, base, labels, weight=weight, form=form)
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_a_sequence_is_the_sum_of_its_tokens_and_not_their_mean() -> None:
    found = sequence_logprobs(torch.tensor([-1.0, -2.0, -4.0]), torch.tensor([0, 0, 2]), 4)
    assert found.tolist() == [-3.0, 0.0, -4.0, 0.0]


def test_the_loss_by_hand() -> None:
    chosen, rejected = torch.tensor([-10.0, -30.0]), torch.tensor([-30.0, -10.0])
    found = arm_loss(chosen, rejected, beta=0.05)
    assert found.tolist() == pytest.approx([math.log(1 + math.exp(-1)), math.log(1 + math.exp(1))])


def test_gamma_is_a_margin_to_be_exceeded() -> None:
    chosen, rejected = torch.tensor([-10.0]), torch.tensor([-30.0])
    assert arm_loss(chosen, rejected, beta=0.05, gamma=1.0).item() == pytest.approx(math.log(2))


def test_the_gradient_is_that_of_the_formula() -> None:
    chosen = torch.tensor([-3.0, -8.0, -1.0], requires_grad=True)
    rejected = torch.tensor([-5.0, -2.0, -1.0], requires_grad=True)
    arm_loss(chosen, rejected, beta=0.5, gamma=0.25).sum().backward()
    # d/dx of −log σ(β(x − y) − γ) is −β·σ(γ − β(x − y)).
    expected = -0.5 * torch.sigmoid(0.25 - 0.5 * (chosen - rejected)).detach()
    torch.testing.assert_close(chosen.grad, expected)
    torch.testing.assert_close(rejected.grad, -expected)


def test_a_hopeless_margin_has_a_finite_loss() -> None:
    found = arm_loss(torch.tensor([-1e5]), torch.tensor([0.0]), beta=0.05)
    assert found.item() == pytest.approx(5000.0)


def test_margins_and_accuracy() -> None:
    chosen, rejected = torch.tensor([-1.0, -4.0, -2.0]), torch.tensor([-3.0, -2.0, -2.0])
    assert margins(chosen, rejected, beta=0.5).tolist() == [1.0, -1.0, 0.0]
    assert correct(chosen, rejected).tolist() == [True, False, False], "a tie is not correct"


def test_bradley_and_terrys_loss_by_hand() -> None:
    # −log σ(1) = 0.31326; −log σ(−2) = 2.12693; (r_w + r_l)² is 9 and 36.
    chosen, rejected = torch.tensor([2.0, 2.0]), torch.tensor([1.0, 4.0])
    assert bradley_terry_loss(chosen, rejected).tolist() == pytest.approx([0.31326, 2.12693], abs=1e-5)
    assert bradley_terry_loss(chosen, rejected, center=0.01).tolist() == pytest.approx([0.40326, 2.48693], abs=1e-5)


def test_the_loss_of_dpo_by_hand() -> None:
    # β(ρ_w − ρ_l) is 0.1·(3 − (−7)) = 1 and 0.1·(−5 − 15) = −2.
    chosen, rejected = torch.tensor([3.0, -5.0]), torch.tensor([-7.0, 15.0])
    assert dpo_loss(chosen, rejected, beta=0.1).tolist() == pytest.approx([0.31326, 2.12693], abs=1e-5)
