"""README and manual promise nothing that does not exist: commands parse, code compiles, links lead somewhere."""

import ast
import importlib
import json
import re
import shlex
import textwrap
import tomllib
from collections.abc import Iterator
from functools import cache
from itertools import dropwhile, groupby
from pathlib import Path
from typing import NamedTuple

import click
import numpy as np
import pytest
import yaml
from click.testing import CliRunner
from PIL import Image

from metricgold.cli import main
from metricgold.datasets import READERS, list_frames
from metricgold.evaluate.predictions import read_statement
from metricgold.metrics import ALIGNMENTS, CALIBRATION, FIGURES, METRICS
from metricgold.params import Params, load_params
from metricgold.study import load_study, runs_of

ROOT = Path(__file__).parents[1]
MANUAL = sorted((ROOT / "docs").glob("*.md"))
PAGES = {path.relative_to(ROOT).as_posix(): path for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *MANUAL)}
TEXTS = {name: path.read_text() for name, path in PAGES.items()}
DVC = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
DEPLOYMENTS = {one["name"]: one for one in yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

MADE = ("data/", "models/", "metrics/", "plots/", "reports/", "mlruns/", "mlflow.db", "site/", "htmlcov/")  # by a run
EXAMPLES = {"data_manifests/mine.yaml", "metricgold/datasets/mine.py", "tests/datasets/test_mine.py"}
EXAMPLES |= {"studies/results", "studies/results/NAME.csv"}  # of a study
OTHER_PROGRAMS = {"apt", "aws", "cd", "curl", "export", "git", "pre-commit", "set", "ssh", "."}
OTHER_MODULES = {"dask_jobqueue"}  # not of this project, not installed with it


class Block(NamedTuple):
    page: str
    kind: str
    title: str
    text: str


def _blocks() -> list[Block]:
    fence = re.compile(r'^ *```(\w*)(?: title="([^"]*)")?\n(.*?)^ *```$', re.MULTILINE | re.DOTALL)
    return [
        Block(page, kind, title, textwrap.dedent(body))
        for page, text in TEXTS.items()
        for kind, title, body in fence.findall(text)
    ]


def _commands() -> list[tuple[str, list[str]]]:
    """Page and words of every command in a shell block, also those that another machine runs."""
    lines = [(block.page, line) for block in BLOCKS if block.kind == "sh" for line in block.text.splitlines()]
    return [(page, words) for page, line in lines for words in commands_of(line)]


def commands_of(line: str) -> Iterator[list[str]]:
    """Words of each command of a line, without comments and variables that are set for it alone."""
    for is_and, part in groupby(shlex.split(line, comments=True), key="&&".__eq__):
        words = list(dropwhile(re.compile(r"[A-Z_]+=").match, part))
        if words and not is_and:
            yield [words[0].removeprefix(".venv/bin/"), *words[1:]]
            if words[0] == "ssh":
                yield from commands_of(words[-1])


def prose(page: str) -> str:
    return re.sub(r"^ *```.*?^ *```$", "", TEXTS[page], flags=re.MULTILINE | re.DOTALL)


def spans(page: str) -> list[str]:
    return re.findall(r"`([^`\n]+)`", prose(page))


BLOCKS = _blocks()
COMMANDS = _commands()
SPANS = [(page, text) for page in PAGES for text in spans(page)]
PROGRAMS = r"(metricgold|make|dvc|prefect|mlflow|python -m) \S"
SPOKEN = [(page, text.split()) for page, text in SPANS if re.match(PROGRAMS, text)]  # commands within a sentence


def named(of: str) -> list[list[str]]:
    """Words behind a program's name, of every command in a block or a sentence."""
    return [words[1:] for _, words in [*COMMANDS, *SPOKEN] if words[0] == of]


def test_the_pages_are_read_at_all():
    assert len(MANUAL) >= 14
    assert len(COMMANDS) > 60
    assert {("README.md", "make"), ("docs/first-run.md", "metricgold")} <= {
        (page, words[0]) for page, words in COMMANDS
    }
    fences = [line for text in TEXTS.values() for line in text.splitlines() if line.strip().startswith("```")]
    assert len(fences) == 2 * len(BLOCKS), "a block that begins in another way would go unchecked"
    assert {block.kind for block in BLOCKS} == {"sh", "python", "yaml", "text"}, "text is for drawings"


@pytest.mark.parametrize("page", PAGES)
def test_code_in_a_sentence_ends_on_its_line(page):
    odd = [line for line in prose(page).splitlines() if line.count("`") % 2]
    assert not odd, "no other test would see such code"


# Commands


def parse_click(command: click.Command, words: list[str], *, parent: click.Context | None = None) -> None:
    """Parse a command with its options as click does when it runs it, without running it. UsageError if it cannot."""
    context = command.make_context(command.name or "", list(words), parent=parent)
    if isinstance(command, click.Group):
        rest = [*getattr(context, "_protected_args", ()), *context.args]  # in args alone from click 9 on
        if rest:
            _, sub, rest = command.resolve_command(context, rest)
            parse_click(sub, rest, parent=context)


def parse_metricgold(words: list[str]) -> None:
    parse_click(main, words)


def parse_make(words: list[str]) -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    assert words[0] in targets


def parse_dvc(words: list[str]) -> None:
    from dvc.cli.parser import get_main_parser

    arguments = get_main_parser().parse_args(words)
    if arguments.cmd == "repro":
        assert all(target.partition("@")[0] in DVC for target in arguments.targets or ())


def parse_prefect(words: list[str]) -> None:
    from prefect.cli._app import _app

    words = [word for word in words if word != "--no-prompt"]  # an option of the program, in front of the command
    _, bound, _ = _app.parse_args(words, exit_on_error=False, print_error=False)
    if words[:2] == ["deployment", "run"]:
        name, parameters = bound.arguments["name"], bound.arguments.get("params", [])
        flow_of(name).validate_parameters(dict(map(parse_parameter, parameters)))


def parse_parameter(text: str) -> tuple[str, object]:
    name, _, value = text.partition("=")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


@cache
def flow_of(name: str):
    path, _, function = DEPLOYMENTS[name.partition("/")[0]]["entrypoint"].partition(":")
    module = path.removesuffix(".py").replace("/", ".")
    return getattr(importlib.import_module(module), function)


def parse_mlflow(words: list[str]) -> None:
    import mlflow.cli

    parse_click(mlflow.cli.cli, words)


def parse_dask(words: list[str]) -> None:
    from distributed.cli import dask_scheduler, dask_worker

    parse_click({"scheduler": dask_scheduler.main, "worker": dask_worker.main}[words[0]], words[1:])


def parse_python(words: list[str]) -> None:
    assert words[0] == "-m"
    place = ROOT / words[1].replace(".", "/")
    assert words[1] == "pytest" or place.with_suffix(".py").exists() or (place / "__main__.py").exists()


def parse_pip(words: list[str]) -> None:
    assert words[0] == "install"
    extras = {extra for word in words for found in re.findall(r"\[(.+)\]", word) for extra in found.split(",")}
    assert extras <= set(PROJECT["optional-dependencies"])


PARSERS = {
    "metricgold": parse_metricgold,
    "make": parse_make,
    "dvc": parse_dvc,
    "prefect": parse_prefect,
    "mlflow": parse_mlflow,
    "dask": parse_dask,
    "python": parse_python,
    "pip": parse_pip,
}


@pytest.mark.parametrize(("page", "words"), COMMANDS, ids=[f"{page}: {' '.join(words)}" for page, words in COMMANDS])
def test_every_command_parses(page, words):
    assert words[0] in PARSERS or words[0] in OTHER_PROGRAMS, f"{page}: {words[0]} is a program that no test knows"
    if words[0] in PARSERS:
        PARSERS[words[0]](words[1:])


@pytest.mark.parametrize("words", sorted({tuple(words) for words in named("metricgold")}), ids=" ".join)
def test_every_metricgold_command_exists_with_its_options(words):
    """Also those that a sentence names without their arguments."""
    command, rest = main, list(words)
    if rest[0].startswith("-"):
        return  # an option of the program, which stands in a block and was parsed there
    while isinstance(command, click.Group):
        assert rest and rest[0] in command.commands, f"metricgold {' '.join(words)}"
        command = command.commands[rest.pop(0)]
    known = {option for parameter in command.params for option in parameter.opts} | {"--help"}
    assert {part for part in rest if part.startswith("--")} <= known


def test_every_other_command_of_a_sentence_exists():
    for page, words in SPOKEN:
        if words[0] in ("make", "python") or words[:3] == ["prefect", "deployment", "run"]:
            PARSERS[words[0]](shlex.split(" ".join(words[1:])))
        if words[:2] == ["dvc", "repro"]:
            assert {word.partition("@")[0] for word in words[2:]} <= set(DVC), page


def test_every_command_of_the_program_is_in_the_manual():
    assert set(main.commands) <= {words[0] for words in named("metricgold")}


def test_every_option_of_predict_is_in_the_manual():
    page = TEXTS["docs/prediction-and-batch-jobs.md"]
    options = {option for parameter in main.commands["predict"].params for option in parameter.opts if "--" in option}
    assert {option for option in options if option not in page} == set()
    choices = {
        parameter.name: parameter.type.choices
        for parameter in main.commands["predict"].params
        if isinstance(parameter.type, click.Choice)
    }
    kinds = re.findall(r"^\| ([\w-]+(?:, [\w-]+)*) \| `a\.jpg", page, flags=re.MULTILINE)
    assert sorted(kind for row in kinds for kind in row.split(", ")) == sorted(choices["outputs"])
    assert all(f"`{preset}`" in page or f"--preset {preset}`" in page for preset in choices["preset"])


def test_every_dvc_stage_has_its_row():
    rows = re.findall(r"^\| ([\w-]+) \| `metricgold ([\w-]+)", TEXTS["docs/first-run.md"], flags=re.MULTILINE)
    assert all(word == command for word, command in rows)
    stages = [word for word in DVC if word != "benchmark-data"]  # the first two words' work
    assert [word for word, _ in rows][: len(stages)] == stages, "`dvc repro` runs the first rows, in this order"


def test_every_deployment_and_pool_exists():
    run = {words[2].partition("/")[0] for words in named("prefect") if words[:2] == ["deployment", "run"]}
    assert run == set(DEPLOYMENTS), "every deployment is shown, and no other"
    pools = {one["work_pool"]["name"] for one in DEPLOYMENTS.values()}
    assert set(re.findall(r"metricgold-[cg]pu", "".join(TEXTS.values()))) == pools
    nightly = DEPLOYMENTS["batch-depth"]["schedules"][0]
    assert f"`{nightly['cron']}`" in TEXTS["docs/prediction-and-batch-jobs.md"]


# Code and settings


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.kind == "python"], ids=lambda block: block.page)
def test_python_compiles_and_its_imports_resolve(block):
    """Names are imported; nothing is trained here that they could be run on."""
    tree = compile(block.text, block.page, "exec", ast.PyCF_ONLY_AST)
    for node in ast.walk(tree):
        modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module.partition(".")[0] not in OTHER_MODULES:
            missing = [name.name for name in node.names if not hasattr(importlib.import_module(node.module), name.name)]
            assert not missing, f"{node.module} has no {', '.join(missing)}"
        for module in modules:
            importlib.import_module(module)


