"""Other people's depth models as methods, each in its own library's hands: open_peer("KIND:FOLDER").

    marigold      diffusers' MarigoldDepthPipeline: depth, LCM, v1.1; relative
    transformers  whatever AutoModelForDepthEstimation loads: Depth Anything, ZoeDepth, Depth Pro, DPT, GLPN
    moge          MoGe 1 (relative) and 2, by the package moge
    unidepth      UniDepth 1 and 2, by the package unidepth

A folder is read as it is: nothing is fetched, no code of the folder is run, and weights come from safetensors only.
What a model's numbers are follows from its configuration; where that does not say, KIND=OUTPUT:FOLDER does, OUTPUT
being one of KINDS.
"""

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from metricgold.evaluate.methods import KINDS, Estimate, Kind, Method
from metricgold.extras import naming_the_extra
from metricgold.model import check_texts
from metricgold.storage import digest_file, digest_json, read_json

if TYPE_CHECKING:
    import torch

# One image, uint8 [H, W, 3], and its intrinsics or None, to numbers of the model's kind [h, w].
Predict = Callable[[np.ndarray, np.ndarray | None], "torch.Tensor"]

DECIDING = {".safetensors", ".json", ".txt"}  # files of a folder that decide estimates: weights, configs, vocabularies
LOWEST_M = 1e-3  # metres: bicubic resizing overshoots, and what falls below zero is wrong, but no reason to stop
METRIC_TYPES = {"zoedepth", "depth_pro", "glpn"}  # of transformers, whatever else their config says
# What the libraries raise for a folder that is not what its name says.
FAULTS = (ArithmeticError, AttributeError, ImportError, LookupError, OSError, RuntimeError, TypeError, ValueError)
BY_TORCHVISION = {"zoedepth", "depth_pro", "chmv2", "tipsv2_dpt"}  # types whose own image processor needs it


# By other names diffusers would import any module.
MARIGOLD_PARTS = {
    "unet": ["diffusers:UNet2DConditionModel"],
    "vae": ["diffusers:AutoencoderKL"],
    "scheduler": ["diffusers:DDIMScheduler", "diffusers:LCMScheduler"],
    "text_encoder": ["transformers:CLIPTextModel"],
    "tokenizer": ["transformers:CLIPTokenizer", "transformers:CLIPTokenizerFast"],
}


@dataclass(frozen=True, slots=True)
class Family:
    """A kind of peer: the file that configures it, what its numbers are, whether it takes a camera, how it is loaded.

    needs   the module beyond this project's own packages, if any
    output  None where the configuration does not say
    """

    config: str
    needs: Callable[[Mapping[str, Any]], str | None]
    output: Callable[[Mapping[str, Any]], Kind | None]
    takes_camera: Callable[[Mapping[str, Any]], bool]
    load: Callable[[Path, dict[str, Any]], Predict]


@dataclass(eq=False)
class Peer:
    """A folder of weights as a Method. They are read at the first estimate, so that finished rows cost no loading."""

    family: str
    folder: Path
    config: dict[str, Any]
    output: Kind

    @property
    def name(self) -> str:
        """The folder's own."""
        return self.folder.resolve().name

    @cached_property
    def digest(self) -> str:
        """Of the kind and of all files that decide estimates."""
        files = sorted(path for path in self.folder.rglob("*") if path.suffix in DECIDING and path.is_file())
        digests = {path.relative_to(self.folder).as_posix(): digest_file(path) for path in files}
        return digest_json([self.family, self.output, digests])

    @property
    def takes_camera(self) -> bool:
        """As of Method."""
        return FAMILIES[self.family].takes_camera(self.config)

    @cached_property
    def predict(self) -> Predict:
        """The loaded model, on the GPU if there is one."""
        return FAMILIES[self.family].load(self.folder, self.config)

    def unload(self) -> None:
        """Free the weights; the next estimate reads them again."""
        self.__dict__.pop("predict", None)

    def estimate(self, rgbs: Sequence[np.ndarray], intrinsics: Sequence[np.ndarray] | None) -> list[Estimate]:
        """One image after the other: the models differ too much in what they can take at once."""
        cameras = intrinsics if intrinsics is not None else [None] * len(rgbs)
        with naming(self.folder, self.family):
            found = [
                self.predict(rgb, camera).detach().float().cpu() for rgb, camera in zip(rgbs, cameras, strict=True)
            ]
        lowest = LOWEST_M if self.output == "depth_m" else None
        return [
            Estimate(one.numpy() if lowest is None else one.clamp(min=lowest).numpy(), self.output) for one in found
        ]


