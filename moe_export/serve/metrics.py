"""Counts and times of a server for Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """Metrics of one server, in a registry of their own.

    Attributes:
        requests: Requests by route and status.
        prompt_tokens: Tokens of prompts.
        new_tokens: Tokens that were generated.
        request_s: Time from a request to the end of its answer, in seconds.
        first_token_s: Time from a request to its first token, in seconds.
    """

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self.requests = Counter(
            "moe_export_requests", "Requests.", ("route", "status"), registry=registry
        )
        self.prompt_tokens = Counter(
            "moe_export_prompt_tokens", "Tokens of prompts.", registry=registry
        )
        self.new_tokens = Counter(
            "moe_export_generated_tokens", "Generated tokens.", registry=registry
        )
        self.request_s = Histogram(
            "moe_export_request_seconds", "Time to a whole answer.", registry=registry,
            buckets=SECONDS,
        )  # fmt: skip
        self.first_token_s = Histogram(
            "moe_export_first_token_seconds", "Time to the first token.", registry=registry,
            buckets=SECONDS,
        )  # fmt: skip
        self._waiting = Gauge(
            "moe_export_waiting_sequences", "Sequences that wait for a row.", registry=registry
        )
        self._running = Gauge(
            "moe_export_running_sequences", "Sequences that have a row.", registry=registry
        )
        self._step_rows = Histogram(
            "moe_export_step_sequences", "Sequences that shared a step of decoding.",
            registry=registry, buckets=ROWS,
        )  # fmt: skip
        self._idle_rows = Counter(
            "moe_export_idle_rows", "Rows that a step ran in vain.", registry=registry
        )

    def on_turn(self, waiting: int, running: int) -> None:
        """See `moe_export.serve.engine.Watcher`."""
        self._waiting.set(waiting)
        self._running.set(running)

    def on_step(self, rows: int, tokens: int) -> None:
        """See `moe_export.serve.engine.Watcher`."""
        self._step_rows.observe(tokens)
        self._idle_rows.inc(rows - tokens)

    def text(self) -> bytes:
        """All metrics in Prometheus' text format."""
        text: bytes = generate_latest(self._registry)
        return text