@pytest.mark.parametrize("page", PAGES)
def test_every_dotted_name_of_the_package_resolves(page):
    for text in spans(page):
        if found := re.fullmatch(r"(metricgold(?:\.\w+)+)(\(.*\))?", text):
            module, _, name = found[1].rpartition(".")
            assert hasattr(importlib.import_module(module), name), text


def test_the_glossary_of_the_package_is_that_of_the_manual():
    import metricgold

    terms = re.findall(r"^(\w[\w, ]*?)  +\S", metricgold.__doc__, flags=re.MULTILINE)
    rows = re.findall(r"^\| ([\w, ]+) \| ", TEXTS["docs/conventions-and-glossary.md"], flags=re.MULTILINE)
    assert {"scene", "planar depth", "shard"} <= set(terms) <= set(rows)


def test_what_the_manual_names_exists():
    import metricgold

    assert "MetricGoldPipeline" in metricgold.__all__
    assert {"hypersim", "vkitti2", "tartanair"} <= set(READERS)
    assert {name for name in METRICS if f"`{name}`" not in TEXTS["docs/evaluation.md"]} == set()
    figures = (*FIGURES, *ALIGNMENTS, *CALIBRATION)
    assert {name for name in figures if f"`{name}`" not in TEXTS["docs/figures.md"]} == set()


