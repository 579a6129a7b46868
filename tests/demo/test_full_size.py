"""The table of studies at full size: by hand, for every card, and as the manual shows it."""

import pytest

from demo import full_size
from metricgold.params import Folders, load_params
from metricgold.study import plan_study
from metricgold.train import ASSUMED_MFU, GPUS
from tests.support import ROOT


def test_hours_and_runs_add_up_and_disk_does_not():
    rows = [
        {"study": "a", "runs": 12, "trainings": 3, "disk_gb": 150.0, "rtx3090": 442.0, "h100": 0.0288},
        {"study": "b", "runs": 33, "trainings": 33, "disk_gb": 233.0, "rtx3090": 1180.0, "h100": 68.3},
    ]
    assert full_size.table(rows).splitlines() == [
        "| study | runs | trainings | disk, GB | GeForce RTX 3090, h | H100 SXM 80 GB, h |",
        "|---|---|---|---|---|---|",
        "| `a` | 12 | 3 | 150 | 442 | 0.0288 |",
        "| `b` | 33 | 33 | 233 | 1,180 | 68.3 |",
        "| all | 45 | 36 |  | 1,620 | 68.3 |",
    ]


def test_other_cards_too():
    """The profile of 24 GB fits them all. Hours are operations over the stated share of a card's peak in float32."""
    params = load_params(ROOT / "profiles/rtx3090.yaml")
    others = GPUS.keys() - set(full_size.CARDS)
    plans = {card: plan_study("space", params, card=card, folders=Folders(ROOT)) for card in others}
    assert len({plan["tflop"] for plan in plans.values()}) == 1
    for card, plan in plans.items():
        seconds = plan["tflop"] * 1e12 / (ASSUMED_MFU * GPUS[card].fp32_flops)
        assert plan["hours"] == pytest.approx(seconds / 3600, rel=0.02)
        assert plan["on"] == GPUS[card].title and plan["disk_gb"] > 0


def test_the_table_of_the_manual_is_that_of_the_program(tmp_path, monkeypatch):
    """After a study was added or changed: python -m demo.full_size."""
    page = ROOT / full_size.PAGE
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(full_size, "PAGE", tmp_path / "studies.md")
    full_size.PAGE.write_text(page.read_text())
    full_size.main()
    assert full_size.PAGE.read_text() == page.read_text()
