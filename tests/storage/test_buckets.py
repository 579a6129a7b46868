import errno
import hashlib
import io
import os
import subprocess
import threading
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import unquote

import pytest
from hypothesis import given, strategies as st

from metricgold.storage import buckets, s3_client as s3
from metricgold.storage.buckets import ConditionFailed, Folder, StoreLost, open_bucket
from metricgold.storage.files import remove_left_aside
from metricgold.storage.s3_client import BadCredentials
from tests.support import server
from tests.support.s3 import s3_bucket, s3_client, s3_environment  # noqa: F401
from tests.support.server import FaultServer


def keys(bucket) -> list[str]:
    return [entry.key for entry in bucket.entries()]


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


def test_include_exclude_and_after(photos):
    assert keys(open_bucket(str(photos), include=["*.jpg"], exclude=["deep/er/"])) == ["a.jpg", "deep/c.jpg"]
    assert keys(open_bucket(f"{photos}/**", exclude=["*.jpg"])) == ["b.png"]
    assert keys(open_bucket(f"{photos}/de*/")) == ["deep/c.jpg", "deep/er/d e+#%.jpg"]
    everything = keys(open_bucket(str(photos)))
    for n, key in enumerate(everything):
        assert [entry.key for entry in open_bucket(str(photos)).entries(after=key)] == everything[n + 1 :]


def test_a_name_with_brackets_is_a_name_first(tmp_path):
    (tmp_path / "a[1].jpg").write_bytes(b"x")
    assert keys(open_bucket(str(tmp_path / "a[1].jpg"))) == ["a[1].jpg"]


def test_folder_reads_writes_and_forgets(photos):
    bucket = open_bucket(str(photos))
    before = {entry.key: entry.tag for entry in bucket.entries()}
    tag = bucket.write("deep/c.jpg", b"other")
    after = {entry.key: entry.tag for entry in bucket.entries()}
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
    listed = list(open_bucket(f"s3://{s3_bucket}/in").entries())
    assert {entry.key: entry.tag for entry in listed} == tags
    assert [entry.key for entry in listed] == sorted(tags, key=str.encode)
    for key in ODD_KEYS:
        assert bucket.read(key) == key.encode()
        assert bucket.read(key, 3) == key.encode()[:3]
    bucket.delete("a b.jpg")
    assert not bucket.exists("a b.jpg")
    assert bucket.exists("a+b.jpg")


def test_s3_globs_include_exclude_and_after(s3_bucket):  # noqa: F811
    bucket = open_bucket(f"s3://{s3_bucket}")
    names = ["in/a.jpg", "in/b.png", "in/de/c.jpg", "in/de/er/d e.jpg", "in/x[1]/y.jpg", "in/z*.jpg", "inner.jpg"]
    for name in names:
        bucket.write(name, b"x")

    def found(location: str, **wanted) -> list[str]:
        bucket = open_bucket(f"s3://{s3_bucket}/{location}", **wanted)
        return [bucket.prefix + key for key in keys(bucket)]

    assert found("in/*.jpg") == ["in/a.jpg", "in/z*.jpg"]
    assert found("in/**/*.jpg") == [name for name in names if name.startswith("in/") and name != "in/b.png"]
    assert found("in/d*/") == ["in/de/c.jpg", "in/de/er/d e.jpg"]
    assert found("i*.jpg") == ["inner.jpg"]
    assert found("in/nothing*") == []
    assert found("in/z*.jpg") == ["in/z*.jpg"]  # what is there under that name
    assert found("in/x[1]") == found("in/x[1]/") == ["in/x[1]/y.jpg"]
    assert found("in", include=["*.jpg"], exclude=["de/**", "z*"]) == ["in/a.jpg", "in/x[1]/y.jpg"]
    assert str(open_bucket(f"s3://{s3_bucket}/in/d*/*.jpg")) == f"s3://{s3_bucket}/in/d*/*.jpg"
    everything = keys(bucket)
    for n, key in enumerate(everything):
        assert [entry.key for entry in bucket.entries(after=key)] == everything[n + 1 :]


