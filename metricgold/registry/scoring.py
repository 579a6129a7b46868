"""What MLflow calls of a version, in Python and as `mlflow models serve`: images with cameras in, depth out.

A version tells MLflow that it checks its input by itself (see pyfunc.signature): so a request arrives as the client
sent it, and a fault in it is one line. Only params go through MLflow's hands.

Nothing here knows the registry: what loads a version needs MLflow and the packages of pyfunc.PACKAGES, no more.
"""

import base64
import binascii
import io
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INTERNAL_ERROR, INVALID_PARAMETER_VALUE
from PIL import Image

from metricgold.images import ASSUMED, Photo, read_photo, write_log_depth_png, write_uncertainty_png
from metricgold.model import Prediction, digest_model, load_pipeline, stated_camera
from metricgold.params import PRESETS, Inference, Predict

log = logging.getLogger(__name__)

CAMERA = ("focal_px", "fov_deg", "intrinsics")  # of a row: one of them at most
FIELDS = ("image", *CAMERA)
PARAMS = ("preset", "num_inference_steps", "ensemble_size", "seed", "encoding")
ENCODINGS = ("arrays", "npy", "png")
KNOWN = frozenset(Predict.model_fields)  # a version of another time may have other keys too


class Refused(MlflowException, ValueError):
    """A request that was not answered, in one line; status 400, or what goes with another error_code."""

    def __init__(self, reason: str, error_code: int = INVALID_PARAMETER_VALUE) -> None:
        super().__init__(" ".join(reason.split()), error_code)


class DepthModel:
    """A loaded version: `predict` is what MLflow calls.

    params  the section `predict` of params.yaml that the version was registered with, or what model_config overrides
    """

    def __init__(self, folder: Path, params: Predict) -> None:
        self.pipeline = load_pipeline(folder, dtype=params.dtype, compile=params.compile)
        self.params = params.fitted_to(is_one_step=self.pipeline.is_one_step)
        self._turn = Lock()  # MLflow's server calls from many threads, and the U-Net's attention is changed by a call

    def predict(self, model_input: Any, params: dict[str, Any] | None = None) -> Any:
        """An answer for each image, or one for a single one; Refused where the request is at fault.

        model_input  an image, or a row: a mapping with `image` and at most one of `focal_px`, `fov_deg` and
                     `intrinsics`; or a list, a batch or a data frame of them. An image is uint8 [H, W, 3], also as
                     lists of numbers, or the file of a photograph as bytes or base64, whose EXIF counts
        params       preset, num_inference_steps, ensemble_size, seed; encoding: arrays, or npy, which is the base64 of
                     numpy's files, or png, which is that of PNGs as `predict` writes them. Unless it says so, images
                     that came as files are answered as npy
        """
        rows, is_single = rows_of(model_input)
        options, encoding = self._options(params or {})
        photos, cameras = [], []
        for number, row in enumerate(rows):
            with in_one_line("" if is_single else f"inputs[{number}]: "):
                photo = self._photo(row)
                cameras.append(camera_of(row, *photo.rgb.shape[:2]))
                photos.append(photo)
        with in_one_line(""), self._turn:
            predictions = self.pipeline(photos, intrinsics=cameras, **options) if photos else []
        answers = []
        for row, prediction in zip(rows, predictions, strict=True):
            encoded = encoding or ("npy" if is_file(row["image"]) else "arrays")
            answers.append(answer(prediction, self.pipeline.needs_camera, encoded))
        return answers[0] if is_single else answers

    def _options(self, params: Mapping[str, Any]) -> tuple[dict[str, Any], str | None]:
        """Options of the pipeline, and the encoding that is asked for, if any."""
        given = {name: value for name, value in params.items() if value is not None}
        if unknown := sorted(set(given) - set(PARAMS)):
            raise Refused(f"unknown parameter {unknown[0]}, expected some of {', '.join(PARAMS)}")
        encoding, preset = given.pop("encoding", None), given.pop("preset", None)
        if encoding not in (None, *ENCODINGS):
            raise Refused(f"encoding is {encoding!r}, expected one of {', '.join(ENCODINGS)}")
        if preset not in (None, *PRESETS):
            raise Refused(f"preset is {preset!r}, expected one of {', '.join(PRESETS)}")
        own = {name: getattr(self.params, name) for name in Inference.model_fields if name != "dtype"}
        own |= {"batch_size": self.params.batch_size, "assumed_fov_deg": self.params.fov_deg}
        return own | (PRESETS[preset] if preset else {}) | given, encoding

    def _photo(self, row: Mapping[str, Any]) -> Photo:
        """The image of a row."""
        if unknown := sorted(set(row) - set(FIELDS), key=str):
            raise Refused(f"unknown field {unknown[0]}, expected some of {', '.join(FIELDS)}")
        image = row.get("image")
        if image is None:
            raise Refused(f"no image, expected a row with image and perhaps one of {', '.join(CAMERA)}")
        if not is_file(image):
            return Photo(rgb_from(image))
        data = bytes_from_base64(image) if isinstance(image, str) else bytes(image)
        limits = self.params
        return read_photo(
            data,
            max_pixels=limits.max_pixels,
            max_aspect=limits.max_aspect,
            allow_truncated=limits.allow_truncated,
            name="image",
        )


