"""Flow `study`: the runs of one study of studies/, and its part of the page."""

from pathlib import Path
from typing import Annotated, Any

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from pydantic import Field

from flows.child_processes import ask_child
from flows.gpu_slots import gpu_slot
from flows.hooks import HOOKS
from flows.run_watch import watched
from metricgold.study import load_study, render_study

Study = Annotated[str, Field(pattern="^[a-z0-9][a-z0-9-]*$")]
Jobs = Annotated[int, Field(ge=1)]


@flow(name="study", **HOOKS)
@watched
def study(name: Study, jobs: Jobs = 1) -> dict[str, Any]:
    """Train and measure the runs of studies/NAME.yaml that studies/results lacks, and show what is there by then.

    Command: prefect deployment run study -p name=decoder (or: metricgold study decoder)
    Reads:   params.yaml, studies/, data/raw, data/benchmarks
    Writes:  models/studies/, studies/results/, MLflow
    Hours:   see metricgold study NAME --plan; a run ends after the study's budget_minutes, the next one continues

    A stopped run resumes: measured runs are kept, and trainings continue from their last saved step.

    Args:
        name: A study of the folder studies, such as decoder.
        jobs: Trainings at a time on this machine's card, or on its cores.
    """
    load_study(name)
    counts = run_study(name, jobs)
    create_markdown_artifact(without_picture(render_study(name)), key="study", description=f"study {name}")
    return counts


@task(task_run_name="study {name}", cache_policy=NO_CACHE)
def run_study(name: str, jobs: int) -> dict[str, Any]:
    """The command, in a slot of the GPU if there is one."""
    log = get_run_logger().info
    with gpu_slot(log) as variables:
        return ask_child(["metricgold", "study", name, "--jobs", str(jobs), "--json"], log, Path(), **variables)


def without_picture(text: str) -> str:
    """The text without its picture, which lies in a folder that Prefect's page does not see."""
    return "\n".join(line for line in text.splitlines() if not line.startswith("!["))


if __name__ == "__main__":
    study()
