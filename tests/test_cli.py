"""The command line, end to end on one data set in a few seconds of computing."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import yaml
from click.testing import CliRunner
from PIL import Image

from metricgold.cli import main
from metricgold.images.depth_files import read_log_depth_png
from metricgold.predict.quota import Quota


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


def test_a_command_s_process_leaves_out_what_its_model_does_not_need(tiny_model, tmp_path):
    """And depth is the same. In this process nothing is left out, for it has other work as well."""
    from metricgold.extras import UNUSED

    Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 48, 3), np.uint8)).save(tmp_path / "a.png")
    words = ["predict", str(tmp_path / "a.png")]
    options = ["--model", str(tiny_model), "--steps", "2", "--ensemble", "2"]
    command = [sys.executable, "-X", "importtime", "-m", "metricgold.cli", *words, str(tmp_path / "out"), *options]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert {"torch", "diffusers"} <= loaded and not loaded & set(UNUSED)

    run(*words, tmp_path / "here", *options)
    assert all(sys.modules.get(name, "") is not None for name in UNUSED)
    here, there = (read_log_depth_png(tmp_path / folder / "a.png.depth.png") for folder in ("here", "out"))
    np.testing.assert_array_equal(here[0], there[0])


def test_what_was_left_out_comes_back_for_who_needs_it():
    code = """
from metricgold.extras import hide_unused, show_unused
hide_unused()
try:
    import scipy
except ModuleNotFoundError as error:
    print(error.name)
show_unused()
from diffusers import MarigoldDepthPipeline
from transformers import CLIPTextModel
print(MarigoldDepthPipeline.__module__.split(".")[1], CLIPTextModel.__module__.split(".")[1])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["scipy", "pipelines", "models"]  # and not diffusers' dummies


