"""A real S3 store for tests: OpenStack Swift with its S3 middleware, four processes over one folder, loopback only.

Swift comes from PyPI into an environment of its own, once. `python swift.py run FOLDER` prints what a client needs as
KEY=VALUE, then READY=1, and serves until SIGTERM or the end of its parent. Run by Swift's own Python with `-P`, this
file is one of the servers, or writes where they are.
"""

import ctypes
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path
from time import monotonic, sleep, time as now

PACKAGES = ["swift==2.38.3", "eventlet==0.41.3"]
HOST, DEVICE = "127.0.0.1", "d1"
STORES = ("account", "container", "object")  # behind the proxy
START_S = 60.0
NO_PROXY = {"http_proxy": "", "HTTP_PROXY": "", "all_proxy": "", "ALL_PROXY": ""}

# One replica on one device: what a cluster does about slow or broken servers is turned off. A write waits for its
# line in the listing, which would else come later.
COMMON = """
[DEFAULT]
swift_dir = {folder}
devices = {folder}
mount_check = false
fallocate_reserve = 0
log_level = CRITICAL
"""
STORE = """
[app:main]
use = egg:swift#{name}
node_timeout = 60
container_update_timeout = 30
"""
PROXY = """
[pipeline:main]
pipeline = cache s3api tempauth slo proxy-server
[app:proxy-server]
use = egg:swift#proxy
allow_account_management = true
account_autocreate = true
node_timeout = 60
recoverable_node_timeout = 60
conn_timeout = 5
error_suppression_interval = 1
error_suppression_limit = 1000000
[filter:cache]
paste.filter_factory = __main__:cache
[filter:tempauth]
use = egg:swift#tempauth
user_test_admin = {secret} .admin
user_test_nobody = {secret_of_nobody}
[filter:s3api]
use = egg:swift#s3api
location = us-east-1
[filter:slo]
use = egg:swift#slo
"""
SWIFT = """
[swift-hash]
swift_hash_path_prefix = metricgold
"""


def install() -> Path:
    """The Python that has Swift, installed on first use. OSError with the reason where that cannot be."""
    from filelock import FileLock

    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "metricgold"
    cache.mkdir(parents=True, exist_ok=True)
    place = cache / f"swift-{sys.version_info.major}.{sys.version_info.minor}"
    python = place / "bin" / "python"
    with FileLock(f"{place}.lock"):
        if not (place / "whole").exists():
            shutil.rmtree(place, ignore_errors=True)
            _run(sys.executable, "-m", "venv", str(place))
            pip = "-m pip install -q --disable-pip-version-check --only-binary :all: --retries 1 --timeout 15"
            _run(str(python), *pip.split(), *PACKAGES)
            (place / "whole").touch()
    return python


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise OSError(f"{PACKAGES[0]} cannot be installed: {done.stderr.strip()[-250:]}")


