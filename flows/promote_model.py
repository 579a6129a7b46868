"""Flow `promote-model`: the gate, and the alias champion behind it."""

from typing import Any

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE

from flows.children import ask_child


@task(task_run_name="promote", cache_policy=NO_CACHE)
def promote_version(version: str | None, dry_run: bool) -> dict[str, Any]:
    """Check one version; move the alias unless it is a dry run. Fails naming the checks that do not hold."""
    command = ["metricgold", "promote", "--json"]
    command += ["--version", version] if version else []
    command += ["--dry-run"] if dry_run else []
    outcome = ask_child(command, get_run_logger().info)
    create_table_artifact(outcome["checks"], key="gate", description=f"version {outcome['version']}")
    if not outcome["passed"] and not dry_run:
        refused = [f"{c['name']} {c['value']} against {c['bound']}" for c in outcome["checks"] if not c["passed"]]
        raise ValueError(f"version {outcome['version']} was not promoted: {'; '.join(refused)}")
    return outcome


@flow(name="promote-model")
def promote_model(version: str | None = None, dry_run: bool = True) -> dict[str, Any]:
    """Make a registered version champion if the gate of params.yaml holds.

    Command: prefect deployment run promote-model -p dry_run=false (or: metricgold promote)
    Reads:   params.yaml (promote), the version's metrics in MLflow
    Writes:  nothing by default; with dry_run=false the aliases champion and previous
    Hours:   seconds

    version  the candidate if not given
    """
    return promote_version(version, dry_run)


if __name__ == "__main__":
    promote_model()
