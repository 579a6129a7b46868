"""What prefect.yaml deploys: forms with a meaning, bounds and choices for every field, limits, tags and schedules."""

import tomllib

import jsonschema
import pytest
import yaml
from prefect.flows import load_flow_from_entrypoint

from metricgold.params.words import OUTPUTS, PRESETS, WINDOWS
from tests.support import ROOT

DEPLOYMENTS = {one["name"]: one for one in yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]}


def form(name: str) -> dict:
    path, _, function = DEPLOYMENTS[name]["entrypoint"].partition(":")
    return load_flow_from_entrypoint(f"{ROOT / path}:{function}").parameters.model_dump_for_openapi()


@pytest.mark.parametrize("name", DEPLOYMENTS)
def test_every_field_says_what_it_means_and_numbers_have_bounds(name):
    for field, schema in form(name)["properties"].items():
        assert schema["description"].strip().endswith("."), f"{name}: {field}"
        for kind in schema.get("anyOf", [schema]):
            if kind.get("type") in ("integer", "number"):
                assert kind.keys() & {"minimum", "exclusiveMinimum"}, f"{name}: {field}"


def test_choices_are_those_of_the_command_line():
    fields = form("batch-depth")["properties"]
    assert fields["preset"]["anyOf"][0]["enum"] == list(PRESETS)
    assert fields["windows"]["anyOf"][0]["enum"] == list(WINDOWS)
    assert fields["outputs"]["anyOf"][0]["items"]["enum"] == list(OUTPUTS)
    assert set(form("batch-depth")["required"]) == {"input", "output"}


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("batch-depth", {"input": "", "output": "depth"}),
        ("batch-depth", {"input": "photos", "output": "depth", "preset": "slow"}),
        ("batch-depth", {"input": "photos", "output": "depth", "ensemble_size": 0}),
        ("batch-depth", {"input": "photos", "output": "depth", "fov_deg": 180}),
        ("batch-depth", {"input": "photos", "output": "depth", "outputs": []}),
        ("promote-model", {"version": "4; x"}),
        ("promote-model", {"version": 0}),
        ("promote-model", {"dry_run": "perhaps"}),
        ("prepare-data", {"datasets": ["../x"]}),
        ("benchmark", {"names": ["--help"]}),
        ("train-metricgold", {"overrides": ["train.lr"]}),
        ("rollback-model", {"why": "x" * 2001}),
        ("study", {"name": "../decoder"}),
        ("study", {"name": "decoder", "jobs": 0}),
    ],
)
def test_a_form_refuses_what_cannot_be(name, wrong):
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(wrong, form(name))


def test_limits_tags_and_overlap():
    assert set(DEPLOYMENTS) == {
        *("prepare-data", "train-metricgold", "benchmark", "study", "promote-model", "rollback-model", "batch-depth")
    }
    assert all(one["tags"] and one["work_pool"]["name"].startswith("metricgold-") for one in DEPLOYMENTS.values())
    depth = DEPLOYMENTS["batch-depth"]
    assert depth["concurrency_limit"] == {"limit": 1, "collision_strategy": "CANCEL_NEW"}
    (nightly,) = depth["schedules"]
    assert nightly["timezone"] == "Europe/Berlin" and not nightly["active"]
    assert "concurrency_limit" not in DEPLOYMENTS["rollback-model"]


def test_only_what_depends_on_others_is_tried_again(monkeypatch):
    from prefect.states import Failed

    from flows.batch_depth import is_store_away, predict
    from flows.child_processes import ChildFailed
    from flows.dvc_stages import task_of

    assert task_of("download@hypersim").retry_jitter_factor and predict.retry_jitter_factor
    said = "Error: s3://b/x: cannot reach 127.0.0.1:9000 (tried for 60 s)"
    assert is_store_away(None, None, Failed(data=ChildFailed("its last lines: other words", 69)))
    assert not is_store_away(None, None, Failed(message=said, data=ChildFailed(said, 1)))
    assert task_of("train").retries == task_of("evaluate").retries == 0


def test_automations_are_some_and_know_the_heartbeat():
    from prefect.events.schemas.automations import AutomationCore

    paths = sorted((ROOT / "flows").glob("*.yaml"))
    _, automation = (AutomationCore.model_validate(yaml.safe_load(path.read_text())) for path in paths)
    seconds = tomllib.loads((ROOT / "prefect.toml").read_text())["flows"]["heartbeat_frequency"]
    assert automation.trigger.within.total_seconds() == 3 * seconds
    assert all(event.startswith("prefect.flow-run.") for event in automation.trigger.expect)


def test_the_days_of_an_output_are_a_table_of_which_the_newest_is_first():
    from flows.batch_depth import by_day, slug

    day = {"day": "2026-11-28", "runs": 2, "images_done": 7, "images_failed": 1, "images_skipped": 0}
    day |= {"seconds": 3.5, "drift": 0, "over_budget": None}
    lines = by_day([day, day | {"day": "2026-11-29", "over_budget": "all failed"}]).splitlines()
    assert lines[0].startswith("| day | runs | images done |") and lines[1] == "|---" * 8 + "|"
    assert lines[2:] == [
        "| 2026-11-29 | 2 | 7 | 1 | 0 | 3.5 | 0 | all failed |",
        "| 2026-11-28 | 2 | 7 | 1 | 0 | 3.5 | 0 |  |",
    ]
    assert (slug("s3://bucket/Depth_1/"), slug("depth")) == ("s3-bucket-depth-1", "depth")
