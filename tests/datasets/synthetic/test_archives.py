"""Archives decoded by independent code, against the exact frames they were made of."""

import csv
import hashlib
import io
import os
import signal
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import replace
from fnmatch import fnmatch
from string import ascii_letters

import h5py
import numpy as np
import pytest
from PIL import Image

from metricgold.datasets.manifest import load_manifest
from metricgold.datasets.readers import open_dataset
from metricgold.datasets.synthetic.archives import hypersim_cam_from_uv
from metricgold.datasets.synthetic.render import render_scene
from metricgold.datasets.synthetic.synthesize import RECIPES, synthesize
from metricgold.params.sections import Synthesize
from metricgold.storage.files import digest_folder
from tests.support.waiting import wait_until

PARAMS = Synthesize(seed=5, height=24, width=36, num_train_scenes=3, num_test_scenes=1, frames_per_scene=4)
H, W = PARAMS.height, PARAMS.width
SYNTHESIZE_MANY = """
import sys
from pathlib import Path
from metricgold.datasets.synthetic.synthesize import synthesize
from metricgold.params.sections import Synthesize
synthesize("hypersim-synthetic", Synthesize(num_train_scenes=400), Path(sys.argv[1]))
"""


@pytest.fixture(scope="module")
def archives(tmp_path_factory):
    root = tmp_path_factory.mktemp("synthetic")
    return {dataset: synthesize(dataset, PARAMS, root / dataset) for dataset in RECIPES}


def members(path) -> dict[str, bytes]:
    if ".tar" in path.name:
        with tarfile.open(path) as tar:
            return {info.name: tar.extractfile(info).read() for info in tar}
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def array(data: bytes) -> np.ndarray:
    with h5py.File(io.BytesIO(data)) as file:
        return file["dataset"][()]


