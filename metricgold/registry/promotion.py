"""Moving aliases: `promote` behind the gate, `rollback`, and the history of both.

MLflow sets one alias at a call and knows no lock, through a server least of all. So a move is written down whole before
it is made, as the tag `moving` of the registered model: whoever comes after a kill ends it. And a mover shows a
flag of its own and moves only while no other flag is up: of two that come at once each sees at least the one before it.
All of it needs nothing but tags, which SQLite, PostgreSQL and an MLflow server all keep.
"""

import json
import logging
import random
import re
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from metricgold.params import Predict, Promote
from metricgold.registry.gate import check_gate
from metricgold.registry.mlflow_client import NAME, find_version, open_client, version_of_alias
from metricgold.storage import Stopwatch, has_ended, this_writer, user_name

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

logger = logging.getLogger(__name__)

FLAG, MOVING, MOVE = "mover/", "moving", "move/"  # tags of the registered model
PROMOTION, CHECKS = "promotion", "promotion_checks"  # tags of a version: its last promotion, and the checks before it
LEASE_S = 120.0  # a flag that stands longer belongs to nobody; a move takes a second
ASK_EVERY_S = (0.05, 0.4)
MAX_WHY = 2000  # characters; a tag of a registered model takes 5000
ALIAS = re.compile(r"(?!v\d+$|candidate$|previous$|latest$)[a-z][a-z0-9_-]{0,99}", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Move:
    """A line of the history.

    instead_of  the version that had the alias before; of the alias champion it becomes previous
    """

    number: int
    command: str
    alias: str
    version: str
    instead_of: str | None
    when: str
    who: str
    why: str


def promote(
    gate: Promote,
    *,
    predict: Predict | None = None,
    version: str | None = None,
    to: str = "champion",
    instead_of: str | None = None,
    why: str = "",
    dry_run: bool = False,
) -> dict[str, Any]:
    """Check a version (the candidate if not given) against the gate; give it the alias if every check holds.

    predict     by which latency and memory are measured, see check_gate
    instead_of  refuse unless this version, or "none", has the alias
    why         a reason, which stays with the move

    Returns passed, checks (see check_gate), version, alias (of the version now, or after a run without dry_run),
    previous (the version that had the alias before) and dry_run. A check that could not be made does not hold the
    version up. Raises ValueError for an unknown version, and for one that passed but of which, or of whose champion,
    something changed since.
    """
    if not ALIAS.fullmatch(to):
        raise ValueError(f"--to {to}: expected champion, or a name of your own that is no number and not candidate")
    with open_client() as client:
        if not dry_run:
            end_cut_off_move(client)
        seen = look(client, version or "candidate", to)
        _require(to, instead_of, seen.holder)
        checks = check_gate(gate, client, seen.candidate, seen.champion, predict)
        passed = all(check["passed"] is not False for check in checks)
        is_new = seen.holder != str(seen.candidate.version)
        if passed and is_new and not dry_run:
            with only_mover(client) as mover:
                mover.end_cut_off_move()
                refuse_what_changed(seen, look(client, version or "candidate", to))
                # Before the move: it is more than the tag `moving` takes.
                mover.client.set_model_version_tag(NAME, seen.candidate.version, CHECKS, json.dumps(checks))
                mover.move("promote", to, str(seen.candidate.version), seen.holder, why)
    return {
        "passed": passed,
        "checks": checks,
        "version": str(seen.candidate.version),
        "alias": to if passed or not is_new else "candidate",
        "previous": seen.holder,
        "dry_run": dry_run,
    }


def rollback(*, instead_of: str | None = None, why: str = "", dry_run: bool = False) -> dict[str, Any]:
    """Make the previous champion champion again; the two change places, so a second rollback undoes the first.

    A rollback that was cut off is ended, and that is all. instead_of and why as for `promote`.

    Returns version (the champion now, or after a run without dry_run), alias, previous (the champion before) and
    dry_run. Raises ValueError when no version has the alias previous, and when the champion changed meanwhile.
    """
    with open_client() as client:
        ended = None if dry_run else end_cut_off_move(client)
        if ended is not None and ended.command == "rollback":
            return _rolled_back(ended.version, ended.instead_of, dry_run=False)
        previous, champion = (str(find_version(client, alias).version) for alias in ("previous", "champion"))
        _require("champion", instead_of, champion)
        if not dry_run:
            with only_mover(client) as mover:
                mover.end_cut_off_move()
                now = tuple(str(find_version(client, alias).version) for alias in ("previous", "champion"))
                if now != (previous, champion):
                    raise ValueError(f"the champion was {champion} and is {now[1]} now: look, then roll back again")
                mover.move("rollback", "champion", previous, champion, why)
    return _rolled_back(previous, champion, dry_run=dry_run)


def _rolled_back(version: str, instead_of: str | None, *, dry_run: bool) -> dict[str, Any]:
    return {"version": version, "alias": "champion", "previous": instead_of, "dry_run": dry_run}


def _require(alias: str, instead_of: str | None, holder: str | None) -> None:
    if instead_of is not None and instead_of != (holder or "none"):
        raise ValueError(f"--instead-of {instead_of}: the alias {alias} is at {holder or 'none'}")


@dataclass(frozen=True, slots=True)
class Seen:
    """What a promotion is decided on: both versions, who has the alias, and all figures of the two."""

    candidate: "ModelVersion"
    champion: "ModelVersion | None"
    holder: str | None
    facts: dict[str, dict[str, Any]]


def look(client: "MlflowClient", which: str, to: str) -> Seen:
    """Read the two versions that a promotion of `which` to an alias compares. ValueError for an unknown version."""
    candidate, champion = find_version(client, which), version_of_alias(client, "champion")
    holder = champion if to == "champion" else version_of_alias(client, to)
    facts = {}
    for name, version in (("version", candidate), ("champion", champion)):
        if version is not None:
            tags = {key: value for key, value in version.tags.items() if key not in (PROMOTION, CHECKS)}
            facts[name] = tags | client.get_run(version.run_id).data.metrics
    return Seen(candidate, champion, None if holder is None else str(holder.version), facts)


def refuse_what_changed(seen: Seen, now: Seen) -> None:
    """ValueError where something that the checks read, or the alias itself, is another by now."""
    for name, was, by_now in (
        ("the version", seen.candidate.version, now.candidate.version),
        ("the champion", getattr(seen.champion, "version", "none"), getattr(now.champion, "version", "none")),
        ("the holder of the alias", seen.holder, now.holder),
    ):
        if was != by_now:
            raise ValueError(f"not promoted: {name} was {was} when it was checked and is {by_now} now; promote again")
    if seen.facts != now.facts:
        raise ValueError(
            f"not promoted: figures of version {seen.candidate.version} or of its champion changed while they were "
            "checked; promote again"
        )


class Mover:
    """Who may move aliases just now: all of it goes through `client`, which refuses once others may no longer wait."""

    def __init__(self, client: "MlflowClient", since: Stopwatch) -> None:
        self._client, self._since = client, since

    @property
    def client(self) -> "MlflowClient":
        """MLflow's. TimeoutError late in the lease."""
        if self._since.seconds() > LEASE_S / 2:
            raise TimeoutError(f"MLflow took longer than {LEASE_S / 2:.0f} s to move an alias; try again")
        return self._client

    def move(self, command: str, alias: str, version: str, instead_of: str | None, why: str) -> None:
        """Write a move down, then make it."""
        tags = self.client.get_registered_model(NAME).tags
        number = 1 + max((int(key.removeprefix(MOVE)) for key in tags if key.startswith(MOVE)), default=0)
        when, who = datetime.now(UTC).isoformat(timespec="seconds"), f"{user_name()}@{socket.gethostname()}"
        planned = Move(number, command, alias, version, instead_of, when, who, why[:MAX_WHY])
        self.client.set_registered_model_tag(NAME, MOVING, json.dumps(asdict(planned)))
        self.make(planned)

    def make(self, planned: Move) -> None:
        """Make a move that is written down. Done twice it is as done once."""
        aliases = {planned.alias: planned.version}
        if planned.alias == "champion" and planned.instead_of is not None:
            aliases["previous"] = planned.instead_of
        for alias, version in aliases.items():
            self.client.set_registered_model_alias(NAME, alias, version)
        if planned.command == "promote":
            told = f"{planned.when} to {planned.alias} instead of {planned.instead_of or 'none'} by {planned.who}"
            told += f": {planned.why}" if planned.why else ""
            self.client.set_model_version_tag(NAME, planned.version, PROMOTION, told)
        self.client.set_registered_model_tag(NAME, f"{MOVE}{planned.number:06d}", json.dumps(asdict(planned)))
        self.client.delete_registered_model_tag(NAME, MOVING)

    def end_cut_off_move(self) -> Move | None:
        """End a move that a kill has cut off, and return it; None where there is none."""
        from mlflow.exceptions import MlflowException

        written = self.client.get_registered_model(NAME).tags.get(MOVING)
        if written is None:
            return None
        planned = Move(**json.loads(written))
        said = f"{planned.command} of {planned.when} by {planned.who}: {planned.alias} to version {planned.version}"
        try:
            self.make(planned)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            self.client.delete_registered_model_tag(NAME, MOVING)
            logger.warning("%s was cut off, and a version of it has been deleted since: it is dropped", said)
            return None
        logger.warning("%s was cut off and is ended now", said)
        return planned


@contextmanager
def only_mover(client: "MlflowClient") -> Iterator[Mover]:
    """Wait until no other process moves aliases, on any machine. TimeoutError where others come first for too long."""
    flag = FLAG + uuid.uuid4().hex
    since = raise_flag(client, flag)
    try:
        yield Mover(client, since)
    finally:
        client.delete_registered_model_tag(NAME, flag)


def raise_flag(client: "MlflowClient", flag: str) -> Stopwatch:
    """Show a flag at a moment when no other is up; returns the time since just before."""
    first_seen: dict[str, float] = {}
    deadline = time.monotonic() + 5 * LEASE_S
    while time.monotonic() < deadline:
        # Looking first: flags that meet cost both of them a round.
        if not other_flags(client, flag, first_seen):
            since = Stopwatch()
            client.set_registered_model_tag(NAME, flag, this_writer())
            if not other_flags(client, flag, first_seen):
                return since
            client.delete_registered_model_tag(NAME, flag)
        time.sleep(random.uniform(*ASK_EVERY_S))
    raise TimeoutError("others have been moving aliases all the time; try again later")


def other_flags(client: "MlflowClient", mine: str, first_seen: dict[str, float]) -> set[str]:
    """Flags of others that count; those of processes that ended are taken down.

    first_seen  when each was seen first, by this process's clock, which no other machine's need agree with
    """
    now = time.monotonic()
    others: set[str] = set()
    ended: set[str] = set()
    for key, writer in client.get_registered_model(NAME).tags.items():
        if key.startswith(FLAG) and key != mine:
            has_gone = has_ended(writer) or now - first_seen.setdefault(key, now) > LEASE_S
            (ended if has_gone else others).add(key)
    for key in ended:
        client.delete_registered_model_tag(NAME, key)
    return others


def end_cut_off_move(client: "MlflowClient") -> Move | None:
    """End a move that a kill has cut off, if there is one, and return it."""
    if MOVING not in tags_of_model(client):
        return None
    with only_mover(client) as mover:
        return mover.end_cut_off_move()


def read_history(client: "MlflowClient") -> list[Move]:
    """All moves of aliases, the oldest first."""
    tags = tags_of_model(client)
    return [Move(**json.loads(tags[key])) for key in sorted(tags) if key.startswith(MOVE)]


def tags_of_model(client: "MlflowClient") -> dict[str, str]:
    """Tags of the registered model; none before its first version."""
    from mlflow.exceptions import MlflowException

    try:
        return dict(client.get_registered_model(NAME).tags)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return {}