def test_s3_hidden_names_are_not_listed_as_in_folders(s3_bucket, tmp_path):  # noqa: F811
    prefix, folder = open_bucket(f"s3://{s3_bucket}/in", create=True), open_bucket(str(tmp_path))
    for name in ("a.jpg", "._a.jpg", "b/._c.jpg", "b/.d/e.jpg", "b/f..jpg"):
        for bucket in (prefix, folder):
            bucket.write(name, b"x")
    assert keys(open_bucket(f"s3://{s3_bucket}/in")) == keys(folder) == ["a.jpg", "b/f..jpg"]
    assert keys(open_bucket(f"s3://{s3_bucket}/in/._a.jpg")) == ["._a.jpg"]  # asked for by its name


def test_s3_a_key_too_long_is_known_before(s3_bucket):  # noqa: F811
    prefix = open_bucket(f"s3://{s3_bucket}/in", create=True)
    prefix.check_length("x" * 1021)
    with pytest.raises(ValueError, match="a key of 1025 bytes is too long, 1024 fit"):
        prefix.check_length("x" * 1022)


def test_a_name_or_path_too_long_is_known_before(tmp_path):
    folder = open_bucket(str(tmp_path))
    folder.check_length("é" * 127)
    with pytest.raises(ValueError, match="a name of 256 bytes is too long, 255 fit"):
        folder.check_length("a/" + "é" * 128)
    with pytest.raises(ValueError, match=r"a path of \d+ bytes is too long, 4095 fit"):
        folder.check_length("/".join(["a" * 200] * 21))


def test_s3_metadata_is_kept_whatever_its_letters(s3_bucket):  # noqa: F811
    bucket = open_bucket(f"s3://{s3_bucket}")
    bucket.write("a.png", b"x", "image/png", metadata={"model": "Größe 1\n", "params": '{"a": 1}'})
    head = s3_client().head_object(Bucket=s3_bucket, Key="a.png")
    assert head["Metadata"] == {"model": "Gr%C3%B6%C3%9Fe 1%0A", "params": '{"a": 1}'}
    assert head["ContentType"] == "image/png"


@pytest.mark.parametrize(
    ("text", "kept"),
    [("a" * 300, "a" * 256), ("ä€😀" * 100, "ä€😀" * 9 + "ä"), ("\udcff", "\\udcff")],
    ids=["ascii", "wide", "no UTF-8"],
)
def test_s3_metadata_is_cut_between_characters(s3_bucket, text, kept):  # noqa: F811
    bucket = open_bucket(f"s3://{s3_bucket}/", create=True)
    bucket.write("a", b"x", metadata={"input": text})
    assert unquote(bucket.client.head_object(Bucket=s3_bucket, Key="a")["Metadata"]["input"]) == kept


@pytest.mark.parametrize("data", [b"", b"small", io.BytesIO(b"a file")])
def test_s3_sends_an_object_without_asking_whether_it_may(s3_bucket, data):  # noqa: F811
    sent = []
    bucket = open_bucket(f"s3://{s3_bucket}/", create=True)
    bucket.client.meta.events.register("before-send.s3", lambda request, **_: sent.append(dict(request.headers)))
    bucket.write("a", data)
    assert [headers.get("Expect") for headers in sent] == [None]


def test_s3_writes_only_over_what_was_seen(s3_bucket):  # noqa: F811
    bucket = open_bucket(f"s3://{s3_bucket}")
    bucket.write_if("a", b"mine", None)
    bucket.write_if("a", b"mine", None)  # an earlier try, its answer lost
    with pytest.raises(ConditionFailed, match="another has written it"):
        bucket.write_if("a", b"other", None)
    data, tag, age_s = bucket.read_tagged("a")
    assert data == b"mine"
    assert 0 <= age_s < 60
    try:
        bucket.write_if("a", b"next", tag)
    except io.UnsupportedOperation:  # as Swift answers
        assert bucket.read("a") == b"mine"
        return
    for key, old in (("a", tag), ("a", "0" * 32), ("gone", tag)):
        with pytest.raises(ConditionFailed, match="another has written it"):
            bucket.write_if(key, b"late", old)
    assert bucket.read("a") == b"next"


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
    bucket.write("empty", b"")
    assert bucket.read("empty", 16) == bucket.read("empty") == b""


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


