"""Manifests: every fault of one is named, in a line that says where and what was expected."""

import hashlib

import pytest
import yaml
from hypothesis import given, strategies as st

from metricgold.datasets.manifest import Manifest, load_manifest, read_manifest
from metricgold.datasets.manifest_check import (
    WARNING,
    check_manifest,
    check_manifests,
    exclusion_faults,
    member_faults,
)
from metricgold.datasets.splits import exclusion_reason, matches_name, splits_of_scene
from tests.support import ROOT

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


def test_a_benchmark_may_be_files_alone(tmp_path):
    files = [{"path": "labelled.mat"}]
    path = write(tmp_path / "m.yaml", role="evaluate", archives=[], files=files)
    assert read_manifest(path).files[0].path == "labelled.mat"
    for changes in ({"role": "train", "files": files}, {"role": "evaluate", "files": []}):
        with pytest.raises(ValueError, match="needs archives, or checksums that name them; files alone will do"):
            read_manifest(write(path, archives=[], **changes))


def test_mirrors_are_needed_where_a_url_is_missing(tmp_path):
    path = tmp_path / "m.yaml"
    with_url = {"path": "b.zip", "url": "https://example.org/get?b"}
    assert read_manifest(write(path, mirrors=[], archives=[with_url])).mirrors == ()
    sums = {"path": "sums", "algorithm": "md5"}
    for changes in ({"archives": [with_url, {"path": "a.zip"}]}, {"archives": [with_url], "checksums": sums}):
        with pytest.raises(ValueError, match="needs mirrors, or a url for each archive and file"):
            read_manifest(write(path, mirrors=[], **changes))


def test_an_archive_may_have_members_of_its_own():
    archives = [{"path": "a.zip"}, {"path": "b.zip", "members": ["x/*"]}, {"path": "c.zip", "members": []}]
    manifest = Manifest(**MINIMAL | {"archives": archives, "members": ["*.png"]})
    assert [archive.members for archive in manifest.archives] == [None, ("x/*",), ()]


def test_licences_are_accepted_unless_said_otherwise():
    assert Manifest(**MINIMAL).licence.needs_acceptance
    own = MINIMAL["licence"] | {"needs_acceptance": False}
    assert not Manifest(**MINIMAL | {"licence": own}).licence.needs_acceptance


@pytest.mark.parametrize("number", [0, -1, 1.0, "7", True, 10**14])
def test_sizes_are_plain_numbers_of_bytes(tmp_path, number):
    with pytest.raises(ValueError, match=r"archives\.0\.bytes: Input should be .*, found"):
        read_manifest(write(tmp_path / "m.yaml", archives=[{"path": "a.zip", "bytes": number}]))


@pytest.mark.parametrize("algorithm", ["md5", "sha256", "sha512"])
def test_digests_are_lower_case_hex_of_something(tmp_path, algorithm):
    good = hashlib.new(algorithm, b"data").hexdigest()
    path = tmp_path / "m.yaml"
    read_manifest(write(path, archives=[{"path": "a.zip", algorithm: good}]))
    for bad in (good.upper(), good[:-1], good + "0", hashlib.new(algorithm).hexdigest()):
        with pytest.raises(ValueError, match=rf"archives\.0\.{algorithm}: "):
            read_manifest(write(path, archives=[{"path": "a.zip", algorithm: bad}]))


def test_credentials_are_refused_and_not_repeated(tmp_path):
    with pytest.raises(ValueError, match=r"mirrors\.0: must not carry credentials") as caught:
        read_manifest(write(tmp_path / "m.yaml", mirrors=["https://me:hunter2@example.org"]))
    assert "hunter2" not in str(caught.value)


def test_faults_between_keys(tmp_path):
    with pytest.raises(ValueError, match=r"names \['a.zip'\] twice"):
        read_manifest(write(tmp_path / "m.yaml", archives=[{"path": "a.zip"}, {"path": "a.zip"}]))
    with pytest.raises(ValueError, match=r"splits: .*exactly one of csv and scenes"):
        read_manifest(write(tmp_path / "m.yaml", splits={}))


