"""The project's own manifests: they pass the review, and agree with the publishers' lists where those lie beside us."""

import csv
from collections import Counter
from pathlib import PurePosixPath

import pytest

from metricgold.datasets.manifest import MANIFESTS, load_manifest, read_split_csv
from metricgold.datasets.manifest_check import check_manifest
from metricgold.datasets.readers import READERS
from metricgold.datasets.splits import exclusion_reason, matches_name
from metricgold.datasets.synthetic.synthesize import RECIPES
from metricgold.datasets.synthetic.synthesize_benchmark import BENCHMARK_RECIPES
from tests.support import SHARED

LISTS = SHARED / "samples" / "metadata"
beside_lists = pytest.mark.skipif(not LISTS.is_dir(), reason="the publishers' lists lie beside the project, not in it")

NAMES = sorted(path.stem for path in MANIFESTS.glob("*.yaml"))
BENCHMARKS = {"nyuv2", "kitti", "eth3d", "diode", "ibims1", "sunrgbd", "flsea"}
WORLDS_THAT_MEASURE = {"night", "aerial"}  # twins of nothing


def rows(name: str) -> list[list[str]]:
    return [line.split() for line in (LISTS / name).read_text().splitlines() if line]


def scenes_of(manifest) -> set[str]:
    return {scene for archive in manifest.archives for scene in archive.scenes}


def split_counts(manifest, tmp_path) -> Counter:
    split_of = manifest.splitter(tmp_path, next(iter(manifest.splits.scenes)))
    return Counter(split_of(scene, scene) for scene in scenes_of(manifest))


@pytest.mark.parametrize("name", NAMES)
def test_the_projects_manifests_pass_the_review(name):
    assert check_manifest(MANIFESTS / f"{name}.yaml") == []


@pytest.mark.parametrize("name", NAMES)
def test_role_and_licence(name):
    manifest = load_manifest(name)
    is_twin = name.endswith("-synthetic")
    assert manifest.role == (
        "evaluate" if name.removesuffix("-synthetic") in BENCHMARKS | WORLDS_THAT_MEASURE else "train"
    )
    assert manifest.licence.needs_acceptance is not is_twin
    assert manifest.mirrors or all(archive.url for archive in manifest.archives)
    assert is_twin == (manifest.checksums is not None)


def test_every_reader_has_a_manifest_and_a_twin():
    wanted = set(READERS) - BENCHMARKS
    assert set(NAMES) >= wanted | {f"{name}-synthetic" for name in wanted} | BENCHMARKS
    assert {name for name in NAMES if name.endswith("-synthetic")} == RECIPES.keys() | BENCHMARK_RECIPES.keys()


# What is trained on


@beside_lists
def test_hypersim_names_every_zip_and_no_other():
    manifest = load_manifest("hypersim")
    urls = (LISTS / "hypersim/scene_zip_urls.txt").read_text().split()
    assert [f"{manifest.mirrors[0]}/{archive.path}" for archive in manifest.archives] == urls
    assert all(archive.scenes == (archive.path.removesuffix(".zip"),) for archive in manifest.archives)


@beside_lists
def test_hypersim_has_a_zip_for_every_public_scene_in_one_split():
    splits = {}
    for frame, split in read_split_csv(LISTS / "hypersim/metadata_images_split_scene_v1.csv").items():
        splits.setdefault(frame.split("/")[0], set()).add(split)
    assert splits.keys() == scenes_of(load_manifest("hypersim"))
    assert Counter(map(tuple, splits.values())) == {("train",): 365, ("val",): 46, ("test",): 46}


@beside_lists
def test_hypersim_pins_the_csvs_that_are_known():
    import hashlib

    files = {file.path: file for file in load_manifest("hypersim").files}
    for name in ("metadata_images_split_scene_v1.csv", "metadata_camera_parameters.csv"):
        data = (LISTS / "hypersim" / name).read_bytes()
        assert (files[name].bytes, files[name].sha256) == (len(data), hashlib.sha256(data).hexdigest())


