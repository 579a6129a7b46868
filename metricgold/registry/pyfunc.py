"""The files of a version: a pyfunc made of a diffusers folder and this package's source; nothing is pickled."""

import base64
import io
import logging
import os
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import numpy as np

from metricgold.model import digest_model
from metricgold.params import PRESETS, Params
from metricgold.registry.mlflow_client import NAME, find_version, named_version, open_client
from metricgold.storage import (
    digest_json,
    has_ended,
    paths_below,
    read_json,
    read_yaml,
    remove,
    this_writer,
    write_aside,
    write_json,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.models import ModelSignature
    from mlflow.models.model import ModelInfo

log = logging.getLogger(__name__)

DIGEST = "digest.json"  # of the checkpoint, beside a copy of a version
WRITER = "metricgold.writer"  # tag of a copy: the process that logged it
PACKAGES = (  # that a logged model needs to run
    "mlflow-skinny",  # all of MLflow that loads and serves a model; `mlflow` itself brings a web page and more
    "pandas",
    "torch",
    "diffusers",
    "transformers",
    "accelerate",
    "safetensors",
    "numpy",
    "lazy-loader",
    "pillow",
    "pillow-heif",
    "simplejpeg",
    "pydantic",
    "pyyaml",
)


def log_model(params: Params, model: Path, digest: str) -> "ModelInfo":
    """Log a diffusers folder of that digest as a pyfunc into the active run, with all of the package as its code."""
    from mlflow.models import Model

    index = read_json(model / "model_index.json")
    presets = ["one-step"] if index.get("objective") == "one-step" else list(PRESETS)
    return Model.log(
        artifact_path=None,  # its name of before, which it wants all the same
        name=NAME,
        flavor=Unproven,
        flavor_name="pyfunc",
        validate_serving_input=False,
        loader_module="metricgold.registry",  # the face: it stays where it is, whatever moves behind it
        data_path=str(model),
        code_paths=[str(Path(__file__).parents[1])],  # the folder metricgold/, with the .pyi that faces read
        signature=signature(params.predict.seed),
        input_example=(
            [{"image": base64.b64encode(example_jpeg()).decode(), "focal_px": 83.0}],
            {"num_inference_steps": 1, "ensemble_size": 1},
        ),
        pip_requirements=[f"{name}=={version(name).partition('+')[0]}" for name in PACKAGES],
        model_config=params.predict.model_dump(mode="json") | {"model_digest": digest},
        tags={WRITER: this_writer()},
        metadata={
            "unit": "metres",
            **{name: index.get(name) for name in ("near_m", "far_m", "camera", "objective")},
            "uncertainty_calibrated": index.get("uncertainty_scale") is not None,
            "presets": {name: PRESETS[name] for name in presets},
        },
    )


class Unproven:
    """MLflow's pyfunc, which may be told not to load the model and try the example: a large one takes minutes."""

    @staticmethod
    def save_model(path: str, *, validate_serving_input: bool, **options: Any) -> None:
        """As mlflow.pyfunc.save_model."""
        import mlflow

        mlflow.pyfunc.save_model(path=path, **options)


def signature(seed: int) -> "ModelSignature":
    """What a version takes and answers; see DepthModel in scoring.py."""
    from mlflow.models import ModelSignature
    from mlflow.types import DataType, ParamSchema, ParamSpec, Schema
    from mlflow.types.schema import AnyType, Array, ColSpec

    text, number, truth = DataType.string, DataType.double, DataType.boolean
    maps, matrix = AnyType(), Array(Array(number))  # an image, and the maps of an answer, are arrays or files
    inputs = {"image": maps, "focal_px?": number, "fov_deg?": number, "intrinsics?": matrix}
    outputs = {
        **{"unit": text, "kind": text, "encoding": text, "depth": maps, "valid_mask": maps, "uncertainty?": maps},
        **{"uncertainty_calibrated": truth, "intrinsics?": matrix, "focal_px?": number, "focal_from": text},
        **{"scale_assumed": truth, "near_m": number, "far_m": number, "num_members": DataType.long},
    }
    schemas = (
        Schema([ColSpec(kind, name.rstrip("?"), not name.endswith("?")) for name, kind in columns.items()])
        for columns in (inputs, outputs)
    )
    stated = ModelSignature(
        *schemas,
        params=ParamSchema(
            [
                ParamSpec("preset", "string", None),
                ParamSpec("num_inference_steps", "integer", None),
                ParamSpec("ensemble_size", "integer", None),
                ParamSpec("seed", "integer", seed),
                ParamSpec("encoding", "string", None),
            ]
        ),
    )
    # The model checks its input by itself, as one with type hints does: MLflow would drop fields that it does not know,
    # put whole photographs into messages, and take seconds for the numbers of an image.
    stated._is_signature_from_type_hint = True
    return stated


def example_jpeg() -> bytes:
    """A small photograph: a road under a sky."""
    from PIL import Image

    y, x = np.mgrid[-1:1:64j, -1.5:1.5:96j]
    is_road = np.abs(x) < 0.9 * y
    rgb = np.where((y < 0)[..., None], (150, 190, 230), np.where(is_road[..., None], (90, 90, 95), (80, 130, 60)))
    file = io.BytesIO()
    Image.fromarray((rgb * (1 - 0.3 * np.abs(y)[..., None])).astype(np.uint8)).save(file, "JPEG", quality=80)
    return file.getvalue()


def clear_copies(client: "MlflowClient", experiment: str, run_id: str) -> None:
    """Delete the copies that killed calls on this machine logged into a run of which there is no version yet."""
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    for logged in client.search_logged_models([experiment], f"source_run_id = '{run_id}'"):
        files = logged.artifact_location.rstrip("/")
        if has_ended(logged.tags.get(WRITER, "")) and f"/{logged.model_id}/" in f"{files}/":
            get_artifact_repository(files).delete_artifacts()
            client.delete_logged_model(logged.model_id)


def fetch_model(model: str) -> tuple[Path, str]:
    """Local folder and name of a checkpoint given as a folder or as models:/metricgold@champion, models:/metricgold/3.

    A registered version that is stored on this machine is used in place, else it is downloaded once into
    ~/.cache/metricgold. An alias is looked up once, here. Raises ValueError for an unknown folder or version, and for a
    version whose bytes are not those that were registered.
    """
    if not model.startswith("models:/"):
        folder = Path(model)
        if not (folder / "model_index.json").is_file():
            raise ValueError(f"{model!r} is neither a checkpoint folder (no model_index.json) nor models:/name@alias")
        return folder, folder.resolve().name
    name, which = named_version(model)
    with open_client() as client:
        found = find_version(client, which, name)
        uri = client.get_model_version_download_uri(name, found.version)
        called, registered = f"{name}/{found.version}", found.tags.get("model_digest")
        folder = download_version(uri, registered)
        if registered and (digest := digest_model(folder)) != registered:
            raise ValueError(
                f"{called} was altered since it was registered: {folder} has the digest {digest:.12}, expected "
                f"{registered:.12}; restore its files, or use another version"
            )
        return folder, called


def checkpoint_in(folder: Path) -> Path:
    """The checkpoint in MLflow's folder of a version. ValueError where there is none, or it is said to be elsewhere."""
    path = next(iter(sorted(folder.rglob("MLmodel"))), None)
    if path is None:
        raise ValueError(f"{folder} holds no MLmodel file: not a registered MetricGold model")
    try:
        data = read_yaml(path)["flavors"]["python_function"]["data"]
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} names no data of a pyfunc: not a registered MetricGold model") from error
    return paths_below(path.parent, [data])[0]