def test_a_scene_in_two_splits_is_a_leak(tmp_path):
    manifest = Manifest(**MINIMAL, splits={"scenes": {"train": ["*"], "test": ["ocean"]}})
    split_of = manifest.splitter(tmp_path, "train")
    assert split_of("office", "office/0") == "train"
    with pytest.raises(ValueError, match=r"data set tiny: scene ocean is in train and test, expected in one split"):
        split_of("ocean", "ocean/0")


def test_splits_that_are_not_there(tmp_path):
    with pytest.raises(ValueError, match="data set tiny has no splits; 'train' was wanted"):
        Manifest(**MINIMAL).splitter(tmp_path, "train")
    with pytest.raises(ValueError, match=r"split\.csv: no such file, and it decides the splits"):
        Manifest(**MINIMAL, splits={"csv": "split.csv"}).splitter(tmp_path, "train")


def test_a_split_csv_of_another_form_is_named(tmp_path):
    (tmp_path / "split.csv").write_text("scene,split\na,train\n")
    with pytest.raises(ValueError, match=r"split\.csv is not HyperSim's split csv"):
        Manifest(**MINIMAL, splits={"csv": "split.csv"}).splitter(tmp_path, "train")


def test_exclusions_carry_their_reason():
    manifest = Manifest(**MINIMAL, exclude=[{"frames": "ai_004_009/cam_01/*", "reason": "no light"}])
    assert exclusion_reason("ai_004_009/cam_01/frame.0003", manifest.exclude) == "excluded: no light"
    assert exclusion_reason("ai_004_009/cam_00/frame.0003", manifest.exclude) is None


@pytest.mark.parametrize("name", ["nothing", "../data_manifests/hypersim"])
def test_unknown_names_list_the_known(name):
    known = sorted(path.stem for path in (ROOT / "data_manifests").glob("*.yaml"))
    with pytest.raises(ValueError, match=f"known: {', '.join(known)}"):
        load_manifest(name)


def test_not_yaml(tmp_path):
    (tmp_path / "m.yaml").write_text("a: [")
    with pytest.raises(ValueError, match=r"m\.yaml: line 1: is not YAML"):
        read_manifest(tmp_path / "m.yaml")


# The review

SOUND = MINIMAL | {
    "splits": {"scenes": {"train": ["a*"], "test": ["b"]}},
    "archives": [{"path": "a.zip", "scenes": ["a1", "a2"]}, {"path": "b.7z", "scenes": ["b"]}],
    "members": ["*/rgb/*.png"],
    "exclude": [{"frames": "a1/*", "reason": "broken"}],
}
ARCHIVE_A, ARCHIVE_B = SOUND["archives"]
EMPTY_TERMS = MINIMAL["licence"] | {"terms": " "}

