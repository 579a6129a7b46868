"""Flow `promote-model`: the gate, and the alias champion behind it."""

from typing import Annotated, Any

from prefect import flow
from pydantic import Field

from flows.approval import DAY_S, ask_person
from flows.forms import Why
from flows.hooks import HOOKS
from flows.registry_tasks import TIME_LIMIT_S, promote_version, refuse_failed
from flows.run_watch import watched


@flow(name="promote-model", timeout_seconds=DAY_S + TIME_LIMIT_S, **HOOKS)
@watched
def promote_model(
    version: Annotated[int, Field(ge=1)] | Annotated[str, Field(pattern="^[1-9][0-9]*$")] | None = None,
    dry_run: bool = True,
    why: Why = "",
    approval: bool = False,
) -> dict[str, Any]:
    """Make a registered version champion if the gate of params.yaml holds.

    Command: prefect deployment run promote-model -p dry_run=false (or: metricgold promote)
    Reads:   params.yaml (promote), the version's metrics in MLflow
    Writes:  nothing by default; with dry_run=false the aliases champion and previous
    Hours:   seconds

    Who approves does so of this version in place of that champion: where either is another by then, nothing moves.

    Args:
        version: Number of the version in MLflow; the candidate if not given.
        dry_run: Only check and tell; nothing moves.
        why: A reason, kept with the move.
        approval: Pause after the checks until a person says yes on the run's page; who does is kept with the move.
    """
    if dry_run or not approval:
        return promote_version(version, dry_run, why)
    checked = promote_version(version, dry_run=True)
    refuse_failed(checked)
    reason = "; ".join(filter(None, (why, ask_person(checked))))
    return promote_version(checked["version"], dry_run, reason, instead_of=checked["previous"] or "none")


if __name__ == "__main__":
    promote_model()