class Troubled(FaultServer):
    """Before a store; a script befalls what writes, too."""

    def next_fault(self, method, path, span):
        fault = super().next_fault(method, path, span)
        return self.script[path].pop(0) if method in ("PUT", "HEAD") and self.script.get(path) else fault


@pytest.fixture
def troubled(s3_environment, monkeypatch):  # noqa: F811
    monkeypatch.setitem(server.PAGES, "500", lambda: server._page(500, b"", Connection="close"))
    monkeypatch.setitem(server.PAGES, "503", lambda: server._page(503, b"", Connection="close"))
    monkeypatch.setenv("METRICGOLD_S3_PATIENCE_S", "10")
    with Troubled(upstream=s3_environment["AWS_ENDPOINT_URL"]) as before:
        monkeypatch.setenv("AWS_ENDPOINT_URL", before.url)
        yield before


def test_s3_trouble_that_passes_is_waited_out(troubled, s3_bucket):  # noqa: F811
    troubled.script[f"/{s3_bucket}"] = ["503", "500"]
    bucket = open_bucket(f"s3://{s3_bucket}")
    for n in range(3):
        troubled.script[f"/{s3_bucket}/{n}"] = ["503", "500", "ok"]
        bucket.write(f"{n}", io.BytesIO(b"%d\n" % n * 100_000))
    page = f"/{s3_bucket}"
    for fault in ("503", "reset", "truncate"):
        troubled.script[page] = [fault, "ok"]
        assert keys(bucket) == ["0", "1", "2"]
        troubled.script[page + "/1"] = [fault, fault, "ok"]
        assert bucket.read("1") == b"1\n" * 100_000
        troubled.script[page + "/2"] = [fault, "ok"]
        assert list(bucket.lines("2")) == [b"2\n"] * 100_000
    assert not any(troubled.script.values())


def test_s3_listing_goes_on_where_a_page_failed(troubled, s3_bucket, monkeypatch):  # noqa: F811
    bucket = open_bucket(f"s3://{s3_bucket}")
    for n in range(7):
        bucket.write(f"{n}", b"")
    asked = bucket.client.list_objects_v2
    monkeypatch.setattr(bucket.client, "list_objects_v2", lambda **options: asked(**options, MaxKeys=2))
    troubled.script[f"/{s3_bucket}"] = ["ok", "503", "ok", "truncate", "reset", "ok", "ok"]
    assert keys(bucket) == [str(n) for n in range(7)]
    assert not troubled.script[f"/{s3_bucket}"]


def test_s3_patience_ends(troubled, s3_bucket, monkeypatch):  # noqa: F811
    bucket = open_bucket(f"s3://{s3_bucket}")
    troubled.faults = {"503": 1.0}
    monkeypatch.setenv("METRICGOLD_S3_PATIENCE_S", "1")
    with pytest.raises(StoreLost, match=rf"s3://{s3_bucket}/a: .*503.* \(tried for 1 s\)"):
        bucket.read("a")
    monkeypatch.setenv("METRICGOLD_S3_PATIENCE_S", "600")
    timer = threading.Timer(0.5, bucket.close)
    timer.start()
    with pytest.raises(StoreLost):
        bucket.read("a")  # is told to hurry while it waits
    timer.join()
    monkeypatch.setenv("METRICGOLD_S3_PATIENCE_S", "much")
    with pytest.raises(ValueError, match="METRICGOLD_S3_PATIENCE_S: expected seconds, got 'much'"):
        bucket.read("a")


def test_s3_what_does_not_pass_is_said_at_once(troubled, s3_bucket, monkeypatch):  # noqa: F811
    bucket = open_bucket(f"s3://{s3_bucket}")
    bucket.write("a", b"x")
    for fault, kind in (("404", FileNotFoundError), ("expired", PermissionError)):
        troubled.script[f"/{s3_bucket}/a"] = [fault]
        troubled.reset_counts()
        with pytest.raises(kind, match=f"s3://{s3_bucket}/a: ") as caught:
            bucket.read("a")
        assert not isinstance(caught.value, StoreLost)
        # A refusal may mean that there is no such object: the listing is asked once.
        assert len(troubled.requests) == (1 if fault == "404" else 2)


