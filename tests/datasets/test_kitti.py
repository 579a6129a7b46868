"""KITTI's reader on a miniature tree as the manifest extracts it."""

import cv2
import numpy as np
import pytest
from PIL import Image

from metricgold.datasets.manifest import load_manifest
from metricgold.datasets.readers import list_frames, open_dataset, read_frame
from tests.support import SHARED

HEIGHT, WIDTH = 6, 10
DRIVE = "2011_09_26_drive_0002_sync"
CALIBRATION = """calib_time: 09-Jan-2012 13:57:47
corner_dist: 9.950000e-02
S_rect_02: 1.242000e+03 3.750000e+02
P_rect_00: 1 0 1 0 0 1 1 0 0 0 1 0
P_rect_02: {focal} 0.000000e+00 6.095593e+02 4.485728e+01 0.000000e+00 {focal} 1.728540e+02 2.163791e-01 0.000000e+00 \
0.000000e+00 1.000000e+00 2.745884e-03
"""


def write_frame(raw, drive=DRIVE, number="0000000069", *, units=None, side="val", focal="7.215377e+02", rgb=None):
    date = raw / drive[:10]
    photographs = date / drive / "image_02/data"
    depths = raw / "data_depth_annotated" / side / drive / "proj_depth/groundtruth/image_02"
    for folder in (photographs, depths):
        folder.mkdir(parents=True, exist_ok=True)
    units = np.full((HEIGHT, WIDTH), 2560, np.uint16) if units is None else units
    rgb = np.full((*units.shape, 3), 90, np.uint8) if rgb is None else rgb
    Image.fromarray(rgb).save(photographs / f"{number}.png")
    Image.fromarray(units).save(depths / f"{number}.png")
    (date / "calib_cam_to_cam.txt").write_text(CALIBRATION.format(focal=focal))
    return photographs / f"{number}.png", depths / f"{number}.png"


def test_depth_mask_and_camera_by_hand(tmp_path):
    units = np.zeros((HEIGHT, WIDTH), np.uint16)
    units[4, 2], units[5, 9], units[3, 0] = 1, 21733, 65535
    write_frame(tmp_path, units=units)
    (frame,) = open_dataset("kitti", tmp_path)
    assert (frame.scene, frame.name) == (DRIVE, f"{DRIVE}/0000000069")
    assert np.argwhere(frame.valid_mask).tolist() == [[3, 0], [4, 2], [5, 9]]
    # 65535 / 256, 1 / 256, 21733 / 256: exact in float32
    assert frame.planar_depth_m[frame.valid_mask].tolist() == [255.99609375, 0.00390625, 84.89453125]
    expected = [[721.5377, 0, 610.0593], [0, 721.5377, 173.354], [0, 0, 1]]
    np.testing.assert_allclose(frame.intrinsics, expected, rtol=1e-12)


def test_drives_below_train_and_val_and_the_camera_of_each_date(tmp_path):
    write_frame(tmp_path, side="val")
    write_frame(tmp_path, "2011_10_03_drive_0047_sync", "0000000672", side="train", focal="7.188560e+02")
    frames = list(open_dataset("kitti", tmp_path, split="test"))
    assert [frame.scene for frame in frames] == [DRIVE, "2011_10_03_drive_0047_sync"]
    assert [frame.intrinsics[0, 0] for frame in frames] == [721.5377, 718.856]


def test_frames_without_depth_or_photograph_are_gaps(tmp_path):
    for number in ("0000000001", "0000000002", "0000000003"):
        photograph, depth = write_frame(tmp_path, number=number)
    photograph.unlink()
    depth.with_name("0000000001.png").unlink()
    _, depth = write_frame(tmp_path, "2011_09_28_drive_0002_sync")
    depth.unlink()
    listing = list_frames("kitti", tmp_path)
    assert [ref.name for ref in listing.frames] == [f"{DRIVE}/0000000002"]
    assert listing.gaps == {"depth missing": 2, "rgb missing": 1}


