"""One job at a time writes into an output.

A folder is locked by the kernel, by a file inside it: one folder has many names, and what is stored beside it may
belong to others. On S3 a small object, the lease, names the job that writes. Its age is taken from the store's own
clock, so the clocks of the machines do not matter. The job renews it at a third of its life; another job may take over
a lease that is older than its life. Some stores let two clients both believe that they created the object, so each job
reads the lease again after SETTLE_S: the one whose id is in it continues, the other stops.

The accident that the lease prevents: a batch job is started twice on one S3 output, by a schedule and by hand, or again
because its machine was taken for dead. With equal params all the work would be done twice. With another model or
other params the images of both would be mixed under the receipt of the job that ends last, which then names a model
that did not make all of them.
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
    """Hold an output; yields a check to call before writing, which raises BlockingIOError once another job has it.

    On S3 the hold ends `seconds` after its last renewal; that of a job which died on this machine ends at once. Raises
    BlockingIOError naming the process that holds the output, since when, and when it will be free if that job is dead.
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
    """The job that holds a lease: the content of the object."""

    id: str
    host: str
    machine: str
    pid: int
    started: float  # of the process: its number may be given to another one later
    since: str
    seconds: float

    def is_dead(self) -> bool:
        """Whether it was a process of this machine that has ended."""
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
    """The lease of one job on an S3 output. `lost_to` is the message about another job that has it now, if any."""

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
            if held := self._read():
                owner, age_s = held
                if age_s <= owner.seconds and not owner.is_dead():
                    raise BlockingIOError(f"{self.sink} {held_by(owner, age_s)}")
            self._write()

    def keep(self) -> None:
        """Check that it is still ours, and renew it, until the end: after SETTLE_S, then at each third of its life."""
        pause_s = SETTLE_S
        while not (self.ended.wait(pause_s) or self.lost_to):
            try:
                held = self._read()
                if held and held[0] != self.me:
                    self.lost_to = held_by(*held)
                else:
                    self._write()
            except (OSError, ValueError) as error:  # the job's own requests fail as well
                log.warning("the lease of %s could not be renewed: %s", self.sink, error)
            pause_s = self.me.seconds / 3

    def check(self) -> None:
        """Raise BlockingIOError if another job has the output by now."""
        if self.lost_to:
            raise BlockingIOError(f"{self.sink} {self.lost_to}")

    def release(self) -> None:
        """Delete the lease if it is still ours."""
        try:
            if (held := self._read()) and held[0] == self.me:
                self.sink.delete(LEASE)
        except OSError as error:  # the job's work is done; the lease ends by itself
            log.warning("the lease of %s could not be released: %s", self.sink, error)

    def _write(self) -> None:
        self.sink.write(LEASE, self.data, "application/json")

    def _read(self) -> tuple[_Owner, float] | None:
        """The owner of the present lease and its age in seconds; None where there is none."""
        try:
            data, age_s = self.sink.read_aged(LEASE)
            return _Owner(**json.loads(data)), age_s
        except FileNotFoundError:
            return None
        except (ValueError, TypeError) as error:
            raise ValueError(f"{self.sink}: {LEASE} is not a lease; delete it: {data[:80]!r}") from error


def held_by(owner: _Owner, age_s: float) -> str:
    """What a job that is refused learns: which process writes, since when, and when the lease ends."""
    free = datetime.now(UTC) + timedelta(seconds=max(0.0, owner.seconds - age_s))
    return (
        f"is being written by process {owner.pid} on {owner.host} since {owner.since}; "
        f"if that job is dead, it is free at {free:%H:%M:%S} UTC"
    )
