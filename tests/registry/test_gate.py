"""The gate: bounds on benchmarks, and a regression that is told from what other scenes would change."""

import json
from pathlib import Path

import numpy as np
import pytest

from metricgold.evaluate.rows import write_rows_file
from metricgold.params.sections import Params, Promote
from metricgold.registry.promotion import promote
from metricgold.registry.versions import register
from metricgold.storage.files import digest_folder
from tests.registry.project import PARAMS, SCORES, change_model, mlflow_client

MODEL = Path("models/metricgold")
NUM_SCENES, FRAMES_PER_SCENE = 12, 4


def hard(seed=0, scenes=NUM_SCENES):
    """AbsRel of a champion by data set, [scenes, frames]: scenes differ by much more than versions do."""
    rng = np.random.default_rng(seed)
    return {name: rng.uniform(0.05, 0.3, (scenes, 1)) * np.ones((1, FRAMES_PER_SCENE)) for name in ("rooms", "roads")}


def worse(abs_rel, by, spread=0.0):
    """Each scene worse by a share, every other one by `spread` more, those between by as much less."""
    return {name: one * (1 + by + spread * (-1) ** np.arange(len(one))[:, None]) for name, one in abs_rel.items()}


def register_frames(abs_rel, *, model="candidate", digest="one ruler", lacking=(), benchmarks=None, rows=True):
    """Register a checkpoint with an evaluation of these frames."""
    change_model(model)
    model_digest = digest_folder(MODEL)
    scores = {"abs_rel": float(np.mean([one.mean() for one in abs_rel.values()])), "model_digest": model_digest}
    Path("metrics/benchmark").mkdir(parents=True, exist_ok=True)
    Path("metrics/evaluate.json").write_text(json.dumps(SCORES | scores | {"digest": digest}))
    common = {"protocol": "evaluate", "protocol_digest": "p"}
    common |= dict.fromkeys(("focal_px", "width", "height"), 1.0) | {"reason": ""}
    if rows:
        write_rows_file(
            Path("metrics/evaluate.rows.parquet"),
            [
                {
                    **common,
                    "benchmark": name,
                    "ruler_digest": f"{digest} of {name}",
                    "method": method,
                    "method_digest": model_digest if method == "model" else method,
                    "frame": f"{scene}/{i}",
                    "scene": str(scene),
                }
                | {"metric/abs_rel": float(value) if method == "model" else 0.5}
                for name, one in abs_rel.items()
                for (scene, i), value in np.ndenumerate(one)
                if f"{name}/{scene}/{i}" not in lacking
                for method in ("model", "constant")
            ],
        )
    for name, summary in (benchmarks or {}).items():
        summary = {"model_digest": model_digest, "ruler_digest": "r", "abs_rel_low": 0.1, **summary}
        Path(f"metrics/benchmark/{name}.json").write_text(json.dumps(summary))
    return register(PARAMS, MODEL, Path("metrics/evaluate.json"))


def regression(bound=0.02):
    (check,) = promote(Promote(max_regression=bound), dry_run=True)["checks"]
    return check


@pytest.fixture
def champion(project):
    abs_rel = hard()
    register_frames(abs_rel, model="champion")
    assert promote(Promote())["alias"] == "champion"
    return abs_rel


def test_a_change_that_other_scenes_would_undo_is_no_regression(champion):
    """Bare means refused it: some 5 % worse on these scenes, but one scene in two is better."""
    register_frames(worse(champion, 0.05, spread=0.25))
    check = regression()
    assert check["value"] > 0.02 and check["low"] < 0.02 < check["high"] and check["passed"] is True


def test_a_small_regression_of_every_scene_is_one(champion):
    """Scenes differ by a factor of six; paired, 3 % on each of them are plain."""
    register_frames(worse(champion, 0.03))
    check = regression()
    assert check["value"] == pytest.approx(0.03) and check["passed"] is False
    assert 0.02 < check["low"] <= check["value"] <= check["high"]
    assert promote(Promote())["alias"] == "candidate"
    assert regression(0.04)["passed"] is True


