import json
import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from click.testing import CliRunner
from huggingface_hub import ModelCard

from metricgold.cli import main
from metricgold.evaluate.rows import write_rows_file
from metricgold.registry.measured import Measured
from metricgold.registry.model_card import model_card, terms_of
from metricgold.storage.files import digest_folder
from tests.registry.project import PARAMS, change_model, mlflow_client, register_scores

MODEL = Path("models/metricgold")
LINEAGE = {
    "model": {"digest": "ab" * 32},
    "code": {"commit": "c" * 40, "dirty": True},
    "training": {"seconds": 291.5, "hardware": ["a graphics card"]},
    "params": {"train": {"num_steps": 77, "batch_size": 3, "seed": 5}},
    "caches": {"hypersim": {"digest": "0", "num_frames": 612}},
    "datasets": {
        "hypersim": {"role": "train", "licence": "CC BY-SA 3.0"},
        "vkitti2": {"role": "train", "licence": "CC BY-NC-SA 3.0"},
        "kitti": {"role": "benchmark", "licence": "CC BY-NC-SA 3.0"},
        "our-halls": {"role": "train", "licence": "unstated"},
    },
    "backbone": {"source": "stabilityai/stable-diffusion-2"},
}
SCORES = {
    "abs_rel": 0.211,
    "interval95": {"abs_rel": {"low": 0.201, "high": 0.222}},
    "delta1": 0.7,
    "coverage68": 0.655,
    "coverage95": 0.88,
    "uncertainty_calibrated": True,
    "params": {"num_inference_steps": 4, "ensemble_size": 6, "dtype": "float32"},
    "datasets": {
        "hypersim": {
            "abs_rel": 0.211,
            "interval95": {"abs_rel": {"low": 0.201, "high": 0.222}},
            "num_frames": 9,
            "vae_floor": {"abs_rel": 0.031},
            "constant": {"abs_rel": 0.456},
            "by_depth": [
                {"from_m": 0.5, "to_m": 1.0, "abs_rel": 2.017, "num_pixels": 817, "vae_floor_abs_rel": 0.078},
                {"from_m": 1.0, "to_m": 2.0, "abs_rel": 0.1, "num_pixels": 9000, "vae_floor_abs_rel": 0.02},
            ],
        }
    },
}
KITTI = {"abs_rel": 0.664, "abs_rel_low": 0.628, "abs_rel_high": 0.697, "delta1": 0.017, "num_frames": 16}


def frames(path, focal_px_by_scene):
    """A file of rows, one frame a scene, whose AbsRel is the number of the scene in hundredths."""
    rows = [
        {
            **{"benchmark": "hypersim", "protocol": "evaluate", "protocol_digest": "p", "ruler_digest": "r"},
            **{"method": method, "method_digest": method, "frame": scene, "scene": scene, "reason": ""},
            **{"focal_px": focal_px, "width": 100.0, "height": 50.0, "metric/abs_rel": error / 100},
        }
        for error, (scene, focal_px) in enumerate(focal_px_by_scene.items(), 10)
        for method in ("model", "best_constant")
    ]
    write_rows_file(path, rows)
    return path


@pytest.fixture
def card(project, tmp_path):
    rows = frames(tmp_path / "evaluate.rows.parquet", {"wide": 40.0, "wide too": 41.0, "long": 200.0})
    return model_card(MODEL, LINEAGE, Measured(SCORES, {"kitti": KITTI}, [], rows, []))


def test_the_card_says_what_was_measured(card):
    text = card["README.md"]
    assert "| hypersim | 9 | 0.211 [0.201, 0.222] |" in text and "| 0.031 | 0.456 |" in text
    assert "| kitti | \N{EN DASH} | 16 | 0.664 [0.628, 0.697] | 0.017 |" in text
    assert "| hypersim | 0.5 to 1.0 | 2.017 | 0.078 | 817 |" in text, "the worst range of depth comes first"
    assert "65.5 % of pixels where 68 % are meant" in text.replace("\n", " ")
    assert "Training took 291.5 s on a graphics card" in text and "git checkout " + "c" * 40 in text
    assert "Tracked files differed" in text and "77 steps of batch 3 from seed 5" in text
    weights = sum(np.prod(part.get_shape()) for part in tensors(MODEL))
    assert f"{weights} parameters" in text


def tensors(model):
    from safetensors import safe_open

    for path in model.rglob("*.safetensors"):
        with safe_open(path, framework="np") as file:
            yield from (file.get_slice(key) for key in file.keys())  # noqa: SIM118


