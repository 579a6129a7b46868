"""What a version keeps of where it came from: lineage.json, few tags, data sets, tables; and whose commit counts."""

import json
import subprocess
from pathlib import Path

import pytest
import yaml

from metricgold.download.ledger import Ledger, MemberRow
from metricgold.registry import live
from metricgold.registry.lineage import collect_lineage, describe_dataset
from metricgold.registry.live import track
from metricgold.registry.measured import read_measured
from metricgold.storage.files import digest_file, digest_folder, digest_json
from tests.registry.project import PARAMS, SCORES, mlflow_client, register_scores

MODEL, STATE = Path("models/metricgold"), Path("models/metricgold.state")
TRAINED = "vkitti2-synthetic"
NOTES = {
    "train": PARAMS.train.model_dump(mode="json") | {"lr": 0.5},
    "log_depth": {"near_m": 0.5, "far_m": 80.0},
    "latents": {TRAINED: {"index": "d1", "num_frames": 600}, "own": {"index": "d2", "num_frames": 7}},
    "backbone": {"source": "stand-in", "digest": "b"},
    "depth_vae": {"backbone_vae": "v"},
    "step": 1350,
}


def write(path, value):
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value))


def session(step, seconds, commit, dirty=False):
    row = {"step": step, "seconds": seconds, "commit": commit, "dirty": dirty, "hardware": "CPU, 2 cores"}
    return json.dumps(row | {"metricgold": "0"}) + "\n"


@pytest.fixture
def trained(project):
    """A project with a model that was trained here, benchmarks and a ledger."""
    write(MODEL / "lineage.json", NOTES)
    write(STATE / "sessions.jsonl", session(10, 1.5, "c1", dirty=True) + session(20, 2.25, "c2"))
    write(f"data/raw/{TRAINED}/ledger.json", {"manifest_sha256": "m", "archives": {"a.tar": {"members_sha256": "s"}}})
    write("data/raw/own/dataset.yaml", "depth: stated")
    digest = digest_folder(MODEL)
    write("metrics/benchmark/nyuv2-synthetic.json", {"abs_rel": 0.1, "model_digest": digest})
    write("metrics/vae_floor.json", {"backbone_vae": "v"})
    write("metrics/depth_vae.json", {"backbone_vae": "of another"})
    write("reports/benchmark/nyuv2-synthetic.html", "<p>page")
    write("reports/benchmark/nyuv2-synthetic.md", "table")
    write("reports/benchmark/another.md", "table")
    return project


def lineage_of(answer):
    client = mlflow_client()
    path = client.download_artifacts(answer["run_id"], "lineage.json", str(Path.cwd()))
    return json.loads(Path(path).read_text())


def test_a_version_keeps_its_lineage_in_one_file_and_at_most_twelve_tags(trained):
    answer = register_scores()
    lineage, version = lineage_of(answer), mlflow_client().get_model_version("metricgold", answer["version"])
    assert lineage["format"] == 1
    assert lineage["model"] == {"digest": answer["model_digest"], "checkpoint": str(MODEL), "step": 1350}
    assert lineage["code"] == {"commit": "c2", "dirty": True, "earlier": ["c1"]}
    assert lineage["training"] == {"seconds": 3.8, "hardware": ["CPU, 2 cores"]}
    assert lineage["params"] == PARAMS.model_dump(mode="json") | {"train": NOTES["train"]}
    assert lineage["caches"] == {
        TRAINED: {"digest": "d1", "num_frames": 600},
        "own": {"digest": "d2", "num_frames": 7},
    }
    assert (lineage["backbone"], lineage["depth_vae"]) == (NOTES["backbone"], NOTES["depth_vae"])
    assert lineage["dvc"] == {"models/metricgold": "0f.dir"}
    sets = lineage["datasets"]
    assert {name: one["role"] for name, one in sets.items()} == {
        TRAINED: "train",
        "own": "train",
        "hypersim-synthetic": "evaluate",
        "nyuv2-synthetic": "benchmark",
    }
    known = {"manifest": "m", "archives": {"a.tar": "s"}, "licence": "Apache-2.0", "role": "train"}
    assert sets[TRAINED] == known
    assert (sets["own"]["licence"], sets["own"]["manifest"]) == (
        "unstated",
        digest_file(Path("data/raw/own/dataset.yaml")),
    )
    files = ["metrics/evaluate.json", "metrics/benchmark/nyuv2-synthetic.json", "metrics/vae_floor.json"]
    assert lineage["metrics"] == {name: digest_file(Path(name)) for name in files}
    assert len(version.tags) <= 12
    expected = {"commit": "c2", "dirty": "true", "training_seconds": "3.8", "hardware": "CPU, 2 cores"}
    expected |= {"licences": "Apache-2.0, unstated", "model_digest": answer["model_digest"]}
    expected |= {"lineage_digest": digest_json(lineage), "params_digest": digest_json(lineage["params"])}
    assert expected.items() <= version.tags.items()


