"""Flow `rollback-model`: the champion before is champion again."""

from typing import Any

from prefect import flow

from flows.hooks import HOOKS
from flows.registry_tasks import rollback_champion
from flows.run_watch import watched


@flow(name="rollback-model", **HOOKS)
@watched
def rollback_model(dry_run: bool = True, why: str = "") -> dict[str, Any]:
    """Make the previous champion champion again; the present one becomes previous.

    Command: prefect deployment run rollback-model -p dry_run=false (or: metricgold rollback)
    Reads:   the aliases in MLflow
    Writes:  nothing by default; with dry_run=false the aliases champion and previous
    Hours:   seconds

    why  a reason, kept with the move
    """
    return rollback_champion(dry_run, why)


if __name__ == "__main__":
    rollback_model()
