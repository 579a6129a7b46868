"""The table of lenses: every variant by its own params, resumed by rows, and made again from rows alone."""

import numpy as np
import pytest
from click.testing import CliRunner

from demo import lenses
from metricgold.params import load_params
from metricgold.storage import read_rows

WORLDS = {"num_train_scenes": 4, "num_test_scenes": 2, "frames_per_scene": 1, "height": 32, "width": 48}


def rows_of(method: str, abs_rel: float, sets=lenses.LENSES, seeds=(0, 1)) -> list[lenses.Row]:
    rng = np.random.default_rng(0)
    return [
        {"set": one, "method": method, "seed": seed, "abs_rel": (abs_rel + rng.normal(0, 0.01, 6)).tolist()}
        | {"delta1": [0.8] * 6, "ratio": [1.0] * 6}
        for one in sets
        for seed in seeds
    ]


@pytest.fixture
def small(project, tiny, monkeypatch):
    monkeypatch.chdir(project)
    (project / "demo").mkdir()
    steps = {**lenses.COMMON["train"], "num_steps": 4, "decay_steps": 4}
    monkeypatch.setattr(lenses, "COMMON", lenses.COMMON | {"train": steps, "synthesize": WORLDS})
    monkeypatch.setattr(lenses, "FACTORS", (0.5, 1.0))
    return tiny


def test_each_lens_has_a_row_and_a_measured_variant_is_not_trained_again(small, monkeypatch):
    lenses.measure_variants(small, ["none"], [0])
    rows = read_rows(lenses.ROWS)
    assert [(row["method"], row["set"], row["seed"]) for row in rows] == [
        ("none", "0.5", 0),
        (lenses.SCALED, "0.5", 0),
        ("none", "1", 0),
        (lenses.SCALED, "1", 0),
    ]
    assert rows[2]["abs_rel"] == rows[3]["abs_rel"]  # its own lens needs no scale
    assert rows[0]["ratio"] == pytest.approx(np.divide(rows[1]["ratio"], 2), rel=1e-3)
    assert all(len(row[figure]) == 2 for row in rows for figure in lenses.FIGURES)
    monkeypatch.setattr(lenses, "train", lambda *_, **__: pytest.fail("trained again"))
    lenses.measure_variants(small, ["none"], [0])
    assert read_rows(lenses.ROWS) == rows


def test_every_variant_is_one_that_the_demo_profile_allows():
    from tests.support import ROOT

    params = load_params(ROOT / "profiles/demo.yaml")
    for name, changes in lenses.VARIANTS.items():
        own = lenses.changed(params, [lenses.COMMON, *changes])
        assert (own.encode.views > 1) == ("views" in name)
        assert own.train.camera == name.split(", ")[0]
    assert lenses.CHOSEN in lenses.VARIANTS


def test_differences_are_paired_and_the_worst_lens_is_named():
    measured = lenses.Measured([*rows_of("none", 0.2), *rows_of("canonical", 0.15)])
    head, _, none, canonical = lenses.lens_table(measured).splitlines()
    assert head.startswith("| training | 0.5 | 0.7 | 1 | 1.4 | 2 | worst")
    assert none.startswith("| none | 0.2") and canonical.endswith("| 2 |")
    (row,) = lenses.difference_table(measured, ["1"], "lens", ["canonical"]).splitlines()[2:]
    assert row.startswith("| 1 | -0.050 (-0.0")
    assert lenses.with_sign(measured.difference("1", "none")) == "+0.000 (+0.000 to +0.000)"


def test_tables_and_picture_are_made_again_from_rows(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").mkdir(), (tmp_path / "docs").mkdir()
    marks = "<!-- lenses -->\n<!-- /lenses -->\n<!-- lenses-twins -->\n<!-- /lenses-twins -->\n"
    lenses.PAGE.write_text(marks)
    twins = [row for name in (lenses.BASELINE, lenses.CHOSEN) for row in rows_of(name, 0.3, ["kitti-synthetic"])]
    lenses.add_rows([*rows_of("none", 0.2), *rows_of(lenses.CHOSEN, 0.15), *twins])
    done = CliRunner().invoke(lenses.main, ["--again"])
    assert done.exit_code == 0, done.output
    page, picture = lenses.PAGE.read_text(), lenses.PICTURE.read_bytes()
    assert "| kitti-synthetic | 0.3" in page and f"| {lenses.CHOSEN} | 0.15" in page
    assert picture.startswith(b"\x89PNG") and len(picture) < 60_000
    CliRunner().invoke(lenses.main, ["--again"])
    assert (lenses.PAGE.read_text(), lenses.PICTURE.read_bytes()) == (page, picture)


def test_outside_a_project_one_message_says_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(lenses.main, [])
    assert (done.exit_code, done.output.count("\n")) == (1, 1) and "params.yaml" in done.output
    assert not list(tmp_path.iterdir())
