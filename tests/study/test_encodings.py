"""The study of encodings: what its runs are, and a tiny one of all four from the backbone to rows."""

import json

import pytest

from metricgold.params import load_params
from metricgold.study.definition import load_study, runs_of
from metricgold.study.store import names_of
from tests.study.conftest import STUDY, write_study
from tests.study.test_stage import _in_child, lines_of, made, run_and_tell
from tests.support import ROOT

NAMES = ["log", "linear", "inverse", "sqrt"]


@pytest.mark.parametrize("profile", ["demo", "rtx3090-one-step"])
def test_the_study_differs_in_what_the_network_learns_and_shares_the_rest(profile):
    study, params = load_study("encodings", ROOT / "studies"), load_params(ROOT / f"profiles/{profile}.yaml")
    runs = runs_of(study, params, "encodings", ROOT / "studies")
    assert len(runs) == 4 * 3 * 3
    assert all(run.params.depth_range.encoding == run.levels["encoding"] for run in runs)
    contents = dict.fromkeys(params.datasets, "")
    names = [names_of(run.params, contents) for run in runs]
    assert len({one.backbone for one in names}) == 1, "a backbone does not know the encoding of a run"
    assert len({name for one in names for name in one.caches.values()}) == 4 * len(params.datasets)
    assert len({one.depth_vae for one in names}) == (4 if params.depth_vae.num_steps else 1)
    assert len({one.training for one in names}) == 36
    if profile == "demo":
        assert runs[0].params.backbone.stand_in.encodings == NAMES and params.depth_vae.num_steps


def test_a_level_of_data_draws_from_its_kind_of_place_alone():
    study, params = load_study("encodings", ROOT / "studies"), load_params(ROOT / "profiles/demo.yaml")
    drawn = {}
    for run in runs_of(study, params, "encodings", ROOT / "studies"):
        (phase,) = run.params.train.curriculum
        drawn[run.levels["data"]] = {name for name in run.params.datasets if phase.weights.get(name, 1)}
    assert drawn == {
        "both": {"hypersim-synthetic", "vkitti2-synthetic"},
        "indoor": {"hypersim-synthetic"},
        "outdoor": {"vkitti2-synthetic"},
    }


def test_a_tiny_study_of_all_four(tiny_project, tmp_path):
    """Each has a cache, a decoder, a model and floors of its own (one a set); the stand-in is one."""
    for name in ("params.yaml", "data"):
        (tmp_path / name).symlink_to(tiny_project / name)
    levels = {name: {"log_depth": {"encoding": name}} for name in NAMES}
    shares = {"train": STUDY["stand_in"]["train"], "backbone": {"stand_in": {"encodings": NAMES}}}
    write_study(tmp_path, factors={"encoding": levels}, inference={}, seeds=[0], stand_in=shares)
    counts, _ = _in_child(run_and_tell, tmp_path)
    assert counts["measured"] == 4
    kinds = sorted(name.rpartition("-")[0] for name in made(tmp_path))
    each = ["depth-vae", "floor", "floor", "latents", "model"]
    assert kinds == sorted(["backbone", *each * 4])
    rows = lines_of(tmp_path, "tiny")
    assert {row["encoding"] for row in rows} == set(NAMES)
    assert len({row["vae_floor"] for row in rows if row["scene"] == "room"}) == 4
    indices = [json.loads(path.read_text()) for path in tmp_path.glob("models/studies/model-*/model_index.json")]
    assert sorted(index.get("encoding", "log") for index in indices) == sorted(NAMES)