def test_the_change_is_that_of_the_means_over_data_sets(champion):
    """Data sets weigh the same, whatever their size; an interval by hand for two scenes of each."""
    few = {name: one[:2] for name, one in champion.items()}
    register_frames(few, model="few")
    promote(Promote(max_regression=None))
    register_frames({"rooms": few["rooms"] * 1.1, "roads": few["roads"]})
    check = regression()
    rooms, roads = (few[name].mean(axis=1) for name in ("rooms", "roads"))
    champion_mean = (rooms.mean() + roads.mean()) / 2
    assert check["value"] == pytest.approx(0.1 * rooms.mean() / 2 / champion_mean)
    # One of two scenes drawn twice: the ends of rooms' interval. Roads have no spread.
    assert check["low"] == pytest.approx(0.1 * rooms.min() / 2 / champion_mean)
    assert check["high"] == pytest.approx(0.1 * rooms.max() / 2 / champion_mean)


def test_frames_that_only_one_version_has_do_not_count(champion):
    easy = {name: one.copy() for name, one in champion.items()}
    easy["rooms"][0, 0] = 100.0
    register_frames(easy, lacking=["rooms/0/0"])
    assert regression()["value"] == pytest.approx(0.0, abs=1e-12)


def test_a_single_scene_has_no_interval_and_the_mean_decides(project):
    register_frames(hard(scenes=1), model="champion")
    promote(Promote())
    register_frames(worse(hard(scenes=1), 0.03))
    check = regression()
    assert check["passed"] is False and check["value"] == pytest.approx(0.03) and "means alone" in check["note"]


def test_versions_without_rows_are_compared_by_their_means(project, caplog):
    register_frames(hard(), model="champion", rows=False)
    assert "no such file; the gate will compare means alone" in caplog.text
    promote(Promote())
    register_frames(worse(hard(), 0.03))
    check = regression()
    assert check["passed"] is False and check["value"] == pytest.approx(0.03) and "low" not in check


def test_another_ruler_is_said_in_the_answer(champion, caplog):
    register_frames(worse(champion, 0.5), digest="another ruler")
    check = regression()
    assert (check["passed"], check["value"]) == (None, None)
    assert check["note"] == "not made: champion 1 was measured by another ruler; evaluate and register it again"
    assert "regression: not made" in caplog.text


def test_the_champion_measured_again_by_the_new_ruler_compares(champion):
    register_frames(worse(champion, 0.5), digest="another ruler")
    assert regression()["passed"] is None
    assert not register_frames(champion, model="champion", digest="another ruler")["created"]
    (check,) = promote(Promote(), version="2", dry_run=True)["checks"]
    assert check["passed"] is False and check["value"] == pytest.approx(0.5)


# Benchmarks

NYU, KITTI = "nyuv2-synthetic", "kitti-synthetic"
BOUNDS = {NYU: {"max_abs_rel": 0.2, "min_delta1": 0.7}, KITTI: {"max_abs_rel": 0.3}}
GATE = Promote.model_validate({"benchmarks": BOUNDS})


@pytest.mark.parametrize(
    ("summaries", "failing"),
    [
        ({NYU: (0.19, 0.8), KITTI: (0.3, 0.1)}, []),
        ({NYU: (0.21, 0.8), KITTI: (0.3, 0.1)}, [f"{NYU}/abs_rel"]),
        (
            {NYU: (0.19, 0.6), KITTI: (0.31, 0.1)},
            [f"{NYU}/delta1", f"{KITTI}/abs_rel"],
        ),
        ({NYU: (0.19, 0.8)}, [f"{KITTI}/abs_rel"]),
    ],
)
def test_the_gate_names_figures_of_benchmarks(project, summaries, failing):
    benchmarks = {name: {"abs_rel": abs_rel, "delta1": delta1} for name, (abs_rel, delta1) in summaries.items()}
    version = register_frames(hard(), benchmarks=benchmarks)
    outcome = promote(GATE)
    assert [check["name"] for check in outcome["checks"] if check["passed"] is False] == failing
    assert outcome["passed"] == (not failing)
    metrics = mlflow_client().get_run(version["run_id"]).data.metrics
    assert metrics["benchmark/nyuv2-synthetic/abs_rel"] == summaries[NYU][0]
    assert metrics["benchmark/nyuv2-synthetic/abs_rel_low"] == 0.1
    names = {one.path for one in mlflow_client().list_artifacts(version["run_id"], "benchmark")}
    assert names == {f"benchmark/{name}.json" for name in summaries}


