import json
import re

import pytest
import yaml

from metricgold.params.paths import Folders
from metricgold.params.sections import Params, Train, load_params
from tests.support import ROOT


def write(tmp_path, values):
    path = tmp_path / "params.yaml"
    path.write_text(values if isinstance(values, str) else yaml.safe_dump(values))
    return path


def test_the_project_s_params_load_and_everything_has_a_default(tmp_path):
    assert load_params(ROOT / "params.yaml").datasets
    params = load_params(write(tmp_path, {"datasets": ["hypersim"]}))
    assert (params.predict.num_inference_steps, params.predict.ensemble_size) == (50, 10)
    assert (params.train.num_steps, params.train.batch_size, params.train.lr) == (30_000, 32, 3e-5)
    assert (params.log_depth.near_m, params.log_depth.far_m) == (0.5, 80.0)


@pytest.mark.parametrize(
    "values, message",
    [
        ({"datasets": ["a"], "train": {"stepz": 3}}, "train.stepz: Extra inputs are not permitted, got 3"),
        ({"datasets": ["a"], "train": {"lr": -1}}, "train.lr: .*greater than 0, got -1"),
        ({"datasets": []}, "datasets: .*at least 1 item"),
        ({}, "datasets: Field required"),
        ({"datasets": ["a"], "train": {"batch_size": 5, "micro_batch_size": 2}}, "batch_size 5 must be a multiple"),
        ({"datasets": ["a"], "train": {"weights": {"b": 1}}}, r"train.weights names \['b'\]"),
        ({"datasets": ["a"], "train": {"prediction_type": "epsilon"}}, "zero_terminal_snr.*epsilon"),
        ({"datasets": ["a"], "predict": {"timestep_spacing": "leading"}}, "leading never visits.*zero_terminal_snr"),
        ({"datasets": ["a"], "backbone": {"sha256": {"unet": "ab"}}}, "backbone.sha256.unet: .*pattern"),
        ({"datasets": ["a"], "backbone": {"mirrors": [{"from": "b"}]}}, "backbone.mirrors.0.source: Field required"),
        ({"datasets": ["a"], "log_depth": {"near_m": 90}}, "near_m 90.0 must be below far_m 80.0"),
        (
            {"datasets": ["a"], "log_depth": {"encoding": "disparity"}},
            "log_depth.encoding: .*'linear', 'inverse'",
        ),
        ({"datasets": ["a"], "backbone": {"stand_in": {"encodings": []}}}, "backbone.stand_in.encodings: .*at least 1"),
        ({"datasets": ["a"], "vae_floor": {"ranges_m": [{"encoding": "log"}]}}, "ranges_m.0.encoding: Extra inputs"),
        ("a: [", "line 1: is not YAML"),
        ("datasets: [a]\ntrain:\n  lr: 1e-5\n  lr: 1e-4\n", "line 4: lr is given twice"),
        ("datasets: &a [a]\ntrain: *a\n", "line 2: has an alias"),
        ("- 1", "Input should be"),
    ],
)
def test_a_fault_is_named_with_its_file_and_key(tmp_path, values, message):
    path = write(tmp_path, values)
    with pytest.raises(ValueError, match=message) as caught:
        load_params(path)
    assert str(path) in str(caught.value)


def test_the_paper_s_spacing_stands_beside_the_paper_s_schedule(tmp_path):
    values = {"datasets": ["a"], "train": {"zero_terminal_snr": False}, "evaluate": {"timestep_spacing": "leading"}}
    assert load_params(write(tmp_path, values)).evaluate.timestep_spacing == "leading"


def test_all_faults_are_named_at_once(tmp_path):
    path = write(tmp_path, {"datasets": ["a"], "encode": {"height": 0}, "predict": {"ensemble": 1}})
    with pytest.raises(ValueError, match=r"(?s)encode\.height.*predict\.ensemble"):
        load_params(path)


def test_a_missing_file_says_what_to_do(tmp_path):
    with pytest.raises(ValueError, match="no such file; run from the project's root or pass --params"):
        load_params(tmp_path / "none.yaml")


def test_sections_cannot_be_changed():
    params = Params(datasets=["a"], train=Train())
    with pytest.raises(ValueError, match="frozen"):
        params.train.lr = 1.0


NO_NAMES = ["", "../mine", "/abs/mine", "mine/", ".mine", "-mine", "Mine", "x; touch PWNED", "x\n", "$(id)", "x y", "ä"]


@pytest.mark.parametrize("name", NO_NAMES)
def test_a_data_set_s_name_is_no_path_and_no_command(tmp_path, name):
    for values in (
        {"datasets": [name]},
        {"datasets": ["a"], "download": {"streamed": [name]}},
        {"datasets": ["a"], "download": {"scenes": {name: ["*"]}}},
        {"datasets": ["a"], "train": {"weights": {name: 1.0}}},
    ):
        (tmp_path / "params.yaml").write_text(json.dumps(values))
        with pytest.raises(ValueError, match=r"params\.yaml: .*expected a name of a-z"):
            load_params(tmp_path / "params.yaml")
    for folder in (Folders().raw, Folders().latents, Folders().synthetic):
        with pytest.raises(ValueError, match="expected a name of a-z"):
            folder(name)


def test_overrides_are_checked_as_the_file_is(tmp_path):
    path = tmp_path / "params.yaml"
    path.write_text("datasets: [a]\ntrain:\n  lr: 0.1\n")
    params = load_params(path, {"train.lr": 0.2, "train.noise.strength": 0.5, "datasets": ["a", "b"]})
    assert (params.train.lr, params.train.noise.strength, params.datasets) == (0.2, 0.5, ["a", "b"])
    for key, value in (("train.lrr", 1), ("train.lr", -1), ("datasets", ["x; y"]), ("other.yaml:train.lr", 1)):
        with pytest.raises(ValueError, match=re.escape(f"{path}: {key.partition('.yaml')[0]}")):
            load_params(path, {key: value})


def test_encodings_count_only_where_they_are_not_the_paper_s(tmp_path):
    """What was made before these keys has the digests of params without them."""
    params = load_params(write(tmp_path, {"datasets": ["a"], "log_depth": {"encoding": "log"}}))
    assert params.log_depth.model_dump() == {"near_m": 0.5, "far_m": 80.0}
    assert "encoding" not in params.canonical_depth.model_dump()
    assert "encodings" not in params.backbone.stand_in.model_dump()
    other = {"log_depth": {"encoding": "sqrt"}, "backbone": {"stand_in": {"encodings": ["log", "sqrt"]}}}
    stated = load_params(write(tmp_path, {"datasets": ["a"], **other}))
    assert stated.log_depth.model_dump() == {"near_m": 0.5, "far_m": 80.0, "encoding": "sqrt"}
    assert stated.backbone.stand_in.model_dump()["encodings"] == ["log", "sqrt"]
    assert Params.model_validate(stated.model_dump()) == stated
