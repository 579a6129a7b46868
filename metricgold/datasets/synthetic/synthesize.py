"""Stage synthesize: rendered scenes, packed exactly as the real data sets are published.

Everything is drawn from (seed, data set, scene), and archives carry neither dates nor owners, so that equal
params give equal bytes.
"""

from pathlib import Path

import numpy as np

from metricgold.datasets.synthetic.archives import (
    VKITTI2_FOCAL_WIDTHS,
    hypersim_cam_from_uv,
    write_hypersim,
    write_tartanair,
    write_tartanair2,
    write_vkitti2,
)
from metricgold.datasets.synthetic.render import Recipe
from metricgold.datasets.synthetic.sensors import rgbd_measured
from metricgold.datasets.synthetic.training_worlds import (
    draw_balcony,
    draw_garden,
    draw_hall,
    draw_room,
    draw_street,
    draw_tabletop,
    draw_vista,
)
from metricgold.datasets.synthetic.world import World
from metricgold.images import focal_px_from_fov, pinhole
from metricgold.params import Synthesize
from metricgold.storage import only_writer, write_aside

LISTS_OF_CHECKSUMS = ("SHA256SUMS", "vkitti_*_md5_checksums.txt")  # one of them is in every folder made here
MAX_SCENES = 490  # of a split: names of train, val and test scenes stay apart


def synthesize(dataset: str, params: Synthesize, out: Path) -> Path:
    """Render `dataset` (`hypersim-synthetic`, ...) into the folder `out` as archives of the upstream's kind.

    The folder is either complete or absent. Returns `out`. Raises ValueError for an unknown data set or too many
    scenes.
    """
    out = Path(out)
    if dataset not in RECIPES:
        raise ValueError(f"cannot synthesize {dataset!r}; known are {', '.join(RECIPES)}")
    for key in ("num_train_scenes", "num_test_scenes", "num_val_scenes"):
        if getattr(params, key) > MAX_SCENES:
            raise ValueError(f"synthesize.{key} must be at most {MAX_SCENES}, got {getattr(params, key)}")
    recipe = RECIPES[dataset]
    with only_writer(out), write_aside(out, marks=LISTS_OF_CHECKSUMS) as folder:
        folder.mkdir(parents=True)
        recipe.write(recipe, params, folder)
    return out


def hypersim_rays_from_pixels(scene_index: int, height: int, width: int) -> np.ndarray:
    """Rays of the scene's M_cam_from_uv, y down and z forward."""
    uv_from_pixels = np.array([[2 / width, 0, -1], [0, -2 / height, 1], [0, 0, 1]])
    rays: np.ndarray = np.diag([1, -1, -1]) @ hypersim_cam_from_uv(scene_index, height, width) @ uv_from_pixels
    return rays


def vkitti2_rays_from_pixels(scene_index: int, height: int, width: int) -> np.ndarray:
    """Rays of Virtual KITTI 2's one focal length."""
    return np.linalg.inv(pinhole(VKITTI2_FOCAL_WIDTHS * width, height, width))


def tartanair_rays_from_pixels(scene_index: int, height: int, width: int) -> np.ndarray:
    """Rays of a camera that is 90 degrees wide."""
    return np.linalg.inv(pinhole(focal_px_from_fov(90, width), height, width))


def draw_tartanair_world(rng: np.random.Generator, scene_index: int) -> World:
    """Every third scene is a hall, the others are gardens."""
    return draw_hall(rng) if scene_index % 3 == 2 else draw_garden(rng)


def draw_world_of_ranges(rng: np.random.Generator, scene_index: int) -> World:
    """Near, far, and both in one view, in turn."""
    return (draw_tabletop, draw_balcony, draw_vista)[scene_index % 3](rng)


def name_hypersim_scene(number: int, split: str) -> str:
    """ai_900_001.. for training, ai_950_001.. for test, ai_850_001.. for validation."""
    volume = {"train": 900, "test": 950, "val": 850}[split] + number // 10
    return f"ai_{volume:03d}_{number % 10 + 1:03d}"


def numbered(word: str, number: int, split: str) -> str:
    """`word` and a number that begins with 1 for training, with 9 for test and with 5 for validation."""
    first = {"train": 1, "test": 9, "val": 5}[split]
    return f"{word}{first}{number + 1:02d}"


RECIPES: dict[str, Recipe] = {
    recipe.dataset: recipe
    for recipe in (
        Recipe(
            "hypersim-synthetic",
            draw_world=lambda rng, scene_index: draw_room(rng),
            rays_from_pixels=hypersim_rays_from_pixels,
            name_scene=name_hypersim_scene,
            write=write_hypersim,
        ),
        Recipe(
            "vkitti2-synthetic",
            draw_world=lambda rng, scene_index: draw_street(rng),
            rays_from_pixels=vkitti2_rays_from_pixels,
            name_scene=lambda number, split: numbered("Scene", number, split),
            write=write_vkitti2,
            variations=("clone", "fog"),
        ),
        Recipe(
            "tartanair-synthetic",
            draw_world=draw_tartanair_world,
            rays_from_pixels=tartanair_rays_from_pixels,
            name_scene=lambda number, split: numbered("env", number, split),
            write=write_tartanair,
        ),
        Recipe(
            "tartanair2-synthetic",
            draw_world=draw_tartanair_world,
            rays_from_pixels=tartanair_rays_from_pixels,
            name_scene=lambda number, split: numbered("Env", number, split),
            write=write_tartanair2,
        ),
        Recipe(
            "ranges-synthetic",
            draw_world=draw_world_of_ranges,
            rays_from_pixels=tartanair_rays_from_pixels,
            name_scene=lambda number, split: numbered("Range", number, split),
            write=write_tartanair2,
        ),
        Recipe(
            "hypersim-sensor-synthetic",
            draw_world=lambda rng, scene_index: draw_room(rng),
            rays_from_pixels=hypersim_rays_from_pixels,
            name_scene=name_hypersim_scene,
            write=write_hypersim,
            worlds_of="hypersim-synthetic",
            measure=rgbd_measured,
        ),
    )
}
