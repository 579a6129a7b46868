"""Data sets that a study renders for itself: once, shared, resumable, and apart from the project's data."""

import multiprocessing
import time

import numpy as np
import pytest
import yaml

from metricgold.datasets import open_dataset
from metricgold.params import Folders, Params, Synthesize, SynthesizeBenchmark, load_params
from metricgold.storage import digest_folder, read_json
from metricgold.study import store as store_module
from metricgold.study.definition import load_study, original_of, runs_of
from metricgold.study.plan import describe_plan, plan_study
from metricgold.study.report import render_study
from metricgold.study.results import COSTS, Results
from metricgold.study.store import Store, world_name
from metricgold.study.worlds import render_world, render_worlds
from tests.conftest import TINY
from tests.study.conftest import STUDY, write_study
from tests.study.test_stage import _in_child, lines_of, run

WORLD = {"height": 32, "width": 48, "num_train_scenes": 2, "num_test_scenes": 2, "frames_per_scene": 2}
CHANGES = {
    "fixed": {
        **STUDY["fixed"],
        "depth_vae": {"num_steps": 0},
        "train": {"num_steps": 4, "decay_steps": 4, "uncertainty": {"split": "test", "ensemble_size": 1}},
        "evaluate": {"num_inference_steps": 1, "ensemble_size": 1},
        "benchmark": {"num_inference_steps": 1, "ensemble_size": 1},
        "synthesize_benchmark": {"height": 32, "num_scenes": 3, "frames_per_scene": 1},
    },
    "factors": {"worlds": {seed: {"synthesize": {**WORLD, "seed": seed}} for seed in (1, 2)}},
    "inference": {},
    "seeds": [0],
    "measures": {"benchmarks": ["aerial-synthetic"], "if_there": ["flsea"], "uncertainty": True},
}


def expanded(root, params: Params = TINY, **changes):
    write_study(root, **CHANGES | changes)
    return runs_of(load_study("tiny", root / "studies"), params, "tiny", root / "studies")


def test_only_what_the_project_lacks_or_has_otherwise_is_rendered(tmp_path):
    first, second = expanded(tmp_path)
    twin = TINY.datasets[0]
    assert first.worlds == {
        twin: Synthesize(seed=1, **WORLD),
        "aerial-synthetic": SynthesizeBenchmark(height=32, num_scenes=3, frames_per_scene=1),
    }
    assert second.worlds[twin].seed == 2 and first.digest != second.digest
    store = Store(Folders(tmp_path))
    assert store.raws(first)[twin].name == world_name(twin, first.worlds[twin]) != store.raws(second)[twin].name
    the_same = TINY.model_copy(update={"synthesize": first.worlds[twin], "benchmarks": ["aerial-synthetic"]})
    the_same = the_same.model_copy(update={"synthesize_benchmark": first.worlds["aerial-synthetic"]})
    first, second = expanded(tmp_path, the_same)
    assert not first.worlds and list(second.worlds) == [twin]
    assert store.raws(first) == {twin: tmp_path / "data/raw" / twin}
    assert store.benchmark(first, "aerial-synthetic") == tmp_path / "data/benchmarks/aerial-synthetic"


def test_worlds_without_an_original_stay_at_full_size(tmp_path):
    names = ("flsea-synthetic", "kitti-synthetic", "night-synthetic", "hypersim-sensor-synthetic")
    assert [original_of(name) for name in names] == ["flsea", "kitti", *names[2:]]


def test_a_data_set_is_rendered_as_the_projects_stages_do_it(tmp_path):
    world = SynthesizeBenchmark(height=32, num_scenes=2, frames_per_scene=1)
    render_world("night-synthetic", world, tmp_path / "archives %20", tmp_path / "raw night %20")
    frames = list(open_dataset("night-synthetic", tmp_path / "raw night %20", split="test"))
    assert len(frames) == 2 and frames[0].rgb.shape == (32, 43, 3)
    assert read_json(tmp_path / "raw night %20/rendered.json") == {"dataset": "night-synthetic", **world.model_dump()}


