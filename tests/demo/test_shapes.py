"""The table of shapes: frames as the worlds have them, each row measured by itself."""

import numpy as np
import pytest
from click.testing import CliRunner

from demo import shapes
from metricgold.datasets import frames_through_lens
from metricgold.storage.files import read_json, write_json


def test_frames_of_another_shape_show_the_same_scene_through_the_stated_lens(tiny):
    size = tiny.synthesize
    synthesize = size.model_copy(update={"frames_per_scene": 1, "seed": size.seed + 1})
    (dataset,) = tiny.datasets[:1]
    plain = list(frames_through_lens(dataset, synthesize, 1.0))
    for name, shape in shapes.SHAPES.items():
        of_shape = [frame for scene, frame in shapes.frames_of_shape(tiny, shape) if scene.startswith(f"{dataset}/")]
        assert len(of_shape) == size.num_test_scenes
        for frame, usual in zip(of_shape, plain, strict=True):
            assert frame.rgb.shape[:2] == (round(shape.height * size.height), round(shape.width * size.width))
            assert frame.intrinsics[0, 0] == pytest.approx(shape.focal * usual.intrinsics[0, 0], rel=0.02), name
    frames = list(shapes.frames_of_shape(tiny, shapes.SHAPES["as trained"]))
    np.testing.assert_array_equal(frames[0][1].rgb, plain[0].rgb)
    (tried,) = list(frames_through_lens(dataset, size.model_copy(update={"frames_per_scene": 1}), 1.0))[:1]
    assert not np.array_equal(tried.rgb, plain[0].rgb)  # no scene on which windows were chosen


def test_every_shape_is_measured_as_one_and_by_windows_where_there_are_some(tiny, tiny_model, monkeypatch, tmp_path):
    monkeypatch.setattr(shapes, "SHAPES", {name: shapes.SHAPES[name] for name in ("as trained", "wide")})
    monkeypatch.setattr(shapes, "ProcessPoolExecutor", _Here)
    rows = shapes.measure_all(tiny, tiny_model)
    assert [(row["shape"], row["windows"], row["parts"] > 1) for row in rows] == [
        ("as trained", "never", False),
        ("wide", "never", False),
        ("wide", "auto", True),
    ]
    assert all(row["peak_bytes"] > 1e8 and row["seconds"] > 0 for row in rows)
    write_json(tmp_path / "shapes.json", {"rows": rows})
    lines = shapes.table(read_json(tmp_path / "shapes.json")["rows"]).splitlines()
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| as trained", "| wide", "| wide"]
    assert lines[-1].count("[") == len(shapes.FIGURES) and " | none | " in lines[2]


def test_outside_a_project_one_message_says_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(shapes.main, [])
    assert (done.exit_code, done.output.count("\n")) == (1, 1) and "params.yaml" in done.output


class _Here:
    """Runs what a process of its own would."""

    def __init__(self, *_, **__):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def submit(self, function, *arguments):
        answer = function(*arguments)
        return type("Done", (), {"result": lambda self: answer})()