def open_peer(text: str) -> Method:
    """The peer KIND:FOLDER, or KIND=OUTPUT:FOLDER where the configuration does not say what its numbers are.

    Nothing but the configuration is read yet. Raises ValueError for an unknown kind or output, for a folder that is not
    of that kind or has no safetensors, for an output that contradicts the configuration, and where none is known.
    """
    kind, _, place = text.partition(":")
    kind, _, stated = kind.partition("=")
    if kind not in FAMILIES or not place:
        raise ValueError(f"peer {text!r}: expected KIND:FOLDER with KIND one of {', '.join(FAMILIES)}")
    if stated and stated not in KINDS:
        raise ValueError(f"peer {text!r}: {stated!r} is no kind of depth, expected one of {', '.join(KINDS)}")
    folder, family = Path(place), FAMILIES[kind]
    if not (folder / family.config).is_file():
        raise ValueError(f"{folder} is not a {kind} model: {family.config} is missing")
    if not any(folder.rglob("*.safetensors")):
        raise ValueError(f"{folder} has no .safetensors: weights are read from nothing else")
    config = read_json(folder / family.config)
    with naming(folder, kind):
        if kind in ("marigold", "transformers"):  # the numbers of others are their own package's
            check_texts(folder)
        known = family.output(config)
    if known and stated and known != stated:
        raise ValueError(f"{folder} gives {known} by its {family.config}, not {stated}")
    if not (output := known or next((one for one in KINDS if one == stated), None)):
        raise ValueError(
            f"{folder}: {family.config} does not say what its numbers are; say {kind}=OUTPUT:{folder}, "
            f"with OUTPUT one of {', '.join(KINDS)}"
        )
    if module := family.needs(config):
        require(module)  # now, not after the methods before it
    return Peer(kind, folder, config, output)


def require(module: str) -> None:
    """ValueError in one line where a module, or what it needs itself, is not installed."""
    try:
        with naming_the_extra():
            importlib.import_module(module)
    except ModuleNotFoundError as error:
        advice = f"the authors of {module.partition('.')[0]} say how"
        missing = (error.name or module).partition(".")[0]
        raise ValueError(f"the package {missing} is not installed; {advice}") from error


@contextmanager
def naming(folder: Path, kind: str) -> Iterator[None]:
    """Name the folder in whatever a library raises within, in one line."""
    try:
        yield
    except FAULTS as error:
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ValueError(f"{folder} cannot be used as a {kind} model: {first[:300]}") from error


def on_device(model: Any) -> Any:
    """The model on the GPU if there is one, for inference. RuntimeError where weights are missing."""
    from metricgold.model import default_device

    if missing := [name for name, weight in model.named_parameters() if weight.is_meta]:
        raise RuntimeError(f"weights are missing: {missing[0]}")
    return model.to(default_device()).eval()


def image_tensor(rgb: np.ndarray) -> "torch.Tensor":
    """uint8 [H, W, 3] to uint8 [1, 3, H, W] on the device."""
    import torch

    from metricgold.model import default_device

    return torch.from_numpy(np.ascontiguousarray(rgb)).permute(2, 0, 1)[None].to(default_device())


# diffusers


def marigold_output(index: Mapping[str, Any]) -> Kind | None:
    """By prediction_type. ValueError for the folder of another pipeline, or one with parts of other libraries."""
    if index.get("_class_name") != "MarigoldDepthPipeline":
        raise ValueError(f"model_index.json is of {index.get('_class_name')}, expected MarigoldDepthPipeline")
    for name, part in index.items():
        if isinstance(part, list) and any(part) and ":".join(map(str, part)) not in MARIGOLD_PARTS.get(name, ()):
            known = " or ".join(MARIGOLD_PARTS.get(name, ["no such part"]))
            raise ValueError(f"model_index.json has {name} as {part!r:.80}, expected {known}")
    kinds: dict[Any, Kind | None] = {"depth": "relative_depth", "disparity": "relative_disparity", None: None}
    if (stated := index.get("prediction_type")) not in kinds:
        raise ValueError(f"model_index.json has prediction_type {stated!r}, expected depth or disparity")
    return kinds[stated]


def load_marigold(folder: Path, index: dict[str, Any]) -> Predict:
    """One run with the model's own number of steps and its own resolution; the same noise for equal images."""
    import torch
    from diffusers import MarigoldDepthPipeline
    from diffusers.utils.logging import disable_progress_bar
    from PIL import Image

    disable_progress_bar()  # of reading five parts
    pipe = MarigoldDepthPipeline.from_pretrained(folder, local_files_only=True, use_safetensors=True)
    for part in (pipe.unet, pipe.vae, pipe.text_encoder):
        on_device(part)
    pipe.set_progress_bar_config(disable=True)

    def predict(rgb: np.ndarray, intrinsics: np.ndarray | None) -> torch.Tensor:
        noise = torch.Generator().manual_seed(0)
        return pipe(Image.fromarray(rgb), generator=noise, output_type="pt").prediction[0, 0]

    return predict


# transformers


def transformers_needs(config: Mapping[str, Any]) -> str | None:
    """Torchvision for some types: transformers itself would not notice before there is an image."""
    return "torchvision" if config.get("model_type") in BY_TORCHVISION else None


def transformers_output(config: Mapping[str, Any]) -> Kind | None:
    """By depth_estimation_type, or by type for those that are always metric."""
    stated = config.get("depth_estimation_type")
    if stated is None and config.get("model_type") in ("depth_anything", "prompt_depth_anything"):
        stated = "relative"  # the library's own default
    if stated == "metric" or config.get("model_type") in METRIC_TYPES:
        return "depth_m"
    return "relative_disparity" if stated == "relative" else None