@pytest.mark.parametrize("page", PAGES)
def test_every_parameter_exists(page):
    for text in spans(page):
        found = re.fullmatch(r"([a-z_]+)\.([a-z_0-9]+)(: .*)?", text)
        if found and found[1] in Params.model_fields and found[2] not in ("py", "json", "png"):
            assert found[2] in Params.model_fields[found[1]].annotation.model_fields, text


def test_every_variable_of_the_environment_exists_and_is_described():
    sources = [*(ROOT / "metricgold").rglob("*.py"), *(ROOT / "flows").rglob("*.py")]
    read = {name for path in sources for name in re.findall(r"METRICGOLD_[A-Z0-9_]+", path.read_text())}
    described = {name for text in TEXTS.values() for name in re.findall(r"METRICGOLD_[A-Z0-9_]+", text)}
    assert described == read
    assert all(f"`{name}`" in TEXTS["docs/install.md"] for name in read)


def test_every_extra_is_described():
    rows = re.findall(r"^\| `(\w+)` \| ", TEXTS["docs/install.md"], flags=re.MULTILINE)
    assert sorted(row for row in rows if row.islower()) == sorted(PROJECT["optional-dependencies"])


YAML = [block for block in BLOCKS if block.kind == "yaml"]


@pytest.mark.parametrize("block", YAML, ids=lambda block: f"{block.page}: {block.title}")
def test_yaml_is_what_it_is_for(block, tmp_path):
    values = yaml.safe_load(block.text)
    assert isinstance(values, dict)
    if block.title == "params.yaml":
        Params.model_validate(yaml.safe_load((ROOT / "params.yaml").read_text()) | values)
    elif block.title == "dataset.yaml":
        _write_own_data(tmp_path / "mine", block.text)
        assert [ref.scene for ref in list_frames("mine", tmp_path / "mine", split="train").frames] == ["house_1"]
    elif block.title == "predictions.yaml":
        (tmp_path / block.title).write_text(block.text)
        assert read_statement(tmp_path).kind == values["kind"]
    elif block.title.startswith("data_manifests/"):
        manifest = yaml.safe_load((ROOT / block.title).read_text()) | values
        file = tmp_path / Path(block.title).name
        file.write_text(yaml.safe_dump(manifest))
        checked = CliRunner().invoke(main, ["manifest", "check", str(file)])
        assert checked.exit_code == 0, checked.output
    elif block.title == "studies/losses.yaml":
        (tmp_path / "losses.yaml").write_text(block.text)
        params = load_params(ROOT / "profiles/demo.yaml")
        assert len(runs_of(load_study("losses", tmp_path), params, "losses", tmp_path)) == 12
    elif block.title == "prefect.yaml":
        from prefect.client.schemas.schedules import construct_schedule

        for schedule in values["schedules"]:
            construct_schedule(cron=schedule["cron"], timezone=schedule["timezone"])
            assert schedule["parameters"].keys() <= DEPLOYMENTS["batch-depth"]["parameters"].keys()
    elif block.title == "depth-after-promotion.yaml":
        from prefect.events.schemas.automations import AutomationCore

        assert AutomationCore.model_validate(values).actions[0].type == "run-deployment"
    else:
        assert not block.title, f"no test knows what belongs into {block.title}"


