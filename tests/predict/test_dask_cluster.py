"""Scenes encoded by a Dask cluster: the same bytes as here."""

import errno
import logging
import os
import sys
from pathlib import Path

import psutil
import pytest

from metricgold.encode.stage import encode
from metricgold.predict import dask_cluster as cluster
from metricgold.predict.dask_cluster import open_client, open_executor
from tests.support.waiting import wait_until

distributed = pytest.importorskip("distributed")


def bytes_of(out):
    return {path.name: path.read_bytes() for path in out.iterdir()}


def encode_on(address, tiny, raw, backbone, out):
    with open_executor(address) as executor:
        encode(tiny.datasets[0], tiny.encode, tiny.log_depth, raw, backbone, out, executor=executor)


@pytest.fixture
def scheduler():
    """Address of two workers that are threads of this process."""
    local = distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=False, dashboard_address=None, protocol="tcp",
        silence_logs=logging.ERROR,
    )  # fmt: skip
    with local:
        yield local.scheduler_address


def test_a_cluster_gives_the_same_bytes(scheduler, tiny, tiny_raw, tiny_backbone, tiny_latents, tmp_path):
    encode_on(scheduler, tiny, tiny_raw, tiny_backbone, tmp_path / "out")
    assert bytes_of(tmp_path / "out") == bytes_of(tiny_latents)


def test_a_disk_that_is_full_there_is_said_here(scheduler, tiny, tiny_raw, tiny_backbone, tmp_path, monkeypatch):
    def write_bytes(path, _content):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(Path, "write_bytes", write_bytes)
    with pytest.raises(OSError, match="disk full; what is finished is kept"):
        encode_on(scheduler, tiny, tiny_raw, tiny_backbone, tmp_path / "out")
    assert not list((tmp_path / "out").glob("*"))


@pytest.mark.slow
def test_local_processes_give_the_same_bytes(tiny, tiny_raw, tiny_backbone, tiny_latents, tmp_path):
    encode_on("local:2", tiny, tiny_raw, tiny_backbone, tmp_path / "out")
    assert bytes_of(tmp_path / "out") == bytes_of(tiny_latents)


@pytest.mark.slow
def test_nothing_looks_at_the_frames_of_threads():
    """Such a look can stop Python 3.11.8 and earlier for good; Dask takes a hundred a second unless told otherwise."""

    def names(dask_worker=None):
        import threading

        return {*(dask_worker.periodic_callbacks if dask_worker else ()), *(t.name for t in threading.enumerate())}

    with open_client("local:1") as client:
        assert {"profile", "Profile"}.isdisjoint(names().union(*client.run(names).values()))


@pytest.mark.slow
def test_a_local_cluster_listens_on_this_machine_alone():
    with open_client("local:1"):
        here = psutil.Process()
        listening = {
            connection.laddr
            for process in (here, *here.children(recursive=True))
            for connection in process.net_connections("tcp")
            if connection.status == psutil.CONN_LISTEN
        }
    assert len(listening) >= 2 and {address.ip for address in listening} == {"127.0.0.1"}


@pytest.mark.slow
def test_a_local_worker_that_is_gone_for_good_is_replaced(monkeypatch):
    monkeypatch.setattr(cluster, "SECONDS_BETWEEN_LOOKS", 0.2)
    monkeypatch.setitem(cluster.LOCAL_SETTINGS, "distributed.deploy.lost-worker-timeout", "0.1s")
    with open_client("local:1") as client:
        (before,) = client.run(os.getpid).values()
        client.sync(client.cluster.workers[0].close)  # as after a worker that has died while it started
        wait_until(lambda: [pid for pid in client.run(os.getpid).values() if pid != before], every_s=0.1)


@pytest.mark.parametrize("address", ["local:0", "local:many", "somewhere", "local:"])
def test_another_form_of_address_is_refused(address):
    expected = f"{address} is not a cluster address: expected tcp://host:port or local:N"
    with pytest.raises(ValueError, match=expected), open_executor(address):
        pass


def test_no_scheduler_is_said():
    from dask import config

    with (
        config.set({"distributed.comm.timeouts.connect": "0.2s"}),
        pytest.raises(OSError, match=r"127\.0\.0\.1:9"),
        open_executor("tcp://127.0.0.1:9"),
    ):
        pass


def test_the_package_is_named_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    expected = r"distributed is not installed, which this needs: pip install 'metricgold\[dask\]'"
    with pytest.raises(ValueError, match=expected), open_executor("local:2"):
        pass
