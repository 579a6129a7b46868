"""Packages that are missing or unwanted: the line that names an extra, and what a command's process does not load."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

# Module that an import misses -> extra of pyproject.toml that installs it.
EXTRA_OF = {
    "boto3": "s3",
    "botocore": "s3",
    "dask": "dask",
    "distributed": "dask",
    "mlflow": "pipeline",
    "psycopg2": "postgres",
    "prefect": "pipeline",
    "flask_wtf": "auth",
    "dvc": "pipeline",
    "py7zr": "pipeline",
    "pyarrow": "benchmark",
    "OpenEXR": "exr",
    "onnx": "export",
    "onnxruntime": "export",
    "onnxscript": "export",
    "bitsandbytes": "adam8bit",
    "torchvision": "peers",
    "fastapi": "serve",
    "starlette": "serve",
    "uvicorn": "serve",
    "python_multipart": "serve",
    "prometheus_client": "serve",
}

# diffusers imports them wherever it finds them, for adapters and samplers that no stage uses: half of a start.
UNUSED = ("transformers", "scipy")


def hide_unused() -> None:
    """Have imports of UNUSED fail in this process, so that diffusers does without them.

    For a command's process, which is all ours. Whoever uses the library may have other work for diffusers.
    """
    for name in UNUSED:
        sys.modules.setdefault(name, None)  # type: ignore[arg-type]  # None is Python's word for "cannot be imported"


def show_unused() -> None:
    """Undo `hide_unused`, for the few who do use them; before diffusers is imported, which looks once."""
    for name in UNUSED:
        if name in sys.modules and sys.modules[name] is None:
            del sys.modules[name]


@contextmanager
def naming_the_extra() -> Iterator[None]:
    """Around an import: raises ValueError that names the extra where one of EXTRA_OF is not installed.

    Any other failure of an import passes through: it is a fault of the installation, and its traceback says which.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in EXTRA_OF:
            raise
        advice = f"pip install 'metricgold[{EXTRA_OF[package]}]'"
        raise ValueError(f"{package} is not installed, which this needs: {advice}") from error