@contextmanager
def in_one_line(place: str) -> Iterator[None]:
    """Around the work on a request: its faults become Refused, ours one line without paths; the log has the rest."""
    try:
        yield
    except MlflowException as error:
        raise Refused(f"{place}{error.message}") from None
    except ValueError as error:
        raise Refused(f"{place}{error}") from None
    except Exception as error:
        log.exception("a prediction failed")
        raise Refused(f"{place}the model failed: {type(error).__name__}", INTERNAL_ERROR) from None


def rows_of(model_input: Any) -> tuple[list[Mapping[str, Any]], bool]:
    """The rows of a request, and whether it is a single one."""
    if hasattr(model_input, "to_dict"):  # a data frame, whose cells without a value are NaN
        records = model_input.to_dict(orient="records")
        return [{name: value for name, value in row.items() if not is_missing(value)} for row in records], False
    if isinstance(model_input, Mapping):
        return [model_input], True
    if is_file(model_input):
        return [{"image": model_input}], True
    if isinstance(model_input, list) and all(isinstance(one, Mapping) or is_image(one) for one in model_input):
        return [one if isinstance(one, Mapping) else {"image": one} for one in model_input], False
    with suppress(ValueError):  # of lists of unequal lengths, which rgb_from refuses
        if np.ndim(model_input) == 4:
            return [{"image": image} for image in model_input], False
    return [{"image": model_input}], True


def is_file(image: Any) -> bool:
    """Whether an image comes as the bytes of its file or as their base64."""
    return isinstance(image, bytes | bytearray | memoryview | str)


def is_image(value: Any) -> bool:
    """Whether it is one image, of those that are not lists of numbers."""
    return is_file(value) or (isinstance(value, np.ndarray) and value.ndim == 3)


def is_missing(value: Any) -> bool:
    """Whether a cell of a data frame has no value."""
    return value is None or (isinstance(value, float) and np.isnan(value))


def bytes_from_base64(text: str) -> bytes:
    """The bytes of base64, also of a data URI or in lines."""
    text = text.partition(",")[2] if text.startswith("data:") else text
    try:
        return binascii.a2b_base64("".join(text.split()), strict_mode=True)
    except ValueError as error:
        raise Refused(f"image is a text of {len(text)} characters that is not base64: {error}") from None


def rgb_from(image: Any) -> np.ndarray:
    """uint8 [H, W, 3] of integers from 0 to 255 of that shape."""
    try:
        rgb = np.asarray(image)
    except ValueError:
        raise Refused("an image must be uint8 [H, W, 3], got lists of unequal lengths") from None
    if rgb.ndim != 3 or rgb.shape[2] != 3 or 0 in rgb.shape or rgb.dtype.kind not in "iu":
        raise Refused(f"an image must be uint8 [H, W, 3], got {rgb.dtype} {list(rgb.shape)}")
    if rgb.min() < 0 or rgb.max() > 255:
        raise Refused(f"an image must have values from 0 to 255, got {rgb.min()} to {rgb.max()}")
    return rgb.astype(np.uint8, copy=False)


def camera_of(row: Mapping[str, Any], height: int, width: int) -> np.ndarray | None:
    """Intrinsics [3, 3] that a row states for its image; None where it states none."""
    stated = {name: row[name] for name in CAMERA if row.get(name) is not None}
    if len(stated) > 1:
        raise Refused(f"a camera is stated in one way, got {' and '.join(stated)}")
    return next((stated_camera(name, value, height, width) for name, value in stated.items()), None)


def answer(prediction: Prediction, needs_camera: bool, encoding: str) -> dict[str, Any]:
    """What is said of an image; `encoding` of ENCODINGS says how its maps travel."""
    intrinsics = prediction.intrinsics
    is_known = np.isfinite(prediction.uncertainty).any()  # one member of a model without calibration does not show it
    return {
        "unit": "metres",
        "kind": "planar depth" if intrinsics is not None else "depth of a panorama, not planar",
        "encoding": encoding,
        **{"uncertainty": None, **maps_of(prediction, encoding, bool(is_known))},
        "uncertainty_calibrated": prediction.uncertainty_calibrated,
        "intrinsics": None if intrinsics is None else intrinsics.tolist(),
        "focal_px": None if intrinsics is None else float(intrinsics[0, 0]),
        "focal_from": prediction.focal_from,
        "scale_assumed": needs_camera and prediction.focal_from in ASSUMED,
        "near_m": prediction.log_depth.near_m,
        "far_m": prediction.log_depth.far_m,
        "num_members": prediction.num_members,
    }


