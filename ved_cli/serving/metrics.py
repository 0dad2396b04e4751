"""`Metrics`: what a server tells Prometheus."""

from collections.abc import Callable, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Metrics:
    """Counters of one server, in a registry of its own."""

    def __init__(self, sizes: Sequence[int]) -> None:
        """`sizes`: the batch sizes that are compiled."""
        self.registry = CollectorRegistry()
        self._requests = Counter("ved_requests", "Answered requests", ["path", "status"], registry=self.registry)
        self._seconds = Histogram(
            "ved_request_seconds", "From a request's head to its answer's end", ["path"], buckets=SECONDS,
            registry=self.registry,
        )  # fmt: skip
        self._images = Counter("ved_images", "Images by what became of them", ["outcome"], registry=self.registry)
        self._batches = Histogram("ved_batch_images", "Images of a batch", buckets=sizes, registry=self.registry)
        self._batch_seconds = Histogram("ved_batch_seconds", "Time of a batch", buckets=SECONDS, registry=self.registry)

    def watch(self, name: str, text: str, value: Callable[[], float]) -> None:
        """A number that is looked up when it is asked for."""
        Gauge(name, text, registry=self.registry).set_function(value)

    def request(self, path: str, status: int, seconds: float) -> None:
        """A request was answered."""
        self._requests.labels(path, str(status)).inc()
        self._seconds.labels(path).observe(seconds)

    def images(self, outcome: str, count: int = 1) -> None:
        """Images were read, or bad."""
        if count:
            self._images.labels(outcome).inc(count)

    def batch(self, images: int, seconds: float) -> None:
        """A batch was read."""
        self._batches.observe(images)
        self._batch_seconds.observe(seconds)

    def text(self) -> bytes:
        """All of it, in Prometheus' format."""
        return generate_latest(self.registry)
