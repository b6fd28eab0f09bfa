"""Discrete soft actor-critic for the accept-reject agent: torchrl's losses, MARA's recipe (arXiv 2505.19743).

torchrl's `DiscreteSACLoss` gives the three losses and `SoftUpdate` moves the target critics. Held against the released
code of MARA, update by update:

* The order is theirs: critics, then the actor against the critics just updated, then alpha. `DiscreteSACLoss.forward`
  would take all three at the same weights, so its three parts are called one by one.
* The critics' loss is ½ (Q − target)² for each of the twins; torchrl's "l2" has no ½, so it is halved here.
* The twins share one LayerNorm. torchrl copies a network that it is given once; given a list of two, it keeps what they
  share shared, and the shared part of the targets moves with them.
* Alpha: theirs minimises exp(log α) · (H − target), torchrl log α · (H − target). The gradients by log α differ by the
  factor α > 0, which Adam divides out where α changes slowly. torchrl's is kept.
* Targets move once after each episode's updates, not after each update. `SoftUpdate` is stepped accordingly.
* log π of a probability that is 0 in float32 is finite here (from logits); theirs adds 1e-8.

Nothing here draws a random number but the initial weights, which the seed alone decides.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import safetensors.torch
import torch
from tensordict import TensorDict
from tensordict.nn import ProbabilisticTensorDictModule, ProbabilisticTensorDictSequential, TensorDictModule
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torchrl.objectives import DiscreteSACLoss, SoftUpdate

from trimtab.errors import NotFiniteError, naming
from trimtab.guides.agent import NUM_ACTIONS, AgentNetwork
from trimtab.training.agent.settings import AgentSettings

_LOSSES = ("critic_loss", "actor_loss", "entropy")


class Learner:
    """Actor, twin critics, their targets and alpha, for states of D numbers."""

    def __init__(self, hidden_size: int, settings: AgentSettings, device: torch.device) -> None:
        self._device = device
        self._max_grad_norm = settings.max_grad_norm
        self.actor, first, second = _networks(hidden_size, settings, device)
        self._shared = first.ln
        self._loss = DiscreteSACLoss(
            _policy(self.actor),
            [TensorDictModule(critic, ["observation"], ["action_value"]) for critic in (first, second)],
            action_space="categorical",
            num_actions=NUM_ACTIONS,
            num_qvalue_nets=2,
            loss_function="l2",
            alpha_init=settings.alpha_init,
            target_entropy=settings.target_entropy_share * math.log(NUM_ACTIONS),
        )
        self._loss.make_value_estimator(gamma=settings.gamma)
        self._target = SoftUpdate(self._loss, tau=settings.tau)
        self._critic_weights = [*self._loss.qvalue_network_params.parameters(), *self._shared.parameters()]
        adam = torch.optim.Adam
        self._optimizers = {
            "actor": adam(self.actor.parameters(), lr=settings.actor_learning_rate),
            "critic": adam(self._critic_weights, lr=settings.critic_learning_rate),
            "alpha": adam([self._loss.log_alpha], lr=settings.alpha_learning_rate),
        }
        self.num_updates = 0
        self._sums = dict.fromkeys(_LOSSES, torch.zeros((), device=device))
        self._num_summed = 0

    @property
    def alpha(self) -> float:
        """The weight of the entropy."""
        return float(self._loss.log_alpha.detach().exp())

    def update(self, batch: TensorDict) -> None:
        """One step of the critics, of the actor and of alpha on a batch (`Replay.sample`)."""
        batch = batch.to(self._device)
        loss_critic, _ = self._loss.qvalue_loss(batch)
        loss_critic = loss_critic / 2
        self._step("critic", loss_critic, self._critic_weights)
        loss_actor, details = self._loss.actor_loss(batch)
        self._step("actor", loss_actor, list(self.actor.parameters()))
        self._step("alpha", self._loss.alpha_loss(details["log_prob"]).mean(), [])
        losses = (loss_critic, loss_actor, -details["log_prob"].mean())
        for name, value in zip(_LOSSES, losses, strict=True):
            self._sums[name] = self._sums[name] + value.detach()
        self._num_summed += 1
        self.num_updates += 1

    def move_target(self) -> None:
        """Polyak: the target critics go `tau` of the way to the critics."""
        self._target.step()

    def losses(self) -> dict[str, float]:
        """Means over the updates since the last call; empty where there were none. Raises NotFiniteError."""
        means = {name: float(total) / self._num_summed for name, total in self._sums.items() if self._num_summed}
        for name, value in means.items():
            if not math.isfinite(value):
                raise naming(
                    NotFiniteError,
                    "The {0} is {1} after {2} updates. Give smaller learning rates, or a smaller {reward_scale}.",
                    *(name.replace("_", " "), value, self.num_updates),
                )
        self._sums = dict.fromkeys(_LOSSES, torch.zeros((), device=self._device))
        self._num_summed = 0
        return means

    def actor_weights(self) -> dict[str, Tensor]:
        """A copy of the actor's weights on the CPU."""
        return {name: value.detach().cpu().clone() for name, value in self.actor.state_dict().items()}

    def save(self, directory: Path) -> None:
        """Write everything that the next update depends on: `learner.safetensors` and `learner.json`."""
        tensors = {name: value.detach().cpu().contiguous().clone() for name, value in self._tensors()}
        safetensors.torch.save_file(tensors, directory / "learner.safetensors")
        sums = {name: float(value) for name, value in self._sums.items()}
        counts = {"num_updates": self.num_updates, "sums": sums, "num_summed": self._num_summed}
        (directory / "learner.json").write_text(json.dumps(counts), encoding="utf-8")

    def load(self, directory: Path) -> None:
        """Continue from what `save` wrote, with a learner of the same settings."""
        counts = json.loads((directory / "learner.json").read_text(encoding="utf-8"))
        self.num_updates, self._num_summed = counts["num_updates"], counts["num_summed"]
        self._sums = {name: torch.tensor(value, device=self._device) for name, value in counts["sums"].items()}
        saved: Mapping[str, Tensor] = safetensors.torch.load_file(directory / "learner.safetensors")
        for optimizer in self._optimizers.values():
            for weight in optimizer.param_groups[0]["params"]:
                # As Adam itself begins, so that there is a place for each saved tensor.
                optimizer.state[weight] = {
                    "step": torch.zeros((), dtype=torch.float32),
                    "exp_avg": torch.zeros_like(weight),
                    "exp_avg_sq": torch.zeros_like(weight),
                }
        if self.num_updates == 0:  # nothing has stepped, so nothing of Adam's was saved
            for optimizer in self._optimizers.values():
                optimizer.state.clear()
        with torch.no_grad():
            for name, value in self._tensors():
                value.copy_(saved[name])

    def _step(self, name: str, loss: Tensor, clipped: list[nn.Parameter]) -> None:
        optimizer = self._optimizers[name]
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        if clipped:
            clip_grad_norm_(clipped, self._max_grad_norm)
        optimizer.step()

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Every tensor of the state, by name."""
        yield from ((f"actor.{name}", value) for name, value in self.actor.named_parameters())
        yield from ((f"critic.{index}", value) for index, value in enumerate(self._critic_weights))
        targets = self._loss.target_qvalue_network_params
        yield from ((f"target.{'.'.join(key)}", value.data) for key, value in targets.items(True, True))
        yield "log_alpha", self._loss.log_alpha
        for name, optimizer in self._optimizers.items():
            for index, weight in enumerate(optimizer.param_groups[0]["params"]):
                for key, value in optimizer.state.get(weight, {}).items():
                    yield f"{name}.adam.{index}.{key}", value


def _networks(hidden_size: int, settings: AgentSettings, device: torch.device) -> list[AgentNetwork]:
    """An actor and two critics that share a LayerNorm, as the seed says; the caller's random state is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        networks = [AgentNetwork(hidden_size, settings.hidden_dim) for _ in range(3)]
    networks[2].ln = networks[1].ln
    return [network.to(device) for network in networks]


def _policy(actor: AgentNetwork) -> ProbabilisticTensorDictSequential:
    return ProbabilisticTensorDictSequential(
        TensorDictModule(actor, ["observation"], ["logits"]),
        ProbabilisticTensorDictModule(
            in_keys=["logits"],
            out_keys=["action"],
            distribution_class=torch.distributions.Categorical,
            distribution_kwargs={"validate_args": False},  # NaN is found in the losses, with a sentence
        ),
    )
