"""The representability theorem in small, on worlds where every answer can be listed.

The KL-regularised optimum for a reward r(y) of whole answers is π*(y) ∝ π_base(y) · exp(r(y) / β). GenARM (arXiv
2410.08193) shows that some autoregressive reward model guides any base to any such π*, token by token. The first test
builds that ARM. The others train one, by the loss of `trimtab train arm`, on preferences drawn by Bradley-Terry from r.

What a trained ARM reaches is decided by what the loss can see: sums over answers. Its minimiser over all tables is
π_r(y) ∝ exp(r(y) / β_r), whatever the base. The next-token probabilities of π_r weigh the continuations of a prefix
evenly, those of π* by the base. So guided decoding is π* exactly where the base's continuations are even, near it where
they are nearly so, and far from it where they are not: the last test pins how far, so that nobody promises more.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from tests.invariants.policies import policies_at
from trimtab.decoding.decoder import Decoder
from trimtab.guides.arm import ARM
from trimtab.models.tabular import TabularModel
from trimtab.training.pairs.losses import arm_loss, sequence_logprobs

PROMPT = (1,)
BETA = 0.8
Prefix = tuple[int, ...]


@dataclass(frozen=True)
class World:
    """A base, all of its answers, and a reward for each."""

    base: TabularModel
    answers: Sequence[Prefix]
    base_logprobs: Tensor
    reward: Tensor

    @staticmethod
    def make(base: TabularModel, num_tokens: int, *, spread: float, seed: int) -> World:
        """Rewards of whole answers, normal with standard deviation `spread`: no sum over tokens makes them up."""
        answers = base.answers(PROMPT, num_tokens)
        reward = torch.randn(len(answers), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        return World(base, list(answers), torch.tensor(list(answers.values()), dtype=torch.float64), spread * reward)

    @property
    def optimum(self) -> Tensor:
        """[N] log π*."""
        return (self.base_logprobs + self.reward / BETA).log_softmax(0)

    @property
    def prefixes(self) -> list[Prefix]:
        """Every beginning of an answer at which a token is still to be chosen."""
        return sorted({answer[:length] for answer in self.answers for length in range(len(answer))})

    def answer_logprobs(self, policies: Tensor) -> Tensor:
        """[N] log-probabilities of the answers under next-token policies [num prefixes, V], in the prefixes' order."""
        at = {prefix: row for row, prefix in enumerate(self.prefixes)}
        places = [
            (at[answer[:i]], token, number)
            for number, answer in enumerate(self.answers)
            for i, token in enumerate(answer)
        ]
        rows, tokens, numbers = torch.tensor(places).unbind(1)
        return sequence_logprobs(policies[rows, tokens], numbers, len(self.answers))

    def guided(self, arm: TabularModel, weight: float = 1.0) -> Tensor:
        """[N] log-probabilities of the answers under the decoder's own policy."""
        decoder = Decoder(self.base, {"arm": ARM(arm, weight=weight)})
        return self.answer_logprobs(policies_at(decoder, [PROMPT + prefix for prefix in self.prefixes])).double()


def kl(policy: Tensor, other: Tensor) -> float:
    return float((policy.exp() * (policy - other)).sum())


def conditionals(world: World, logprobs: Tensor) -> dict[Prefix, Tensor]:
    """Next-token probabilities [V] at each prefix of a distribution over answers."""
    mass = {prefix: torch.zeros(world.base.vocab_size, dtype=torch.float64) for prefix in world.prefixes}
    for answer, probability in zip(world.answers, logprobs.exp().tolist(), strict=True):
        for i, token in enumerate(answer):
            mass[answer[:i]][token] += probability
    return {prefix: masses / masses.sum() for prefix, masses in mass.items()}


@pytest.mark.parametrize("weight", [0.5, 1.0, 2.0])
def test_some_arm_guides_any_base_to_any_optimum(weight: float) -> None:
    """Answers of any length, a base with opinions, any reward: π_r(y_t) ∝ (π*(y_t) / π_base(y_t))^(1/w)."""
    world = World.make(TabularModel.random(4, seed=0), 3, spread=1.5, seed=1)
    best = conditionals(world, world.optimum)

    def logits(prefix: Prefix) -> Tensor:
        return (best[prefix[1:]].log() - world.base.next_logprobs(prefix).double()) / weight

    guided = world.guided(TabularModel(logits, 4), weight)
    assert kl(world.base_logprobs, world.optimum) > 1
    assert abs(kl(guided, world.optimum)) < 1e-5


