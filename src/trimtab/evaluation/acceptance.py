"""What an accept-reject agent did over a set of answers: how far it looked, what it took, what that cost the base."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from trimtab.answers import INSIGNIFICANT, ONLY, Answer, Choice
from trimtab.errors import InputError


@dataclass(frozen=True, slots=True)
class Acceptance:
    """Counts over the tokens that an agent chose; MARA's released code keeps the same (arXiv 2505.19743)."""

    num_tokens: int
    num_only: int
    """Tokens with a single candidate: the agent was not asked."""
    num_none: int
    """Tokens at which no candidate was accepted, so that the rule fell back."""
    num_candidates: int
    """Summed over the tokens at which the agent was asked."""
    num_examined: int
    """Candidates whose states the base was asked for, and the agent for a verdict: its calls."""
    num_needed: int
    """Candidates up to the one that decided: what a walk one by one would have examined (`Choice.num_needed`)."""
    num_insignificant: int
    """Tokens at which a gate of significance took the first candidate as it is."""
    indices: Mapping[int, int]
    """Place of the taken candidate (0: the most probable) -> tokens, where the agent was asked."""

    @property
    def num_asked(self) -> int:
        """Tokens at which the agent was asked."""
        return self.num_tokens - self.num_only

    @property
    def acceptance_rate(self) -> float:
        """Accepted candidates among those that a walk one by one examines, without tokens at which a gate of
        significance took the first as it is; 0 where nothing was asked."""
        num_examined = self.num_needed - self.num_insignificant
        return (self.num_asked - self.num_none - self.num_insignificant) / num_examined if num_examined else 0.0

    @property
    def mean_index(self) -> float:
        """Mean place of the taken candidate where the agent was asked; 0 where it never was."""
        return sum(index * count for index, count in self.indices.items()) / max(1, self.num_asked)


def acceptance_of(answers: Sequence[Answer]) -> Acceptance:
    """Count over answers that were generated with `trace`. Raises InputError for answers without."""
    choices: list[Choice] = []
    for answer in answers:
        if answer.trace is None:
            raise InputError("An answer has no trace. Decode it with a trace.")
        choices += [step.choice for step in answer.trace if step.choice is not None]
    asked = [choice for choice in choices if choice.reason != ONLY]
    return Acceptance(
        num_tokens=len(choices),
        num_only=len(choices) - len(asked),
        num_none=sum(choice.reason == "none" for choice in asked),
        num_candidates=sum(len(choice.trials) for choice in asked),
        num_examined=sum(trial.score is not None for choice in asked for trial in choice.trials),
        num_needed=sum(choice.num_needed for choice in asked),
        num_insignificant=sum(choice.reason == INSIGNIFICANT for choice in asked),
        indices=dict(sorted(Counter(choice.index for choice in asked).items())),
    )


@dataclass(slots=True)
class Passes:
    """Forward passes of a model while they were counted."""

    num_passes: int = 0
    num_columns: int = 0
    """Tokens fed, padding included."""
    by_shape: dict[tuple[int, int], int] = field(default_factory=dict)
    """(rows, tokens a row) -> passes."""


@contextmanager
def counted_passes(model: Any) -> Iterator[Passes]:
    """Count the forward passes that a model of ours (`models.hf.HFModel`) runs inside the block."""
    passes, forward = Passes(), model.forward

    def counted(token_ids: Any, *rest: Any) -> Any:
        shape = (int(token_ids.shape[0]), int(token_ids.shape[1]))
        passes.num_passes += 1
        passes.num_columns += shape[0] * shape[1]
        passes.by_shape[shape] = passes.by_shape.get(shape, 0) + 1
        return forward(token_ids, *rest)

    model.forward = counted
    try:
        yield passes
    finally:
        del model.forward
