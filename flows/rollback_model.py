"""Flow `rollback-model`: the champion before is champion again."""

from typing import Any

from prefect import flow

from flows.forms import Why
from flows.hooks import HOOKS
from flows.registry_tasks import TIME_LIMIT_S, rollback_champion
from flows.run_watch import watched


@flow(name="rollback-model", timeout_seconds=TIME_LIMIT_S, **HOOKS)
@watched
def rollback_model(dry_run: bool = True, why: Why = "") -> dict[str, Any]:
    """Make the previous champion champion again; the present one becomes previous.

    Command: prefect deployment run rollback-model -p dry_run=false (or: metricgold rollback)
    Reads:   the aliases in MLflow
    Writes:  nothing by default; with dry_run=false the aliases champion and previous
    Hours:   seconds

    Args:
        dry_run: Only tell; nothing moves.
        why: A reason, kept with the move.
    """
    return rollback_champion(dry_run, why)


if __name__ == "__main__":
    rollback_model()