def test_s3_credentials_that_expire_are_read_anew_as_long_as_patience_lasts(troubled, s3_bucket, monkeypatch):  # noqa: F811
    expired = b"<Error><Code>ExpiredToken</Code><Message>The provided token has expired.</Message></Error>"
    monkeypatch.setitem(server.PAGES, "token", lambda: server._page(403, expired))
    bucket = open_bucket(f"s3://{s3_bucket}")
    for fault in (["token"], ["token", "503", "token"]):
        before, troubled.script[f"/{s3_bucket}/a"] = bucket.client, [*fault, "ok"]
        bucket.write("a", b"x")
        assert bucket.client is not before and not troubled.script[f"/{s3_bucket}/a"]
    monkeypatch.setenv("METRICGOLD_S3_PATIENCE_S", "0.5")
    troubled.script[f"/{s3_bucket}/a"] = ["token"] * 100
    with pytest.raises(StoreLost, match=rf"s3://{s3_bucket}/a: access denied \(ExpiredToken\)"):
        bucket.read("a")
    monkeypatch.setenv("METRICGOLD_S3_PATIENCE_S", "10")
    troubled.script[f"/{s3_bucket}"] = ["token", "token", "ok"]
    open_bucket(f"s3://{s3_bucket}/x/")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another")
    with pytest.raises(BadCredentials, match="SignatureDoesNotMatch"):
        open_bucket(f"s3://{s3_bucket}/x/")


def failing_at(call, name, number):
    """A system call that fails for one name."""

    def fail(path, *args, **options):
        if Path(path).name == name:
            raise OSError(number, os.strerror(number), str(path))
        return call(path, *args, **options)

    return fail


@pytest.mark.parametrize(
    ("call", "name", "number", "listed"),
    [
        ("scandir", "a", errno.EACCES, ["b.jpg"]),
        ("scandir", "a", errno.ENOENT, ["b.jpg"]),  # moved away
        ("scandir", "a", errno.ESTALE, ["b.jpg"]),
        ("stat", "1.jpg", errno.EACCES, ["b.jpg"]),  # in a folder of mode r--
        ("stat", "b.jpg", errno.ENAMETOOLONG, ["a/1.jpg"]),  # 300 bytes, on a disk that takes them
        ("stat", "b.jpg", errno.ENOENT, ["a/1.jpg"]),
    ],
)
def test_what_cannot_be_listed_is_counted_and_ends_nothing(tmp_path, monkeypatch, caplog, call, name, number, listed):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1.jpg").write_bytes(b"1")
    (tmp_path / "b.jpg").write_bytes(b"2")
    bucket = open_bucket(str(tmp_path))
    monkeypatch.setattr(buckets.os, call, failing_at(getattr(os, call), name, number))
    assert keys(bucket) == listed
    deleted_meanwhile = call == "stat" and number == errno.ENOENT
    assert ("1 names are left out, such as" in caplog.text) is not deleted_meanwhile


def test_the_root_itself_must_be_readable(tmp_path, monkeypatch):
    for number in (errno.EACCES, errno.ENOENT):
        bucket = open_bucket(str(tmp_path))
        with monkeypatch.context() as patch, pytest.raises(OSError, match=tmp_path.name):
            patch.setattr(buckets.os, "scandir", failing_at(os.scandir, tmp_path.name, number))
            keys(bucket)


def test_a_link_to_itself_is_counted(photos, caplog):
    for name in ("round.jpg", "deep/round.jpg"):
        (photos / name).symlink_to(Path(name).name)
    assert keys(open_bucket(str(photos))) == ["a.jpg", "b.png", "deep/c.jpg", "deep/er/d e+#%.jpg"]
    assert "2 names are left out, such as 'deep/round.jpg': Too many levels of symbolic links" in caplog.text


