import io
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from s3 import s3_bucket, s3_client, s3_environment  # noqa: F401

from metricgold.buckets import Folder, open_bucket


def keys(bucket) -> list[str]:
    return [entry.key for entry in bucket.list()]


@pytest.fixture
def photos(tmp_path) -> Path:
    for name in ("a.jpg", "b.png", "deep/c.jpg", "deep/er/d e+#%.jpg", ".hidden/x.jpg", ".DS_Store"):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    return tmp_path / "photos"


def test_folder_file_and_glob_list_what_they_say(photos):
    assert keys(open_bucket(str(photos))) == ["a.jpg", "b.png", "deep/c.jpg", "deep/er/d e+#%.jpg"]
    assert keys(open_bucket(str(photos / "a.jpg"))) == ["a.jpg"]
    assert keys(open_bucket(f"{photos}/*.jpg")) == ["a.jpg"]
    assert keys(open_bucket(f"{photos}/**/*.jpg")) == ["a.jpg", "deep/c.jpg", "deep/er/d e+#%.jpg"]
    assert keys(open_bucket(f"{photos}/nothing*")) == []


def test_a_name_with_brackets_is_a_name_first(tmp_path):
    (tmp_path / "a[1].jpg").write_bytes(b"x")
    assert keys(open_bucket(str(tmp_path / "a[1].jpg"))) == ["a[1].jpg"]


def test_folder_reads_writes_and_forgets(photos):
    bucket = open_bucket(str(photos))
    before = {entry.key: entry.tag for entry in bucket.list()}
    tag = bucket.write("deep/c.jpg", b"other")
    after = {entry.key: entry.tag for entry in bucket.list()}
    assert after["deep/c.jpg"] == tag != before["deep/c.jpg"]
    assert bucket.read("deep/c.jpg") == b"other"
    assert bucket.read("deep/c.jpg", 2) == b"ot"
    bucket.write("lines", io.BytesIO(b"1\n2\n"))
    assert list(bucket.lines("lines")) == [b"1\n", b"2\n"]
    bucket.delete("lines")
    assert not bucket.exists("lines")


def test_pipes_and_circles_of_links_are_not_listed(photos):
    os.mkfifo(photos / "pipe.jpg")
    (photos / "deep" / "round").symlink_to(photos)
    (photos / "link.jpg").symlink_to(photos / "a.jpg")
    assert keys(open_bucket(str(photos))) == ["a.jpg", "b.png", "deep/c.jpg", "deep/er/d e+#%.jpg", "link.jpg"]


def test_locations_that_lead_nowhere_are_named(tmp_path):
    for location in (f"{tmp_path}/no", f"{tmp_path}/no/*.jpg"):
        with pytest.raises(FileNotFoundError, match="/no"):
            open_bucket(location)
    for location in ("gs://bucket/a", "s3://", "s3:///a"):
        with pytest.raises(ValueError, match=f"{location}: expected"):
            open_bucket(location)
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match="file"):
        open_bucket(str(tmp_path / "file"), create=True)


wild_keys = st.text(st.sampled_from("ab./%\\ 0025EeFf\0é"), min_size=1, max_size=12) | st.text(min_size=1, max_size=20)


@given(wild_keys)
def test_no_key_leaves_the_folder(key):
    root = Path("/srv/out")
    path = Folder(root).path(Folder.own_key(key) + ".depth.png")
    assert os.path.normpath(path) == str(path)
    assert path.is_relative_to(root)
    assert path != root


@given(wild_keys, wild_keys)
def test_two_keys_never_share_a_place(one, other):
    folder = Folder(Path("/srv/out"))
    if one != other:
        assert folder.path(folder.own_key(one)) != folder.path(folder.own_key(other))


def test_a_key_that_leaves_is_refused_as_it_is(tmp_path):
    for key in ("../x", "/etc/x", "a//b", "a/../../x", "a\0"):
        with pytest.raises(ValueError, match="cannot be a file below"):
            Folder(tmp_path).write(key, b"")
    assert list(tmp_path.iterdir()) == []


