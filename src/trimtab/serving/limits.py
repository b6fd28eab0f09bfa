"""What one client may ask of a server that others use too."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from trimtab.errors import OptionError

_MAY_BE_ZERO = ("max_queue", "max_cached_tokens", "max_stop", "max_top_logprobs", "max_guides", "drain_s")


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Each can be set by a flag of `trimtab serve` and under `limits` in its configuration."""

    max_rows: int = 16
    """Answers that are decoded at a time; the others wait."""
    max_queue: int = 128
    """Answers that may wait; one more is refused with 429."""
    max_cached_tokens: int = 0
    """Tokens that running answers may come to hold in caches, prompts included, the base's and each guide's; where one
    more does not fit, answers wait. 0: what the other limits come to, or what the machine has room for."""
    max_prompt_tokens: int = 4096
    max_new_tokens: int = 2048
    """Tokens of an answer; a request that names no number gets `default_new_tokens`."""
    default_new_tokens: int = 512
    max_n: int = 8
    """Answers to one request, several prompts of a completion counted."""
    max_top_logprobs: int = 20
    max_stop: int = 16
    """Stop strings of a request."""
    max_guides: int = 8
    """Guides that one request may run."""
    max_body_bytes: int = 1 << 20
    max_connections: int = 1000
    """Connections that are open at a time; at one more, whoever has kept the server waiting longest is dropped."""
    head_s: float = 10.0
    """How long a connection may take to send the head of a request, from when it was opened or last answered."""
    body_s: float = 30.0
    """How long a request's body may take to come in."""
    unread_s: float = 60.0
    """How long a client may leave what it is sent unread."""
    max_weight: float = 100.0
    """The largest size of a weight."""
    timeout_s: float = 600.0
    """An answer that has not ended after so long, waiting included, ends with an error."""
    drain_s: float = 30.0
    """How long running answers may go on once the server is told to end."""
    prefill_chunk: int = 256
    """Tokens of prompts in one step, so that a long prompt does not hold up the others."""

    def __post_init__(self) -> None:
        """Raise OptionError for a limit that lets nothing through."""
        for item in fields(self):
            value = getattr(self, item.name)
            if not math.isfinite(value) or value < 0 or (value == 0 and item.name not in _MAY_BE_ZERO):
                accepted = "of at least" if item.name in _MAY_BE_ZERO else "above"
                raise OptionError(f"{item.name} is {value}; give a number {accepted} 0.")
