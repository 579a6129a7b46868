"""`metricgold doctor`: each line is ok, or says what to do, and none holds a secret."""

import json
import time
from email.utils import formatdate
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from metricgold.cli import main
from metricgold.operate import diagnose, doctor
from metricgold.storage import open_bucket
from tests.support.s3 import s3_environment  # noqa: F401 - a fixture


def finding(name, *args):
    return next(one for one in diagnose(*args) if one.name == name)


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("MLFLOW_TRACKING_URI", "PREFECT_API_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(doctor, "LEAST_MEMORY_GB", 0)
    monkeypatch.setattr(doctor, "LEAST_DISK_GB", 0)
    return tmp_path


def test_an_empty_folder_needs_nothing_yet(project):
    answer = CliRunner().invoke(main, ["doctor", "--json"])
    states = {one["name"]: one["state"] for one in json.loads(answer.stdout)["findings"]}
    assert answer.exit_code == 0, answer.output
    notes = dict.fromkeys(("s3", "dvc remote", "dvc.lock", "mlflow", "prefect"), "note")
    assert states == dict.fromkeys(("python", "packages", "torch", "disk", "memory", "licences"), "ok") | notes
    assert not any(project.iterdir())


def test_a_full_disk_is_wrong(project, monkeypatch):
    monkeypatch.setattr(doctor, "LEAST_DISK_GB", 1e9)
    answer = CliRunner().invoke(main, ["doctor"])
    assert answer.exit_code == 1
    assert [line[:10] for line in answer.stdout.splitlines() if line.startswith("wrong")] == ["wrong disk"]


def test_a_version_known_to_break_is_named(project, monkeypatch):
    monkeypatch.setattr(doctor.metadata, "requires", lambda _: ["click>=99; extra == 'x'", "nowhere-to-be-found>=1"])
    one = finding("packages", project, [])
    assert one.state == "wrong"
    assert "pip install 'click>=99'" in one.text


def test_a_licence_that_is_not_accepted_says_the_command(project):
    one = finding("licences", project, ["hypersim"])
    assert one.state == "wrong"
    assert "metricgold download hypersim --accept-licence" in one.text


def test_a_remote_without_address_and_a_local_one(project):
    (project / ".dvc").mkdir()
    config = project / ".dvc/config"
    config.write_text("[core]\n    remote = store\n")
    assert finding("dvc remote", project, []).state == "wrong"
    config.write_text("[core]\n    remote = store\n['remote \"store\"']\n    url = ../store\n")
    assert finding("dvc remote", project, []).state == "ok"


def test_a_torn_lock_file_of_dvc_is_wrong_and_a_whole_one_is_not(project):
    whole = "schema: '2.0'\nstages:\n  train:\n    cmd: metricgold train\n    deps:\n    - path: a\n      md5: 0123\n"
    (project / "dvc.lock").write_text(whole)
    assert finding("dvc.lock", project, []) == ("dvc.lock", "ok", "1 stages")
    for torn in ("", whole[:-1], whole[:30], whole[:20], whole[: whole.index("    cmd")]):
        (project / "dvc.lock").write_text(torn)
        one = finding("dvc.lock", project, [])
        assert one.state == "wrong", torn
        assert "git checkout dvc.lock" in one.text


def test_no_secret_is_printed(project, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql://me:canary-pass@127.0.0.1:1/x")
    monkeypatch.setenv("METRICGOLD_MLFLOW_PATIENCE_S", "0")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "canary-secret")
    monkeypatch.setattr(doctor, "_python", lambda: "spoken: canary-secret")
    text = str(diagnose(project, []))
    assert "canary" not in text
    assert "127.0.0.1:1" in text


def test_a_clock_that_is_off_is_wrong():
    for seconds, is_off in ((0, False), (3600, True)):
        date = formatdate(time.time() - seconds)
        client = SimpleNamespace(
            list_objects_v2=lambda date=date, **_: {"ResponseMetadata": {"HTTPHeaders": {"date": date}}}
        )
        if is_off:
            with pytest.raises(OSError, match=r"clock here is \+360\d s"):
                doctor._clock(SimpleNamespace(client=client, bucket="b", prefix=""))
        else:
            assert "within" in doctor._clock(SimpleNamespace(client=client, bucket="b", prefix=""))


@pytest.mark.slow
def test_s3_is_really_tried(project, s3_environment, monkeypatch):  # noqa: F811
    import boto3
    from botocore.config import Config

    client = boto3.client("s3", config=Config(s3={"addressing_style": "path"}))
    client.create_bucket(Bucket="doctor")
    place = "s3://doctor/a/prefix"
    one = finding("s3", project, [], place)
    assert (one.state, "deleted; clocks within" in one.text) == ("ok", True), one
    assert not list(open_bucket("s3://doctor/").entries())
    assert finding("s3", project, [], "s3://nowhere-there/x").state == "wrong"
    secret = "another-secret-of-mine"
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret)
    one = finding("s3", project, [], place)
    assert one.state == "wrong"
    assert "denied" in one.text
    assert secret not in one.text
