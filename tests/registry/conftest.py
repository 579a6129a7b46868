"""A working folder with a tiny model, and MLflow on SQLite."""

import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml

from tests.support.models import write_random_model


@pytest.fixture(scope="session")
def first_use(tmp_path_factory):
    """A folder where two processes made MLflow's database at the same moment, and what became of them."""
    folder = tmp_path_factory.mktemp("store")
    code = "from metricgold.registry.mlflow_client import open_client\n"
    code += "with open_client() as client: client.search_experiments()"
    env = {k: v for k, v in os.environ.items() if k != "MLFLOW_TRACKING_URI"}

    def start(_):
        return subprocess.run([sys.executable, "-c", code], cwd=folder, env=env, capture_output=True, text=True)

    with ThreadPoolExecutor(2) as pool:
        return folder, list(pool.map(start, range(2)))


@pytest.fixture(scope="session")
def random_model(tmp_path_factory):
    return write_random_model(tmp_path_factory.mktemp("model") / "metricgold")


@pytest.fixture
def project(tmp_path, first_use, random_model, monkeypatch):
    """A working folder as `metricgold register` finds it after `dvc repro`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    shutil.copy(first_use[0] / "mlflow.db", tmp_path)
    shutil.copytree(random_model, "models/metricgold")
    Path("models/metricgold/lineage.json").write_text(json.dumps({"datasets": {"hypersim-synthetic": "abc"}}))
    state = Path("models/metricgold.state")
    state.mkdir()
    rows = [{"step": step, "loss": 1 / step, "lr": 1e-3} for step in range(1, 1501)]
    (state / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Path("dvc.lock").write_text(
        yaml.safe_dump({"stages": {"train": {"outs": [{"path": "models/metricgold", "md5": "0f.dir"}]}}})
    )
    return tmp_path
