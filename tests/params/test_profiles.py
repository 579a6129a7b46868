"""Profiles are whole, agree with what they promise, and never overwrite what a person edited."""

import pytest
import yaml

from metricgold.params.profiles import PROFILES, differences, list_profiles, use_profile
from metricgold.params.sections import load_params
from tests.support import ROOT

NAMES = ["demo", "h100", "rtx3090", "rtx3090-one-step"]


def values(path):
    return yaml.safe_load(path.read_text())


def test_the_demo_profile_is_the_project_s_params():
    assert values(PROFILES / "demo.yaml") == values(ROOT / "params.yaml")


@pytest.mark.parametrize("name", NAMES)
def test_a_profile_has_every_key_that_dvc_watches(name):
    """`dvc repro` refuses to run without them, whatever their defaults are."""
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"].values()
    for key in {key for stage in stages for key in stage["params"]}:
        section = values(PROFILES / f"{name}.yaml")
        for part in key.split("."):
            assert part in section, key
            section = section[part]


@pytest.mark.parametrize("name", ["h100", "rtx3090", "rtx3090-one-step"])
def test_a_real_run_has_the_paper_s_budget(name):
    params = load_params(PROFILES / f"{name}.yaml")
    assert params.datasets == ["hypersim", "vkitti2", "tartanair"] == list(params.train.weights)
    assert sum(params.train.weights.values()) == pytest.approx(1)
    assert (params.encode.height, params.encode.width) == (480, 640)
    assert (params.train.num_steps, params.train.batch_size, params.train.lr) == (30_000, 32, 3e-5)


def test_one_step_differs_from_diffusion_by_what_one_step_means():
    changed = differences(values(PROFILES / "rtx3090.yaml"), values(PROFILES / "rtx3090-one-step.yaml"))
    assert {line.partition(":")[0] for line in changed} == {
        "train.objective", "train.loss", "train.validation.num_inference_steps",
        "train.uncertainty.num_inference_steps",
        "evaluate.num_inference_steps", "evaluate.ensemble_size",
        "benchmark.num_inference_steps", "benchmark.ensemble_size",
        "predict.num_inference_steps", "predict.ensemble_size",
    }  # fmt: skip


def test_a_profile_is_copied_and_says_what_changed(tmp_path):
    path = tmp_path / "params.yaml"
    assert "train.num_steps: unset -> 1650" in use_profile("demo", path)
    assert path.read_bytes() == (PROFILES / "demo.yaml").read_bytes()
    changed = use_profile("rtx3090", path)
    assert "train.num_steps: 1650 -> 30000" in changed
    assert "train.weights.hypersim: unset -> 0.6" in changed
    assert use_profile("rtx3090", path) == []
    assert list_profiles(path)["rtx3090"].endswith("(in use)")
    assert list(list_profiles(path)) == NAMES


def test_what_was_edited_is_kept_unless_forced(tmp_path):
    path = tmp_path / "params.yaml"
    edited = values(PROFILES / "rtx3090.yaml")
    path.write_text(yaml.safe_dump(edited))  # rewritten, as DVC does, but the same values
    use_profile("rtx3090", path)
    edited["train"]["lr"] = 1e-5
    path.write_text(text := yaml.safe_dump(edited))
    with pytest.raises(ValueError, match=r"--force: it is rtx3090 with train\.lr: 3e-05 -> 1e-05$"):
        use_profile("demo", path)
    assert path.read_text() == text
    assert "train.lr: 1e-05 -> 0.0015" in use_profile("demo", path, force=True)


def test_wrong_use_is_named(tmp_path):
    with pytest.raises(ValueError, match="no profile 'rtx'; known: demo, h100, rtx3090"):
        use_profile("rtx", tmp_path / "params.yaml")
    (tmp_path / "mine.yaml").write_text("datasets: []\n")
    with pytest.raises(ValueError, match=r"mine\.yaml: datasets: .*at least 1 item"):
        use_profile("mine", tmp_path / "params.yaml", profiles=tmp_path)
    assert not (tmp_path / "params.yaml").exists()
