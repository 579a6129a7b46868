"""What files of before say of themselves reads as what those of today say."""

import json

import numpy as np
import pytest

from metricgold.images import write_log_depth_png
from metricgold.log_depth import LogDepth
from metricgold.predict.claims import read_claims


@pytest.mark.parametrize("word", ["model_digest", "model_sha256"])
def test_the_digest_of_the_model_under_its_name_of_before_too(tmp_path, word):
    said = {"model": "metricgold/1", word: "f" * 64}
    write_log_depth_png(tmp_path / "a.png.depth.png", np.ones((2, 3), np.float32), LogDepth(0.5, 80.0), said)
    (tmp_path / "a.png.json").write_text(json.dumps(said))
    row = {"input": "a.png", "status": "done", "output": "a.png.depth.png", "outputs": {}, **said}
    (tmp_path / "receipt.jsonl").write_text(json.dumps(row) + "\n")
    claims = read_claims(f"{tmp_path}/receipt.jsonl#a.png")
    assert [facts["model_digest"] for facts in claims.said.values()] == ["f" * 64] * 3
    assert not any("model_sha256" in facts for facts in claims.said.values())


def test_a_job_that_still_runs_has_rows_in_parts(tmp_path):
    """The newest part counts, before the receipt of an earlier run."""
    said = {"status": "done", "input": "b/a.png", "model": "m"}
    named = {"output": "b/a.png.depth.png", "outputs": {"log-png": {"key": "b/a.png.depth.png", "tag": "t"}}}
    depth = tmp_path / "b" / "a.png.depth.png"
    depth.parent.mkdir()
    write_log_depth_png(depth, np.ones((2, 3), np.float32), LogDepth(0.5, 80.0), {})
    rows = {"receipt.jsonl": "1", "receipt.partial/00000000-aa.jsonl": "2", "receipt.partial/00000001-bb.jsonl": "3"}
    for name, digest in rows.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(json.dumps(said | named | {"model_digest": digest}) + "\n")
        for location in (f"{tmp_path}/receipt.jsonl#b/a.png", str(depth)):
            assert read_claims(location).first("model_digest") == digest
    (tmp_path / "receipt.jsonl").unlink()
    assert read_claims(f"{tmp_path}/receipt.jsonl#b/a.png").first("model_digest") == "3"