def load_transformers(folder: Path, config: dict[str, Any]) -> Predict:
    """A model with its own image processor before and after it."""
    import torch
    from PIL import Image
    from transformers import AutoImageProcessor, AutoModelForDepthEstimation
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    local = {"local_files_only": True, "trust_remote_code": False}
    processor = AutoImageProcessor.from_pretrained(folder, **local)
    model, loaded = AutoModelForDepthEstimation.from_pretrained(
        folder, use_safetensors=True, output_loading_info=True, **local
    )
    if missing := sorted(map(str, [*loaded["missing_keys"], *loaded["mismatched_keys"]])):
        raise ValueError(f"weights are missing or of another size: {missing[0]}")
    model = on_device(model)

    def predict(rgb: np.ndarray, intrinsics: np.ndarray | None) -> torch.Tensor:
        inputs = processor(images=Image.fromarray(rgb), return_tensors="pt").to(model.device)
        with torch.inference_mode():
            outputs = model(**inputs)
        if config["model_type"] == "depth_pro":
            outputs.field_of_view = field_of_view(outputs.field_of_view, rgb, intrinsics)
        return processor.post_process_depth_estimation(outputs, [rgb.shape[:2]])[0]["predicted_depth"]

    return predict


def field_of_view(predicted_deg: "torch.Tensor | None", rgb: np.ndarray, intrinsics: np.ndarray | None) -> Any:
    """Depth Pro's field of view in degrees [1]: the camera's where it is given, else the model's."""
    if intrinsics is None:
        if predicted_deg is None:
            raise ValueError("this Depth Pro does not see the field of view: take a protocol that gives the camera")
        return predicted_deg
    import torch

    return torch.tensor([fov_deg(rgb, intrinsics)])


def fov_deg(rgb: np.ndarray, intrinsics: np.ndarray) -> float:
    """Horizontal field of view of a camera in degrees, principal point in the middle."""
    return float(np.degrees(2 * np.arctan(rgb.shape[1] / (2 * intrinsics[0, 0]))))


# moge


def moge_output(config: Mapping[str, Any]) -> Kind:
    """Metric with a head for the scale, which MoGe 2 has and MoGe 1 has not."""
    return "depth_m" if config.get("scale_head") else "relative_depth"


def moge_module(config: Mapping[str, Any]) -> str:
    """Of MoGe 2, whose config describes its encoder, or of 1, whose config names it."""
    return "moge.model.v2" if isinstance(config.get("encoder"), dict) else "moge.model.v1"


def load_moge(folder: Path, config: dict[str, Any]) -> Predict:
    """A model that is asked without its mask."""
    import torch

    model = with_weights(importlib.import_module(moge_module(config)).MoGeModel(**config), folder)

    def predict(rgb: np.ndarray, intrinsics: np.ndarray | None) -> torch.Tensor:
        camera = {} if intrinsics is None else {"fov_x": fov_deg(rgb, intrinsics)}
        image = image_tensor(rgb).float() / 255
        # Unmasked as in its authors' evaluation: the truth decides what counts. Half precision needs a GPU.
        return model.infer(image, apply_mask=False, use_fp16=image.is_cuda, **camera)["depth"][0]

    return predict


# unidepth

UNIDEPTH = "unidepth.models"


def unidepth_output(config: Mapping[str, Any]) -> Kind:
    """Always metric. ValueError for the config of something else."""
    if (name := config.get("model", {}).get("name")) not in ("UniDepthV1", "UniDepthV2"):
        raise ValueError(f"config.json has model.name {name!r}, expected UniDepthV1 or UniDepthV2")
    return "depth_m"


def load_unidepth(folder: Path, config: dict[str, Any]) -> Predict:
    """UniDepth 1 or 2, as model.name says."""
    import torch

    model = with_weights(getattr(importlib.import_module(UNIDEPTH), config["model"]["name"])(config), folder)

    def predict(rgb: np.ndarray, intrinsics: np.ndarray | None) -> torch.Tensor:
        camera = None if intrinsics is None else torch.from_numpy(intrinsics).float()[None].to(model.device)
        return model.infer(image_tensor(rgb), camera)["depth"][0, 0]

    return predict


def with_weights(model: Any, folder: Path) -> Any:
    """The model with the weights of model.safetensors, on the device. ValueError where some are missing."""
    from safetensors.torch import load_model

    missing, _ = load_model(model, folder / "model.safetensors", strict=False)
    if missing:
        raise ValueError(f"weights are missing: {sorted(missing)[0]}")
    return on_device(model)


FAMILIES = {
    "marigold": Family("model_index.json", lambda _: None, marigold_output, lambda _: False, load_marigold),
    "transformers": Family(
        "config.json",
        transformers_needs,
        transformers_output,
        lambda config: config.get("model_type") == "depth_pro",
        load_transformers,
    ),
    "moge": Family("config.json", moge_module, moge_output, lambda _: True, load_moge),
    "unidepth": Family("config.json", lambda _: UNIDEPTH, unidepth_output, lambda _: True, load_unidepth),
}
