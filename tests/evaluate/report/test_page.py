"""The page about benchmarks: what stands in its tables, what it names, and what a real browser makes of it."""

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from metricgold.evaluate.protocols import load_protocol
from metricgold.evaluate.report.charts import COLOURS, SHAPES, charts, medians
from metricgold.evaluate.report.comparisons import comparisons_of
from metricgold.evaluate.report.page import write_report
from metricgold.evaluate.report.pictures import frames_to_picture, pictured, write_pictures
from metricgold.evaluate.report.signatures import RULES, signatures
from metricgold.evaluate.report.tables import accuracy, pairs, scale
from metricgold.evaluate.rows import read_rows_files, write_rows_file
from metricgold.evaluate.summary import summarize
from metricgold.images import Example
from metricgold.metrics import ALIGNMENTS, FIGURES, interval_by_scene, paired_interval, scene_weights
from metricgold.storage import digest_json
from tests.support.browser import NAMES, Browser, find_browser

HOSTILE = "<script>alert(1)</script>|a\n\u202eb"
NUM_SCENES, PER_SCENE = 4, 5


def row(method: str, index: int, figures: dict[str, float], **texts: str):
    """A row of frame `index`; every figure that is not given is NaN."""
    head = {"benchmark": "twin", "protocol": "whole", "protocol_digest": "p", "ruler_digest": digest_json("whole")}
    scene = f"scene-{index % NUM_SCENES}"
    names = {"method": method, "method_digest": digest_json(method), "frame": f"{scene}/{index:03}", "scene": scene}
    camera = {"focal_px": 300.0 * 2 ** (index % NUM_SCENES), "width": 640, "height": 480}
    nothing = {f"{alignment}/{figure}": np.nan for alignment in ALIGNMENTS for figure in FIGURES}
    return head | names | {"reason": ""} | camera | nothing | {"num_pixels": 1000.0 + 100 * index} | figures | texts


def metric(aligned: float, off: float = 0.0, scatter: float = 0.0, index: int = 0) -> dict[str, float]:
    """Figures of metric depth: AbsRel once aligned, ln factor that all are off, and one that changes by scene."""
    factor = off + scatter * (-1) ** (index % NUM_SCENES)
    abs_rel = {name: aligned for name in ALIGNMENTS} | {"metric": aligned + abs(np.expm1(factor))}
    figures = {f"{name}/abs_rel": value for name, value in abs_rel.items()}
    figures |= {f"{name}/delta1": 1 - value for name, value in abs_rel.items()}
    figures |= {f"metric/{name}": abs_rel["metric"] * 3 for name in ("rmse_m", "mae_m", "rmse_log", "silog")}
    true_m = 2.0 + 0.3 * index
    return figures | {"median_true_m": true_m, "median_pred_m": true_m * np.exp(factor), "boundary_f1": 0.3}


def of_method(method: str, figures, **texts: str) -> list:
    """Rows of all frames, with the figures that `figures` gives for each index."""
    return [row(method, index, figures(index), **texts) for index in range(NUM_SCENES * PER_SCENE)]


def read(folder: Path, *rows):
    """The rows as a benchmark's report reads them."""
    write_rows_file(folder / "x.parquet", [one for some in rows for one in some])
    return read_rows_files([folder / "x.parquet"])


def report(folder: Path, rows) -> tuple[str, str]:
    """HTML and Markdown of rows."""
    write_report(rows, folder / "pictures", folder / "x.html", folder / "x.md")
    return (folder / "x.html").read_text(), (folder / "x.md").read_text()


