"""One job at a time writes into an output, and a job that has lost it writes nothing more.

A small file in the output, the lease, names the job that writes. Its number grows with each job that takes it, and it
stays when the job ends. Every write asks first (`Lease.fence`) whether the lease still is the job's own: one that is
gone or another's ends the job with OutputLost.

A folder is locked by the kernel as well, by a second file inside it: one folder has many names, and what is stored
beside it may belong to others. So the lease of a folder ends with the lock. It stops what the lock does not reach: a
worker on another machine whose job has died, or a job whose file server has forgotten the lock.

On S3 the lease ends `seconds` after it was last renewed. Its age is taken from the store's own clock, so the clocks of
the machines do not matter. The job renews it at a third of its life, and before any write once two thirds are over:
after a frozen process, a sleeping or paused machine or a store that was away, it first learns whether another job came.
A step of the time of day counts as time that has passed, for no clock since the boot tells that a virtual machine was
paused. The other job may take over a lease that is older than its life, at once where it can see that the process is
dead. Stores differ in conditional writes: some have none, some let two clients both believe that they were first. So
whoever takes a lease reads it again before the first write, when it has settled: the job whose id is in it continues,
the other ends. A job that needed longer than that from looking to writing may have overwritten the lease of one that
has settled, and waits for the lease's whole life: the other sees by then that its lease has another id, or a lower
number than its own, which is a late write and does not count.

The accident that the lease prevents: a batch job is started twice on one output, by a schedule and by hand, or again
because its machine was taken for dead. With equal params all the work would be done twice. With another model or
other params the images of both would be mixed under the receipt of the job that ends last, which then names a model
that did not make all of them.
"""

import io
import logging
import os
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Event, Lock, Thread
from typing import Annotated, NamedTuple, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from metricgold.storage.buckets import ConditionFailed, Folder, S3Prefix, StoreLost
from metricgold.storage.files import machine, only_writer

log = logging.getLogger(__name__)

LEASE, LOCK = ".metricgold-lease.json", ".metricgold.lock"
SETTLE_S = 1.0  # longer than a store takes from looking to writing; of short leases a tenth
CLOCK_STEP_S = 1.0  # of the times that a store tells
LOOK_S = 1.0  # between two looks of a worker at the lease of its job
MAX_BYTES = 1 << 16  # of a lease; ours take 400
Sink = TypeVar("Sink", bound=Folder | S3Prefix)
_Text = Annotated[str, Field(pattern=r"^[ -~]{0,300}$")]  # it may be shown


class OutputLost(StoreLost, BlockingIOError):
    """Another job has the output by now, or it cannot be known who has."""

    exit_code = 75  # of the command; EX_TEMPFAIL of sysexits.h


@contextmanager
def hold_output(sink: Folder | S3Prefix, seconds: float) -> Iterator["Lease"]:
    """Hold an output while the context lasts; write into what the lease's `fence` makes of the bucket.

    On S3 the hold ends `seconds` after its last renewal; that of a job which died on this machine ends at once. Raises
    BlockingIOError naming the process that holds the output, since when, and when it will be free if that job is dead;
    ValueError naming the key where a foreign file has the lease's name.
    """
    if isinstance(sink, Folder):
        with only_writer(sink.root, sink.root / LOCK):
            lease = Lease(sink, seconds)
            lease.take()
            try:
                yield lease
            finally:
                lease.release()
        return
    lease = S3Lease(sink, seconds)
    lease.take()
    thread = Thread(target=lease.keep, daemon=True, name="lease")
    thread.start()
    try:
        yield lease
    except BaseException:
        sink.close()  # a broken job does not wait for its store
        raise
    finally:
        lease.ended.set()
        thread.join()
        lease.release()


