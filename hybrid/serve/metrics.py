"""Counters in Prometheus' text format. One registry for each server, so that several live in one process."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0, 1.5, 2.5, 5.0, 10.0, 30.0, 60.0)


class Metrics:
    """What a server counts."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self.requests = Counter("hybrid_requests", "Answered requests", ["path", "status"], registry=registry)
        self.request_seconds = Histogram(
            "hybrid_request_seconds",
            "Seconds from request to end of answer",
            ["path"],
            buckets=SECONDS,
            registry=registry,
        )
        self.waiting = Gauge("hybrid_waiting_pictures", "Pictures in the queue", registry=registry)
        self.running = Gauge("hybrid_running_pictures", "Pictures being drawn", registry=registry)
        self.pictures = Counter("hybrid_pictures", "Pictures drawn", registry=registry)
        self.ends = Counter("hybrid_jobs", "Jobs by how they ended", ["end"], registry=registry)
        self.waited = Histogram("hybrid_waited_seconds", "Seconds in the queue", buckets=SECONDS, registry=registry)
        self.batches = Histogram(
            "hybrid_batch_pictures",
            "For each request, most pictures that shared a pass",
            buckets=(1, 2, 4, 8, 16, 32),
            registry=registry,
        )
        self.phase_seconds = Counter(
            "hybrid_phase_seconds", "Seconds of drawing, by phase, each pass counted once", ["phase"], registry=registry
        )

    def text(self) -> bytes:
        """The page that Prometheus reads."""
        return generate_latest(self.registry)
