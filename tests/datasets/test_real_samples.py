"""The readers on real files of the data sets. The figures were worked out by hand from the stored numbers."""

import shutil
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

from metricgold.datasets.arrays import read_depth_png, read_hdf5, read_npy, read_pixels
from metricgold.datasets.manifest import load_manifest, read_split_csv
from metricgold.datasets.readers import FrameRef, hypersim, list_frames, open_dataset, read_frame
from metricgold.storage import write_yaml
from tests.support import SHARED
from tests.support.hypersim import NOMINAL_CAMERA

SAMPLES = SHARED / "samples"
pytestmark = pytest.mark.skipif(not SAMPLES.is_dir(), reason="the real samples lie beside the project, not in it")

HYPERSIM_DEPTH = "hypersim/apple/ai_037_002/images/scene_cam_00_geometry_hdf5/frame.0000.depth_meters.hdf5"
HYPERSIM_COLOUR = "hypersim/gmarsich/frame.0000.color.hdf5"


@pytest.fixture
def hypersim_frame(tmp_path):
    """The real distance map of tilt-shift scene ai_037_002 beside a real colour of another scene, and the real csv."""
    images = tmp_path / "ai_037_002" / "images"
    geometry, final = images / "scene_cam_00_geometry_hdf5", images / "scene_cam_00_final_hdf5"
    geometry.mkdir(parents=True)
    final.mkdir()
    shutil.copy(SAMPLES / HYPERSIM_DEPTH, geometry)
    shutil.copy(SAMPLES / HYPERSIM_COLOUR, final)
    shutil.copy(SAMPLES / "metadata/hypersim/metadata_camera_parameters.csv", tmp_path)
    (frame,) = open_dataset("hypersim", tmp_path)
    return frame


@pytest.mark.parametrize(
    ("row", "column", "ray_distance_m", "planar_depth_m"),
    [
        # u = (2c+1)/1024 - 1, v = 1 - (2r+1)/768, ray = M_cam_from_uv (u, v, 1), planar = distance * -z / |ray|
        (0, 0, 6.29296875, 4.828697),  # ray (-0.648594, 0.526854, -0.999860): cosine 0.767316
        (383, 511, 7.8828125, 7.830076),  # ray (-0.070119, 0.093299, -1.003904): cosine 0.993310
        (767, 1023, 3.283203125, 2.804817),  # ray (0.509488, -0.341387, -1.007958): cosine 0.854293
        (600, 100, 6.94140625, 6.073906),  # ray (-0.535390, -0.152344, -1.006195): cosine 0.875025
    ],
)
def test_hypersim_planar_depth_by_the_scenes_own_camera(hypersim_frame, row, column, ray_distance_m, planar_depth_m):
    stored = read_hdf5(SAMPLES / HYPERSIM_DEPTH)
    assert stored[row, column] == ray_distance_m
    assert hypersim_frame.planar_depth_m[row, column] == pytest.approx(planar_depth_m, abs=2e-6)


def test_hypersim_frame_is_whole(hypersim_frame):
    assert (hypersim_frame.scene, hypersim_frame.name) == ("ai_037_002", "ai_037_002/cam_00/frame.0000")
    assert hypersim_frame.rgb.shape == (768, 1024, 3)
    assert hypersim_frame.valid_mask.all()  # no NaN in this map, and no entity file beside it
    # Focal length as the nominal one, principal point 61 columns right and 82 rows down of the middle: the shift.
    np.testing.assert_allclose(np.diag(hypersim_frame.intrinsics), [886.8, 886.07, 1], atol=0.01)
    np.testing.assert_allclose(hypersim_frame.intrinsics[:2, 2], [573.44, 466.37], atol=0.01)


