"""One job at a time on a GPU: waits, names who holds it, and a kill frees it."""

import logging
import os
import signal
import subprocess
import sys
import threading

import pytest

from metricgold.train import gpu_lock
from metricgold.train.gpu_lock import free_gpu, gpu_names, lock_path, only_job

HOLD = """
import sys, time
from metricgold.train.gpu_lock import only_job
with only_job(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return tmp_path / "metricgold"


@pytest.fixture
def hold():
    """Start a process that holds a device."""
    started = []

    def start(device: str, **variables: str) -> subprocess.Popen:
        env = os.environ | variables
        child = subprocess.Popen([sys.executable, "-c", HOLD, device], env=env, stdout=subprocess.PIPE, text=True)
        started.append(child)
        assert child.stdout.readline() == "held\n"
        return child

    yield start
    for child in started:
        child.kill()
        child.wait()


def test_a_second_job_waits_names_the_holder_and_continues_after_a_kill(hold, monkeypatch, caplog):
    monkeypatch.setattr(gpu_lock, "SECONDS_BETWEEN_LINES", 0.2)
    holder = hold("cuda")
    entered = threading.Event()

    def work():
        with only_job("cuda:0"):
            entered.set()

    worker = threading.Thread(target=work)
    with caplog.at_level(logging.WARNING):
        worker.start()
        assert not entered.wait(0.8)
        holder.send_signal(signal.SIGKILL)
        assert entered.wait(5)
    worker.join()
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) >= 2, lines
    assert all(f"cuda:0 is in use by process {holder.pid} since " in line for line in lines)


def test_each_gpu_has_its_own_lock_and_is_counted_within_the_visible_ones(hold):
    hold("cuda", CUDA_VISIBLE_DEVICES="1,0")
    with only_job("cuda:0"):  # the other GPU
        pass
    assert lock_path("1", "gpu").with_suffix(".json").exists()


def test_nothing_is_locked_without_a_gpu(own_cache):
    with only_job("cpu"), only_job("cpu"):
        assert not own_cache.exists()


def test_gpus_are_named(monkeypatch):
    monkeypatch.setenv("METRICGOLD_CARDS", "2")
    assert gpu_names() == ["0", "1"]
    monkeypatch.setenv("METRICGOLD_CARDS", "many")
    with pytest.raises(ValueError, match="METRICGOLD_CARDS is 'many', expected a number of GPUs"):
        gpu_names()
    monkeypatch.delenv("METRICGOLD_CARDS")
    monkeypatch.setattr(gpu_lock, "num_gpus", lambda: 4)
    assert gpu_names() == ["0", "1", "2", "3"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2, GPU-8f3a")
    assert gpu_names() == ["2", "GPU-8f3a"]
    monkeypatch.setattr(gpu_lock, "num_gpus", lambda: 0)
    assert gpu_names() == []


def test_flows_take_different_gpus_and_a_trainer_may_lock_its_flow_s():
    with free_gpu(["0", "1"], timeout_s=0) as first, free_gpu(["0", "1"], timeout_s=0) as second:
        assert (first, second) == ("0", "1")
        with pytest.raises(TimeoutError, match="no GPU of 0, 1"), free_gpu(["0", "1"], timeout_s=0):
            pass
        with only_job("cuda:0"):
            pass
    with free_gpu(["0"], timeout_s=0):
        pass
