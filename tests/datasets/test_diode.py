"""DIODE's reader on miniature files in the publisher's layout."""

import numpy as np
import pytest
from PIL import Image

from metricgold.datasets.readers import list_frames, open_dataset
from tests.support import SHARED

LIST = SHARED / "samples/metadata/marigold/diode_depth/diode_val_all_filename_list.txt"
HEIGHT, WIDTH = 3, 4
SCAN = "indoors/scene_00019/scan_00183"
STEM = "00019_00183_indoors_000_010"


def write_frame(raw, scan=SCAN, stem=STEM, depth_m=None, mask=None):
    folder = raw / "val" / scan
    folder.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (WIDTH, HEIGHT), (1, 2, 3)).save(folder / f"{stem}.png")
    np.save(folder / f"{stem}_depth.npy", np.full((HEIGHT, WIDTH, 1), 2, np.float32) if depth_m is None else depth_m)
    np.save(folder / f"{stem}_depth_mask.npy", np.ones((HEIGHT, WIDTH), np.float32) if mask is None else mask)


def test_depth_mask_and_camera(tmp_path):
    depth_m = np.array([[0.6, 300, 7, 0], [1, 2, 3, 4], [5, 6, np.inf, np.nan]], np.float32)
    mask = np.array([[1, 1, 0, 1], [1, 1, 1, 1], [0, 0, 1, 1]], np.float32)
    write_frame(tmp_path, depth_m=depth_m[..., None], mask=mask)
    (frame,) = open_dataset("diode", tmp_path)
    assert (frame.scene, frame.name) == ("indoors/scene_00019", f"{SCAN}/{STEM}")
    expected = np.array([[0.6, 300, 0, 0], [1, 2, 3, 4], [0, 0, 0, 0]], np.float32)
    np.testing.assert_array_equal(frame.planar_depth_m, expected)
    np.testing.assert_array_equal(frame.valid_mask, expected > 0)
    np.testing.assert_array_equal(frame.layers["has_depth"], [[1, 1, 1, 0], [1, 1, 1, 1], [1, 1, 0, 0]])
    # fx, fy, cx, cy = 886.81, 927.06, 512, 384 of 1024 x 768, each over 256: the pixels are not square
    np.testing.assert_allclose(frame.intrinsics, [[3.4641015625, 0, 2], [0, 3.621328125, 1.5], [0, 0, 1]])


def test_missing_members_are_counted(tmp_path):
    for number in range(4):
        write_frame(tmp_path, stem=f"{STEM}{number}")
    folder = tmp_path / "val" / SCAN
    (folder / f"{STEM}0.png").unlink()
    (folder / f"{STEM}1_depth.npy").unlink()
    (folder / f"{STEM}2_depth_mask.npy").unlink()
    listing = list_frames("diode", tmp_path)
    assert [ref.name for ref in listing.frames] == [f"{SCAN}/{STEM}3"]
    assert listing.gaps == {"depth missing": 1, "mask missing": 1, "rgb missing": 1}


def test_a_folder_without_val_is_read_too(tmp_path):
    write_frame(tmp_path)
    (frame,) = open_dataset("diode", tmp_path / "val")
    assert frame.name == f"{SCAN}/{STEM}"


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"depth_m": np.ones((HEIGHT, WIDTH), np.float32)}, r"_depth\.npy: expected shape \[3, 4, 1\], got \[3, 4\]"),
        (
            {"depth_m": np.ones((HEIGHT, WIDTH, 1), np.int32)},
            r"_depth\.npy: expected floating point numbers, got int32",
        ),
        ({"mask": np.ones((HEIGHT, WIDTH, 1))}, r"_depth_mask\.npy: expected shape \[3, 4\], got \[3, 4, 1\]"),
        ({"mask": np.full((HEIGHT, WIDTH), "a")}, r"_depth_mask\.npy: expected numbers, got <U1"),
    ],
)
def test_arrays_of_another_kind(tmp_path, arrays, message):
    write_frame(tmp_path, **arrays)
    with pytest.raises(ValueError, match=message):
        list(open_dataset("diode", tmp_path))


def test_pickled_objects_are_refused(tmp_path):
    write_frame(tmp_path, mask=np.full((HEIGHT, WIDTH), {"any": "object"}))
    with pytest.raises(ValueError, match=r"_depth_mask\.npy: cannot be read: .*object"):
        list(open_dataset("diode", tmp_path))


@pytest.mark.skipif(not LIST.exists(), reason="the list lies beside the project, not in it")
def test_the_771_of_the_list(tmp_path):
    rows = [line.split() for line in LIST.read_text().splitlines()]
    for path in (path for row in rows for path in row):
        (tmp_path / "val" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "val" / path).touch()
    frames = list_frames("diode", tmp_path, split="test").frames
    names = [ref.name for ref in frames]
    assert sum(name.startswith("indoors/") for name in names) == 325
    assert sum(name.startswith("outdoor/") for name in names) == 446
    assert set(names) == {row[0].removesuffix(".png") for row in rows}
    assert len({ref.scene for ref in frames}) == 6
    on_disk = {tuple(path.relative_to(tmp_path / "val").as_posix() for path in ref.paths) for ref in frames}
    assert on_disk == {tuple(row) for row in rows}
