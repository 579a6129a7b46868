"""Every stage that reads downloaded frames refuses those that were edited."""

import zipfile

import numpy as np
import pytest

from metricgold.datasets.manifest import Manifest, read_manifest
from metricgold.download.stage import download
from metricgold.evaluate.benchmark_stage import benchmark
from metricgold.evaluate.stage import evaluate
from metricgold.evaluate.summary import BenchmarkOutputs
from metricgold.evaluate.vae_floor import measure_vae_floor
from metricgold.evaluate.validation import held_out_validation
from metricgold.params.paths import Folders
from metricgold.params.sections import Validation
from metricgold.train.depth_vae import train_depth_vae

DEPTH = "env{}/Easy/P000/depth_left/000001_left_depth.npy"
TRAINING, HELD_OUT = DEPTH.format(101), DEPTH.format(901)


@pytest.fixture
def raw(tiny_raw, tmp_path):
    facts = read_manifest(tiny_raw / "manifest.yaml").model_dump(exclude_unset=True)
    facts["licence"]["needs_acceptance"] = False
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as file:
        for path in tiny_raw.glob("env*/**/*.*"):
            file.write(path, path.relative_to(tiny_raw))
    changes = {"mirrors": [f"file://{tmp_path}"], "archives": [{"path": "all.zip"}], "checksums": None}
    download(Manifest(**facts | changes), tmp_path / "raw")
    return tmp_path / "raw"


@pytest.mark.parametrize(
    ("stage", "edited"),
    [
        ("evaluate", HELD_OUT),
        ("evaluate", TRAINING),  # its mean depth map
        ("benchmark", HELD_OUT),
        ("vae-floor", TRAINING),
        ("validation", HELD_OUT),
        ("depth-vae", HELD_OUT),
        ("depth-vae", TRAINING),
    ],
)
def test_edited_depth_ends_the_stage(tiny, tiny_backbone, tiny_model, raw, tmp_path, stage, edited):
    raws, out, size = {tiny.datasets[0]: raw}, tmp_path / "out", (32, 48)
    metrics, plots = tmp_path / "metrics.json", tmp_path / "plots"
    depth_vae = tiny.depth_vae.model_copy(update={"num_steps": 1})
    call = {
        "evaluate": lambda: evaluate(tiny.evaluate, raws, tiny_model, metrics, plots),
        "benchmark": lambda: benchmark(
            tiny.benchmark, tiny.datasets[0], raw, BenchmarkOutputs.of(Folders(tmp_path), "tiny")
        ),
        "vae-floor": lambda: measure_vae_floor(
            tiny.vae_floor, tiny.log_depth, raws, tiny_backbone, metrics, plots, size=size
        ),
        "validation": lambda: held_out_validation(Validation(split="test"), tiny.log_depth, raws, out),
        "depth-vae": lambda: train_depth_vae(depth_vae, tiny.log_depth, raws, tiny_backbone, out, metrics, size=size),
    }[stage]
    with (raw / edited).open("r+b") as file:
        file.seek(-4, 2)
        file.write(np.float32(7).tobytes())
    with pytest.raises(ValueError, match=rf"{edited}: not what was downloaded .*download raw --verify"):
        call()