def test_hypersim_csv_camera_projects_back_onto_its_pixels():
    camera = hypersim.read_cameras(SAMPLES / "metadata/hypersim/metadata_camera_parameters.csv")["ai_001_001"]
    intrinsics = hypersim.fit_pinhole(hypersim.rays_from_camera(camera, 768, 1024))
    np.testing.assert_allclose(intrinsics, [[886.81, 0, 512], [0, 886.81, 384], [0, 0, 1]], atol=1e-3)
    np.testing.assert_allclose(camera, NOMINAL_CAMERA, atol=1e-7)


def test_hypersim_tone_mapping():
    colour = read_hdf5(SAMPLES / HYPERSIM_COLOUR)
    rgb = hypersim.tone_map(colour, np.ones(colour.shape[:2], dtype=bool))
    # 90th percentile of the brightness 4.0944138, scale 0.8^2.2 / 4.0944138 = 0.149488; 255 (scale x)^(1/2.2)
    assert rgb[0, 0].tolist() == [196, 194, 191]  # 3.767578, 3.648438, 3.537109
    assert rgb[384, 512].tolist() == [124, 115, 99]  # 1.357422, 1.150391, 0.835449
    assert rgb[550, 100].tolist() == [255, 255, 255]  # 9.49, 9.21, 8.70: over the ceiling
    as_float32 = hypersim.tone_map(colour.astype(np.float32), np.ones(colour.shape[:2], dtype=bool))
    np.testing.assert_array_equal(rgb, as_float32)


def test_hypersim_split_csv():
    splits = read_split_csv(SAMPLES / "metadata/hypersim/metadata_images_split_scene_v1.csv")
    counts = {split: list(splits.values()).count(split) for split in ("train", "val", "test")}
    assert counts == {"train": 59_543, "val": 7_386, "test": 7_690}
    archived = {archive.scenes[0] for archive in load_manifest("hypersim").archives}
    assert {name.split("/")[0] for name in splits} == archived


@pytest.fixture
def tartanair(tmp_path):
    trajectory = tmp_path / "hospital" / "hospital" / "Easy" / "P000"
    for kind in ("image_left", "depth_left"):
        shutil.copytree(SAMPLES / "tartanair_v1/inoriros" / kind, trajectory / kind)
    for side_car in (SAMPLES / "tartanair_v1/inoriros/applesidecar").iterdir():
        shutil.copy(side_car, trajectory / ("depth_left" if side_car.suffix == ".npy" else "image_left"))
    return tmp_path


def test_tartanair_pairs(tartanair):
    frames = list(open_dataset("tartanair", tartanair))
    assert [frame.name for frame in frames] == [
        f"hospital/Easy/P000/{number}" for number in ("000000", "000060", "000120")
    ]
    centres_m = [float(frame.planar_depth_m[240, 320]) for frame in frames]
    assert centres_m == [0.371826171875, 1.5146484375, 0.9912109375]
    assert [float(frame.planar_depth_m.max()) for frame in frames] == [7.8203125, 9.5, 1.8994140625]
    assert all(frame.valid_mask.all() for frame in frames)  # indoors, no sky
    assert frames[0].rgb[240, 320].tolist() == [198, 196, 191]
    np.testing.assert_array_equal(frames[0].intrinsics, [[320, 0, 320], [0, 320, 240], [0, 0, 1]])


def test_tartanair_side_cars_are_no_gaps(tartanair):
    assert list_frames("tartanair", tartanair).gaps == {}
    with pytest.raises(ValueError, match=r"\._000137_left_depth\.npy: cannot be read"):
        read_npy(SAMPLES / "tartanair_v1/inoriros/applesidecar/._000137_left_depth.npy")


