"""The registry as Prefect tasks: a new version, and the gate in front of the alias champion."""

from typing import Any

from prefect import get_run_logger, task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE

from flows.child_processes import ask_child


@task(task_run_name="register", cache_policy=NO_CACHE)
def register_version() -> dict[str, Any]:
    """A new version in MLflow, or the one that these bytes have already."""
    return ask_child(["metricgold", "register", "--json"], get_run_logger().info)


@task(task_run_name="promote", cache_policy=NO_CACHE)
def promote_version(version: int | str | None, dry_run: bool, why: str = "") -> dict[str, Any]:
    """Check one version; move the alias unless it is a dry run. Fails naming the checks that do not hold."""
    words = [] if version is None else [f"--version={version}"]
    outcome = ask_child(["metricgold", "promote", "--json", *words, *_common(dry_run, why)], get_run_logger().info)
    create_table_artifact(outcome["checks"], key="gate", description=f"version {outcome['version']}")
    if not outcome["passed"] and not dry_run:
        refused = [f"{c['name']} {c['value']} against {c['bound']}" for c in outcome["checks"] if c["passed"] is False]
        raise ValueError(f"version {outcome['version']} was not promoted: {'; '.join(refused)}")
    return outcome


@task(task_run_name="rollback", cache_policy=NO_CACHE)
def rollback_champion(dry_run: bool, why: str = "") -> dict[str, Any]:
    """Make the previous champion champion again."""
    return ask_child(["metricgold", "rollback", "--json", *_common(dry_run, why)], get_run_logger().info)


def _common(dry_run: bool, why: str) -> list[str]:
    return [*(["--dry-run"] if dry_run else []), *([f"--why={why}"] if why else [])]
