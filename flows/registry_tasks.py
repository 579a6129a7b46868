"""The registry as Prefect tasks: a new version, and the gate in front of the alias champion."""

from typing import Any
from uuid import UUID

import httpx
from prefect import get_client, get_run_logger, task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.events import emit_event
from prefect.runtime import flow_run

from flows.child_processes import ask_child
from flows.experiments import PROJECT, Workspace

TIME_LIMIT_S = 1800  # of a move, which takes seconds: an MLflow that hangs must not hold a worker


@task(task_run_name="register", cache_policy=NO_CACHE)
def register_version(workspace: Workspace = PROJECT) -> dict[str, Any]:
    """A new version in MLflow, or the one that these bytes have already; that of an experiment has its name."""
    require_wanted()
    words = [f"--experiment={workspace.experiment}"] if workspace.experiment else []
    command = ["metricgold", "register", "--json", *words]
    return ask_child(command, get_run_logger().info, workspace.folder, **dict(workspace.variables))


@task(task_run_name="promote", cache_policy=NO_CACHE)
def promote_version(
    version: int | str | None, dry_run: bool, why: str = "", instead_of: str | None = None
) -> dict[str, Any]:
    """Check one version; move the alias unless it is a dry run. Fails naming the checks that do not hold."""
    if not dry_run:
        require_wanted()
    words = [] if version is None else [f"--version={version}"]
    words += [f"--instead-of={instead_of}"] if instead_of else []
    outcome = ask_child(["metricgold", "promote", "--json", *words, *_common(dry_run, why)], get_run_logger().info)
    text = f"version {outcome['version']} instead of {outcome['previous'] or 'none'}"
    create_table_artifact(outcome["checks"], key="gate", description="; ".join(filter(None, (text, why))))
    if not dry_run:
        refuse_failed(outcome)
        if outcome["version"] != outcome["previous"]:
            tell("promoted", outcome, why)
    return outcome


def refuse_failed(outcome: dict[str, Any]) -> None:
    """ValueError naming the checks of a promotion that do not hold."""
    if not outcome["passed"]:
        refused = [f"{c['name']} {c['value']} against {c['bound']}" for c in outcome["checks"] if c["passed"] is False]
        raise ValueError(f"version {outcome['version']} was not promoted: {'; '.join(refused)}")


@task(task_run_name="rollback", cache_policy=NO_CACHE)
def rollback_champion(dry_run: bool, why: str = "") -> dict[str, Any]:
    """Make the previous champion champion again."""
    if not dry_run:
        require_wanted()
    outcome = ask_child(["metricgold", "rollback", "--json", *_common(dry_run, why)], get_run_logger().info)
    if not dry_run:
        tell("rolled-back", outcome, why)
    return outcome


def tell(what: str, outcome: dict[str, Any], why: str) -> None:
    """An event metricgold-<what>, once the alias is moved, for automations: its version, the one before, the reason."""
    facts = {name: outcome[name] or "" for name in ("version", "previous", "alias")}
    emit_event(f"metricgold-{what}", resource={"prefect.resource.id": "metricgold-model", **facts, "why": why})


def _common(dry_run: bool, why: str) -> list[str]:
    return [*(["--dry-run"] if dry_run else []), *([f"--why={why}"] if why else [])]


def require_wanted() -> None:
    """Raise RuntimeError unless the server says that this flow run is to continue.

    A run that was cancelled while nobody could tell it works on; it must not move an alias hours later.
    """
    try:
        with get_client(sync_client=True) as client:
            state = client.read_flow_run(UUID(flow_run.id)).state
    except httpx.HTTPError as error:
        raise RuntimeError(f"nothing was registered or moved: the Prefect server cannot be asked: {error!r}") from error
    if state is None or not state.is_running():
        raise RuntimeError(f"nothing was registered or moved: the run is {state.name if state else 'unknown'}")