@pytest.mark.parametrize("corner", [np.s_[:90, 560:], np.s_[100:101, 7:9]])
def test_tartanair_sky_sphere_behind_a_real_room(tartanair, corner):
    """The sphere as it stands in other frames of this room, at 4,061 to 4,117 m along the ray, seen through a window.

    In those frames surfaces end at 4.3 m and the planar depth of the sky runs from 2,544 to 2,984 m.
    """
    path = tartanair / "hospital/hospital/Easy/P000/depth_left/000120_left_depth.npy"
    planar_depth_m = read_npy(path)
    y, x = np.mgrid[0.5:480, 0.5:640]
    ray_lengths = np.sqrt(((x - 320) / 320) ** 2 + ((y - 240) / 320) ** 2 + 1)
    sphere_m = np.random.default_rng(0).uniform(4061, 4117, (480, 640)) / ray_lengths
    planar_depth_m[corner] = sphere_m[corner].astype(np.float16)  # as rendered: half precision
    np.save(path, planar_depth_m)
    frame = list(open_dataset("tartanair", tartanair))[-1]
    is_sky = np.zeros((480, 640), dtype=bool)
    is_sky[corner] = True
    np.testing.assert_array_equal(frame.valid_mask, ~is_sky)
    assert frame.planar_depth_m.max() == 1.8994140625


@pytest.mark.parametrize(
    ("path", "units_per_metre", "pixels", "num_valid"),
    [
        ("nyuv2/metric3d_demo/depth/sync_depth_00000.png", 1000, {(240, 320): 3.015, (100, 500): 6.271}, 225_121),
        ("nyuv2/metric3d_demo/depth/sync_depth_00050.png", 1000, {(240, 320): 6.566, (100, 500): 4.913}, 230_598),
        # 2865 / 256, 3190 / 256, 1478 / 256
        (
            "kitti/metric3d_demo/depth/0000000005.png",
            256,
            {(119, 1218): 11.191406, (257, 1078): 12.460938, (369, 1196): 5.773438},
            90_839,
        ),
        # 5182 / 256, 3347 / 256
        ("kitti/metric3d_demo/depth/0000000050.png", 256, {(135, 1120): 20.242188, (256, 991): 13.074219}, 96_131),
    ],
)
def test_depth_png_units_and_mask(path, units_per_metre, pixels, num_valid):
    planar_depth_m, valid_mask = read_depth_png(SAMPLES / path, units_per_metre)
    for (row, column), expected_m in pixels.items():
        assert planar_depth_m[row, column] == pytest.approx(expected_m, abs=1e-6)
    assert valid_mask.sum() == num_valid
    assert (planar_depth_m[~valid_mask] == 0).all()
    assert not valid_mask[0].any()  # white border indoors, no laser above the horizon outdoors
    rgb = read_pixels(_photograph_of(SAMPLES / path), "RGB")
    assert rgb.shape[:2] == valid_mask.shape


def _photograph_of(depth: Path) -> Path:
    folder = depth.parents[1] / "rgb"
    return folder / (
        depth.name if "kitti" in str(depth) else depth.name.replace("sync_depth", "rgb").replace("png", "jpg")
    )


def test_kitti_read_as_8_bits_is_refused(tmp_path):
    """As 8 bits the map would hold whole metres up to 84, and look right."""
    with Image.open(SAMPLES / "kitti/metric3d_demo/depth/0000000005.png") as image:
        Image.fromarray((np.array(image) >> 8).astype(np.uint8)).save(tmp_path / "eight.png")
    with pytest.raises(ValueError, match=r"eight\.png: cannot be read: expected mode I;16, got L"):
        read_depth_png(tmp_path / "eight.png", 256)


def test_real_distance_map_with_wrong_camera_differs(hypersim_frame):
    """In this scene the nominal camera is off by several percent at the border: the csv is needed."""
    ref = FrameRef(
        "hypersim",
        "ai_037_002",
        "x",
        SAMPLES / HYPERSIM_COLOUR,
        SAMPLES / HYPERSIM_DEPTH,
        camera=NOMINAL_CAMERA,
    )
    ratio = read_frame(replace(ref, name="nominal")).planar_depth_m / hypersim_frame.planar_depth_m
    assert abs(ratio - 1).max() > 0.05