@beside_lists
def test_hypersim_excludes_what_is_broken_and_little_else():
    manifest = load_manifest("hypersim")
    splits = read_split_csv(LISTS / "hypersim/metadata_images_split_scene_v1.csv")
    dropped = {frame for frame in splits if exclusion_reason(frame, manifest.exclude)}
    assert {splits[frame] for frame in dropped} == {"train"}
    assert len(dropped) == 800  # of 74,619
    with (LISTS / "hypersim/metadata_camera_trajectories.csv").open(newline="") as file:
        notes = {row["Animation"]: row["Notes"].lower() for row in csv.DictReader(file)}
    for frame in splits:
        scene, camera, _ = frame.split("/")
        assert "unrealistic materials" not in notes[f"{scene}_{camera}"] or frame in dropped


@beside_lists
def test_vkitti2_has_the_published_md5s_and_near_sizes():
    with (LISTS / "vkitti2/vkitti_2.0.3_archives.csv").open(newline="") as file:
        known = {row["archive"]: row for row in csv.DictReader(file)}
    archives = load_manifest("vkitti2").archives
    assert {archive.path for archive in archives} == {
        n for n, row in known.items() if row["needed_for_depth"] == "yes"
    } | {"vkitti_2.0.3_textgt.tar.gz"}
    for archive in archives:
        assert archive.md5 == known[archive.path]["md5"]
        assert archive.bytes == pytest.approx(1e9 * float(known[archive.path]["approx_bytes_decimal_GB"]), rel=0.03)


def test_vkitti2_scenes(tmp_path):
    assert split_counts(load_manifest("vkitti2"), tmp_path) == {"train": 3, "val": 1, "test": 1}


@beside_lists
def test_tartanair_is_the_left_eye_of_the_list(tmp_path):
    manifest = load_manifest("tartanair")
    listed = {
        path: round(float(size) * 1e9)
        for path, size in rows("tartanair/tartanair_v1_download_training_zipfiles.txt")
        if path.endswith(("image_left.zip", "depth_left.zip"))
    }
    assert {archive.path: archive.bytes for archive in manifest.archives} == listed
    assert len(listed) == 72
    assert sum(listed.values()) == pytest.approx(140.9e9 + 68.8e9, rel=1e-3)
    assert all(archive.scenes == (archive.path.split("/")[0],) for archive in manifest.archives)
    assert split_counts(manifest, tmp_path).total() == len(scenes_of(manifest)) == 18


@beside_lists
def test_tartanair2_is_the_front_left_camera_of_the_list(tmp_path):
    manifest = load_manifest("tartanair2")
    listed = {
        path: round(float(size) * 1e9)
        for path, size, _ in rows("tartanair/tartanair_v2_download_files.txt")
        if path.endswith(("/image_lcam_front.zip", "/depth_lcam_front.zip"))
    }
    assert {archive.path: archive.bytes for archive in manifest.archives} == listed
    assert len(listed) == 296
    assert sum(listed.values()) == pytest.approx(833e9 + 380e9, rel=1e-3)
    assert all(archive.scenes == (archive.path.split("/")[0],) for archive in manifest.archives)
    assert split_counts(manifest, tmp_path).total() == len(scenes_of(manifest)) == 74


# What is measured on


@pytest.mark.parametrize(
    ("name", "wanted", "unwanted"),
    [
        (
            "eth3d",
            [
                "pipes/images/dslr_images/DSC_0634.JPG",
                "pipes/ground_truth_depth/dslr_images/DSC_0634.JPG",
                "pipes/masks_for_images/dslr_images/DSC_0634.png",
                "pipes/dslr_calibration_jpg/cameras.txt",
                "pipes/dslr_calibration_jpg/images.txt",
            ],
            ["pipes/occlusion/splats.ply", "pipes/dslr_calibration_jpg/points3D.txt"],
        ),
        (
            "ibims1",
            [
                *(
                    f"ibims1_core_raw/{kind}/corridor_01.png"
                    for kind in ("rgb", "depth", "mask_invalid", "mask_transp")
                ),
                *(f"ibims1_core_raw/mask_{kind}/corridor_01.png" for kind in ("wall", "floor", "table")),
                "ibims1_core_raw/edges/corridor_01.png",
                "ibims1_core_raw/calib/corridor_01.txt",
            ],
            [],
        ),
        (
            "flsea",
            [
                "canyons/u_canyon/u_canyon/imgs/16233043763678300.tiff",
                "canyons/u_canyon/u_canyon/depth/16233043763678300_SeaErra_abs_depth.tif",
            ],
            ["canyons/u_canyon/u_canyon/seaErra/16233043763678300_SeaErra.tiff", "canyons/u_canyon/u_canyon/imu.txt"],
        ),
    ],
)
def test_what_the_readers_need_is_extracted(name, wanted, unwanted):
    globs = load_manifest(name).members
    assert [path for path in wanted if not any(matches_name(path, glob) for glob in globs)] == []
    assert [path for path in unwanted if any(matches_name(path, glob) for glob in globs)] == []


