"""`dvc plots show` and `dvc metrics diff` of a project, as a person sees them."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from metricgold.evaluate.headline import write_headline
from metricgold.params import Folders, load_params
from metricgold.storage import write_json
from tests.support import ROOT
from tests.support.browser import Browser, find_browser

GRAPH = """
stages:
  train:
    cmd: "true"
    plots:
      - plots/train.csv: {cache: false, x: step, y: loss, title: Training loss}
      - plots/depth.csv: {cache: false, x: depth_m, y: abs_rel, title: By depth}
"""


@pytest.mark.skipif(find_browser() is None, reason="no Chromium here")
def test_plots_are_drawn_without_a_network(project):
    Path("dvc.yaml").write_text(GRAPH)
    Path("plots").mkdir()
    Path("plots/train.csv").write_text("step,loss\n10,1.5\n20,0.5\n30,0.25\n")
    rows = [f"{name},{m}-{2 * m} m,{m},{0.1 * m}" for name in ("a", "b</script>") for m in (1, 2, 4)]
    Path("plots/depth.csv").write_text(
        "\n".join(["dataset,range,depth_m,abs_rel", *rows, ""]).replace("</script>", "&")
    )
    subprocess.run([sys.executable, "-m", "dvc", "plots", "show", "--quiet"], check=True)
    with Browser(find_browser()) as browser:
        page = Path("dvc_plots/index.html").resolve().as_uri()
        browser.open(page)
        assert browser.requests == [page] and browser.complaints == []
        lines = browser.run("[...document.querySelectorAll('polyline > title')].map(node => node.textContent)")
        assert lines == ["workspace", "workspace, a", "workspace, b&"]
        assert browser.run("document.querySelectorAll('circle').length") == 9
        assert "Training loss" in browser.run("document.body.textContent")
        ends = browser.run("document.querySelector('polyline').getAttribute('points')").split()
        (x0, y0), (x1, y1) = (map(float, ends[i].split(",")) for i in (0, -1))
        assert x0 < x1 and y0 < y1, "the loss falls from left to right"


def test_commits_are_compared_by_a_few_dozen_figures(tmp_path):
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    assert [stage for stage, one in stages.items() if "metrics" in one] == ["headline"]
    params, folders = load_params(ROOT / "params.yaml"), Folders(tmp_path)
    many = {name: 0.5 for name in ("abs_rel", "delta1", "rmse_m", *(f"figure_{number}" for number in range(60)))}
    interval = {f"{name}_{end}": 0.5 for name in ("abs_rel", "delta1") for end in ("low", "high")}
    scores = many | interval | {"datasets": dict.fromkeys(params.datasets, many)}
    write_json(folders.metrics("evaluate"), scores)
    for name in params.benchmarks:
        write_json(folders.metrics(f"benchmark/{name}"), many | interval)
    text = write_headline(folders, params.datasets, params.benchmarks).read_text()
    assert text.count("0.5") <= 48
