"""The project's own story holds: one word per stage everywhere, and the README's commands exist."""

import re
import shlex

import pytest
import yaml

from metricgold.cli import main
from metricgold.datasets.manifest import load_manifest
from metricgold.datasets.synthetic.synthesize_benchmark import BENCHMARK_RECIPES
from metricgold.params.sections import Params, load_params
from metricgold.prefect_plugin import DEPLOYMENTS
from tests.support import ROOT

PROFILES = sorted([ROOT / "params.yaml", *(ROOT / "profiles").glob("*.yaml")])
DVC = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]


@pytest.mark.parametrize("path", PROFILES, ids=lambda path: path.name)
def test_profiles_load_and_name_data_sets_with_manifests(path):
    params = load_params(path)
    names = [*params.datasets, *params.benchmarks]
    assert [load_manifest(name).name for name in names] == names


def test_the_demo_measures_every_twin_of_a_benchmark():
    twins = set(BENCHMARK_RECIPES) - {"flsea-synthetic", "night-synthetic", "aerial-synthetic"}  # what studies render
    assert set(load_params(ROOT / "params.yaml").benchmarks) == twins


def test_params_are_written_in_block_style():
    # `dvc exp run -S` rewrites the file and cannot read back what it makes of inline lists and maps, an empty list on
    # top apart: a matrix takes no null.
    for path in [*PROFILES, ROOT / "dvc.yaml"]:
        inline = [line for line in path.read_text().splitlines() if re.search(r":\s*[\[{]", line.partition("#")[0])]
        inline = [line for line in inline if not line.startswith("benchmarks: []")]
        assert not inline, f"{path.name}: {inline}"


def test_a_stage_has_one_word_in_dvc_params_and_command_line():
    for word, stage in DVC.items():
        if word == "benchmark-data":  # two words' work for data that only measure
            assert [line.split()[1] for line in stage["cmd"]] == ["synthesize", "download"]
            continue
        assert word in main.commands
        assert word.replace("-", "_") in Params.model_fields
        assert stage["cmd"].split()[:2] == ["metricgold", word]


def test_stages_name_params_that_exist():
    fields = Params.model_fields
    for word, stage in DVC.items():
        for key in stage["params"]:
            section, _, name = key.partition(".")
            assert section in fields, f"{word}: {key}"
            assert not name or name in fields[section].annotation.model_fields, f"{word}: {key}"


def _commands() -> list[str]:
    """Lines of the README's shell blocks, without prompts, comments and what is piped on."""
    blocks = re.findall(r"```(?:sh|bash|console|shell)\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    lines = [line.partition(" #")[0].strip().removeprefix("$ ") for block in blocks for line in block.splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def test_commands_of_the_readme_exist():
    assert "make demo" in _commands()
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for command in _commands():
        words = [word.removeprefix(".venv/bin/") for word in shlex.split(command, comments=True)]
        words = [word for word in words if not re.fullmatch(r"[A-Z_]+=.*", word)]
        if words[0] == "make":
            assert words[1] in targets, command
        if words[0] == "metricgold":
            assert words[1] in main.commands or words[1].startswith("-"), command
        if words[:2] == ["dvc", "repro"]:
            assert all(word.partition("@")[0] in DVC for word in words[2:] if not word.startswith("-")), command
        if words[:3] == ["prefect", "deployment", "run"]:
            assert words[3].partition("/")[0] in DEPLOYMENTS, command