@beside_lists
def test_nyuv2_test_scenes_are_those_of_the_official_split(tmp_path):
    manifest = load_manifest("nyuv2")
    split_of = manifest.splitter(tmp_path, "test")
    for side, num_frames, expected in (("test", 654, {"test"}), ("train", 795, {None})):
        names = [row[0] for row in rows(f"marigold/nyu_depth/labeled/filename_list_{side}.txt")]
        assert len(names) == num_frames
        assert {split_of(name.split("/")[1], name) for name in names} == expected


@beside_lists
def test_nyuv2_files_are_those_known():
    with (LISTS / "nyuv2/checksums.csv").open(newline="") as file:
        known = {row["url"]: (int(row["bytes"]), row["md5"]) for row in csv.DictReader(file)}
    manifest = load_manifest("nyuv2")
    assert {f"{manifest.mirrors[-1]}/{file.path}": (file.bytes, file.md5) for file in manifest.files} == known


@beside_lists
def test_kitti_members_are_the_usable_lines_of_eigens_list():
    usable = [(rgb, depth) for rgb, depth, _ in rows("bts/eigen_test_files_with_gt.txt") if depth != "None"]
    *raw, annotated = load_manifest("kitti").archives
    images = [member for archive in raw if archive.scenes for member in archive.members]
    assert len(usable) == len(images) == 652
    assert set(images) == {rgb for rgb, _ in usable}
    # The list leaves out the benchmark's own train or val above the drive.
    assert {member.partition("/")[2] for member in annotated.members} == {depth for _, depth in usable}
    assert {member.split("/")[0] for member in annotated.members} == {"train", "val"}


@beside_lists
def test_kitti_drives_are_at_the_listed_addresses():
    manifest = load_manifest("kitti")
    known = (LISTS / "bts/kitti_archives_to_download.txt").read_text().split()
    *raw, annotated = manifest.archives
    assert {f"{manifest.mirrors[0]}/{archive.path}" for archive in raw} <= set(known)
    assert all(archive.scenes in ((), (PurePosixPath(archive.path).stem,)) for archive in raw)
    assert set(annotated.scenes) == scenes_of(manifest)
    dates = {scene[:10] for scene in annotated.scenes}
    assert {archive.members for archive in raw if not archive.scenes} == {(f"{d}/calib_cam_to_cam.txt",) for d in dates}


@beside_lists
def test_eth3d_has_photographs_depth_and_masks_of_every_scene(tmp_path):
    listed = [row[0].split("/")[1] for row in rows("marigold/eth3d_depth/eth3d_filename_list.txt")]
    manifest = load_manifest("eth3d")
    assert len(listed) == 454
    assert scenes_of(manifest) == set(listed)
    assert {archive.path: archive.scenes[0] for archive in manifest.archives} == {
        f"{scene}_dslr_{kind}.7z": scene for scene in listed for kind in ("jpg", "depth", "occlusion")
    }
    assert split_counts(manifest, tmp_path) == {"test": 13}


@beside_lists
def test_diode_scenes_are_those_of_the_list(tmp_path):
    listed = ["/".join(row[0].split("/")[:2]) for row in rows("marigold/diode_depth/diode_val_all_filename_list.txt")]
    manifest = load_manifest("diode")
    assert Counter(scene.split("/")[0] for scene in listed) == {"indoors": 325, "outdoor": 446}
    assert scenes_of(manifest) == set(listed)
    assert split_counts(manifest, tmp_path) == {"test": 6}


def test_ibims1_is_one_archive_with_the_published_digest():
    (archive,) = load_manifest("ibims1").archives
    assert archive.url.startswith("https://")
    assert archive.sha512