def test_a_benchmark_of_another_checkpoint_is_not_registered(project, caplog):
    right = {"abs_rel": 0.1, "delta1": 0.9}
    register_frames(hard(), benchmarks={NYU: right | {"model_digest": "another"}, KITTI: right})
    assert "not registered: metrics/benchmark/nyuv2-synthetic.json is about another checkpoint, " in caplog.text
    checks = {check["name"]: check["value"] for check in promote(GATE)["checks"]}
    assert checks == {f"{NYU}/abs_rel": None, f"{NYU}/delta1": None, f"{KITTI}/abs_rel": 0.1}


def test_a_benchmark_measured_later_joins_its_version(project):
    version = register_frames(hard())
    assert not promote(GATE)["passed"]
    for name in GATE.benchmarks:
        summary = {"abs_rel": 0.1, "delta1": 0.9, "model_digest": version["model_digest"]}
        Path(f"metrics/benchmark/{name}.json").write_text(json.dumps(summary))
    again = register(PARAMS, MODEL, Path("metrics/evaluate.json"))
    assert (again["version"], again["created"]) == (version["version"], False)
    assert promote(GATE)["passed"]


def test_figures_of_another_checkpoint_are_refused(project):
    register_frames(hard())
    change_model("trained again")
    with pytest.raises(ValueError, match=r"evaluate\.json is about another checkpoint, .*; `dvc repro` measures"):
        register(PARAMS, MODEL, Path("metrics/evaluate.json"))
    scores = json.loads(Path("metrics/evaluate.json").read_text()) | {"model_digest": digest_folder(MODEL)}
    Path("metrics/evaluate.json").write_text(json.dumps(scores))
    with pytest.raises(ValueError, match=r"evaluate\.rows\.parquet is about another checkpoint than .*evaluate\.json"):
        register(PARAMS, MODEL, Path("metrics/evaluate.json"))


def test_bounds_of_benchmarks_are_checked_as_they_are_read():
    with pytest.raises(ValueError, match="max_absrel"):
        Promote.model_validate({"benchmarks": {"nyuv2": {"max_absrel": 0.1}}})
    assert Promote().benchmarks is None
    with pytest.raises(
        ValueError, match=r"promote\.benchmarks names \['nyu'\], which benchmarks \['nyuv2'\] does not list"
    ):
        Params(datasets=["hypersim"], benchmarks=["nyuv2"], promote=Promote(benchmarks={"nyu": {"max_abs_rel": 0.1}}))


# Cost


def test_latency_and_memory_are_measured_here(project):
    register_frames(hard())
    gate = Promote(max_latency_s=100.0, max_memory_gb=1e-3, max_regression=None)
    outcome = promote(gate, predict=PARAMS.predict, dry_run=True)
    latency, memory = outcome["checks"]
    assert (latency["name"], latency["passed"]) == ("latency_s", True) and 0 < latency["value"] < 100
    assert (memory["name"], memory["passed"]) == ("memory_gb", False) and 0.05 < memory["value"] < 20


def test_a_model_that_cannot_be_measured_is_said_in_one_line(project, tmp_path):
    from metricgold.registry.cost import measure_cost

    with pytest.raises(ValueError, match=r"its cost could not be measured: ValueError: .*not a checkpoint"):
        measure_cost(tmp_path, PARAMS.predict)