def maps_of(prediction: Prediction, encoding: str, has_uncertainty: bool) -> dict[str, Any]:
    """The maps of an answer: arrays, or the base64 of files that hold them."""
    depth_m, valid = prediction.planar_depth_m, prediction.valid_mask
    uncertainty = {"uncertainty": prediction.uncertainty} if has_uncertainty else {}
    arrays = {"depth": depth_m, "valid_mask": valid} | uncertainty
    if encoding == "arrays":
        return arrays
    if encoding == "npy":
        return {name: base64_of(partial(np.save, arr=array, allow_pickle=False)) for name, array in arrays.items()}
    writers: dict[str, Callable[[io.BytesIO], object]] = {
        "depth": partial(write_log_depth_png, planar_depth_m=depth_m, log_depth=prediction.log_depth, attributes={}),
        "valid_mask": lambda file: Image.fromarray(valid).save(file, "PNG", compress_level=1),
        "uncertainty": partial(write_uncertainty_png, uncertainty=prediction.uncertainty, attributes={}),
    }
    return {name: base64_of(writers[name]) for name in arrays}


def base64_of(write: Callable[[io.BytesIO], object]) -> str:
    """The base64 of the file that is written."""
    file = io.BytesIO()
    write(file)
    return base64.b64encode(file.getbuffer()).decode("ascii")


class UnknownParams(logging.Filter):
    """Refuses a parameter that a version does not have.

    MLflow leaves it out before the model is asked, and this warning is the only word of it: a client who misspells
    ensemble_size would get the depth of another without noticing.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """True for every other record. Raises Refused."""
        text = record.getMessage()
        if text.startswith("Unrecognized params ") and all(repr(name) in text for name in PARAMS):
            unknown = text.partition("[")[2].partition("]")[0]
            raise Refused(f"unknown parameter {unknown}, expected some of {', '.join(PARAMS)}")
        return True


def _load_pyfunc(path: str, model_config: dict[str, Any] | None = None) -> Any:
    """Entry point for MLflow (`loader_module`): the model whose diffusers folder is `path`.

    model_config: the section `predict` of params.yaml, and the model_digest of the folder, if known; a version that was
    registered without one answers arrays alone

    Raises ValueError where the folder is another than was registered.
    """
    from metricgold.registry.invocations import answer_requests

    if model_config is None:
        return ArraysOnly(Path(path))
    registered = model_config.get("model_digest")
    if registered and (digest := digest_model(Path(path))) != registered:
        raise ValueError(
            f"{path} was altered since it was registered: it has the digest {digest:.12}, expected {registered:.12}"
        )
    answer_requests()
    logger = logging.getLogger("mlflow.models.utils")
    if not any(isinstance(one, UnknownParams) for one in logger.filters):
        logger.addFilter(UnknownParams())
    return DepthModel(Path(path), Predict.model_validate({k: v for k, v in model_config.items() if k in KNOWN}))


class ArraysOnly:
    """A version of before: images in, metres out, as arrays."""

    def __init__(self, folder: Path) -> None:
        self.pipeline = load_pipeline(folder)

    def predict(self, model_input: Any, params: dict[str, Any] | None = None) -> np.ndarray:
        """uint8 [H, W, 3] to planar depth in metres, float32 [H, W]; a batch [N, H, W, 3] to [N, H, W].

        Raises ValueError for anything but integers from 0 to 255 of that shape.
        """
        images = np.asarray(model_input)
        if images.ndim not in (3, 4) or images.shape[-1] != 3 or images.dtype.kind not in "iu":
            raise ValueError(f"expected uint8 [H, W, 3] or [N, H, W, 3], got {images.dtype} {list(images.shape)}")
        if images.size and (images.min() < 0 or images.max() > 255):
            raise ValueError(f"expected values from 0 to 255, got {images.min()} to {images.max()}")
        images = images.astype(np.uint8, copy=False)
        batch = images if images.ndim == 4 else images[None]
        predictions = self.pipeline(list(batch), **(params or {}))
        depth_m = np.stack([prediction.planar_depth_m for prediction in predictions])
        return depth_m if images.ndim == 4 else depth_m[0]
