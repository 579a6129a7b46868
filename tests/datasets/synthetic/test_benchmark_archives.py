"""Archives of the benchmarks' twins decoded by independent code: bytes, heads, cameras and poses."""

import gzip
import hashlib
import io
import struct
import tarfile
import zipfile
from pathlib import Path

import h5py
import numpy as np
import py7zr
import pytest
from click.testing import CliRunner
from PIL import Image

from metricgold.cli import main
from metricgold.datasets.synthetic.benchmark_archives import PINHOLE_AS_FISHEYE, colmap_images, mat5_bytes
from metricgold.datasets.synthetic.benchmark_recipe import take_shots
from metricgold.datasets.synthetic.sensors import kinect_depth_m
from metricgold.datasets.synthetic.synthesize_benchmark import BENCHMARK_RECIPES, synthesize_benchmark
from metricgold.datasets.synthetic.world import Pose
from metricgold.params.sections import SynthesizeBenchmark
from metricgold.storage.files import digest_folder

PARAMS = SynthesizeBenchmark(seed=5, height=36, num_scenes=2, frames_per_scene=2)


@pytest.fixture(scope="module")
def archives(tmp_path_factory):
    root = tmp_path_factory.mktemp("twins")
    return {dataset: synthesize_benchmark(dataset, PARAMS, root / dataset) for dataset in BENCHMARK_RECIPES}


@pytest.mark.parametrize("dataset", BENCHMARK_RECIPES)
def test_equal_params_give_equal_bytes(dataset, archives, tmp_path):
    assert digest_folder(synthesize_benchmark(dataset, PARAMS, tmp_path / "again")) == digest_folder(archives[dataset])
    other = PARAMS.model_copy(update={"seed": 6})
    assert digest_folder(synthesize_benchmark(dataset, other, tmp_path / "other")) != digest_folder(archives[dataset])


@pytest.mark.parametrize("dataset", BENCHMARK_RECIPES)
def test_checksum_list_names_every_file_and_nothing_else_is_left(dataset, archives):
    folder = archives[dataset]
    listed = dict(reversed(line.split("  ")) for line in (folder / "SHA256SUMS").read_text().splitlines())
    found = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    assert set(listed) == set(found) - {"SHA256SUMS"}
    assert all(hashlib.sha256(found[name].read_bytes()).hexdigest() == digest for name, digest in listed.items())


def test_archives_have_the_publishers_names(archives):
    names = {
        dataset: {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} - {"SHA256SUMS"}
        for dataset, folder in archives.items()
    }
    assert names["nyuv2-synthetic"] == {"nyu_depth_v2/nyu_depth_v2_labeled.mat", "indoor_seg_sup/splits.mat"}
    assert names["kitti-synthetic"] == {
        "data_depth_annotated.zip",
        *(f"raw_data/{date}_calib.zip" for date in ("2011_09_26", "2011_09_30")),
        "raw_data/2011_09_26_drive_9001/2011_09_26_drive_9001_sync.zip",
        "raw_data/2011_09_30_drive_9002/2011_09_30_drive_9002_sync.zip",
    }
    kinds, scenes = ("jpg", "depth", "occlusion"), ("courtyard_1", "office_2")
    assert names["eth3d-synthetic"] == {f"{scene}_dslr_{kind}.7z" for kind in kinds for scene in scenes}
    assert names["diode-synthetic"] == {"val.tar.gz"} and names["ibims1-synthetic"] == {"ibims1_core_raw.zip"}


