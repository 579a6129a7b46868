"""The study of latents and pixels: budgets that are equal where it says so, and all four ways to learn, run tiny."""

from pathlib import Path

import pytest
import yaml

from metricgold.params import Folders, load_params
from metricgold.study.definition import load_study, runs_of
from metricgold.study.plan import plan_study
from metricgold.study.results import Results
from metricgold.study.store import Store, names_of
from metricgold.study.worker import Job, advance
from metricgold.train.plan import step_flops
from tests.conftest import DATASET, TINY
from tests.support import ROOT

WAYS = "space and objective"
QUIET_TFLOP_PER_S = 0.097  # of two quiet cores: 600 one-step steps in latents take 100 s


@pytest.fixture(scope="module")
def params():
    return load_params(ROOT / "profiles/demo.yaml")


@pytest.fixture(scope="module")
def of_seed(params):
    """The runs of one seed by budget and way to learn."""
    runs = runs_of(load_study("space", ROOT / "studies"), params, "space", ROOT / "studies")
    return {(run.levels["budget"], run.levels[WAYS]): run.params for run in runs if run.seed == 0}


def training_flops(params):
    return params.train.num_steps * step_flops(params, Path("none"), Path("none"))


def test_at_equal_flops_all_four_cost_the_same(of_seed):
    flops = {way: training_flops(one) for (budget, way), one in of_seed.items() if "FLOPs" in budget}
    assert len(flops) == 4
    assert max(flops.values()) / min(flops.values()) < 1.002


def test_at_equal_steps_all_four_see_the_same_samples(of_seed):
    trainings = [one.train for (budget, _), one in of_seed.items() if "steps" in budget]
    assert len(trainings) == 4
    assert len({(train.num_steps, train.decay_steps, train.batch_size, train.lr) for train in trainings}) == 1


def test_a_learning_rate_ends_with_its_training(of_seed):
    assert all(one.train.num_steps == one.train.decay_steps > 5 * one.train.warmup_steps for one in of_seed.values())


def test_it_fits_an_hour_of_two_quiet_cores(params):
    plan = plan_study("space", params, card="h100", folders=Folders(ROOT))
    assert plan["runs"] == 24 and plan["tflop"] < 3600 * QUIET_TFLOP_PER_S


@pytest.fixture(scope="module")
def rows(tiny_project, tmp_path_factory):
    """Rows of the study with tiny budgets, of each run and scene."""
    root = tmp_path_factory.mktemp("space")
    (root / "data").symlink_to(tiny_project / "data")
    (root / "studies").mkdir()
    values = yaml.safe_load((ROOT / "studies/space.yaml").read_text())
    for level in values["factors"][WAYS].values():
        level["depth_vae"]["num_steps"] = min(2, level["depth_vae"]["num_steps"])
    steps = {"num_steps": 2, "decay_steps": 2, "batch_size": 4, "micro_batch_size": 2, "warmup_steps": 0}
    values["factors"]["budget"] = {"tiny": {"encode": {"height": 32, "width": 48}, "train": steps}}
    values |= {"seeds": [0], "measures": {"benchmarks": ["mine"]}}
    (root / "studies/space.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    study, store = load_study("space", root / "studies"), Store(Folders(root))
    results = Results("space", study, root / "studies/results")
    for run in runs_of(study, TINY, "space", root / "studies"):
        names = names_of(run.params, store.contents(run))
        while not results.has(run):
            advance(Job([run], names, results, store))
    return results


def test_all_four_train_and_predict_and_the_floor_of_pixels_is_that_of_the_grid(rows):
    """Frames of training fit the grid, and nothing is lost; others are scaled to it, in latents too."""
    floors = {"latents": {}, "pixels": {}}
    for row in rows.measured_rows():
        assert float(row["abs_rel"]) > 0
        floors[row[WAYS].partition(",")[0]][row["set"], row["scene"]] = float(row["vae_floor"])
    assert len(floors["latents"]) == len(floors["pixels"]) == 3
    assert floors["pixels"][DATASET, "env901"] < 1e-6
    assert all(floors["pixels"][scene] < floor for scene, floor in floors["latents"].items())


def test_what_pixels_cost_is_in_their_rows(rows):
    runs = {run[WAYS]: run for run in rows.runs()}
    for way in ("diffusion", "one step"):
        latents, pixels = runs[f"latents, {way}"], runs[f"pixels, {way}"]
        assert latents["passes"] == pixels["passes"] == ("8" if way == "diffusion" else "1")
        for cost in ("train_tflop", "image_gflop"):
            assert float(pixels[cost]) > 2 * float(latents[cost])
        assert float(pixels["peak_gb"]) > 0 < float(pixels["image_s"])
