"""What the server counts, for Prometheus."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Metrics:
    """The counters of one server, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        registry = self.registry
        self.answers = Counter("trimtab_answers", "Answers that ended, by why.", ["finish_reason"], registry=registry)
        self.requests = Counter(
            "trimtab_http_requests", "HTTP requests, by route and status.", ["route", "status"], registry=registry
        )
        self.prompt_tokens = Counter("trimtab_prompt_tokens", "Tokens of prompts that began.", registry=registry)
        self.tokens = Counter("trimtab_generated_tokens", "Tokens generated.", registry=registry)
        self.steps = Counter("trimtab_decoding_steps", "Steps of the decoding loop.", registry=registry)
        self.guide_rows = Counter("trimtab_guide_forwards", "Tokens that a guide scored.", ["guide"], registry=registry)
        self.queue = Gauge("trimtab_queue_length", "Answers that wait for a row.", registry=registry)
        self.batch = Gauge("trimtab_batch_size", "Answers that are being decoded.", registry=registry)
        self.first_token = Histogram(
            "trimtab_time_to_first_token_seconds",
            "From request to first token.",
            buckets=_SECONDS,
            registry=registry,
        )
        self.between_tokens = Histogram(
            "trimtab_time_between_tokens_seconds", "From a token to the next one.", buckets=_SECONDS, registry=registry
        )

    def watch(self, num_running: Callable[[], int], num_waiting: Callable[[], int]) -> None:
        """Where the gauges' values come from: they are asked at each scrape."""
        self.batch.set_function(num_running)
        self.queue.set_function(num_waiting)

    def page(self) -> bytes:
        """The exposition format."""
        return generate_latest(self.registry)