def test_an_unknown_twin_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"hypersim-synthetic.*nyuv2-synthetic"):
        synthesize_benchmark("hypersim-synthetic", PARAMS, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_the_command_renders_what_its_own_section_says(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    section = "{seed: 5, height: 36, num_scenes: 2, frames_per_scene: 2}"
    Path("params.yaml").write_text(f"datasets: [hypersim-synthetic]\nsynthesize_benchmark: {section}\n")
    done = CliRunner().invoke(main, ["synthesize", "diode-synthetic"])
    assert done.exit_code == 0, done.output
    twin = synthesize_benchmark("diode-synthetic", PARAMS, tmp_path / "again")
    assert digest_folder(Path("data/synthetic/diode-synthetic")) == digest_folder(twin)


# NYU Depth v2


def test_the_mat_file_is_matlab_7_3_with_columns_first(archives):
    path = archives["nyuv2-synthetic"] / "nyu_depth_v2/nyu_depth_v2_labeled.mat"
    head = path.read_bytes()[:520]
    assert head.startswith(b"MATLAB 7.3 MAT-file") and head[124:128] == struct.pack("<H", 0x0200) + b"IM"
    assert head[512:520] == b"\x89HDF\r\n\x1a\n"
    shots = [shot for index in range(2) for shot in take_shots(BENCHMARK_RECIPES["nyuv2-synthetic"], PARAMS, index)]
    with h5py.File(path) as file:
        assert file["images"].shape == (4, 3, 48, 36) and file["rawDepths"].shape == (4, 48, 36)
        assert file["scenes"].attrs["MATLAB_class"] == b"cell" and file["scenes"].shape == (1, 4)
        texts = [file[ref][()].ravel().tobytes().decode("utf-16-le") for ref in file["scenes"][0]]
        assert texts == ["bedroom_9001", "bedroom_9001", "kitchen_9002", "kitchen_9002"]
        for index, shot in enumerate(shots):
            np.testing.assert_array_equal(file["rawDepths"][index].T, kinect_depth_m(shot).astype(np.float32))
            rgb = file["images"][index].transpose(2, 1, 0)
            np.testing.assert_array_equal(rgb[1:-1, 1:-1], shot.frame.srgb[1:-1, 1:-1])
            assert (rgb[[0, -1]] == 255).all() and (rgb[:, [0, -1]] == 255).all()
            assert (file["depths"][index] > 0).all()


def test_the_split_is_readable_by_scipy(archives, tmp_path):
    loadmat = pytest.importorskip("scipy.io").loadmat
    split = loadmat(archives["nyuv2-synthetic"] / "indoor_seg_sup/splits.mat")
    assert split["testNdxs"].tolist() == [[1], [2], [3], [4]] and split["trainNdxs"].shape == (0, 1)
    array = np.arange(6.0).reshape(2, 3)
    (tmp_path / "a.mat").write_bytes(mat5_bytes({"an_array": array}))
    np.testing.assert_array_equal(loadmat(tmp_path / "a.mat")["an_array"], array)


# KITTI


def test_kitti_depth_is_sixteen_bits_in_256ths_of_a_metre(archives):
    recipe = BENCHMARK_RECIPES["kitti-synthetic"]
    with zipfile.ZipFile(archives["kitti-synthetic"] / "data_depth_annotated.zip") as archive:
        for index, part in enumerate(("train", "val")):
            for shot in take_shots(recipe, PARAMS, index):
                folder = f"data_depth_annotated/{part}/{recipe.name_scene(index)}/proj_depth/groundtruth/image_02"
                name = f"{folder}/{5 + 10 * shot.frame.number:010d}.png"
                with Image.open(io.BytesIO(archive.read(name))) as image:
                    assert image.mode == "I;16"
                    depth_m = np.asarray(image) / 256
                measured = depth_m > 0
                exact_m = shot.frame.planar_depth_m
                at_glass = shot.is_glass
                assert np.abs(depth_m - exact_m)[measured & ~at_glass].max() <= 1 / 512 + 1e-9
                assert not measured[: int(0.25 * len(measured))].any()
                assert 0.1 < measured.mean() < 0.4


# ETH3D


def test_the_fisheye_of_cameras_txt_is_the_pinhole_that_rendered():
    """ETH3D's THIN_PRISM_FISHEYE, written from COLMAP's description: radial terms of the angle to the axis."""
    theta = np.linspace(1e-6, np.radians(49), 500)
    k1, k2, p1, p2, k3, k4, sx1, sy1 = PINHOLE_AS_FISHEYE
    radius = theta * (1 + k1 * theta**2 + k2 * theta**4 + k3 * theta**6 + k4 * theta**8)
    assert (p1, p2, sx1, sy1) == (0, 0, 0, 0)
    np.testing.assert_allclose(radius, np.tan(theta), atol=3e-5)


def test_poses_are_colmaps():
    pose = Pose((1.0, -2.0, 1.6), 0.7, -0.2)
    line = colmap_images([("dslr_images/DSC_0001.JPG", pose)]).splitlines()[1].split()
    w, x, y, z = (float(value) for value in line[1:5])
    to_camera = np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )
    np.testing.assert_allclose(to_camera, pose.world_from_camera().T, atol=1e-8)
    position = -to_camera.T @ [float(value) for value in line[5:8]]
    np.testing.assert_allclose(position, pose.position_m, atol=1e-8)


def test_eth3d_depth_has_no_head(archives):
    recipe = BENCHMARK_RECIPES["eth3d-synthetic"]
    factory = py7zr.io.BytesIOFactory(10**7)
    with py7zr.SevenZipFile(archives["eth3d-synthetic"] / "courtyard_1_dslr_depth.7z") as archive:
        archive.extract(factory=factory)
    assert sorted(factory.products) == [
        f"courtyard_1/ground_truth_depth/dslr_images/DSC_010{number}.JPG" for number in range(2)
    ]
    for shot, name in zip(take_shots(recipe, PARAMS, 0), sorted(factory.products), strict=True):
        depth_m = np.frombuffer(factory.products[name].read(), "<f4").reshape(36, 54)
        measured = np.isfinite(depth_m)
        assert 0.02 < measured.mean() < 0.7 and (depth_m[~measured] == np.inf).all()
        exact_m = np.where(shot.is_glass, shot.depth_behind_glass_m(), shot.frame.planar_depth_m)
        np.testing.assert_array_equal(depth_m[measured], exact_m[measured].astype(np.float32))


# DIODE and iBims-1


def test_diode_is_a_tar_of_npy(archives):
    with gzip.open(archives["diode-synthetic"] / "val.tar.gz") as packed, tarfile.open(fileobj=packed) as tar:
        files = {member.name: tar.extractfile(member).read() for member in tar}
    stem = "val/outdoor/scene_90002/scan_00002/90002_00002_outdoor_000_010"
    assert len(files) == 12 and {f"{stem}.png", f"{stem}_depth.npy", f"{stem}_depth_mask.npy"} <= set(files)
    depth_m, mask = (np.load(io.BytesIO(files[f"{stem}_{kind}.npy"])) for kind in ("depth", "depth_mask"))
    assert depth_m.shape == (36, 48, 1) and depth_m.dtype == np.float32 and set(np.unique(mask)) == {0, 1}
    sky = depth_m[..., 0] == 0
    assert sky.any() and not mask[sky].any()


def test_ibims1_masks_are_bits_and_depth_50_metres(archives):
    recipe = BENCHMARK_RECIPES["ibims1-synthetic"]
    with zipfile.ZipFile(archives["ibims1-synthetic"] / "ibims1_core_raw.zip") as archive:
        names = archive.read("ibims1_core_raw/imagelist.txt").decode().split()
        assert names == ["corridor1_01", "corridor1_02", "office2_01", "office2_02"]
        for name, shot in zip(names, [s for i in range(2) for s in take_shots(recipe, PARAMS, i)], strict=True):

            def image(kind, name=name):
                return Image.open(io.BytesIO(archive.read(f"ibims1_core_raw/{kind}/{name}.png")))

            assert [image(kind).mode for kind in ("mask_invalid", "mask_transp", "edges")] == ["1"] * 3
            depth_m = np.asarray(image("depth")) / 65535 * 50
            good = np.asarray(image("mask_invalid")) & np.asarray(image("mask_transp"))
            assert np.abs(depth_m - shot.frame.planar_depth_m)[good].max() <= 25 / 65535 + 1e-9
            np.testing.assert_array_equal(np.asarray(image("mask_transp")), ~shot.is_glass)
            fx, fy, cx, cy = map(float, archive.read(f"ibims1_core_raw/calib/{name}.txt").decode().split(","))
            np.testing.assert_allclose(
                (fx, fy, cx - 0.5, cy - 0.5), shot.intrinsics[[0, 1, 0, 1], [0, 1, 2, 2]], atol=1e-5
            )
