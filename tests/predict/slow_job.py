"""A batch job as a process of its own, slow enough to be stopped or killed on the way.

python tests/predict/slow_job.py SOURCE OUT [--flush-s SECONDS] [--halt-in-pictures] [--exit-on-sigterm]
"""

import argparse
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from metricgold.params.sections import Predict
from metricgold.predict import receipt
from metricgold.predict.stage import predict_all
from metricgold.storage import buckets
from metricgold.storage.sigterm import exit_on_sigterm
from tests.support.pipes import FakePipe


class SlowPipe(FakePipe):
    def __call__(self, image, **options):
        time.sleep(0.1)
        return super().__call__(image, **options)


def halt_in_pictures() -> None:
    """Have every PNG stop after its first block, until the process is killed."""
    whole = buckets._blocks

    def half(data) -> Iterator[bytes]:
        yield from whole(data)
        if data.startswith(b"\x89PNG"):
            time.sleep(60)

    buckets._blocks = half


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("source")
    parser.add_argument("out")
    parser.add_argument("--flush-s", type=float, default=0.0, help="between savings of the receipt")
    parser.add_argument("--halt-in-pictures", action="store_true")
    parser.add_argument("--exit-on-sigterm", action="store_true")
    asked = parser.parse_args()
    receipt.FLUSH_SECONDS = asked.flush_s
    if asked.halt_in_pictures:
        halt_in_pictures()
    params = Predict(num_inference_steps=2, ensemble_size=2, batch_size=2, num_threads=2, gallery=0)
    with exit_on_sigterm() if asked.exit_on_sigterm else nullcontext():
        predict_all(params, Path("no-such-model"), asked.source, asked.out, model_name="metricgold/1", pipe=SlowPipe())


if __name__ == "__main__":
    main()