def _write_own_data(raw: Path, statement: str) -> None:
    for kind, mode in (("rgb", np.uint8), ("depth", np.uint16)):
        folder = raw / "house_1" / kind
        folder.mkdir(parents=True)
        Image.fromarray(np.ones((4, 4, 3) if kind == "rgb" else (4, 4), mode)).save(folder / "000.png")
    (raw / "dataset.yaml").write_text(statement)


# Links and paths


def anchors(text: str) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", re.sub(r"^ *```.*?^ *```$", "", text, flags=re.M | re.S), flags=re.MULTILINE)
    return {re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower()) for heading in headings}


@pytest.mark.parametrize("page", [*PAGES, "CHANGELOG.md"])
def test_every_link_leads_somewhere(page):
    path = ROOT / page
    text = TEXTS.get(page) or path.read_text()
    for link in re.findall(r"\]\((?!https?:)([^)]+)\)", re.sub(r"^ *```.*?^ *```$", "", text, flags=re.M | re.S)):
        file, _, anchor = link.partition("#")
        target = path.parent / file if file else path
        assert target.exists(), link
        assert not anchor or anchor in anchors(target.read_text()), link


@pytest.mark.parametrize("page", PAGES)
def test_every_path_exists(page):
    names = [
        text for text in spans(page) if re.fullmatch(r"[\w.-]+(/[\w.-]+)*/?", text) and ("/" in text or "." in text)
    ]
    tops = {path.name for path in ROOT.iterdir()} | {made.rstrip("/") for made in MADE}
    paths = {text for text in names if text.split("/")[0] in tops}
    made = {path for path in paths if path.startswith(MADE) or path.split("/")[0] + "/" in MADE or path == "dvc.lock"}
    assert {path for path in paths - EXAMPLES - made if not (ROOT / path).exists()} == set()


