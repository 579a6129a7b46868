"""The table of cropped and resized pictures: the geometry of each, and what exact depth would give."""

import numpy as np
import pytest
from click.testing import CliRunner

from demo import consistency
from metricgold.storage.files import read_json, write_json


class Exact:
    """Stands for a pipeline that reads depth off the colours, which grow to the right; remembers cameras."""

    def __init__(self):
        self.lenses = []

    def __call__(self, rgb, *, intrinsics, **_):
        self.lenses.append((intrinsics[0, 0] / rgb.shape[1], intrinsics[0, 2] / rgb.shape[1]))
        answer = type("Prediction", (), {})()
        answer.planar_depth_m = 1 + rgb[..., 0].astype(np.float32) / 64
        answer.valid_mask = np.ones(rgb.shape[:2], bool)
        return answer


@pytest.fixture
def measured(tiny, monkeypatch):
    frames_through_lens = consistency.frames_through_lens

    def gradient(*words):
        for frame in frames_through_lens(*words):
            frame.rgb[...] = np.linspace(60, 190, frame.rgb.shape[1])[None, :, None]
            yield frame

    monkeypatch.setattr(consistency, "frames_through_lens", gradient)
    pipe = Exact()
    return consistency.measure(tiny, pipe), pipe.lenses


def test_exact_depth_is_equal_in_every_picture(measured):
    for name, found in measured[0]["pictures"].items():
        assert np.abs(found["scale"]).max() < 0.01, name
        assert np.max(found["detail"]) < 0.02, name


def test_the_camera_is_carried_along(measured):
    """A crop in the middle has a longer lens for its sides; resized, a picture has the same."""
    lenses = measured[1][: 1 + len(consistency.PICTURES)]  # the whole, then each picture of the first frame
    (whole, centre), pictures = lenses[0], dict(zip(consistency.PICTURES, lenses[1:], strict=True))
    for name, (lens, middle) in pictures.items():
        part = consistency.PICTURES[name].part if consistency.PICTURES[name].told else 1
        assert lens == pytest.approx(whole / part, rel=0.03), name
        if consistency.PICTURES[name].told:
            assert middle == pytest.approx((centre - (1 - part) / 2) / part, abs=0.02), name


def test_the_table_is_made_again_without_a_model(measured, monkeypatch, tmp_path):
    monkeypatch.setattr(consistency, "METRICS", tmp_path / "consistency.json")
    monkeypatch.setattr(consistency, "PAGE", tmp_path / "page.md")
    (tmp_path / "page.md").write_text("before\n<!-- consistency -->\n<!-- /consistency -->\nafter\n")
    write_json(tmp_path / "consistency.json", measured[0])
    assert CliRunner().invoke(consistency.main, ["--again"]).exit_code == 0
    page = (tmp_path / "page.md").read_text()
    assert consistency.table(read_json(tmp_path / "consistency.json")) in page
    assert page.count("| middle 0.6 ") == 1 and "| other noise | 1.000 [1.000, 1.000] | 0.0% | 0.0% |" in page
