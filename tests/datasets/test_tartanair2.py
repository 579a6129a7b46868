"""TartanAir v2's reader: four bytes of a float in the channels of a PNG."""

import numpy as np
import pytest
from hypothesis import given, strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from metricgold.datasets.readers import list_frames, open_dataset
from metricgold.datasets.tartanair2 import unpack_depth

HEIGHT, WIDTH = 4, 6


def as_pillow_reads_it(depth_m):
    """The official writer hands the float's bytes to a library that takes them as blue, green, red, alpha."""
    bgra = np.ascontiguousarray(depth_m, dtype="<f4").view(np.uint8).reshape(*depth_m.shape, 4)
    return bgra[..., [2, 1, 0, 3]]


def write_frame(raw, depth_m, folder="Ruins/Data_easy/P000", frame=0):
    for kind in ("image_lcam_front", "depth_lcam_front"):
        (raw / folder / kind).mkdir(parents=True, exist_ok=True)
    rgb = np.full((*depth_m.shape, 3), 50, dtype=np.uint8)
    Image.fromarray(rgb).save(raw / folder / f"image_lcam_front/{frame:06d}_lcam_front.png")
    packed = Image.fromarray(as_pillow_reads_it(depth_m), "RGBA")
    packed.save(raw / folder / f"depth_lcam_front/{frame:06d}_lcam_front_depth.png")


@given(arrays(np.float32, (3, 2), elements=st.floats(width=32, allow_nan=False)))
def test_unpacking_returns_every_bit(depth_m):
    np.testing.assert_array_equal(unpack_depth(as_pillow_reads_it(depth_m)), depth_m)


def test_known_bytes():
    # 1.5 is 0x3FC00000: red 0xC0, green 0x00, blue 0x00, alpha 0x3F
    assert unpack_depth(np.array([[[0xC0, 0x00, 0x00, 0x3F]]], dtype=np.uint8)) == 1.5


def test_depth_sky_and_intrinsics(tmp_path):
    depth_m = np.full((HEIGHT, WIDTH), 1.5, dtype=np.float32)
    depth_m[0], depth_m[1, 1], depth_m[2, 2], depth_m[3, 3] = 3e38, 0, 0.16, 60000
    write_frame(tmp_path, depth_m)
    (frame,) = open_dataset("tartanair2", tmp_path)
    expected = np.where(depth_m < 1000, depth_m, 0)
    np.testing.assert_array_equal(frame.planar_depth_m, expected)
    np.testing.assert_array_equal(frame.valid_mask, expected > 0)
    np.testing.assert_array_equal(frame.intrinsics, [[3, 0, 3], [0, 3, 2], [0, 0, 1]])
    assert (frame.scene, frame.name) == ("Ruins", "Ruins/Data_easy/P000/000000")


def test_a_depth_without_alpha_is_refused(tmp_path):
    write_frame(tmp_path, np.ones((HEIGHT, WIDTH)))
    (ref,) = list_frames("tartanair2", tmp_path).frames
    with Image.open(ref.depth_path) as image:
        image.convert("RGB").save(ref.depth_path)
    with pytest.raises(ValueError, match=r"000000_lcam_front_depth\.png: cannot be read: expected mode RGBA, got RGB"):
        list(open_dataset("tartanair2", tmp_path))


def test_sky_behind_a_gap(tmp_path):
    """A frame that ends at 200 m under a sky at 800 m, nearer than the limit that holds for all environments."""
    depth_m = np.full((HEIGHT, WIDTH), 800, dtype=np.float32)
    depth_m[1], depth_m[2:] = 200, 1.5
    write_frame(tmp_path, depth_m)
    (frame,) = open_dataset("tartanair2", tmp_path)
    assert frame.valid_mask.all(axis=1).tolist() == [False, True, True, True]
    np.testing.assert_array_equal(frame.no_surface, ~frame.valid_mask)


def test_an_opaque_or_premultiplied_alpha_changes_the_depth_and_is_no_frame_of_ours(tmp_path):
    """Alpha holds the exponent: 255 makes every number NaN or huge and negative, so that nothing is valid."""
    write_frame(tmp_path, np.ones((HEIGHT, WIDTH)))
    (ref,) = list_frames("tartanair2", tmp_path).frames
    with Image.open(ref.depth_path) as image:
        image.putalpha(255)
        image.save(ref.depth_path)
    (frame,) = open_dataset("tartanair2", tmp_path)
    assert not frame.valid_mask.any()
    assert not frame.no_surface.any()


def test_splits(tmp_path):
    for environment in ("Ruins", "Office", "JapaneseCity"):
        write_frame(tmp_path, np.ones((HEIGHT, WIDTH)), f"{environment}/Data_hard/P001")
    found = {
        s: [ref.scene for ref in list_frames("tartanair2", tmp_path, split=s).frames] for s in ("train", "val", "test")
    }
    assert found == {"train": ["Ruins"], "val": ["JapaneseCity"], "test": ["Office"]}
