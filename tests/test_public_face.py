"""The public face: what `from metricgold import …` gives, that it is documented, and that naming it loads little."""

import ast
import dataclasses
import inspect
import re
import subprocess
import sys

import pytest

import metricgold
from tests.support import ROOT

FACE = {
    "MetricGoldPipeline": "metricgold.model.pipeline",
    "Prediction": "metricgold.model.pipeline",
    "Frame": "metricgold.datasets.frame",
    "open_dataset": "metricgold.datasets.readers",
    "LogDepth": "metricgold.log_depth",
    "LatentCache": "metricgold.shards",
    "depth_metrics": "metricgold.metrics.figures",
    "read_depth": "metricgold.images.depth_files",
    "DepthFile": "metricgold.images.depth_files",
    "read_rgb": "metricgold.images.photo",
    "points_from_depth": "metricgold.images.camera",
    "write_ply": "metricgold.images.point_cloud",
    "write_glb": "metricgold.images.point_cloud",
}
RESULTS = {"Prediction", "DepthFile"}  # hold results and check nothing
UNITS_AND_SHAPES = r"metres|\[[A-Z], [A-Z]|\[\.\.\., |any shape|DepthFile"  # or the record that has them


def test_the_list_of_the_face():
    assert set(metricgold.__all__) == set(FACE)
    for name, module in FACE.items():
        assert getattr(metricgold, name).__module__ == module


@pytest.mark.parametrize("name", metricgold.__all__)
def test_all_of_it_is_documented(name):
    """Shapes or units, errors, and by its name every parameter of a function and every field of a record."""
    thing = getattr(metricgold, name)
    text = inspect.getdoc(thing)
    assert re.search(UNITS_AND_SHAPES, text), f"{name} states neither shape nor unit"
    assert name in RESULTS or "Raises" in text, f"{name} states no error"
    if dataclasses.is_dataclass(thing):
        named = [field.name for field in dataclasses.fields(thing)]
    else:
        named = [] if inspect.isclass(thing) else list(inspect.signature(thing).parameters)
    assert [one for one in named if one.lower() not in text.lower()] == []


@pytest.mark.parametrize("name", [name for name in metricgold.__all__ if inspect.isclass(getattr(metricgold, name))])
def test_every_public_method_is_documented(name):
    thing = getattr(metricgold, name)
    special = {"__call__", "__getitem__", "__len__"}
    for key, value in vars(thing).items():
        is_method = callable(value) or isinstance(value, property | classmethod | staticmethod)
        if is_method and (not key.startswith("_") or key in special):
            assert inspect.getdoc(value), f"{name}.{key} has no docstring"


def run_python(code, *options):
    command = [sys.executable, *options, "-c", code]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)


def test_importing_the_package_loads_neither_torch_nor_diffusers():
    done = run_python("import metricgold", "-X", "importtime")
    loaded = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
    assert "metricgold" in loaded and not loaded & {"torch", "diffusers", "numpy", "PIL", "h5py", "pydantic"}


WINGS = [
    "datasets",
    "download",
    "encode",
    "evaluate",
    "images",
    "metrics",
    "model",
    "params",
    "predict",
    "registry",
    "serve",
    "storage",
    "study",
]


@pytest.mark.parametrize("wing", [*WINGS, "train", "encode.crops"])
def test_a_wing_loads_no_torch_before_it_is_used(wing):
    heavy = "{'torch', 'diffusers', 'transformers', 'accelerate', 'mlflow'}"
    done = run_python(f"import sys, metricgold.{wing}; print(sorted({heavy} & set(sys.modules)))")
    assert done.stdout == "[]\n"


def test_the_figures_need_numpy_only():
    """Whoever measures with them in a script of their own installs nothing else."""
    done = run_python(
        "import sys; import metricgold.metrics as wing; [getattr(wing, name) for name in wing.__all__];"
        "print(sorted({'torch', 'scipy', 'matplotlib', 'pydantic', 'PIL'} & set(sys.modules)))"
    )
    assert done.stdout == "[]\n"


def names_of_stub(stub):
    """What a face lists, without importing it."""
    imports = [node for node in ast.parse(stub.read_text()).body if isinstance(node, ast.ImportFrom)]
    return {alias.asname for node in imports for alias in node.names}


@pytest.mark.parametrize("wing", [*WINGS, "train"])
def test_a_face_gives_what_its_stub_lists(wing):
    face = __import__(f"metricgold.{wing}", fromlist=["face"])
    names = names_of_stub(ROOT / "metricgold" / wing / "__init__.pyi")
    assert names == set(face.__all__)
    for name in names:
        assert getattr(face, name) is not None


def test_help_is_light():
    """Under half a second of this process's own time; on a machine at work the clock on the wall says little."""
    code = "import sys, time; from metricgold.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass\n"
    code += "print(time.process_time(), 'torch' in sys.modules, file=sys.stderr)"
    seconds, has_torch = run_python(code).stderr.split()[-2:]
    assert float(seconds) < 0.5 and has_torch == "False"


def test_the_package_is_marked_as_typed():
    assert (ROOT / "metricgold" / "py.typed").read_bytes() == b""
