"""The pins of fastapi and sqlalchemy: what newer versions break works here. Loosen a pin, and these tell."""

import pytest

from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow


def test_server_starts_and_takes_nulls(server):
    import prefect.server.api.server  # noqa: F401  newer fastapi: TypeError at import

    assert server.get("/health") is True
    # Prefect's client sends its unset options as null; newer fastapi answers 422.
    assert server.ask("POST", "/deployments/filter", {"limit": None, "offset": None}) is not None


def test_cron_schedule_creates_runs(server):
    flow = server.ask("POST", "/flows/", {"name": "every-minute"})
    schedule = {"schedule": {"cron": "* * * * *", "timezone": "UTC"}, "active": True}
    deployment = server.ask(
        "POST", "/deployments/", {"name": "every-minute", "flow_id": flow["id"], "schedules": [schedule]}
    )
    wanted = {"deployments": {"id": {"any_": [deployment["id"]]}}}
    try:
        wait_until(lambda: server.ask("POST", "/flow_runs/filter", wanted), every_s=1, what="a run")
    except TimeoutError as error:
        raise AssertionError(f"{error}; the server says:\n{server.log.read_text()[-3000:]}") from error
