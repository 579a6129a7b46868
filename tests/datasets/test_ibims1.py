"""iBims-1's reader on miniature files in the publisher's layout."""

import numpy as np
import pytest
from PIL import Image

from metricgold.datasets.readers import list_frames, open_dataset
from tests.support import SHARED

LIST = SHARED / "samples/metadata/ibims/ibims_100.txt"
HEIGHT, WIDTH = 3, 5
MASKS = ("mask_invalid", "mask_transp", "mask_wall", "mask_floor", "mask_table", "edges")


def write_image(raw, name="corridor_01", units=None, calib="559.5,559.6,2.5,1.5\n", **masks):
    folder = raw / "ibims1_core_raw"
    for kind in ("rgb", "depth", "calib", *MASKS):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (WIDTH, HEIGHT), (5, 6, 7)).save(folder / f"rgb/{name}.png")
    units = np.full((HEIGHT, WIDTH), 2621, np.uint16) if units is None else units
    Image.fromarray(units).save(folder / f"depth/{name}.png")
    (folder / f"calib/{name}.txt").write_text(calib)
    for kind in MASKS:
        mask = masks.get(kind, np.ones((HEIGHT, WIDTH), bool if kind in ("mask_invalid", "mask_transp") else np.uint8))
        Image.fromarray(mask).save(folder / kind / f"{name}.png")


def test_metres_masks_and_camera(tmp_path):
    units = np.array([[0, 1, 65535, 13107, 2621], [6554, 100, 100, 100, 100], [9, 9, 9, 9, 9]], np.uint16)
    invalid, transparent = np.ones((HEIGHT, WIDTH), bool), np.ones((HEIGHT, WIDTH), bool)
    invalid[1, 1:3] = transparent[1, 2:4] = False  # False is bad in both
    walls = np.zeros((HEIGHT, WIDTH), np.uint8)
    walls[2] = 0, 1, 1, 2, 2
    edges = np.zeros((HEIGHT, WIDTH), bool)
    edges[0, 2] = True
    write_image(tmp_path, units=units, mask_invalid=invalid, mask_transp=transparent, mask_wall=walls, edges=edges)
    (frame,) = open_dataset("ibims1", tmp_path)
    assert (frame.scene, frame.name) == ("corridor", "corridor_01")
    # raw * 50 / 65535
    expected = [[0, 0.000762951, 50, 10, 1.999695], [5.000381, 0, 0, 0, 0.076295], [0.006866560] * 5]
    np.testing.assert_allclose(frame.planar_depth_m, expected, rtol=1e-5)
    assert frame.valid_mask.sum() == 11
    np.testing.assert_array_equal(frame.layers["mask_invalid"], invalid)
    np.testing.assert_array_equal(frame.layers["mask_transp"], transparent)
    np.testing.assert_array_equal(frame.layers["edges"], edges)
    np.testing.assert_array_equal(frame.layers["mask_wall"], walls)
    assert {name: layer.dtype.kind for name, layer in frame.layers.items()} == {
        "mask_invalid": "b",
        "mask_transp": "b",
        "mask_wall": "u",
        "mask_floor": "u",
        "mask_table": "u",
        "edges": "b",
    }
    # The publisher's script counts from 1, a frame's first pixel is at 0.5.
    np.testing.assert_allclose(frame.intrinsics, [[559.5, 0, 2], [0, 559.6, 1], [0, 0, 1]])


def test_masks_of_8_bits_are_read_alike(tmp_path):
    mask = np.full((HEIGHT, WIDTH), 255, np.uint8)
    mask[0] = 0
    write_image(tmp_path, mask_invalid=mask, edges=mask)
    (frame,) = open_dataset("ibims1", tmp_path)
    assert frame.valid_mask.sum() == frame.layers["edges"].sum() == 10


def test_what_is_missing(tmp_path):
    for number in range(1, 7):
        write_image(tmp_path, f"lab_{number:02d}")
    folder = tmp_path / "ibims1_core_raw"
    for kind, number, suffix in (
        ("rgb", 1, "png"),
        ("depth", 2, "png"),
        ("mask_transp", 3, "png"),
        ("calib", 4, "txt"),
    ):
        (folder / kind / f"lab_{number:02d}.{suffix}").unlink()
    for kind in ("edges", "mask_floor", "mask_table", "mask_wall"):
        (folder / kind / "lab_05.png").unlink()
    listing = list_frames("ibims1", tmp_path)
    assert listing.gaps == {"depth missing": 1, "intrinsics missing": 1, "mask missing": 1, "rgb missing": 1}
    without, frame = open_dataset("ibims1", tmp_path)
    assert set(without.layers) == {"mask_invalid", "mask_transp"}
    assert set(frame.layers) == set(MASKS)
    assert [frame.name, len(listing.frames[1].paths)] == ["lab_06", 8]


@pytest.mark.parametrize("calib", ["559.5 559.6 2.5\t1.5", "559.5, 559.6, 2.5, 1.5"])
def test_spaces_between_the_numbers_of_a_camera(tmp_path, calib):
    write_image(tmp_path, calib=calib)
    (ref,) = list_frames("ibims1", tmp_path).frames
    assert ref.camera == (559.5, 559.6, 2.5, 1.5)


@pytest.mark.parametrize("calib", ["", "1,2,3", "1,2,3,4,5", "0,2,3,4", "1,2,x,4", "1,2,nan,4"])
def test_a_file_that_is_no_camera(tmp_path, calib):
    write_image(tmp_path, calib=calib)
    with pytest.raises(ValueError, match=rf"calib/corridor_01\.txt: .*expected fx,fy,cx,cy, got '{calib}'"):
        list_frames("ibims1", tmp_path)


@pytest.mark.parametrize("kind", MASKS)
def test_a_mask_of_another_size_or_kind(tmp_path, kind):
    write_image(tmp_path, **{kind: np.ones((2, 2), np.uint8)})
    with pytest.raises(ValueError, match=rf"{kind}/corridor_01\.png: expected shape \[3, 5\], got \[2, 2\]"):
        list(open_dataset("ibims1", tmp_path))
    write_image(tmp_path, **{kind: np.ones((HEIGHT, WIDTH, 3), np.uint8)})
    with pytest.raises(ValueError, match=rf"{kind}/corridor_01\.png: .*expected mode 1 or L or P or I;16, got RGB"):
        list(open_dataset("ibims1", tmp_path))


def test_8_bit_depth_is_refused(tmp_path):
    write_image(tmp_path, units=np.ones((HEIGHT, WIDTH), np.uint8))
    with pytest.raises(ValueError, match=r"depth/corridor_01\.png: .*expected mode I;16, got L"):
        list(open_dataset("ibims1", tmp_path))


@pytest.mark.skipif(not LIST.exists(), reason="the list lies beside the project, not in it")
def test_the_100_of_the_list(tmp_path):
    names = [line.split("/")[1].removesuffix("_img.png") for line in LIST.read_text().split()]
    for name in names:
        write_image(tmp_path, name)
    frames = list_frames("ibims1", tmp_path, split="test").frames
    assert [ref.name for ref in frames] == sorted(names)
    assert len(frames) == 100
    assert len({ref.scene for ref in frames}) == 11
