"""The command line as a light install runs it: packages that only extras bring cannot be imported.

python -m tests.support.without_extras predict --help
"""

import sys
from importlib.machinery import PathFinder

HIDDEN = frozenset(
    {"boto3", "botocore", "s3transfer", "dask", "distributed", "tornado", "mlflow", "dvc", "prefect", "fastapi"}
    | {"sqlalchemy", "alembic", "py7zr", "pynvml", "OpenEXR", "bitsandbytes"}
)


def hide(names: frozenset[str]) -> None:
    """Let the import system find none of these packages, as if they were not installed."""
    find_spec = PathFinder.find_spec

    def find_others(name, path=None, target=None):
        return None if name.partition(".")[0] in names else find_spec(name, path, target)

    PathFinder.find_spec = staticmethod(find_others)


if __name__ == "__main__":
    hide(HIDDEN)
    from metricgold.cli import main

    main(sys.argv[1:])
