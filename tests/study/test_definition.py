"""A study's file: what it expands to, and what is wrong with one, by its key."""

import pytest
import yaml

from metricgold.params import load_params
from metricgold.study.definition import load_study, runs_of, study_names
from tests.conftest import TINY
from tests.study.conftest import STUDY, write_study
from tests.support import ROOT


def runs(folder, params=TINY, **changes):
    write_study(folder, **changes)
    study = load_study("tiny", folder / "studies")
    return runs_of(study, params, "tiny", folder / "studies")


def test_the_product_of_factors_seeds_and_inference(tmp_path):
    expanded = runs(tmp_path)
    assert [str(run) for run in expanded[:3]] == [
        "loss l2, steps 1, seed 0",
        "loss l2, steps 2, seed 0",
        "loss l2, steps 1, seed 1",
    ]
    assert len(expanded) == 8
    last = expanded[-1].params
    assert (last.train.loss, last.train.seed, last.train.num_steps, last.train.checkpoint_every) == ("l1", 1, 4, 2)
    assert last.train.batch_size == TINY.train.batch_size  # a section changes only where it is named
    assert last.evaluate.num_inference_steps == last.benchmark.num_inference_steps == 2
    assert last.benchmarks == ["mine"]
    assert len({run.digest for run in expanded}) == 8


def test_defaults_do_not_decide_a_digest(tmp_path):
    (run, *_), stated = runs(tmp_path), TINY.model_copy(update={"train": TINY.train.model_copy(update={"flip": True})})
    assert runs(tmp_path, stated)[0].digest == run.digest


def test_names_mean_twins_with_the_stand_in_and_their_originals_else(tmp_path):
    changes = {
        "measures": {"benchmarks": ["kitti-synthetic"]},
        "factors": {"weights": {"more": {"train": {"weights": {"hypersim-synthetic": 2.0}}}}},
    }
    twins = TINY.model_copy(update={"datasets": ["hypersim-synthetic"]})
    (run, *_) = runs(tmp_path, twins, **changes)
    assert run.benchmarks == ("kitti-synthetic",) and run.params.train.weights == {"hypersim-synthetic": 2.0}
    full = load_params(ROOT / "profiles/rtx3090.yaml")
    (run, *_) = runs(tmp_path, full, **changes)
    assert run.benchmarks == ("kitti",) and run.params.train.weights["hypersim"] == 2.0
    assert run.params.train.checkpoint_every == full.train.checkpoint_every  # `stand_in` is not for it


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"question": ""}, "question"),
        ({"questions": "Which?"}, "questions"),
        ({"seeds": []}, "seeds"),
        ({"seeds": [0, 0]}, "seeds"),
        ({"factors": {}, "inference": {}}, "nothing varies"),
        ({"factors": {"seed": {"a": None}}}, "cannot be called seed"),
        ({"factors": {"steps": {"a": None}}}, "cannot be called steps"),
        ({"factors": {"loss": {}}}, "factors.loss"),
        ({"factors": {"loss": {"a|b": None}}}, "a|b"),
        ({"factors": {"loss": {"l1": {"train": {"losss": "l1"}}}}}, "factors.loss.l1.train.losss"),
        ({"factors": {"loss": {"l1": {"train": {"lr": -1}}}}}, "factors.loss.l1.train.lr"),
        ({"factors": {"loss": {"l1": {"trian": {}}}}}, "factors.loss.l1.trian"),
        ({"fixed": {"train": {"num_steps": 0}}}, "fixed.train.num_steps"),
        ({"fixed": {"train": 3}}, "train is 3"),
        ({"inference": {"steps": {"1": {"min_m": 1}}}}, "inference.steps.1.benchmark.min_m"),
        ({"within": ["colour"]}, "colour"),
        ({"measures": {"in_domain": False}}, "measures"),
        ({"measures": {"benchmarks": ["../x"]}}, "measures.benchmarks.0"),
        ({"budget_minutes": 0}, "budget_minutes"),
    ],
)
def test_a_fault_is_one_line_with_file_and_key(tmp_path, changes, key):
    with pytest.raises(ValueError, match=r"tiny\.yaml: ") as fault:
        runs(tmp_path, **changes)
    assert key in str(fault.value) and "\n" not in str(fault.value)


@pytest.mark.parametrize("name", ["nobody", "../tiny", "Tiny"])
def test_a_study_that_is_not_there(tmp_path, name):
    write_study(tmp_path)
    with pytest.raises(ValueError, match="there are: tiny"):
        load_study(name, tmp_path / "studies")


@pytest.mark.parametrize("name", study_names(ROOT / "studies"))
def test_every_study_of_the_project_fits_the_small_model_and_a_full_size(name):
    """Three seeds or more, all benchmarks, and levels that differ."""
    study = load_study(name, ROOT / "studies")
    small, full = (
        runs_of(study, load_params(ROOT / f"profiles/{profile}.yaml"), name, ROOT / "studies")
        for profile in ("demo", "rtx3090-one-step" if is_one_step(study) else "rtx3090")
    )
    assert len(small) == len(full) == len({run.digest for run in small})
    assert len(study.seeds) >= 3 and len(study.measures.benchmarks) >= 5
    assert yaml.safe_load((ROOT / f"studies/{name}.yaml").read_text())["question"].endswith("?")


def is_one_step(study):
    return study.fixed["train"]["objective"] == "one-step"


def test_the_example_here_is_one_that_is_allowed(tmp_path):
    assert runs(tmp_path) and set(STUDY) >= {"question", "factors", "seeds"}
