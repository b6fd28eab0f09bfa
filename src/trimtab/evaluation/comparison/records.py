"""The rows of a comparison: one answer a line of `answers.jsonl`, one batch a line of `costs.jsonl`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

from trimtab.core import Prompt
from trimtab.errors import DataError
from trimtab.methods.method import Strength
from trimtab.storage.json_lines import read_lines

KL_KINDS = ("exact", "bound", "unknown")


class SplitRecord(TypedDict):
    """The prompts of a split."""

    num: int
    sha256: str


class RunSettings(TypedDict, total=False):
    """What the answers of a run depend on; `fingerprints.run_settings` writes more keys than are read by name."""

    model: Mapping[str, object]
    decoding: Mapping[str, object]
    prompts: Mapping[str, SplitRecord]
    rewards: Mapping[str, Mapping[str, object]]
    methods: Mapping[str, Mapping[str, object]]
    versions: Mapping[str, object]


class RunRecord(TypedDict, total=False):
    """`run.json`: what a run is, and what a reader of its report should know."""

    format: int
    fingerprint: str
    recipe: Mapping[str, object]
    """As it was written."""
    settings: RunSettings
    machine: Mapping[str, object]
    commit: str | None
    scorers: Mapping[str, str]
    """Reward -> what its scorer is."""
    methods: Mapping[str, Mapping[str, str]]
    """Method -> summary, paper and dial."""
    notes: Mapping[str, str]
    """Term -> what the report says of it."""


class Key(NamedTuple):
    """Which answer of a run a row is."""

    method: str
    strength: Strength
    seed: int
    split: str
    prompt_index: int
    """Among the prompts of the split, from 0."""


@dataclass(frozen=True, slots=True)
class Row:
    """One answer with what it earned."""

    key: Key
    prompt: Prompt
    text: str
    token_ids: tuple[int, ...]
    finish_reason: str
    rewards: Mapping[str, float]
    """Reward -> score times its weight: higher is better."""
    kl: float | None
    """Nats an answer; what it is, `kl_kind` says."""
    kl_kind: str
    base_logprob: float | None
    acted: Mapping[str, float] = field(default_factory=dict)
    """Guide -> the share of the tokens at which it acted (`Answer.acted`); empty where that is not known."""
    num_needed: Mapping[str, int] = field(default_factory=dict)
    """Guide that selects -> how many candidates it had to look at (`Answer.num_needed`); empty where none selected, or
    nobody counted."""

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    def as_json(self) -> dict[str, object]:
        """The row as its line has it."""
        return {
            **self.key._asdict(),
            "prompt": self.prompt,
            "text": self.text,
            "token_ids": list(self.token_ids),
            "num_tokens": self.num_tokens,
            "finish_reason": self.finish_reason,
            "rewards": dict(self.rewards),
            "kl": self.kl,
            "kl_kind": self.kl_kind,
            "base_logprob": self.base_logprob,
            "acted": dict(self.acted),
            "num_needed": dict(self.num_needed),
        }

    @staticmethod
    def from_json(fields: Mapping[str, Any]) -> Row:
        """Raises KeyError or TypeError for a line that is not an answer."""
        return Row(
            Key(
                fields["method"],
                as_strength(fields["strength"]),
                fields["seed"],
                fields["split"],
                fields["prompt_index"],
            ),
            fields["prompt"],
            fields["text"],
            tuple(fields["token_ids"]),
            fields["finish_reason"],
            dict(fields["rewards"]),
            fields["kl"],
            fields["kl_kind"],
            fields["base_logprob"],
            dict(fields.get("acted", {})),
            dict(fields.get("num_needed", {})),
        )


@dataclass(frozen=True, slots=True)
class Cost:
    """What one batch of answers took."""

    method: str
    strength: Strength
    num_answers: int
    num_tokens: int
    """Tokens of the answers."""
    decoded_tokens: int
    """All that were sampled for them: drafts, rollouts and rewritten answers included."""
    seconds: float
    """Wall clock of decoding, prompts included; rewards are not."""
    peak_memory_mb: float
    batch_size: int

    def as_json(self) -> dict[str, object]:
        return asdict(self)


def as_strength(value: Any) -> Strength:
    """A strength as JSON has it."""
    return tuple(float(item) for item in value) if isinstance(value, list | tuple) else float(value)


def read_answers(path: Path) -> list[Row]:
    """The whole rows of a file of answers, each once. Raises DataError for a line that is not an answer."""
    rows: dict[Key, Row] = {}
    for number, fields in enumerate(read_lines(path)[0], start=1):
        try:
            row = Row.from_json(fields)
        except (KeyError, TypeError, ValueError) as error:
            line = json.dumps(fields, ensure_ascii=False)[:60]
            raise DataError(f"not an answer of a comparison ({error!r} in {line}).", path=path, line=number) from None
        rows.setdefault(row.key, row)
    return list(rows.values())


def read_costs(path: Path) -> list[Cost]:
    """The whole rows of a file of costs."""
    try:
        return [Cost(**{**fields, "strength": as_strength(fields["strength"])}) for fields in read_lines(path)[0]]
    except (KeyError, TypeError) as error:
        raise DataError(f"not the costs of a comparison ({error}).", path=path) from None