def test_figures_by_lens_are_of_the_model_alone(card):
    """100 pixels wide: 40 px of focal length are 103 degrees, 200 px 28."""
    rows = re.findall(r"\| (\d+)° to (\d+)° \| hypersim \| (\d+) \| ([\d.]+)", card["README.md"])
    assert rows == [("15", "30", "1", "0.120"), ("90", "105", "2", "0.105")]
    assert "long of hypersim (0.120, 1 images)" in card["README.md"]


def test_licences_are_those_of_all_that_went_into_it(card):
    assert [one.what for one in terms_of(LINEAGE)] == [
        "hypersim",
        "our-halls",
        "vkitti2",
        "backbone (stable-diffusion-2)",
    ]
    for licence in ("CC BY-SA 3.0", "CC BY-NC-SA 3.0", "unstated", "CreativeML Open RAIL++-M"):
        assert licence in card["LICENSE.md"]
    assert "kitti |" not in card["LICENSE.md"].replace("vkitti2", ""), "what only measures is in no weight"


@pytest.mark.parametrize(
    ("licences", "word"),
    [({"Apache-2.0"}, "apache-2.0"), ({"CC BY-NC-SA 3.0", "Apache-2.0"}, "other"), (set(), "other")],
)
def test_the_hub_reads_licence_and_figures(project, tmp_path, licences, word):
    datasets = {f"own-{i}": {"role": "train", "licence": licence} for i, licence in enumerate(sorted(licences))}
    lineage = LINEAGE | {"datasets": datasets, "backbone": {"source": "stand-in"} if licences else None}
    path = tmp_path / "README.md"
    path.write_text(model_card(MODEL, lineage, Measured(SCORES, {"kitti": KITTI}, [], None, []))["README.md"])
    data = ModelCard.load(path).data
    assert (data.license, data.library_name, data.pipeline_tag) == (word, "diffusers", "depth-estimation")
    assert {(one.dataset_name, one.metric_type, one.metric_value) for one in data.eval_results} == {
        ("hypersim", "abs_rel", 0.211),
        ("kitti", "abs_rel", 0.664),
        ("kitti", "delta1", 0.017),
    }


def test_a_card_of_nothing_measured_says_so(project):
    lineage = {"model": {"digest": "0"}, "code": {}, "training": {}, "params": {}, "caches": {}, "datasets": {}}
    text = model_card(MODEL, lineage, Measured({}, {}, [], None, []))["README.md"]
    for words in ("Nothing says which data", "Not measured.", "Not measured by lens.", "Nothing says which commit"):
        assert words in text
    assert "None" not in text and "nan" not in text


def test_a_version_has_its_card_and_exports_it(project, tmp_path):
    run_id = register_scores(abs_rel=0.123)["run_id"]
    assert {file.path for file in mlflow_client().list_artifacts(run_id, "card")} == {
        "card/README.md",
        "card/LICENSE.md",
    }
    Path("metrics/evaluate.json").unlink()
    run = CliRunner().invoke(main, ["export", "--model", "models:/metricgold@candidate", "--hub", "hub", "--json"])
    assert run.exit_code == 0, run.output
    assert json.loads(run.stdout) == {"hub": "hub", "model_digest": digest_folder(MODEL)}
    text = Path("hub/README.md").read_text()
    assert "0.123" in text and digest_folder(MODEL) in text
    for path in Path("hub").rglob("*"):
        assert not path.is_file() or str(tmp_path).encode() not in path.read_bytes(), "no path of this machine"


def test_measured_again_the_card_is_made_again(project):
    register_scores(abs_rel=0.123)
    run_id = register_scores(abs_rel=0.456)["run_id"]
    path = Path(mlflow_client().download_artifacts(run_id, "card/README.md"))
    assert "0.456" in path.read_text() and "0.123" not in path.read_text()


def test_a_folder_is_exported_with_its_own_figures_only(project):
    register_scores()
    Path("params.yaml").write_text(yaml.safe_dump(PARAMS.model_dump(mode="json")))
    run = CliRunner().invoke(main, ["export", "--hub", "hub"])
    assert run.exit_code == 0, run.output
    change_model("trained again")
    run = CliRunner().invoke(main, ["export", "--hub", "hub"])
    assert run.exit_code == 1 and "about another checkpoint" in run.stderr
    run = CliRunner().invoke(main, ["export"])
    assert run.exit_code == 2 and "--hub DIR" in run.stderr
