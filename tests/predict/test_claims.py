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
