"""Moves of aliases: written down before they are made, one at a time, and none on stale checks."""

import json
import os
import re
import shutil
import time
from datetime import UTC, datetime
from functools import partialmethod
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from metricgold.cli import main
from metricgold.params.sections import Promote
from metricgold.registry import promotion
from metricgold.registry.mlflow_client import NAME, open_client
from metricgold.registry.promotion import FLAG, MOVING, promote, read_history, rollback
from metricgold.storage import output_lock, this_writer
from metricgold.storage.output_lock import Stopwatch

GATE = Promote(max_abs_rel=0.25, max_regression=None)


@pytest.fixture
def client(tmp_path, first_use, monkeypatch):
    """MLflow's client of a new store without versions."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    shutil.copy(first_use[0] / "mlflow.db", tmp_path)
    with open_client() as client:
        yield client


def add_version(client, abs_rel=0.2):
    """A version without files, as candidate; returns its number."""
    if not client.search_registered_models():
        client.create_registered_model(NAME)
    run = client.create_run("0").info.run_id
    client.log_metric(run, "abs_rel", abs_rel)
    version = client.create_model_version(NAME, str(Path.cwd()), run, tags={"model_digest": run})
    client.set_registered_model_alias(NAME, "candidate", version.version)
    return str(version.version)


def aliases(client):
    return {alias: str(version) for alias, version in client.get_registered_model(NAME).aliases.items()}


def left(client):
    """What a move that is over has taken away again."""
    return [key for key in client.get_registered_model(NAME).tags if key == MOVING or key.startswith(FLAG)]


@pytest.fixture
def three(client):
    """Versions 1 and 2 were champions, 3 is the candidate."""
    for _ in range(2):
        add_version(client)
        promote(GATE)
    add_version(client)
    assert aliases(client) == {"candidate": "3", "champion": "2", "previous": "1"}
    return client


def promote_another(client):
    promote(GATE, version="1")


def measure_again(client):
    client.log_metric(client.get_model_version(NAME, "3").run_id, "abs_rel", 0.24)


@pytest.mark.parametrize(
    ("meanwhile", "said"),
    [
        (promote_another, "the champion was 2 when it was checked and is 1 now"),
        (measure_again, "figures of version 3 or of its champion changed"),
        (add_version, "the version was 3 when it was checked and is 4 now"),
    ],
)
def test_what_changed_since_its_checks_is_refused(three, monkeypatch, meanwhile, said):
    """Both of two promoters said champion, from the same old champion; one was neither champion nor previous."""
    check = promotion.check_gate

    def slow(*words):
        monkeypatch.setattr(promotion, "check_gate", check)
        checks = check(*words)
        meanwhile(three)
        return checks

    monkeypatch.setattr(promotion, "check_gate", slow)
    with pytest.raises(ValueError, match=f"not promoted: {said}"):
        promote(GATE)
    assert aliases(three)["champion"] != "3" and left(three) == []


def test_rollback_of_a_champion_that_changed_is_refused(three, monkeypatch):
    wait = promotion.only_mover

    def late(client):
        monkeypatch.setattr(promotion, "only_mover", wait)
        promote(GATE)
        return wait(client)

    monkeypatch.setattr(promotion, "only_mover", late)
    with pytest.raises(ValueError, match="the champion was 2 and is 3 now"):
        rollback()
    assert aliases(three)["champion"] == "3"


class Killed(BaseException):
    """Stands for kill -9: what runs in `finally` does not reach the store either."""


WRITES = (
    "set_registered_model_alias",
    "set_registered_model_tag",
    "set_model_version_tag",
    "delete_registered_model_tag",
)


def die_at(patch, write):
    """Die before the write of this number, as a process of this machine."""
    from mlflow import MlflowClient

    numbers = iter(range(1000))

    def dying(client, call, *words):
        if next(numbers) >= write:
            raise Killed
        return call(client, *words)

    for name in WRITES:
        patch.setattr(MlflowClient, name, partialmethod(dying, getattr(MlflowClient, name)))
    child = os.fork()
    if not child:
        os._exit(0)
    os.waitpid(child, 0)
    patch.setattr(promotion, "this_writer", lambda: f"{child}-{this_writer().partition('-')[2]}")


@pytest.mark.parametrize(
    ("command", "write"), [*(("promote", write) for write in range(9)), *(("rollback", write) for write in range(6))]
)
def test_killed_before_any_of_its_writes_the_rerun_makes_a_move_whole(three, monkeypatch, command, write):
    """Cut between its two aliases, a rollback had the old champion nowhere, and its rerun changed nothing."""
    call = {"promote": lambda: promote(GATE), "rollback": rollback}[command]
    with monkeypatch.context() as patch:
        die_at(patch, write)
        with pytest.raises(Killed):
            call()
    champion = {"promote": "3", "rollback": "1"}[command]
    assert call()["version"] == champion
    assert aliases(three) == {"candidate": "3", "champion": champion, "previous": "2"}
    assert [one.command for one in read_history(three)] == ["promote", "promote", command]
    if write:  # a champion that is promoted again needs no flag, so takes none down
        assert MOVING not in left(three)


def test_a_cut_off_move_of_a_deleted_version_is_dropped(three, monkeypatch, caplog):
    with monkeypatch.context() as patch:
        die_at(patch, 3)
        with pytest.raises(Killed):
            promote(GATE)
    three.delete_model_version(NAME, "3")
    assert promote(GATE, version="1")["alias"] == "champion"
    assert "a version of it has been deleted since: it is dropped" in caplog.text
    assert aliases(three) == {"champion": "1", "previous": "2"} and left(three) == []


def test_a_flag_of_another_machine_counts_until_its_lease_is_over(three, monkeypatch):
    hours = SimpleNamespace(monotonic=iter(range(0, 100_000, 50)).__next__, time=time.time, sleep=lambda _: None)
    monkeypatch.setattr(promotion, "time", hours)
    three.set_registered_model_tag(NAME, FLAG + "theirs", "1-ffffffff")
    assert promote(GATE)["alias"] == "champion" and left(three) == []
    monkeypatch.setattr(promotion, "other_flags", lambda *_: {"a new one each time"})
    with pytest.raises(TimeoutError, match="others have been moving aliases all the time"):
        rollback()


def test_a_mover_that_was_paused_beyond_its_lease_writes_nothing(three, monkeypatch):
    monkeypatch.setattr(promotion, "LEASE_S", -1.0)
    with pytest.raises(TimeoutError, match="others have been"):
        rollback()
    with pytest.raises(TimeoutError, match="to move an alias; try again"):
        promotion.Mover(three, Stopwatch()).move("rollback", "champion", "1", "2", "")
    assert aliases(three)["champion"] == "2" and left(three) == []


@pytest.mark.parametrize("step_s", [-3600.0, 3600.0])
def test_a_clock_that_is_set_gives_no_mover_more_time(three, monkeypatch, step_s):
    """It may cost one its turn, which is taken again; it must not let one write when others may."""
    since, boot_s, day_s = Stopwatch(), output_lock.awake_or_not_s, time.time
    monkeypatch.setattr(output_lock, "awake_or_not_s", lambda: boot_s() + promotion.LEASE_S)
    monkeypatch.setattr(output_lock.time, "time", lambda: day_s() + step_s)
    with pytest.raises(TimeoutError, match="to move an alias; try again"):
        promotion.Mover(three, since).move("rollback", "champion", "1", "2", "")


def test_who_when_why_and_the_checks_stay(three):
    promote(GATE, why="a trial on the robot")
    version = three.get_model_version(NAME, "3")
    last = read_history(three)[-1]
    assert (last.number, last.command, last.alias, last.version, last.instead_of) == (
        3,
        "promote",
        "champion",
        "3",
        "2",
    )
    assert "@" in last.who and last.when.startswith("20") and last.why == "a trial on the robot"
    assert version.tags["promotion"] == f"{last.when} to champion instead of 2 by {last.who}: a trial on the robot"
    (check,) = json.loads(version.tags["promotion_checks"])
    assert check == {"name": "abs_rel", "value": 0.2, "bound": 0.25, "passed": True}
    rollback(why="it hit the wall")
    assert [one.why for one in read_history(three)[2:]] == ["a trial on the robot", "it hit the wall"]


def test_another_alias_has_the_same_gate_and_its_own_holder(three):
    assert promote(GATE, to="staging") | {"checks": []} == {
        "passed": True, "checks": [], "version": "3", "alias": "staging", "previous": None, "dry_run": False
    }  # fmt: skip
    assert promote(Promote(max_abs_rel=0.1), to="staging", version="1")["passed"] is False
    assert aliases(three) == {"candidate": "3", "champion": "2", "previous": "1", "staging": "3"}
    for taken in ("candidate", "previous", "latest", "v3", "3", "a b", ""):
        with pytest.raises(ValueError, match="expected champion, or a name of your own"):
            promote(GATE, to=taken)


def test_the_commands(three):
    def run(*words):
        return CliRunner().invoke(main, list(words))

    Path("params.yaml").write_text("datasets: [hypersim]\npromote: {max_abs_rel: 0.25, max_regression: null}\n")
    done = run("promote", "--instead-of", "1")
    assert (done.exit_code, done.output) == (1, "Error: --instead-of 1: the alias champion is at 2\n")
    done = run("promote", "--instead-of", "2", "--why", "better")
    said = "holds: abs_rel 0.2, bound 0.25\npassed: True\nversion: 3\nalias: champion\nprevious: 2\ndry_run: False\n"
    assert (done.exit_code, done.output) == (0, said)
    assert run("rollback", "--instead-of", "2").exit_code == 1
    assert json.loads(run("rollback", "--instead-of", "3", "--json").output)["version"] == "2"
    assert [one.why for one in read_history(three)] == ["", "", "better", ""]


def test_versions_at_a_glance(three):
    run = three.get_model_version(NAME, "3").run_id
    for key, value in {
        "interval95/abs_rel/low": 0.18,
        "interval95/abs_rel/high": 0.22,
        "benchmark/nyuv2/abs_rel": 0.1234,
    }.items():
        three.log_metric(run, key, value)
    for key, value in {"commit": 40 * "c", "dirty": "true", "licences": "Apache-2.0, MIT"}.items():
        three.set_model_version_tag(NAME, "3", key, value)
    made = datetime.fromtimestamp(three.get_model_version(NAME, "3").creation_timestamp / 1000, UTC)
    lines = CliRunner().invoke(main, ["versions"]).output.splitlines()
    titles, *rows = (re.split("  +", line) for line in lines)
    assert titles == ["version", "aliases", "AbsRel (95 %)", "benchmarks", "date", "commit", "licences"]
    assert rows[0][:4] == ["3", "candidate", "0.2 (0.18 to 0.22)", "nyuv2 0.1234"]
    assert rows[0][4:] == [f"{made:%Y-%m-%d %H:%M}", "cccccccccc+", "Apache-2.0, MIT"]
    assert [row[:4] + row[5:] for row in rows[1:]] == [
        ["2", "champion", "0.2", "-", "-", "-"],
        ["1", "previous", "0.2", "-", "-", "-"],
    ]
    known = json.loads(CliRunner().invoke(main, ["versions", "--json"]).output)
    assert [one["version"] for one in known["versions"]] == ["3", "2", "1"]
    assert [(one["version"], one["instead_of"]) for one in known["moves"]] == [("1", None), ("2", "1")]
    history = CliRunner().invoke(main, ["versions", "--history"]).output.splitlines()
    assert len(history) == 3 and re.split("  +", history[2])[1:5] == ["promote", "champion", "2", "1"]


def test_no_versions_are_an_empty_table(client):
    assert CliRunner().invoke(main, ["versions"]).output.splitlines()[1:] == []
    assert json.loads(CliRunner().invoke(main, ["versions", "--json"]).output) == {"versions": [], "moves": []}


# Licences

TRAINED = {"licence": "CC BY-NC-SA 3.0", "role": "train"}
MEASURED = {"licence": "CC BY-NC-SA 3.0", "role": "benchmark"}
OPEN = {"licence": "Apache-2.0", "role": "train"}
WEIGHTS = {"source": "models/stable-diffusion-2"}


@pytest.mark.parametrize(
    ("datasets", "backbone", "cleared", "barred"),
    [
        ({"hypersim-synthetic": OPEN, "kitti": MEASURED}, {"source": "stand-in"}, None, None),
        ({"vkitti2": TRAINED, "tartanair": OPEN}, {"source": "stand-in"}, None, "vkitti2 (CC BY-NC-SA 3.0)"),
        ({"tartanair": OPEN}, WEIGHTS, None, "backbone (that of models/stable-diffusion-2)"),
        ({"tartanair": OPEN}, WEIGHTS, ["backbone"], None),
        ({"ours": {"licence": "unstated", "role": "train"}}, {"source": "stand-in"}, None, "ours (unstated)"),
        ({"ours": {"licence": "unstated", "role": "train"}}, {"source": "stand-in"}, ["ours"], None),
        ({"tartanair": OPEN}, None, None, "backbone (that of unstated)"),
    ],
)
def test_what_may_not_be_sold_is_named(client, datasets, backbone, cleared, barred):
    run = client.get_model_version(NAME, add_version(client)).run_id
    client.log_dict(run, {"datasets": datasets, "backbone": backbone}, "lineage.json")
    gate = Promote(licence="commercial", cleared=cleared, max_regression=None)
    outcome = promote(gate)
    (check,) = outcome["checks"]
    assert (check["name"], check["bound"], outcome["passed"]) == ("licence", "commercial", barred is None)
    assert barred in (None, check["value"])


def test_a_version_without_lineage_may_not_be_sold(client):
    add_version(client)
    (check,) = promote(Promote(licence="commercial", max_regression=None))["checks"]
    assert check["passed"] is False and check["note"] == "version 1 has no lineage.json: register its checkpoint again"