class Tables(HTMLParser):
    """The tables of a page: for each its label and its rows of texts, intervals left out."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, list[list[str]]]] = []
        self.label, self.open = "", []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.open.append(tag)
        self.label = dict(attributes).get("aria-label", self.label)
        if tag == "table":
            self.found.append((self.label, []))
        elif tag == "tr":
            self.found[-1][1].append([])
        elif tag in ("td", "th"):
            self.found[-1][1][-1].append("")

    def handle_endtag(self, tag):
        while self.open.pop() != tag:
            pass

    def handle_data(self, data):
        if "table" in self.open and {"td", "th"} & set(self.open) and "small" not in self.open:
            self.found[-1][1][-1][-1] += data


# --- tables -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name, weights", [
    ("whole", lambda rows: None),
    ("by-pixel", lambda rows: rows["num_pixels"]),
    ("by-scene", lambda rows: scene_weights(rows["scene"])),
])  # fmt: skip
def test_means_are_taken_as_the_protocol_takes_them(tmp_path, monkeypatch, name, weights):
    protocol = load_protocol("nyuv2-eigen")
    average = {"whole": "image", "by-pixel": "pixel", "by-scene": "scene"}[name]
    protocol = protocol.model_copy(update={"average": average})
    monkeypatch.setattr("metricgold.evaluate.report.comparisons.load_protocol", lambda _: protocol)
    some = of_method("ours", lambda index: metric(0.01 * index), protocol_digest=protocol.digest)[:-3]
    rows = read(tmp_path, some)
    (ruler,) = comparisons_of(rows)
    expected = interval_by_scene(rows["metric/abs_rel"], rows["scene"], weights=weights(rows))
    assert ruler.methods[0].interval("metric/abs_rel") == expected
    table = accuracy(ruler)
    assert table.rows[0][2].text == f"{expected.mean:.3f}"
    assert table.rows[0][2].interval == f"{expected.low:.3f} to {expected.high:.3f}"
    assert f"means over {average}s" in report(tmp_path, rows)[0]
    assert summarize(rows, "whole", digest_json("ours"))["abs_rel"] == expected.mean  # and so does the JSON


def test_rows_of_two_rulers_never_share_a_table(tmp_path):
    first = of_method("ours", lambda index: metric(0.1)) + of_method("theirs", lambda index: metric(0.2))
    other = {"protocol": "garg", "ruler_digest": digest_json("garg")}
    second = of_method("ours", lambda index: metric(0.3), **other) + of_method(
        "else", lambda index: metric(0.4), **other
    )
    page, markdown = report(tmp_path, read(tmp_path, first, second))
    tables = [(label, rows) for label, rows in Tables(page).found if "Accuracy" in label]
    assert [label for label, _ in tables] == [
        f"Accuracy by alignment, protocol {name}, ruler {digest_json(name)[:12]}" for name in ("garg", "whole")
    ]
    assert [[cells[0] for cells in rows[2:]] for _, rows in tables] == [["else", "ours"], ["ours", "theirs"]]
    assert [rows[3][2] for _, rows in tables] == ["0.300", "0.200"]
    for name in ("garg", "whole"):
        assert f"protocol {name}" in markdown and f"`{digest_json(name)[:12]}`, 20 frames in 4 scenes" in markdown
    sections = markdown.split("\n## ")
    assert not any("else" in section and "theirs" in section for section in sections)


def test_a_method_with_fewer_frames_is_marked_and_is_never_the_best(tmp_path):
    few = of_method("few", lambda index: metric(0.01))
    few[3] = row("few", 3, {}, reason="out of memory")
    rows = read(
        tmp_path, few, of_method("all", lambda index: metric(0.1)), of_method("worse", lambda index: metric(0.2))
    )
    (ruler,) = comparisons_of(rows)
    cells = {line[0].text: line for line in accuracy(ruler).rows}
    assert (cells["few"][1].text, cells["few"][1].mark, cells["all"][1].mark) == ("19", True, False)
    assert [name for name, line in cells.items() if line[2].best] == ["all"]
    page, _ = report(tmp_path, rows)
    assert "rows without † compare" in page and "out of memory" in page


def test_the_vae_floor_does_not_compete(tmp_path):
    floor = of_method("vae_floor of ours", lambda index: metric(0.01))
    rows = read(tmp_path, floor, *(of_method(name, lambda index: metric(0.1)) for name in ("ours", "theirs")))
    lines = accuracy(comparisons_of(rows)[0]).rows
    assert [line[0].text for line in lines] == ["ours", "theirs", "vae_floor of ours"] and not lines[2][2].best


def test_two_checkpoints_of_one_name_are_two_rows(tmp_path):
    again = [one | {"method_digest": "f" * 64} for one in of_method("ours", lambda index: metric(0.2))]
    (ruler,) = comparisons_of(read(tmp_path, of_method("ours", lambda index: metric(0.1)), again))
    assert {method.title for method in ruler.methods} == {f"ours {digest_json('ours')[:12]}", "ours ffffffffffff"}


def test_a_paired_difference_is_marked_where_its_interval_excludes_zero(tmp_path):
    noise = np.random.default_rng(0).normal(0, 0.05, NUM_SCENES * PER_SCENE)
    ours = of_method("ours", lambda index: metric(0.2 + noise[index]))
    better = of_method("better", lambda index: metric(0.19 + noise[index]))
    noisy = of_method("noisy", lambda index: metric(0.2 + noise[index] * (-1) ** (index % NUM_SCENES)))
    missing = better.pop()  # pairs use the frames of both
    rows = read(tmp_path, ours, better, noisy)
    found = {pair.titles: pair for pair in pairs(comparisons_of(rows)[0])}
    line = found["better", "ours"].table.rows[0]
    kept = rows.where(rows["frame"] != missing["frame"])
    a, b = (kept.where(method=name)["metric/abs_rel"] for name in ("better", "ours"))
    expected = paired_interval(a, b, kept.where(method="ours")["scene"])
    assert [line[0].text, line[1].text] == ["metric AbsRel", "19"]
    assert line[4].text == f"{expected.mean:+.4f}" == "-0.0100"
    assert line[4].mark and line[5].text == "better"
    line = found["noisy", "ours"].table.rows[0]
    assert not line[4].mark and line[5].text == "no clear difference"


def test_scale_has_its_spread_over_scenes_and_its_trend_over_focal_length(tmp_path):
    # Depth in proportion to the focal length that the model takes every camera for.
    def figures(index: int) -> dict[str, float]:
        return metric(0.1) | {"median_true_m": 2.0 * 2 ** (index % NUM_SCENES), "median_pred_m": 3.0}

    (line,) = scale(comparisons_of(read(tmp_path, of_method("blind", figures)))[0]).rows
    ratios = 1.5 / 2.0 ** np.arange(NUM_SCENES)
    assert [cell.text for cell in line[2:5]] == [
        f"{ratio:.3f}" for ratio in (np.exp(np.median(np.log(ratios))), ratios[-1], 1.5)
    ]
    assert line[5].text == f"{np.log(ratios).std(ddof=1):.3f}" and line[6].text == "-1.00"


# --- failures -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("figures, floor, expected", [
    (lambda index: metric(0.05, scatter=0.3, index=index), {}, ["scale-inconsistent"]),
    (lambda index: metric(0.05, off=0.3), {}, ["scale off by one factor"]),
    (lambda index: metric(0.3, scatter=0.5, index=index), {}, []),  # not good once aligned either
    (lambda index: metric(0.05), {"boundary_f1": 0.7}, ["blurry"]),
    (lambda index: metric(0.05), {"boundary_f1": 0.5}, []),
    (lambda index: metric(0.05), {"metric/abs_rel": 0.03}, ["poor decoder"]),
    (lambda index: metric(0.05), {"metric/abs_rel": 0.01}, []),
])  # fmt: skip
def test_failures_are_named_where_the_figures_show_them(tmp_path, figures, floor, expected):
    floor = of_method("vae_floor of ours", lambda index: metric(0.001) | floor)
    baseline = of_method("best_constant", lambda index: metric(0.1, off=1.0) | {"boundary_f1": 0.0})
    rows = read(tmp_path, of_method("ours", figures), floor, baseline)
    found = signatures(comparisons_of(rows)[0])
    assert [one.name for one in found] == expected and {one.method for one in found} <= {"ours"}
    page, markdown = report(tmp_path, rows)
    for name in expected:
        assert f"<b>{name}</b>: ours" in page and f"ours: **{name}**" in markdown
    for rule in RULES:
        assert rule.partition("'")[0] in page and rule in markdown  # with its threshold


def test_the_floor_of_another_model_says_nothing(tmp_path):
    floor = of_method("vae_floor of ours", lambda index: metric(0.09) | {"boundary_f1": 0.9})
    assert not signatures(comparisons_of(read(tmp_path, of_method("theirs", lambda index: metric(0.1)), floor))[0])


def test_of_two_floors_of_one_name_neither_is_taken_for_a_model(tmp_path):
    """Rows of a model before and after training: either floor may be the other one's."""
    models = [of_method("ours", lambda index: metric(0.1), method_digest=digest_json(run)) for run in (1, 2)]
    floors = [
        of_method("vae_floor of ours", lambda index, at=at: metric(at), method_digest=digest_json(at))
        for at in (0.09, 0.01)
    ]
    assert not signatures(comparisons_of(read(tmp_path, *models, *floors))[0])


