"""What the server counts, for Prometheus."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)

if TYPE_CHECKING:
    from structsam_export.predict.image_cache import ImageCache
    from structsam_export.serve.worker import Worker

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Measures:
    """Counters and histograms in a registry of their own: several servers may live in a process."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)  # memory and CPU time, on Linux
        self.encode = Histogram(
            "structsam_encode_seconds",
            "Preprocessing and encoder, a photo",
            buckets=_SECONDS,
            registry=self._registry,
        )
        self.decode = Histogram(
            "structsam_decode_seconds",
            "A call of the decoder",
            buckets=_SECONDS,
            registry=self._registry,
        )
        self.everything = Histogram(
            "structsam_everything_seconds",
            "Masks of everything, a photo",
            buckets=_SECONDS,
            registry=self._registry,
        )
        self.decoded_together = Histogram(
            "structsam_requests_per_decode",
            "Requests that shared a call of the decoder",
            buckets=(1, 2, 4, 8, 16, 32, 64),
            registry=self._registry,
        )
        self.requests = Counter(
            "structsam_requests",
            "Answers by route and status",
            ["method", "route", "status"],
            registry=self._registry,
        )
        self.latency = Histogram(
            "structsam_request_seconds",
            "From the request's head to its answer",
            ["method", "route"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        self.lookups = Counter(
            "structsam_cache_lookups", "Photos sent: hit, saved or miss", ["found"],
            registry=self._registry,
        )  # fmt: skip
        self.evicted = Counter(
            "structsam_cache_evictions", "Images that left memory", registry=self._registry
        )

    def watch(self, cache: ImageCache, workers: Mapping[str, Worker]) -> None:
        """Tell how full the cache and the queues are whenever somebody asks."""
        size = Gauge("structsam_cache_bytes", "Memory of kept images", registry=self._registry)
        size.set_function(lambda: cache.bytes)
        images = Gauge("structsam_cache_images", "Images in memory", registry=self._registry)
        images.set_function(lambda: len(cache))
        queue = Gauge("structsam_queue", "Jobs that wait", ["worker"], registry=self._registry)
        for name, worker in workers.items():
            queue.labels(name).set_function(lambda worker=worker: worker.waiting)  # type: ignore[misc]

    def text(self) -> bytes:
        """Return all of it in Prometheus' text format."""
        return bytes(generate_latest(self._registry))
