"""What one client may ask of a server that others use too."""

from __future__ import annotations

from dataclasses import dataclass

from trimtab.fields import check, described

OF_A_REQUEST = (
    *(
        "max_prompt_tokens",
        "max_new_tokens",
        "default_new_tokens",
        "max_n",
        "max_top_logprobs",
        "max_stop",
        "max_guides",
    ),
    *("max_prompt_guides", "max_sentence_tokens", "max_weight", "max_body_bytes", "timeout_s"),
)
"""Limits that a request may meet by what it asks for: `/v1/models` says them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Each can be set by a flag of `trimtab serve` and under `limits` in its configuration."""

    max_rows: int = described(16, "answers decoded at a time; the others wait", low=1)
    max_queue: int = described(128, "answers that may wait; one more is refused with 429", low=0)
    max_cached_tokens: int = described(
        0,
        "tokens in the caches of running answers, prompts and guides' included; where one more does not fit, answers "
        "wait",
        low=0,
        note="0: what the other limits come to, or what fits",
    )
    max_prompt_tokens: int = described(4096, "tokens of a prompt", low=1)
    max_new_tokens: int = described(2048, "tokens of an answer", low=1)
    default_new_tokens: int = described(
        512, "tokens of an answer to a request that does not say, as far as {max_new_tokens} allows", low=1
    )
    max_n: int = described(8, "answers to one request, several prompts of a completion counted", low=1)
    max_top_logprobs: int = described(20, "top log-probabilities of a token", low=0)
    max_stop: int = described(16, "stop strings of a request", low=0)
    max_guides: int = described(8, "guides that one request may run", low=0)
    max_prompt_guides: int = described(
        2, "sentences that one request may bring as guides, where the server takes any", low=1
    )
    max_sentence_tokens: int = described(256, "tokens of a sentence that a request brings", low=1)
    max_body_bytes: int = described(1 << 20, "bytes of a body; more is refused with 413", low=1)
    max_connections: int = described(
        1000,
        "connections that are open at a time; at one more, whoever has kept the server waiting longest is dropped",
        low=1,
    )
    head_s: float = described(
        10.0, "seconds for a request's head to come in, from when the connection was opened or last answered", above=0
    )
    body_s: float = described(30.0, "seconds for a request's body to come in", above=0)
    unread_s: float = described(60.0, "seconds that a client may leave its answer unread", above=0)
    max_weight: float = described(100.0, "the largest weight, either way", above=0)
    timeout_s: float = described(600.0, "seconds for an answer, waiting included; then it ends with an error", above=0)
    drain_s: float = described(30.0, "seconds that running answers get when the server is told to end", low=0)
    prefill_chunk: int = described(
        256, "tokens of prompts fed in one step, so that a long prompt does not hold up the others", low=1
    )

    def __post_init__(self) -> None:
        """Raise OptionError for a limit that lets nothing through. What a request gets that does not say how much is at
        most what one may ask for."""
        check(self)
        object.__setattr__(self, "default_new_tokens", min(self.default_new_tokens, self.max_new_tokens))
