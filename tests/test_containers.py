"""Dockerfile and compose.yaml, checked without Docker: what they copy, who runs them, what is open, who is asked."""

import fnmatch
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

from metricgold.params import project
from metricgold.params.project import FILES, FOLDERS
from tests.support import ROOT
from tests.support.dockerfile import copy_context, instructions

SERVICES = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]
ONCE = {"buckets", "deployments"}  # end when they have done their work
WORDS = {"FROM", "ARG", "RUN", "ENV", "WORKDIR", "COPY", "USER", "HEALTHCHECK", "ENTRYPOINT", "CMD"}


def test_the_image_runs_as_nobody_in_particular_and_says_that_it_lives():
    every = instructions()
    assert {word for word, _ in every} == WORDS
    words = [word for word, _ in every]
    last = every[len(words) - 1 - words[::-1].index("FROM") :]
    assert ("USER", "metricgold") in last
    after = [word for word, _ in last[last.index(("USER", "metricgold")) :]]
    assert "RUN" not in after
    assert "HEALTHCHECK" in after
    assert not [text for word, text in every if word in ("ARG", "ENV") and re.search("PASSWORD|SECRET|TOKEN", text)]


def test_the_context_is_enough_for_the_package_and_holds_nothing_that_was_made(tmp_path):
    context = tmp_path / "context"
    copy_context(context)
    assert not fnmatch.filter([path.name for path in context.rglob("*")], "*.db")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    done = subprocess.run(build, cwd=context, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    names = zipfile.ZipFile(next(tmp_path.glob("*.whl"))).namelist()
    assert {f"metricgold/project/{name}" for name in project.FILES} <= set(names)


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_is_looked_at_and_open_to_this_machine_alone(name):
    service = SERVICES[name]
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ()))
    assert ("test" in service["healthcheck"]) != (name in ONCE)
    for needed, how in service.get("depends_on", {}).items():
        ends = needed in ONCE
        assert how["condition"] == ("service_completed_successfully" if ends else "service_healthy")
        assert needed in SERVICES


def test_no_password_has_a_default():
    given = {}
    for service in SERVICES.values():
        given |= {f"{key}={value}": str(value) for key, value in service.get("environment", {}).items()}
    secret = {key: value for key, value in given.items() if re.search(r"PASSWORD|SECRET|TOKEN|AUTH|://\w+:\S*@", key)}
    assert len(secret) >= 7
    assert not [key for key, value in secret.items() if not re.search(r"\$\{\w+:\?", value)]


def test_compose_yaml_is_what_its_specification_says():
    pytest.importorskip("check_jsonschema")
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", "compose.yaml"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_what_runs_in_a_service_is_a_command_that_exists():
    from metricgold.cli import main

    words = [*SERVICES["serve"]["entrypoint"], *SERVICES["serve"]["command"]]
    main.commands[words[1]].make_context("serve", words[2:])
    assert Path(sys.executable).with_name("prefect").exists()


def test_what_a_project_starts_from_reaches_the_image():
    kept = set((ROOT / ".dockerignore").read_text().splitlines())
    assert {f"!{folder}/" for folder in (*FOLDERS, "profiles")} | {f"!{name}" for name in FILES} <= kept
