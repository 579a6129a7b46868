"""A soak: `batch-depth` every minute on a real S3 store while things fail at random. `make soak MINUTES=30`.

Everything is started as a user does, by `metricgold up`. One deployment writes to S3, one into a folder on a small
disk; both read what arrives in one bucket, with one model. Writes reports/soak.json, and ends with 1 where an image was
lost or doubled, memory or descriptors grew, or a run ended without a reason on its page.
"""

import argparse
import hashlib
import io
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Any

import httpx
import numpy as np
import psutil
import yaml
from PIL import Image

from flows.child_processes import FAMILY
from metricgold.predict.receipt import RECEIPT
from metricgold.storage import open_bucket, read_json, write_json
from tests.flows.toy import SCRIPTS, make_project, quiet_environment
from tests.support import server
from tests.support.s3 import s3_client
from tests.support.server import FaultServer
from tests.support.swift import Swift
from tests.support.waiting import wait_until

REPORT = Path("reports/soak.json")
DEPLOYMENTS = {"batch-depth": "metricgold-gpu", "depth-to-disk": "metricgold-cpu"}
PATIENCE_S = 15  # with S3, of a job; a flow's own retries come after it
RETRIES = ("RETRY_DELAYS_S = [60, 300, 900]", "RETRY_DELAYS_S = [10, 20, 40]")
IMAGES_A_ROUND = 3
DISK = "size=24m"
SAMPLE_S = 5.0
LEAST_SAMPLES = 24  # of a process before its growth counts: two minutes
MOST_GROWTH_MB, MOST_GROWTH_FDS = 60, 12
ACTIVE, ENDED = ["PENDING", "RUNNING", "CANCELLING", "SCHEDULED"], ["COMPLETED", "FAILED", "CRASHED", "CANCELLED"]
TOKEN = b"<Error><Code>ExpiredToken</Code><Message>The provided token has expired.</Message></Error>"
server.PAGES["token"] = lambda: server._page(403, TOKEN)


class Front(FaultServer):
    """What jobs take for S3: forwards, and says that their credentials have expired while that is so."""

    have_expired = False

    def next_fault(self, method: str, path: str, span: str | None) -> str:
        self.requests.clear()  # hours of them
        return "token" if self.have_expired else super().next_fault(method, path, span)


