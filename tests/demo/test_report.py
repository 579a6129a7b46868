"""The demo's page, its JSON, and what the README takes from them; on images made here."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from PIL import Image

from demo.readme import (
    fill_results,
    read_benchmarks,
    reliability_table,
    results_table,
    write_picture,
    zero_shot_table,
)
from demo.report import DEPTH, IMAGES, PICTURE, TRUTH, collect_demo_images, write_demo_report
from metricgold.evaluate.rows import to_rows
from metricgold.evaluate.stage import evaluate
from metricgold.images.depth_files import write_log_depth_png, write_uncertainty_png
from metricgold.log_depth import LogDepth
from metricgold.params.sections import Evaluate

NAME = "tartanair-synthetic"
RANGE = LogDepth(0.5, 80.0)
HOSTILE = "yours-<script>alert(1)</script>.png"
REGISTERED = {"version": "3", "run_id": "r1", "model_digest": "d1", "alias": "candidate"}
PROMOTED = {
    "passed": True,
    "alias": "champion",
    "checks": [{"name": "max_abs_rel", "value": 0.1, "bound": 0.25, "passed": True}],
}
BENCHMARKS = {
    "nyuv2-synthetic": {
        "protocol": "nyuv2-eigen",
        "num_frames": 28,
        **{"abs_rel": 0.3554, "abs_rel_low": 0.2595, "abs_rel_high": 0.472},
        **{"delta1": 0.488, "delta1_low": 0.4078, "delta1_high": 0.5618},
        "nyuv2-eigen/best_constant/abs_rel": 0.297,
        "nyuv2-eigen/metricgold/abs_rel": 0.3554,
        "nyuv2-eigen/vae_floor of metricgold/abs_rel": 0.1027,
    },
    "eth3d-synthetic": {"protocol": "eth3d-depthpro", "num_frames": 1, "abs_rel": 0.5, "delta1": 0.25},  # one scene
}
MANIFEST = {
    "name": NAME,
    "role": "train",
    "title": "miniature",
    "source": "here",
    "licence": {"name": "none", "url": "file:///none", "terms": "none"},
    "citation": "none",
    "depth": {"unit": "m", "kind": "planar", "invalid": "none"},
    "mirrors": ["file:///none/"],
    "archives": [{"path": "a.zip"}],
    "splits": {"scenes": {"train": ["room*"], "test": ["hall*"]}},
}


def write_raw(raw: Path) -> None:
    """A training and a held-out scene of six frames: a slope that begins ever farther away, sky on top."""
    for scene in ("room_a", "hall_b"):
        for index in range(6):
            folder = raw / scene / "Easy" / "P000"
            for kind in ("image_left", "depth_left"):
                (folder / kind).mkdir(parents=True, exist_ok=True)
            depth_m = np.repeat(np.linspace(12 + index, 2 + index, 32)[:, None], 48, axis=1)
            depth_m[:4] = 4000.0
            rgb = np.repeat(np.uint8(depth_m.clip(0, 20) * 12)[..., None], 3, axis=2)
            rgb[..., 2] = 40 * index
            Image.fromarray(rgb).save(folder / "image_left" / f"{index:06d}_left.png")
            np.save(folder / "depth_left" / f"{index:06d}_left_depth.npy", depth_m.astype(np.float32))
    (raw / "manifest.yaml").write_text(yaml.safe_dump(MANIFEST))


class OffByTenPerCent:
    """A model that knows these scenes: depth from brightness, ten per cent too far."""

    log_depth, uncertainty_scale = RANGE, None

    def __call__(self, images, **_):
        depths_m = (np.where(rgb[..., 0] < 240, rgb[..., 0] / 12.0 + 0.5, 60.0) for rgb in images)
        known = {"uncertainty": None, "uncertainty_calibrated": False, "log_depth": LogDepth(0.5, 80.0)}
        maps_m = [np.float32(1.1 * depth_m) for depth_m in depths_m]
        return [SimpleNamespace(planar_depth_m=one, valid_mask=one < 80, **known) for one in maps_m]

    def encode_decode_depth(self, planar_depth_m, intrinsics):
        return planar_depth_m * np.float32(1.01)


def predict(root: Path) -> dict:
    """What the batch job leaves behind, for every image of the demo."""
    (root / DEPTH).mkdir(parents=True)
    rows = [{"input": "yours-broken.jpg", "status": "failed", "reason": "yours-broken.jpg: empty <file>"}]
    for path in sorted((root / IMAGES).iterdir()):
        rgb = np.asarray(Image.open(path).convert("RGB"))
        (prediction,) = OffByTenPerCent()([rgb])
        depth_m = prediction.planar_depth_m
        depth_m[-1] = np.inf  # no surface by the model, whatever the truth says
        if "sea" in path.name:
            depth_m[:] = np.inf
        write_log_depth_png(root / DEPTH / f"{path.name}.depth.png", depth_m, RANGE, {})
        spread = np.full(rgb.shape[:2], 0.05, np.float32)
        write_uncertainty_png(root / DEPTH / f"{path.name}.uncertainty.png", spread, {})
        rows.append({"input": path.name, "status": "done", "reason": None, "output": f"{path.name}.depth.png"})
    (root / DEPTH / "receipt.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"images_done": len(rows) - 1, "images_failed": 1}


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> SimpleNamespace:
    """A project root after the stages and the batch job, with the page written."""
    root = tmp_path_factory.mktemp("root")
    raw = root / "data/raw" / NAME
    write_raw(raw)
    own = root / "own"
    own.mkdir()
    Image.new("RGB", (900, 600), (10, 90, 200)).save(own / "sea.jpg")
    metrics = root / "metrics/evaluate.json"
    params = Evaluate(num_inference_steps=1, ensemble_size=1)
    evaluate(params, {NAME: raw}, root, metrics, root / "plots", pipe=OffByTenPerCent())
    state = root / "models/metricgold.state"
    state.mkdir(parents=True)
    rows = [{"step": 10 * i, "loss": 1 / i, "lr": 1e-3, "grad_norm": 1.0} for i in range(1, 30)]
    (state / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 300, "lo')
    (root / "models/metricgold").mkdir()
    lineage = {"latents": {NAME: {"index": "feed5eed", "num_frames": 6}}, "backbone": {"digest": "bac4b07e"}}
    (root / "models/metricgold/lineage.json").write_text(json.dumps(lineage))
    lock = {
        "schema": "2.0",
        "stages": {"train": {"cmd": "x", "outs": [{"path": "models/metricgold", "md5": "0ddba11"}]}},
    }
    (root / "dvc.lock").write_text(yaml.safe_dump(lock))
    images = collect_demo_images({NAME: raw}, root / IMAGES, [own], num_per_dataset=3)
    Image.new("RGB", (20, 10)).save(root / IMAGES / HOSTILE.replace("/", "_"))
    summary = predict(root)
    seconds = {"synthesize": 12.3456, "train": 100.0}
    page = write_demo_report(
        root, seconds, registered=REGISTERED, promoted=PROMOTED, predict_summary=summary, benchmarks=BENCHMARKS
    )
    return SimpleNamespace(
        root=root, raw=raw, own=own, images=images, page=page, html=page.read_text(), summary=summary
    )


def test_collects_held_out_frames_with_their_truth_beside(demo):
    names = [path.name for path in demo.images]
    assert names == [f"{NAME}-00.png", f"{NAME}-01.png", f"{NAME}-02.png", "yours-sea.jpg"]
    assert sorted(path.name for path in (demo.root / TRUTH).iterdir()) == [f"{NAME}-0{i}.npz" for i in range(3)]
    with np.load(demo.root / TRUTH / f"{NAME}-00.npz", allow_pickle=False) as truth:
        assert str(truth["frame"]) == "hall_b/Easy/P000/000001"
        assert truth["planar_depth_m"].shape == truth["valid_mask"].shape == (32, 48)
        assert not truth["valid_mask"][:4].any()
        assert truth["valid_mask"][4:].all()
    assert (demo.root / IMAGES / "yours-sea.jpg").read_bytes() == (demo.own / "sea.jpg").read_bytes()


def test_collecting_again_replaces_everything(demo, tmp_path):
    out = tmp_path / "images"
    collect_demo_images({NAME: demo.raw}, out, [demo.own / "sea.jpg", demo.own], num_per_dataset=2)
    names = sorted(path.name for path in out.iterdir())
    assert names == [f"{NAME}-00.png", f"{NAME}-01.png", "yours-2-sea.jpg", "yours-sea.jpg"]
    first = {path: path.read_bytes() for path in (tmp_path / "truth").iterdir()}
    collect_demo_images({NAME: demo.raw}, out, [], num_per_dataset=2)
    assert len(list(out.iterdir())) == 2
    assert {path: path.read_bytes() for path in (tmp_path / "truth").iterdir()} == first


def test_a_missing_image_is_named_before_anything_is_written(demo, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.jpg: no such image"):
        collect_demo_images({NAME: demo.raw}, tmp_path / "images", [tmp_path / "nowhere.jpg"])
    assert list(tmp_path.iterdir()) == []


def test_json_has_exactly_these_keys(demo):
    got = json.loads((demo.root / "reports/demo.json").read_text())
    metrics = json.loads((demo.root / "metrics/evaluate.json").read_text())
    assert got == {
        "abs_rel": metrics["abs_rel"],
        **{f"abs_rel_{end}": value for end, value in (metrics["interval95"]["abs_rel"] or {}).items()},
        "delta1": metrics["delta1"],
        "constant_abs_rel": metrics["constant_abs_rel"],
        "vae_floor_abs_rel": metrics["vae_floor_abs_rel"],
        "benchmarks": {
            "nyuv2-synthetic": {
                "protocol": "nyuv2-eigen",
                "num_frames": 28,
                **{"abs_rel": 0.3554, "abs_rel_low": 0.2595, "abs_rel_high": 0.472},
                **{"delta1": 0.488, "delta1_low": 0.4078, "delta1_high": 0.5618},
                **{"constant_abs_rel": 0.297, "vae_floor_abs_rel": 0.1027},
            },
            "eth3d-synthetic": {
                "protocol": "eth3d-depthpro",
                "num_frames": 1,
                **{"abs_rel": 0.5, "abs_rel_low": None, "abs_rel_high": None},
                **{"delta1": 0.25, "delta1_low": None, "delta1_high": None},
                **{"constant_abs_rel": None, "vae_floor_abs_rel": None},
            },
        },
        "images_done": demo.summary["images_done"],
        "images_failed": 1,
        "model_version": "3",
        "alias": "champion",
        "seconds": {"synthesize": 12.3, "train": 100.0},
    }


def test_page_needs_no_other_file(demo):
    """Every picture is inside, and nothing is fetched or run."""
    sources = re.findall(r'src="([^"]{0,30})', demo.html)
    assert len(sources) == 3 * 4 + 2 * 3 + 2, "four pictures with truth, three without, two curves"
    assert all(source.startswith("data:image/") for source in sources)
    assert not re.search(r"<script|<link|@import|url\(|https?://", demo.html)


def test_page_shows_what_happened(demo):
    for text in ("hall_b/Easy/P000/000001", "sea.jpg", "900 x 600", "champion", "max_abs_rel"):
        assert text in demo.html
    for lineage in ("feed5eed", "bac4b07e", "0ddba11", "d1", "r1"):
        assert f">{lineage}<" in demo.html
    assert demo.html.index("sea.jpg") < demo.html.index("hall_b/Easy/P000/000001"), "the user's own images lead"
    assert demo.html.count("no truth for this image") == 2
    assert "12.3 s" in demo.html


def test_page_says_where_the_model_sees_no_surface(demo):
    assert demo.html.count("centre without a surface") == 1 and "inf m" not in demo.html


def test_page_escapes_names_and_reasons(demo):
    assert "&lt;script&gt;alert(1)" in demo.html
    assert "yours-broken.jpg: empty &lt;file&gt;" in demo.html


def test_page_shows_zero_shot_figures_with_their_intervals_beside_the_in_domain_ones(demo):
    for text in ("nyuv2-eigen", "0.355 (0.260 to 0.472)", "0.488 (0.408 to 0.562)", "0.297", "0.103"):
        assert f">{text}</td>" in demo.html
    assert ">0.500</td>" in demo.html and "None" not in demo.html
    in_domain, zero_shot = (demo.html.index(title) for title in ("Figures on held-out scenes", "Zero-shot: twins"))
    assert in_domain < zero_shot


def test_report_without_what_it_needs(tmp_path):
    empty = {"registered": REGISTERED, "promoted": PROMOTED, "predict_summary": {}, "benchmarks": {}}
    with pytest.raises(ValueError, match=r"evaluate\.json: no such file"):
        write_demo_report(tmp_path, {}, **empty)


def test_benchmarks_that_were_not_measured_are_named(tmp_path):
    (tmp_path / "metrics/benchmark").mkdir(parents=True)
    (tmp_path / "metrics/benchmark/a.json").write_text('{"protocol": "p"}')
    assert read_benchmarks(tmp_path, ["a"]) == {"a": {"protocol": "p"}}
    with pytest.raises(ValueError, match=r"benchmark/b\.json: no such file; `dvc repro benchmark`"):
        read_benchmarks(tmp_path, ["a", "b"])


def test_picture(demo):
    path = write_picture(demo.root, [f"{NAME}-01", f"{NAME}-02"])
    assert path == demo.root / PICTURE
    with Image.open(path) as image:
        assert image.size[0] == 800
        two_rows = image.size[1]
    with Image.open(write_picture(demo.root)) as image:
        assert image.size[1] < two_rows, "one row for the one data set"
    with pytest.raises(ValueError, match="no demo image with truth named yours-sea; there are: tartanair"):
        write_picture(demo.root, ["yours-sea"])


def test_results_table_into_the_readme(demo, tmp_path):
    metrics = json.loads((demo.root / "metrics/evaluate.json").read_text())
    readme = tmp_path / "README.md"
    marked = (
        "before\n<!-- results -->\n{}\n<!-- /results -->\nbetween\n<!-- zero-shot -->\n{}\n<!-- /zero-shot -->\nafter\n"
    )
    readme.write_text(marked.format("old", "older"))
    fill_results(readme, metrics, BENCHMARKS)
    once = readme.read_text()
    assert once == marked.format(results_table(metrics), zero_shot_table(BENCHMARKS))
    assert "| nyuv2-synthetic | 28 | 0.355 (0.260 to 0.472) | 0.488 (0.408 to 0.562) | 0.297 | 0.103 |\n" in once
    assert "| eth3d-synthetic | 1 | 0.500 | 0.250 | none | none |\n" in once
    assert f"| {NAME} | 6 | {metrics['abs_rel']:.3f} |" in once
    assert "1 steps x 1 runs, truth from 0.1 to 80 m" in once
    fill_results(readme, metrics, BENCHMARKS)
    assert readme.read_text() == once
    readme.write_text("no markers")
    with pytest.raises(ValueError, match="expected the markers"):
        fill_results(readme, metrics, BENCHMARKS)


def test_table_of_uncertainty_has_the_model_s_rows_by_one_protocol():
    def row(frame, protocol="nyuv2-eigen", **figures):
        texts = {key: "x" for key in ("protocol_digest", "ruler_digest", "method", "method_digest", "scene", "reason")}
        sizes = {"focal_px": 1.0, "width": 2.0, "height": 2.0, "num_pixels": 4.0}
        return texts | sizes | {"benchmark": "nyuv2-synthetic", "protocol": protocol, "frame": frame} | figures

    shares = {"coverage50": 0.5, "coverage68": 0.6, "coverage80": 0.7, "coverage95": 0.8, "ause_abs_rel": 0.05}
    rows = [
        row("a", **{"metric/abs_rel": 0.1, "mean_uncertainty": 0.2}, **shares),
        row("b", **{"metric/abs_rel": 0.3, "mean_uncertainty": 0.4}, **shares | {"coverage95": 1.0}),
        row("a", "other", **{"metric/abs_rel": 9.0, "mean_uncertainty": 9.0}, **shares),
        row("c", **{"metric/abs_rel": 9.0}),  # a baseline states none
    ]
    last = reliability_table(to_rows(rows)).splitlines()[-1]
    assert last == "| nyuv2-synthetic | 0.200 | 0.300 | 50% | 60% | 70% | 90% | 0.050 |"
