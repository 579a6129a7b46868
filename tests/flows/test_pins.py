"""The pins of fastapi and sqlalchemy: what newer versions break works here. Loosen a pin, and these tell."""

import time

import pytest

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
    for _ in range(75):
        if server.ask("POST", "/flow_runs/filter", wanted):
            return
        time.sleep(1)
    raise AssertionError(f"no run after 75 s; the server says:\n{server.log.read_text()[-3000:]}")
