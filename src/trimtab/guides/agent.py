"""An accept-reject agent: a small network that reads the base's state after each candidate and accepts or rejects it.

MARA (Zhang et al., IJCAI 2025, arXiv 2505.19743). Candidates are the base's top-k 40, of these the top-p 0.95, best
first; the first that the agent accepts is the token, the first of all where it accepts none. A single survivor is not
asked about. An autoregressive reward model may tilt the candidates before.

Where it differs from the paper's released code: candidates are evaluated in batch over rows and candidates and the
accepted one is not fed again; the state is the base's own precision turned to float32 (theirs is float16 throughout);
every end-of-sequence token ends an answer; and the threshold of acceptance, their ½, is the request's dial. A released
checkpoint gives the same verdicts.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from trimtab.core import Candidates, GuideSession, ModelSession, Prompt, Selection, TokenIds
from trimtab.errors import BaseMismatchError, CheckpointError, unknown_name
from trimtab.mixing.rules import ACCEPTING_RULES, FirstAccepted

log = logging.getLogger(__name__)

NUM_ACTIONS = 2
"""0 rejects, 1 accepts."""

WEIGHTS_FILE = "model.safetensors"

PAPER_WIDTH = 1024
"""Width of the first hidden layer; the second has a quarter of it."""


class AgentNetwork(nn.Module):
    """LayerNorm(D) -> Linear(D, H) -> ReLU -> Linear(H, H/4) -> ReLU -> Linear(H/4, 2), in float32.

    4.47 million parameters at D = 4096 and H = 1024. The names of its weights are those of the released checkpoints.
    """

    def __init__(self, hidden_size: int, width: int = PAPER_WIDTH) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.width = width
        self.ln = nn.LayerNorm(hidden_size)
        self.linear1 = nn.Linear(hidden_size, width)
        self.linear2 = nn.Linear(width, width // 4)
        self.output_linear = nn.Linear(width // 4, NUM_ACTIONS)

    def forward(self, states: Tensor) -> Tensor:
        """[..., D] states -> [..., 2] float32 logits of reject and accept."""
        inner = torch.relu(self.linear1(self.ln(states.to(torch.float32))))
        logits: Tensor = self.output_linear(torch.relu(self.linear2(inner)))
        return logits

    @staticmethod
    def of_weights(weights: Mapping[str, Tensor], source: str) -> AgentNetwork:
        """The network of a state dict. Raises CheckpointError where names, shapes or numbers are not an agent's."""
        expected = set(AgentNetwork(4, 4).state_dict())
        if set(weights) != expected:
            wrong = sorted(set(weights) ^ expected)
            raise CheckpointError(
                f"{source} is not an agent's checkpoint: {', '.join(wrong[:4])} {'is' if len(wrong) == 1 else 'are'} "
                f"missing or unknown. Accepted: {', '.join(sorted(expected))}."
            )
        first = weights["linear1.weight"]
        if first.ndim != 2:
            raise CheckpointError(
                f"{source} is not an agent's checkpoint: linear1.weight has shape {tuple(first.shape)}."
            )
        network = AgentNetwork(first.shape[1], first.shape[0])
        for name, expected_weight in network.state_dict().items():
            shape = tuple(weights[name].shape)
            if shape != tuple(expected_weight.shape):
                raise CheckpointError(
                    f"{source} is not an agent's checkpoint: {name} has shape {shape}; an agent of width "
                    f"{first.shape[1]} has {tuple(expected_weight.shape)}."
                )
            if not bool(torch.isfinite(weights[name]).all()):
                raise CheckpointError(f"{source}: {name} holds NaN or infinite numbers. Train the agent again.")
        network.load_state_dict({name: value.to(torch.float32) for name, value in weights.items()})
        return network.eval().requires_grad_(False)


class HasStates(Protocol):
    """What an agent asks of the base whose states it reads."""

    @property
    def hidden_size(self) -> int:
        """D, the width of a state."""

    @property
    def device(self) -> torch.device:
        """Where the states are."""


