"""Held-out scenes of the synthetic training sets through other lenses than their own."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from metricgold.datasets.frame import Frame
from metricgold.datasets.hypersim import tone_map
from metricgold.datasets.synthetic.archives import hypersim_linear
from metricgold.datasets.synthetic.render import RenderedFrame, render_scene
from metricgold.datasets.synthetic.synthesize import RECIPES
from metricgold.images import fit_pinhole
from metricgold.params import Synthesize


def frames_through_lens(dataset: str, params: Synthesize, factor: float) -> Iterator[Frame]:
    """The test scenes of `dataset` as its reader would give them, but for the rounding of files.

    factor  extent of the image plane, 1 for the data set's own camera: 0.5 is a lens twice as long

    Worlds and poses are those of `synthesize`. Raises ValueError for an unknown data set.
    """
    if dataset not in RECIPES:
        raise ValueError(f"cannot synthesize {dataset!r}; known are {', '.join(RECIPES)}")
    own = RECIPES[dataset]

    def rays_from_pixels(scene_index: int, height: int, width: int) -> np.ndarray:
        rays: np.ndarray = np.diag([factor, factor, 1.0]) @ own.rays_from_pixels(scene_index, height, width)
        return rays

    recipe = replace(own, rays_from_pixels=rays_from_pixels)
    for scene_index in range(params.num_train_scenes, params.num_train_scenes + params.num_test_scenes):
        for frame in render_scene(recipe, params, scene_index):
            yield _frame(frame, has_linear_colour=dataset == "hypersim-synthetic")


def _frame(rendered: RenderedFrame, *, has_linear_colour: bool) -> Frame:
    """A rendered frame in the form of a reader's; intrinsics are the nearest pinhole's."""
    known = np.isfinite(rendered.planar_depth_m)
    rgb = tone_map(hypersim_linear(rendered), known) if has_linear_colour else rendered.srgb
    name = f"{rendered.scene}/{rendered.number:03d}"
    return Frame.from_arrays(rgb, rendered.planar_depth_m, known, fit_pinhole(rendered.rays), rendered.scene, name)
