"""The README promises nothing that does not exist."""

import re
import tomllib

import pytest
import yaml

from demo.report import PICTURE
from metricgold.cli import main
from metricgold.metrics import METRICS
from metricgold.params.sections import load_params
from tests.support import ROOT

README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^ *```(\w*)\n(.*?)^ *```$", README, flags=re.MULTILINE | re.DOTALL)
WITHOUT_BLOCKS = re.sub(r"^ *```.*?^ *```$", "", README, flags=re.MULTILINE | re.DOTALL)
SPANS = re.findall(r"`([^`\n]+)`", WITHOUT_BLOCKS)
SHELL = [line.partition(" #")[0].strip() for kind, block in BLOCKS if kind == "sh" for line in block.splitlines()]
COMMANDS = [text for text in [*SHELL, *SPANS] if re.match(r"(metricgold|make|dvc|prefect|python -m) ", text)]
MADE = ("data/", "models/", "metrics/", "plots/", "reports/", "mlruns/", "mlflow.db")  # by a run, never committed
EXAMPLES = {"data_manifests/mine.yaml", "metricgold/datasets/mine.py", "tests/datasets/test_mine.py"}


def commands(program: str) -> list[str]:
    return [text.removeprefix(program).strip() for text in COMMANDS if text.startswith(f"{program} ")]


def test_the_readme_is_read_at_all():
    assert len(commands("metricgold")) > 10
    assert {"demo", "test"} <= {text.split()[0] for text in commands("make")}


@pytest.mark.parametrize("text", sorted(set(commands("metricgold"))))
def test_every_metricgold_command_exists_with_its_options(text):
    word, *rest = text.split()
    assert word in main.commands, f"metricgold {text}"
    known = {option for parameter in main.commands[word].params for option in parameter.opts}
    assert {part for part in rest if part.startswith("--")} <= known


def test_every_make_target_exists():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    assert {text.split()[0] for text in commands("make")} <= targets


def test_every_dvc_stage_exists():
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    rows = re.findall(r"^\| ([\w-]+) \| `metricgold ([\w-]+)", README, flags=re.MULTILINE)
    assert all(word == command for word, command in rows)
    assert [word for word, _ in rows][: len(stages)] == list(stages), "`dvc repro` runs the first rows, in this order"
    assert {text.split()[1] for text in commands("dvc") if len(text.split()) > 1} <= set(stages)


def test_every_deployment_and_pool_exists():
    deployments = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]
    names = {one["name"] for one in deployments}
    run = {text.split()[2] for text in commands("prefect") if text.startswith("deployment run")}
    assert run == names, "every deployment is shown, and no other"
    pools = {one["work_pool"]["name"] for one in deployments}
    assert set(re.findall(r"metricgold-[cg]pu", README)) == pools
    nightly = next(one for one in deployments if one["name"] == "batch-depth")["schedules"][0]
    assert f"`{nightly['cron']}`" in README


def test_every_path_exists():
    links = re.findall(r"\]\((?!https?:)([^)]+)\)", WITHOUT_BLOCKS)
    named = [text for text in SPANS if re.fullmatch(r"[\w.-]+(/[\w.-]+)*/?", text) and ("/" in text or "." in text)]
    tops = {path.name for path in ROOT.iterdir()} | {made.rstrip("/") for made in MADE}
    paths = {text for text in named if text.split("/")[0] in tops} | {link for link in links if link[0] != "#"}
    assert {"params.yaml", "metricgold/datasets/frame.py", "data_manifests/", str(PICTURE)} <= paths
    for path in sorted(paths - EXAMPLES):
        made = path.startswith(MADE) or path.split("/")[0] + "/" in MADE or path == "dvc.lock"
        assert made or (ROOT / path.replace("\\", "")).exists(), path


def test_every_link_within_the_page_has_its_heading():
    headings = re.findall(r"^#+ (.*)$", WITHOUT_BLOCKS, flags=re.MULTILINE)
    anchors = {"#" + re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
    assert set(re.findall(r"\]\((#[^)]+)\)", WITHOUT_BLOCKS)) <= anchors


def test_every_module_exists():
    for text in (text for text in COMMANDS if text.startswith("python -m ")):
        module = text.split()[2]
        assert (ROOT / (module.replace(".", "/") + ".py")).exists(), text


def test_the_recipe_is_a_whole_params_file():
    """And one whose data sets have manifests; what it says of steps and defaults is so."""
    params = load_params(ROOT / "profiles/rtx3090.yaml")
    assert all((ROOT / f"data_manifests/{name}.yaml").exists() for name in params.datasets)
    assert set(params.train.weights) == set(params.datasets)
    assert (params.train.num_steps, params.train.batch_size, params.train.lr) == (30_000, 32, 3e-5)
    assert (params.predict.num_inference_steps, params.predict.ensemble_size) == (50, 10)
    assert params.train.checkpoint_every == 500


@pytest.mark.parametrize(
    "path", [ROOT / "params.yaml", *sorted((ROOT / "profiles").glob("*.yaml"))], ids=lambda p: p.stem
)
def test_a_profile_has_every_key_that_dvc_watches(path):
    """`dvc repro` refuses to run without them, whatever their defaults are."""
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"].values()
    for key in {key for stage in stages for key in stage["params"]}:
        values = yaml.safe_load(path.read_text())
        for part in key.split("."):
            assert part in values, key
            values = values[part]


def test_python_examples_name_what_exists():
    """Names are imported; nothing is trained here that they could be run on."""
    import metricgold
    from metricgold.datasets.readers import READERS
    from metricgold.images import depth_files

    for kind, block in BLOCKS:
        if kind == "python":
            compile(block, "README.md", "exec")
    assert "MetricGoldPipeline" in metricgold.__all__
    assert callable(depth_files.read_log_depth_png)
    assert {"hypersim", "vkitti2", "tartanair"} <= set(READERS)
    assert {"abs_rel", "delta1"} <= set(METRICS)


def test_versions_agree():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["requires-python"] == ">=3.11,<3.14"
    assert "Python 3.11 to 3.13" in README
    assert project["license"] == "Apache-2.0"


def test_results_have_their_place():
    assert README.index("<!-- results -->") < README.index("<!-- /results -->")
