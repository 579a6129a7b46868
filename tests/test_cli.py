"""The command line, and the whole way on one data set in a few seconds of computing."""

import json
import subprocess
import sys

import numpy as np
import pytest
import yaml
from click.testing import CliRunner
from PIL import Image

from metricgold.cli import main
from metricgold.depth_files import read_log_depth_png


def run(*words, code=0):
    result = CliRunner().invoke(main, [str(word) for word in words])
    assert result.exit_code == code, result.output + repr(result.exception)
    return result


def test_help_imports_nothing_heavy():
    code = "import sys; from metricgold.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass\n"
    code += "print(sorted({'torch', 'numpy', 'diffusers', 'mlflow', 'pydantic', 'boto3'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert "predict" in done.stdout


@pytest.mark.parametrize(
    "words, message",
    [
        (("download", "nothing"), "no manifest of data set 'nothing'"),
        (("train",), "index.json is missing; run `metricgold encode`"),
        (("predict", "none.jpg", "out"), "neither a checkpoint folder"),
        (("evaluate",), "no checkpoint: model_index.json is missing"),
    ],
)
def test_a_user_s_mistake_is_one_message(tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_text("datasets:\n  - hypersim-synthetic\n")
    result = run(*words, code=1)
    assert result.output.startswith("Error: ") and message in result.output
    assert "Traceback" not in result.output


def test_wrong_use_is_code_two():
    assert "No such command" in run("traine", code=2).output


@pytest.mark.slow
def test_the_whole_way(tmp_path, monkeypatch, tiny):
    """synthesize, download, backbone, encode, train, evaluate, register, promote, predict with the champion."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    name = "hypersim-synthetic"
    values = tiny.model_dump(mode="json") | {"datasets": [name]}
    values["synthesize"] |= {
        "height": 32, "width": 48, "num_train_scenes": 3, "num_test_scenes": 1, "frames_per_scene": 3,
    }  # fmt: skip
    values["promote"] = {"max_abs_rel": 100.0}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(values))

    for word in (
        "synthesize",
        "download",
        "inspect",
        "backbone",
        "encode",
        "vae-floor",
        "depth-vae",
        "train",
        "evaluate",
    ):
        run(word, *([name] if word in ("synthesize", "download", "inspect", "encode") else []))
    metrics = json.loads((tmp_path / "metrics" / "evaluate.json").read_text())
    assert metrics["num_frames"] == 3 and metrics["vae_floor_abs_rel"] > 0 and metrics["abs_rel"] > 0
    assert {path.name for path in (tmp_path / "plots").iterdir()} >= {"train.csv", "evaluate.png", "examples"}

    registered = json.loads(run("register", "--json").stdout)
    assert json.loads(run("register", "--json").stdout)["version"] == registered["version"]
    assert not json.loads(run("promote", "--dry-run", "--json").stdout).get("previous")
    assert json.loads(run("promote", "--json").stdout)["alias"] == "champion"

    (tmp_path / "photos").mkdir()
    rgb = np.random.default_rng(0).integers(0, 255, (40, 50, 3), dtype=np.uint8)
    Image.fromarray(rgb).save(tmp_path / "photos" / "one.jpg")
    (tmp_path / "photos" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nno")
    summary = json.loads(run("predict", "photos", "depth", "--model", "models:/metricgold@champion", "--json").stdout)
    assert (summary["images_done"], summary["images_failed"]) == (1, 1)
    planar_depth_m, attributes = read_log_depth_png(tmp_path / "depth" / "one.jpg.depth.png")
    assert planar_depth_m.shape == (40, 50) and 0.5 <= planar_depth_m.min() <= planar_depth_m.max() <= 80
    assert attributes["model"].startswith("metricgold/1")
