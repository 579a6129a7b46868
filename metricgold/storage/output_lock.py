"""One job at a time writes into an output.

A folder is locked by the kernel, with a file within it: one folder has many names, and what lies beside it may be
another's. On S3 a small object says who writes; its age is told by the store's own clock, so that the clocks of the
machines do not matter. It is renewed at a third of its life, and whoever finds it older than that takes it over. Stores
on which two at once may both seem to have written it are met by looking again a little later, while both have begun:
the last one has it.
"""

import json
import logging
import socket
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from threading import Event, Thread

import psutil

from metricgold.storage.buckets import Folder, S3Prefix
from metricgold.storage.files import machine, only_writer

log = logging.getLogger(__name__)

LEASE, LOCK = ".metricgold-lease.json", ".metricgold.lock"  # on S3, in a folder
SETTLE_S = 0.5  # longer than a store takes from looking to writing


@contextmanager
def hold_output(sink: Folder | S3Prefix, seconds: float) -> Iterator[Callable[[], None]]:
    """Hold an output; yields a check that raises BlockingIOError once another job has it, to be asked before writing.

    `seconds` without renewal end a hold on S3; that of a job which died on this machine ends at once. Raises
    BlockingIOError naming who holds the output, since when, and when it will be free if that job is dead.
    """
    if isinstance(sink, Folder):
        with only_writer(sink.root, sink.root / LOCK):
            yield lambda: None
        return
    lease = _Lease(sink, seconds)
    lease.take()
    thread = Thread(target=lease.keep, daemon=True, name="lease")
    thread.start()
    try:
        yield lease.check
    except BaseException:
        sink.close()  # a broken job does not wait for its store
        raise
    finally:
        lease.ended.set()
        thread.join()
        lease.release()


@dataclass(frozen=True, slots=True)
class _Owner:
    """Who holds a lease, as the object says it."""

    id: str
    host: str
    machine: str
    pid: int
    started: float  # of the process, so that a number used again is not taken for it
    since: str
    seconds: float

    def is_dead(self) -> bool:
        """Whether it was a process of this machine that is no more."""
        if self.machine != machine():
            return False
        try:
            process = psutil.Process(self.pid)
            return process.create_time() != self.started or process.status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return True
        except psutil.Error:
            return False


class _Lease:
    def __init__(self, sink: S3Prefix, seconds: float) -> None:
        self.sink, self.ended, self.lost_to = sink, Event(), ""
        process, now = psutil.Process(), datetime.now(UTC).isoformat(timespec="seconds")
        self.me = _Owner(
            uuid.uuid4().hex, socket.gethostname(), machine(), process.pid, process.create_time(), now, seconds
        )
        self.data = json.dumps(asdict(self.me), sort_keys=True).encode()

    def take(self) -> None:
        """Write the lease where there is none, or over one that has ended."""
        if not self.sink.write_if_absent(LEASE, self.data):
            if (held := self._found()) and not _has_ended(*held):
                raise BlockingIOError(f"{self.sink} {_held(*held)}")
            self._write()

    def keep(self) -> None:
        """Look whether it is still ours, soon and then again and again until the end, and renew it."""
        pause_s = SETTLE_S
        while not (self.ended.wait(pause_s) or self.lost_to):
            try:
                self._renew()
            except (OSError, ValueError) as error:  # the job's own requests meet the same
                log.warning("the lease of %s could not be renewed: %s", self.sink, error)
            pause_s = self.me.seconds / 3

    def _renew(self) -> None:
        held = self._found()
        if held and held[0] != self.me:
            self.lost_to = _held(*held)
        else:
            self._write()

    def check(self) -> None:
        if self.lost_to:
            raise BlockingIOError(f"{self.sink} {self.lost_to}")

    def release(self) -> None:
        try:
            if (held := self._found()) and held[0] == self.me:
                self.sink.delete(LEASE)
        except OSError as error:  # what the job did is done; the lease ends by itself
            log.warning("the lease of %s could not be released: %s", self.sink, error)

    def _write(self) -> None:
        self.sink.write(LEASE, self.data, "application/json")

    def _found(self) -> tuple[_Owner, float] | None:
        """Whose lease lies there and its age in seconds."""
        try:
            data, age_s = self.sink.read_aged(LEASE)
            return _Owner(**json.loads(data)), age_s
        except FileNotFoundError:
            return None
        except (ValueError, TypeError) as error:
            raise ValueError(f"{self.sink}: {LEASE} is no lease; delete it: {data[:80]!r}") from error


def _has_ended(owner: _Owner, age_s: float) -> bool:
    return age_s > owner.seconds or owner.is_dead()


def _held(owner: _Owner, age_s: float) -> str:
    free = datetime.now(UTC) + timedelta(seconds=max(0.0, owner.seconds - age_s))
    return (
        f"is being written by process {owner.pid} on {owner.host} since {owner.since}; "
        f"if that job is dead, it is free at {free:%H:%M:%S} UTC"
    )
