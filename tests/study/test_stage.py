"""A whole tiny study: what is shared is made once, what is measured is not done again, and kills change nothing."""

import csv
import multiprocessing
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from metricgold.params import Folders, load_params
from metricgold.storage import only_writer, read_json
from metricgold.study import stage, worker
from metricgold.study.definition import load_study, runs_of
from metricgold.study.job import Job
from metricgold.study.results import Results
from metricgold.study.stage import run_study
from metricgold.study.store import Store, names_of
from tests.study.conftest import write_study

COSTS = ("commit", "machine", "image_s", "train_s", "peak_gb")  # that differ from call to call


def run(root: Path, **options) -> dict:
    """In the test's own process tree: processes that are forked have torch at once."""
    stage.CONTEXT = "fork"
    return run_study("tiny", load_params(root / "params.yaml"), folders=Folders(root), **options)


def lines_of(root: Path, name: str) -> list[dict[str, str]]:
    path = root / f"studies/results/{name}.csv"
    return list(csv.DictReader(path.open())) if path.exists() else []


def made(root: Path) -> dict[str, float]:
    return {path.name: path.stat().st_mtime for path in (root / "models/studies").glob("*-*") if path.is_dir()}


def link_inputs(root: Path, folder: Path) -> None:
    """The same project with nothing trained or measured."""
    for name in ("params.yaml", "studies/tiny.yaml", "data"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).symlink_to(root / name)


@pytest.fixture(scope="module")
def undisturbed(tiny_project):
    """The study after one call, what was told meanwhile, and its seconds."""
    began = time.monotonic()
    counts, told = _in_child(run_and_tell, tiny_project)
    return tiny_project, (counts, told, time.monotonic() - began)


