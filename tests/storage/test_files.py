import errno
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors import SafetensorError

from metricgold.storage.files import (
    LEFT_S,
    clear_left,
    cut_rows,
    digest_file,
    digest_folder,
    digest_json,
    only_writer,
    paths_below,
    read_json,
    read_rows,
    remove_left_aside,
    row_line,
    write_aside,
    write_json,
)
from tests.support.power_cut import PowerCut, below


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "deep" / "file"
    with write_aside(path) as aside:
        aside.write_text("one")
        assert not path.exists()
    assert path.read_text() == "one"
    with pytest.raises(RuntimeError), write_aside(path) as aside:
        aside.write_text("two, half wr")
        raise RuntimeError
    assert path.read_text() == "one"
    assert names(path.parent) == ["file"]


def test_a_name_as_long_as_names_may_be(tmp_path):
    one, other = ("ä" * 100 + letter * 55 for letter in "ab")
    with write_aside(tmp_path / one) as first, write_aside(tmp_path / other) as second:
        first.write_text("one")
        second.write_text("other")
    assert [(tmp_path / name).read_text() for name in (one, other)] == ["one", "other"]


def test_what_killed_writers_left_aside_is_removed_and_nothing_else(tmp_path):
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom metricgold.storage.files import write_aside\n"
        "with write_aside(Path(sys.argv[1])) as aside:\n"
        "    aside.write_text('half'); print(aside, flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "deep" / "a\nb.png")]
    writer = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    left = Path(writer.stdout.readline() + writer.stdout.readline().rstrip("\n"))
    os.utime(left, (time.time() - 2 * LEFT_S,) * 2)  # as a clock that is set shows it
    remove_left_aside(tmp_path)
    assert left.exists()  # its writer lives
    writer.kill()
    writer.communicate()
    with write_aside(tmp_path / "mine") as aside:
        aside.touch()
        theirs, old = (tmp_path / f".{name}.{writer.pid}-00000000.part" for name in ("theirs", "old"))
        for path in (theirs, old, tmp_path / ".notes.part", tmp_path / ".hidden" / left.name):
            path.parent.mkdir(exist_ok=True)
            path.touch()
        os.utime(old, (time.time() - 2 * LEFT_S,) * 2)
        remove_left_aside(tmp_path)
        assert not left.exists() and not old.exists() and aside.exists()
    assert names(tmp_path) == [".hidden", ".notes.part", theirs.name, "deep", "mine"]
    assert names(tmp_path / ".hidden") == [left.name]


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
        shutil.Error([("a", "b", "[Errno 28] No space left on device: 'a' -> 'b'")] * 3),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_full_disk_is_named(tmp_path, error):
    path = tmp_path / "file"
    with pytest.raises(OSError, match=f"'{path}'") as caught, write_aside(path) as aside, aside.open("wb"):
        raise error
    assert caught.value.errno == errno.ENOSPC and names(tmp_path) == []


def put_folder(folder, name):
    with write_aside(folder, marks=["*.mark"]) as aside:
        aside.mkdir()
        (aside / name).write_text(name)
        (aside / "our.mark").touch()


CANNOT_EXCHANGE = "metricgold.storage.files._exchange", lambda one, other: False


@pytest.mark.parametrize("can_exchange", [True, False])
def test_a_folder_replaces_another_as_a_whole(tmp_path, monkeypatch, can_exchange):
    if not can_exchange:
        monkeypatch.setattr(*CANNOT_EXCHANGE)
    folder = tmp_path / "folder"
    for name in ("old", "new"):
        put_folder(folder, name)
    assert names(folder) == ["new", "our.mark"] and names(tmp_path) == ["folder"]


