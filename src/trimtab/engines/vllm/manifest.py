"""What a packed directory says of itself: the entry `trimtab` of its config.json."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from trimtab.errors import CheckpointError
from trimtab.mixing.forms import FORMED_KINDS, form_of

FORMAT = 2
READABLE = (1, 2)
"""Format 1 knew no forms and no bases but the served one: a guide in it has the form of its kind."""
KEY = "trimtab"
ARCHITECTURE = "TrimtabForCausalLM"
"""Guides that tilt."""
AGENT_ARCHITECTURE = "TrimtabAgentForCausalLM"
"""An accept-reject agent, which has an engine of its own."""
LORA_WAYS = ("shared", "merged")
"""How a guide that is a LoRA adapter of the base may run."""


@dataclass(frozen=True, slots=True)
class ServedGuide:
    """A guide in a packed directory."""

    name: str
    kind: str
    """`arm`, `policy` or `agent`."""
    path: str
    """Its own directory; nothing of it is copied."""
    way: str
    """How it runs: `shared`, a LoRA on rows of the base's own pass; `merged`, a LoRA added to a second copy of the
    base's weights at load time; `model`, a model of its own; `head`, on the base's states."""
    weight: float = 0.0
    """In a request that does not name it."""
    form: str | None = None
    """`product` or `shift` (`trimtab.mixing.forms`); None for what is not a language model."""
    base: str | None = None
    """The directory of the model that it was trained on, where that is not the served base: an adapter runs on it, and
    a shift is measured from it."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """A base and its guides."""

    base: str
    """The base's directory."""
    architectures: tuple[str, ...]
    """The base's own."""
    guides: tuple[ServedGuide, ...]
    nameless: tuple[tuple[int, int], ...] = ()
    """Ranges [first, end) of ids that no token has, never to be sampled."""

    @property
    def weights(self) -> dict[str, float]:
        """Guide -> its weight in a request that does not name it."""
        return {guide.name: guide.weight for guide in self.guides}

    @property
    def forms(self) -> dict[str, str | None]:
        """Guide -> its form."""
        return {guide.name: guide.form for guide in self.guides}

    def base_config(self, config: Any) -> Any:
        """The base's own config: a copy of a packed directory's under the base's architectures."""
        plain = copy.deepcopy(config)
        plain.architectures = list(self.architectures)
        return plain

    def as_config(self) -> dict[str, Any]:
        """The entry of config.json."""
        content = asdict(self)
        return {"format": FORMAT, **content}

    @staticmethod
    def of(config: Any) -> Manifest:
        """Read from a config (an object with the entry as an attribute, or a mapping). Raises CheckpointError."""
        entry = config.get(KEY) if isinstance(config, Mapping) else getattr(config, KEY, None)
        if not isinstance(entry, Mapping):
            raise CheckpointError(
                "This is not a packed directory: config.json has no `trimtab`. Write one with `trimtab vllm pack`."
            )
        if entry.get("format") not in READABLE:
            raise CheckpointError(
                f"This directory was packed in format {entry.get('format')!r}; this version reads "
                f"{' and '.join(map(str, READABLE))}. Pack it again."
            )
        guides = tuple(ServedGuide(**{"form": _form_of_kind(guide["kind"]), **guide}) for guide in entry["guides"])
        return Manifest(
            base=entry["base"],
            architectures=tuple(entry["architectures"]),
            guides=guides,
            nameless=tuple((int(first), int(end)) for first, end in entry.get("nameless", ())),
        )


def _form_of_kind(kind: str) -> str | None:
    return form_of({}, kind) if kind in FORMED_KINDS else None
