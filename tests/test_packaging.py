"""What an installation brings: a light core, missing extras by name, and projects without a clone."""

import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from email.parser import Parser
from pathlib import Path

import numpy as np
import py7zr
import pytest
import yaml
from click.testing import CliRunner
from packaging.requirements import Requirement
from PIL import Image

from metricgold.cli import main
from metricgold.datasets.manifest import load_manifest, manifest_paths
from metricgold.extras import EXTRA_OF
from metricgold.params import project as projects
from metricgold.params.paths import MANIFESTS
from metricgold.params.project import FILES, FOLDERS, lay_out_project
from metricgold.registry.pyfunc import PACKAGES
from tests.conftest import MANIFEST
from tests.support import ROOT

EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]


def run(*command: str, cwd: Path, env: dict[str, str], code: int = 0) -> subprocess.CompletedProcess:
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == code, done.stdout + done.stderr
    return done


# The light install


def light(*words: str, cwd: Path, code: int = 0) -> subprocess.CompletedProcess:
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    return run(sys.executable, "-m", "tests.support.without_extras", *words, cwd=cwd, env=env, code=code)


@pytest.fixture
def photo(tmp_path) -> Path:
    """A folder of one photograph and nothing else."""
    rgb = np.random.default_rng(0).integers(0, 255, (40, 50, 3), dtype=np.uint8)
    Image.fromarray(rgb).save(tmp_path / "one.jpg")
    return tmp_path


