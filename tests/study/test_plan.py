"""What a study will cost: counts by hand, on this machine and on a card, and what is there already."""

import json

import pytest
from click.testing import CliRunner

from metricgold.cli import main
from metricgold.params import Folders, load_params
from metricgold.study.plan import describe_plan, plan_study
from metricgold.train.cost import flops_per_sample, forward_flops
from metricgold.train.plan import latent_shape, model_configs
from tests.conftest import TINY
from tests.study.conftest import write_study
from tests.support import ROOT


def test_counts_are_those_of_the_factors(tiny_project, tmp_path):
    (tmp_path / "data").symlink_to(tiny_project / "data")
    write_study(tmp_path)
    plan = plan_study("tiny", TINY, folders=Folders(tmp_path), card="rtx3090")
    counts = {"runs": 8, "measured": 0, "trainings": 4, "backbones": 1, "caches": 1, "decoders": 1}
    assert counts.items() <= plan.items()
    assert plan["hours"] == plan["hours_left"] > 0 and plan["calls_left"] == 1 and plan["disk_gb"] > 0
    assert plan["tflop_per_s"] == pytest.approx(0.4 * 35.6, rel=1e-2)  # float32 on the card
    assert "8, of which 0 are measured" in describe_plan(plan)


def test_training_weighs_what_its_steps_do(tiny_project, tmp_path):
    (tmp_path / "data").symlink_to(tiny_project / "data")

    def tflop(steps):
        write_study(tmp_path, fixed={"train": {"num_steps": steps}}, seeds=[0], inference={}, measures={})
        return plan_study("tiny", TINY, folders=Folders(tmp_path), card="h100")["tflop"]

    unet, vae = model_configs(TINY.backbone, tmp_path)
    sample = flops_per_sample(unet, latent_shape(TINY, vae, tmp_path, TINY.datasets[0]), False)
    assert tflop(200_000) - tflop(100_000) == pytest.approx(2 * 100_000 * 4 * sample / 1e12, rel=0.02)
    forward = forward_flops(unet, latent_shape(TINY, vae, tmp_path, TINY.datasets[0]))
    assert sample / 3.2 < forward < sample / 2.8  # a backward pass is two


def test_the_command_measures_this_machine_and_counts_what_is_left(tiny_project, monkeypatch):
    monkeypatch.chdir(tiny_project)
    done = CliRunner().invoke(main, ["study", "tiny", "--plan", "--json"])
    assert done.exit_code == 0, done.output
    plan = json.loads(done.stdout)
    assert plan["tflop_per_s"] > 0 and plan["runs"] == 8 and plan["on"].startswith("this machine")


def test_a_full_size_is_counted_without_its_data(tmp_path):
    full = load_params(ROOT / "profiles/rtx3090-one-step.yaml")
    names = [f"{name}-synthetic" for name in ("nyuv2", "kitti", "eth3d", "diode", "ibims1")]
    write_study(
        tmp_path,
        fixed={"train": {"validation": None, "uncertainty": None}},
        stand_in={"train": {"num_steps": 1}},
        factors={"decoder": {"as it is": None, "tuned": {"depth_vae": {"num_steps": 500}}}},
        inference={},
        measures={"benchmarks": names},
    )
    plan = plan_study("tiny", full, folders=Folders(tmp_path), card="rtx3090")
    assert (plan["trainings"], plan["caches"], plan["decoders"]) == (4, 3, 1)
    assert plan["calls_left"] == 1  # no budget ends one
    assert 100 < plan["hours"] < 2000 and plan["disk_gb"] > 100
    hours = plan_study("tiny", full, folders=Folders(tmp_path), card="h100")["hours"]
    assert plan["hours"] / hours == pytest.approx(989.4 / 71, rel=0.02)


def test_a_card_that_is_not_known(tmp_path):
    write_study(tmp_path)
    with pytest.raises(ValueError, match="no card 'gt710'"):
        plan_study("tiny", TINY, folders=Folders(tmp_path), card="gt710")
