"""MetricGold end to end on this machine: `make demo`, or `make demo IMAGES="a.jpg folder"` with images of your own.

Renders the synthetic data sets while a Prefect server starts, then runs the flows train-metricgold (with
promotion) and batch-depth in this process, and writes reports/demo.html and reports/demo.json. What it starts
it ends: with the work, with a failure, and with Ctrl-C. What is up to date is not made again.
"""

import atexit
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import click

from flows.child_processes import DVC, end, end_children, environment, run_child

SERVER_SECONDS = 180  # to wait for it; a cold start takes 20 on two cores
PREFECT_HOME = Path(".prefect")


@click.command()
@click.argument("images", nargs=-1, type=click.Path(exists=True, path_type=Path))
def main(images: tuple[Path, ...]) -> None:
    """Run the demo; IMAGES are photographs or folders of your own to predict on as well."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C
    started = time.monotonic()
    try:
        summary = run_end_to_end(list(images), start_prefect())
    except KeyboardInterrupt:
        raise click.ClickException("stopped; `make demo` resumes where this run stopped") from None
    except Exception as error:
        raise click.ClickException(f"the demo did not finish: {error}") from error
    finally:
        end_children()
    minutes = (time.monotonic() - started) / 60
    zero_shot = ", ".join(f"{name} {row['abs_rel']:.3f}" for name, row in summary["benchmarks"].items()) or "none"
    click.echo(f"""
Done in {minutes:.1f} minutes. On held-out scenes: AbsRel {summary["abs_rel"]:.3f}, delta1 {summary["delta1"]:.3f}
(best constant depth: AbsRel {summary["constant_abs_rel"]:.3f}; VAE floor: {summary["vae_floor_abs_rel"]:.3f}).
Zero-shot: {zero_shot}.
Registered as metricgold/{summary["model_version"]}, alias {summary["alias"]}; \
{summary["images_done"]} images done, {summary["images_failed"]} failed.

Look:    reports/demo.html
Next:    .venv/bin/metricgold predict PHOTO.jpg depth/ --model models:/metricgold@champion
         make demo IMAGES="PHOTO.jpg FOLDER"
         .venv/bin/dvc dag; .venv/bin/dvc metrics show; .venv/bin/dvc plots show
         .venv/bin/mlflow ui --backend-store-uri sqlite:///mlflow.db
         PREFECT_HOME=.prefect .venv/bin/prefect server start""")


def start_prefect() -> str:
    """URL of the API: PREFECT_API_URL, or a server of our own, which is still starting."""
    if url := os.environ.get("PREFECT_API_URL"):
        return url
    PREFECT_HOME.mkdir(exist_ok=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}/api"
    # Before Prefect is imported in this process.
    os.environ |= {"PREFECT_API_URL": url, "PREFECT_HOME": str(PREFECT_HOME.resolve())}
    os.environ |= {"PREFECT_SERVER_ANALYTICS_ENABLED": "false", "DO_NOT_TRACK": "true"}
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    with (PREFECT_HOME / "server.log").open("w") as log:
        # A session of its own: Ctrl-C reaches the flow first, which still has to report to the server.
        server = subprocess.Popen(
            command, env=environment(), stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
    # At exit the last registered goes first: Prefect, imported after this, sends its last lines to a living server.
    atexit.register(end, server)
    return url


def wait_for_server(url: str) -> None:
    """Return once the server at `url` answers. TimeoutError after SERVER_SECONDS."""
    deadline = time.monotonic() + SERVER_SECONDS
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=5):  # noqa: S310  our own or the user's server
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    raise TimeoutError(f"no Prefect server at {url} after {SERVER_SECONDS} s; see {PREFECT_HOME}/server.log")


def run_end_to_end(images: list[Path], url: str) -> dict[str, Any]:
    """Render, train, promote and predict with the server at `url`; returns what reports/demo.json then holds."""
    seconds = render_datasets()
    waited = time.monotonic()
    wait_for_server(url)
    seconds["wait for Prefect"] = time.monotonic() - waited
    click.echo(f"Prefect: {url.removesuffix('/api')}")

    from demo.report import DEPTH, IMAGES, collect_demo_images, write_demo_report
    from flows.batch_depth import batch_depth
    from flows.dvc_stages import SECONDS
    from flows.train_metricgold import train_metricgold
    from metricgold.params import Folders, load_params
    from metricgold.storage import read_json

    trained = train_metricgold(promote=True)
    seconds = (read_json(SECONDS) if SECONDS.is_file() else {}) | seconds

    started = time.monotonic()
    collect_demo_images(Folders().raw_of(load_params().datasets), IMAGES, images)
    predicted = batch_depth(str(IMAGES), str(DEPTH))
    seconds["batch-depth"] = time.monotonic() - started
    write_demo_report(
        Path.cwd(),
        seconds,
        registered=trained["registered"],
        promoted=trained["promoted"],
        predict_summary=predicted,
        benchmarks=trained["benchmarks"],
    )
    return read_json(Folders().reports / "demo.json")


def render_datasets() -> dict[str, float]:
    """Render the synthetic data sets side by side while the server starts; returns seconds per stage."""
    from metricgold.params import load_params

    names = [f"synthesize@{name}" for name in load_params().datasets]

    def reproduce(name: str) -> float:
        started = time.monotonic()
        run_child([*DVC, "repro", "--quiet", "--single-item", name], lambda line: click.echo(f"{name} | {line}"))
        return time.monotonic() - started

    with ThreadPoolExecutor(len(names)) as pool:
        futures = [pool.submit(reproduce, name) for name in names]
        try:
            return {name: future.result() for name, future in zip(names, futures, strict=True)}
        except BaseException:
            end_children()
            raise


if __name__ == "__main__":
    main()
