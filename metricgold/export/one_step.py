"""A one-step model as one graph, for programs without this project's code, or without PyTorch.

An image as the network sees it and its focal length in; metres, uncertainty and a valid mask out. Whoever runs it
scales the image evenly to about as many pixels as those of training, with sides that are multiples of what the file
says.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from metricgold.extras import naming_the_extra
from metricgold.model import MetricGoldPipeline, OneStepGraph, digest_model, load_pipeline, vae_factor
from metricgold.storage import write_aside

INPUTS = ("image", "focal_px")
OUTPUTS = ("depth_m", "uncertainty", "valid_mask")
OPSET = 20
Weights = Literal["float32", "float16"]
TOLERANCE = {"float32": 1e-3, "float16": 2e-2}  # relative, see differs_at_most
MAX_BYTES = 2_000_000_000  # of weights: an ONNX file holds no more
MOST_BLOCKS = 1023  # of what the VAE halves, along a side
LEAST_PIXELS = 4  # along a side: of fewer a slope has no pixel between two others
ANY_SIZE_FACTOR = 20  # see of_any_size

Run = Callable[[np.ndarray, np.ndarray], list[np.ndarray]]  # of an image and its focal length, float32 []


def export_onnx(model: Path, out: Path, *, dtype: Weights = "float32") -> dict[str, Any]:
    """Write a checkpoint folder as an ONNX file, opset OPSET, that onnxruntime runs alone; see OneStepGraph.

    The file is there only if it agrees on three images, to TOLERANCE, with the pipeline in float32. Returns what it
    says of itself, and by how much it differs. Raises ValueError for a model of several steps or of more than 2 GB, and
    for a graph that differs.

    dtype: of U-Net and VAE; what goes in and comes out stays as it is
    """
    with naming_the_extra():
        import onnxruntime
        from onnxscript import opset20 as onnx

    pipe = load_for_export(model, dtype)
    if (size := pipe.unet.get_memory_footprint() + pipe.vae.get_memory_footprint()) > MAX_BYTES:
        raise ValueError(f"{model} has {size / 1e9:.1f} GB of weights, more than the 2 GB of an ONNX file; use --torch")

    def hypot(a: Any, b: Any) -> Any:
        return onnx.Sqrt(onnx.Add(onnx.Mul(a, a), onnx.Mul(b, b)))

    program = torch.onnx.export(
        exported_program(pipe),
        (),
        dynamo=True,
        input_names=INPUTS,
        output_names=OUTPUTS,
        opset_version=OPSET,
        custom_translation_table={torch.ops.aten.hypot.default: hypot},  # which ONNX has not
    )
    facts = facts_of(model, pipe) | {"opset": str(OPSET)}
    program.model.metadata_props.update(facts)

    def load(path: Path) -> Run:
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        return lambda image, focal_px: session.run(None, {"image": image, "focal_px": focal_px})

    with write_aside(out) as aside:
        program.save(aside, external_data=False)
        differs = differs_at_most(load(aside), load_for_export(model), TOLERANCE[dtype])
        return {"onnx": str(out), **facts, "max_difference": differs}


def export_torch(model: Path, out: Path, *, dtype: Weights = "float32") -> dict[str, Any]:
    """Write a checkpoint folder as a file that torch.export.load reads, without any pickle; else as export_onnx."""
    pipe = load_for_export(model, dtype)
    facts = facts_of(model, pipe)

    def load(path: Path) -> Run:
        # Its guards ask what holds for the size it was traced at alone: which side grows more by an enlargement.
        with path.open("rb") as file:
            graph = torch.export.load(file).module(check_guards=False)
        return lambda image, focal_px: [
            one.detach().numpy() for one in graph(torch.from_numpy(image), torch.from_numpy(focal_px))
        ]

    program = exported_program(pipe)
    program.example_inputs = None  # torch would save them as a pickle
    with write_aside(out) as aside:
        with aside.open("wb") as file:  # by its name torch would name what is in it
            torch.export.save(program, file, extra_files={"metricgold.txt": repr(facts)})
        differs = differs_at_most(load(aside), load_for_export(model), TOLERANCE[dtype])
        return {"torch": str(out), **facts, "max_difference": differs}


def load_for_export(model: Path, dtype: Weights = "float32") -> MetricGoldPipeline:
    """The pipeline of a checkpoint folder, on the CPU. ValueError with advice for a model of several steps."""
    pipe = load_pipeline(model).to("cpu")
    if not pipe.is_one_step:
        raise ValueError(
            f"{model} was trained for many steps, and a graph takes one: train with train.objective one-step, "
            "or call the pipeline"
        )
    for part in (pipe.unet, pipe.vae):
        torch.nn.Module.to(part, getattr(torch, dtype))  # not diffusers', which warns
    return pipe


def facts_of(model: Path, pipe: MetricGoldPipeline) -> dict[str, str]:
    """What a file says of itself."""
    return {
        "unit": "metres",
        "dtype": str(pipe.unet.dtype).removeprefix("torch."),
        "multiple": str(vae_factor(pipe.vae)),
        "pixels": str(pipe.config.processing_height * pipe.config.processing_width),
        "near_m": str(pipe.config.near_m),
        "far_m": str(pipe.config.far_m),
        "camera": pipe.config.camera,
        "uncertainty": "standard error of ln depth" if pipe.uncertainty_scale else "not known",
        "model_digest": digest_model(model),
    }


@torch.no_grad()
def exported_program(pipe: MetricGoldPipeline) -> torch.export.ExportedProgram:
    """The graph, of images of any size."""
    multiple = vae_factor(pipe.vae)
    least = max(2, LEAST_PIXELS // multiple)
    rows, columns = (torch.export.Dim(name, min=least, max=MOST_BLOCKS) for name in ("rows", "columns"))
    image = torch.zeros(multiple * 6, multiple * 7, 3, dtype=torch.uint8)
    with of_any_size(pipe):
        return torch.export.export(
            OneStepGraph(pipe).eval(),
            (image, torch.tensor(50.0)),
            dynamic_shapes={"image": {0: multiple * rows, 1: multiple * columns}, "focal_px": None},
            strict=False,
        )


@contextmanager
def of_any_size(pipe: MetricGoldPipeline) -> Iterator[None]:
    """Within it the U-Net tells each of its enlargements which size to make.

    It asks by the remainder of a side whether it must, which a graph can answer for one size alone; of a divisor
    beyond any side, 2 to the power of this number, it always must, which is right for every size.
    """
    unet, number = pipe.unet, pipe.unet.num_upsamplers
    unet.num_upsamplers = ANY_SIZE_FACTOR
    try:
        yield
    finally:
        unet.num_upsamplers = number


def differs_at_most(run: Run, pipe: MetricGoldPipeline, allowed: float) -> float:
    """By how much a graph's depth differs from the pipeline's in any pixel of three images, relative.

    ValueError where that is more than is allowed, and where uncertainty or mask differ in a larger share of pixels:
    they have steps, on whose other side a pixel may fall.
    """
    worst = 0.0
    for number, (height, width) in enumerate(islice(sizes_of(pipe), 3)):
        image, focal_px = picture(height, width, number), (0.8 + 0.3 * number) * (height * width) ** 0.5
        prediction = pipe(image, focal_px=focal_px, windows="never")
        depth_m, uncertainty, valid_mask = run(image, np.array(focal_px, np.float32))
        worst = max(worst, relative_difference(depth_m, prediction.planar_depth_m).max())
        if not worst <= allowed:
            raise ValueError(f"the graph differs from the pipeline by {worst:.1e}, more than {allowed:g}: no file")
        is_other = relative_difference(uncertainty, prediction.uncertainty) > allowed
        share = max(is_other.mean(), (valid_mask != prediction.valid_mask).mean())
        if share > allowed:
            raise ValueError(f"the graph's uncertainty or mask differs in {share:.1%} of the pixels: no file")
    return float(worst)


def relative_difference(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """|ours / theirs - 1| of each pixel; 0 where neither has a number, infinite where only one has."""
    known, both = np.isfinite(theirs), np.isfinite(ours) & np.isfinite(theirs)
    unlike = np.where(np.isfinite(ours) == known, 0.0, np.inf)
    unlike[both] = np.abs(ours[both] / theirs[both] - 1)
    return unlike


def sizes_of(pipe: MetricGoldPipeline) -> Iterator[tuple[int, int]]:
    """Heights and widths that the pipeline leaves as they are, those of training first, then the least elongated."""
    multiple, training = vae_factor(pipe.vae), (pipe.config.processing_height, pipe.config.processing_width)
    blocks = training[0] * training[1] // multiple**2
    pairs = [(rows * multiple, blocks // rows * multiple) for rows in range(1, blocks + 1) if blocks % rows == 0]
    yield from sorted(pairs, key=lambda size: (size != training, abs(np.log(size[0] / size[1]))))


def picture(height: int, width: int, seed: int) -> np.ndarray:
    """uint8 [H, W, 3]: soft patches under noise."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width] / 16
    waves = [np.sin(a * y + b * x + c) for a, b, c in random.uniform(-1.5, 1.5, (3, 3))]
    soft = np.stack(waves, axis=-1) * 90 + 128
    return np.clip(soft + random.normal(0, 8, soft.shape), 0, 255).astype(np.uint8)
