"""`metricgold serve` as a process of its own, around a real pipeline."""

import io
import signal
import socket

import httpx
import numpy as np
import pytest
from click.testing import CliRunner

from metricgold.cli import main
from metricgold.images import read_depth
from metricgold.model import load_pipeline
from tests.support.serving import encoded, photograph, serve_command


@pytest.mark.slow
def test_the_command_answers_as_the_pipeline_does(one_step_model, tmp_path):
    pipe, photos = load_pipeline(one_step_model), [photograph(60, 90, seed) for seed in range(3)]
    with serve_command(tmp_path, "--model", str(one_step_model), "--port", "0") as (address, process):
        for rgb in photos:
            answer = httpx.post(f"{address}/v1/depth", params={"format": "npz"}, content=encoded(rgb), timeout=60)
            found_m = read_depth(io.BytesIO(answer.content)).planar_depth_m
            np.testing.assert_allclose(found_m, pipe(rgb).planar_depth_m, rtol=1e-4)
    assert process.returncode == -signal.SIGTERM
    assert "Traceback" not in (tmp_path / "serve.log").read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["serve.log"]


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--model", "nowhere"], "'nowhere' is neither a checkpoint folder"),
        (["--host", "0.0.0.0"], "set METRICGOLD_SERVE_TOKEN"),
        (["--port", "{port}"], "cannot listen at 127.0.0.1, port {port}: Address already in use"),
    ],
)
def test_what_cannot_be_served_is_one_line(tmp_path, monkeypatch, words, part):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("METRICGOLD_SERVE_TOKEN", raising=False)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        words = ["serve", "--port", "0", *(word.format(port=port) for word in words)]
        done = CliRunner().invoke(main, words)
    assert done.exit_code == 1 and "Traceback" not in done.output
    assert part.format(port=port) in done.output.splitlines()[-1]
