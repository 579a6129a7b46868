"""What a prediction costs on this machine: measured in a process of its own, whose memory is the model's alone.

python -m metricgold.registry.cost: reads {"folder", "predict"} as JSON, writes {"latency_s", "memory_gb"}.
"""

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

from metricgold.params import Predict

HEIGHT, WIDTH, ROUNDS = 480, 640, 3


def measure_cost(folder: Path, predict: Predict) -> dict[str, float]:
    """latency_s, the median for one image of 640 x 480 pixels once the model is warm, and memory_gb, the peak.

    A one-step model that the params do not fit is measured by the preset one-step. Raises ValueError with the last
    line of a process that failed.
    """
    asked = json.dumps({"folder": str(folder.resolve()), "predict": predict.model_dump(mode="json")})
    command = [sys.executable, "-m", "metricgold.registry.cost"]
    done = subprocess.run(command, input=asked, capture_output=True, text=True, check=False)
    if done.returncode:
        said = done.stderr.strip().splitlines()[-1:] or [f"it ended with code {done.returncode}"]
        raise ValueError(f"{folder}: its cost could not be measured: {said[0]}")
    answer: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return answer


def cost_here(folder: Path, predict: Predict) -> dict[str, float]:
    """As measure_cost, in this process, whose memory counts as a whole."""
    import numpy as np

    from metricgold.model import digest_model, peak_memory_gb
    from metricgold.predict import BatchJob

    job = BatchJob(predict, "", "", folder, folder.name, digest_model(folder))
    pipe = job.load_model()
    job = job.fitted_to(pipe)
    job.check_model(pipe)
    image = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    times_s = []
    for _ in range(1 + ROUNDS):  # the first one warms up
        start = time.perf_counter()
        pipe([image], intrinsics=[None], **job.options)
        times_s.append(time.perf_counter() - start)
    return {"latency_s": statistics.median(times_s[1:]), "memory_gb": peak_memory_gb()}


if __name__ == "__main__":
    asked = json.loads(sys.stdin.read())
    print(json.dumps(cost_here(Path(asked["folder"]), Predict.model_validate(asked["predict"]))))
