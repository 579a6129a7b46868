"""What Prometheus is told of a server."""

from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from metricgold.model import peak_gpu_memory_mb

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Metrics:
    """The figures of one server, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        of_server: dict[str, Any] = {"registry": self.registry, "namespace": "metricgold"}
        self.requests = Counter("requests", "Requests of depth, by the status of the answer.", ["status"], **of_server)
        self.seconds = Histogram(
            "request_seconds", "From the request's head to the answer's.", buckets=SECONDS, **of_server
        )
        self.left = Counter("clients_left", "Requests whose client left before the answer.", **of_server)
        self.in_flight = Gauge("requests_in_flight", "Requests of depth that are not answered yet.", **of_server)
        self.batch_images = Histogram(
            "batch_images", "Images of a batch.", buckets=(1, 2, 4, 8, 16, 32, 64), **of_server
        )
        self.model_seconds = Histogram(
            "model_seconds", "Seconds of a batch in the model.", buckets=SECONDS, **of_server
        )
        self.reloads = Counter("reloads", "Looks at the alias that found another version.", ["outcome"], **of_server)
        memory = Gauge("gpu_memory_peak_bytes", "The most that the model's tensors took on a GPU at once.", **of_server)
        memory.set_function(lambda: 1e6 * (peak_gpu_memory_mb() or 0.0))
        self.model = Gauge("model_info", "1 for the model that is served.", ["name", "digest"], **of_server)

    def name_model(self, name: str, digest: str) -> None:
        """From now on that model is served."""
        self.model.clear()
        self.model.labels(name, digest).set(1)

    def text(self) -> bytes:
        """In Prometheus' text format."""
        return generate_latest(self.registry)