def test_a_folder_that_was_not_made_here_is_never_replaced(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    put_folder(folder, "into an empty one")
    (folder / "our.mark").unlink()
    for marks in ([], ["*.mark"]):
        with pytest.raises(FileExistsError, match=r"folder holds .*not made here"):  # noqa: SIM117
            with write_aside(folder, marks=marks) as aside:
                aside.mkdir()
    assert names(folder) == ["into an empty one"] and names(tmp_path) == ["folder"]
    (tmp_path / "file").write_text("theirs")
    with pytest.raises(FileExistsError, match="expected a folder, found a file"):
        put_folder(tmp_path / "file", "new")
    (tmp_path / "link").symlink_to(folder)
    (folder / "our.mark").touch()
    put_folder(tmp_path / "link", "new")  # the link alone is replaced
    assert names(folder) == ["into an empty one", "our.mark"] and names(tmp_path / "link") == ["new", "our.mark"]


KILLED_AT_RENAME = """
import os, signal, sys
from pathlib import Path
from metricgold.storage import files

if sys.argv[2] == "two renames":
    files._exchange = lambda one, other: False
calls, wanted = [], int(sys.argv[3])
for name in ("rename", "_exchange"):
    owner = Path if name == "rename" else files
    def killed(*args, call=getattr(owner, name)):
        outcome = call(*args)
        calls.append(name)
        if len(calls) == wanted:
            os.kill(os.getpid(), signal.SIGKILL)
        return outcome
    setattr(owner, name, killed)
with files.write_aside(Path(sys.argv[1]), marks=["*.mark"]) as aside:
    aside.mkdir()
    (aside / "new").touch()
    (aside / "our.mark").touch()
    if not wanted:
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("way", ["one exchange", "two renames"])
@pytest.mark.parametrize("call", [0, 1, 2, 3])
def test_a_kill_while_a_folder_is_replaced_loses_neither(tmp_path, way, call):
    folder = tmp_path / "models" / "folder"
    put_folder(folder, "old")
    child = subprocess.run([sys.executable, "-c", KILLED_AT_RENAME, str(folder), way, str(call)])
    # That of 0 is before any call; an exchange is one of them, and where it fails two renames follow.
    assert child.returncode == (0 if way == "one exchange" and call > 1 else -9)
    assert folder.exists() or (way, call) == ("two renames", 2)
    with only_writer(folder, tmp_path / "lock"):  # the next run
        assert names(folder.parent) == ["folder"]
        has_old = call == 0 or (way == "two renames" and call < 3)
        assert names(folder) == ["old" if has_old else "new", "our.mark"]


def test_what_killed_writers_left_beside_a_folder_is_cleared(tmp_path):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    with write_aside(tmp_path / "folder") as mine:
        tag = mine.name.rpartition("-")[2].removesuffix(".part")
        theirs = [f".folder.{ended.pid}-00000000.part", f".folder2.{ended.pid}-{tag}.part", ".folder.notes", "folder"]
        for name in theirs:
            (tmp_path / name).mkdir()
        mine.mkdir()
        (tmp_path / f".folder.{ended.pid}-{tag}.part").mkdir()
        (tmp_path / f".folder.{ended.pid}-{tag}.old").mkdir()
        clear_left(tmp_path / "folder")
        assert names(tmp_path) == sorted([*theirs, mine.name])


def test_what_is_written_aside_is_on_the_disk_with_its_folders(tmp_path, monkeypatch):
    """A folder's files before its name appears; a file's and a folder's names before whatever is written next."""
    before_it = []

    def vouched(source, target):
        return [*(below(source) if source.is_dir() else ()), *before_it]

    cut = PowerCut(monkeypatch, tmp_path, vouched)
    for name in ("deep/er/file", "deep/folder", "other/folder", "last"):
        with write_aside(tmp_path / name) as aside:
            if name.endswith("folder"):
                (aside / "sub").mkdir(parents=True)
                (aside / "sub" / "weights").write_text("w")
                (aside / "link").symlink_to("nowhere")
            else:
                aside.write_text("f")
        before_it.append(tmp_path / name)
    assert cut.seen == ["deep/folder", "other/folder", "last"] and cut.lost == []
    with write_aside(tmp_path / "quick", durable=False) as aside:
        aside.write_text("f")
    assert not cut.has(tmp_path / "quick")


def test_a_disk_that_cannot_sync_folders_is_no_error_and_one_that_fails_is(tmp_path, monkeypatch):
    def refuse(number):
        def fsync(descriptor):
            if Path(f"/proc/self/fd/{descriptor}").is_dir():
                raise OSError(number, os.strerror(number))

        return fsync

    monkeypatch.setattr(os, "fsync", refuse(errno.EINVAL))
    write_json(tmp_path / "a", 1)
    monkeypatch.setattr(os, "fsync", refuse(errno.EIO))
    with pytest.raises(OSError, match="Input/output error"):
        write_json(tmp_path / "a", 2)


def test_json_has_equal_bytes_for_equal_values_and_no_nan(tmp_path):
    write_json(tmp_path / "a", {"b": 1, "a": [1.5]})
    write_json(tmp_path / "b", {"a": [1.5], "b": 1})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert read_json(tmp_path / "a") == {"a": [1.5], "b": 1}
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a", float("nan"))
    assert read_json(tmp_path / "a") == {"a": [1.5], "b": 1}
    (tmp_path / "b").write_text("{")
    with pytest.raises(ValueError, match="b is not JSON"):
        read_json(tmp_path / "b")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"[" * 100_000, "nested too deep"),
        (b'{"a":' * 100_000, "nested too deep"),
        (b"\xff\xfe\x00", "."),
        (b"[1, \xe4]", "."),
        (b"9" * 5000, "digits"),
        (b"", "Expecting value"),
    ],
    ids=range(6),
)
def test_what_is_no_json_is_named_in_one_line(tmp_path, content, problem):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"^{path} is not JSON: .*{problem}") as raised:
        read_json(path)
    assert len(str(raised.value).splitlines()) == 1


