"""NYU Depth v2's reader on miniature MATLAB 7.3 files: a text header, then HDF5; columns first, texts by reference."""

import cv2
import h5py
import numpy as np
import pytest

from metricgold.datasets import nyuv2
from metricgold.datasets.inspect.findings import equal_file_suspicions
from metricgold.datasets.inspect.summary import read_heads
from metricgold.datasets.readers import list_frames, open_dataset, read_frame
from tests.support import SHARED

HEIGHT, WIDTH = 6, 8


def write_labelled(raw, scenes, *, rgb=None, raw_m=None, filled_m=None, **h5_options):
    """As MATLAB would save [H, W, 3, N] and [H, W, N]: the last axis first in HDF5."""
    rng = np.random.default_rng(0)
    rgb = rng.integers(0, 256, (HEIGHT, WIDTH, 3, len(scenes)), np.uint8) if rgb is None else rgb
    raw_m = rng.uniform(1, 9, (HEIGHT, WIDTH, len(scenes))).astype(np.float32) if raw_m is None else raw_m
    filled_m = raw_m if filled_m is None else filled_m
    path = raw / nyuv2.LABELLED
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w", userblock_size=512) as file:
        for name, array in (("images", rgb), ("rawDepths", raw_m), ("depths", filled_m)):
            file.create_dataset(name, data=array.T, **h5_options)
        cells = file.create_dataset("scenes", (1, len(scenes)), dtype=h5py.ref_dtype)
        for i, scene in enumerate(scenes):
            codes = np.frombuffer(scene.encode("utf-16-le"), np.uint16).reshape(-1, 1)
            cells[0, i] = file.create_dataset(f"#refs#/{i}", data=codes).ref
    with path.open("r+b") as file:
        file.write(b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(508) + b"\0\2IM")
    return path


def test_depth_mask_rgb_and_camera_by_hand(tmp_path):
    rgb = np.zeros((HEIGHT, WIDTH, 3, 2), np.uint8)
    rgb[2, 5, :, 1] = 10, 20, 30
    raw_m, filled_m = np.zeros((HEIGHT, WIDTH, 2), np.float32), np.ones((HEIGHT, WIDTH, 2), np.float32)
    raw_m[2, 5, 1], raw_m[5, 0, 1], raw_m[3, 3, 1] = 1.5, 9.75, np.nan
    filled_m[2, 5, 1], filled_m[0, 7, 1] = 1.5, 4.25
    write_labelled(tmp_path, ["kitchen_0004", "office_0005"], rgb=rgb, raw_m=raw_m, filled_m=filled_m)
    first, frame = open_dataset("nyuv2", tmp_path)
    assert not first.valid_mask.any()
    assert (frame.scene, frame.name) == ("office_0005", "office_0005/0002")
    assert np.argwhere(frame.valid_mask).tolist() == [[2, 5], [5, 0]]
    assert frame.planar_depth_m[frame.valid_mask].tolist() == [1.5, 9.75]
    assert frame.rgb[2, 5].tolist() == [10, 20, 30] and frame.rgb.sum() == 60
    assert list(frame.layers) == ["filled_depth_m"]
    assert frame.layers["filled_depth_m"].sum() == HEIGHT * WIDTH + 0.5 + 3.25
    assert frame.layers["filled_depth_m"][0, 7] == 4.25
    # The published camera of 480 x 640, its centre moved by half a pixel, in an image of an 80th of that.
    expected = [[518.857901 / 80, 0, 326.082449 / 80], [0, 519.469611 / 80, 254.236166 / 80], [0, 0, 1]]
    np.testing.assert_allclose(frame.intrinsics, expected, atol=1e-7)


def test_frames_are_numbered_from_1_in_the_order_of_the_file(tmp_path):
    write_labelled(tmp_path, ["office_0005", "kitchen_0004", "office_0005", "café_0001"])
    frames = list_frames("nyuv2", tmp_path).frames
    assert [(ref.name, ref.index) for ref in frames] == [
        ("café_0001/0004", 3),
        ("kitchen_0004/0002", 1),
        ("office_0005/0001", 0),
        ("office_0005/0003", 2),
    ]


def test_split_test_is_by_the_official_scenes(tmp_path):
    write_labelled(tmp_path, ["kitchen_0003", "kitchen_0004", "basement_0001", "office_0005"])
    listing = list_frames("nyuv2", tmp_path, split="test")
    assert [ref.name for ref in listing.frames] == ["kitchen_0004/0002", "office_0005/0004"]
    assert listing.gaps == {"in no split": 2}


def test_a_frame_is_read_without_the_others(tmp_path):
    """The pixels of all others are overwritten: none of them is looked at."""
    path = write_labelled(tmp_path, ["a", "b", "c"])
    whole = list(open_dataset("nyuv2", tmp_path))
    with h5py.File(path, "r+") as file:
        for name in ("images", "rawDepths", "depths"):
            array = file[name][()]
            del file[name]
            stored = file.create_dataset(name, data=array, chunks=(1, *array.shape[1:]), compression="gzip")
            for other in (0, 2):
                stored.id.write_direct_chunk((other, *[0] * (array.ndim - 1)), b"broken")
    broken, ref, _ = list_frames("nyuv2", tmp_path).frames
    frame = read_frame(ref)
    np.testing.assert_array_equal(frame.rgb, whole[1].rgb)
    np.testing.assert_array_equal(frame.planar_depth_m, whole[1].planar_depth_m)
    with pytest.raises(ValueError, match=r"nyu_depth_v2_labeled\.mat: cannot be read: "):
        read_frame(broken)


