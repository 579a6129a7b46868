"""HyperSim's reader on miniature scenes in the data set's own formats."""

import h5py
import numpy as np
import pytest

from metricgold.datasets import hypersim, list_frames, open_dataset, read_frame
from metricgold.geometry import rays_from_intrinsics

HEIGHT, WIDTH = 12, 16
TILTED = (0.58, 0.0, -0.07, 0.0, 0.43, 0.09, 0.0, 0.004, -1.004)


def write_hdf5(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file["dataset"] = array


def write_frame(raw, scene="ai_001_001", camera="00", frame="0000", *, distance=None, colour=None, entity=None):
    images = raw / scene / "images"
    geometry = images / f"scene_cam_{camera}_geometry_hdf5"
    distance = np.full((HEIGHT, WIDTH), 2.0) if distance is None else distance
    colour = np.full((HEIGHT, WIDTH, 3), 0.5) if colour is None else colour
    write_hdf5(geometry / f"frame.{frame}.depth_meters.hdf5", distance.astype(np.float16))
    write_hdf5(images / f"scene_cam_{camera}_final_hdf5" / f"frame.{frame}.color.hdf5", colour.astype(np.float16))
    if entity is not None:
        write_hdf5(geometry / f"frame.{frame}.render_entity_id.hdf5", entity.astype(np.int32))


def write_cameras(raw, cameras):
    names = [f"M_cam_from_uv_{row}{column}" for row in range(3) for column in range(3)]
    lines = [",".join(["scene_name", *names])]
    lines += [",".join([scene, *map(repr, camera)]) for scene, camera in cameras.items()]
    (raw / hypersim.CAMERA_CSV).write_text("\n".join(lines) + "\n")


@pytest.fixture
def raw(tmp_path):
    write_cameras(tmp_path, {"ai_001_001": hypersim.NOMINAL_CAMERA, "ai_002_001": TILTED})
    return tmp_path


@pytest.mark.parametrize("camera", [hypersim.NOMINAL_CAMERA, TILTED])
def test_a_wall_across_the_axis_becomes_flat(raw, camera):
    """A wall 3 m along the axis: its distance grows to the border, its planar depth does not."""
    write_cameras(raw, {"ai_001_001": camera})
    rays = hypersim.rays_from_camera(camera, HEIGHT, WIDTH)
    write_frame(raw, distance=3 * np.linalg.norm(rays, axis=-1) / rays[..., 2])
    (frame,) = open_dataset("hypersim", raw)
    np.testing.assert_allclose(frame.planar_depth_m, 3, rtol=2**-11)  # float16


def test_pinhole_fit_is_exact_for_a_shifted_pinhole():
    camera = (0.6, 0, -0.1, 0, 0.45, 0.2, 0, 0, -1)
    rays = hypersim.rays_from_camera(camera, HEIGHT, WIDTH)
    intrinsics = hypersim.fit_pinhole(rays)
    np.testing.assert_allclose(rays_from_intrinsics(intrinsics, HEIGHT, WIDTH), rays / rays[..., 2:], atol=1e-12)


def test_pinhole_fit_is_the_least_squares_one():
    rays = hypersim.rays_from_camera(TILTED, HEIGHT, WIDTH)
    best = _squared_error(hypersim.fit_pinhole(rays), rays)
    rng = np.random.default_rng(0)
    for _ in range(50):
        nudged = hypersim.fit_pinhole(rays)
        nudged[[0, 0, 1, 1], [0, 2, 1, 2]] += rng.normal(scale=0.05, size=4)
        assert _squared_error(nudged, rays) > best


def _squared_error(intrinsics, rays):
    pixels = rays / rays[..., 2:] @ intrinsics.T
    y, x = np.mgrid[0.5:HEIGHT, 0.5:WIDTH]
    return ((pixels[..., 0] - x) ** 2 + (pixels[..., 1] - y) ** 2).sum()


def test_nan_and_entity_minus_one_are_invalid(raw):
    distance, entity = np.full((HEIGHT, WIDTH), 2.0), np.full((HEIGHT, WIDTH), 7)
    distance[0, 0], entity[5, 5] = np.nan, -1
    write_frame(raw, distance=distance, entity=entity)
    (frame,) = open_dataset("hypersim", raw)
    assert sorted(zip(*np.nonzero(~frame.valid_mask), strict=True)) == [(0, 0), (5, 5)]


def test_entity_zero_is_refused(raw):
    write_frame(raw, entity=np.zeros((HEIGHT, WIDTH)))
    with pytest.raises(ValueError, match=r"frame\.0000\.render_entity_id\.hdf5: entity id 0"):
        list(open_dataset("hypersim", raw))


def test_tone_mapping_leaves_out_unknown_pixels():
    """The 90th percentile of known brightness comes out as 0.8 of full scale; a bright unknown part moves nothing."""
    colour = np.full((10, 10, 3), 2.0, dtype=np.float16)
    colour[0] = 100
    known = np.ones((10, 10), dtype=bool)
    known[0] = False
    assert (hypersim.tone_map(colour, known)[1:] == 204).all()  # 0.8 * 255
    assert (hypersim.tone_map(colour, known)[0] == 255).all()


@pytest.mark.parametrize(
    ("value", "known", "expected"),
    [
        (5e-5, True, 0),  # too dark: p < 1e-4
        (0.25, False, 136),  # nothing known: scale 1, 255 * 0.25^(1/2.2) = 135.8
        (np.nan, True, 0),
        (np.inf, True, 255),
        (-1.0, False, 0),
    ],
)
def test_tone_mapping_of_odd_frames(value, known, expected):
    colour = np.full((4, 4, 3), value, dtype=np.float16)
    assert (hypersim.tone_map(colour, np.full((4, 4), known)) == expected).all()


def test_listing_keeps_gaps_in_the_numbers_and_counts_missing_members(raw):
    for frame in ("0000", "0002", "0007"):
        write_frame(raw, frame=frame)
    write_frame(raw, camera="03", frame="0001")
    images = raw / "ai_001_001" / "images"
    (images / "scene_cam_00_geometry_hdf5" / "frame.0002.depth_meters.hdf5").unlink()
    (images / "scene_cam_03_final_hdf5" / "frame.0001.color.hdf5").unlink()
    listing = list_frames("hypersim", raw)
    assert [ref.name for ref in listing.frames] == ["ai_001_001/cam_00/frame.0000", "ai_001_001/cam_00/frame.0007"]
    assert listing.gaps == {"depth missing": 1, "rgb missing": 1}


def test_a_broken_member_is_named(raw):
    write_frame(raw)
    (ref,) = list_frames("hypersim", raw).frames
    ref.depth_path.write_bytes(ref.depth_path.read_bytes()[:500])
    with pytest.raises(ValueError, match=r"frame\.0000\.depth_meters\.hdf5: cannot be read"):
        read_frame(ref)
    ref.depth_path.unlink()
    with pytest.raises(ValueError, match=r"frame\.0000\.depth_meters\.hdf5: no such file"):
        read_frame(ref)


def test_members_of_different_size_are_refused(raw):
    write_frame(raw, colour=np.ones((HEIGHT, WIDTH + 1, 3)))
    with pytest.raises(ValueError, match=r"color\.hdf5: expected shape \[12, 16, 3\], got \[12, 17, 3\]"):
        list(open_dataset("hypersim", raw))


def test_a_scene_without_camera_is_refused_not_guessed(raw):
    write_frame(raw, scene="ai_009_009")
    with pytest.raises(ValueError, match=r"metadata_camera_parameters\.csv: no row for scene ai_009_009"):
        list_frames("hypersim", raw)
    listing = hypersim.list_frames("hypersim", raw, default_camera=hypersim.NOMINAL_CAMERA)
    assert listing.frames[0].camera == hypersim.NOMINAL_CAMERA


SPLIT_CSV = """scene_name,camera_name,frame_id,included_in_public_release,exclude_reason,split_partition_name
ai_001_001,cam_00,0,True,,train
ai_001_001,cam_00,1,False,content_removed,
ai_002_001,cam_00,0,True,,test
"""


def test_the_csv_decides_the_split_and_what_is_public(raw):
    write_frame(raw, frame="0000")
    write_frame(raw, frame="0001")
    write_frame(raw, scene="ai_002_001")
    (raw / "metadata_images_split_scene_v1.csv").write_text(SPLIT_CSV)
    train = list_frames("hypersim-synthetic", raw, split="train")
    assert [ref.name for ref in train.frames] == ["ai_001_001/cam_00/frame.0000"]
    assert train.gaps == {"in no split": 1}
    assert [ref.scene for ref in list_frames("hypersim", raw, split="test").frames] == ["ai_002_001"]
    assert len(list_frames("hypersim", raw).frames) == 3
    with pytest.raises(ValueError, match="hypersim has no split 'dev'; known: test, train"):
        list_frames("hypersim", raw, split="dev")