def test_rows_of_json_lines_without_a_last_one_cut_short(tmp_path):
    path = tmp_path / "rows.jsonl"
    assert read_rows(path) == []
    path.write_text('{"step": 1}\n{"step": 2, "text": "a\u2028b"}\n{"ste', encoding="utf-8")
    assert read_rows(path) == [{"step": 1}, {"step": 2, "text": "a\u2028b"}]
    cut_rows(path, 1)
    assert path.read_text() == row_line({"step": 1}) == '{"step": 1}\n'
    path.write_text('{"step"')
    cut_rows(path, 1)
    assert path.read_text() == "", "what is appended begins a line"
    path.write_text('{"step": 1}\n{"ste\n')
    with pytest.raises(ValueError, match=r"rows\.jsonl, line 2 is not JSON"):
        read_rows(path)


def test_digests_are_sha256_and_md5_of_the_bytes(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")
    assert digest_file(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert digest_file(tmp_path / "abc", "md5") == "900150983cd24fb0d6963f7d28e17f72"
    assert digest_json({"b": 1, "a": 2}) == digest_json({"a": 2, "b": 1}) != digest_json({"a": 2, "b": 2})


def test_a_folder_s_digest_knows_names_and_bytes(tmp_path):
    digests = set()
    for name, text in [("a", "x"), ("b", "x"), ("a", "y"), ("sub/a", "x")]:
        folder = tmp_path / f"{len(digests)}"
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_text(text)
        digests.add(digest_folder(folder))
    assert len(digests) == 4


def test_names_from_a_file_stay_below_the_folder(tmp_path):
    (tmp_path / "in/real").mkdir(parents=True)
    (tmp_path / "in/way").symlink_to(tmp_path)
    (tmp_path / "in/own").symlink_to(tmp_path / "in/real")
    names = ["a", "real/b..c", "new/d/e", "own/f", "way"]
    assert paths_below(tmp_path / "in", names) == [tmp_path / "in" / name for name in names]
    for name in ("../x", "real/../../x", "/etc/passwd", "", ".", "a//b", "a/", "way/x", "own/../../x", "a\0b", None, 3):
        with pytest.raises(ValueError, match=r"in: the name .* would leave the folder, refused"):
            paths_below(tmp_path / "in", ["a", name])


def test_one_writer_at_a_time_and_a_dead_one_holds_nothing(tmp_path):
    folder = tmp_path / "out"
    code = "import sys, time; from metricgold.storage.files import only_writer\nwith only_writer(sys.argv[1]):\n"
    code += "    print('held', flush=True); time.sleep(60)"
    child = subprocess.Popen([sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "held\n"
    with pytest.raises(BlockingIOError, match="out is being written by another process"), only_writer(folder):
        pass
    child.kill()
    child.wait()
    child.stdout.close()
    with only_writer(folder):
        (tmp_path / "mine").touch()
    assert (tmp_path / "mine").exists()


def test_the_digest_of_a_folder_follows_links(tmp_path):
    model, elsewhere = tmp_path / "model", tmp_path / "elsewhere" / "unet"
    plain = tmp_path / "plain" / "unet"
    for folder in (model, elsewhere, plain):
        folder.mkdir(parents=True)
    for folder in (elsewhere, plain):
        (folder / "weights").write_bytes(b"1")
    (model / "unet").symlink_to(elsewhere)
    assert digest_folder(model) == digest_folder(plain.parent)
    (elsewhere / "weights").write_bytes(b"2")
    assert digest_folder(model) != digest_folder(plain.parent)


def test_the_digest_of_a_folder_refuses_what_has_no_bytes(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "up").symlink_to(tmp_path)
    with pytest.raises(ValueError, match="deep/up: a link to a folder that it is in"):
        digest_folder(tmp_path)
    (tmp_path / "deep" / "up").unlink()
    (tmp_path / "deep" / "weights").symlink_to("nowhere")
    with pytest.raises(FileNotFoundError, match="deep/weights"):
        digest_folder(tmp_path)
    (tmp_path / "deep" / "weights").unlink()
    os.mkfifo(tmp_path / "deep" / "weights")
    with pytest.raises(ValueError, match="deep/weights: expected a file"):
        digest_folder(tmp_path)
    with pytest.raises(FileNotFoundError, match="missing"):
        digest_folder(tmp_path / "missing")
