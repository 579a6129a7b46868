"""Flow `promote-model`: the gate, and the alias champion behind it."""

from typing import Any

from prefect import flow

from flows.registry_tasks import promote_version


@flow(name="promote-model")
def promote_model(version: int | str | None = None, dry_run: bool = True, why: str = "") -> dict[str, Any]:
    """Make a registered version champion if the gate of params.yaml holds.

    Command: prefect deployment run promote-model -p dry_run=false (or: metricgold promote)
    Reads:   params.yaml (promote), the version's metrics in MLflow
    Writes:  nothing by default; with dry_run=false the aliases champion and previous
    Hours:   seconds

    version  the candidate if not given
    why      a reason, kept with the move
    """
    return promote_version(version, dry_run, why)


if __name__ == "__main__":
    promote_model()