# --- whole and the same -------------------------------------------------------------------------------------


def everything() -> list:
    """Rows of a model with uncertainty, its floor, a relative method and one with a hostile name, by two rulers."""

    def ours(index: int) -> dict[str, float]:
        curve = {f"sparsification/{share:g}": 0.1 * (1 - share) for share in (0.0, 0.5, 0.9)}
        ranges = {f"range/{low}-{high}/abs_rel": 0.1 + low / 100 for low, high in ((0, 0.5), (0.5, 1), (1, 8))}
        covered = {"ause_abs_rel": 0.02, "ause_rmse": 0.1, "coverage50": 0.4, "coverage80": 0.7, "coverage95": 0.9}
        return metric(0.1, scatter=0.05, index=index) | covered | curve | ranges

    def relative(index: int) -> dict[str, float]:
        return {"affine_disparity/abs_rel": 0.05 + 0.001 * index, "affine_disparity/delta1": 0.97}

    methods = {
        "metricgold": ours,
        "vae_floor of metricgold": lambda index: metric(0.02) | {"boundary_f1": 0.8},
        "depth-anything-relative": relative,
        HOSTILE: lambda index: metric(0.2, off=0.1),
        "best_constant": lambda index: metric(0.4),
    }
    rulers = ({}, {"protocol": "other", "ruler_digest": digest_json("other"), "benchmark": "kitti-synthetic"})
    return [one for texts in rulers for name, figures in methods.items() for one in of_method(name, figures, **texts)]