def test_paths_are_seen():
    seen = {text for _, text in SPANS}
    assert {"params.yaml", "data_manifests/", "metricgold/log_depth.py", "models/metricgold"} <= seen


def test_every_page_is_in_the_menu_and_in_the_readme():
    menu = [file for entry in _mkdocs()["nav"] for file in entry.values()]
    assert sorted(menu) == [path.name for path in MANUAL]
    linked = re.findall(r"\]\(docs/([\w-]+\.md)\)", TEXTS["README.md"])
    assert set(menu) - {"index.md"} <= set(linked)
    listed = re.findall(r"\]\(([\w-]+\.md)\)", TEXTS["docs/index.md"])
    assert set(menu) - {"index.md"} == set(listed)


def _mkdocs() -> dict:
    return yaml.safe_load((ROOT / "mkdocs.yml").read_text())


def test_the_manual_builds_and_asks_no_other_host_for_anything(tmp_path, monkeypatch):
    monkeypatch.setenv("NO_MKDOCS_2_WARNING", "1")
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    assert _mkdocs()["strict"] is True
    build(load_config(str(ROOT / "mkdocs.yml"), site_dir=str(tmp_path)))  # aborts at a warning
    pages = list(tmp_path.glob("*.html"))
    assert len(pages) > len(MANUAL)
    for page in pages:
        loaded = re.findall(
            r"<(?:link|script|img|iframe)\b[^>]*(?:href|src)=\"?(?:https?:)?//[^\s\">]*", page.read_text()
        )
        assert not loaded, page.name
    for sheet in tmp_path.rglob("*.css"):
        assert not re.search(r"(?:@import|url\()\s*[\"']?(?:https?:)?//", sheet.read_text()), sheet.name


