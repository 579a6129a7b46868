"""Data sets that never train: benchmarks are refused by name, own data without training go through every stage."""

import json
import logging

import numpy as np
import pytest
import yaml
from click.testing import CliRunner
from PIL import Image

from metricgold.cli import main
from metricgold.datasets.manifest import Manifest, load_manifest
from metricgold.encode.from_remote import encode_from_remote
from metricgold.encode.stage import encode
from metricgold.params.sections import Params
from metricgold.shards import LatentCache
from tests.conftest import DATASET, HEIGHT, TINY, WIDTH, write_tartanair

STATEMENT = """\
depth: {unit: metre, kind: planar, invalid: 0, far: null}
intrinsics: {first_pixel: 0.5, fx: 40.0, fy: 40.0, cx: 24.0, cy: 16.0}
splits: {test: ["hall"]}
"""


def write_mine(raw, splits="test"):
    """Two frames of one scene, a wall at three metres."""
    for kind in ("rgb", "depth"):
        (raw / "hall" / kind).mkdir(parents=True)
    for number in range(2):
        rgb = np.random.default_rng(number).integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)
        Image.fromarray(rgb).save(raw / f"hall/rgb/{number}.png")
        np.save(raw / f"hall/depth/{number}.npy", np.full((HEIGHT, WIDTH), 3.0, np.float32))
    (raw / "dataset.yaml").write_text(STATEMENT.replace("test", splits))


def run(*words, code=0):
    result = CliRunner().invoke(main, list(words))
    assert result.exit_code == code, result.output + repr(result.exception)
    return result.output


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_tartanair(tmp_path / "data/raw" / DATASET)
    write_mine(tmp_path / "data/raw/mine")

    def write_params(**changes):
        values = TINY.model_dump(mode="json")
        values["datasets"] = [DATASET, "mine"]
        values["train"]["validation"] = {"every": 12, "split": "test", "frames_per_dataset": 1}
        for section, change in changes.items():
            values[section] = values.get(section, {}) | change if isinstance(change, dict) else change
        (tmp_path / "params.yaml").write_text(yaml.safe_dump(values))

    write_params()
    return write_params


def test_own_data_with_a_test_split_alone_go_through_every_stage(project, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    for name in ("mine", DATASET):
        run("inspect", name)
    run("synthesize", "mine")
    run("download", "mine")
    run("backbone")
    for name in ("mine", DATASET):
        run("encode", name)
    assert list((tmp_path / "data/latents/mine").iterdir()) == []
    run("vae-floor")
    run("depth-vae")
    run("plan")
    run("train", "--no-track")
    run("evaluate")
    assert "mine is only measured: data/raw/mine/dataset.yaml names no split train" in caplog.text
    measured = json.loads((tmp_path / "metrics/evaluate.json").read_text())["datasets"]
    assert measured.keys() == {"mine", DATASET}
    assert {measured[name]["num_frames"] for name in measured} == {2, 4}
    assert measured["mine"]["mean_map"]["abs_rel"] > 0
    floor = json.loads((tmp_path / "metrics/vae_floor.json").read_text())
    assert f"{DATASET}/num_frames" in floor and "mine/num_frames" not in floor
    lineage = json.loads((tmp_path / "models/metricgold/lineage.json").read_text())
    assert lineage["latents"].keys() == {DATASET}


def test_latents_go_with_the_training_split_and_come_with_it(project, tmp_path):
    raw, cache = tmp_path / "data/raw/mine", tmp_path / "data/latents/mine"
    run("backbone")
    (raw / "dataset.yaml").write_text(STATEMENT.replace("test", "train"))
    run("encode", "mine")
    assert len(LatentCache(cache)) == 2
    (raw / "dataset.yaml").write_text(STATEMENT)
    run("encode", "mine")
    assert list(cache.iterdir()) == []
    (raw / "dataset.yaml").write_text(STATEMENT.replace("test", "train"))
    run("encode", "mine")
    assert len(LatentCache(cache)) == 2


@pytest.mark.parametrize("word", ["backbone", "vae-floor", "depth-vae", "train --no-track", "plan"])
def test_where_nothing_trains_a_line_says_why(project, word):
    project(datasets=["mine"])
    said = run(*word.split(), code=1)
    assert said.splitlines()[-1] == ("Error: no data set to train on: data/raw/mine/dataset.yaml names no split train")


@pytest.mark.parametrize(
    "train", [{"weights": {"mine": 2.0}}, {"curriculum": [{"until_step": 2, "weights": {"mine": 0.0}}]}]
)
def test_what_is_only_measured_has_no_share_of_the_samples(project, train):
    project(train=train)
    said = run("train", "--no-track", code=1)
    assert "train.weights or train.curriculum names mine, which never trains: data/raw/mine/dataset.yaml" in said


# Benchmarks


@pytest.mark.parametrize(
    "word", ["inspect nyuv2", "download nyuv2", "backbone", "encode nyuv2", "train", "evaluate", "plan"]
)
def test_a_benchmark_among_the_data_sets_is_refused_by_name(project, word):
    project(datasets=[DATASET, "nyuv2"])
    last = run(*word.split(), code=1).splitlines()[-1]
    assert last.startswith("Error: params.yaml: datasets: nyuv2 is never trained on: ")
    assert last.endswith("nyuv2.yaml says role evaluate; expected under benchmarks")


def test_a_benchmark_is_not_encoded(project):
    said = run("encode", "nyuv2", code=1)
    assert "Error: nyuv2 is only measured, never trained on: " in said and "role evaluate" in said
    project(download={"streamed": ["nyuv2"]})
    assert "Error: nyuv2 is only measured, never trained on: " in run("encode", "nyuv2", code=1)


def test_nor_by_a_call_of_the_library(tiny, tmp_path, tiny_backbone):
    with pytest.raises(ValueError, match="ibims1 is only measured, never trained on"):
        encode("ibims1", tiny.encode, tiny.log_depth, tmp_path, tiny_backbone, tmp_path / "out")
    manifest: Manifest = load_manifest("ibims1")
    with pytest.raises(ValueError, match="ibims1 is only measured, never trained on"):
        encode_from_remote(manifest, tiny, tmp_path, tiny_backbone, tmp_path / "out")
    with pytest.raises(ValueError, match=r"train\.weights names \['nyuv2'\], which datasets .* does not list"):
        Params.model_validate({"datasets": [DATASET], "train": {"weights": {"nyuv2": 1.0}}})
