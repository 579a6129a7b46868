"""Work for other machines: a Dask cluster, as a client or as an executor. Needs the extra `dask`."""

import logging
from collections.abc import Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from typing import TYPE_CHECKING

from metricgold.extras import naming_the_extra

if TYPE_CHECKING:
    from distributed import Client, LocalCluster

LOCAL = "local:"

SECONDS_BETWEEN_LOOKS = 5.0  # for workers of local:N that do not come back
LOCAL_SETTINGS = {
    # The profiler looks at all threads' frames every 10 ms, which can stop Python before 3.11.9 for good, with all its
    # threads waiting for each other (python/cpython#106883, dask/distributed#8616).
    "distributed.worker.profile.enabled": False,
    # Dask's own 15 s may be too short for a killed worker's successor, which loads torch first.
    "distributed.deploy.lost-worker-timeout": "60s",
}


@contextmanager
def open_executor(address: str) -> Iterator[Executor]:
    """As open_client, with the interface of concurrent.futures."""
    with open_client(address) as client:
        yield client.get_executor(pure=False)


@contextmanager
def open_client(address: str) -> "Iterator[Client]":
    """`tcp://host:port` of a scheduler, or `local:N` for N processes here that have one thread each.

    Workers need this package and see the same folders under the same paths. Raises ValueError for another form of
    address and without the package, OSError where no scheduler answers.
    """
    with naming_the_extra():
        import dask.config
        from distributed import Client, LocalCluster
    # Dask logs a traceback for a scheduler that is gone; here it becomes an error of one line.
    logging.getLogger("distributed.client").setLevel(logging.CRITICAL)
    logging.getLogger("distributed").setLevel(logging.WARNING)
    number = address.removeprefix(LOCAL)
    if address.startswith(LOCAL) and number.isdecimal() and int(number):
        with (
            dask.config.set(LOCAL_SETTINGS),
            LocalCluster(n_workers=int(number), threads_per_worker=1, dashboard_address="127.0.0.1:0") as cluster,
            Client(cluster) as client,
        ):
            keep_workers(cluster, int(number))
            yield client
    elif "://" in address:
        with Client(address) as client:
            yield client
    else:
        raise ValueError(f"{address} is not a cluster address: expected tcp://host:port or {LOCAL}N")


def keep_workers(cluster: "LocalCluster", num_workers: int) -> None:
    """Replace lost workers: one that dies while it starts would stay lost, and a job would wait for it forever."""
    from tornado.ioloop import PeriodicCallback

    look = PeriodicCallback(lambda: cluster.scale(num_workers), 1e3 * SECONDS_BETWEEN_LOOKS)
    cluster.periodic_callbacks["keep"] = look  # stopped with the cluster
    cluster.loop.add_callback(look.start)