def draw(rows: list, pictures: Path) -> None:
    """Pictures of the images that stand for each method."""
    wanted = frames_to_picture(read(pictures.parent, rows))
    down, right = np.mgrid[:90, :160]
    true_m = (1 + down / 20 + right / 80).astype(np.float32)
    rgb = np.stack([down, right, 90 + 0 * down], axis=-1).astype(np.uint8)
    for one in rows:
        if one["frame"] in wanted.get((one["ruler_digest"], one["method_digest"]), ()):
            example = Example(one["frame"], rgb, true_m * np.float32(1.1), true_m, right > 8)
            write_pictures(pictures, one, example)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A page of everything."""
    folder = tmp_path_factory.mktemp("report")
    rows = everything()
    draw(rows, folder / "pictures")
    report(folder, read(folder, rows))
    return folder


def test_equal_rows_give_equal_bytes_in_whatever_order(folder, tmp_path):
    shuffled = [everything()[place] for place in np.random.default_rng(1).permutation(len(everything()))]
    draw(shuffled, tmp_path / "pictures")
    report(tmp_path, read(tmp_path, shuffled))
    for name in ("x.html", "x.md"):
        assert (folder / name).read_bytes() == (tmp_path / name).read_bytes()


def test_names_are_no_markup(folder):
    page, markdown = (folder / "x.html").read_text(), (folder / "x.md").read_text()
    for text in (page, markdown):
        assert "<script" not in text and "\u202e" not in text and "alert(1)" in text
    lines = [line for line in markdown.splitlines() if line.startswith("|")]
    widths = [len(re.findall(r"(?<!\\)\|", line)) for line in lines]
    starts = [number for number, line in enumerate(lines) if line.startswith("| ---")]
    for start, end in zip(starts, [*(start - 1 for start in starts[1:]), len(lines)], strict=True):
        assert len(set(widths[start - 1 : end])) == 1  # every row of a table has as many cells as its header


def test_best_median_and_worst_are_those_images(tmp_path):
    rows = read(tmp_path, of_method("ours", lambda index: metric(0.3 - 0.01 * index)), of_method("mean_map", metric))
    found = {one.place: (one.frame, one.value) for one in pictured(comparisons_of(rows)[0])}
    frames = sorted(rows.where(method="ours")["frame"], key=lambda frame: -int(frame[-3:]))
    assert {place: frame for place, (frame, _) in found.items()} == {
        "best": frames[0],
        "median": frames[9],
        "worst": frames[-1],
    }
    assert found["best"][1] == pytest.approx(0.11)
    assert frames_to_picture(rows) == {(digest_json("whole"), digest_json("ours")): {frames[0], frames[9], frames[-1]}}


@pytest.mark.parametrize("rows", [
    [row("ours", 0, metric(0.1))],  # one image: no interval, no spread, no trend
    [row("ours", 0, {}, reason="no pixel counts"), row("theirs", 0, {}, reason="no pixel counts")],
])  # fmt: skip
def test_little_or_nothing_to_show_is_no_fault(tmp_path, rows):
    page, markdown = report(tmp_path, read(tmp_path, rows))
    assert "nan" not in re.sub(r"base64,[^\"]*", "", page) and "nan" not in markdown


def test_no_row_is_one_line(tmp_path):
    rows = read(tmp_path, [row("ours", 0, {})])
    with pytest.raises(ValueError, match="there is no row of a benchmark to report on"):
        report(tmp_path, rows.where(method="theirs"))


# --- colours ------------------------------------------------------------------------------------------------

# Machado, Oliveira and Fernandes, A Physiologically-based Model for Simulation of Color Vision Deficiency, 2009,
# severity 1, on linear RGB.
BLIND = {
    "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
}


@pytest.mark.parametrize("kind", BLIND)
def test_colour_blind_people_can_tell_the_methods_apart(kind):
    srgb = np.array([[int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)] for colour in COLOURS])
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    seen = np.clip(linear @ np.array(BLIND[kind]).T, 0, 1) ** (1 / 2.2)
    distances = {(a, b): np.linalg.norm(seen[a] - seen[b]) for a, b in combinations(range(len(COLOURS)), 2)}
    assert min(distances.values()) > 0.1, distances  # 26 of 255 steps
    assert len(set(SHAPES)) == len(SHAPES) > len(COLOURS)  # and each has a shape besides


def test_charts_say_in_words_what_they_show(folder):
    for ruler in comparisons_of(read_rows_files([folder / "x.parquet"])):
        shown = [*charts(ruler), *medians(ruler)]
        assert [chart.title for chart in shown[:6]] == [
            *("AbsRel by alignment", "AbsRel by true depth", "Median ratio by scene", "Median ratio by focal length"),
            *("Calibration", "Sparsification"),
        ]
        assert all(len(chart.alt) > 40 for chart in shown)
        assert any("metricgold 40, 70, 90" in chart.alt for chart in shown)


# --- in a browser -------------------------------------------------------------------------------------------

needs_browser = pytest.mark.skipif(
    find_browser() is None, reason=f"none of {', '.join(NAMES)} on PATH: nobody has seen the page"
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Browser(find_browser()) as browser:
        yield browser


@needs_browser
@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_is_whole_and_fits(browser, folder, width, dark):
    browser.open((folder / "x.html").as_uri(), width=width, dark=dark)
    assert not browser.complaints
    assert [url for url in browser.requests if not url.startswith("data:")] == [(folder / "x.html").as_uri()]
    assert browser.run("document.images.length") > 20
    assert browser.run("[...document.images].filter(one => !one.complete || !one.naturalWidth).length") == 0
    assert browser.run("[...document.images].filter(one => one.alt.length < 10).length") == 0
    assert browser.run("document.documentElement.scrollWidth") == width  # the page itself never scrolls sideways
    boxes = "[...document.querySelectorAll('.wide')].map(box => [box.scrollWidth > box.clientWidth, box.tabIndex])"
    found = browser.run(boxes)
    assert any(scrolls for scrolls, _ in found) and {index for _, index in found} == {0}  # tables do, by key as well
    seen = browser.run("[...document.querySelectorAll('picture img')].map(one => one.currentSrc === one.src)")
    assert set(seen) == {not dark}  # dark charts on the dark page
    assert browser.run("getComputedStyle(document.body).backgroundColor") == (
        "rgb(18, 23, 29)" if dark else "rgb(245, 247, 250)"
    )


def test_errors_of_planes_are_means_over_planes(tmp_path):
    """As their authors publish them: an image with three walls counts three times one with one."""

    def figures(index):
        return {"planarity/wall_cm": 1.0 + index, "planarity/wall_num_planes": float(index % 3)}

    rows = read(tmp_path, of_method("a", figures))
    (ruler,) = comparisons_of(rows)
    errors, numbers = (np.array([figures(i)[name] for i in range(20)]) for name in figures(0))
    assert ruler.methods[0].interval("planarity/wall_cm").mean == pytest.approx(np.average(errors, weights=numbers))
    html, markdown = tmp_path / "a.html", tmp_path / "a.md"
    write_report(rows, tmp_path, html, markdown)
    assert "over the planes of all images" in markdown.read_text() and "num planes" not in markdown.read_text()
