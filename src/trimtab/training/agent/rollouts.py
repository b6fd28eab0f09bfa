"""Episodes for an accept-reject agent, by the batch: answers decoded with the actor in the loop.

The loop is `decoding.Decoder`'s; the actor takes part as a guide (`agent_recorder`). A round's episodes may be cut into
parts that are rolled out each on their own: here one after the other, on workers (`workers`) at the same time.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from trimtab.answers import finished
from trimtab.core import LanguageModel, Prompt
from trimtab.decoding.decoder import Decoder
from trimtab.errors import CheckpointError, PromptError
from trimtab.guides.agent import AgentNetwork
from trimtab.training.agent.recorder import Episode, Recorder
from trimtab.training.agent.settings import AgentSettings


@dataclass(frozen=True, slots=True)
class Plan:
    """An episode to be: its number in the run and its prompt."""

    index: int
    prompt: Prompt


@dataclass(frozen=True, slots=True)
class Rollout:
    """Episodes in the order of their plans, and where the time went."""

    episodes: tuple[Episode, ...]
    base_texts: Mapping[int, str]
    """Episode -> the base's own greedy answer to its prompt, where it was asked for."""
    agent_seconds: float
    """Actor and recording."""
    base_seconds: float
    """The rest of decoding: the base's forward passes, with the filters between them."""


@dataclass(frozen=True, slots=True)
class BaseFacts:
    """What a run must know of a base that may be loaded elsewhere."""

    hidden_size: int
    has_chat_template: bool
    card: Mapping[str, object]
    """`base` and `vocabulary` of `guide.json`."""


class Rollouts(Protocol):
    """Where episodes come from: this process, or workers."""

    @property
    def facts(self) -> BaseFacts: ...
    @property
    def device(self) -> torch.device:
        """Where the learner should be."""

    @property
    def num_lost(self) -> int:
        """Workers that died."""

    def check(self, prompts: Sequence[Prompt]) -> None:
        """Raise PromptError for a prompt that the base cannot answer."""

    def collect(self, plans: Sequence[Plan], weights: Mapping[str, Tensor], base_for: Collection[int]) -> Rollout:
        """Roll out some episodes with an actor's weights; `base_for` are those to add the base's own answer for."""

    def close(self) -> None: ...


class Roller:
    """Rolls out episodes on one model."""

    def __init__(self, model: LanguageModel, settings: AgentSettings) -> None:
        if model.tokenizer is None:
            raise CheckpointError(
                "The model has no tokenizer, so its answers have no text to reward. Give one that has."
            )
        self._model = model
        self._settings = settings
        network = AgentNetwork(model.hidden_size, settings.hidden_dim)
        self._network = network.to(model.device).eval().requires_grad_(False)

    @property
    def facts(self) -> BaseFacts:
        model = self._model
        assert model.tokenizer is not None
        describe = getattr(model, "describe", None)
        return BaseFacts(
            model.hidden_size,
            model.tokenizer.has_chat_template,
            {
                "base": describe() if describe else {"name": type(model).__name__, "hidden_size": model.hidden_size},
                "vocabulary": {"fingerprint": model.tokenizer.fingerprint, "size": len(model.tokenizer.tokens)},
            },
        )

    def check(self, prompts: Sequence[Prompt]) -> None:
        """Raise PromptError for a prompt that the base cannot answer."""
        decoder = Decoder(self._model)
        for number, prompt in enumerate(prompts, start=1):
            try:
                decoder.cancel(decoder.add(prompt))
            except PromptError as error:
                raise PromptError(f"Prompt {number} of {len(prompts)}: {error}") from error

    def roll(self, plans: Sequence[Plan], weights: Mapping[str, Tensor], base_for: Collection[int]) -> Rollout:
        """One rollout of all plans in one batch."""
        if not plans:
            return Rollout((), {}, 0.0, 0.0)
        self._network.load_state_dict(weights)
        recorder = Recorder(self._network, self._settings, [plan.index for plan in plans])
        started = time.perf_counter()
        decoder = Decoder(self._model, {"agent": recorder}, max_rows=len(plans))
        longest = self._settings.max_new_tokens
        decoded = decoder.generate([plan.prompt for plan in plans], max_new_tokens=longest, seed=0)
        answers = list(finished(decoded))
        asked = [plan for plan in plans if plan.index in base_for]
        greedy = Decoder(self._model, max_rows=len(plans)).generate(
            [plan.prompt for plan in asked], max_new_tokens=longest, temperature=0, seed=0
        )
        base_texts = {plan.index: answer.text for plan, answer in zip(asked, finished(greedy), strict=True)}
        seconds = time.perf_counter() - started
        episodes = recorder.episodes([(answer.text, len(answer.token_ids)) for answer in answers])
        return Rollout(episodes, base_texts, recorder.seconds, seconds - recorder.seconds)


class LocalRollouts:
    """Rollouts in this process. `parts` cuts each round as so many workers would."""

    num_lost = 0

    def __init__(self, model: LanguageModel, settings: AgentSettings, *, parts: int = 1) -> None:
        self._roller = Roller(model, settings)
        self._parts = parts
        self.facts = self._roller.facts
        self.device = model.device

    def check(self, prompts: Sequence[Prompt]) -> None:
        self._roller.check(prompts)

    def collect(self, plans: Sequence[Plan], weights: Mapping[str, Tensor], base_for: Collection[int]) -> Rollout:
        return merged([self._roller.roll(part, weights, base_for) for part in split(plans, self._parts)])

    def close(self) -> None:
        pass


def split(plans: Sequence[Plan], parts: int) -> list[Sequence[Plan]]:
    """Neighbouring plans in this many parts, as equal as can be; empty parts are left out."""
    bounds = [len(plans) * part // parts for part in range(parts + 1)]
    return [plans[low:high] for low, high in itertools.pairwise(bounds) if low < high]


def merged(rollouts: Sequence[Rollout]) -> Rollout:
    """Parts of a round as one rollout."""
    return Rollout(
        tuple(episode for rollout in rollouts for episode in rollout.episodes),
        {index: text for rollout in rollouts for index, text in rollout.base_texts.items()},
        sum(rollout.agent_seconds for rollout in rollouts),
        sum(rollout.base_seconds for rollout in rollouts),
    )
