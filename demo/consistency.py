"""One scene in several pictures: cropped and resized, with the camera carried along, it has the same metres.

python -m demo.consistency          predicts held-out scenes with models/metricgold, and refreshes the manual's table
python -m demo.consistency --again  refreshes it from metrics/consistency.json, without a model

A frame is rendered at RENDERED times the size of training's, so that a crop still has pixels of its own; the picture
that the others are held against is that frame at training's size. What two runs of other noise differ by is the
model's own noise.
"""

from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np
from PIL import Image

from metricgold.datasets import Frame, frames_through_lens
from metricgold.metrics import interval_by_scene
from metricgold.model import MetricGoldPipeline, load_pipeline
from metricgold.params import Folders, Params, load_params
from metricgold.storage import fill_between, read_json, write_json

METRICS = Folders().metrics("consistency")
PAGE = Path("docs/prediction-and-batch-jobs.md")
RENDERED = 2


class Picture(NamedTuple):
    """Of a frame: the share of its sides in the middle that is kept, and its pixels in those of the whole's."""

    part: float
    scale: float
    told: bool = True


PICTURES = {
    "other noise": Picture(1, 1),
    "resized to 1.5 x": Picture(1, 1.5),
    "resized to 0.75 x": Picture(1, 0.75),
    "middle 0.8": Picture(0.8, 1),
    "middle 0.6": Picture(0.6, 1),
    "middle 0.6, camera of the whole": Picture(0.6, 1, told=False),
}


def taken(frame: Frame, picture: Picture) -> tuple[np.ndarray, np.ndarray]:
    """Image [H, W, 3] and intrinsics [3, 3] of a picture of a frame that is rendered RENDERED times as large."""
    height, width = frame.rgb.shape[:2]
    top, left = (round(side * (1 - picture.part) / 2) for side in (height, width))
    size = [round((side - 2 * cut) * picture.scale / RENDERED) for side, cut in ((width, left), (height, top))]
    rgb = Image.fromarray(frame.rgb[top : height - top, left : width - left]).resize(size, Image.Resampling.BOX)
    intrinsics = frame.intrinsics.copy()
    if picture.told:
        intrinsics[:2, 2] -= left, top
        intrinsics[:2] *= picture.scale / RENDERED
    else:  # as long as the picture's sides say, which is how it looks to who does not know of the crop
        intrinsics[:2] *= picture.part / RENDERED
    return np.asarray(rgb), intrinsics


def ln_ratio(whole_m: np.ndarray, picture_m: np.ndarray, part: float) -> np.ndarray:
    """ln of the depth in a picture over that in the whole's middle, at the pixels of the picture."""
    cuts = [round(side * (1 - part) / 2) for side in whole_m.shape]
    middle = whole_m[cuts[0] : whole_m.shape[0] - cuts[0], cuts[1] : whole_m.shape[1] - cuts[1]]
    size = picture_m.shape[::-1]
    return np.log(picture_m) - np.log(np.asarray(Image.fromarray(middle).resize(size, Image.Resampling.BILINEAR)))


def measure(params: Params, pipe: MetricGoldPipeline) -> dict[str, Any]:
    """Of each scene's first frame and each picture: the scale between the two, and the differences in detail, in ln."""
    policy = {key: getattr(params.evaluate, key) for key in ("num_inference_steps", "ensemble_size")}
    sizes = {side: getattr(params.synthesize, side) * RENDERED for side in ("height", "width")}
    synthesize = params.synthesize.model_copy(update=sizes | {"frames_per_scene": 1})
    scenes: list[str] = []
    found: dict[str, dict[str, list[float]]] = {name: {"scale": [], "detail": []} for name in PICTURES}
    for dataset in params.datasets:
        for frame in frames_through_lens(dataset, synthesize, 1.0):
            rgb, intrinsics = taken(frame, Picture(1, 1))
            whole = pipe(rgb, intrinsics=intrinsics, seed=0, **policy)
            whole_m = np.where(whole.valid_mask, whole.planar_depth_m, np.nan)
            scenes.append(f"{dataset}/{frame.scene}")
            for name, picture in PICTURES.items():
                rgb, intrinsics = taken(frame, picture)
                picture_m = pipe(rgb, intrinsics=intrinsics, seed=1, **policy).planar_depth_m
                difference = ln_ratio(whole_m, picture_m, picture.part)
                scale = float(np.nanmedian(difference))
                found[name]["scale"].append(scale)
                found[name]["detail"].append(float(np.nanmedian(np.abs(difference - scale))))
    return {"scenes": scenes, "pictures": found}


def table(measured: dict[str, Any]) -> str:
    """Markdown: the median of scale over scenes, the scales' usual size, and the usual difference in detail."""
    lines = ["| picture | metres, of the whole's | scale differs by | detail differs by |", "|---|---|---|---|"]
    for name, found in measured["pictures"].items():
        ln_scale = interval_by_scene(np.array(found["scale"]), measured["scenes"])
        ratio = f"{np.exp(ln_scale.mean):.3f} [{np.exp(ln_scale.low):.3f}, {np.exp(ln_scale.high):.3f}]"
        usual = (f"{np.median(np.abs(found[key])):.1%}" for key in ("scale", "detail"))
        lines.append(f"| {name} | {ratio} | {' | '.join(usual)} |")
    return "\n".join(lines)


@click.command()
@click.option("--model", type=click.Path(path_type=Path), default=Folders().model, show_default=True)
@click.option("--again", is_flag=True, help="Make the table from metrics/consistency.json; measure nothing.")
def main(model: Path, again: bool) -> None:
    """Measure every picture in the project's root and refresh the manual's table."""
    try:
        if not again:
            write_json(METRICS, measure(load_params(), load_pipeline(model)))
        fill_between(PAGE, "consistency", table(read_json(METRICS)))
    except (ValueError, OSError) as error:  # such as no params, model or figures here
        raise click.ClickException(str(error)) from error


if __name__ == "__main__":
    main()
