"""What the page of a run says when it did not end well: why, the last lines, how to continue, and where to look."""

import json
import os
import shlex
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import ArtifactCreate
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    ArtifactFilterKey,
    FlowFilter,
    FlowFilterName,
    FlowRunFilter,
    FlowRunFilterEndTime,
    FlowRunFilterState,
    FlowRunFilterStateType,
    LogFilter,
    LogFilterFlowRunId,
)
from prefect.client.schemas.objects import StateType
from prefect.client.schemas.sorting import FlowRunSort, LogSort

from flows.child_processes import KEPT_LINES
from metricgold.params import Folders
from metricgold.storage import git_commit, read_json

KEY = "how-it-ended"
LOOKED_BACK = timedelta(days=14)
WRITTEN_WITHIN = timedelta(minutes=1)  # of the end of a run, by its own processes or its worker, if they are there
RESUMES = {
    "train-metricgold": "finished stages are kept, and the trainer resumes from its last saved step",
    "benchmark": "finished stages are kept, and a benchmark resumes after its last finished image",
    "study": "measured runs are kept, and trainings resume from their last saved step",
    "prepare-data": "what is on disk is kept, and each archive resumes where it stopped",
    "batch-depth": "images that the receipt lists as done are skipped",
}
FLOWS = (*RESUMES, "promote-model", "rollback-model")  # those of this project, on a server that others may use


def write_end(flow: Any, flow_run: Any, state: Any) -> None:
    """Prefect's hook: a Markdown artifact on the page of a run that failed, crashed or was cancelled."""
    with get_client(sync_client=True) as client:
        write_page(client, flow.name, flow_run, state, places_here())


def write_page(client: Any, flow_name: str, flow_run: Any, state: Any, places: dict[str, str]) -> None:
    """The artifact of a run; places are those that are known of it."""
    reason, _, lines = (state.message or "no reason was given").partition("\n")
    how = "Cancelled" if state.is_cancelling() else state.name  # what it is when somebody reads this
    text = describe_end(flow_name, flow_run, how, reason, lines or last_lines(client, flow_run.id), places)
    title = f"{flow_name}: {how}"
    page = ArtifactCreate(key=KEY, type="markdown", data=text, description=title, flow_run_id=flow_run.id)
    client.create_artifact(page)


HOOKS: dict[str, Any] = {"on_failure": [write_end], "on_crashed": [write_end], "on_cancellation": [write_end]}


def write_end_once(run_id: UUID) -> None:
    """The same for a run whose process died before it could, and whose worker did not either."""
    with get_client(sync_client=True) as client:
        run = client.read_flow_run(run_id)
        own = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run_id]), key=ArtifactFilterKey(any_=[KEY]))
        is_written = bool(client.read_artifacts(artifact_filter=own))
        flow = client.read_flow(run.flow_id)
    if run.state is not None and (run.state.is_crashed() or run.state.is_cancelled()) and not is_written:
        write_end(flow, run, run.state)


def write_missing_ends() -> None:
    """The same, at the start of the next flow, for runs that only the server has ended, as its automations do.

    Where they worked is not known here: it may have been another machine.
    """
    now = datetime.now(UTC)
    between = FlowRunFilterEndTime(after_=now - LOOKED_BACK, before_=now - WRITTEN_WITHIN)
    states = FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.CRASHED, StateType.CANCELLED]))
    ended = FlowRunFilter(state=states, end_time=between)
    ours = FlowFilter(name=FlowFilterName(any_=list(FLOWS)))
    with get_client(sync_client=True) as client:
        runs = client.read_flow_runs(flow_filter=ours, flow_run_filter=ended, sort=FlowRunSort.END_TIME_DESC)
        ids = ArtifactFilterFlowRunId(any_=[run.id for run in runs])
        written = ArtifactFilter(flow_run_id=ids, key=ArtifactFilterKey(any_=[KEY]))
        have_page = {page.flow_run_id for page in client.read_artifacts(artifact_filter=written)} if runs else set()
        for run in runs:
            if run.id not in have_page:
                write_page(client, client.read_flow(run.flow_id).name, run, run.state, {})


def last_lines(client: Any, run_id: UUID) -> str:
    """The end of a run's log."""
    own = LogFilter(flow_run_id=LogFilterFlowRunId(any_=[run_id]))
    logs = client.read_logs(own, limit=KEPT_LINES, sort=LogSort.TIMESTAMP_DESC)
    return "\n".join(log.message for log in reversed(logs))


def describe_end(
    flow_name: str, flow_run: Any, state_name: str, reason: str, lines: str, places: dict[str, str]
) -> str:
    """The artifact's text."""
    parts = [f"# {flow_name}: {state_name}", "## Reason", reason]
    parts += ["## Last lines", f"```text\n{lines}\n```"] if lines else []
    parts += ["## To continue", f"```sh\n{command_to_continue(flow_name, flow_run)}\n```"]
    parts += [f"With the same values: {RESUMES[flow_name]}."] if flow_name in RESUMES else []
    if output := flow_run.parameters.get("output"):
        places = places | {"receipt and gallery": f"`{output}/receipt.jsonl`, `{output}/gallery.html`"}
    parts += ["## Where to look", "\n".join(f"- {name}: {place}" for name, place in places.items())] if places else []
    return "\n\n".join(parts)


def command_to_continue(flow_name: str, flow_run: Any) -> str:
    """The same run again: by its id where a worker can take it, else by hand."""
    if flow_run.deployment_id:
        return f"prefect flow-run retry {flow_run.id}"
    values = [f"-p {shlex.quote(f'{name}={json.dumps(value)}')}" for name, value in flow_run.parameters.items()]
    return " ".join([f"prefect deployment run {flow_name}/{flow_name}", *values])


def places_here() -> dict[str, str]:
    """Links and names of what belongs to a run, as far as it is at hand in the folder where the flow worked."""
    folders, found = Folders(), {"folder": f"`{Path.cwd()}`"}
    with suppress(OSError, ValueError, KeyError):
        run_id = read_json(folders.state / "mlflow.json")["run_id"]
        # Not the address: it may hold a password.
        found["MLflow run"] = (
            f"`{run_id}` in {'MLFLOW_TRACKING_URI' if 'MLFLOW_TRACKING_URI' in os.environ else 'mlflow.db'}"
        )
    if (checkout := git_commit(Path())) is not None:
        found["DVC revision"] = f"`{checkout[0][:7]}`: `dvc status`, `dvc exp show`"
    return found
