"""The packages that only an extra installs, and the one line that names the extra where such a package is missing."""

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