BROKEN = {
    "name": ({"name": "small"}, "name: is 'small', expected 'tiny' as in the file's name"),
    "unknown key": ({"mirror": "x"}, "mirror: unknown key; known: name, role, title, "),
    "unknown key below": ({"archives": [ARCHIVE_A | {"size": 1}]}, "archives.0.size: unknown key; known: path, url, "),
    "missing key": ({"citation": None}, "citation: Input should be a valid string, found None"),
    "no mapping": ({"depth": "metre"}, "depth: Input should be a valid dictionary or instance of Depth, found 'metre'"),
    "no terms": ({"licence": EMPTY_TERMS}, "licence.terms: is empty, expected a text"),
    "no citation": ({"citation": ""}, "citation: is empty, expected a text"),
    "no reason": ({"exclude": [{"frames": "b/*", "reason": ""}]}, "exclude.0.reason: is empty, expected a text"),
    "licence nowhere": (
        {"licence": MINIMAL["licence"] | {"url": "LICENCE"}},
        "licence.url: is 'LICENCE', expected where the licence can be read",
    ),
    "no splits": (
        {"splits": None},
        "splits: are missing, expected scenes or a csv, so that each scene is on one side only",
    ),
    "split csv not fetched": (
        {"splits": {"csv": "split.csv"}},
        "splits.csv: split.csv is not fetched, expected among files",
    ),
    "split of nothing": (
        {"splits": {"scenes": {"train": ["*"], "val": ["c"]}}},
        "splits.scenes.val: c matches none of the 3 scenes that archives name",
    ),
    "leak": (
        {"splits": {"scenes": {"train": ["*"], "test": ["b"]}}},
        "splits.scenes: scene b is in test and train, expected in one split",
    ),
    "leak by literal names": (
        {"splits": {"scenes": {"train": ["x*"], "test": ["x1"]}}, "archives": [{"path": "a.zip"}]},
        "splits.scenes: scene x1 is in test and train, expected in one split",
    ),
    "scene in no split": (
        {"splits": {"scenes": {"train": ["a*"]}}},
        "splits.scenes: scene b is in no split, expected in one split",
    ),
    "exclusion of nothing": (
        {"exclude": [{"frames": "a3/*", "reason": "broken"}]},
        "exclude.0.frames: a3/* matches nothing below any scene, expected one that archives name",
    ),
    "path twice": ({"files": [{"path": "a.zip"}]}, "manifest: names ['a.zip'] twice"),
    "mirror twice": (
        {"mirrors": ["https://example.org/tiny", "https://example.org/tiny/"]},
        "mirrors.1: is the same address as mirrors.0, expected another",
    ),
    "url twice": (
        {"files": [{"path": name, "url": "https://example.org/x"} for name in ("one", "two")]},
        "files.1.url: is the same address as files.0.url, expected another",
    ),
    "no archive": (
        {"archives": [ARCHIVE_A, ARCHIVE_B | {"path": "b.rar"}]},
        "archives.1.path: b.rar has no suffix of an archive, expected .zip, .tar, ",
    ),
    "archive among files": (
        {"files": [{"path": "c.tar.gz"}]},
        "files.0.path: c.tar.gz is an archive, expected under archives",
    ),
    "members of no scene": (
        {"members": ["*/rgb/*.png", "rgb/0.png"]},
        "members.1: rgb/0.png can match nothing below a scene, expected the scene's folder or * before it",
    ),
    "members of another archive's scene": (
        {"archives": [ARCHIVE_A, ARCHIVE_B | {"members": ["x/b/1.png", "a1/1.png"]}]},
        "archives.1.members.1: a1/1.png can match nothing below a scene, ",
    ),
}


@pytest.mark.parametrize(("changes", "line"), BROKEN.values(), ids=BROKEN)
def test_what_the_review_says(tmp_path, changes, line):
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(SOUND))
    assert check_manifest(path) == []
    path.write_text(yaml.safe_dump(SOUND | changes))
    (found,) = check_manifest(path)
    assert found.startswith(f"{path}: {line}")


def test_the_review_of_what_is_no_manifest(tmp_path):
    path = tmp_path / "tiny.yaml"
    assert check_manifest(path) == [f"{path}: manifest: cannot be read: No such file or directory"]
    for text, what in (
        (b"a: [", "line 1: is not YAML: while parsing"),
        (b"\xff\xfe\x00", "line 1: is not YAML: byte 0xff is not UTF-8"),
        (b"name: a\nname: b\n", "line 2: name is given twice"),
        (b"!!python/object/apply:os.getcwd []", "line 1: has a tag"),
        (b"[]", "manifest: Input should be a valid dictionary or instance of Manifest, found []"),
    ):
        path.write_bytes(text)
        (line,) = check_manifest(path)
        assert line.startswith(f"{path}: {what}")
    path.write_bytes(b"")
    assert f"{path}: mirrors: Field required" not in check_manifest(path)
    assert f"{path}: citation: Field required" in check_manifest(path)


