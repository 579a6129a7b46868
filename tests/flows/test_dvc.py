"""The real dvc.yaml: what reruns, what does not, and in which order. The stages are stand-ins."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import yaml
from prefect.logging import disable_run_logger

from flows import child_processes, dvc_stages
from flows.child_processes import DVC, ChildFailed, ask_child, end, run_child
from flows.dvc_files import forget_torn_locks, keep_or_restore_lock_file
from flows.dvc_stages import run_stage, run_until_done, stage_graph
from metricgold.params import load_params
from tests.flows.toy import calls, make_project, quiet_environment
from tests.support import ROOT
from tests.support.waiting import PATIENCE_S, wait_until

DATASETS = ["hypersim-synthetic", "vkitti2-synthetic", "tartanair-synthetic"]


def _repro(project: Path) -> list[str]:
    command = [sys.executable, "-m", "dvc", "repro"]
    done = subprocess.run(command, cwd=project, env=quiet_environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return calls(project)


def _change(project: Path, **sections) -> None:
    params = yaml.safe_load((project / "params.yaml").read_text())
    for section, values in sections.items():
        params[section] = params[section] | values if isinstance(values, dict) else values
    (project / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))


@pytest.fixture(scope="module")
def reproduced(tmp_path_factory):
    project = make_project(tmp_path_factory.mktemp("dvc") / "project")
    return project, _repro(project)


def test_every_stage_once_in_an_order_that_works(reproduced):
    _, asked = reproduced
    expected = [f"{word} {name}" for word in ("synthesize", "download", "inspect", "encode") for name in DATASETS]
    assert sorted(asked) == sorted([*expected, "backbone", "vae-floor", "depth-vae", "train", "evaluate", "headline"])
    words = [line.split()[0] for line in asked]
    assert words.index("depth-vae") < words.index("train") < words.index("evaluate") < words.index("headline")
    assert words[-1] == "headline"


def test_nothing_reruns_and_git_is_left_what_dvc_does_not_keep(reproduced):
    project, _ = reproduced
    assert _repro(project) == []
    status = subprocess.run(
        ["git", "status", "--porcelain", "-uall"], cwd=project, capture_output=True, text=True, check=True
    )
    assert {line.removeprefix("?? ") for line in status.stdout.splitlines()} == {"dvc.lock", *_not_cached(project)}


def _not_cached(project: Path) -> set[str]:
    """Files that dvc.yaml keeps out of DVC's cache."""
    from dvc.repo import Repo

    with Repo(str(project)) as repo:
        return {str(out) for out in repo.index.outs if not out.use_cache}


def test_what_describes_a_teams_own_data_belongs_to_git_and_its_frames_do_not(project):
    mine = project / "data/raw/mine"
    mine.mkdir(parents=True)
    for name in ("dataset.yaml", "frames.csv", "ledger.json", "a.png"):
        (mine / name).touch()
    ignored = subprocess.run(["git", "check-ignore", *mine.iterdir()], cwd=project, capture_output=True, text=True)
    assert [Path(line).name for line in ignored.stdout.split()] == ["a.png"]


def test_a_knob_reruns_what_it_touches(reproduced):
    project, _ = reproduced
    _change(project, predict={"seed": 5}, promote={"min_delta1": 0.5}, download={"num_workers": 2})
    assert _repro(project) == []
    _change(project, evaluate={"seed": 5})
    assert _repro(project) == ["evaluate", "headline"]
    _change(project, train={"lr": 0.002})
    assert _repro(project) == ["train", "evaluate"]
    _change(project, vae_floor={"frames_per_dataset": 3})
    assert _repro(project) == ["vae-floor"]
    _change(project, depth_vae={"num_steps": 3})
    assert _repro(project) == ["depth-vae", "train", "evaluate"]
    _change(project, encode={"batch_size": 8})
    assert _repro(project) == [
        *(f"encode {name}" for name in sorted(DATASETS, key=DATASETS.index)),
        "vae-floor",
        "train",
    ]
    _change(project, evaluate={"version": 99})
    assert _repro(project) == ["evaluate"]


def test_a_real_data_set_takes_the_same_row_of_stages(project):
    _change(project, datasets=["hypersim"])
    words = [
        "synthesize hypersim",
        "download hypersim",
        "inspect hypersim",
        "backbone",
        "encode hypersim",
        "vae-floor",
        "depth-vae",
    ]
    assert sorted(_repro(project)) == sorted([*words, "train", "evaluate", "headline"])