# The README, the recipe and versions


def test_the_readme_is_one_screen_and_has_a_place_for_results():
    readme = TEXTS["README.md"]
    assert len(readme.splitlines()) <= 150
    for name in ("results", "policies"):
        assert 0 < readme.index(f"<!-- {name} -->") < readme.index(f"<!-- /{name} -->")
    assert "](.github/picture.png)" in readme


def test_the_manual_has_a_section_on_odd_images():
    assert "## Odd images\n" in TEXTS["docs/prediction-and-batch-jobs.md"]


def test_the_recipe_is_a_whole_params_file():
    """And one whose data sets have manifests; what the manual says of steps and defaults is so."""
    params = load_params(ROOT / "profiles/rtx3090.yaml")
    assert all((ROOT / f"data_manifests/{name}.yaml").exists() for name in params.datasets)
    assert set(params.train.weights) == set(params.datasets)
    assert (params.train.num_steps, params.train.batch_size, params.train.lr) == (30_000, 32, 3e-5)
    assert (params.predict.num_inference_steps, params.predict.ensemble_size) == (50, 10)
    assert params.train.checkpoint_every == 500
    assert params.train.validation.every == 1000


def test_profiles_are_listed():
    rows = re.findall(r"^\| `([\w-]+)` \| ", TEXTS["docs/training.md"], flags=re.MULTILINE)
    assert sorted(rows) == sorted(path.stem for path in (ROOT / "profiles").glob("*.yaml"))


@pytest.mark.parametrize(
    "path", [ROOT / "params.yaml", *sorted((ROOT / "profiles").glob("*.yaml"))], ids=lambda p: p.stem
)
def test_a_profile_has_every_key_that_dvc_watches(path):
    """`dvc repro` refuses to run without them, whatever their defaults are."""
    for key in {key for stage in DVC.values() for key in stage["params"]}:
        values = yaml.safe_load(path.read_text())
        for part in key.split("."):
            assert part in values, key
            values = values[part]


def test_versions_agree():
    assert PROJECT["requires-python"] == ">=3.11,<3.14"
    assert "Python 3.11 to 3.13" in TEXTS["README.md"]
    assert "Python 3.11 to 3.13" in TEXTS["docs/install.md"]
    matrix = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"]["test"]["strategy"]["matrix"]
    assert matrix["python"] == ["3.11", "3.12", "3.13"]
    assert PROJECT["license"] == "Apache-2.0"
    assert f"## [{PROJECT['version']}]" in (ROOT / "CHANGELOG.md").read_text()


def test_continuous_integration_and_commit_hooks_run_what_the_makefile_runs():
    steps = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"]["test"]["steps"]
    assert {"make test", "make docs"} == {step["run"] for step in steps if "run" in step}
    (hooks,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    lint = (ROOT / "Makefile").read_text().replace("$(BIN)", ".venv/bin")
    for hook in hooks["hooks"]:
        assert hook["language"] == "system"
        assert hook["entry"] in lint, hook["id"]


def test_the_walks_pass_functions_that_exist():
    rows = re.findall(r"^\| \d+ \| (.+?) \| (.+?) \|", (ROOT / "docs/design.md").read_text(), re.M)
    assert len(rows) >= 20
    for functions, files in rows:
        trees = [ast.parse((ROOT / file).read_text()) for file in re.findall(r"`(.+?)`", files)]
        defined = set()
        for node in (node for tree in trees for node in tree.body):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                defined.add(node.name)
            if isinstance(node, ast.ClassDef):
                defined |= {f"{node.name}.{one.name}" for one in node.body if isinstance(one, ast.FunctionDef)}
        assert set(re.findall(r"`(.+?)`", functions)) <= defined, (functions, files)