def test_a_folder_of_1100_levels_is_listed_written_and_cleaned(tmp_path):
    key = "d/" * 1100 + "a.jpg"
    try:
        bucket = open_bucket(str(tmp_path / "deep"), create=True)
        bucket.write(key, b"1")
        assert keys(open_bucket(str(tmp_path / "deep"))) == [key]
        assert keys(open_bucket(f"{tmp_path}/deep/**/*.jpg")) == [key]
        left = bucket.path(key).with_name(".a.jpg.1-00000000.part")
        left.touch()
        os.utime(left, (0, 0))
        remove_left_aside(tmp_path)
        assert not left.exists()
    finally:
        subprocess.run(["rm", "-rf", tmp_path / "deep"], check=True)  # Python's own removal calls itself


def test_s3_large_files_go_in_parts_and_whole_or_not_at_all(s3_bucket, monkeypatch):  # noqa: F811
    monkeypatch.setattr(buckets, "PART_BYTES", 5 << 20)
    bucket, data = open_bucket(f"s3://{s3_bucket}/deep", create=True), os.urandom(11 << 20)
    tag = bucket.write("large", io.BytesIO(b"before" + data), metadata={"who": "me"})  # from its start
    file = io.BytesIO(b"before" + data)
    file.seek(6)
    later = bucket.write("large", file, metadata={"who": "me"})  # from where it stands
    assert bucket.read("large") == data and tag != later
    assert [(entry.key, entry.tag) for entry in bucket.entries()] == [("large", later)]
    assert s3_client().head_object(Bucket=s3_bucket, Key="deep/large")["Metadata"] == {"who": "me"}

    class Broken(io.BytesIO):
        def read(self, size=-1):
            if self.tell():
                raise OSError("the disk is gone")
            return super().read(size)

    with pytest.raises(OSError, match="the disk is gone"):
        bucket.write("other", Broken(data))
    assert [entry.key for entry in bucket.entries()] == ["large"]
    assert not s3_client().list_multipart_uploads(Bucket=s3_bucket).get("Uploads")


@pytest.mark.parametrize(
    "text",
    ["2026-11-22T22:19:22.125Z", "2026-11-22T22:19:22.000000+00:00", "Sun, 22 Nov 2026 22:19:22 GMT", "0", "1e9"],
)
def test_s3_times_are_what_botocore_makes_of_them(text):
    from botocore.utils import parse_timestamp

    assert s3.parse_time(text) == parse_timestamp(text)


PORTAL = b"<html><body>Please sign in</body></html>"  # XML as well


@pytest.fixture
def portal(troubled, monkeypatch):
    """Before a store; `portal` stands for a network's sign-in page, `signin` for the way to it."""
    close = {"Connection": "close"}  # what was put is not read
    monkeypatch.setitem(server.PAGES, "portal", lambda: server._page(200, PORTAL, "text/html", **close))
    monkeypatch.setitem(server.PAGES, "html", lambda: server._page(200, server.HTML, "text/html", **close))
    monkeypatch.setitem(server.PAGES, "signin", lambda: server._page(302, b"", Location="http://127.0.0.1:9/", **close))
    return troubled


@pytest.mark.parametrize("fault", ["portal", "html", "signin"])
def test_s3_answers_that_are_none_are_waited_out(portal, s3_bucket, monkeypatch, fault):  # noqa: F811
    bucket = open_bucket(f"s3://{s3_bucket}")
    for n in range(5):
        portal.script[f"/{s3_bucket}/{n}"] = [fault, "ok"]
        assert bucket.write(f"{n}", b"%d" % n) == hashlib.md5(b"%d" % n).hexdigest()
    asked = bucket.client.list_objects_v2
    monkeypatch.setattr(bucket.client, "list_objects_v2", lambda **options: asked(**options, MaxKeys=2))
    portal.script[f"/{s3_bucket}"] = ["ok", fault, "ok", fault, "ok"]
    assert keys(bucket) == [str(n) for n in range(5)]
    for read in (bucket.read, lambda key: bucket.read_tagged(key)[0], lambda key: b"".join(bucket.lines(key))):
        portal.script[f"/{s3_bucket}/3"] = [fault, "ok"]
        assert read("3") == b"3"
    portal.script[f"/{s3_bucket}/gone"] = [fault, "ok"]
    assert not bucket.exists("gone")
    assert not any(portal.script.values())


