"""Every stage of dvc.yaml on a disk that is full, more or less: one line, nothing half, and the same command resumes.

Part of `make test-stores`. The disk is a tmpfs in a mount namespace of a program of its own, `main`, in which all
stages run one after the other: alone on an empty disk, and again on one that is filled up before each.
"""

import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from metricgold.storage import digest_file
from tests.conftest import TINY
from tests.flows.toy import make_project
from tests.stores import TINY_CHANGES
from tests.support import ROOT

ROOMS = (0, 4 << 10, 16 << 10, 48 << 10)  # bytes that are left
DATASET, BENCHMARK = "tartanair-synthetic", "nyuv2-synthetic"
CHANGES = TINY_CHANGES | {"benchmarks": [BENCHMARK], "synthesize_benchmark": {"height": 24, "num_scenes": 1}}
FILLER = Path("filler")


def stages() -> dict[str, tuple[list[list[str]], list[str]]]:
    """Commands and outputs of each stage, with the item of its matrix."""
    found = {}
    for name, stage in yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"].items():
        item = BENCHMARK if name.startswith("benchmark") else DATASET
        text = json.dumps(stage).replace("${item}", item).replace("${item.dataset}", item)
        stage = json.loads(text)
        commands = [stage["cmd"]] if isinstance(stage["cmd"], str) else stage["cmd"]
        outs = [
            out if isinstance(out, str) else next(iter(out)) for key in ("outs", "plots") for out in stage.get(key, [])
        ]
        found[name] = [command.split()[1:] for command in commands], outs
    return found


def lay_out(folder: Path) -> None:
    """A tiny project, as working folder."""
    folder.mkdir()
    os.chdir(folder)
    values = TINY.model_dump(mode="json")
    for section, changes in CHANGES.items():
        values[section] = values.get(section, {}) | changes if isinstance(changes, dict) else changes
    Path("params.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    shutil.copytree(ROOT / "data_manifests", "data_manifests")


def invoke(words: list[str]) -> dict[str, Any]:
    """Exit code, last line and whether there was a traceback of one command."""
    from click.testing import CliRunner

    from metricgold.cli import main

    result = CliRunner().invoke(main, words)
    is_unexpected = result.exception is not None and not isinstance(result.exception, SystemExit)
    last = (result.stderr.strip().splitlines() or [""])[-1]
    return {"code": result.exit_code, "said": repr(result.exception) if is_unexpected else last}


def fill(room: int) -> None:
    """Take the disk but for some bytes."""
    FILLER.unlink(missing_ok=True)
    with FILLER.open("wb", buffering=0) as file:
        free = os.statvfs(".").f_bavail * os.statvfs(".").f_frsize
        os.posix_fallocate(file.fileno(), 0, max(1, free - room))


def attempt(words: list[str], room: int) -> dict[str, Any]:
    """What a command says with so much room; done is done, whatever the room."""
    fill(room)
    try:
        return invoke(words)
    finally:
        FILLER.unlink()


def digests(outs: list[str]) -> dict[str, str]:
    """Of all files of a stage."""
    files = [file for out in map(Path, outs) for file in (out.rglob("*") if out.is_dir() else [out])]
    return {str(file): digest_file(file) for file in files if file.is_file()}


def tear_lock_file(project: Path) -> dict[str, Any]:
    """What a flow's stage leaves of dvc.lock where its command fills the disk up, and DVC then writes there."""
    from prefect.logging import disable_run_logger

    from flows.child_processes import ChildFailed
    from flows.dvc_stages import run_stage

    os.chdir(make_project(project))
    stage: dict[str, Any] = {"cmd": "touch done", "outs": [{"done": {"cache": False}}]}
    Path("dvc.yaml").write_text(yaml.safe_dump({"stages": {"fill": stage}}))
    with disable_run_logger():
        run_stage.fn("fill", 1)
        whole = Path("dvc.lock").read_text()
        longer = "x" * (16 << 10)  # than what DVC frees as it begins to write
        stage |= {"cmd": f"touch done; cat /dev/zero > {FILLER}; true {longer}"}
        Path("dvc.yaml").write_text(yaml.safe_dump({"stages": {"fill": stage}}))
        try:
            run_stage.fn("fill", 1)
            failed = ""
        except ChildFailed as failure:
            failed = str(failure)
    return {"failed": failed, "is_whole": Path("dvc.lock").read_text() == whole}


def main() -> None:
    """Print as JSON what was said and what differs in the end, by stage, and of a torn dvc.lock."""
    logging.basicConfig(handlers=[logging.NullHandler()])
    folder, told, alone = Path(sys.argv[1]), {}, {}
    lay_out(folder / "alone")
    for name, (commands, outs) in stages().items():
        for words in commands:
            assert (answer := invoke(words))["code"] == 0, (words, answer)
        alone[name] = digests(outs)
    (folder / "disk").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "none", folder / "disk"], check=True)
    lay_out(folder / "disk/project")
    for name, (commands, outs) in stages().items():
        print(name, file=sys.stderr, flush=True)
        answers = [attempt(words, room) for words in commands for room in ROOMS]
        last = [invoke(words) for words in commands]
        now = digests(outs)
        differ = sorted(file for file in alone[name] | now if alone[name].get(file) != now.get(file))
        told[name] = {"full": answers, "last": last, "differ": differ}
    told["dvc.lock"] = tear_lock_file(folder / "disk/dvc")
    os.chdir("/")
    print(json.dumps(told))


@pytest.fixture(scope="module")
def told(tmp_path_factory) -> dict[str, Any]:
    command = ["unshare", "-m" if os.geteuid() == 0 else "-rm"]
    if subprocess.run([*command, "true"], capture_output=True).returncode:
        pytest.skip("no mount namespace of its own, as in some containers")
    command += [sys.executable, "-m", "tests.full_disk", str(tmp_path_factory.mktemp("full"))]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True)
    assert done.returncode == 0
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("stage", stages())
def test_a_full_disk_is_one_line_and_the_same_command_resumes(told, stage):
    answers = told[stage]["full"]
    assert answers[0]["code"] == 1, answers
    for answer in answers:
        is_told = answer["said"].startswith("Error: ") and "[Errno 28]" in answer["said"]
        assert answer["code"] == 0 or (answer["code"] == 1 and is_told), answer
    assert all(answer["code"] == 0 for answer in told[stage]["last"]), told[stage]["last"]
    assert not told[stage]["differ"]


def test_a_lock_file_that_dvc_tears_as_it_writes_is_put_back(told):
    answer = told["dvc.lock"]
    assert "No space left on device" in answer["failed"]
    assert answer["is_whole"]


if __name__ == "__main__":
    main()
