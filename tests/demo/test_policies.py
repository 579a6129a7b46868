"""What a policy costs is counted; both objectives are trained from the same params."""

import pytest
from click.testing import CliRunner

from demo import policies
from metricgold.params.sections import Inference
from metricgold.params.words import PRESETS
from metricgold.storage.files import read_json

ROWS = [
    {"objective": "diffusion", "policy": "fast", "asked": PRESETS["fast"], "passes": 4, "abs_rel": 0.2, "delta1": 0.7},
    {"objective": "one-step", "policy": "one-step", "asked": PRESETS["one-step"], "passes": 1, "abs_rel": 0.1, "delta1": 0.8},  # noqa: E501
]  # fmt: skip


def test_both_objectives_are_trained_and_their_passes_counted(project, tiny, monkeypatch):
    monkeypatch.chdir(project)
    fast = {"num_inference_steps": 3, "ensemble_size": 2}
    monkeypatch.setattr(policies, "POLICIES", {"diffusion": {"fast": fast}, "one-step": policies.ONE_STEP})
    monkeypatch.setattr(policies, "FRAMES_PER_DATASET", 5)
    rows = policies.measure_all(tiny)
    assert [(row["objective"], row["passes"], row["num_frames"]) for row in rows] == [
        ("diffusion", 6, 5),
        ("one-step", 1, 5),
    ]
    objectives = [
        read_json(project / policies.MODELS / name / "model_index.json")["objective"] for name in policies.OBJECTIVES
    ]
    assert objectives == ["diffusion", "one-step"]
    assert all(0 < row["abs_rel"] < 10 and 0 <= row["delta1"] <= 1 for row in rows)


def test_every_policy_is_one_that_params_know():
    for named in policies.POLICIES.values():
        for policy in named.values():
            Inference.model_validate(policy)


def test_table_and_picture_show_every_policy(tmp_path):
    lines = policies.table(ROWS).splitlines()
    assert lines[2:] == [
        "| diffusion | fast | 2 x 2 | 4 | 0.200 | 0.700 |",
        "| one-step | one-step | 1 x 1 | 1 | 0.100 | 0.800 |",
    ]
    first, second = (policies.draw(ROWS, tmp_path / f"{n}.png").read_bytes() for n in (1, 2))
    assert first == second and first.startswith(b"\x89PNG")


@pytest.mark.parametrize(("options", "missing"), [([], "params.yaml"), (["--again"], "policies.json")])
def test_outside_a_project_one_message_says_what_is_missing(options, missing, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(policies.main, options)
    assert (done.exit_code, done.output.count("\n")) == (1, 1)
    assert missing in done.output
    assert not list(tmp_path.iterdir())


def test_a_readme_without_markers_is_named(tmp_path):
    (tmp_path / "README.md").write_text("nothing")
    with pytest.raises(ValueError, match=r"README\.md: expected the markers <!-- policies -->"):
        policies.fill_between(tmp_path / "README.md", "policies", "x")