def _in_child(function, root):
    """Forked from a server that has torch and has done nothing yet."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.study.warm"])
    reader, writer = context.Pipe(duplex=False)
    child = context.Process(target=function, args=(writer, root))
    child.start()
    answer = reader.recv()
    child.join()
    return answer


def run_and_tell(writer, root):
    told = []
    counts = run(root, jobs=2, follow=lambda runs: told.append(len(runs)))
    writer.send((counts, told))


def test_every_run_is_measured_on_every_scene(undisturbed):
    root, (counts, told, _) = undisturbed
    assert counts == {"study": "tiny", "runs": 8, "measured": 8}
    assert told[-1] == 8 and told == sorted(told) and len(told) == 4 + 1  # for each trained model, and at the end
    rows = lines_of(root, "tiny")
    assert len(rows) == 8 * 3  # a test scene of training's data set, two of the benchmark
    assert list(rows[0]) == ["loss", "steps", "seed", "set", "scene", "abs_rel", "delta1", "vae_floor"]
    assert {(row["set"], row["scene"]) for row in rows} == {
        ("tartanair-synthetic", "env901"),
        ("mine", "hall"),
        ("mine", "room"),
    }
    assert all(float(row["abs_rel"]) > 0 and 0 <= float(row["delta1"]) <= 1 for row in rows)
    assert len({row["abs_rel"] for row in rows if row["set"] == "mine"}) > 8  # runs differ


def test_costs_are_those_of_the_run(undisturbed):
    root, _ = undisturbed
    runs = lines_of(root, "tiny.runs")
    assert [row["passes"] for row in runs if row["steps"] == "2"] == ["2"] * 4
    assert {row["train_passes"] for row in runs} == {"16"}  # four steps of four samples
    one, two = (float(next(row["image_gflop"] for row in runs if row["steps"] == steps)) for steps in "12")
    assert 0 < one < two < 2 * one
    assert all(float(row[name]) > 0 for row in runs for name in ("train_s", "image_s", "peak_gb", "train_tflop"))


def test_what_runs_share_is_made_once_and_nothing_is_done_again(undisturbed):
    root, _ = undisturbed
    before = made(root)
    kinds = sorted(name.rpartition("-")[0] for name in before)
    # A floor for each of two sets, which all models share, and nothing to resume from.
    assert kinds == ["backbone", "depth-vae", "floor", "floor", "latents", *["model"] * 4]
    texts = [path.read_bytes() for path in sorted((root / "studies/results").glob("*.csv"))]
    assert run(root)["measured"] == 8
    assert made(root) == before
    assert [path.read_bytes() for path in sorted((root / "studies/results").glob("*.csv"))] == texts


def test_rows_of_other_params_are_measured_again_and_replaced(undisturbed, tmp_path):
    root, _ = undisturbed
    write_study(tmp_path, fixed={"train": {"num_steps": 5, "decay_steps": 5}})
    study = load_study("tiny", tmp_path / "studies")
    results = Results("tiny", study, root / "studies/results")
    params = load_params(root / "params.yaml")
    assert not any(map(results.has, runs_of(study, params, "tiny", tmp_path / "studies")))
    study = load_study("tiny", root / "studies")
    assert all(map(results.has, runs_of(study, params, "tiny", root / "studies")))


def test_what_a_kill_left_beside_a_finished_stage_is_deleted(undisturbed, tmp_path):
    root, _ = undisturbed
    link_inputs(root, tmp_path)
    shutil.copytree(root / "models", tmp_path / "models")
    kept = {path.name for path in (tmp_path / "models/studies").iterdir()}
    for folder in made(tmp_path):
        if folder.startswith(("model-", "depth-vae-")):
            (tmp_path / "models/studies" / f"{folder}.state/step-000004").mkdir(parents=True)
    assert _in_child(run_and_tell, tmp_path)[0]["measured"] == 8  # rows are missing here, models are not
    assert {path.name for path in (tmp_path / "models/studies").iterdir()} == kept
    assert made(tmp_path).keys() == made(root).keys()


def run_named(writer, root, name):
    """Rows say which call measured them."""
    worker.hardware = lambda: name
    run_and_tell(writer, root)


def test_two_calls_train_at_the_same_time(undisturbed, tmp_path):
    """They meet at the inputs, which one makes while the other waits; from then on none waits for the other."""
    root, _ = undisturbed
    link_inputs(root, tmp_path)
    context = multiprocessing.get_context("forkserver")
    calls = []
    for name in ("one", "two"):
        reader, writer = context.Pipe(duplex=False)
        calls.append((context.Process(target=run_named, args=(writer, tmp_path, name)), reader))
        calls[-1][0].start()
    for child, reader in calls:
        assert reader.recv()[0]["measured"] == 8
        child.join()
    by = [row["machine"] for row in lines_of(tmp_path, "tiny.runs")]
    assert min(map(by.count, ("one", "two"))) >= 2, by  # of four trainings, two runs each


def test_a_training_that_another_call_has_is_left_to_it(undisturbed, tmp_path):
    """However late it is noticed: here as the process of this call has begun."""
    root, _ = undisturbed
    study, params = load_study("tiny", root / "studies"), load_params(root / "params.yaml")
    store, run_ = Store(Folders(root)), runs_of(study, params, "tiny", root / "studies")[0]
    names = names_of(run_.params, store.contents(run_))
    job = Job([run_], names, Results("tiny", study, tmp_path), store, waits=False)
    with only_writer(tmp_path, store.lock_path(names.training)):
        assert worker.advance(job) is False
    assert not list(tmp_path.glob("*.csv"))


def test_killed_at_ten_random_moments_it_has_the_same_rows_and_no_run_twice(undisturbed, tmp_path):
    """kill -9 of the command; its children notice. The last one is left alone.

    Each lives up to an eighth of the undisturbed time, so that the ten reach from the backbone to the last rows.
    """
    root, (_, _, seconds) = undisturbed
    link_inputs(root, tmp_path)
    context = multiprocessing.get_context("forkserver")
    rng, measured, killed = np.random.default_rng(), [], 0
    for _ in range(10):
        _reader, writer = context.Pipe(duplex=False)
        child = context.Process(target=run_and_tell, args=(writer, tmp_path))
        child.start()
        time.sleep(rng.uniform(0.05, seconds / 8))
        child.kill()
        child.join()
        killed += child.exitcode == -signal.SIGKILL
        before = lines_of(tmp_path, "tiny.runs")
        assert [row for row in before if row in measured] == measured  # what was measured stays as it was
        measured = before
    assert killed, "all kills came too late to mean anything"
    counts, _ = _in_child(run_and_tell, tmp_path)
    assert counts["measured"] == 8
    assert (tmp_path / "studies/results/tiny.csv").read_bytes() == (root / "studies/results/tiny.csv").read_bytes()
    runs, expected = lines_of(tmp_path, "tiny.runs"), lines_of(root, "tiny.runs")
    assert [row for row in runs if row in measured] == measured
    for row in [*runs, *expected]:
        for name in COSTS:
            del row[name]
    assert runs == expected
    assert made(tmp_path).keys() == made(root).keys()


def test_a_call_stops_to_start_trainings_once_its_budget_is_over(undisturbed, tmp_path):
    root, _ = undisturbed
    for name in ("params.yaml", "data"):
        (tmp_path / name).symlink_to(root / name)
    write_study(tmp_path, budget_minutes=1e-6)
    assert run(tmp_path) == {"study": "tiny", "runs": 8, "measured": 0}


def test_a_training_that_fails_is_named_and_the_others_are_done(undisturbed, tmp_path):
    root, _ = undisturbed
    for name in ("params.yaml", "data"):
        (tmp_path / name).symlink_to(root / name)
    shutil.copytree(root / "models", tmp_path / "models")
    broken = {"l2": None, "broken": {"train": {"max_skipped": 0, "lr": 1e30}}}
    write_study(tmp_path, factors={"loss": broken}, seeds=[0])
    with pytest.raises(ValueError, match=r"model-\w+: "):
        _raise_of_child(tmp_path)
    assert {row["loss"] for row in lines_of(tmp_path, "tiny.runs")} == {"l2"}


def _raise_of_child(root):
    answer = _in_child(run_and_say, root)
    if answer:
        raise ValueError(answer)


def run_and_say(writer, root):
    try:
        run(root)
    except ValueError as error:
        writer.send(str(error))
    else:
        writer.send("")


def test_without_data_one_line_says_so(tmp_path, undisturbed):
    root, _ = undisturbed
    write_study(tmp_path)
    with pytest.raises(ValueError, match="tartanair-synthetic"):
        run_study("tiny", load_params(root / "params.yaml"), folders=Folders(tmp_path))


def test_the_cost_of_training_is_kept_beside_the_model(undisturbed):
    root, _ = undisturbed
    costs = [read_json(path) for path in (root / "models/studies").glob("model-*.json")]
    assert len(costs) == 4 and all(one["train_s"] > 0 for one in costs)
