"""The figures of a batch job for Prometheus, which a job that ends has no server to ask for."""

import time
from pathlib import Path
from typing import Any

from metricgold.extras import naming_the_extra
from metricgold.storage import make_folder


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
        tell("failures", "Failed images", summary["reasons"], "reason")
        tell("step_seconds", "Seconds by step, all threads together,", summary["seconds_by_step"], "step")
        tell("seconds", "Wall time", {"": summary["seconds"]})
        tell("drift_warnings", "Figures that drifted", {"": len(summary["drift"])})
        tell("over_budget", "1 for too many failures", {"": float(summary["over_budget"] is not None)})
        tell("end_time_seconds", "Unix time of the end", {"": time.time()})
        if (memory_mb := summary["gpu_memory_mb"]) is not None:
            tell("gpu_memory_bytes", "Most memory of the GPU", {"": 1e6 * memory_mb})
        write_to_textfile(str(self.path), registry)
