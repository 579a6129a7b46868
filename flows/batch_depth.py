"""Flow `batch-depth`: metres for a folder or a bucket, by a registered model."""

import re
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, Literal

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from pydantic import Field

from flows.child_processes import ChildFailed, ask_child
from flows.dvc_stages import RETRY_JITTER
from flows.forms import Place
from flows.gpu_slots import gpu_slot
from flows.hooks import HOOKS
from flows.run_page import StagePage
from flows.run_watch import watched
from metricgold.params import Output, Preset, Windows
from metricgold.storage import PROGRESS_FILE, Unreachable

RETRY_DELAYS_S = [60, 300, 900]  # beyond what a job itself tries again


def is_store_away(_task: Any, _run: Any, state: Any) -> bool:
    """Whether a job ended because its S3 server cannot be reached; what else ends it would end it again."""
    return isinstance(state.data, ChildFailed) and state.data.code == Unreachable.exit_code


@task(
    task_run_name="predict",
    cache_policy=NO_CACHE,
    retries=len(RETRY_DELAYS_S),
    retry_delay_seconds=RETRY_DELAYS_S,
    retry_jitter_factor=RETRY_JITTER,
    retry_condition_fn=is_store_away,
)
def predict(images: str, output: str, model: str, options: dict[str, Any]) -> dict[str, Any]:
    """One job in a child process; `options` are those of `metricgold predict`, lists for those that repeat."""
    log = get_run_logger().info
    listed = {name: value if isinstance(value, list) else [value] for name, value in options.items()}
    words = [f"--{name}={value}" for name, values in listed.items() for value in values if value is not None]
    is_remote = "://" in (options["dask"] or "")  # then it needs no GPU of this machine
    slot: AbstractContextManager[dict[str, str]] = nullcontext({}) if is_remote else gpu_slot(log)
    with slot as variables, TemporaryDirectory() as scratch:
        page = StagePage("predict", Path(scratch) / "progress.json", log)
        # What begins with a dash would be taken for an option.
        places = [f"./{place}" if place.startswith("-") else place for place in (images, output)]
        command = ["metricgold", "predict", *places, "--model", model, *words, "--json"]
        try:
            return ask_child(command, page.log_line, Path(), **variables | {PROGRESS_FILE: str(page.progress_file)})
        finally:
            page.refresh()


def table(rows: list[tuple[Any, ...]]) -> str:
    """Rows as Markdown, of which the first is the head."""
    lines = ["| " + " | ".join(map(str, row)) + " |" for row in rows]
    return "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:]])


def by_day(days: list[dict[str, Any]]) -> str:
    """What the runs of each day did, the newest first: one page for each output, and so for each schedule."""
    names = ["day", "runs", "images_done", "images_failed", "images_skipped", "seconds", "drift", "over_budget"]
    rows = [tuple("" if day[name] is None else day[name] for name in names) for day in reversed(days)]
    return table([tuple(name.replace("_", " ") for name in names), *rows])


def slug(place: str) -> str:
    """A place as the key of an artifact may hold it."""
    return re.sub("[^a-z0-9]+", "-", place.lower()).strip("-")


@flow(name="batch-depth", **HOOKS)
@watched
def batch_depth(
    input: Place,
    output: Place,
    model: Place = "models:/metricgold@champion",
    preset: Preset | None = None,
    num_inference_steps: Annotated[int, Field(ge=1, le=1000)] | None = None,
    ensemble_size: Annotated[int, Field(ge=1, le=100)] | Literal["auto"] | None = None,
    seed: Annotated[int, Field(ge=0)] | None = None,
    windows: Windows | None = None,
    outputs: Annotated[list[Output], Field(min_length=1)] | None = None,
    include: list[str] | None = None,
    exclude: list[str] | None = None,
    first: list[str] | None = None,
    max_images: Annotated[int, Field(ge=1)] | None = None,
    max_seconds: Annotated[float, Field(gt=0)] | None = None,
    max_failed: Annotated[int, Field(ge=0)] | Annotated[float, Field(ge=0, le=1)] | None = None,
    calibration: str | None = None,
    intrinsics: str | None = None,
    focal_px: Annotated[float, Field(gt=0)] | None = None,
    focal_35mm: Annotated[float, Field(gt=0)] | None = None,
    fov_deg: Annotated[float, Field(gt=0, lt=180)] | None = None,
    dask: str | None = None,
    metrics_file: str | None = None,
) -> dict[str, Any]:
    """Depth and its companion files for every image of `input`, with one receipt.

    Command: prefect deployment run batch-depth -p input=s3://bucket/photos -p output=s3://bucket/depth
    Reads:   images of a file, folder, glob or s3://bucket/prefix; the model; params.yaml (predict)
    Writes:  output (a folder or s3://): files per image and receipt.jsonl, which lets a second run skip finished images
    Hours:   images x steps x ensemble / (what the device does an hour); a bad image is a row, not a failure

    Args:
        input: Images: a file, a folder, a glob or s3://bucket/prefix.
        output: A folder or s3://bucket/prefix for the files and receipt.jsonl.
        model: A folder, models:/name@alias or models:/name/version.
        preset: Steps and runs together; as params.yaml has it (predict) if not given.
        num_inference_steps: Denoising steps, in place of the preset's.
        ensemble_size: Runs for each image, in place of the preset's; auto has more of them where they differ.
        seed: Of the noise; as params.yaml has it if not given.
        windows: Whether frames much wider or taller than those of training are cut into windows.
        outputs: Files to write for each image; as params.yaml has it if not given.
        include: Globs over keys: only these.
        exclude: Globs over keys: none of these.
        first: What keys begin with: these images come first, in this order.
        max_images: Images that this run begins; the next run continues.
        max_seconds: How long this run begins images, counted from the first one; the next run continues.
        max_failed: Images that may fail, a number (20) or a share (0.01), before the run does; else all but one.
        calibration: A file of `metricgold calibrate`, by which depth is corrected.
        intrinsics: Camera of all images, a JSON file; without a camera here, cameras.csv beside them, else EXIF.
        focal_px: Camera of all images, by its focal length in pixels.
        focal_35mm: Camera of all images, by its focal length on 35 mm film.
        fov_deg: Camera of all images, by the degrees over their longer side.
        dask: tcp://host:port of a Dask scheduler, or local:N processes here.
        metrics_file: A file of the worker's machine for figures of the run, as Prometheus' node_exporter reads it.
    """
    options: dict[str, Any] = {"preset": preset, "steps": num_inference_steps, "ensemble": ensemble_size, "seed": seed}
    options |= {"write": outputs, "include": include, "exclude": exclude, "max-failed": max_failed, "dask": dask}
    options |= {"first": first, "max-images": max_images, "max-seconds": max_seconds}
    options |= {"calibration": calibration, "windows": windows, "intrinsics": intrinsics}
    options |= {"metrics-file": metrics_file, "focal-px": focal_px, "focal-35mm": focal_35mm, "fov-deg": fov_deg}
    summary = predict(input, output, model, options)
    days = summary.get("days", [])
    facts = [(key, value) for key, value in summary.items() if key not in ("days", "runs")]
    create_markdown_artifact(table([("", ""), *facts]), key="batch-depth", description=output)
    create_markdown_artifact(by_day(days), key=f"by-day-{slug(output)}", description=f"{output}: what each day did")
    if reason := summary["over_budget"]:
        raise ValueError(reason)
    return summary