def draw_preferences(world: World, num_each: int, seed: int) -> Tensor:
    """[N, N] how often answer i was preferred to answer j in `num_each` comparisons of each pair, by Bradley-Terry."""
    odds = torch.sigmoid(world.reward[:, None] - world.reward[None, :])
    counts = torch.full_like(odds, float(num_each)).triu(1)
    wins = torch.binomial(counts, odds, generator=torch.Generator().manual_seed(seed)).triu(1)
    return wins + (counts - wins).T


def train(world: World, wins: Tensor, *, beta: float, num_steps: int = 400) -> TabularModel:
    """An ARM with a parameter for each next token after each prefix, trained on all pairs at once."""
    parameters = torch.zeros(len(world.prefixes), world.base.vocab_size, requires_grad=True)
    optimizer = torch.optim.Adam([parameters], lr=0.1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, num_steps)
    wins = (wins / wins.sum()).float()
    chosen, rejected = wins.nonzero(as_tuple=True)
    for _ in range(num_steps):
        sums = world.answer_logprobs(parameters.log_softmax(1))
        loss = (wins[chosen, rejected] * arm_loss(sums[chosen], sums[rejected], beta=beta)).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    rows = {PROMPT + prefix: parameters[row].detach() for row, prefix in enumerate(world.prefixes)}
    return TabularModel(lambda prefix: rows[prefix], world.base.vocab_size, eos_ids=world.base.eos_ids)


def even_world(vocab_size: int = 3, num_tokens: int = 3) -> World:
    base = TabularModel.of_table(torch.zeros(vocab_size), eos_ids=())
    return World.make(base, num_tokens, spread=1.0, seed=2)


def test_a_trained_arm_is_the_reward() -> None:
    """β_r · Σ log π_r(y) is r(y), up to the constant that preferences cannot see."""
    world = even_world()
    arm = train(world, draw_preferences(world, 5000, seed=3), beta=BETA)
    table = torch.stack([arm.next_logprobs(PROMPT + prefix) for prefix in world.prefixes])
    learnt = BETA * world.answer_logprobs(table).double()
    torch.testing.assert_close(learnt - learnt.mean(), world.reward - world.reward.mean(), atol=0.05, rtol=0)


def test_a_trained_arm_guides_to_the_optimum() -> None:
    """Preferences drawn by Bradley-Terry; β_r = β, so weight 1. The base's continuations are even."""
    world = even_world()
    assert kl(world.base_logprobs, world.optimum) > 0.4
    arm = train(world, draw_preferences(world, 200, seed=3), beta=BETA)
    assert kl(world.guided(arm), world.optimum) < 0.02
    assert kl(world.guided(arm, weight=0.5), world.optimum) > 0.05
    assert kl(world.guided(arm, weight=2.0), world.optimum) > 0.05


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_trained_arm_guides_a_base_with_mild_opinions_near_the_optimum(seed: int) -> None:
    base = TabularModel.random(3, seed=seed, scale=0.4, eos_ids=())
    world = World.make(base, 3, spread=0.5, seed=seed + 10)
    assert kl(world.base_logprobs, world.optimum) > 0.08
    arm = train(world, draw_preferences(world, 1000, seed=3), beta=BETA)
    assert kl(world.guided(arm), world.optimum) < 0.02


def test_how_far_a_trained_arm_stays_from_the_optimum_where_continuations_are_not_even() -> None:
    """Answers end when they like: an even share for each continuation is then a preference for going on."""
    world = World.make(TabularModel.random(3, seed=0), 3, spread=0.5, seed=10)
    arm = train(world, draw_preferences(world, 1000, seed=3), beta=BETA)
    guided, length = world.guided(arm), torch.tensor([float(len(answer)) for answer in world.answers])
    assert 0.1 < kl(guided, world.optimum) < 1.0
    assert float((guided.exp() * length).sum()) > float((world.optimum.exp() * length).sum()) + 0.3
    assert math.isclose(float(guided.exp().sum()), 1.0, abs_tol=1e-4)