def test_a_data_set_that_nobody_renders_is_refused(tmp_path):
    (one,) = expanded(tmp_path, factors={"one": {"a": None}}, measures={"benchmarks": ["mars-synthetic"]})
    with pytest.raises(ValueError, match=r"mars-synthetic.*night-synthetic"):
        render_worlds([one], Store(Folders(tmp_path)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"measures": {"in_domain": ["kitti"]}},
            r"tiny\.yaml: measures\.in_domain names kitti; datasets are tar",
        ),
        ({"fixed": STUDY["fixed"]}, r"tiny\.yaml: measures\.uncertainty: train\.uncertainty is null"),
    ],
)
def test_what_cannot_be_measured_is_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        expanded(tmp_path, **changes)


def test_a_set_that_arrives_later_is_measured_then_and_one_that_is_gone_costs_nothing(tmp_path):
    (one, _), study = expanded(tmp_path), load_study("tiny", tmp_path / "studies")
    without, with_flsea = (Results("tiny", study, tmp_path, if_there) for if_there in ((), ("flsea",)))
    costs = dict.fromkeys(("commit", "machine", *COSTS), "1")
    row = {"scene": "s", **dict.fromkeys(without.figures, "0.1")}
    without.add(one, costs, [row | {"set": "aerial-synthetic"}])
    assert without.has(one) and not with_flsea.has(one)
    with_flsea.add(one, costs, [row | {"set": name} for name in ("aerial-synthetic", "flsea")])
    assert without.has(one) and with_flsea.has(one)


def test_a_benchmark_that_may_be_absent_is_measured_once(tmp_path):
    measures = CHANGES["measures"] | {"benchmarks": ["aerial-synthetic", "flsea"]}
    run, store = expanded(tmp_path, measures=measures)[0], Store(Folders(tmp_path))
    assert store.measured(run) == ["aerial-synthetic", "flsea"]
    (tmp_path / "data/benchmarks/flsea/canyons").mkdir(parents=True)
    assert store.measured(run) == ["aerial-synthetic", "flsea"]
    assert store.measured(expanded(tmp_path)[0]) == ["aerial-synthetic", "flsea"]


def test_the_plan_counts_what_is_rendered(tmp_path):
    expanded(tmp_path)
    plan = plan_study("tiny", TINY, folders=Folders(tmp_path), card="rtx3090")
    assert plan["rendered"] == 3 and plan["caches"] == plan["trainings"] == 2
    assert "rendered 3" in describe_plan(plan)
    larger = {**CHANGES["fixed"], "synthesize_benchmark": {"height": 320, "num_scenes": 30, "frames_per_scene": 1}}
    expanded(tmp_path, fixed=larger)
    more = plan_study("tiny", TINY, folders=Folders(tmp_path), card="rtx3090")["disk_gb"] - plan["disk_gb"]
    assert more == pytest.approx(2 * 10 * 3.4 * 30 * 320**2 / 1e9, rel=0.02)


def test_its_disk_is_not_less_than_what_is_written(tmp_path):
    from metricgold.study.plan import _rendered_bytes

    for name in ("hypersim-sensor-synthetic", "ranges-synthetic"):
        world = Synthesize(height=64, width=96, num_train_scenes=1, num_test_scenes=1, frames_per_scene=3)
        render_world(name, world, tmp_path / "archives" / name, tmp_path / name)
        written = sum(path.stat().st_size for path in (tmp_path / name).rglob("*") if path.is_file())
        assert 0.1 < 2 * written / _rendered_bytes(world) < 1


# Whole, and killed


def rendered(root):
    """What decided each rendered data set, what arrived, and digests of its frames."""

    def content(folder):
        parts = [path for path in sorted(folder.iterdir()) if path.is_dir() and path.name != ".ledger"]
        return read_json(folder / "rendered.json"), read_json(folder / "ledger.json"), list(map(digest_folder, parts))

    return {folder.name: content(folder) for folder in (root / "models/studies").glob("raw-*") if folder.is_dir()}