def test_data_sets_tables_and_the_report_are_in_the_run(trained):
    answer = register_scores()
    client = mlflow_client()
    run = client.get_run(answer["run_id"])
    inputs = {one.dataset.name: one for one in run.inputs.dataset_inputs}
    roles = {name: {tag.key: tag.value for tag in one.tags} for name, one in inputs.items()}
    assert roles["own"] == {"mlflow.data.context": "train"}
    assert roles["nyuv2-synthetic"] == {"mlflow.data.context": "benchmark"}
    assert len({one.dataset.digest for one in inputs.values()}) == 4
    assert {one.path for one in client.list_artifacts(answer["run_id"], "reports")} == {
        "reports/nyuv2-synthetic.html",
        "reports/nyuv2-synthetic.md",
    }
    assert run.data.params["train.lr"] == "0.5"
    register_scores(abs_rel=0.1)
    assert len(client.get_run(answer["run_id"]).inputs.dataset_inputs) == 4


def test_a_state_of_another_training_says_nothing_of_this_model(trained):
    write(STATE / "result.json", {"model_digest": "of another"})
    digest = digest_folder(MODEL)
    write("metrics/evaluate.json", SCORES | {"model_digest": digest})
    measured = read_measured(Path("metrics/evaluate.json"), digest, None)
    lineage = collect_lineage(PARAMS, MODEL, digest, measured, {"commit": "of the run", "dirty": "false"})
    assert lineage["code"] == {"commit": "of the run", "dirty": False}
    assert lineage["training"] == {"seconds": None, "hardware": []}
    assert collect_lineage(PARAMS, MODEL, digest, measured, {})["code"] == {"commit": None, "dirty": None}


def git(*words):
    identity = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    done = subprocess.run(["git", *identity, *words], check=True, capture_output=True, text=True)
    return done.stdout.strip()


def commit(text):
    write("params.yaml", text)
    git("add", "params.yaml")
    git("commit", "-qm", "params")
    return git("rev-parse", "HEAD")


def test_the_commit_of_a_version_is_that_of_its_training(project, monkeypatch):
    """Registered at a later commit, from where the training left no state, such as after `dvc pull`."""
    monkeypatch.setattr(live, "SEND_EVERY_S", 0.1)
    git("init", "-q")
    of_training = commit(yaml.safe_dump({"datasets": ["hypersim-synthetic"]}))
    with track(PARAMS, STATE) as report:
        report({"step": 10, "loss": 0.5})
    of_registration = commit(yaml.safe_dump({"datasets": ["vkitti2-synthetic"]}))
    answer = register_scores()
    client = mlflow_client()
    assert client.get_run(answer["run_id"]).info.run_name == "train"
    assert client.get_model_version("metricgold", answer["version"]).tags["commit"] == of_training
    assert client.get_run(answer["run_id"]).data.tags["commit"] == of_training
    assert lineage_of(answer)["registered"] == {"commit": of_registration, "dirty": False}


def test_archives_that_were_encoded_and_deleted_again_are_in_the_lineage(tmp_path, monkeypatch):
    """Of a data set that is streamed the ledger.json lists none; what was read remains in the ledger."""
    monkeypatch.chdir(tmp_path)
    raw = tmp_path / "data/raw/tartanair-synthetic"
    ledger = Ledger(raw / ".ledger/ledger.sqlite")
    ledger.done("env1.zip", "identity", "file://env1.zip", [MemberRow("env1/a.png", 3, 7)])
    ledger.dropped("env1.zip")
    ledger.close()
    (raw / "ledger.json").write_text(json.dumps({"archives": {}, "manifest_sha256": "m"}))
    described = describe_dataset("tartanair-synthetic", "train")
    assert described["archives"] == {"env1.zip": digest_json({"env1/a.png": [3, 7]})}
