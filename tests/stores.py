"""The whole demo once on real stores: PostgreSQL for Prefect and MLflow, S3 for DVC, artifacts and a batch job.

Not part of `make test`: `make test-stores`, or `make test-stores PROFILE=tiny` with a model that learns nothing.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from metricgold.storage import open_bucket
from tests.conftest import TINY
from tests.flows.toy import SCRIPTS, make_project, quiet_environment
from tests.support import ROOT
from tests.support.postgres import postgres as postgres
from tests.support.s3 import s3_bucket as s3_bucket, s3_environment as s3_environment

LOOSE = {"max_abs_rel": 100, "min_delta1": 0, "max_constant_ratio": 100, "max_vae_floor_abs_rel": 100}
TINY_CHANGES = {
    "synthesize": {"height": 32, "width": 48, "num_train_scenes": 3, "num_test_scenes": 2, "frames_per_scene": 3},
    "promote": LOOSE,
    "benchmarks": [],
}
BATCH = """
import json, sys
from flows.batch_depth import batch_depth
print(json.dumps(batch_depth(*sys.argv[1:3])))
"""

Command = Callable[..., str]


@pytest.fixture
def run(tmp_path, postgres, s3_environment, s3_bucket) -> Command:
    """A command in a folder, with all stores elsewhere."""
    prefect = postgres.fresh().replace("postgresql://", "postgresql+asyncpg://")
    env = quiet_environment(
        PATH=f"{SCRIPTS}:{os.environ['PATH']}",
        PREFECT_HOME=str(tmp_path / "prefect"),
        PREFECT_SERVER_DATABASE_CONNECTION_URL=prefect,
        PREFECT_SERVER_ANALYTICS_ENABLED="false",
        MLFLOW_TRACKING_URI=postgres.fresh(),
        MLFLOW_DEFAULT_ARTIFACT_ROOT=f"s3://{s3_bucket}/mlflow",
    )

    def run(folder: Path, *command: str) -> str:
        done = subprocess.run(command, cwd=folder, env=env, stdout=subprocess.PIPE, text=True)
        assert done.returncode == 0, f"{' '.join(command)}: {done.stdout[-3000:]}"
        return done.stdout

    return run


def lay_out(project: Path, bucket: str, run: Command) -> None:
    """A project whose large files go to S3; its params are the demo's, or tiny."""
    make_project(project)
    if os.environ.get("PROFILE") == "tiny":
        values = TINY.model_dump(mode="json")
        for section, changes in TINY_CHANGES.items():
            values[section] = values[section] | changes if isinstance(changes, dict) else changes
        (project / "params.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    else:
        (project / "params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    run(project, "dvc", "remote", "add", "--default", "storage", f"s3://{bucket}/dvc")
    run(project, "git", "commit", "-qam", "stores")


def test_the_demo_lives_on_postgresql_and_s3(tmp_path, run, s3_bucket):
    project, theirs = tmp_path / "project", tmp_path / "theirs"
    lay_out(project, s3_bucket, run)
    run(project, sys.executable, "-m", "demo")
    assert (project / "reports/demo.html").stat().st_size > 10_000
    left = [path for path in project.rglob("*.db*") if ".dvc" not in path.parts]
    assert not left and not list((tmp_path / "prefect").glob("*.db")), "nothing of Prefect or MLflow is on this disk"

    source, place = open_bucket(f"s3://{s3_bucket}/photos", create=True), f"s3://{s3_bucket}/depth"
    images = sorted((project / "data/demo/images").rglob("*.*"))[:4] or sorted(project.glob("data/raw/**/*.png"))[:4]
    for path in images:
        source.write(path.name, path.read_bytes())
    answer = json.loads(run(project, sys.executable, "-c", BATCH, str(source), place).splitlines()[-1])
    assert (answer["images_done"], answer["images_failed"]) == (len(images), 0), answer
    rows = [json.loads(line) for line in open_bucket(place).lines("receipt.jsonl")]
    assert {row["status"] for row in rows} == {"done"}
    assert any(entry.key.startswith("mlflow/") for entry in open_bucket(f"s3://{s3_bucket}").entries())

    run(project, "git", "add", "-A")
    run(project, "git", "commit", "-qm", "measured")
    run(project, "dvc", "push", "--quiet")
    run(tmp_path, "git", "clone", "-q", str(project), str(theirs))
    run(theirs, "dvc", "pull", "--quiet")
    assert "up to date" in run(theirs, "dvc", "status")
    assert json.loads(run(theirs, "metricgold", "register", "--json"))["created"] is False
    assert json.loads(run(theirs, "metricgold", "versions", "--json"))
