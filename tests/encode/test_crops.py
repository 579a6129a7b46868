"""Crops of a frame: what a random crop shows is what its intrinsics say, in metres of the same scene."""

import os
import signal
import subprocess
import sys

import numpy as np
import psutil
import pytest

from metricgold.datasets.frame import Frame, fit_frame
from metricgold.datasets.readers import list_frames
from metricgold.encode.crops import crop_frame, open_processes, read_crops
from metricgold.images.camera import rays_from_intrinsics
from metricgold.images.network_grid import TrainingSize
from metricgold.params.sections import Encode
from tests.support.waiting import wait_until

SIZE = TrainingSize(24, 40, 2)
HEIGHT, WIDTH = SIZE.grid(30, 44).size  # smaller than its frames
INTRINSICS = np.array([[50.0, 1.5, 21.3], [0, 47.0, 16.7], [0, 0, 1]])


def numbered_frame(name="scene/frame"):
    """Every pixel's depth is its number, so that a crop tells where each of its pixels was taken."""
    depth_m = 1 + np.arange(30 * 44, dtype=np.float32).reshape(30, 44)
    rgb = np.random.default_rng(0).integers(0, 255, (30, 44, 3), dtype=np.uint8)
    return Frame.from_arrays(rgb, depth_m, depth_m % 97 != 0, INTRINSICS, "scene", name)


def crops_of_frames(number, min_crop=0.4):
    return [crop_frame(numbered_frame(f"frame{i}"), number, SIZE, min_crop) for i in range(40)]


def is_mirrored(crop):
    return bool((np.diff(crop.planar_depth_m[12][crop.valid_mask[12]]) <= 0).all())


def test_crop_0_is_the_whole_frame():
    frame = numbered_frame()
    crop, fitted = crop_frame(frame, 0, SIZE, 0.5), fit_frame(frame, SIZE.grid(30, 44))
    for field in ("rgb", "planar_depth_m", "valid_mask", "intrinsics"):
        np.testing.assert_array_equal(getattr(crop, field), getattr(fitted, field))
    assert crop.name == "scene/frame"


def test_every_pixel_of_a_crop_lies_where_its_intrinsics_say():
    for crop in crops_of_frames(1):
        # Without mirroring its ray is that of the frame; a mirrored one looks the other way.
        rays = rays_from_intrinsics(crop.intrinsics, HEIGHT, WIDTH) * [-1 if is_mirrored(crop) else 1, 1, 1]
        x, y, _ = np.moveaxis(rays @ INTRINSICS.T, -1, 0)
        taken = 1 + np.floor(y) * 44 + np.floor(x)
        inner = crop.valid_mask & (abs(x - np.round(x)) > 1e-6) & (abs(y - np.round(y)) > 1e-6)
        assert inner.mean() > 0.9
        np.testing.assert_array_equal(crop.planar_depth_m[inner], taken[inner])


def test_crops_differ_in_size_place_and_side():
    crops = crops_of_frames(1)
    zooms = (
        np.array([crop.intrinsics[1, 1] for crop in crops])
        / fit_frame(numbered_frame(), SIZE.grid(30, 44)).intrinsics[1, 1]
    )
    assert zooms.min() >= 1 and zooms.max() <= 1 / 0.4 and zooms.min() < 1.2 and zooms.max() > 1.8
    assert 8 < sum(map(is_mirrored, crops)) < 32
    assert len({crop.name for crop in crops + crops_of_frames(2)}) == 80
    for crop in crops:
        assert crop.rgb.shape == (HEIGHT, WIDTH, 3)
        assert set(crop.planar_depth_m[crop.valid_mask]) <= set(1 + np.arange(30 * 44))


def test_lenses_are_drawn_evenly_in_steps_of_their_focal_length():
    """As many between 1 and 1.58 times the whole frame's as between 1.58 and 2.5 times; by sides it would be 2 in 5."""
    whole = crop_frame(numbered_frame(), 0, SIZE, 0.4)
    crops = [crop for number in range(1, 9) for crop in crops_of_frames(number)]
    longer = np.array([crop.intrinsics[1, 1] for crop in crops]) / whole.intrinsics[1, 1]
    assert np.mean(longer > 0.4**-0.5) == pytest.approx(0.5, abs=0.06)


def test_a_crop_is_a_function_of_name_and_number():
    one, same, other = (crop_frame(numbered_frame(), number, SIZE, 0.5) for number in (1, 1, 2))
    np.testing.assert_array_equal(one.rgb, same.rgb)
    assert one.name == "scene/frame#1" and (one.intrinsics != other.intrinsics).any()


def test_the_whole_is_the_largest_crop():
    crop = crop_frame(numbered_frame(), 1, TrainingSize(30, 44, 2), 1.0)
    flip = np.s_[:, ::-1] if is_mirrored(crop) else np.s_[:]
    np.testing.assert_array_equal(crop.planar_depth_m[flip], numbered_frame().planar_depth_m)


def test_processes_give_what_threads_give(tiny, tiny_raw):
    refs = list_frames(tiny.datasets[0], tiny_raw, split="train").frames
    with open_processes(1) as pool:
        pids = {pool.submit(os.getpid).result()}
        for ref in refs[:2]:
            size, params = TrainingSize(32, 48, 2), Encode(views=2)
            one, other = pool.submit(read_crops, ref, size, params).result(), read_crops(ref, size, params)
            assert [crop.name for crop in one] == [crop.name for crop in other] == [ref.name, f"{ref.name}#1"]
            np.testing.assert_array_equal(one[1].rgb, other[1].rgb)
            assert pool.submit(_has_torch).result() is False
    assert pids != {os.getpid()}


def _has_torch():
    return "torch" in sys.modules


PARENT = """\
import os, time
from metricgold.params.sections import Encode
from metricgold.encode.crops import open_processes
if __name__ == "__main__":
    with open_processes(1) as pool:
        print(pool.submit(os.getpid).result(), flush=True)
        time.sleep(60)
"""


def test_processes_end_with_a_parent_that_is_killed(tmp_path):
    (tmp_path / "parent.py").write_text(PARENT)
    parent = subprocess.Popen([sys.executable, tmp_path / "parent.py"], stdout=subprocess.PIPE, text=True)
    child = int(parent.stdout.readline())
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    try:
        wait_until(lambda: not _lives(child))
    finally:
        if _lives(child):
            os.kill(child, signal.SIGKILL)


def _lives(pid):
    # A process that ended stays a zombie until its parent waits for it.
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
