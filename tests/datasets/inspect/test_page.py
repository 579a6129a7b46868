"""The page, the JSON and the csv of a rendered data set, clean and with every fault planted once."""

import csv
import json
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tifffile
import yaml
from PIL import Image

from metricgold.datasets.inspect.findings import KINDS
from metricgold.datasets.inspect.histogram import EDGES_M, coarse, percentiles
from metricgold.datasets.inspect.page import inspect_dataset
from metricgold.datasets.inspect.summary import read_size, sample
from metricgold.datasets.synthetic.render import render_scene
from metricgold.datasets.synthetic.synthesize import RECIPES
from metricgold.params.sections import Synthesize

STATED = {
    "depth": {"unit": "metre", "kind": "planar", "invalid": [], "far": 200},
    "intrinsics": {"first_pixel": 0.5, "fx": 110.0, "fy": 110.0, "cx": 80.0, "cy": 60.0},
    "splits": {"train": ["ai_*"], "test": ["env*"]},
}
PARAMS = Synthesize(height=120, width=160, num_train_scenes=5, num_test_scenes=1, frames_per_scene=5)
FIGURES = {"frames", "frames_decoded", "frames_left_out", "scenes", "valid_ratio", "suspicious"}


def rgb_path(raw: Path, name: str) -> Path:
    scene, number = name.split("/")
    return raw / scene / "rgb" / f"{number}.jpg"


def depth_path(raw: Path, name: str) -> Path:
    scene, number = name.split("/")
    return raw / scene / "depth" / f"{number}.npy"


def change_depth(raw: Path, name: str, change) -> None:
    np.save(depth_path(raw, name), change(np.load(depth_path(raw, name))))


def run(raw: Path, into: Path, **options) -> SimpleNamespace:
    paths = into / "page.html", into / "metrics.json", into / "depth.csv"
    with ThreadPoolExecutor(2) as pool:
        figures = inspect_dataset("mine", raw, *paths, pool=pool, **options)
    return SimpleNamespace(figures=figures, html=paths[0].read_text(), json=paths[1].read_bytes(), csv=paths[2])


def counted(figures: dict) -> dict[str, int]:
    return {kind: n for kind in KINDS if (n := figures[f"suspicious_{kind.replace(' ', '_')}"])}


@pytest.fixture(scope="module")
def clean(tmp_path_factory) -> Path:
    """Two rooms and two gardens, five frames each, as a team's own data."""
    raw = tmp_path_factory.mktemp("clean")
    (raw / "dataset.yaml").write_text(yaml.safe_dump(STATED))
    for dataset in ("hypersim-synthetic", "tartanair-synthetic"):
        for scene in (0, 4):
            for number, frame in enumerate(render_scene(RECIPES[dataset], PARAMS, scene)):
                name = f"{frame.scene}/{number:04d}"
                for path in (rgb_path(raw, name), depth_path(raw, name)):
                    path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(frame.srgb).save(rgb_path(raw, name), quality=95)
                np.save(depth_path(raw, name), frame.planar_depth_m.astype(np.float32))
    return raw


@pytest.fixture
def raw(clean, tmp_path) -> Path:
    return shutil.copytree(clean, tmp_path / "raw")


@pytest.fixture(scope="module")
def inspected(clean, tmp_path_factory) -> SimpleNamespace:
    return run(clean, tmp_path_factory.mktemp("out"))


def test_a_clean_set_is_not_suspicious(inspected):
    assert counted(inspected.figures) == {}
    assert inspected.figures["suspicious"] == 0
    assert (inspected.figures["frames"], inspected.figures["frames_decoded"], inspected.figures["scenes"]) == (
        20,
        20,
        4,
    )
    assert '<p class="good">None.</p>' in inspected.html


def test_json_is_flat_and_the_same_again(inspected, clean, tmp_path):
    assert json.loads(inspected.json) == inspected.figures
    assert set(inspected.figures) >= FIGURES | {f"depth_m_p{share:02d}" for share in (1, 5, 25, 50, 75, 95, 99)}
    assert all(isinstance(value, int | float) for value in inspected.figures.values())
    again = run(clean, tmp_path)
    assert again.json == inspected.json
    assert again.csv.read_bytes() == inspected.csv.read_bytes()
    assert again.html == inspected.html


def test_percentiles_are_those_of_all_pixels(inspected, clean):
    depths_m = np.concatenate([np.load(path).ravel() for path in clean.rglob("*.npy")])
    depths_m = depths_m[depths_m < 200]
    for share in (1, 25, 50, 95):
        exact = np.percentile(depths_m, share)
        assert inspected.figures[f"depth_m_p{share:02d}"] == pytest.approx(exact, rel=0.012)
    assert inspected.figures["fov_deg_min"] == pytest.approx(2 * np.degrees(np.arctan(80 / 110)), abs=1e-3)