class Holder(BaseModel):
    """The job that holds an output: the content of its lease."""

    model_config = ConfigDict(frozen=True, strict=True, allow_inf_nan=False)

    id: _Text
    number: Annotated[int, Field(ge=0)] = 0  # one more than that of the lease before it
    host: _Text
    machine: _Text
    pid: Annotated[int, Field(gt=0, lt=1 << 31)]
    # Of the process, whose number may be given to another one later. Counted from the boot: the time of day at which a
    # process began changes with every correction of the clock. None in leases from before: then its number alone says.
    started_ticks: int | None = None
    since: _Text
    seconds: Annotated[float, Field(gt=0)]
    renewals: int = 0  # so that each renewal changes the tag
    ended: bool = False

    @classmethod
    def of_this_process(cls, seconds: float) -> "Holder":
        """This process, with a new id."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        host = socket.gethostname().encode("ascii", "backslashreplace").decode()
        return cls(
            id=uuid.uuid4().hex,
            host=host,
            machine=machine(),
            pid=os.getpid(),
            started_ticks=started_ticks(os.getpid()),
            since=now,
            seconds=seconds,
        )

    def is_dead(self) -> bool:
        """Whether it was a process of this machine that has ended."""
        if self.machine != machine():
            return False
        started = started_ticks(self.pid)
        return started is None or self.started_ticks not in (None, started)

    def fence(self, sink: Sink) -> Sink:
        """The bucket of a worker of this job: before a write it looks whether the job still has its lease."""
        return replace(sink, fence=_Look(sink, self))


class HeldLease(NamedTuple):
    """A lease as it lies in an output."""

    holder: Holder
    tag: str
    age_s: float

    def __str__(self) -> str:
        """What a job that is refused learns: which process writes, since when, and when the lease ends."""
        holder = self.holder
        free = datetime.now(UTC) + timedelta(seconds=max(0.0, holder.seconds - self.age_s))
        return (
            f"is being written by process {holder.pid} on {holder.host} since {holder.since}; "
            f"if that job is dead, it is free at {free:%H:%M:%S} UTC"
        )


def read_lease(sink: Folder | S3Prefix) -> HeldLease | None:
    """The lease of an output, None where there is none yet. ValueError naming the key where the file is not ours."""
    try:
        data, tag, age_s = sink.read_tagged(LEASE, MAX_BYTES)
        return HeldLease(Holder.model_validate_json(data), tag, age_s)
    except FileNotFoundError:
        return None
    except ValidationError as error:
        place = f"{str(sink).rstrip('/')}/{LEASE}"
        fault = error.errors()[0]
        raise ValueError(
            f"{place} is not a lease of metricgold ({'.'.join(map(str, fault['loc']))}: {fault['msg']}); "
            f"move it away if no job runs: {data[:80]!r}"
        ) from None


class Lease:
    """The lease of this process on a folder, whose lock it has too.

    is_doubtful  another job may have a write under way: it did not give the output back, or ours was free for a while
    """

    def __init__(self, sink: Folder | S3Prefix, seconds: float) -> None:
        self.sink, self.me = sink, Holder.of_this_process(seconds)
        self.is_doubtful = False

    def take(self) -> None:
        """Write the next lease."""
        held = self.look()
        self.refuse_living(held)
        self.is_doubtful = held is not None and not held.holder.ended
        self.write(held, number=held.holder.number + 1 if held else 1)

    def look(self) -> HeldLease | None:
        """The lease as it lies there."""
        return read_lease(self.sink)

    def refuse_living(self, held: HeldLease | None) -> None:
        """In a folder the lock has answered whether another job is at work."""

    def fence(self, sink: Sink) -> Sink:
        """The bucket to write into: it asks before each write, and raises OutputLost where the lease is lost."""
        return self.me.fence(sink)

    def release(self) -> None:
        """Say in the lease that the job has ended, if it still is ours."""
        try:
            while (held := self.look()) and held.holder.id == self.me.id and not held.holder.ended:
                with suppress(ConditionFailed):
                    self.write(held, ended=True)
        except (OSError, ValueError) as error:  # the job's work is done; the lease ends by itself
            log.warning("the lease of %s could not be given back: %s", self.sink, error)

    def write(self, held: HeldLease | None, **changes: int) -> None:
        """Write the lease in the place of the one that was seen. ConditionFailed where it must be looked at again."""
        self.me = self.me.model_copy(update={"renewals": self.me.renewals + 1, **changes})
        self.put(held, self.me.model_dump_json().encode())

    def put(self, held: HeldLease | None, data: bytes) -> None:
        """Write the bytes: under the lock nobody else does."""
        self.sink.write(LEASE, data, "application/json")


class S3Lease(Lease):
    """The lease of this process on an S3 output, which it must renew."""

    def __init__(self, sink: S3Prefix, seconds: float) -> None:
        super().__init__(sink, seconds)
        self.own = replace(sink, fence=self.check_fresh)
        self.ended, self.lock = Event(), Lock()
        self.settle_s = min(SETTLE_S, seconds / 10)
        self.looked_at = self.renewed_at = self.settles_at = self.offset_s = 0.0
        self.is_settled, self.is_conditional = False, True
        self.lost: StoreLost | None = None

    def take(self) -> None:
        """Write the next lease where the one that lies there has ended, else raise BlockingIOError."""
        while not self.settles_at:
            began = awake_or_not_s()
            with suppress(ConditionFailed):
                super().take()
                self.claim(began)

    def refuse_living(self, held: HeldLease | None) -> None:
        """Raise BlockingIOError where another job has the output."""
        if held is None or held.holder.ended or held.holder.is_dead():
            return
        if held.age_s <= held.holder.seconds + CLOCK_STEP_S:
            raise BlockingIOError(f"{self.sink} {held}")

    def claim(self, began: float) -> None:
        """Have a lease settle that was free, and that has been looked at and written since `began`."""
        now = awake_or_not_s()
        self.renewed_at, self.is_settled = began, False
        self.settles_at = now + (self.settle_s if now - began <= self.settle_s else self.me.seconds)

    def look(self) -> HeldLease | None:
        """The lease as it lies there, and the time at which it did."""
        held = super().look()
        self.looked_at, self.offset_s = awake_or_not_s(), clock_offset_s()
        return held

    def unnoticed_s(self) -> float:
        """What no clock since the boot tells of the time since the last look: a virtual machine was paused."""
        return abs(clock_offset_s() - self.offset_s)

    def check_fresh(self) -> None:
        """The fence of the lease itself: after a freeze between look and write it must be looked at again."""
        if awake_or_not_s() - self.looked_at + self.unnoticed_s() > self.settle_s:
            raise ConditionFailed(f"{self.sink}: the look at its lease is old")

    def put(self, held: HeldLease | None, data: bytes) -> None:
        """Write the bytes, on the condition that the lease is as it was looked at where the store takes conditions."""
        if not self.is_conditional:
            self.own.write(LEASE, data, "application/json")
            return
        try:
            self.own.write_if(LEASE, data, held and held.tag)
        except (ConditionFailed, io.UnsupportedOperation) as error:
            seen = self.look()
            # Some stores refuse conditions, and some fail them although they hold.
            self.is_conditional = (seen and seen.tag) != (held and held.tag)
            raise ConditionFailed(f"{self.sink}: its lease was not written: {error}") from error

    def fence(self, sink: Sink) -> Sink:
        """The bucket to write into: `check` comes before each write."""
        return replace(sink, fence=self.check)

    def check(self, share: float = 2 / 3) -> None:
        """Return with the lease ours, renewed where this share of its life is over. Raises OutputLost or StoreLost."""
        if self.is_due(share):
            with self.lock:
                while self.lost is None and self.is_due(share) and not self.ended.is_set():
                    try:
                        self.renew_or_settle()
                    except ConditionFailed:
                        continue  # the next look shows why
                    except (OSError, ValueError) as error:
                        self.lost = _as_lost(self.sink, error)
        if self.lost is not None:
            raise self.lost

    def is_due(self, share: float) -> bool:
        """Whether the lease has not settled, or this share of its life is over."""
        passed_s = awake_or_not_s() - self.renewed_at + self.unnoticed_s()
        return not self.is_settled or passed_s > share * self.me.seconds

    def renew_or_settle(self) -> None:
        """Renew a lease that is a third of its life old; else wait until it has settled, and see whose it is then."""
        began, renew_at = awake_or_not_s(), self.renewed_at + self.me.seconds / 3
        if began > renew_at:
            self.write(self.see_ours())
            if awake_or_not_s() - self.renewed_at > self.me.seconds:  # it was free for a while
                self.is_doubtful = True
                self.claim(began)
            self.renewed_at = began
            return
        self.ended.wait(min(self.settles_at, renew_at) - began)
        if awake_or_not_s() >= self.settles_at:
            self.see_ours()
            self.is_settled = True

    def see_ours(self) -> HeldLease:
        """The lease as it lies there. OutputLost if it is gone or another's, but for a late write of an older one."""
        held = self.look()
        is_late = held is not None and self.is_settled and held.holder.number < self.me.number
        if held is None or not (held.holder.id == self.me.id or is_late):
            raise _lost(self.sink, held)
        return held

    def keep(self) -> None:
        """Settle, then renew the lease at a third of its life, until the end."""
        try:
            while not self.ended.is_set():
                self.check(1 / 3)
                self.ended.wait(self.me.seconds / 12)
        except StoreLost as error:
            log.error("%s", error)