def test_all_members_of_the_manifest_are_the_652_frames(tmp_path):
    """Every member by its name alone, where the manifest extracts it; the second camera's depth is not taken."""
    for archive in load_manifest("kitti").archives:
        for member in archive.members:
            path = tmp_path / archive.into / member
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(CALIBRATION.format(focal="7.215377e+02"))
    other = tmp_path / f"data_depth_annotated/val/{DRIVE}/proj_depth/groundtruth/image_03"
    other.mkdir()
    (other / "0000000099.png").touch()
    listing = list_frames("kitti", tmp_path, split="test")
    assert (len(listing.frames), listing.gaps) == (652, {})
    lists = SHARED / "samples/metadata/bts/eigen_test_files_with_gt.txt"
    if lists.exists():
        rows = [line.split() for line in lists.read_text().splitlines()]
        paths = {f"{rgb.split('/')[1]}/{rgb.split('/')[-1][:-4]}" for rgb, depth, _ in rows if depth != "None"}
        assert {ref.name for ref in listing.frames} == paths


def test_8_bits_are_refused(tmp_path):
    _, depth = write_frame(tmp_path)
    Image.fromarray(np.full((HEIGHT, WIDTH), 10, np.uint8)).save(depth)
    with pytest.raises(ValueError, match=r"0000000069\.png: cannot be read: expected mode I;16, got L"):
        list(open_dataset("kitti", tmp_path))


def test_depth_of_another_size_is_refused(tmp_path):
    write_frame(tmp_path, rgb=np.zeros((HEIGHT, WIDTH + 1, 3), np.uint8))
    with pytest.raises(
        ValueError, match=r"groundtruth/image_02/0000000069\.png: expected shape \[6, 11\], got \[6, 10\]"
    ):
        list(open_dataset("kitti", tmp_path))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "no such file"),
        ("P_rect_03: 1 0 1 0 0 1 1 0 0 0 1 0\n", "cannot be read: has no row P_rect_02"),
        ("P_rect_02: 1 0 1 0 0 1 1 0 0 0 1\n", "cannot be read: expected P_rect_02 as 12 numbers of a pinhole, got '"),
        ("P_rect_02: 0 0 1 0 0 1 1 0 0 0 1 0\n", "expected P_rect_02 as 12 numbers of a pinhole"),
        ("P_rect_02: 1 0 1 0 0 1 nan 0 0 0 1 0\n", "expected P_rect_02 as 12 numbers of a pinhole"),
        ("P_rect_02: 1 0 1 0 0 x 1 0 0 0 1 0\n", "expected P_rect_02 as 12 numbers of a pinhole"),
    ],
)
def test_a_camera_is_never_guessed(tmp_path, text, message):
    write_frame(tmp_path)
    path = tmp_path / "2011_09_26/calib_cam_to_cam.txt"
    path.write_text(text) if text else path.unlink()
    with pytest.raises(ValueError, match=rf"^[^\n]*2011_09_26/calib_cam_to_cam\.txt: [^\n]*{message}"):
        list_frames("kitti", tmp_path)


SAMPLES = SHARED / "samples/kitti/metric3d_demo"


@pytest.mark.skipif(not SAMPLES.is_dir(), reason="the real samples lie beside the project, not in it")
@pytest.mark.parametrize(("number", "num_valid"), [("0000000005", 90_839), ("0000000050", 96_131)])
def test_real_frames_against_opencv(tmp_path, number, num_valid):
    photograph, depth = write_frame(tmp_path, number=number)
    photograph.write_bytes((SAMPLES / f"rgb/{number}.png").read_bytes())
    depth.write_bytes((SAMPLES / f"depth/{number}.png").read_bytes())
    frame = read_frame(list_frames("kitti", tmp_path).frames[0])
    units = cv2.imread(str(depth), cv2.IMREAD_UNCHANGED)
    assert units.dtype == np.uint16
    np.testing.assert_array_equal(frame.planar_depth_m, (units / 256).astype(np.float32))
    np.testing.assert_array_equal(frame.valid_mask, units > 0)
    assert frame.valid_mask.sum() == num_valid and not frame.valid_mask[:100].any()
    np.testing.assert_array_equal(frame.rgb, cv2.imread(str(photograph))[..., ::-1])
    # Read without its flag, OpenCV gives the upper 8 bits: whole metres.
    assert frame.planar_depth_m.max() > cv2.imread(str(depth), cv2.IMREAD_GRAYSCALE).max() > 80
