"""Twenty who register, promote and roll back at random, and kills at random moments, on both kinds of store."""

import json
import os
import subprocess
import sys

import pytest

from tests.support import ROOT
from tests.support.postgres import postgres as postgres
from tests.support.tries import tries

pytestmark = pytest.mark.slow


@pytest.fixture(params=["sqlite", "postgres"])
def uri(request, tmp_path):
    """The address of a new store."""
    if request.param == "postgres":
        return request.getfixturevalue("postgres").fresh()
    return f"sqlite:///{tmp_path / 'mlflow.db'}"


def outcome_of(uri, folder, *words):
    env = os.environ | {"PYTHONPATH": str(ROOT), "MLFLOW_TRACKING_URI": uri}
    command = [sys.executable, "-m", "tests.registry.crowd", *map(str, words)]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_twenty_at_once(uri, tmp_path):
    """Versions are unique, the alias is always at one that passed, no move is lost, no lock reaches the user."""
    outcome = outcome_of(uri, tmp_path, "crowd", 5, 4, 4)
    assert outcome["faults"] == []
    assert outcome["calls"] == 80 and outcome["versions"] >= 20 and outcome["moves"] > 0


def test_killed_at_any_moment_the_rerun_leaves_it_whole(uri, tmp_path):
    """The aliases are as the history says, and at the version that the rerun told."""
    assert outcome_of(uri, tmp_path, "kills", tries(30))["faults"] == []
