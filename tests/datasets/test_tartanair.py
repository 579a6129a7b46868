"""TartanAir v1's reader on a miniature tree."""

import numpy as np
import pytest
from PIL import Image

from metricgold.datasets.readers import list_frames, open_dataset
from metricgold.datasets.tartanair import sky_ray_distance_m
from metricgold.images.camera import pinhole, rays_from_intrinsics

HEIGHT, WIDTH = 6, 8


def write_frame(raw, folder="ocean/ocean/Easy/P001", frame=0, depth_m=None):
    depth_m = np.full((HEIGHT, WIDTH), 4.0, dtype=np.float32) if depth_m is None else depth_m
    for kind in ("image_left", "depth_left"):
        (raw / folder / kind).mkdir(parents=True, exist_ok=True)
    rgb = np.full((HEIGHT, WIDTH, 3), 50, dtype=np.uint8)
    Image.fromarray(rgb).save(raw / folder / f"image_left/{frame:06d}_left.png")
    np.save(raw / folder / f"depth_left/{frame:06d}_left_depth.npy", depth_m)


def test_sky_is_a_sphere_not_a_constant(tmp_path):
    """A 4.1 km sphere has 2.6 km planar depth in the corner; a tower 900 m away at the border stays."""
    rays = rays_from_intrinsics(pinhole(WIDTH / 2, HEIGHT, WIDTH), HEIGHT, WIDTH)
    depth_m = (4100 / np.linalg.norm(rays, axis=-1)).astype(np.float32)
    assert depth_m.max() / depth_m.min() > 1.3
    depth_m[3:] = 12
    depth_m[0, 0], depth_m[5, 5], depth_m[5, 6] = 600, 0, np.nan
    write_frame(tmp_path, depth_m=depth_m)
    (frame,) = open_dataset("tartanair", tmp_path)
    expected = np.zeros((HEIGHT, WIDTH), dtype=bool)
    expected[3:], expected[0, 0], expected[5, 5:7] = True, True, False
    np.testing.assert_array_equal(frame.valid_mask, expected)


def test_ray_distance_decides_not_planar_depth(tmp_path):
    """700 m planar at the border, where rays are 1.5 long, is 1.06 km away: sky. In the middle it is not."""
    write_frame(tmp_path, depth_m=np.full((HEIGHT, WIDTH), 700, dtype=np.float32))
    (frame,) = open_dataset("tartanair", tmp_path)
    assert frame.valid_mask[3, 4]
    assert not frame.valid_mask[0, 0]


INF = np.inf


@pytest.mark.parametrize(
    ("distances_m", "sky_from_m"),
    [
        ([2.1, 4.3, 4061, 4087, 4117], 4061),  # a room with a window
        ([3, 9, 150, 200, 4061, 4117], 4061),  # surfaces to 200 m stay
        ([3, 200, 4061], 4061),  # also with nothing before them: the last gap counts, not the widest
        ([5, 40, 320, 600, 950, 4061], 4061),  # mountains under the sky
        ([5, 40, 700, 705], 700),  # a dome nearer than the limit
        ([1.5, 10_000, 3e38], 3e38),  # several skies: the limit takes the others
        ([2, 8, 80, 160, 299], INF),  # no sky: nothing so near is one
        ([5, 40, 90, 170, 330, 620], INF),  # no sky: ground that leaves no gap
        ([4061, 4117], INF),  # nothing but sky has no gap; the limit takes it
        ([0, -3, np.nan, INF, 7], INF),  # what is no distance is no sky either
        ([0, 0, 4061], INF),
        ([], INF),
    ],
)
def test_sky_lies_behind_the_last_gap(distances_m, sky_from_m):
    frame = np.random.default_rng(0).permutation(np.repeat(np.array(distances_m, dtype=np.float64), 3))
    assert sky_ray_distance_m(frame[None]) == sky_from_m


