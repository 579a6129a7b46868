"""`metricgold benchmark` with a real checkpoint, from the command line to the page."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from click.testing import CliRunner

from metricgold.cli import main
from metricgold.evaluate.rows import read_rows_files
from tests.evaluate.peer_folders import save_transformers
from tests.evaluate.test_benchmark import write_frames
from tests.support import ROOT


def call(*words, code=0):
    result = CliRunner().invoke(main, ["benchmark", *words])
    assert result.exit_code == code, result.output
    return result


@pytest.fixture
def there(tmp_path, monkeypatch, tiny, tiny_model, tiny_raw):
    """A project with a checkpoint, a set that trains and one that only measures."""
    monkeypatch.chdir(tmp_path)
    values = tiny.model_dump(mode="json")
    values["benchmarks"] = ["mine"]
    values["benchmark"] |= {"num_inference_steps": 1, "ensemble_size": 3}
    Path("params.yaml").write_text(yaml.safe_dump(values))
    Path("models").mkdir()
    shutil.copytree(tiny_model, "models/metricgold")
    Path("data/raw").mkdir(parents=True)
    Path("data/raw/tartanair-synthetic").symlink_to(tiny_raw)
    write_frames(Path("data/benchmarks/mine"), per_scene=2)
    return tmp_path


def test_the_model_stands_beside_its_floor_and_baselines_and_the_page_is_rebuilt_without_it(there):
    (answer,) = map(json.loads, call("--json").stdout.splitlines())
    assert answer["benchmark"] == "mine" and answer["num_frames"] == 4 and answer["abs_rel"] > 0
    written = json.loads(Path("metrics/benchmark/mine.json").read_text())
    figures = answer.pop("figures")
    assert answer == {"benchmark": "mine"} | written
    # Every figure is in the answer, as the rows have it.
    of_model = figures["mine"]["whole"]["metricgold"]
    assert of_model["metric/abs_rel"] == [answer[key] for key in ("abs_rel", "abs_rel_low", "abs_rel_high")]
    assert {"metric/silog_dav2", "scale/rmse_m", "affine_disparity/delta1", "coverage95"} <= of_model.keys()
    assert len(written["model_digest"]) == 64
    rows = read_rows_files([Path("reports/benchmark/mine.rows.parquet")])
    assert rows.unique("method") == ["best_constant", "mean_map", "metricgold", "vae_floor of metricgold"]
    assert np.isfinite(rows.where(method="metricgold")["coverage95"]).all()
    assert np.isnan(rows.where(method="mean_map")["coverage95"]).all()
    page = Path("reports/benchmark/mine.html").read_bytes()
    shutil.rmtree("models"), shutil.rmtree("data")
    again = json.loads(call("--report", "reports/benchmark/mine.rows.parquet", "--json").stdout)
    assert Path("reports/benchmark/mine.html").read_bytes() == page
    assert again["figures"] == figures
    shutil.copy("reports/benchmark/mine.rows.parquet", "mine.rows.parquet")
    call("--report", "reports/benchmark/mine.rows.parquet", "mine.rows.parquet")  # as a shell spreads *.parquet
    assert Path("reports/benchmark/comparison.html").is_file()


def test_without_a_set_that_trains_the_mean_map_is_left_out_and_said(there, caplog):
    Path("data/raw/tartanair-synthetic").unlink()
    call("mine")
    assert "mean_map left out" in caplog.text
    assert "mean_map" not in read_rows_files([Path("reports/benchmark/mine.rows.parquet")]).unique("method")


def test_two_models_side_by_side_and_what_dvc_writes(there):
    shutil.copytree("models/metricgold", "models/other")
    (there / "models/other/notes.txt").write_text("differs")
    answer = call(
        "--dataset", "mine", "--model", "models/metricgold", "--model", "models/other", "--frames", "2", "--json"
    )
    assert json.loads(answer.stdout)["num_frames"] == 2
    rows = read_rows_files([Path("reports/benchmark/mine.rows.parquet")])
    assert {"metricgold", "other", "vae_floor of other"} <= set(rows.unique("method"))
    np.testing.assert_array_equal(
        rows.where(method="other")["metric/abs_rel"], rows.where(method="metricgold")["metric/abs_rel"]
    )


def test_two_models_of_one_name_are_both_measured(there):
    shutil.copytree("models/metricgold", "other/metricgold")
    (there / "other/metricgold/notes.txt").write_text("differs")
    call("mine", "--model", "models/metricgold", "--model", "other/metricgold", "--frames", "2")
    rows = read_rows_files([Path("reports/benchmark/mine.rows.parquet")])
    assert {"metricgold", "other/metricgold"} <= set(rows.unique("method"))


def test_a_peer_is_measured_by_the_same_rules_and_its_kind_decides_its_figures(there):
    save_transformers(there / "peers/small", "depth_anything", depth_estimation_type="metric", max_depth=20)
    save_transformers(there / "peers/relative", "depth_anything", depth_estimation_type="relative")
    call("mine", "--peer", "transformers:peers/small", "--peer", "transformers:peers/relative", "--frames", "2")
    rows = read_rows_files([Path("reports/benchmark/mine.rows.parquet")])
    assert rows.unique("method") == ["best_constant", "mean_map", "relative", "small"]
    assert np.isfinite(rows.where(method="small")["metric/abs_rel"]).all()
    assert np.isnan(rows.where(method="relative")["metric/abs_rel"]).all()
    assert np.isfinite(rows.where(method="relative")["affine_disparity/abs_rel"]).all()


def test_help_and_report_load_no_torch(there):
    call("--frames", "1")
    assert "abs_rel_low" not in json.loads(Path("metrics/benchmark/mine.json").read_text())  # one scene, no interval
    code = """
import sys
from metricgold.cli import main
try:
    main(["benchmark", "--report", "reports/benchmark/mine.rows.parquet"])
except SystemExit as ended:
    assert ended.code == 0, ended.code
assert not {"torch", "diffusers"} & sys.modules.keys()
"""
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
