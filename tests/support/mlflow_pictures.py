"""The manual's pictures of MLflow's pages: python -m tests.support.mlflow_pictures http://127.0.0.1:5000

Of version 1 and its run on a server that shows the demo's mlflow.db, such as `mlflow server --port 5000` in its folder.
"""

import io
import sys
from pathlib import Path

import mlflow
from PIL import Image

from tests.support import ROOT
from tests.support.browser import Browser, find_browser
from tests.support.waiting import wait_until

WIDTH, HEIGHT = 1500, 800
PAGE = (198, 0, 1112, 800)  # left, top, right, bottom: without the menu and the assistant beside it
NUM_COLOURS = 64  # pages of text, 30 to 50 kB


def main(address: str, out: Path = ROOT / "docs/pictures") -> None:
    """Write mlflow-version.png and mlflow-run.png."""
    version = mlflow.MlflowClient(address).get_model_version("metricgold", "1")
    run = mlflow.MlflowClient(address).get_run(version.run_id).info
    pages = {
        "mlflow-version": (f"models/metricgold/versions/{version.version}", "evaluation_digest"),
        "mlflow-run": (f"experiments/{run.experiment_id}/runs/{run.run_id}", "Registered models"),
    }
    out.mkdir(exist_ok=True)
    with Browser(find_browser() or "chromium") as browser:
        for name, (path, last) in pages.items():
            browser.open("about:blank")  # a page that only differs behind its # is not loaded again
            browser.open(f"{address}/#/{path}", width=WIDTH, height=HEIGHT)
            wait_until(lambda last=last: last in browser.run("document.body.innerText"))
            browser.photograph(out / f"{name}.png")
            picture = Image.open(io.BytesIO((out / f"{name}.png").read_bytes())).convert("RGB").crop(PAGE)
            picture.quantize(NUM_COLOURS, dither=Image.Dither.NONE).save(out / f"{name}.png", optimize=True)


if __name__ == "__main__":
    main(*sys.argv[1:2])
