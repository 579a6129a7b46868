"""The figures of a batch job for Prometheus, which a job that ends has no server to ask for."""

import logging
import time
from pathlib import Path
from typing import Any

from metricgold.extras import naming_the_extra
from metricgold.storage import make_folder, write_aside

log = logging.getLogger(__name__)

WAITING, WHAT_WAITS = "metricgold_batch_images_waiting", "Files that are listed and have no row yet"


class MetricsFile:
    """A file for the textfile collector of Prometheus' node_exporter; its name should end in .prom.

    Made before the job, so that what is missing is said then: ValueError without the extra `serve`, OSError where its
    folder cannot be made.
    """

    def __init__(self, path: Path) -> None:
        with naming_the_extra():
            import prometheus_client  # noqa: F401
        make_folder(path.parent)
        self.path = path

    def write(self, summary: dict[str, Any]) -> None:
        """Replace the file by the figures of the run that has ended with this summary."""
        from prometheus_client import CollectorRegistry, Gauge, write_to_textfile

        registry, output = CollectorRegistry(), summary["output"]

        def tell(name: str, what: str, values: dict[str, float], label: str | None = None) -> None:
            labels = ["output", *([label] if label else [])]
            gauge = Gauge(f"metricgold_batch_{name}", f"{what} of the last run.", labels, registry=registry)
            for of, value in values.items():
                gauge.labels(output, *([of] if label else [])).set(value)

        done = summary["images_done"] - summary["images_kept"]
        images = {"done": done, **{word: summary[f"images_{word}"] for word in ("kept", "failed", "skipped")}}
        tell("images", "Images", images, "status")
        if (waiting := summary["images_waiting"]) is not None:
            tell("images_waiting", WHAT_WAITS, {"": waiting})
        tell("failures", "Failed images", summary["reasons"], "reason")
        tell("step_seconds", "Seconds by step, all threads together,", summary["seconds_by_step"], "step")
        tell("seconds", "Wall time", {"": summary["seconds"]})
        tell("drift_warnings", "Figures that drifted", {"": len(summary["drift"])})
        tell("over_budget", "1 for too many failures", {"": float(summary["over_budget"] is not None)})
        tell("end_time_seconds", "Unix time of the end", {"": time.time()})
        if (memory_mb := summary["gpu_memory_mb"]) is not None:
            tell("gpu_memory_bytes", "Most memory of the GPU", {"": 1e6 * memory_mb})
        write_to_textfile(str(self.path), registry)

    def write_waiting(self, output: str, waiting: int) -> None:
        """Say what waits while a job works; the other figures stay those of the run before. No job fails by it."""
        from prometheus_client import CollectorRegistry, Gauge, generate_latest

        registry = CollectorRegistry()
        Gauge(WAITING, f"{WHAT_WAITS}.", ["output"], registry=registry).labels(output).set(waiting)
        try:
            earlier = self.path.read_text().splitlines(keepends=True) if self.path.exists() else []
            others = "".join(line for line in earlier if WAITING not in line)
            with write_aside(self.path, durable=False) as aside:
                aside.write_text(others + generate_latest(registry).decode())
        except OSError as error:
            log.warning("%s does not say what waits: %s", self.path, error)