@pytest.mark.parametrize(
    "words, message",
    [
        (("download", "nothing"), "no manifest of data set 'nothing'"),
        (("train",), "index.json is missing; run `metricgold encode`"),
        (("predict", "none.jpg", "out"), "neither a checkpoint folder"),
        (("evaluate",), "is not a checkpoint: model_index.json is missing"),
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


@pytest.mark.parametrize("word", ["synthesize", "download", "inspect", "encode"])
@pytest.mark.parametrize("name", ["mine/", "../mine", "Mine", "x; touch PWNED"])
def test_a_data_set_s_name_is_no_path(tmp_path, monkeypatch, word, name):
    """`encode /abs/mine` once deleted the raw data, `encode mine/` made latents of another identity."""
    monkeypatch.chdir(tmp_path)
    mine = tmp_path / "mine" / "rgb" / "a.png"
    mine.parent.mkdir(parents=True)
    mine.touch()
    (tmp_path / "params.yaml").write_text("datasets:\n  - mine\n")
    for words in ((word, name), (word, "--dataset", name), (word, str(tmp_path / "mine"))):
        result = run(*words, code=1)
        assert "Error: data set " in result.output and "expected a name of a-z" in result.output
    assert mine.is_file() and sorted(path.name for path in tmp_path.iterdir()) == ["mine", "params.yaml"]
    assert "Missing argument 'DATASET'" in run(word, code=2).output


# predict


@pytest.fixture
def photographs(tmp_path, monkeypatch):
    """A folder to predict in, whose model is one that costs nothing; yields what the job was given."""
    import metricgold.predict
    import metricgold.registry

    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_text("datasets: [hypersim-synthetic]\npredict: {max_failed: 0.5, seed: 3}\n")
    given = {}

    def predict_all(params, model, images, output, **more):
        given.update(params=params, images=images, output=output, **more)
        counts = {"images_done": 7, "images_failed": 3, "images_kept": 0, "images_skipped": 0}
        return counts | {"receipt": f"{output}/receipt.jsonl"}

    monkeypatch.setattr(metricgold.predict, "predict_all", predict_all)
    monkeypatch.setattr(metricgold.registry, "fetch_model", lambda model: (tmp_path, model))
    return given


def test_a_job_that_lost_its_output_has_an_exit_code_of_its_own(photographs, monkeypatch):
    import metricgold.predict
    from metricgold.storage import OutputLost

    def lose(*_, **__):
        raise OutputLost("s3://b/out/ is being written by another job")

    monkeypatch.setattr(metricgold.predict, "predict_all", lose)
    assert run("predict", "in", "out", code=75).output == "Error: s3://b/out/ is being written by another job\n"


def test_predict_takes_params_where_no_option_overrides_them(photographs):
    run("predict", "in", "out")
    asked = photographs["params"]
    assert (asked.seed, asked.max_failed, asked.num_inference_steps, asked.outputs) == (3, 0.5, 50, None)
    assert (photographs["include"], photographs["exclude"]) == ((), ())


def test_options_of_predict_override_params(photographs):
    words = ["--preset", "fast", "--ensemble", "auto", "--write", "npz", "--write", "ply", "--include", "*.jpg"]
    run("predict", "in", "out", *words, "--exclude", "old/**", "--max-failed", 20, "--allow-truncated", "--compile")
    asked = photographs["params"]
    assert (asked.num_inference_steps, asked.ensemble_size) == (2, "auto")
    assert (asked.outputs, asked.max_failed, asked.allow_truncated) == (["npz", "ply"], 20, True)
    assert (asked.compile, asked.seed) == (True, 3)
    assert (photographs["include"], photographs["exclude"]) == (("*.jpg",), ("old/**",))
    run("predict", "in", "out", "--first", "b/", "--first", "a", "--max-images", 5, "--max-seconds", 2.5)
    assert (photographs["first"], photographs["quota"]) == (("b/", "a"), Quota(5, 2.5))
    run("predict", "in", "out", "--preset", "paper", "--steps", 7, "--ensemble", 2)
    assert (photographs["params"].num_inference_steps, photographs["params"].ensemble_size) == (7, 2)


@pytest.mark.parametrize(
    ("budget", "code"), [("3", 0), ("2", 1), ("30%", 0), ("29.9%", 1), ("0.3", 0), ("0", 1), ("100%", 0), ("1.0", 0)]
)
def test_failure_budget_decides_the_exit_code(photographs, budget, code):
    result = run("predict", "in", "out", "--max-failed", budget, "--json", code=code)
    assert json.loads(result.stdout)["images_failed"] == 3
    assert ("3 of 10 images failed" in result.stderr and "out/receipt.jsonl says why" in result.stderr) == bool(code)


@pytest.mark.parametrize(
    "words",
    [
        ("--max-failed", "some"),
        ("--max-failed", "101%"),
        ("--max-failed", "-1"),
        ("--max-failed", "nan"),
        ("--ensemble", "0"),
        ("--ensemble", "many"),
        ("--steps", "0"),
        ("--preset", "best"),
        ("--write", "pfm"),
    ],
)
def test_unknown_values_of_predict_are_wrong_use(photographs, words):
    assert words[0] in run("predict", "in", "out", *words, code=2).output
    assert photographs == {}


def test_values_that_contradict_params_are_wrong_use(photographs, tmp_path):
    (tmp_path / "params.yaml").write_text("datasets: [hypersim-synthetic]\npredict: {merge: latent}\n")
    assert "ensemble_size auto needs merge depth" in run("predict", "in", "out", "--ensemble", "auto", code=2).output


@pytest.mark.slow
def test_end_to_end(tmp_path, monkeypatch, tiny):
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


def test_all_that_a_failed_command_says_is_json_where_that_is_asked(tmp_path):
    environment = os.environ | {"METRICGOLD_LOG": "json", "METRICGOLD_RUN": "night-42"}
    program = "from metricgold.cli import main; main()"
    command = [sys.executable, "-c", program, "predict", "in", "out", "--model", "no\nwhere"]
    ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    records = [json.loads(line) for line in ended.stderr.splitlines()]
    assert (ended.returncode, records[-1]["level"], records[-1]["run"]) == (1, "ERROR", "night-42")
    assert r"no\nwhere" in records[-1]["message"]