@dataclass(frozen=True)
class Agent:
    """A guide that accepts or rejects candidates.

    `weight` is the probability of acceptance that a candidate has to exceed: the paper's ½ unless a request says
    otherwise, 0 switches the agent off. `selection` holds its rule (`FirstAccepted`, `RandomAccepted`, `MostAccepted`)
    and the candidates it is meant to see. `trained_on` names the base it was trained on; it runs on any of the same
    hidden size.
    """

    network: AgentNetwork
    weight: float = 0.5
    selection: Selection = field(default_factory=lambda: Selection(FirstAccepted()))
    trained_on: str = ""
    card: Mapping[str, Any] = field(default_factory=dict)

    needs_hidden = True
    needs_context = False
    max_length = None

    def bind(self, base: HasStates) -> Agent:
        """The agent on the base's device. Raises BaseMismatchError for a base of another hidden size."""
        if base.hidden_size != self.network.hidden_size:
            trained = f" (it was trained on {self.trained_on})" if self.trained_on else ""
            raise BaseMismatchError(
                f"This agent reads states of width {self.network.hidden_size}{trained}; the model's have "
                f"{base.hidden_size}. Use it on a model of the same hidden size, or train one: trimtab train agent."
            )
        name = getattr(base, "name", "")
        if self.trained_on and name and name != self.trained_on:
            log.info("an agent trained on %s runs on %s", self.trained_on, name)
        self.selection.rule.check_weight(self.weight)
        device = next(self.network.parameters()).device
        return self if device == base.device else replace(self, network=deepcopy(self.network).to(base.device))

    def prompt_ids(self, prompt: Prompt, base_ids: TokenIds) -> TokenIds:
        return base_ids

    def open(self, beside: ModelSession | None = None) -> GuideSession:
        return AgentSession(self.network)

    def with_looks(self, looks: tuple[int, ...]) -> Agent:
        """The same agent with other numbers of candidates to a forward pass; it says the same."""
        return replace(self, selection=replace(self.selection, looks=looks))

    def save_files(self, directory: Path) -> None:
        """Write the agent's weights into an existing directory (see `loading.save_guide`)."""
        save_file(
            {name: tensor.contiguous().cpu() for name, tensor in self.network.state_dict().items()},
            directory / WEIGHTS_FILE,
            metadata={"format": "pt"},
        )

    def facts(self) -> dict[str, object]:
        """What the agent's card (`guide.json`) says of it."""
        rule = next((name for name, kind in ACCEPTING_RULES.items() if isinstance(self.selection.rule, kind)), None)
        return {
            "format": 1,
            "kind": "agent",
            "base": {"name": self.trained_on},
            **self.card,
            "hidden_size": self.network.hidden_size,
            "width": self.network.width,
            "selection": {
                "rule": rule,
                "threshold": self.weight,
                "top_k": self.selection.top_k,
                "top_p": self.selection.top_p,
                "temperature": self.selection.temperature,
            },
        }

    @staticmethod
    def of_directory(directory: Path, facts: Mapping[str, Any]) -> Agent:
        """The agent whose weights `save_files` wrote, with the `facts` of its card. Raises CheckpointError."""
        path = directory / WEIGHTS_FILE
        if not path.exists():
            raise CheckpointError(f"{directory} holds no {WEIGHTS_FILE}. Train or convert the agent again.")
        try:
            weights = load_file(path)
            how = dict(facts["selection"])
            rule, threshold = ACCEPTING_RULES[how.pop("rule")](), float(how.pop("threshold"))
            selection = Selection(rule, **how)
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{directory} is a damaged agent: {error!r}. Train or convert it again.") from error
        network = AgentNetwork.of_weights(weights, str(path))
        return Agent(network, threshold, selection, str(facts.get("base", {}).get("name", "")), facts)

    def ruled_by(self, rule: str) -> Agent:
        """The same agent under another rule: `first`, `random` or `most` (accepted). Raises OptionError."""
        if rule not in ACCEPTING_RULES:
            raise unknown_name("rule", rule, ACCEPTING_RULES)
        return replace(self, selection=replace(self.selection, rule=ACCEPTING_RULES[rule]()))


class AgentSession:
    """The verdicts of an agent. It remembers nothing: each is a function of one state."""

    def __init__(self, network: AgentNetwork) -> None:
        self._network = network
        self._num_rows = 0

    @property
    def num_rows(self) -> int:
        return self._num_rows

    def admit(self, prompts: Sequence[TokenIds]) -> None:
        self._num_rows += len(prompts)

    def known(self, prompt: TokenIds) -> int:
        """All of it: it reads no prompts."""
        return len(prompt)

    def advance(self, rows: Tensor, token_ids: Tensor) -> None:
        pass

    def keep(self, rows: Tensor) -> None:
        self._num_rows = len(rows)

    def score(self, candidates: Candidates) -> Tensor:
        """[B, K] log-odds of acceptance: the logit of accept less that of reject."""
        assert candidates.hidden is not None, "an agent reads the state after each candidate"
        with torch.no_grad():
            logits = self._network(candidates.hidden)
        odds: Tensor = logits[..., 1] - logits[..., 0]
        return odds


def read_released(path: Path, hidden_size: int) -> Agent:
    """The agent in a checkpoint of the authors' (`actor_N.pth`, a pickled state dict), of which only weights are read.

    Raises CheckpointError for a file that is missing, holds anything but tensors, or is of another layout or width.
    """
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}.") from error
    except Exception as error:  # the unpickler raises a dozen kinds for what is not a checkpoint
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise CheckpointError(
            f"{path} holds more than weights, or is not a checkpoint ({reason}). Code in a pickle is never run: save "
            "the actor's state_dict() where you trust the file."
        ) from error
    if not isinstance(weights, Mapping) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise CheckpointError(f"{path} holds a {type(weights).__name__}, not a state dict of tensors.")
    network = AgentNetwork.of_weights(weights, str(path))
    if network.hidden_size != hidden_size:
        raise CheckpointError(
            f"{path} reads states of width {network.hidden_size}, not {hidden_size}. Give its own: "
            f"--width {network.hidden_size}."
        )
    return Agent(network, card={"source": {"file": path.name}})
