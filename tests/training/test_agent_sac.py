"""The learner against the update of the released recipe written out in plain torch, and its state on the disk."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional

pytest.importorskip("torchrl")

from tensordict import TensorDict

from trimtab.errors import NotFiniteError
from trimtab.guides.agent import AgentNetwork
from trimtab.training.agent.sac import Learner
from trimtab.training.agent.settings import AgentSettings

WIDTH, BATCH = 6, 32
SETTINGS = AgentSettings(
    hidden_dim=16,
    batch_size=BATCH,
    warmup_batches=1,
    actor_learning_rate=0.01,
    critic_learning_rate=0.02,
    alpha_learning_rate=0.03,
    alpha_init=0.2,
    gamma=0.9,
    tau=0.25,
    max_grad_norm=0.5,
)
CPU = torch.device("cpu")


def batch(seed: int) -> TensorDict:
    generator = torch.Generator().manual_seed(seed)
    end = torch.rand(BATCH, 1, generator=generator) < 0.3
    return TensorDict(
        {
            "observation": torch.randn(BATCH, WIDTH, generator=generator),
            "action": torch.randint(0, 2, (BATCH,), generator=generator),
            "next": {
                "observation": torch.randn(BATCH, WIDTH, generator=generator),
                "reward": torch.randn(BATCH, 1, generator=generator) * 5,
                "done": end,
                "terminated": end,
            },
        },
        batch_size=[BATCH],
    )


class Plain:
    """The recipe's update, written from its description (arXiv 2505.19743; arXiv 1910.07207 for discrete actions)."""

    def __init__(self, settings: AgentSettings) -> None:
        torch.manual_seed(settings.seed)
        self.actor, self.first, self.second = (AgentNetwork(WIDTH, settings.hidden_dim) for _ in range(3))
        self.second.ln = self.first.ln
        self.critic = nn.ModuleList([self.first, self.second])
        self.target = copy.deepcopy(self.critic)
        self.log_alpha = torch.tensor(math.log(settings.alpha_init), requires_grad=True)
        self.settings = settings
        self.actor_adam = torch.optim.Adam(self.actor.parameters(), lr=settings.actor_learning_rate)
        self.critic_adam = torch.optim.Adam(self.critic.parameters(), lr=settings.critic_learning_rate)
        self.alpha_adam = torch.optim.Adam([self.log_alpha], lr=settings.alpha_learning_rate)

    def update(self, data: TensorDict) -> tuple[float, float]:
        state, action, following = data["observation"], data["action"], data["next"]
        with torch.no_grad():
            log_p = functional.log_softmax(self.actor(following["observation"]), -1)
            q = torch.minimum(*(critic(following["observation"]) for critic in self.target))
            value = (log_p.exp() * (q - self.log_alpha.exp() * log_p)).sum(-1)
            target = following["reward"][:, 0] + self.settings.gamma * ~following["terminated"][:, 0] * value
        chosen = [critic(state)[torch.arange(BATCH), action] for critic in self.critic]
        critic_loss = sum(0.5 * functional.mse_loss(q, target) for q in chosen)
        self._step(self.critic_adam, critic_loss, self.critic)
        log_p = functional.log_softmax(self.actor(state), -1)
        q = torch.minimum(*(critic(state) for critic in self.critic)).detach()
        actor_loss = (log_p.exp() * (self.log_alpha.exp().detach() * log_p - q)).sum(-1).mean()
        self._step(self.actor_adam, actor_loss, self.actor)
        entropy = -(log_p.exp() * log_p).sum(-1).mean().detach()
        goal = self.settings.target_entropy_share * math.log(2)
        self._step(self.alpha_adam, self.log_alpha * (entropy - goal), None)
        return critic_loss.item(), actor_loss.item()

    def _step(self, adam: torch.optim.Optimizer, loss: torch.Tensor, clipped: nn.Module | None) -> None:
        adam.zero_grad()
        loss.backward()
        if clipped is not None:
            nn.utils.clip_grad_norm_(clipped.parameters(), self.settings.max_grad_norm)
        adam.step()

    def move_target(self) -> None:
        with torch.no_grad():
            for old, new in zip(self.target.parameters(), self.critic.parameters(), strict=True):
                old.mul_(1 - self.settings.tau).add_(self.settings.tau * new)