def test_plain_http_is_a_warning_only_without_checksums(tmp_path):
    path = tmp_path / "tiny.yaml"
    plain = SOUND | {
        "mirrors": ["https://example.org", "http://example.org"],
        "files": [{"path": "x", "md5": "0" * 32}],
    }
    path.write_text(yaml.safe_dump(plain))
    (line,) = check_manifest(path)
    assert line == (
        f"{WARNING}{path}: mirrors.1: plain http for 2 without a checksum, a.zip first; expected https or checksums"
    )
    for changes in (
        {"checksums": {"path": "sums", "algorithm": "md5"}},
        {"archives": [archive | {"sha512": "0" * 128} for archive in SOUND["archives"]]},
    ):
        path.write_text(yaml.safe_dump(plain | changes))
        assert check_manifest(path) == []
    path.write_text(yaml.safe_dump(SOUND | {"files": [{"path": "x", "url": "http://example.org/x"}]}))
    (line,) = check_manifest(path)
    assert line.startswith(f"{WARNING}{path}: files.0.url: plain http")


def test_many_are_reviewed_in_their_order(tmp_path):
    paths = [tmp_path / "b.yaml", tmp_path / "a.yaml"]
    for path in paths:
        path.write_text(yaml.safe_dump(SOUND))
    assert [line.split(": ")[:2] for line in check_manifests(paths)] == [[str(path), "name"] for path in paths]


WORDS = st.text("ab/", max_size=6)
GLOBS = st.text("ab/*?[]", min_size=1, max_size=6)


def faults_of(scene: str, *, members=(), exclude=()) -> list[str]:
    archives = [{"path": "x.zip", "scenes": [scene]}]
    exclusions = [{"frames": glob, "reason": "broken"} for glob in exclude]
    manifest = Manifest(**SOUND | {"archives": archives, "members": members, "exclude": exclusions})
    return [key for check in (member_faults, exclusion_faults) for key, _ in check(manifest)]


@given(WORDS, WORDS, GLOBS)
def test_what_matches_below_a_scene_is_never_a_fault(before, after, glob):
    if matches_name(f"ab/{after}", glob):
        assert faults_of("ab", exclude=[glob]) == []
    for member in (f"ab/{after}", f"{before}/ab/{after}"):
        if matches_name(member, glob):
            assert faults_of("ab", members=[glob]) == []


@pytest.mark.parametrize(
    ("glob", "excludes", "extracts"),
    [
        ("ocean/P000/*", True, True),
        ("ocean/rgb/1.png", True, True),
        ("train/ocean/1.png", False, True),
        ("oce*/x", True, True),
        ("oce", False, False),
        ("ocean", False, False),
        ("oceans/*", False, True),
        ("forest/1.png", False, False),
        ("*/rgb/*.png", True, True),
        ("o?ean/[0-9]", True, True),
        ("[a-f]*", True, True),
    ],
)
def test_globs_that_can_match_below_a_scene(glob, excludes, extracts):
    assert (faults_of("ocean", exclude=[glob]) == []) is excludes
    assert (faults_of("ocean", members=[glob]) == []) is extracts


@pytest.mark.parametrize(
    ("name", "glob", "expected"),
    [
        ("ai_001_001/cam_00/frame.0003", "ai_001_001/*", True),  # a slash is a letter like any other
        ("ai_001_001/cam_00/frame.0003", "*3", True),
        ("ai_001_001", "ai_001", False),
        ("Scene01", "Scene[02]1", True),
        ("scene01", "Scene01", False),
        ("a/b", "a?b", True),
    ],
)
def test_names_are_matched_as_one_word(name, glob, expected):
    assert matches_name(name, glob) is expected
    assert splits_of_scene(name, {"train": ["nothing", glob], "test": ["x"]}) == ["train"] * expected
