"""The words that params.yaml, the command line, the flows and the models share. Quick to import, for --help."""

from typing import Literal, get_args

Dtype = Literal["float32", "bfloat16", "float16"]
DTYPES: tuple[Dtype, ...] = get_args(Dtype)

PredictionType = Literal["v_prediction", "epsilon", "sample"]
PREDICTION_TYPES: tuple[PredictionType, ...] = get_args(PredictionType)

# What a network is told of the lens: nothing, or depth as one lens would have it, or a token of its own.
Camera = Literal["none", "canonical", "token", "canonical+token"]
CAMERAS: tuple[Camera, ...] = get_args(Camera)

DistanceKind = Literal["planar", "ray distance"]  # along the optical axis, or along the ray of the pixel
DISTANCE_KINDS: tuple[DistanceKind, ...] = get_args(DistanceKind)

Spacing = Literal["trailing", "leading", "linspace"]  # of timesteps while sampling
SPACINGS: tuple[Spacing, ...] = get_args(Spacing)

Windows = Literal["auto", "never"]  # of frames much wider or taller than those of training
WINDOWS: tuple[Windows, ...] = get_args(Windows)

Output = Literal["log-png", "mm-png", "npz", "tiff", "exr", "uncertainty", "preview", "json", "normals", "ply", "glb"]
OUTPUTS: tuple[Output, ...] = get_args(Output)

FIRST_ROUND = 3  # runs that every image gets with ensemble_size auto: the fewest that show how far they differ

Preset = Literal["paper", "balanced", "fast", "one-step"]
# By Preset. What one costs is steps x runs through the U-Net.
PRESETS: dict[str, dict[str, int]] = {
    "paper": {"num_inference_steps": 50, "ensemble_size": 10},
    "balanced": {"num_inference_steps": 10, "ensemble_size": 4},
    "fast": {"num_inference_steps": 2, "ensemble_size": 2},
    "one-step": {"num_inference_steps": 1, "ensemble_size": 1},
}
