"""What many images cost, by hand, and that the manual's tables are those of the program."""

import pytest

from demo import scale
from demo.scale import Assumptions, costs_of
from tests.support import ROOT


def test_a_million_and_one_images_by_hand():
    given = {"files": 2, "input_bytes": 1_000_000, "model_s": 3.6, "page_s": 3.6, "kept_us": 36.0, "listed_us": 12.0}
    costs = costs_of(1_000_001, Assumptions(**given))
    assert (costs.listing_requests, costs.reads, costs.writes) == (1_001, 1_000_001, 2_000_002)
    assert costs.requests_usd == pytest.approx(5 * 2.001003 + 0.4 * 1.000001)
    assert (costs.gpu_hours, costs.gpu_usd) == pytest.approx((1000.001, 2000.002))
    assert (costs.egress_tb, costs.egress_usd) == pytest.approx((1.000001, 90.00009))
    assert (costs.receipt_gb, costs.waiting_gb) == pytest.approx((1.3000013, 2.000002))
    assert costs.rerun_listing_h == pytest.approx((1_001 + 2_001) / 1000 / 8)
    assert (costs.rerun_listing_cpu_h, costs.rerun_cpu_h) == pytest.approx((0.01000001, 0.01000001))


def test_the_tables_of_the_manual_are_those_of_the_program(tmp_path, monkeypatch):
    page = ROOT / scale.PAGE
    monkeypatch.setattr(scale, "PAGE", tmp_path / "scale.md")
    scale.PAGE.write_text(page.read_text())
    scale.main()
    assert scale.PAGE.read_text() == page.read_text()