def test_a_benchmark_is_measured_after_the_model_and_makes_nothing_else_rerun(project):
    _repro(project)
    _change(project, benchmarks=["nyuv2-synthetic"])
    assert _repro(project) == [
        *(f"{word} nyuv2-synthetic" for word in ("synthesize", "download", "benchmark")),
        "headline",
    ]
    assert _repro(project) == []
    _change(project, benchmark={"seed": 5})
    assert _repro(project) == ["benchmark nyuv2-synthetic"]
    graph = stage_graph()
    assert graph["benchmark-data@nyuv2-synthetic"] == set() and "benchmark-data@nyuv2-synthetic" not in graph["train"]
    assert {"train", "benchmark-data@nyuv2-synthetic"} <= graph["benchmark@nyuv2-synthetic"]
    _change(project, benchmarks=[])
    assert _repro(project) == ["headline"] and len(stage_graph()) == 4 * 3 + 6


def test_an_experiment_keeps_the_empty_list_of_benchmarks(project):
    _repro(project)
    subprocess.run(["git", "add", "-A"], cwd=project, env=quiet_environment(), check=True)
    subprocess.run(["git", "commit", "-qm", "measured"], cwd=project, env=quiet_environment(), check=True)
    for seed in ("7", "8"):  # the second reads what the first has written
        command = [sys.executable, "-m", "dvc", "exp", "run", "-S", f"++evaluate.seed={seed}"]
        done = subprocess.run(command, cwd=project, env=quiet_environment(), capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        assert calls(project) == ["evaluate", "headline"]
        assert load_params(project / "params.yaml").benchmarks == []


def test_graph_is_dvcs_own_in_running_order(project):
    graph = stage_graph()
    order = list(graph)
    assert len(order) == 4 * 3 + 6
    assert all(order.index(need) < order.index(stage) for stage, needs in graph.items() for need in needs)
    rows = {f"{word}@{name}" for word in ("download", "encode") for name in DATASETS}  # raw frames for validation
    assert graph["train"] == {"backbone", "depth-vae", *rows}
    assert list(stage_graph(["download@vkitti2-synthetic"])) == [
        "synthesize@vkitti2-synthetic",
        "download@vkitti2-synthetic",
    ]
    with pytest.raises(ValueError, match="download@kitti"):
        stage_graph(["download@kitti"])


def test_graph_of_the_demo_measures_its_twins_last(project):
    shutil.copy(ROOT / "params.yaml", "params.yaml")
    graph = stage_graph()
    benchmarks = load_params(project / "params.yaml").benchmarks
    assert len(benchmarks) == 5 and len(graph) == 4 * 3 + 6 + 2 * 5
    for name in benchmarks:
        assert graph[f"benchmark-data@{name}"] == set()
        assert {"train", f"benchmark-data@{name}"} <= graph[f"benchmark@{name}"]


def test_no_dvc_project_is_said_plainly(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=str(tmp_path)):
        stage_graph()


def test_child_failure_carries_the_last_lines():
    lines = []
    code = "import sys; print('first'); print('why', file=sys.stderr); sys.exit(3)"
    with pytest.raises(ChildFailed, match=r"(?s)code 3.*why"):
        run_child([sys.executable, "-c", code], lines.append)
    assert sorted(lines) == ["first", "why"]


def test_child_answers_in_json_and_no_is_an_answer():
    lines = []
    code = "import sys; print('busy', file=sys.stderr); print('{\"passed\": false}'); sys.exit(1)"
    assert ask_child([sys.executable, "-c", code], lines.append) == {"passed": False}
    assert lines == ["busy"]
    with pytest.raises(ChildFailed, match="code 2"):
        ask_child([sys.executable, "-c", "import sys; sys.exit(2)"], lines.append)


@pytest.mark.parametrize(("own", "seen"), [(None, "10000"), ("7", "7")])
def test_threads_of_a_child_wait_in_a_short_loop_unless_told_otherwise(own, seen, monkeypatch):
    if own:
        monkeypatch.setenv("GOMP_SPINCOUNT", own)
    else:
        monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    lines = []
    run_child([sys.executable, "-c", "import os; print(os.environ['GOMP_SPINCOUNT'])"], lines.append)
    assert lines == [seen]


def test_s3_of_the_project_s_env_file_reaches_children_of_a_worker_that_lacks_it(tmp_path, monkeypatch):
    """Read anew for each child; what was exported before the worker comes first, and nothing else is taken."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID", raising=False)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "exported")
    lines = ["export AWS_ACCESS_KEY_ID='a$b#c'", "AWS_SECRET_ACCESS_KEY=other", "MLFLOW_TRACKING_URI=elsewhere"]
    code = "import os, sys; print(*(os.environ.get(name) for name in sys.argv[1:]))"
    names = ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "MLFLOW_TRACKING_URI"]
    monkeypatch.delenv(names[2], raising=False)
    seen = []
    run_child([sys.executable, "-c", code, *names], seen.append)
    Path(".env").write_text("\n".join(lines))
    run_child([sys.executable, "-c", code, *names], seen.append)
    assert seen == ["None exported None", "a$b#c exported None"]


def test_a_job_without_credentials_says_where_a_worker_finds_new_ones(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "model").mkdir()
    (tmp_path / "model/model_index.json").write_text("{}")  # it is loaded later
    with pytest.raises(ChildFailed, match=r"(?s)no complete S3 credentials.*those in the project's \.env") as failed:
        ask_child(["metricgold", "predict", "s3://none/x", "depth", "--model", "model", "--json"], print)
    assert failed.value.code == 77 and not Path("depth/receipt.jsonl").exists()


def test_a_dvc_that_must_end_gives_its_locks_back(tmp_path, monkeypatch):
    monkeypatch.chdir(_sleeper(tmp_path / "project"))
    repro = [*DVC, "repro", "--single-item", "sleeper"]
    child = subprocess.Popen(repro, env=quiet_environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_until(Path("started").exists, every_s=0.05, what="the stage")
    assert json.loads(LOCKS.read_text())["write"]
    end(child)
    assert child.returncode == 255  # its own code: no signal ended it
    assert not json.loads(LOCKS.read_text()).get("write")
    forget_torn_locks()
    assert LOCKS.exists()


def test_what_a_killed_dvc_had_started_ends_too(tmp_path, monkeypatch):
    monkeypatch.chdir(_sleeper(tmp_path / "project"))
    monkeypatch.setattr(child_processes, "ORPHANS_AFTER_S", 0.2)

    def kill_dvc(line: str) -> None:
        if line.startswith("> "):
            wait_until(Path("started").exists)
            (dvc,) = (one for one in psutil.Process().children() if "dvc" in one.cmdline())
            stage.extend(dvc.children(recursive=True))
            dvc.kill()

    stage: list[psutil.Process] = []
    with pytest.raises(ChildFailed, match="code -9"):
        run_child([*DVC, "repro", "--single-item", "sleeper"], kill_dvc)
    assert stage and psutil.wait_procs(stage, timeout=PATIENCE_S)[1] == []


def test_what_a_killed_flow_had_started_saves_and_ends(project):
    """Also where it prints meanwhile, and nobody is left to read."""
    Path("dvc.yaml").write_text(yaml.safe_dump({"stages": {"train": {"cmd": "metricgold train"}}}))
    Path("wait").touch()
    guarded = f"Guard(uuid4(), None); run_child({[*DVC, 'repro', '--single-item', 'train']}, print)"
    lines = ["from uuid import uuid4", "from flows.guard import Guard", "from flows.child_processes import run_child"]
    command = [sys.executable, "-c", "\n".join([*lines, guarded])]
    with subprocess.Popen(command, env=quiet_environment(), stdout=subprocess.DEVNULL) as flow:
        wait_until(Path("started").exists, what="the trainer")
        started = psutil.Process(flow.pid).children(recursive=True)
        flow.kill()
    assert started and psutil.wait_procs(started, timeout=PATIENCE_S)[1] == []
    assert Path("saved").exists()


def test_locks_that_a_killed_dvc_left_torn_stop_nobody(tmp_path, monkeypatch):
    monkeypatch.chdir(_sleeper(tmp_path / "project", seconds=0))
    forget_torn_locks()  # where there are none yet
    LOCKS.write_text("")
    repro = [*DVC, "repro", "--single-item", "sleeper"]
    with pytest.raises(ChildFailed, match="rwlock"):
        run_child(repro, lambda _: None)
    forget_torn_locks()
    run_child(repro, lambda _: None)
    assert Path("started").exists()


@pytest.mark.parametrize(
    "cut", [b"", b"schema: '2", b"schema: '2.0'\nstages:\n", b"    cmd: touch started; sleep 0\n    outs:\n"]
)
def test_a_lock_file_that_a_full_disk_has_torn_is_put_back(tmp_path, monkeypatch, cut):
    """Empty, cut within a line, or at the end of one whose value is missing or whose list is empty."""
    monkeypatch.chdir(_sleeper(tmp_path / "project", seconds=0))
    assert not keep_or_restore_lock_file()  # where there is none yet
    repro, lock = [*DVC, "repro", "--single-item", "sleeper"], Path("dvc.lock")
    run_child(repro, lambda _: None)
    whole = lock.read_bytes()
    torn = whole[: whole.index(cut) + len(cut)]
    lock.write_bytes(torn)
    assert not keep_or_restore_lock_file()
    assert lock.read_bytes() == torn  # nothing was kept yet
    lock.write_bytes(whole)
    for _ in range(2):
        assert not keep_or_restore_lock_file()
        lock.write_bytes(torn)
        assert keep_or_restore_lock_file()
        assert lock.read_bytes() == whole


def test_a_whole_lock_file_of_another_commit_stays(tmp_path, monkeypatch):
    monkeypatch.chdir(_sleeper(tmp_path / "project", seconds=0))
    run_child([*DVC, "repro", "--single-item", "sleeper"], lambda _: None)
    keep_or_restore_lock_file()
    other = Path("dvc.lock").read_text().replace("sleeper", "other")
    Path("dvc.lock").write_text(other)
    assert not keep_or_restore_lock_file()
    assert Path("dvc.lock").read_text() == other


def test_a_stage_leaves_the_lock_file_whole_that_was_torn_beside_it(tmp_path, monkeypatch):
    monkeypatch.chdir(_sleeper(tmp_path / "project", seconds=0))
    with disable_run_logger():
        run_stage.fn("sleeper", 1)
    whole = Path("dvc.lock").read_bytes()
    tear = {"cmd": "head -c 60 dvc.lock > torn; cat torn > dvc.lock; false"}
    Path("dvc.yaml").write_text(yaml.safe_dump({"stages": {"sleeper": tear}}))
    with disable_run_logger(), pytest.raises(ChildFailed, match="cat torn"):
        run_stage.fn("sleeper", 1)
    assert Path("torn").read_bytes() == whole[:60]
    assert Path("dvc.lock").read_bytes() == whole


def test_a_stage_that_another_dvc_works_on_waits_and_says_for_whom(tmp_path, monkeypatch):
    monkeypatch.chdir(_sleeper(tmp_path / "project", until="[ -e told ]"))
    monkeypatch.setattr(dvc_stages, "BUSY_PAUSE_S", 0.2)
    repro, lines = [*DVC, "repro", "--single-item", "sleeper"], []
    with subprocess.Popen(repro, env=quiet_environment(), stdout=subprocess.DEVNULL) as other:

        def log(line: str) -> None:
            lines.append(line)
            if f"(PID {other.pid})" in line:
                Path("told").touch()

        wait_until(Path("started").exists, what="the other")
        run_until_done("sleeper", repro, log)
        assert other.wait(60) == 0
    assert Path("told").exists() and any("didn't change" in line for line in lines)  # the other has done it


def test_why_dvc_itself_fails_is_told(tmp_path, monkeypatch):
    monkeypatch.chdir(_sleeper(tmp_path / "project", seconds=0))
    Path("dvc.yaml").write_text(yaml.safe_dump({"stages": {"sleeper": {"cmd": "true", "outs": ["started"]}}}))
    with disable_run_logger(), pytest.raises(ChildFailed, match="output 'started' does not exist"):
        run_stage.fn("sleeper", 1)


LOCKS = Path(".dvc/tmp/rwlock")


def _sleeper(folder: Path, seconds: int = 60, until: str = "") -> Path:
    work = f"while ! {until}; do sleep 0.1; done" if until else f"sleep {seconds}"
    stage = {"cmd": f"touch started; {work}", "outs": [{"started": {"cache": False}}]}
    (make_project(folder) / "dvc.yaml").write_text(yaml.safe_dump({"stages": {"sleeper": stage}}))
    return folder


@pytest.mark.slow
def test_a_name_is_never_a_command(tmp_path):
    project = make_project(tmp_path / "project")
    _change(project, datasets=["x; touch PWNED", "x'; touch PWNED; '", "$(touch PWNED)"])
    command = [sys.executable, "-m", "dvc", "repro", "--keep-going"]
    done = subprocess.run(command, cwd=project, env=quiet_environment(), capture_output=True, text=True)
    assert "synthesize x; touch PWNED" in calls(project), done.stderr  # one word, which the stand-in takes
    assert not list(project.rglob("PWNED"))