def test_csv_holds_the_shares(inspected):
    with inspected.csv.open() as file:
        rows = list(csv.DictReader(file))
    assert {row["dataset"] for row in rows} == {"mine"}
    assert sum(float(row["share"]) for row in rows) == pytest.approx(1, abs=1e-4)
    assert float(rows[0]["share"]) > 0
    assert float(rows[-1]["share"]) > 0


def test_page_needs_no_other_file(inspected):
    sources = re.findall(r'src="([^"]{0,30})', inspected.html)
    assert len(sources) == 4 * 4, "four pictures of one frame of each scene"
    assert all(source.startswith("data:image/") for source in sources)
    assert not re.search(r"<script|<link|@import|url\(|https?://", inspected.html)


def test_every_fault_is_found(raw, tmp_path):
    room, other_room, garden, other_garden = sorted(path.name for path in raw.iterdir() if path.is_dir())
    change_depth(raw, f"{room}/0001", lambda z: np.roll(z, 8, axis=1))
    change_depth(raw, f"{room}/0003", lambda z: z[:, ::-1])
    change_depth(raw, f"{other_room}/0000", lambda z: np.full_like(z, 2.5))
    change_depth(raw, f"{other_room}/0001", lambda z: np.full_like(z, np.nan))
    change_depth(raw, f"{other_room}/0002", lambda z: z / 1000)
    change_depth(raw, f"{other_room}/0003", lambda z: z[:60])
    Image.new("RGB", (160, 120), (3, 3, 3)).save(rgb_path(raw, f"{garden}/0000"))
    shutil.copyfile(depth_path(raw, f"{garden}/0002"), depth_path(raw, f"{garden}/0003"))
    depth_path(raw, f"{garden}/0004").write_bytes(b"x")
    with Image.open(rgb_path(raw, f"{other_garden}/0000")) as image:
        image.save(rgb_path(raw, f"{other_garden}/0001"), quality=80)
    depth_path(raw, f"{other_garden}/0004").unlink()
    change_depth(raw, f"{other_garden}/0003", lambda z: z[::2, ::2])
    with Image.open(rgb_path(raw, f"{other_garden}/0003")) as image:
        image.resize((80, 60)).save(rgb_path(raw, f"{other_garden}/0003"))
    found = run(raw, tmp_path)
    said = {}
    for name, block in re.findall(r"<header><b>([^<]*)</b>.*?</header>\s*((?:<p.*?</p>\s*)+)", found.html, re.DOTALL):
        said[name] = dict(re.findall(r'<p class="said"><b>(.*?):</b> (.*?)</p>', block))
    assert "correlates better moved 8 px left" in said[f"{room}/0001"]["misaligned"]
    assert "correlates better mirrored" in said[f"{room}/0003"]["misaligned"]
    assert said[f"{other_room}/0000"]["constant depth"] == "2.5 m everywhere"
    assert said[f"{other_room}/0001"]["all invalid"] == "no pixel has depth"
    assert said[f"{other_room}/0002"]["out of range"].startswith("100.0% of the pixels")
    assert said[f"{other_room}/0003"]["wrong size"] == "depth is 160 x 60, rgb 160 x 120"
    assert said[f"{garden}/0000"]["constant rgb"]
    assert said[f"{garden}/0003"]["duplicate depth"] == f"the same bytes as {garden}/0002"
    assert "0004.npy: cannot be read" in said[f"{garden}/0004"]["unreadable"]
    assert said[f"{other_garden}/0001"]["duplicate rgb"] == f"looks like {other_garden}/0000"
    assert "principal point 80, 60 is outside the image of 80 x 60" in said[f"{other_garden}/0003"]["wrong camera"]
    assert set(counted(found.figures)) == set(KINDS)
    # Depth under a foreign photograph may be misaligned as well; nothing else is suspicious.
    planted = {f"{room}/0001", f"{room}/0003", f"{garden}/0000", f"{garden}/0003", f"{garden}/0004"}
    planted |= {f"{other_room}/000{number}" for number in range(4)} | {f"{other_garden}/0001"}
    planted |= {f"{other_garden}/0003"}
    assert set(said) == planted
    assert found.figures["suspicious"] == len(planted)
    assert found.figures["frames_left_out"] == 1
    assert "depth missing" in found.html


