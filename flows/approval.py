"""A person's word before an alias moves: the run pauses until someone answers on its page."""

from typing import Any

from prefect.flow_runs import pause_flow_run
from prefect.input import RunInput

DAY_S = 86_400
ASK_EVERY_S = 5


class Approval(RunInput):
    """The form on the page of a paused run."""

    approve: bool
    by: str
    why: str = ""


def ask_person(outcome: dict[str, Any]) -> str:
    """Wait a day at most for somebody to approve a promotion that passed its checks; returns who did, and why.

    outcome  answer of `metricgold promote --dry-run --json`

    Raises ValueError where the answer is no.
    """
    rows = [f"| {one['name']} | {one['value']} | {one['bound']} |" for one in outcome["checks"]]
    text = f"Version {outcome['version']} is to be {outcome['alias']} instead of {outcome['previous'] or 'none'}."
    table = "\n".join(["| check | found | bound |", "|---|---|---|", *rows])
    form = Approval.with_initial_data(description=f"{text}\n\n{table}")
    answer = pause_flow_run(wait_for_input=form, timeout=DAY_S, poll_interval=ASK_EVERY_S)
    said = f"{answer.by}: {answer.why}" if answer.why else answer.by
    if not answer.approve:
        raise ValueError(f"version {outcome['version']} was not promoted: refused by {said}")
    return f"approved by {said}"