def write_project(root):
    root.mkdir(exist_ok=True)
    (root / "params.yaml").write_text(yaml.safe_dump(TINY.model_dump(mode="json")))
    write_study(root, **CHANGES)
    return root


def marks(root):
    """When each data set was finished."""
    return {path.parent.name: path.stat().st_mtime_ns for path in root.glob("models/studies/raw-*/rendered.json")}


def render_all(root):
    params = load_params(root / "params.yaml")
    render_worlds(runs_of(load_study("tiny", root / "studies"), params, "tiny"), Store(Folders(root)))


def test_killed_at_ten_random_moments_the_same_data_are_rendered_and_none_twice(tmp_path):
    undisturbed, killed = (write_project(tmp_path / name) for name in ("undisturbed", "killed"))
    render_all(undisturbed)
    context, rng = multiprocessing.get_context("fork"), np.random.default_rng()
    times: dict[str, float] = {}
    for _ in range(10):
        child = context.Process(target=render_all, args=(killed,))
        child.start()
        time.sleep(rng.uniform(0.02, 0.4))
        child.kill()
        child.join()
        there = marks(killed)
        assert there.items() >= times.items()
        times = there
    render_all(killed)
    assert rendered(killed) == rendered(undisturbed) and len(rendered(killed)) == 3
    assert marks(killed).items() >= times.items()
    assert not list(killed.glob("models/studies/raw-*.archives")) and not (killed / "data").exists()


def test_killed_while_it_deletes_the_archives_it_has_the_data(tmp_path, monkeypatch):
    root = write_project(tmp_path)

    def begin_to_remove(folder):
        (folder / "SHA256SUMS").unlink()
        raise KeyboardInterrupt

    monkeypatch.setattr(store_module, "remove", begin_to_remove)
    with pytest.raises(KeyboardInterrupt):
        render_all(root)
    monkeypatch.undo()
    times = marks(root)
    assert len(times) == 1 and list(root.glob("models/studies/raw-*.archives"))
    render_all(root)
    assert marks(root).items() > times.items() and len(marks(root)) == 3
    assert not list(root.glob("models/studies/raw-*.archives"))


def test_a_study_of_rendered_worlds_is_measured_on_them_with_its_uncertainty(tmp_path):
    write_project(tmp_path)
    assert _in_child(run_and_count, tmp_path) == {"study": "tiny", "runs": 2, "measured": 2}
    rows = lines_of(tmp_path, "tiny")
    assert {(row["set"], row["worlds"]) for row in rows} == {
        (name, seed) for name in ("tartanair-synthetic", "aerial-synthetic") for seed in "12"
    }
    of_twin = [row for row in rows if row["set"] == "tartanair-synthetic"]
    in_domain = [[row["vae_floor"] for row in of_twin if row["worlds"] == seed] for seed in "12"]
    assert len(in_domain[0]) == 2 and in_domain[0] != in_domain[1]  # other worlds, not the same ones twice
    assert all(float(row["stated"]) > 0 and 0 <= float(row["within"]) <= 1 for row in rows)
    assert not (tmp_path / "data").exists()
    text = render_study("tiny", tmp_path / "studies")
    (line,) = [line for line in text.splitlines() if line.startswith("| 2 | aerial-synthetic |")]
    assert len(line.split("|")) == 8 and -1 <= float(line.split("|")[-2]) <= 1


def test_a_set_that_is_not_there_is_left_out_by_name(tmp_path, caplog):
    write_project(tmp_path)
    write_study(tmp_path, **CHANGES, budget_minutes=1e-6)
    assert run(tmp_path)["measured"] == 0
    assert "flsea is left out" in caplog.text and "metricgold download flsea" in caplog.text


def run_and_count(writer, root):
    writer.send(run(root))