def download_version(uri: str, registered: str | None = None) -> Path:
    """The checkpoint of a version: in place when it is on this disk, else a copy made once.

    A copy that is not what was registered or, where no digest says that, what was downloaded, such as one that was
    altered or that a cleaner of caches has thinned, is made again.
    """
    from mlflow.artifacts import download_artifacts

    if uri.startswith("models:/"):
        import mlflow

        uri = mlflow.get_logged_model(uri.removeprefix("models:/")).artifact_location
    if urlsplit(uri).scheme in ("", "file"):
        return checkpoint_in(Path(download_artifacts(artifact_uri=uri)))
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "metricgold"
    folder = cache / digest_json(uri)[:32]
    if folder.is_dir() and not _is_whole(folder, registered):
        log.warning("%s is not what was registered: fetched again", folder)
        remove(folder)
    if not folder.is_dir():
        # Two jobs may fetch it at once; nothing but copies of this one version is ever called so.
        with write_aside(folder, marks=["**/MLmodel"]) as aside:
            aside.mkdir()
            download_artifacts(artifact_uri=uri, dst_path=str(aside))
            write_json(aside / DIGEST, digest_model(checkpoint_in(aside)))
    return checkpoint_in(folder)


def _is_whole(copy: Path, registered: str | None) -> bool:
    try:
        return bool((registered or read_json(copy / DIGEST)) == digest_model(checkpoint_in(copy)))
    except (ValueError, KeyError, OSError):
        return False