def test_ordinary_keys_keep_their_names():
    for key in ("a.jpg", "deep/100%.jpg", "a b+c#d.jpg", "日本/ä.png", "..a/...jpg"):
        assert Folder.own_key(key) == key


def test_a_bucket_within_another(tmp_path):
    outer, inner = Folder(tmp_path), Folder(tmp_path / "a" / "b")
    assert outer.prefix_of(inner) == "a/b/"
    assert outer.prefix_of(outer) == ""
    assert inner.prefix_of(outer) is None


ODD_KEYS = [
    "a b.jpg",
    "a+b.jpg",
    "a#b.jpg",
    "100%25.jpg",
    "ä/日本.jpg",
    "x/../y.jpg",
    "/lead.jpg",
    "x//y.jpg",
    "q?.jpg",
]


def test_s3_lists_reads_and_writes_odd_keys(s3_bucket):  # noqa: F811
    bucket = open_bucket(f"s3://{s3_bucket}/in", create=True)
    tags = {key: bucket.write(key, key.encode()) for key in ODD_KEYS}
    s3_client().put_object(Bucket=s3_bucket, Key="in/folder/", Body=b"")  # a marker, as consoles make them
    s3_client().put_object(Bucket=s3_bucket, Key="inner.jpg", Body=b"x")  # shares the letters, not the folder
    listed = list(open_bucket(f"s3://{s3_bucket}/in").list())
    assert {entry.key: entry.tag for entry in listed} == tags
    assert [entry.key for entry in listed] == sorted(tags, key=str.encode)
    for key in ODD_KEYS:
        assert bucket.read(key) == key.encode()
        assert bucket.read(key, 3) == key.encode()[:3]
    bucket.delete("a b.jpg")
    assert not bucket.exists("a b.jpg")
    assert bucket.exists("a+b.jpg")


def test_s3_single_object_and_lines(s3_bucket):  # noqa: F811
    bucket = open_bucket(f"s3://{s3_bucket}/in/")
    bucket.write("a.jpg", b"1\n2\n")
    bucket.write("a.jpg.txt", b"")
    assert keys(open_bucket(f"s3://{s3_bucket}/in/a.jpg")) == ["a.jpg"]
    assert keys(open_bucket(f"s3://{s3_bucket}")) == ["in/a.jpg", "in/a.jpg.txt"]
    assert [line.strip() for line in bucket.lines("a.jpg")] == [b"1", b"2"]


def test_s3_reads_a_range_only(s3_bucket):  # noqa: F811
    bucket = open_bucket(f"s3://{s3_bucket}")
    bucket.write("big", bytes(3_000_000))
    assert bucket.read("big", 16) == bytes(16)


def test_s3_missing_bucket_and_key_are_named(s3_bucket):  # noqa: F811
    with pytest.raises(FileNotFoundError, match="s3://no-such-bucket-here/x"):
        open_bucket("s3://no-such-bucket-here/x")
    with pytest.raises(FileNotFoundError, match=f"s3://{s3_bucket}/nothing.jpg"):
        open_bucket(f"s3://{s3_bucket}").read("nothing.jpg")


def test_s3_denied_is_named_and_shows_no_secret(s3_environment, s3_bucket, monkeypatch):  # noqa: F811
    if "S3_NOBODY_ACCESS_KEY_ID" not in s3_environment:
        pytest.skip("this S3 server names no second key pair without rights")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3_environment["S3_NOBODY_ACCESS_KEY_ID"])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3_environment["S3_NOBODY_SECRET_ACCESS_KEY"])
    with pytest.raises(PermissionError, match=f"s3://{s3_bucket}/in: access denied") as denied:
        open_bucket(f"s3://{s3_bucket}/in")
    assert s3_environment["S3_NOBODY_SECRET_ACCESS_KEY"] not in str(denied.value)


def test_s3_without_a_server_or_credentials_says_so(monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(PermissionError, match="s3://b/a: no complete S3 credentials"):
        open_bucket("s3://b/a")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    monkeypatch.setenv("METRICGOLD_S3_PATIENCE_S", "0")
    with pytest.raises(ConnectionError, match=r"s3://b/a: cannot reach 127\.0\.0\.1:9"):
        open_bucket("s3://b/a")