class Soak:
    """A project, its store, its services, and what can befall them."""

    def __init__(self, folder: Path, store: Swift, front: Front, seed: int) -> None:
        self.folder, self.store, self.front, self.random = folder, store, front, random.Random(seed)
        self.root, self.disk, self.temporary = folder / "project", folder / "disk", folder / "tmp"
        self.num_images, self.faults, self.samples = 0, Counter(), defaultdict(list)
        ours = {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9", "METRICGOLD_S3_PATIENCE_S": str(PATIENCE_S)}
        ours |= {"PATH": f"{SCRIPTS}:{os.environ['PATH']}", "TMPDIR": str(self.temporary), "METRICGOLD_CARDS": "0"}
        env = quiet_environment(**ours, OMP_NUM_THREADS="1")
        self.env = {name: value for name, value in env.items() if not name.startswith("AWS_")}

    # A project and its services

    def lay_out(self) -> None:
        """A project with two deployments that run every minute; a disk of its own, if there may be one."""
        make_project(self.root)
        for path in (self.disk, self.temporary):
            path.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", DISK, "none", self.disk], check=True)
        flow = self.root / "flows/batch_depth.py"
        assert RETRIES[0] in flow.read_text()
        flow.write_text(flow.read_text().replace(*RETRIES))
        model = self.folder / "model"
        code = (
            f"from pathlib import Path; from tests.support.models import write_random_model as write; write({model!r})"
        )
        subprocess.run([sys.executable, "-c", code.replace("PosixPath", "Path")], check=True)
        params = {"input": "s3://soak/in", "model": str(model)}
        params |= {"num_inference_steps": 1, "ensemble_size": 1, "outputs": ["npz", "preview", "json"]}
        config = yaml.safe_load((self.root / "prefect.yaml").read_text())
        (one,) = [one for one in config["deployments"] if one["name"] == "batch-depth"]
        outputs = dict(zip(DEPLOYMENTS, ("s3://soak/out", str(self.disk / "out")), strict=True))
        config["deployments"] = [
            one
            | {"name": name, "work_pool": {"name": pool}, "parameters": params | {"output": outputs[name]}}
            | {"schedules": [{"cron": "* * * * *", "slug": "every-minute"}]}
            for name, pool in DEPLOYMENTS.items()
        ]
        (self.root / "prefect.yaml").write_text(yaml.safe_dump(config))
        with socket.socket() as probe:  # not the usual port, which others take for theirs
            probe.bind(("127.0.0.1", 0))
            write_json(self.root / ".metricgold/services.json", {"ports": {"prefect": probe.getsockname()[1]}})
        os.environ.update(self.store.environment)  # of this process, which goes past the front
        s3_client().create_bucket(Bucket="soak")
        self.write_credentials(self.store.environment["AWS_SECRET_ACCESS_KEY"])

    def write_credentials(self, secret: str) -> None:
        """Into the project's .env, whose other lines stay: no worker ever has them in its environment."""
        path = self.root / ".env"
        ours = {**self.store.environment, "AWS_ENDPOINT_URL": self.front.url, "AWS_SECRET_ACCESS_KEY": secret}
        old = path.read_text().splitlines() if path.exists() else []
        lines = [f"{name}={value}" for name, value in ours.items() if name.startswith("AWS_")]
        aside = path.with_suffix(".new")
        aside.write_text("\n".join([*lines, *(line for line in old if not line.startswith("AWS_")), ""]))
        aside.replace(path)

    def command(self, word: str) -> None:
        """One of `metricgold`, in the project."""
        done = subprocess.run(
            [SCRIPTS / "metricgold", word], cwd=self.root, env=self.env, capture_output=True, text=True
        )
        if done.returncode:
            raise RuntimeError(f"metricgold {word}: {done.stderr}")

    def services(self) -> dict[str, psutil.Process]:
        """Those that run, by name."""
        found = {}
        for name, known in read_json(self.root / ".metricgold/services.json")["processes"].items():
            with suppress(psutil.NoSuchProcess):
                found[name] = psutil.Process(known["pid"])
        return found

    def ask(self, method: str, path: str, body: object = None) -> Any:
        port = read_json(self.root / ".metricgold/services.json")["ports"]["prefect"]
        url = f"http://127.0.0.1:{port}/api{path}"

        def answered() -> httpx.Response | None:  # a server that is busy says 503, as its own client knows
            answer = httpx.request(method, url, json=body, timeout=60)
            return answer if answer.status_code != httpx.codes.SERVICE_UNAVAILABLE else None

        answer = wait_until(answered, within_s=120, every_s=1, what=url)
        answer.raise_for_status()
        return answer.json() if answer.content else None

    # What befalls them

    def feed(self) -> None:
        """New images of noise, none like another."""
        source = open_bucket("s3://soak/in")
        for _ in range(IMAGES_A_ROUND):
            file = io.BytesIO()
            rgb = np.random.default_rng(self.num_images).integers(0, 256, (48, 64, 3), np.uint8)
            Image.fromarray(rgb).save(file, "PNG")
            source.write(f"{self.num_images:05d}.png", file.getvalue())
            self.num_images += 1

    def pause(self, least_s: float, most_s: float) -> None:
        time.sleep(self.random.uniform(least_s, most_s))

    def s3_away(self) -> None:
        self.store.kill("proxy")
        self.pause(5, 4 * PATIENCE_S)
        self.store.start("proxy")

    def worker_killed(self) -> None:
        name = self.random.choice(["worker-gpu", "worker-cpu"])
        process = self.services()[name]
        process.send_signal(self.random.choice([signal.SIGKILL, signal.SIGTERM]))
        psutil.wait_procs([process], timeout=60)
        self.pause(1, 10)
        self.command("up")

    def server_restarted(self) -> None:
        process = self.services()["prefect"]
        process.send_signal(self.random.choice([signal.SIGKILL, signal.SIGTERM]))
        psutil.wait_procs([process], timeout=60)
        self.pause(1, 20)
        self.command("up")

    def disk_full(self) -> None:
        filler = self.disk / "filler"
        with suppress(OSError), filler.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        self.pause(60, 80)
        filler.unlink()

    def credentials_expired(self) -> None:
        self.front.have_expired = True
        self.pause(5, 4 * PATIENCE_S)
        self.front.have_expired = False

    def credentials_wrong(self) -> None:
        self.write_credentials("not-the-secret")
        self.pause(30, 70)
        self.write_credentials(self.store.environment["AWS_SECRET_ACCESS_KEY"])

    def run_cancelled(self) -> None:
        """By the request that Prefect's page makes; all that the run had started must be gone within a minute."""
        running = self.runs(["RUNNING"])
        if not running:
            return
        run = self.random.choice(running)
        self.ask("POST", f"/flow_runs/{run['id']}/set_state", {"state": {"type": "CANCELLING", "name": "Cancelling"}})

        def has_ended() -> bool:  # or was about to end by itself at this moment
            return self.ask("GET", f"/flow_runs/{run['id']}")["state"]["type"] in ENDED

        wait_until(has_ended, within_s=60, every_s=0.5, what="the end of a cancelled run")

    def soak(self, seconds: float) -> None:
        """Feed and fault until the time is over: all kinds in a random order, then again."""
        kinds: list[Callable[[], None]] = [self.s3_away, self.worker_killed, self.server_restarted]
        kinds += [self.disk_full, self.credentials_expired, self.credentials_wrong, self.run_cancelled]
        ends_at, deck = time.monotonic() + seconds, []
        while time.monotonic() < ends_at:
            self.feed()
            self.pause(10, 30)
            deck = deck or self.random.sample(kinds, len(kinds))
            fault = deck.pop()
            print(f"{time.strftime('%H:%M:%S')} {fault.__name__}", flush=True)
            self.faults[fault.__name__] += 1
            fault()

    def watch(self, is_over: threading.Event) -> None:
        """Memory and descriptors of what runs for long, by process."""
        while not is_over.wait(SAMPLE_S):
            for name, process in self.services().items():
                with suppress(psutil.Error, OSError):
                    sample = process.memory_info().rss / 1e6, process.num_fds()
                    self.samples[f"{name} {process.pid}"].append(sample)

    # What is left

    def settle(self) -> None:
        """No new runs by the clock; those that are under way end; then one more of each, which must complete."""
        for name in DEPLOYMENTS:
            deployment = self.ask("GET", f"/deployments/name/batch-depth/{name}")
            self.ask("PATCH", f"/deployments/{deployment['id']}", {"paused": True})
        try:
            wait_until(lambda: not self.runs(ACTIVE), within_s=480, every_s=2)
        except TimeoutError:
            left = [
                f"{run['name']}: {run['state']['name']} since {run['state']['timestamp']}" for run in self.runs(ACTIVE)
            ]
            raise TimeoutError(f"these runs did not end within 480 s: {'; '.join(left)}") from None
        last = []
        for name in DEPLOYMENTS:
            deployment = self.ask("GET", f"/deployments/name/batch-depth/{name}")
            last.append(self.ask("POST", f"/deployments/{deployment['id']}/create_flow_run", {})["id"])

        def are_done() -> bool:
            states = [self.ask("GET", f"/flow_runs/{one}")["state"] for one in last]
            assert not any(state["type"] in ENDED[1:] for state in states), states
            return all(state["type"] == "COMPLETED" for state in states)

        wait_until(are_done, within_s=480, every_s=2, what="the last runs")

    def runs(self, types: list[str]) -> list[dict[str, Any]]:
        """All runs in these states."""
        return self.all_of("flow_runs", {"state": {"type": {"any_": types}}})

    def all_of(self, kind: str, wanted: dict[str, Any]) -> list[dict[str, Any]]:
        """What the server has of a kind, page by page."""
        found: list[dict[str, Any]] = []
        while page := self.ask("POST", f"/{kind}/filter", {kind: wanted, "limit": 200, "offset": len(found)}):
            found += page
        return found

    def report(self) -> dict[str, Any]:
        """Counts, and what is wrong."""
        ended = self.runs(ENDED)
        without_reason, reasons = self.reasons([run for run in ended if run["state"]["type"] != "COMPLETED"])
        found = {
            "runs": dict(Counter(run["state"]["type"].lower() for run in ended)),
            "faults": dict(self.faults),
            "images": self.num_images,
            "images_predicted": self.images_predicted(),
            "reasons": reasons,
            "growth": growth(self.samples),
            "temporary_files_left": sum(1 for _ in self.temporary.iterdir()),
        }
        rows = {name: rows_of(place) for name, place in (("s3", "s3://soak/out"), ("disk", str(self.disk / "out")))}
        faults = [fault for name, all_rows in rows.items() for fault in self.faults_of(name, all_rows)]
        again = found["images_predicted"] - 2 * self.num_images
        faults += [f"{again} images were predicted again"] if again > 0 else []
        faults += [f"run {name} ended without a reason" for name in without_reason]
        faults += [f"{name} grew: {grown}" for name, grown in found["growth"].items() if grown["too_much"]]
        faults += [f"left running: {one}" for one in left_running(self.root)]
        return found | {"wrong": faults}

    def faults_of(self, name: str, rows: list[dict[str, Any]]) -> list[str]:
        """What of an output is lost, doubled, or nobody's."""
        place = "s3://soak/out" if name == "s3" else str(self.disk / "out")
        keys = [row["input"] for row in rows]
        sink = open_bucket(place)
        there = {entry.key for entry in sink.entries()}
        named = {file["key"] for row in rows for file in row.get("outputs", {}).values()}
        lost = {f"{number:05d}.png" for number in range(self.num_images)} - {
            row["input"] for row in rows if row["status"] == "done" and row["outputs"]
        }
        found = {
            "lost": lost,
            "in two rows": {key for key in keys if keys.count(key) > 1},
            "files without a row": {key for key in there - named if key.startswith("0")},
            "rows without a file": named - there,
            "other bytes than the row says": {
                row["output"]
                for row in rows
                if row["output"] in there and hashlib.sha256(sink.read(row["output"])).hexdigest() != row["sha256"]
            },
        }
        return [f"{name}: {fault}: {sorted(names)}" for fault, names in found.items() if names]

    def images_predicted(self) -> int:
        """By runs that completed, as their pages say; what they kept was predicted by an earlier one."""
        tables = self.all_of("artifacts", {"key": {"any_": ["batch-depth"]}})
        figures = [dict(re.findall(r"^\| (\w+) \| (\d+) \|$", table["data"], re.MULTILINE)) for table in tables]
        return sum(int(one["images_done"]) - int(one["images_kept"]) for one in figures)

    def reasons(self, runs: list[dict[str, Any]]) -> tuple[list[str], dict[str, int]]:
        """Runs without a reason that a person can read, and how often which reason was given."""
        without, counts = [], Counter()
        for run in runs:
            pages = self.all_of("artifacts", {"flow_run_id": {"any_": [run["id"]]}, "key": {"any_": ["how-it-ended"]}})
            lines = (run["state"]["message"] or "").strip().splitlines()
            errors = [line for line in lines if line.startswith("Error: ")]
            if not lines or (run["run_count"] and not pages):  # one that was skipped has no page of its own
                without.append(f"{run['name']} ({run['state']['name']})")
            counts[re.sub(r"\d+", "N", (errors or lines or ["none"])[-1 if errors else 0])[:160]] += 1
        return without, dict(counts.most_common())


def rows_of(place: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in open_bucket(place).lines(RECEIPT)]


def growth(samples: dict[str, list[tuple[float, float]]]) -> dict[str, dict[str, Any]]:
    """What each process that lived long had in its second quarter and in its last: the first is spent on starting."""
    found = {}
    for name, taken in samples.items():
        quarter = len(taken) // 4
        if len(taken) < LEAST_SAMPLES:
            continue
        early, late = (list(zip(*part, strict=True)) for part in (taken[quarter : 2 * quarter], taken[-quarter:]))
        (mb, fds), (late_mb, late_fds) = map(median, early), map(median, late)
        too_much = late_mb - mb > MOST_GROWTH_MB or late_fds - fds > MOST_GROWTH_FDS
        found[name] = {"mb": [round(mb), round(late_mb)], "fds": [fds, late_fds], "too_much": too_much}
    return found


def left_running(root: Path) -> list[str]:
    """Children of flows that outlived all of them."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if FAMILY in process.environ() and Path(process.cwd()) == root:
                found.append(" ".join(process.cmdline()))
    return found


def run(folder: Path, minutes: float, seed: int) -> dict[str, Any]:
    with Swift(folder / "swift") as store, Front(upstream=store.environment["AWS_ENDPOINT_URL"]) as front:
        soak, is_over, started = Soak(folder, store, front, seed), threading.Event(), time.monotonic()
        soak.lay_out()
        try:
            soak.command("up")
            watcher = threading.Thread(target=soak.watch, args=(is_over,), daemon=True)
            watcher.start()
            soak.soak(60 * minutes)
            soak.settle()
            is_over.set()
            watcher.join()
            return {"minutes": round((time.monotonic() - started) / 60, 1), "seed": seed} | soak.report()
        finally:
            is_over.set()
            soak.command("down")
            subprocess.run(["umount", "-l", soak.disk], check=False)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.soak")
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if not asked.inside:  # mounts of its own, which end with it
        flags = "-m" if os.geteuid() == 0 else "-rm"
        os.execvp("unshare", ["unshare", flags, sys.executable, "-m", "tests.soak", *sys.argv[1:], "--inside"])
    with tempfile.TemporaryDirectory(prefix="metricgold-soak-", ignore_cleanup_errors=True) as folder:
        found = run(Path(folder), asked.minutes, asked.seed)
    REPORT.parent.mkdir(exist_ok=True)
    write_json(REPORT, found)
    print(json.dumps(found, indent=2))
    sys.exit(1 if found["wrong"] else 0)


if __name__ == "__main__":
    main()
