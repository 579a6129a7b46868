"""The page that says how a run ended."""

from types import SimpleNamespace

import pytest
from prefect.states import Cancelled, Cancelling, Crashed

from flows import hooks


@pytest.mark.parametrize(("state", "word"), [(Cancelling, "Cancelled"), (Cancelled, "Cancelled"), (Crashed, "Crashed")])
def test_its_title_is_what_the_run_is_when_somebody_reads_it(monkeypatch, state, word):
    """Prefect calls the hook of a cancellation while the run is still being cancelled."""
    pages = []
    monkeypatch.setattr(hooks, "last_lines", lambda client, run_id: "at work")
    client = SimpleNamespace(create_artifact=pages.append)
    run = SimpleNamespace(id="11111111-1111-1111-1111-111111111111", deployment_id=None, parameters={})
    hooks.write_page(client, "train-metricgold", run, state(message="by hand"), {})
    (page,) = pages
    assert page.description == f"train-metricgold: {word}"
    assert f"# train-metricgold: {word}\n\n## Reason\n\nby hand" in page.data