def test_predict_works_without_extras_and_without_a_project(photo, tiny_model):
    assert "Usage: " in light("predict", "--help", cwd=photo).stdout
    options = ["--model", str(tiny_model), "--steps", "1", "--ensemble", "1", *(f"--write={kind}" for kind in KINDS)]
    light("predict", "one.jpg", "out", *options, cwd=photo)
    made = {path.name for path in (photo / "out").iterdir()}
    assert {"one.jpg.depth.png", "one.jpg.preview.jpg", "gallery.html", "receipt.jsonl"} <= made
    assert sorted(path.name for path in photo.iterdir()) == ["one.jpg", "out"]
    done = run(sys.executable, "-c", LIBRARY, cwd=photo, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert set(done.stdout.splitlines()) == {f"{kind} (40, 50)" for kind in ("log-png", "mm-png", "npz", "tiff")}


KINDS = ("log-png", "mm-png", "npz", "tiff", "preview", "ply")

LIBRARY = """
from pathlib import Path
from tests.support.without_extras import distributions_of, hide_all_but

hide_all_but(distributions_of("metricgold"))
import metricgold
from metricgold.storage import open_bucket

assert all(getattr(metricgold, name) is not None for name in metricgold.__all__)
for path in Path("out").glob("*.depth*"):
    file = metricgold.read_depth(path)
    print(file.kind, file.planar_depth_m.shape)
try:
    open_bucket("s3://bucket/photos")
except ValueError as error:
    assert "pip install 'metricgold[s3]'" in str(error)
else:
    raise SystemExit("boto3 was not hidden")
"""


def write_inputs(folder: Path, model: Path) -> None:
    """What the commands get as far as their missing extra with: a project of a model and of two manifests."""
    (folder / "params.yaml").write_text("datasets: [hypersim-synthetic]\ndownload: {patience_s: 1}\n")
    (folder / "models").mkdir()
    (folder / "models/metricgold").symlink_to(model)
    (folder / "metrics").mkdir()
    (folder / "metrics/evaluate.json").write_text('{"abs_rel": 0.1}')
    (folder / "upstream").mkdir()
    with py7zr.SevenZipFile(folder / "upstream/env1.7z", "w") as file:
        file.writestr(b"depth" * 1000, "env1/depth.npy")
    (folder / "data_manifests").mkdir()
    for name, mirror in (("seven", f"file://{folder}/upstream"), ("bucket", "s3://bucket")):
        values = yaml.safe_load(MANIFEST) | {"name": name, "mirrors": [mirror]}
        del values["checksums"]
        values["archives"] = [{"path": "env1.7z", "scenes": ["env1"]}]
        (folder / f"data_manifests/{name}.yaml").write_text(yaml.safe_dump(values))


@pytest.mark.parametrize(
    ("words", "extra"),
    [
        ("predict s3://bucket/photos out --model MODEL", "s3"),
        ("predict one.jpg s3://bucket/depth --model MODEL", "s3"),
        ("predict one.jpg out --model MODEL --dask local:1", "dask"),
        ("predict one.jpg out --model MODEL --write exr", "exr"),
        ("predict one.jpg out --model models:/metricgold@champion", "pipeline"),
        ("encode hypersim-synthetic --dask local:1", "dask"),
        ("evaluate", "benchmark"),
        ("register", "pipeline"),
        ("promote", "pipeline"),
        ("rollback", "pipeline"),
        ("benchmark nyuv2 --model MODEL", "benchmark"),
        ("benchmark --report one.parquet", "benchmark"),
        ("download seven --accept-licence", "pipeline"),
        ("download bucket --accept-licence", "s3"),
    ],
)
def test_a_missing_extra_is_one_line_that_names_it(photo, tiny_model, words, extra):
    write_inputs(photo, tiny_model)
    done = light(*words.replace("MODEL", str(tiny_model)).split(), cwd=photo, code=1)
    assert done.stdout == ""
    (line,) = (line for line in done.stderr.splitlines() if " INFO " not in line)
    assert line.startswith("Error: ") and f"pip install 'metricgold[{extra}]'" in line
    assert not (photo / "out").exists()


def test_training_needs_no_extra_but_moments_of_eight_bits_do(project):
    path = project / "params.yaml"
    values = yaml.safe_load(path.read_text())
    values["train"] |= {"num_steps": 2, "decay_steps": 2}
    path.write_text(yaml.safe_dump(values))
    assert "mlflow is not installed" in light("train", cwd=project).stderr  # a warning: metrics.jsonl has the rows
    assert (project / "models/metricgold/model_index.json").is_file()
    values["train"]["optimizer"] = "adamw8bit"
    path.write_text(yaml.safe_dump(values))
    line = light("train", "--no-track", cwd=project, code=1).stderr.splitlines()[-1]
    assert line == "Error: bitsandbytes is not installed, which this needs: pip install 'metricgold[adam8bit]'"


PYFUNC = """
import sys
from tests.support.without_extras import distributions_of, hide_all_but

model, *packages = sys.argv[1:]
hide_all_but(distributions_of(*packages) | {"metricgold"}, extras=())
import numpy as np
import metricgold.registry

rgb = np.zeros((32, 48, 3), np.uint8)
for config, of_answer in ((None, lambda answer: answer), ({"seed": 1}, lambda answer: answer["depth"])):
    loaded = metricgold.registry._load_pyfunc(model, config)
    print(of_answer(loaded.predict(rgb, {"num_inference_steps": 1, "ensemble_size": 1})).shape)
"""


def test_a_registered_model_needs_only_the_packages_that_are_registered_with_it(tmp_path, tiny_model):
    """MLflow installs those, beside the code of metricgold, where it serves the model in an environment of its own."""
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    assert (
        run(sys.executable, "-c", PYFUNC, str(tiny_model), *PACKAGES, cwd=tmp_path, env=env).stdout == "(32, 48)\n" * 2
    )


def test_every_extra_but_dev_is_named_where_it_is_missing():
    assert set(EXTRA_OF.values()) == set(EXTRAS) - {"dev"}
    assert "metricgold[pipeline]" in EXTRAS["dev"] and "metricgold[s3]" in EXTRAS["pipeline"]


def test_a_params_file_is_used_where_it_is_and_has_to_exist_where_it_is_named(photo, tiny_model):
    words = ["predict", "one.jpg", "out", "--model", str(tiny_model)]
    assert "none.yaml: no such file" in light("--params", "none.yaml", *words, cwd=photo, code=1).stderr
    (photo / "params.yaml").write_text("datasets: [hypersim-synthetic]\npredict: {merge: latent}\n")
    assert "needs merge depth" in light(*words, "--ensemble", "auto", cwd=photo, code=2).stderr


# A new project


def init(folder: Path, code: int = 0) -> str:
    result = CliRunner().invoke(main, ["init", str(folder)])
    assert result.exit_code == code, result.output
    return result.output


def test_init_lays_out_a_project_and_says_what_to_run_next(tmp_path):
    assert "dvc repro" in init(tmp_path / "new")
    made = {path.name for path in (tmp_path / "new").iterdir()}
    assert made == {Path(name).parts[0] for name in (*FILES, *FOLDERS)} | {".git"}
    assert not list((tmp_path / "new").rglob("__pycache__"))
    for name in FILES:
        assert (tmp_path / "new" / name).read_bytes() == (ROOT / name).read_bytes()


def test_init_overwrites_nothing(tmp_path, monkeypatch):
    (tmp_path / "full").mkdir()
    (tmp_path / "full/notes.txt").write_text("mine")
    assert "nothing is overwritten" in init(tmp_path / "full", code=1)
    assert "nothing is overwritten" in init(tmp_path / "full/notes.txt", code=1)
    monkeypatch.chdir(tmp_path)
    assert "nothing is overwritten" in init(Path(), code=1)
    assert [path.name for path in tmp_path.rglob("*")] == ["full", "notes.txt"]


def test_init_leaves_nothing_half_made(tmp_path, monkeypatch):
    monkeypatch.setattr(projects, "FILES", ("params.yaml", "no-such-file"))
    with pytest.raises(FileNotFoundError):
        lay_out_project(tmp_path / "new")
    assert list(tmp_path.iterdir()) == []


def test_a_project_inside_a_repository_stays_part_of_it_and_without_git_dvc_needs_none(tmp_path, monkeypatch):
    subprocess.run(["git", "init", "--quiet", tmp_path / "outer"], check=True)
    lay_out_project(tmp_path / "outer/inner")
    assert not (tmp_path / "outer/inner/.git").exists()
    monkeypatch.setenv("PATH", str(tmp_path))
    lay_out_project(tmp_path / "alone")
    assert not (tmp_path / "alone/.git").exists()
    run(sys.executable, "-m", "dvc", "status", cwd=tmp_path / "alone", env=dict(os.environ))


def test_manifests_of_the_working_folder_come_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data_manifests").mkdir()
    values = yaml.safe_load((MANIFESTS / "vkitti2.yaml").read_text()) | {"title": "ours"}
    (tmp_path / "data_manifests/vkitti2.yaml").write_text(yaml.safe_dump(values))
    assert load_manifest("vkitti2").title == "ours"
    assert manifest_paths()["hypersim"] == MANIFESTS / "hypersim.yaml"


# The wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel, built from a copy of what Git tracks here: no network, and no leftovers of the working folder."""
    folder = tmp_path_factory.mktemp("wheel")
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    for name in tracked.stdout.splitlines():
        if not name.startswith("tests/") and (ROOT / name).is_file():
            (folder / "source" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, folder / "source" / name)
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    run(*build, cwd=folder / "source", env=dict(os.environ))
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> dict[str, str]:
    """Environment of a machine on which the wheel is installed and the repository unknown."""
    folder = tmp_path_factory.mktemp("installed")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "packages")
    script = folder / "bin/metricgold"
    script.parent.mkdir()
    # Without `site` the editable install of the environment, a .pth file, is not read.
    script.write_text(
        f"#!{sys.executable} -S\nfrom metricgold.cli import main\nif __name__ == '__main__':\n    main()\n"
    )
    script.chmod(0o755)
    packages = [str(folder / "packages"), sysconfig.get_path("platlib"), sysconfig.get_path("purelib")]
    env = {key: value for key, value in os.environ.items() if not key.startswith(("PREFECT_", "MLFLOW_"))}
    path = os.pathsep.join([str(script.parent), env.get("PATH", os.defpath)])
    quiet = {"DO_NOT_TRACK": "true", "DVC_NO_ANALYTICS": "1", "PREFECT_HOME": str(folder / "prefect")}
    return env | {"PYTHONPATH": os.pathsep.join(packages), "PATH": path} | quiet