@pytest.mark.parametrize("fault", ["portal", "html", "signin"])
def test_a_portal_in_place_of_s3_is_named(portal, s3_bucket, monkeypatch, fault):  # noqa: F811
    bucket = open_bucket(f"s3://{s3_bucket}")
    bucket.write("a", b"1")
    monkeypatch.setenv("METRICGOLD_S3_PATIENCE_S", "0")
    portal.script = {f"/{s3_bucket}": [fault], f"/{s3_bucket}/a": [fault] * 4}
    ask = (lambda: keys(bucket), lambda: bucket.read("a"), lambda: bucket.write("a", b"2"), lambda: bucket.exists("a"))
    for request in ask:
        with pytest.raises(StoreLost, match=rf"^s3://{s3_bucket}/a?: .*\(tried for 0 s\)"):
            request()


def listing(num_keys: int, *, truncated: str, token: str = "", size: str = "<Size>1</Size>", count: int = 1) -> bytes:
    items = f'<Contents><Key>a</Key>{size}<ETag>"0"</ETag></Contents>' * num_keys
    more = f"<IsTruncated>{truncated}</IsTruncated>{token}<KeyCount>{count}</KeyCount>"
    return f"<ListBucketResult>{more}{items}</ListBucketResult>".encode()


@pytest.mark.parametrize(
    "page",
    [
        listing(1, truncated="true"),  # where does it go on?
        listing(1, truncated="false", count=2),
        listing(1, truncated="false", size=""),
    ],
)
def test_a_listing_page_that_contradicts_itself_is_asked_for_again(portal, s3_bucket, monkeypatch, page):  # noqa: F811
    monkeypatch.setitem(server.PAGES, "page", lambda: server._page(200, page, "application/xml"))
    bucket = open_bucket(f"s3://{s3_bucket}")
    bucket.write("real", b"1")
    portal.script[f"/{s3_bucket}"] = ["page", "ok"]
    assert keys(bucket) == ["real"]
    assert not any(portal.script.values())


def test_reading_what_was_listed(tmp_path, s3_bucket):  # noqa: F811
    for bucket in (Folder(tmp_path), open_bucket(f"s3://{s3_bucket}")):
        tag = bucket.write("a", b"old")
        assert bucket.read("a", tag=tag) == b"old"
        assert bucket.read("a", 2, tag=tag) == b"ol"
        bucket.write("a", b"new")
        for limit in (-1, 2):
            with pytest.raises(ConditionFailed, match="/a was replaced after it had been listed"):
                bucket.read("a", limit, tag=tag)
    large = io.BytesIO(bytes(buckets.PART_BYTES + 1))
    tag = bucket.write("large", large)
    (listed,) = (entry.tag for entry in bucket.entries() if entry.key == "large")
    assert listed == tag
    assert bucket.read("large", tag=tag) == large.getvalue()


def test_a_file_that_changes_while_it_is_read(tmp_path):
    class Slow(Folder):
        def path(self, key):
            path = super().path(key)
            return SimpleNamespace(open=lambda mode: _Changing(path))

    class _Changing(io.FileIO):
        def read(self, size=-1):
            data = super().read(size)
            with Path(self.name).open("ab") as file:
                file.write(b"more")
            return data

    (tmp_path / "a").write_bytes(b"old")
    (entry,) = Folder(tmp_path).entries()
    with pytest.raises(ConditionFailed, match="was replaced"):
        Slow(tmp_path).read("a", tag=entry.tag)


@pytest.mark.parametrize("create", [True, False])
@pytest.mark.parametrize("slip", ["s3:/bucket/x", "S3:/bucket", "s3:bucket", "s3:", "gs:/bucket/x", "https:/host/x"])
def test_an_address_with_a_slash_too_few_is_no_folder(tmp_path, monkeypatch, slip, create):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=f"{slip}: expected a path or s3://bucket/prefix"):
        open_bucket(slip, create=create)
    assert not list(tmp_path.iterdir())
    assert open_bucket(f"./{slip}", create=True).root.is_dir()  # whoever means such a folder