def break_with(name, **dataset):
    def change(file):
        del file[name]
        file.create_dataset(name, **dataset)

    return change


def point_scene_elsewhere(file):
    file["scenes"][0, 0] = file["images"].ref


def link_images_out(file):
    del file["images"]
    file["images"] = h5py.ExternalLink("/etc/hostname", "images")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (break_with("scenes", data=np.arange(2)), "expected scenes as references to texts"),
        (point_scene_elsewhere, "expected scenes as references to texts, got one to"),
        (break_with("images", data=np.zeros((3, 3, WIDTH, HEIGHT), np.uint8)), "names 2 scenes for 3 images"),
        (
            break_with("images", data=np.zeros((2, WIDTH, HEIGHT), np.uint8)),
            "expected images as numbers of kind u in 4",
        ),
        (
            break_with("rawDepths", data=np.zeros((2, WIDTH, HEIGHT), np.uint16)),
            "expected rawDepths as numbers of kind f",
        ),
        (
            break_with("depths", data=np.zeros((2, HEIGHT, WIDTH), np.float32)),
            r"got uint8 \[6, 8, 3\], \[6, 8\] and \[8, 6\]",
        ),
        (
            break_with("rawDepths", shape=(2, 1 << 16, 1 << 16), dtype="f4", chunks=(1, 8, 8)),
            "expected at most 1073741824",
        ),
        (lambda file: file.pop("depths"), "no dataset 'depths'"),
        (link_images_out, "'images' is a link"),
    ],
)
def test_another_file_is_one_clear_line(tmp_path, change, message):
    path = write_labelled(tmp_path, ["a", "b"])
    with h5py.File(path, "r+") as file:
        change(file)
    with pytest.raises(ValueError, match=r"^[^\n]*nyu_depth_v2_labeled\.mat: cannot be read: [^\n]*" + message):
        list(open_dataset("nyuv2", tmp_path))


def test_no_file_and_no_hdf5(tmp_path):
    with pytest.raises(ValueError, match="no frames of nyuv2; metricgold download nyuv2 fills it"):
        open_dataset("nyuv2", tmp_path)
    path = write_labelled(tmp_path, ["a"])
    path.write_bytes(path.read_bytes()[:700])
    with pytest.raises(ValueError, match=r"nyu_depth_v2_labeled\.mat: cannot be read: "):
        open_dataset("nyuv2", tmp_path)


def test_frames_of_one_file_are_no_duplicates_of_each_other(tmp_path):
    """Nor is the file, of 3 GB, read for each of its frames to find that out."""
    write_labelled(tmp_path, ["kitchen_0004"] * 3)
    frames = list_frames("nyuv2", tmp_path).frames
    assert list(equal_file_suspicions(frames, read_heads(frames))) == []


beside_samples = pytest.mark.skipif(
    not (SHARED / "samples").is_dir(), reason="the real samples lie beside the project, not in it"
)


@beside_samples
def test_split_test_is_the_official_654(tmp_path):
    """A file with the real scenes of all 1,449, by a public list that names scene and number of each frame."""
    lists = SHARED / "samples/metadata/marigold/nyu_depth/labeled"
    rows = {side: (lists / f"filename_list_{side}.txt").read_text().split()[::3] for side in ("train", "test")}
    official = {
        side: {name.split("/", 1)[1].replace("rgb_", "").removesuffix(".png") for name in names}
        for side, names in rows.items()
    }
    scenes = dict(reversed(name.split("/")) for names in official.values() for name in names)
    assert len(scenes) == 1449
    pixel = np.ones((1, 1, 1449), np.float32)
    rgb = np.zeros((1, 1, 3, 1449), np.uint8)
    write_labelled(tmp_path, [scenes[f"{index + 1:04d}"] for index in range(1449)], rgb=rgb, raw_m=pixel)
    listing = list_frames("nyuv2", tmp_path, split="test")
    assert {ref.name for ref in listing.frames} == official["test"] and len(listing.frames) == 654
    assert listing.gaps == {"in no split": 795}


@beside_samples
def test_real_frames_against_opencv(tmp_path):
    """Two real frames in a file of the upstream's layout: border, holes and numbers as OpenCV reads the originals."""
    samples = SHARED / "samples/nyuv2/metric3d_demo"
    rgbs = [cv2.imread(str(samples / f"rgb/rgb_{number}.jpg"))[..., ::-1] for number in ("00000", "00050")]
    units = [
        cv2.imread(str(samples / f"depth/sync_depth_{number}.png"), cv2.IMREAD_UNCHANGED)
        for number in ("00000", "00050")
    ]
    raw_m = np.stack(units, axis=-1).astype(np.float32) / 1000
    write_labelled(tmp_path, ["office_0005", "office_0007"], rgb=np.stack(rgbs, axis=-1), raw_m=raw_m)
    frames = list(open_dataset("nyuv2", tmp_path, split="test"))
    for frame, rgb, stored, num_valid in zip(frames, rgbs, units, (225_121, 230_598), strict=True):
        np.testing.assert_array_equal(frame.rgb, rgb)
        np.testing.assert_array_equal(frame.valid_mask, stored > 0)
        np.testing.assert_array_equal(frame.planar_depth_m, stored.astype(np.float32) / 1000)
        assert frame.valid_mask.shape == (480, 640) and frame.valid_mask.sum() == num_valid
        assert frame.rgb[:5].mean() > 250 and not frame.valid_mask[:5].any()  # the white border
        np.testing.assert_allclose(frame.intrinsics[:2, 2], [326.08244941, 254.23616633], atol=1e-8)
