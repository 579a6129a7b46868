"""Pixels that count on miniature files of each publisher's layout, through the readers; all figures are by hand."""

import numpy as np

from metricgold.datasets.readers import open_dataset
from metricgold.evaluate.protocols import load_protocol
from tests.datasets import (
    test_diode as diode_files,
    test_eth3d as eth3d_files,
    test_flsea as flsea_files,
    test_ibims1 as ibims1_files,
    test_kitti as kitti_files,
    test_nyuv2 as nyuv2_files,
    test_sunrgbd as sunrgbd_files,
)


def pixels(frame, *names):
    """Pixels that count by each protocol, and that those are finite and positive."""
    found = []
    for name in names:
        true_m, counted = load_protocol(name).counted(frame)
        assert (true_m[counted] > 0).all()
        found.append(int(counted.sum()))
    return found


def test_nyu(tmp_path):
    """A tenth of 480 x 640, so that the crop is rows 4:47 and columns 4:60; 10 m is where the range ends."""
    raw_m, filled_m = (np.full((48, 64, 1), depth_m, np.float32) for depth_m in (2, 3))
    raw_m[:10, :10] = 0
    raw_m[20, 30] = 10
    nyuv2_files.write_labelled(
        tmp_path, ["kitchen_0004"], rgb=np.zeros((48, 64, 3, 1), np.uint8), raw_m=raw_m, filled_m=filled_m
    )
    (frame,) = open_dataset("nyuv2", tmp_path)
    assert pixels(frame, "nyuv2-eigen", "nyuv2-filled") == [43 * 56 - 6 * 6 - 1, 43 * 56]
    assert pixels(frame, "nyuv2-unidepth", "nyuv2-moge") == [43 * 56 - 6 * 6 - 1, 48 * 64 - 100]


def test_kitti(tmp_path):
    """Three full rows, at 10 m, 80 m and 256 m; read as 8 bits all would be nearer than 1 m."""
    units = np.zeros((375, 1242), np.uint16)
    units[200], units[201], units[202] = 2560, 20480, 65535
    kitti_files.write_frame(tmp_path, units=units)
    (frame,) = open_dataset("kitti", tmp_path)
    assert pixels(frame, "kitti-garg", "kitti-eigen", "kitti-unidepth") == [1129, 1129, 1129]
    assert pixels(frame, "kitti-benchmark", "kitti-garg-frame", "kitti-moge") == [1216, 1153, 3 * 1242]


def test_sun(tmp_path):
    """A row at 10 m and one at 8 m, where two ranges end; with its bits as they are stored no pixel would count."""
    millimetres = np.full((530, 730), 2000, np.uint16)
    millimetres[0], millimetres[1] = 10_000, 8_000
    depth = sunrgbd_files.rotated(millimetres)
    sunrgbd_files.write_capture(tmp_path, sunrgbd_files.NYU, depth=depth, size=(530, 730))
    sunrgbd_files.write_list(tmp_path, [sunrgbd_files.NYU])
    (frame,) = open_dataset("sunrgbd", tmp_path)
    assert pixels(frame, "sunrgbd-depthpro", "sunrgbd-unidepth") == [529 * 730, 528 * 730]
    assert pixels(frame, "sunrgbd-zoe") == [426 * 560]


def test_eth3d_with_its_mask_image(tmp_path):
    eth3d_files.write_scene(tmp_path)
    depth_m, mask = np.full((4, 6), 2.5), np.zeros((4, 6))
    depth_m[3] = 0.05, 60, 250, np.inf, 2.5, 2.5
    mask[1, :2] = 1, 2
    eth3d_files.write_depth(tmp_path, depth_m)
    eth3d_files.write_mask(tmp_path, mask)
    (frame,) = open_dataset("eth3d", tmp_path)
    assert pixels(frame, "eth3d-depthpro", "eth3d-unidepth", "eth3d-marigold") == [24 - 2 - 3, 24 - 2 - 3, 24 - 1]


def test_diode_with_its_mask(tmp_path):
    depth_m, mask = np.full((3, 4, 1), 2, np.float32), np.ones((3, 4), np.float32)
    depth_m[0, :2, 0], mask[2, :3] = (30, 0.3), 0
    diode_files.write_frame(tmp_path, depth_m=depth_m, mask=mask)
    (frame,) = open_dataset("diode", tmp_path)
    assert pixels(frame, "diode-all", "diode-indoor", "diode-indoor-unidepth") == [9, 9, 8]


def test_ibims_with_both_masks(tmp_path):
    """50 metres over 65535 units; the masks overlap in one pixel."""
    units = np.full((3, 5), 2621, np.uint16)
    units[0, :3] = 0, 65535 * 12 // 50, 65535 * 30 // 50
    invalid, transparent = np.ones((3, 5), bool), np.ones((3, 5), bool)
    invalid[2, 0:2] = transparent[2, 1:3] = False
    ibims1_files.write_image(tmp_path, units=units, mask_invalid=invalid, mask_transp=transparent)
    (frame,) = open_dataset("ibims1", tmp_path)
    assert pixels(frame, "ibims1", "ibims1-unidepth", "ibims1-depthpro", "ibims1-zoe") == [11, 10, 9, 9]


def test_flsea(tmp_path):
    depth_m = np.full((flsea_files.HEIGHT, flsea_files.WIDTH), 3, np.float32)
    depth_m[0, :4] = 0, 0.04, 19, 21
    flsea_files.write_frame(tmp_path, depth_m=depth_m)
    (frame,) = open_dataset("flsea", tmp_path)
    assert pixels(frame, "flsea") == [depth_m.size - 3]
