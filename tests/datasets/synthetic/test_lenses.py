"""Held-out scenes through another lens: the same worlds and poses, another image plane."""

import zipfile

import numpy as np
import pytest

from metricgold.datasets.readers import open_dataset
from metricgold.datasets.synthetic.lenses import frames_through_lens
from metricgold.datasets.synthetic.synthesize import RECIPES
from metricgold.params.sections import Synthesize

SETS = ("hypersim-synthetic", "vkitti2-synthetic", "tartanair-synthetic")
SMALL = Synthesize(height=16, width=24, num_train_scenes=4, num_test_scenes=1, frames_per_scene=2)


@pytest.mark.parametrize("dataset", SETS)
def test_a_lens_twice_as_long_sees_the_middle_of_twice_as_many_pixels(dataset):
    larger = SMALL.model_copy(update={"height": 32, "width": 48})
    for long, own in zip(
        frames_through_lens(dataset, SMALL, 0.5), frames_through_lens(dataset, larger, 1), strict=True
    ):
        middle = np.s_[8:24, 12:36]
        np.testing.assert_allclose(long.planar_depth_m, own.planar_depth_m[middle], rtol=1e-6)
        assert (long.valid_mask == own.valid_mask[middle]).all()
        np.testing.assert_allclose(long.intrinsics[[0, 1], [0, 1]], own.intrinsics[[0, 1], [0, 1]], rtol=1e-9)
        assert (long.scene, long.name) == (own.scene, own.name)


def test_through_its_own_lens_a_frame_is_what_its_reader_gives(tmp_path):
    """TartanAir's files round least: PNG, and float16 within float32."""
    archives, raw = tmp_path / "archives", tmp_path / "raw"
    archives.mkdir()
    dataset = "tartanair-synthetic"
    RECIPES[dataset].write(RECIPES[dataset], SMALL, archives)
    for path in archives.rglob("*.zip"):
        with zipfile.ZipFile(path) as archive:
            archive.extractall(raw)
    read = [frame for frame in open_dataset(dataset, raw) if frame.scene.startswith("env9")]
    made = list(frames_through_lens(dataset, SMALL, 1))
    assert len(read) == len(made) == 2
    for one, other in zip(read, made, strict=True):
        assert (one.rgb == other.rgb).all() and (one.valid_mask == other.valid_mask).all()
        np.testing.assert_allclose(one.planar_depth_m, other.planar_depth_m, rtol=1e-3)
        np.testing.assert_allclose(one.intrinsics, other.intrinsics, atol=1e-9)


def test_an_unknown_data_set_is_named():
    with pytest.raises(ValueError, match="cannot synthesize 'kitti'"):
        next(frames_through_lens("kitti", SMALL, 1))
