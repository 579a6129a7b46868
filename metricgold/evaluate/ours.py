"""Our own checkpoints as methods, and what stands beside them: the VAE floor and baselines that never look."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from metricgold.datasets import Frame, FrameRef, fill_holes, readable_frames
from metricgold.evaluate.baselines import constant_m, constant_weights, num_bins, stretched
from metricgold.evaluate.methods import Estimate
from metricgold.evaluate.protocols import Protocol
from metricgold.log_depth import LogDepth
from metricgold.model import digest_model
from metricgold.params import Inference
from metricgold.storage import digest_json, read_json

if TYPE_CHECKING:
    from metricgold.model import MetricGoldPipeline

SEARCHED = LogDepth(1e-4, 1e5)  # metres in which the best constant is
BEYOND_M = np.float32(SEARCHED.far_m)  # farther than any model's range, whatever the lens
SIGMA_OF_MAD = 1.4826  # a normal distribution's standard deviation over its median absolute deviation


@dataclass(eq=False)
class OurModel:
    """A checkpoint folder. Its weights are read at the first estimate, so that finished rows cost no loading.

    inference  steps, members, seed and dtype of each prediction
    """

    folder: Path
    name: str
    inference: Inference

    @cached_property
    def takes_camera(self) -> bool:
        """Whether the network is told the lens."""
        return read_json(self.folder / "model_index.json").get("camera", "none") != "none"

    @cached_property
    def pipe(self) -> "MetricGoldPipeline":
        """The pipeline, on the GPU if there is one."""
        from metricgold.model import load_pipeline

        return load_pipeline(self.folder, dtype=self.inference.dtype, digest=self.model_digest)

    def unload(self) -> None:
        """Free the weights until the next estimate."""
        self.__dict__.pop("pipe", None)

    @cached_property
    def model_digest(self) -> str:
        """sha256 of the checkpoint, as the registry has it."""
        return digest_model(self.folder)

    @property
    def digest(self) -> str:
        """Of the checkpoint and of all that decides a prediction besides."""
        return digest_json([self.model_digest, self.inference.model_dump(include=set(Inference.model_fields))])

    def estimate(self, rgbs: Sequence[np.ndarray], intrinsics: Sequence[np.ndarray] | None) -> list[Estimate]:
        """Depth in metres; uncertainty where the model is calibrated, or the ensemble has members that differ."""
        options = self.inference.model_dump(include=set(Inference.model_fields) - {"dtype"})
        cameras = None if intrinsics is None else list(intrinsics)
        predictions = self.pipe(list(rgbs), **options, intrinsics=cameras)
        return [estimate_of(one.planar_depth_m, one.uncertainty, one.uncertainty_calibrated) for one in predictions]


def estimate_of(planar_depth_m: np.ndarray, uncertainty: np.ndarray | None, is_calibrated: bool) -> Estimate:
    """Depth in metres, with the standard deviation of its ln where every pixel has an uncertainty.

    One that is not calibrated is the median absolute deviation over an ensemble, as Prediction has it.
    """
    if uncertainty is None or not np.isfinite(uncertainty).all():
        return Estimate(planar_depth_m, "depth_m")
    return Estimate(planar_depth_m, "depth_m", uncertainty * np.float32(1 if is_calibrated else SIGMA_OF_MAD))


@dataclass(frozen=True, eq=False)
class VaeFloor:
    """The truth of each frame through a model's VAE and back, without the U-Net: no prediction of it does better.

    truth  planar_depth_m, or the layer of a frame that holds it
    """

    model: OurModel
    truth: str = "planar_depth_m"
    takes_camera: bool = False

    @property
    def name(self) -> str:
        """Says which model it bounds."""
        return f"vae_floor of {self.model.name}"

    @property
    def digest(self) -> str:
        """Of the checkpoint."""
        return digest_json(["vae_floor of whole maps", self.model.model_digest, self.model.inference.dtype, self.truth])

    def estimate_frames(self, frames: Sequence[Frame], with_camera: bool) -> list[Estimate]:
        """Holes are as far as what is beside them: no VAE brings a LiDAR's points back from among pixels at far_m."""
        own = self.truth == "planar_depth_m"
        maps_m = [fill_holes(frame.planar_depth_m if own else frame.layers[self.truth]) for frame in frames]
        pairs = zip(frames, maps_m, strict=True)
        whole = [replace(frame, planar_depth_m=map_m, valid_mask=map_m > 0) for frame, map_m in pairs]
        return [Estimate(depth_m, "depth_m") for depth_m in through_vae(self.model.pipe, whole)]


def through_vae(pipe: "MetricGoldPipeline", frames: Sequence[Frame]) -> list[np.ndarray]:
    """Each frame's true depth through the VAE and back, metres [H, W]; invalid pixels are as far as it can say."""
    cameras = [frame.intrinsics for frame in frames]
    filled_m = [np.where(frame.valid_mask, frame.planar_depth_m, BEYOND_M) for frame in frames]
    if len({depth_m.shape for depth_m in filled_m}) == 1:
        return list(pipe.encode_decode_depth(np.stack(filled_m), cameras))
    pairs = zip(filled_m, cameras, strict=True)
    return [pipe.encode_decode_depth(depth_m[None], [camera])[0] for depth_m, camera in pairs]


@dataclass(frozen=True, eq=False)
class Map:
    """One depth map for all images, metres, stretched to the size of each."""

    name: str
    map_m: np.ndarray
    takes_camera: bool = False

    @property
    def digest(self) -> str:
        """Of the map's numbers."""
        return digest_json([self.name, self.map_m.tolist()])

    def estimate_frames(self, frames: Sequence[Frame], with_camera: bool) -> list[Estimate]:
        """The same for every frame of a size."""
        height, width = frames[0].valid_mask.shape
        return [Estimate(stretched(self.map_m, (height, width)), "depth_m")] * len(frames)


@dataclass(eq=False)
class BestConstant:
    """The one depth in metres that gives these frames the lowest AbsRel, as the mean over images.

    It is searched as `evaluate` does, when it is first asked for. That decodes every frame, so the digest names the
    constant by its ruler.
    """

    protocol: Protocol
    refs: Sequence[FrameRef]
    ruler_digest: str
    name: str = "best_constant"
    takes_camera: bool = False

    @property
    def digest(self) -> str:
        """Of the ruler."""
        return digest_json(["best_constant", self.ruler_digest])

    @cached_property
    def depth_m(self) -> float:
        """Metres; 1 where no pixel of any frame counts."""
        weights = np.zeros(num_bins(SEARCHED))
        for _, frame in readable_frames(self.refs, {}):
            depth_m, counted = self.protocol.counted(frame)
            weights += constant_weights(depth_m[counted].astype(np.float64), SEARCHED)
        return constant_m(weights, SEARCHED) if weights.any() else 1.0

    def estimate_frames(self, frames: Sequence[Frame], with_camera: bool) -> list[Estimate]:
        """The constant everywhere."""
        return [Estimate(np.full(frame.valid_mask.shape, self.depth_m, np.float32), "depth_m") for frame in frames]
