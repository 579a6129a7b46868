"""Flow `batch-depth`: metres for a folder or a bucket, by a registered model."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import yaml
from prefect import flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from pydantic import Field

from flows.cards import card
from flows.children import ask_child


@task(task_run_name="predict", cache_policy=NO_CACHE)
def predict(input: str, output: str, model: str, asked: dict[str, int]) -> dict[str, Any]:
    """One job in a child process; `asked` replaces values of the section predict of params.yaml."""
    with TemporaryDirectory() as folder:
        params = yaml.safe_load(Path("params.yaml").read_text())
        params["predict"] = (params.get("predict") or {}) | asked
        copy = Path(folder) / "params.yaml"
        copy.write_text(yaml.safe_dump(params))
        command = ["metricgold", "--params", str(copy), "predict", input, output, "--model", model, "--json"]
        log = get_run_logger().info
        with card(log) as variables:
            return ask_child(command, log, **variables)


@flow(name="batch-depth")
def batch_depth(
    input: str,
    output: str,
    model: str = "models:/metricgold@champion",
    num_inference_steps: Annotated[int, Field(ge=1, le=1000)] | None = None,
    ensemble_size: Annotated[int, Field(ge=1, le=100)] | None = None,
    seed: Annotated[int, Field(ge=0)] | None = None,
) -> dict[str, Any]:
    """Depth, uncertainty and preview for every image of `input`, with one receipt.

    Command: prefect deployment run batch-depth -p input=s3://bucket/photos -p output=s3://bucket/depth
    Reads:   images of a file, folder, glob or s3://bucket/prefix; the model; params.yaml (predict)
    Writes:  output (a folder or s3://): files per image and receipt.jsonl, which lets a second run skip what is done
    Hours:   images x steps x ensemble / (what the device does an hour); a bad image is a row, not a failure

    num_inference_steps, ensemble_size, seed  those of params.yaml if not given
    """
    options = {"num_inference_steps": num_inference_steps, "ensemble_size": ensemble_size, "seed": seed}
    summary = predict(input, output, model, {key: value for key, value in options.items() if value is not None})
    lines = [f"| {key} | {value} |" for key, value in summary.items()]
    create_markdown_artifact("\n".join(["| | |", "|---|---|", *lines]), key="batch-depth", description=output)
    if summary["images_failed"] and not summary["images_done"]:
        raise ValueError(f"all {summary['images_failed']} images of {input} failed; {output}/receipt.jsonl says why")
    return summary