def test_the_wheel_holds_one_package_whole(wheel):
    """Code, stubs, templates, protocols, and below project/ what `metricgold init` lays out and the profiles."""
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    code = {path.relative_to(ROOT).as_posix() for path in (ROOT / "metricgold").rglob("*") if path.is_file()}
    code = {name for name in code if "__pycache__" not in name}
    assert {Path(name).suffix for name in code} == {".py", ".pyi", ".j2", ".typed", ".yaml", ".js", ".css"}
    shipped = {f"{folder}/{path.name}" for folder in (*FOLDERS, "profiles") for path in (ROOT / folder).glob("*.*")}
    assert names == code | {f"metricgold/project/{name}" for name in (*FILES, *shipped)}


def test_the_wheels_metadata_lists_the_extras(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        facts = Parser().parsestr(archive.read(name).decode())
    assert set(facts.get_all("Provides-Extra")) == set(EXTRAS)
    core = {Requirement(line).name for line in facts.get_all("Requires-Dist") if "extra ==" not in line}
    assert "torch" in core and not core & {"boto3", "distributed", "dvc", "prefect", "mlflow", "py7zr", "openexr"}


def test_manifests_profiles_and_protocols_come_with_the_wheel(installed, tmp_path):
    code = "import metricgold; print(metricgold.__file__)"
    where = run(sys.executable, "-S", "-c", code, cwd=tmp_path, env=installed)
    assert where.stdout.startswith(installed["PYTHONPATH"].split(os.pathsep)[0])
    listed = run("metricgold", "profile", "list", cwd=tmp_path, env=installed).stdout
    assert len(listed.splitlines()) == len(list(ROOT.glob("profiles/*.yaml")))
    checked = run("metricgold", "manifest", "check", cwd=tmp_path, env=installed).stdout
    assert f"{len(list(ROOT.glob('data_manifests/*.yaml')))} manifests are right" in checked
    code = "from metricgold.evaluate.protocols import protocol_names; print(len(protocol_names()))"
    counted = run(sys.executable, "-S", "-c", code, cwd=tmp_path, env=installed).stdout
    assert int(counted) == len(list(ROOT.glob("metricgold/evaluate/protocols/*.yaml"))) > 20


DEPLOYED = """
import yaml
from metricgold.prefect_plugin import DEPLOYMENTS
from prefect.flows import load_flow_from_entrypoint

with open("prefect.yaml") as file:
    deployments = yaml.safe_load(file)["deployments"]
names = {load_flow_from_entrypoint(one["entrypoint"]).name for one in deployments}
assert names == {one["name"] for one in deployments} == DEPLOYMENTS, names
"""


@pytest.mark.slow
def test_from_the_wheel_to_a_model(installed, tmp_path, tiny):
    """init, then all stages by `dvc repro` on tiny scenes; the second time nothing runs. The flows load as well."""
    project = tmp_path / "project"
    run("metricgold", "init", str(project), cwd=tmp_path, env=installed)
    values = tiny.model_dump(mode="json")
    values["synthesize"] |= {"height": 32, "width": 48, "num_train_scenes": 2, "num_test_scenes": 1}
    values["synthesize"] |= {"frames_per_scene": 3}
    (project / "params.yaml").write_text(yaml.safe_dump(values))
    repro = [sys.executable, "-S", "-m", "dvc", "repro"]
    run(*repro, cwd=project, env=installed)
    assert (project / "models/metricgold/model_index.json").is_file()
    assert (project / "metrics/evaluate.json").is_file()
    assert "up to date" in run(*repro, cwd=project, env=installed).stdout
    run(sys.executable, "-S", "-c", DEPLOYED, cwd=project, env=installed)