def test_a_dome_behind_a_gap_is_invalid_and_near_surfaces_are_not(tmp_path):
    rays = rays_from_intrinsics(pinhole(WIDTH / 2, HEIGHT, WIDTH), HEIGHT, WIDTH)
    depth_m = (600 / np.linalg.norm(rays, axis=-1)).astype(np.float32)
    depth_m[2:] = [[200], [90], [12], [0]]
    write_frame(tmp_path, depth_m=depth_m)
    (frame,) = open_dataset("tartanair", tmp_path)
    assert frame.valid_mask.all(axis=1).tolist() == [False, False, True, True, True, False]
    assert not frame.valid_mask[[0, 1, 5]].any()


def test_beyond_the_limit_nothing_is_valid_even_without_a_gap(tmp_path):
    write_frame(tmp_path, depth_m=np.full((HEIGHT, WIDTH), 1500, dtype=np.float32))
    (frame,) = open_dataset("tartanair", tmp_path)
    assert not frame.valid_mask.any()


def test_an_npy_that_claims_more_than_it_holds_is_refused(tmp_path):
    write_frame(tmp_path)
    path = tmp_path / "ocean/ocean/Easy/P001/depth_left/000000_left_depth.npy"
    path.write_bytes(path.read_bytes().replace(b"(6, 8)", b"(9**9,)").replace(b"(9**9,)", b"(9e9, )"))
    with pytest.raises(ValueError, match=r"000000_left_depth\.npy: cannot be read"):
        list(open_dataset("tartanair", tmp_path))


def test_folders_with_and_without_repeated_environment(tmp_path):
    write_frame(tmp_path, "ocean/ocean/Hard/P000")
    write_frame(tmp_path, "office/Easy/P004", frame=7)
    names = [frame.name for frame in open_dataset("tartanair", tmp_path)]
    assert names == ["ocean/Hard/P000/000000", "office/Easy/P004/000007"]
    write_frame(tmp_path, "ocean/Hard/P000")
    with pytest.raises(ValueError, match="frame ocean/Hard/P000/000000 is there twice"):
        open_dataset("tartanair", tmp_path)


def test_side_cars_and_gaps(tmp_path):
    write_frame(tmp_path)
    write_frame(tmp_path, frame=1)
    folder = tmp_path / "ocean/ocean/Easy/P001"
    (folder / "depth_left/._000000_left_depth.npy").write_bytes(b"\0" * 4096)
    (folder / "depth_left/000001_left_depth.npy").unlink()
    listing = list_frames("tartanair", tmp_path)
    assert [ref.name for ref in listing.frames] == ["ocean/Easy/P001/000000"]
    assert listing.gaps == {"depth missing": 1}


def test_pickles_are_refused(tmp_path):
    write_frame(tmp_path, depth_m=np.array([{"no": "depth"}], dtype=object))
    with pytest.raises(ValueError, match=r"000000_left_depth\.npy: cannot be read: .*Python objects"):
        list(open_dataset("tartanair", tmp_path))


def test_integers_are_refused(tmp_path):
    write_frame(tmp_path, depth_m=np.full((HEIGHT, WIDTH), 4000, dtype=np.uint16))
    with pytest.raises(ValueError, match=r"000000_left_depth\.npy: expected floating point numbers, got uint16"):
        list(open_dataset("tartanair", tmp_path))


def test_intrinsics_follow_the_width(tmp_path):
    write_frame(tmp_path)
    (frame,) = open_dataset("tartanair", tmp_path)
    np.testing.assert_array_equal(frame.intrinsics, [[4, 0, 4], [0, 4, 3], [0, 0, 1]])


def test_amusement_is_left_out_of_the_split_with_its_reason(tmp_path):
    write_frame(tmp_path, "amusement/amusement/Easy/P000")
    write_frame(tmp_path, "abandonedfactory_night/abandonedfactory_night/Easy/P000")
    write_frame(tmp_path, "office2/office2/Easy/P000")
    train = list_frames("tartanair", tmp_path, split="train")
    assert [ref.scene for ref in train.frames] == ["abandonedfactory_night"]
    assert [reason.startswith("excluded: an invisible dome") for reason in train.gaps] == [True]
    test = list_frames("tartanair", tmp_path, split="test")
    assert [ref.scene for ref in test.frames] == ["office2"]
    assert test.gaps == {}