def test_update_by_update_it_is_the_recipe() -> None:
    ours, plain = Learner(WIDTH, SETTINGS, CPU), Plain(SETTINGS)
    for episode in range(4):
        for step in range(3):
            data = batch(10 * episode + step)
            ours.update(data)
            losses = plain.update(data)
            found = ours.losses()
            assert (found["critic_loss"], found["actor_loss"]) == pytest.approx(losses, rel=1e-4, abs=1e-5)
        ours.move_target()
        plain.move_target()
        assert ours.alpha == pytest.approx(plain.log_alpha.exp().item(), rel=1e-4)
    for name, weight in plain.actor.state_dict().items():
        torch.testing.assert_close(ours.actor_weights()[name], weight, rtol=1e-3, atol=1e-5)


def test_the_critic_learns_what_an_action_is_worth_and_the_actor_takes_it() -> None:
    """Accepting is worth 1 where the first number is positive, −1 where it is negative; every step is the last."""
    settings = AgentSettings(hidden_dim=32, batch_size=128, actor_learning_rate=0.003, critic_learning_rate=0.003)
    learner, generator = Learner(4, settings, CPU), torch.Generator().manual_seed(0)
    for _ in range(200):
        state, action = torch.randn(128, 4, generator=generator), torch.randint(0, 2, (128,), generator=generator)
        end = torch.ones(128, 1, dtype=torch.bool)
        reward = (state[:, :1].sign() * action[:, None]).float()
        after = {"observation": torch.zeros(128, 4), "reward": reward, "done": end, "terminated": end}
        learner.update(TensorDict({"observation": state, "action": action, "next": after}, batch_size=[128]))
    state = torch.randn(500, 4, generator=generator)
    accept = learner.actor(state).argmax(-1) == 1
    assert (accept == (state[:, 0] > 0)).float().mean() > 0.8


@pytest.mark.parametrize("num_before", [0, 3])
def test_a_saved_learner_goes_on_exactly(num_before: int, tmp_path: Path) -> None:
    left_alone = Learner(WIDTH, SETTINGS, CPU)
    for step in range(num_before):
        left_alone.update(batch(step))
        left_alone.move_target()
    left_alone.save(tmp_path)
    continued = Learner(WIDTH, AgentSettings(**{**_fields(SETTINGS), "seed": 99}), CPU)
    continued.load(tmp_path)
    for learner in (left_alone, continued):
        for step in range(num_before, num_before + 3):
            learner.update(batch(step))
        learner.move_target()
        learner.update(batch(100))
    assert continued.num_updates == num_before + 4
    states = [dict(learner._tensors()) for learner in (left_alone, continued)]
    assert states[0].keys() == states[1].keys()
    assert any("adam" in name for name in states[0])
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name]), name


def _fields(settings: AgentSettings) -> dict[str, object]:
    return {name: getattr(settings, name) for name in settings.__slots__}


def test_the_seed_decides_the_first_weights_and_nobody_elses_numbers() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    one, same = Learner(WIDTH, SETTINGS, CPU), Learner(WIDTH, SETTINGS, CPU)
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(one.actor.linear1.weight, same.actor.linear1.weight)
    other = Learner(WIDTH, AgentSettings(hidden_dim=16, seed=1), CPU)
    assert not torch.equal(one.actor.linear1.weight, other.actor.linear1.weight)


def test_what_diverges_is_said() -> None:
    learner = Learner(WIDTH, SETTINGS, CPU)
    data = batch(0)
    data["next", "reward"][0] = float("nan")
    learner.update(data)
    with pytest.raises(NotFiniteError, match=r"critic loss is nan after 1 updates.*learning rates"):
        learner.losses()


def test_losses_are_means_since_the_last_question() -> None:
    learner = Learner(WIDTH, SETTINGS, CPU)
    assert learner.losses() == {}
    learner.update(batch(0))
    assert set(learner.losses()) == {"critic_loss", "actor_loss", "entropy"}
    assert learner.losses() == {}
