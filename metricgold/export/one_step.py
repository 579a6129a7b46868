"""A one-step model as one graph, for programs without this project's code, or without PyTorch.

An image as the network sees it and its focal length in; metres, uncertainty and a valid mask out. Whoever runs it
scales the image evenly to about as many pixels as those of training, with sides that are multiples of what the file
says.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from metricgold.extras import naming_the_extra
from metricgold.model import MetricGoldPipeline, OneStepGraph, load_pipeline, vae_factor
from metricgold.storage import digest_folder, write_aside

INPUTS = ("image", "focal_px")
OUTPUTS = ("depth_m", "uncertainty", "valid_mask")
OPSET = 20
TOLERANCE = 1e-3  # relative, of the depth and the uncertainty of any pixel
MAX_BYTES = 2_000_000_000  # of weights: an ONNX file holds no more
MOST_BLOCKS = 1023  # of what the VAE halves, along a side
ANY_SIZE_FACTOR = 20  # see of_any_size

Run = Callable[[np.ndarray, np.ndarray], list[np.ndarray]]  # of an image and its focal length, float32 []


def export_onnx(model: Path, out: Path) -> dict[str, Any]:
    """Write a checkpoint folder as an ONNX file, opset OPSET, that onnxruntime runs alone; see OneStepGraph.

    The file is there only if it agrees with the pipeline on three images. Returns what it says of itself, and by how
    much it differs. Raises ValueError for a model of several steps or of more than 2 GB, and for a graph that differs.
    """
    with naming_the_extra():
        import onnxruntime
        import onnxscript  # noqa: F401 - torch's exporter needs it, and says so late

    pipe = load_for_export(model)
    if (size := pipe.unet.get_memory_footprint() + pipe.vae.get_memory_footprint()) > MAX_BYTES:
        raise ValueError(f"{model} has {size / 1e9:.1f} GB of weights, more than the 2 GB of an ONNX file; use --torch")
    program = torch.onnx.export(
        exported_program(pipe), (), dynamo=True, input_names=INPUTS, output_names=OUTPUTS, opset_version=OPSET
    )
    facts = facts_of(model, pipe) | {"opset": str(OPSET)}
    program.model.metadata_props.update(facts)

    def load(path: Path) -> Run:
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        return lambda image, focal_px: session.run(None, {"image": image, "focal_px": focal_px})

    with write_aside(out) as aside:
        program.save(aside, external_data=False)
        return {"onnx": str(out), **facts, "max_difference": differs_at_most(load(aside), pipe)}


def export_torch(model: Path, out: Path) -> dict[str, Any]:
    """Write a checkpoint folder as a file that torch.export.load reads; else as export_onnx."""
    pipe = load_for_export(model)
    facts = facts_of(model, pipe)

    def load(path: Path) -> Run:
        # Its guards ask what holds for the size it was traced at alone: which side grows more by an enlargement.
        graph = torch.export.load(path).module(check_guards=False)
        return lambda image, focal_px: [
            one.detach().numpy() for one in graph(torch.from_numpy(image), torch.from_numpy(focal_px))
        ]

    with write_aside(out) as aside:
        # With its suffix, without which torch warns.
        file = aside.with_suffix(".pt2")
        try:
            torch.export.save(exported_program(pipe), file, extra_files={"metricgold.txt": repr(facts)})
            file.replace(aside)
        finally:
            file.unlink(missing_ok=True)
        return {"torch": str(out), **facts, "max_difference": differs_at_most(load(aside), pipe)}


def load_for_export(model: Path) -> MetricGoldPipeline:
    """The pipeline of a checkpoint folder, on the CPU. ValueError with advice for a model of several steps."""
    pipe = load_pipeline(model).to("cpu")
    if not pipe.is_one_step:
        raise ValueError(
            f"{model} was trained for many steps, and a graph takes one: train with train.objective one-step, "
            "or call the pipeline"
        )
    return pipe


def facts_of(model: Path, pipe: MetricGoldPipeline) -> dict[str, str]:
    """What a file says of itself."""
    return {
        "unit": "metres",
        "multiple": str(vae_factor(pipe.vae)),
        "pixels": str(pipe.config.processing_height * pipe.config.processing_width),
        "near_m": str(pipe.config.near_m),
        "far_m": str(pipe.config.far_m),
        "camera": pipe.config.camera,
        "uncertainty": "standard error of ln depth" if pipe.uncertainty_scale else "not known",
        "model_digest": digest_folder(model),
    }


@torch.no_grad()
def exported_program(pipe: MetricGoldPipeline) -> torch.export.ExportedProgram:
    """The graph, of images of any size."""
    multiple = vae_factor(pipe.vae)
    rows, columns = (torch.export.Dim(name, min=2, max=MOST_BLOCKS) for name in ("rows", "columns"))
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


def differs_at_most(run: Run, pipe: MetricGoldPipeline) -> float:
    """By how much a graph's depth or uncertainty differs from the pipeline's in any pixel of three images, relative.

    ValueError where that is more than TOLERANCE.
    """
    worst = 0.0
    for number, (height, width) in enumerate(islice(sizes_of(pipe), 3)):
        image, focal_px = picture(height, width, number), (0.8 + 0.3 * number) * (height * width) ** 0.5
        prediction = pipe(image, focal_px=focal_px, windows="never")
        depth_m, uncertainty, valid_mask = run(image, np.array(focal_px, np.float32))
        pairs = [(depth_m, prediction.planar_depth_m), (uncertainty, prediction.uncertainty)]
        worst = max([worst, *(relative_difference(ours, theirs) for ours, theirs in pairs)])
        if not worst <= TOLERANCE or (valid_mask != prediction.valid_mask).mean() > TOLERANCE:
            raise ValueError(f"the graph differs from the pipeline by {worst:.1e}, more than {TOLERANCE:g}: no file")
    return worst


def relative_difference(ours: np.ndarray, theirs: np.ndarray) -> float:
    """The largest of |ours / theirs - 1|; infinite where only one has a number."""
    if not (np.isfinite(ours) == np.isfinite(theirs)).all():
        return np.inf
    known = np.isfinite(theirs)
    return float(np.abs(ours[known] / theirs[known] - 1).max(initial=0))


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