class _Look:
    """The fence of a worker, which sees the lease of its job and cannot renew it."""

    def __init__(self, sink: Folder | S3Prefix, job: Holder) -> None:
        self.sink, self.job = sink, job
        self.look_at = self.ends_at = self.offset_s = 0.0

    def __call__(self) -> None:
        began, offset_s = awake_or_not_s(), clock_offset_s()
        if began + abs(offset_s - self.offset_s) >= self.look_at:
            try:
                held = read_lease(self.sink)
            except (OSError, ValueError) as error:
                raise _as_lost(self.sink, error) from error
            if held is None or held.holder.id != self.job.id or held.holder.ended:
                raise _lost(self.sink, held)
            self.offset_s = offset_s
            if isinstance(self.sink, S3Prefix):  # in a folder a look is cheap, and the lock tells how long
                self.look_at = began + min(LOOK_S, self.job.seconds / 6)
                self.ends_at = began + self.job.seconds - held.age_s - CLOCK_STEP_S
        if isinstance(self.sink, S3Prefix) and awake_or_not_s() > self.ends_at:
            raise OutputLost(f"{self.sink}: its lease has ended: the job has not renewed it")


def started_ticks(pid: int) -> int | None:
    """When a process of this machine began, in clock ticks since the boot (proc(5)); None where none is alive.

    0 without /proc, where no machine is known to be this one.
    """
    try:
        state, *numbers = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None if Path("/proc/self/stat").exists() else 0
    return None if state in "ZX" else int(numbers[18])


def _lost(sink: Folder | S3Prefix, held: HeldLease | None) -> OutputLost:
    found = held if held and not held.holder.ended else "was given to another job" if held else "has lost its lease"
    return OutputLost(f"{sink} {found}; this job writes nothing more, and the same command resumes it")


def _as_lost(sink: Folder | S3Prefix, error: OSError | ValueError) -> StoreLost:
    """An error of looking at the lease as one that ends the job."""
    return error if isinstance(error, StoreLost) else OutputLost(f"{sink}: cannot tell whose it is: {error}")


class Stopwatch:
    """Seconds since it was made: no step of a clock, no sleep and no pause of the machine makes them fewer."""

    def __init__(self) -> None:
        self._began, self._offset_s = awake_or_not_s(), clock_offset_s()

    def seconds(self) -> float:
        """More than have passed where the clock was set meanwhile."""
        return awake_or_not_s() - self._began + abs(clock_offset_s() - self._offset_s)


def awake_or_not_s() -> float:
    """Seconds on a clock that runs on while the machine sleeps; that of time.monotonic stands still meanwhile."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def clock_offset_s() -> float:
    """The time of day less that of awake_or_not_s: it steps where the machine was paused, or its clock is corrected."""
    return time.time() - awake_or_not_s()