@pytest.mark.parametrize(
    ("scene", "mean_error", "max_error"),
    # As in constant_focal_error_by_scene.csv, which was worked out without this reader.
    [("ai_001_001", 0, 0), ("ai_021_002", 0.07428, 0.17834), ("ai_038_009", 0.03374, 0.12465)],
)
def test_the_usual_focal_length_is_wrong_by_up_to_18_percent(scene, mean_error, max_error):
    camera = hypersim.read_cameras(SAMPLES / "metadata/hypersim/metadata_camera_parameters.csv")[scene]
    rays = hypersim.rays_from_camera(camera, 768, 1024)
    right = rays[..., 2] / np.linalg.norm(rays, axis=-1)
    x, y = np.meshgrid(np.arange(1024) + 0.5 - 512, np.arange(768) + 0.5 - 384)
    errors = abs(886.81 / np.sqrt(x**2 + y**2 + 886.81**2) / right - 1)
    assert errors.max() == pytest.approx(max_error, abs=1e-5)
    assert errors.mean() == pytest.approx(mean_error, abs=1e-5)


def test_hypersim_arrays_are_those_of_h5py():
    for path in (SAMPLES / HYPERSIM_COLOUR, SAMPLES / HYPERSIM_DEPTH):
        with h5py.File(path) as file:
            np.testing.assert_array_equal(read_hdf5(path), file["dataset"][()])


def test_a_png_with_a_wrong_checksum_is_refused():
    """Pillow opens it and says nothing."""
    path = SAMPLES / "odd_images/pngsuite/xcsn0g01.png"
    with Image.open(path) as image:
        image.load()
    with pytest.raises(ValueError, match=r"xcsn0g01\.png: cannot be read: broken PNG file"):
        read_pixels(path, image.mode)


def write_own(raw, rgb, depth, camera, **stated):
    for kind, path in (("rgb", rgb), ("depth", depth)):
        (raw / "s" / kind).mkdir(parents=True)
        shutil.copy(SAMPLES / path, raw / "s" / kind / f"1{path[-4:]}")
    depth_stated = {"unit": "millimetre", "kind": "planar", "invalid": 0, "far": None} | stated
    write_yaml(raw / "dataset.yaml", {"depth": depth_stated, "intrinsics": {"first_pixel": 0} | camera})
    (frame,) = open_dataset("mine", raw)
    return frame


def test_rotated_bits_of_a_sun_rgbd_pair(tmp_path):
    camera = {"fx": 529.5, "fy": 529.5, "cx": 319.5, "cy": 239.5}
    pair = "sunrgbd/open3d/SUN_color.jpg", "sunrgbd/open3d/SUN_depth.png"
    depth_m = write_own(tmp_path, *pair, camera, coding="sunrgbd").planar_depth_m
    assert (depth_m[depth_m > 0].min(), depth_m.max()) == (np.float32(1.057), np.float32(9.87))


def test_lidar_of_a_phone_beside_its_photograph(tmp_path):
    """256 x 192 beside 1920 x 1440, with the camera of the small one."""
    camera = {"fx": 200.0, "fy": 200.0, "cx": 127.5, "cy": 95.5, "width": 256, "height": 192}
    pair = "arkit_lidar/promptda/image.jpg", "arkit_lidar/promptda/arkit_depth.png"
    frame = write_own(tmp_path, *pair, camera, resize="nearest")
    assert frame.rgb.shape == (1440, 1920, 3) and frame.valid_mask.all()
    np.testing.assert_allclose(frame.intrinsics, [[1500, 0, 960], [0, 1500, 720], [0, 0, 1]])
    stored = read_pixels(SAMPLES / "arkit_lidar/promptda/arkit_depth.png", "I;16")
    np.testing.assert_allclose(frame.planar_depth_m[::15, ::15], stored[::2, ::2] / 1000, rtol=1e-6)
    assert np.unique(frame.planar_depth_m).size == np.unique(stored).size