class Swift:
    """The servers; `environment` is what a client needs. `kill` and `start` one by name."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.python, self.processes = folder, install(), {}
        (folder / DEVICE).mkdir(parents=True)
        os.setxattr(folder / DEVICE, "user.swift", b"x")  # OSError where Swift could not keep its metadata
        # Bound, not listening: nobody else gets these ports, and those of a dead server refuse.
        self.held = {name: _bound(0) for name in (*STORES, "proxy")}
        secret, secret_of_nobody = secrets.token_hex(16), secrets.token_hex(16)
        common = COMMON.format(folder=folder)
        (folder / "swift.conf").write_text(SWIFT)
        (folder / "proxy.conf").write_text(common + PROXY.format(secret=secret, secret_of_nobody=secret_of_nobody))
        for name in STORES:
            (folder / f"{name}.conf").write_text(common + STORE.format(name=name))
        self.environment = {
            "AWS_ENDPOINT_URL": f"http://{HOST}:{self._port('proxy')}",
            "AWS_ACCESS_KEY_ID": "test:admin",
            "AWS_SECRET_ACCESS_KEY": secret,
            "AWS_DEFAULT_REGION": "us-east-1",
            "S3_NOBODY_ACCESS_KEY_ID": "test:nobody",
            "S3_NOBODY_SECRET_ACCESS_KEY": secret_of_nobody,
        }

    def __enter__(self) -> "Swift":
        ports = [str(self._port(name)) for name in STORES]
        subprocess.run([self.python, "-P", __file__, "rings", self.folder, *ports], check=True)
        try:
            self.start(*self.held)
        except OSError:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error) -> None:
        for process in self.processes.values():
            process.kill()
            process.wait()
        for hold in self.held.values():
            hold.close()

    def start(self, *names: str) -> None:
        """Start servers and wait until they listen; from the main thread, whose end would end them."""
        for name in names:
            with (self.folder / f"{name}.log").open("a") as log:
                command = [self.python, "-P", __file__, name, self.folder, str(self._port(name))]
                self.processes[name] = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | NO_PROXY)
        for name in names:
            self._wait(name)

    def kill(self, name: str) -> None:
        self.processes[name].send_signal(signal.SIGKILL)
        self.processes[name].wait()

    def _port(self, name: str) -> int:
        return self.held[name].getsockname()[1]

    def _wait(self, name: str) -> None:
        end = monotonic() + START_S
        while monotonic() < end and self.processes[name].poll() is None:
            try:
                socket.create_connection((HOST, self._port(name)), 1).close()
                return
            except OSError:
                sleep(0.05)
        log = (self.folder / f"{name}.log").read_text()
        raise OSError(f"Swift's {name} server does not start: {log[-1000:]}")


def _bound(port: int) -> socket.socket:
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # as Swift's own; else an answer takes 40 ms more
    sock.bind((HOST, port))
    return sock


def run(folder: Path) -> None:
    _end_with_parent()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    with Swift(folder) as server:
        print(*(f"{key}={value}" for key, value in server.environment.items()), "READY=1", sep="\n", flush=True)
        while True:
            signal.pause()


def _end_with_parent() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)


# In Swift's own environment


def write_rings(folder: Path, *ports: str) -> None:
    """Where the servers are: one device, one replica."""
    from swift.common.ring import RingBuilder

    for name, port in zip(STORES, ports, strict=True):
        builder = RingBuilder(4 if name == "object" else 1, 1, 1)
        there = {"ip": HOST, "port": int(port), "replication_ip": HOST, "replication_port": int(port)}
        builder.add_dev({"id": 0, "region": 1, "zone": 1, "device": DEVICE, "weight": 1.0, "meta": "", **there})
        builder.rebalance(seed=1)
        builder.get_ring().save(str(folder / f"{name}.ring.gz"))


def serve(name: str, folder: Path, port: str) -> None:
    from swift.common import utils, wsgi

    _end_with_parent()
    utils.eventlet_monkey_patch()
    utils.set_swift_dir(str(folder))
    sock = _bound(int(port))
    conf = {"__file__": str(folder / f"{name}.conf")}
    wsgi.run_server(conf, None, sock, {"log_name": name}, ready_callback=lambda: sock.listen(1024))


class Memory:
    """What memcached would remember for a proxy, which is the only one here."""

    def __init__(self) -> None:
        self.values = {}

    def get(self, key, **options):
        value, end = self.values.get(key, (None, 0.0))
        return value if end > now() else None

    def set(self, key, value, time=0, **options):
        self.values[key] = value, now() + (time or 3600)

    def incr(self, key, delta=1, time=0, **options):
        self.set(key, int(self.get(key) or 0) + delta, time)
        return self.get(key)

    def delete(self, key, **options):
        self.values.pop(key, None)


def cache(global_conf, **conf):
    """Filter factory: every request finds the memory."""
    memory = Memory()

    def remember(app):
        def call(env, start):
            env["swift.cache"] = memory
            return app(env, start)

        return call

    return remember


if __name__ == "__main__":
    role, folder, *ports = sys.argv[1:]
    {"run": run, "rings": write_rings}.get(role, partial(serve, role))(Path(folder), *ports)