def image(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


def rows(path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


# Every data set


@pytest.mark.parametrize("dataset", RECIPES)
def test_equal_params_give_equal_bytes(dataset, archives, tmp_path):
    assert digest_folder(synthesize(dataset, PARAMS, tmp_path / "again")) == digest_folder(archives[dataset])
    other = PARAMS.model_copy(update={"seed": 6})
    assert digest_folder(synthesize(dataset, other, tmp_path / "other")) != digest_folder(archives[dataset])


@pytest.mark.parametrize("dataset", RECIPES)
def test_checksum_list_names_every_file(dataset, archives):
    folder = archives[dataset]
    name, algorithm = ("vkitti_2.0.3_md5_checksums.txt", "md5") if "vkitti2" in dataset else ("SHA256SUMS", "sha256")
    listed = dict(reversed(line.split("  ")) for line in (folder / name).read_text().splitlines())
    found = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    assert set(listed) == set(found) - {name}
    for member, digest in listed.items():
        assert hashlib.new(algorithm, found[member].read_bytes()).hexdigest() == digest


@pytest.mark.parametrize("dataset", RECIPES)
def test_depth_is_planar_and_agrees_with_ray_distance(dataset):
    for scene in range(2):
        for frame in render_scene(RECIPES[dataset], PARAMS, scene):
            met = frame.entity != -1
            assert met.any() and (frame.entity[met] > 0).all() and np.isinf(frame.planar_depth_m[~met]).all()
            if RECIPES[dataset].measure:  # which leaves holes
                met = np.isfinite(frame.planar_depth_m)
            assert met.any() and np.isfinite(frame.planar_depth_m[met]).all()
            cosine = 1 / np.linalg.norm(frame.rays, axis=-1)
            np.testing.assert_allclose(frame.ray_distance_m[met] * cosine[met], frame.planar_depth_m[met], rtol=1e-14)


@pytest.mark.parametrize("dataset", RECIPES)
def test_frames_of_a_scene_share_a_world_and_move(dataset):
    frames = list(render_scene(RECIPES[dataset], PARAMS, 0))
    assert [frame.number for frame in frames] == list(range(PARAMS.frames_per_scene))
    assert len({frame.pose for frame in frames}) == len({frame.pose_number for frame in frames}) >= 2
    assert len({frame.scene for frame in frames}) == 1


@pytest.mark.parametrize("dataset", RECIPES)
def test_readers_give_the_exact_depth_back(dataset, archives, tmp_path):
    for path in sorted(archives[dataset].rglob("*")):
        if path.suffix == ".zip":
            with zipfile.ZipFile(path) as archive:
                archive.extractall(tmp_path)
        elif ".tar" in path.name:
            with tarfile.open(path) as tar:
                tar.extractall(tmp_path, filter="data")
        elif path.suffix == ".csv":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    num_scenes = PARAMS.num_train_scenes + PARAMS.num_test_scenes
    truths = [frame for scene in range(num_scenes) for frame in render_scene(RECIPES[dataset], PARAMS, scene)]
    truths.sort(key=lambda frame: (frame.scene, frame.variation, frame.pose_number))
    frames = sorted(open_dataset(dataset, tmp_path), key=lambda frame: frame.name)
    assert [frame.scene for frame in frames] == [truth.scene for truth in truths]
    for frame, truth in zip(frames, truths, strict=True):
        surely = np.isfinite(truth.planar_depth_m) & (truth.ray_distance_m < 600)
        assert frame.valid_mask[surely].all() and not frame.valid_mask[np.isinf(truth.planar_depth_m)].any()
        np.testing.assert_allclose(frame.planar_depth_m[surely], truth.planar_depth_m[surely], rtol=1e-3, atol=0.0051)


def test_unknown_data_set_and_too_many_scenes_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"nyuv2-synthetic.*hypersim-synthetic"):
        synthesize("nyuv2-synthetic", PARAMS, tmp_path / "out")
    with pytest.raises(ValueError, match=r"num_train_scenes.*491"):
        synthesize("vkitti2-synthetic", PARAMS.model_copy(update={"num_train_scenes": 491}), tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("dataset", RECIPES)
def test_scene_names_are_unique_and_tell_the_split(dataset):
    params = Synthesize(num_train_scenes=490, num_test_scenes=490, num_val_scenes=490)
    names = [RECIPES[dataset].scene_name(params, index) for index in range(params.num_scenes)]
    assert len({*names, "ai_999_001"}) == 3 * 490 + 1
    if not dataset.startswith("hypersim"):  # where a csv tells it
        first_digits = [name.lstrip(ascii_letters)[0] for name in names]
        assert first_digits == ["1"] * 490 + ["9"] * 490 + ["5"] * 490


@pytest.mark.parametrize("dataset", RECIPES)
def test_scenes_for_validation_change_no_others(dataset, archives, tmp_path):
    params = PARAMS.model_copy(update={"num_val_scenes": 1})
    out = synthesize(dataset, params, tmp_path / "out")
    scene = RECIPES[dataset].scene_name(params, PARAMS.num_scenes)
    assert params.place(PARAMS.num_scenes) == ("val", 0)
    if dataset.startswith("hypersim"):
        splits = {
            row["scene_name"]: row["split_partition_name"] for row in rows(out / "metadata_images_split_scene_v1.csv")
        }
        assert splits[scene] == "val" and {"train", "test"} < set(splits.values())
    else:
        globs = load_manifest(dataset).splits.scenes
        assert [split for split, patterns in globs.items() if fnmatch(scene, patterns[0])] == ["val"]
    for path in archives[dataset].rglob("*.zip"):
        other = out / path.relative_to(archives[dataset])
        assert other.read_bytes() == path.read_bytes()


def test_a_failure_leaves_the_old_archives_alone(archives, tmp_path, monkeypatch):
    out = synthesize("tartanair-synthetic", PARAMS, tmp_path / "out")
    before = digest_folder(out)

    recipe = RECIPES["tartanair-synthetic"]

    def draw_world(rng, scene_index):
        if scene_index == 1:
            raise OSError("disk full")
        return recipe.draw_world(rng, scene_index)

    monkeypatch.setitem(RECIPES, "tartanair-synthetic", replace(recipe, draw_world=draw_world))
    with pytest.raises(OSError, match="disk full"):
        synthesize("tartanair-synthetic", PARAMS.model_copy(update={"seed": 9}), out)
    assert digest_folder(out) == before and not list(tmp_path.glob(".*.part"))


def test_a_killed_run_leaves_nothing_that_counts(archives, tmp_path):
    out = tmp_path / "out"
    process = subprocess.Popen([sys.executable, "-c", SYNTHESIZE_MANY, str(out)])
    try:
        wait_until(lambda: list(tmp_path.glob(".out.*.part/*.zip")))
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert list(tmp_path.glob(".out.*.part")) and not out.exists()
    synthesize("hypersim-synthetic", PARAMS, out)
    assert not list(tmp_path.glob(".out.*.part"))
    assert digest_folder(out) == digest_folder(archives["hypersim-synthetic"])


# HyperSim


def test_hypersim_points_of_the_floor_lie_on_the_floor(archives):
    """Camera csv, keyframes, units and distances together: the floor is entity 1 and has height 0."""
    folder = archives["hypersim-synthetic"]
    tilted = 0
    for row in rows(folder / "metadata_camera_parameters.csv"):
        scene, path = row["scene_name"], folder / f"{row['scene_name']}.zip"
        if not path.exists():
            continue
        cam_from_uv = np.array([[float(row[f"M_cam_from_uv_{i}{j}"]) for j in range(3)] for i in range(3)])
        tilted += cam_from_uv[2, 1] != 0
        files = members(path)
        metres_per_unit = float(files[f"{scene}/_detail/metadata_scene.csv"].decode().split(",")[-1])
        assert metres_per_unit == float(row["settings_units_info_meters_scale"])
        keys = {
            key: array(files[f"{scene}/_detail/cam_00/camera_keyframe_{key}.hdf5"])
            for key in ("frame_indices", "positions", "orientations")
        }
        for k, frame_id in enumerate(keys["frame_indices"]):
            stem = f"{scene}/images/scene_cam_00_geometry_hdf5/frame.{frame_id:04d}"
            distance_m = array(files[f"{stem}.depth_meters.hdf5"])
            entity = array(files[f"{stem}.render_entity_id.hdf5"])
            assert distance_m.dtype == np.float16 and entity.dtype == np.int32 and not (entity == 0).any()
            np.testing.assert_array_equal(np.isnan(distance_m), entity == -1)
            u, v = np.meshgrid((np.arange(W) + 0.5) / W * 2 - 1, 1 - (np.arange(H) + 0.5) / H * 2)
            rays = np.stack([u, v, np.ones_like(u)], axis=-1) @ cam_from_uv.T
            rays /= np.linalg.norm(rays, axis=-1, keepdims=True)
            points = distance_m.astype(float)[..., None] * rays @ keys["orientations"][k].T
            height_m = points[..., 2] + keys["positions"][k][2] * metres_per_unit
            np.testing.assert_allclose(height_m[entity == 1], 0, atol=0.004)
    assert tilted == 1


def test_hypersim_projection_inverts_the_camera(archives):
    for row in rows(archives["hypersim-synthetic"] / "metadata_camera_parameters.csv"):
        cam_from_uv = np.array([[float(row[f"M_cam_from_uv_{i}{j}"]) for j in range(3)] for i in range(3)])
        projection = np.array([[float(row[f"M_proj_{i}{j}"]) for j in range(4)] for i in range(4)])
        u, v = 0.3, -0.7
        clip = projection @ [*(5 * cam_from_uv @ [u, v, 1]), 1]
        np.testing.assert_allclose(clip[:2] / clip[3], (u, v), atol=1e-12)
    nominal = np.diag([np.tan(np.pi / 6), np.tan(np.pi / 6) * 3 / 4, -1])
    np.testing.assert_allclose(hypersim_cam_from_uv(0, 768, 1024), nominal)


def test_hypersim_split_names_what_the_zips_hold(archives):
    folder = archives["hypersim-synthetic"]
    split = rows(folder / "metadata_images_split_scene_v1.csv")
    public = [row for row in split if row["included_in_public_release"] == "True"]
    withdrawn = [row for row in split if row["included_in_public_release"] == "False"]
    assert all(row["exclude_reason"] and not row["split_partition_name"] for row in withdrawn) and withdrawn
    listed, found = set(), set()
    for row in public:
        listed.add((row["scene_name"], int(row["frame_id"])))
    for path in folder.glob("*.zip"):
        names = [name for name in members(path) if name.endswith(".color.hdf5")]
        found |= {(path.stem, int(name.split("frame.")[1][:4])) for name in names}
    assert listed == found
    per_split = {
        part: {row["scene_name"] for row in public if row["split_partition_name"] == part} for part in ("train", "test")
    }
    assert len(per_split["train"]) == 3 and len(per_split["test"]) == 1
    assert max(frame_id for _, frame_id in found) == PARAMS.frames_per_scene  # a gap before it


def test_hypersim_colour_is_linear_up_to_an_exposure_of_each_frame(archives):
    truths = list(render_scene(RECIPES["hypersim-synthetic"], PARAMS, 0))
    files = members(archives["hypersim-synthetic"] / f"{truths[0].scene}.zip")
    colours = [array(data) for name, data in sorted(files.items()) if name.endswith(".color.hdf5")]
    exposures = []
    for colour, truth in zip(colours, truths, strict=True):
        assert colour.dtype == np.float16 and colour.shape == (H, W, 3)
        ratio = colour / truth.radiance
        np.testing.assert_allclose(ratio, np.median(ratio), rtol=2e-3)
        exposures.append(round(float(np.median(ratio)), 2))
    assert len(set(exposures)) == len(exposures)


# Virtual KITTI 2


def test_vkitti2_centimetres_intrinsics_and_weather(archives):
    folder = archives["vkitti2-synthetic"]
    rgb, depth = members(folder / "vkitti_2.0.3_rgb.tar"), members(folder / "vkitti_2.0.3_depth.tar")
    text = members(folder / "vkitti_2.0.3_textgt.tar.gz")
    for truth in render_scene(RECIPES["vkitti2-synthetic"], PARAMS, PARAMS.num_train_scenes):
        assert truth.scene == "Scene901"
        stem = f"{truth.scene}/{truth.variation}"
        png = image(depth[f"{stem}/frames/depth/Camera_0/depth_{truth.pose_number:05d}.png"])
        assert png.mode == "I;16"
        expected = np.minimum(np.where(np.isinf(truth.planar_depth_m), 1e9, truth.planar_depth_m * 100), 65535)
        assert np.abs(np.asarray(png).astype(float) - expected).max() <= 0.5 + 1e-9
        assert (np.asarray(png) == 65535).any()
        jpeg = np.asarray(image(rgb[f"{stem}/frames/rgb/Camera_0/rgb_{truth.pose_number:05d}.jpg"])).astype(float)
        assert np.abs(jpeg - truth.srgb).mean() < 6
        header, *lines = text[f"{stem}/intrinsic.txt"].decode().splitlines()
        assert header == "frame cameraID K[0,0] K[1,1] K[0,2] K[1,2]" and len(lines) == 2
        frame, camera, fx, fy, cx, cy = map(float, lines[truth.pose_number].split())
        assert (frame, camera, cx, cy) == (truth.pose_number, 0, W / 2 - 0.5, H / 2 - 0.5)
        # The ray through the top-left pixel centre (0, 0 in upstream's count) has these slopes.
        np.testing.assert_allclose(truth.rays[0, 0], (-cx / fx, -cy / fy, 1), atol=1e-6)
    clone, fog = (f"Scene101/{variation}/frames" for variation in ("clone", "fog"))
    assert depth[f"{clone}/depth/Camera_0/depth_00000.png"] == depth[f"{fog}/depth/Camera_0/depth_00000.png"]
    contrast = [np.asarray(image(rgb[f"{v}/rgb/Camera_0/rgb_00000.jpg"])).std() for v in (clone, fog)]
    assert contrast[1] < contrast[0]


# TartanAir


def ned_points(planar_depth_m: np.ndarray, pose: np.ndarray) -> np.ndarray:
    """Points [H, W, 3] north, east, down of a 90 degree camera at `x y z qx qy qz qw`."""
    x, y = np.meshgrid(np.arange(W) + 0.5 - W / 2, np.arange(H) + 0.5 - H / 2)
    forward_right_down = np.stack([np.ones_like(x), x / (W / 2), y / (W / 2)], axis=-1) * planar_depth_m[..., None]
    vector, scalar = pose[3:6], pose[6]
    turned = 2 * np.cross(vector, forward_right_down)
    return pose[:3] + forward_right_down + scalar * turned + np.cross(vector, turned)


def test_tartanair_depth_poses_and_sky(archives):
    folder = archives["tartanair-synthetic"] / "env101/Easy"
    images, depths = members(folder / "image_left.zip"), members(folder / "depth_left.zip")
    stem = "env101/env101/Easy/P000"
    poses = np.loadtxt(io.BytesIO(images[f"{stem}/pose_left.txt"]))
    sky_seen = 0
    for k, truth in enumerate(render_scene(RECIPES["tartanair-synthetic"], PARAMS, 0)):
        depth_m = np.load(io.BytesIO(depths[f"{stem}/depth_left/{k:06d}_left_depth.npy"]), allow_pickle=False)
        assert depth_m.dtype == np.float32 and (depth_m == depth_m.astype(np.float16)).all()
        np.testing.assert_array_equal(np.asarray(image(images[f"{stem}/image_left/{k:06d}_left.png"])), truth.srgb)
        is_sky = truth.entity == -1
        ray_distance_m = depth_m * np.linalg.norm(truth.rays, axis=-1)
        np.testing.assert_allclose(ray_distance_m[is_sky], 4100, rtol=1e-3)
        sky_seen += is_sky.any()
        on_ground = (truth.entity == 1) & (truth.planar_depth_m < 20)
        np.testing.assert_allclose(ned_points(depth_m, poses[k])[on_ground][:, 2], 0, atol=0.01)
    assert sky_seen
    assert depths[f"{stem}/depth_left/._000000_left_depth.npy"].startswith(b"\x00\x05\x16\x07")


def test_tartanair2_packs_float32_as_opencv_reads_it(archives):
    folder = archives["tartanair2-synthetic"] / "Env101/Data_easy"
    images, depths = members(folder / "image_lcam_front.zip"), members(folder / "depth_lcam_front.zip")
    stem = "Env101/Data_easy/P000"
    for k, truth in enumerate(render_scene(RECIPES["tartanair2-synthetic"], PARAMS, 0)):
        png = image(depths[f"{stem}/depth_lcam_front/{k:06d}_lcam_front_depth.png"])
        assert png.mode == "RGBA"
        red, green, blue, alpha = np.moveaxis(np.asarray(png), -1, 0)
        opencv = np.ascontiguousarray(np.stack([blue, green, red, alpha], axis=-1))
        depth_m = opencv.view("<f4")[..., 0]
        met = truth.ray_distance_m < 10_000
        np.testing.assert_array_equal(depth_m[met], truth.planar_depth_m[met].astype(np.float32))
        assert (depth_m[~met] > 5000).all()
        assert image(images[f"{stem}/image_lcam_front/{k:06d}_lcam_front.png"]).size == (W, H)