def test_what_can_be_decoded_is_not_unreadable_by_its_head(raw, tmp_path):
    """One judgement of the format: HEIC, suffixes in capitals, TIFF of 64 bits."""
    from metricgold.images import register_heif

    register_heif()
    for number in range(5):
        name = f"env101/{number:04d}"
        with Image.open(rgb_path(raw, name)) as image:
            image.save(rgb_path(raw, name).with_suffix(".heic"), quality=95)
        rgb_path(raw, name).unlink()
        depth_path(raw, name).rename(depth_path(raw, name).with_suffix(".NPY"))
    stored = depth_path(raw, "env105/0000")
    tifffile.imwrite(stored.with_suffix(".tif"), np.load(stored).astype(np.float64))
    stored.unlink()
    found = run(raw, tmp_path)
    assert counted(found.figures) == {} and found.figures["frames_decoded"] == 20


def test_depth_that_is_resized_may_have_another_size(raw, tmp_path):
    stated = {**STATED, "depth": {**STATED["depth"], "resize": "nearest"}}
    (raw / "dataset.yaml").write_text(yaml.safe_dump(stated))
    for path in raw.rglob("*.npy"):
        np.save(path, np.load(path)[::2, ::2])
    assert counted(run(raw, tmp_path).figures) == {}


def test_another_unit_within_the_plausible(raw, tmp_path):
    name = "ai_900_001/0002"
    change_depth(raw, name, lambda z: z * 100)
    found = run(raw, tmp_path)
    assert found.figures["suspicious_out_of_range"] == 1
    assert "that of the data set" in found.html


def test_equal_files_are_found_where_nothing_is_decoded(raw, tmp_path):
    name = "ai_900_001/0000"
    shutil.copyfile(rgb_path(raw, name), rgb_path(raw, "env101/0001"))
    shutil.copyfile(depth_path(raw, name), depth_path(raw, "env101/0001"))
    found = run(raw, tmp_path, num_frames=1)
    assert found.figures["frames_decoded"] == 16
    assert counted(found.figures)["duplicate rgb"] == 1
    assert "duplicate depth" not in counted(found.figures), "over folders it is weather"


def test_one_split(raw, tmp_path):
    found = run(raw, tmp_path, split="train")
    assert found.figures["scenes"] == 2
    assert found.figures["frames_left_out"] == 0
    assert "Split train." in found.html


def test_names_are_escaped(raw, tmp_path):
    (raw / "env101").rename(raw / "<b>x")
    change_depth(raw, "<b>x/0000", np.zeros_like)
    found = run(raw, tmp_path)
    assert "<b>x" not in found.html.replace("<b>&lt;b&gt;x", "")
    assert "&lt;b&gt;x/0000" in found.html


def test_nothing_to_look_at(raw, tmp_path):
    for path in raw.rglob("*.npy"):
        path.write_bytes(b"")
    with pytest.raises(ValueError, match="none of 20 frames of mine could be read: "):
        run(raw, tmp_path)
    for path in raw.rglob("*.npy"):
        path.unlink()
    with pytest.raises(ValueError, match=r"no frame of mine to look at; left out: .'depth missing': 20"):
        run(raw, tmp_path)
    assert not (tmp_path / "metrics.json").exists()


def test_samples_every_scene_evenly():
    refs = [SimpleNamespace(scene=scene, name=f"{scene}{n:03d}") for scene in "ab" for n in range(100)]
    assert [ref.name for ref in sample(refs, 1)] == [f"{scene}{n:03d}" for scene in "ab" for n in (12, 37, 62, 87)]
    assert len(sample(refs, 50)) == 50
    assert len(sample(refs, 5000)) == 200


def test_percentiles_of_a_histogram():
    counts = np.histogram(np.geomspace(1, 10, 10_001), EDGES_M)[0]
    assert percentiles(counts)[50] == pytest.approx(np.sqrt(10), rel=0.012)
    assert percentiles(np.zeros_like(counts)) == dict.fromkeys((1, 5, 25, 50, 75, 95, 99), 0.0)
    depths_m, shares = coarse(counts)
    assert len(depths_m) in (20, 21)
    assert shares.sum() == pytest.approx(1)


def test_sizes_by_heads(tmp_path):
    import h5py

    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        file["dataset"] = np.zeros((3, 4, 3))
    np.save(tmp_path / "a.npy", np.zeros((5, 6)))
    Image.new("RGB", (8, 7)).save(tmp_path / "a.png")
    np.savez(tmp_path / "a.npz", np.zeros(3))
    assert [read_size(tmp_path / f"a.{kind}") for kind in ("hdf5", "npy", "png", "npz")] == [
        (3, 4),
        (5, 6),
        (7, 8),
        None,
    ]
    for kind in ("hdf5", "npy", "png"):
        path = tmp_path / f"a.{kind}"
        path.write_bytes(path.read_bytes()[:9])
        with pytest.raises(ValueError, match=rf"a\.{kind}: cannot be read"):
            read_size(path)
