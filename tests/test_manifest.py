"""Manifests: the project's own are whole, and every fault of a foreign one is named."""

import pytest
import yaml

from metricgold.manifest import MANIFESTS, Manifest, load_manifest, read_manifest

MINIMAL = {
    "name": "tiny",
    "role": "train",
    "title": "Tiny",
    "source": "https://example.org",
    "licence": {"name": "CC BY 4.0", "url": "https://example.org/licence", "terms": "Attribution."},
    "citation": "Nobody, 2026",
    "depth": {"unit": "metre", "kind": "planar", "invalid": "0"},
    "mirrors": ["https://example.org/tiny"],
    "archives": [{"path": "a.zip"}],
}


def write(path, **changes):
    path.write_text(yaml.safe_dump(MINIMAL | changes))
    return path


@pytest.mark.parametrize("path", sorted(MANIFESTS.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_projects_manifests_load(path):
    manifest = load_manifest(path.stem)
    assert manifest.name == path.stem
    assert manifest.splits is not None
    assert len({archive.path for archive in manifest.archives}) == len(manifest.archives)


def test_what_the_real_manifests_name():
    assert len(load_manifest("hypersim").archives) == 457
    v1 = load_manifest("tartanair").archives
    assert len(v1) == 72
    assert sum(archive.bytes for archive in v1) == pytest.approx(209.65e9, rel=1e-4)
    v2 = load_manifest("tartanair2").archives
    assert len(v2) == 296
    assert {archive.path: archive.md5 for archive in load_manifest("vkitti2").archives} == {
        "vkitti_2.0.3_rgb.tar": "1e00a143a397c2c53aa9720a868fe34a",
        "vkitti_2.0.3_depth.tar": "1d34a96f870fc5d33b482df87844f5e4",
        "vkitti_2.0.3_textgt.tar.gz": "855f7f37746e5508f094e522c9cf41f4",
    }


@pytest.mark.parametrize("name", ["tartanair", "tartanair2", "vkitti2"])
def test_every_scene_is_in_exactly_one_split(name, tmp_path):
    manifest = load_manifest(name)
    scenes = {scene for archive in manifest.archives for scene in archive.scenes} or {
        f"Scene{number:02d}" for number in (1, 2, 6, 18, 20)
    }
    split_of = manifest.splitter(tmp_path, "train")
    assert {split_of(scene, scene) for scene in scenes} == {"train", "val", "test"}


def test_every_fault_is_one_line(tmp_path):
    path = write(
        tmp_path / "bad.yaml",
        role="play",
        colour="blue",
        mirrors=["ftp://example.org", "s3://bucket/tiny"],
        archives=[{"path": "../a.zip"}, {"path": "b.zip", "md5": "xyz"}],
    )
    with pytest.raises(ValueError, match="bad") as caught:
        read_manifest(path)
    lines = str(caught.value).splitlines()
    assert sorted(line.removeprefix(f"{path}: ").split(": ")[0] for line in lines) == [
        "archives.0.path",
        "archives.1.md5",
        "colour",
        "mirrors.0",
        "role",
    ]
    assert all(line.startswith(f"{path}: ") for line in lines)


@pytest.mark.parametrize("path", ["/etc/passwd", "a/../../b.zip", "..\\b.zip", ""])
def test_paths_stay_below(tmp_path, path):
    with pytest.raises(ValueError, match=r"archives\.0\.path"):
        read_manifest(write(tmp_path / "m.yaml", archives=[{"path": path}]))


def test_faults_between_keys(tmp_path):
    with pytest.raises(ValueError, match="needs archives, or checksums that name them"):
        read_manifest(write(tmp_path / "m.yaml", archives=[]))
    with pytest.raises(ValueError, match=r"names \['a.zip'\] twice"):
        read_manifest(write(tmp_path / "m.yaml", archives=[{"path": "a.zip"}, {"path": "a.zip"}]))
    with pytest.raises(ValueError, match=r"splits: .*exactly one of csv and scenes"):
        read_manifest(write(tmp_path / "m.yaml", splits={}))


def test_a_scene_in_two_splits_is_a_leak(tmp_path):
    manifest = Manifest(**MINIMAL, splits={"scenes": {"train": ["*"], "test": ["ocean"]}})
    split_of = manifest.splitter(tmp_path, "train")
    assert split_of("office", "office/0") == "train"
    with pytest.raises(ValueError, match=r"scene ocean is in the splits \['train', 'test'\] at once"):
        split_of("ocean", "ocean/0")


def test_splits_that_are_not_there(tmp_path):
    with pytest.raises(ValueError, match="data set tiny has no splits; asked for 'train'"):
        Manifest(**MINIMAL).splitter(tmp_path, "train")
    with pytest.raises(ValueError, match=r"split\.csv: no such file, and it decides the splits"):
        Manifest(**MINIMAL, splits={"csv": "split.csv"}).splitter(tmp_path, "train")


def test_a_split_csv_of_another_form_is_named(tmp_path):
    (tmp_path / "split.csv").write_text("scene,split\na,train\n")
    with pytest.raises(ValueError, match=r"split\.csv is not HyperSim's split csv"):
        Manifest(**MINIMAL, splits={"csv": "split.csv"}).splitter(tmp_path, "train")


def test_exclusions_carry_their_reason():
    manifest = Manifest(**MINIMAL, exclude=[{"frames": "ai_004_009/cam_01/*", "reason": "no light"}])
    assert manifest.exclusion("ai_004_009/cam_01/frame.0003") == "excluded: no light"
    assert manifest.exclusion("ai_004_009/cam_00/frame.0003") is None


@pytest.mark.parametrize("name", ["nothing", "../data_manifests/hypersim"])
def test_unknown_names_list_the_known(name):
    with pytest.raises(ValueError, match="known: hypersim, hypersim-synthetic, tartanair,"):
        load_manifest(name)


def test_not_yaml(tmp_path):
    (tmp_path / "m.yaml").write_text("a: [")
    with pytest.raises(ValueError, match=r"m\.yaml is not YAML"):
        read_manifest(tmp_path / "m.yaml")
