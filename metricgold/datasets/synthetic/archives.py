"""Stage synthesize: rendered scenes, packed exactly as the real data sets are published.

Everything is drawn from (seed, data set, scene), and archives carry neither dates nor owners, so that equal
params give equal bytes. Layouts follow the publishers' own archives; a list of checksums is written last.
"""

import csv
import gzip
import io
import logging
import tarfile
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple
from zlib import crc32

import numpy as np
from PIL import Image
from tqdm import tqdm

from metricgold.datasets.synthetic.raycast import NOTHING, Hits
from metricgold.datasets.synthetic.shading import Air, shade, through_air
from metricgold.datasets.synthetic.worlds import Pose, World, draw_garden, draw_hall, draw_room, draw_street
from metricgold.images import focal_px_from_fov, pinhole
from metricgold.params import Synthesize
from metricgold.storage import digest_file, only_writer, remove, write_aside

log = logging.getLogger(__name__)

HYPERSIM_FOV_DEG = 60.0
VKITTI2_FOCAL_WIDTHS = 725.0087 / 1242  # focal length in image widths
VKITTI2_SKY_CM = 65535
TARTANAIR_SKY_M = 4100.0  # a sphere around the camera
TARTANAIR2_SKY_M = 10_000.0
FOG_PER_M = 0.035
GAMMA = 2.2
MAX_SCENES = 490  # of a split: names of train and test scenes stay apart
SUBPIXELS = ((0.25, 0.25), (0.75, 0.75))  # beside the centre, where two solids meet


@dataclass(frozen=True, slots=True, eq=False)
class RenderedFrame:
    """One frame before it is encoded, exact in float64.

    radiance        float64 [H, W, 3], linear, 1 is about white
    planar_depth_m  float64 [H, W], along the optical axis; inf where nothing was met
    ray_distance_m  float64 [H, W], along the ray; inf where nothing was met
    entity          int32   [H, W], 1.. per solid; -1 where nothing was met
    rays            float64 [H, W, 3], x right, y down, z = 1, through pixel centres
    """

    scene: str
    number: int
    pose_number: int
    variation: str
    pose: Pose
    radiance: np.ndarray
    planar_depth_m: np.ndarray
    ray_distance_m: np.ndarray
    entity: np.ndarray
    rays: np.ndarray

    @property
    def srgb(self) -> np.ndarray:
        """The picture, uint8 [H, W, 3], with gamma 2.2."""
        return np.rint(255 * np.clip(self.radiance, 0, 1) ** (1 / GAMMA)).astype(np.uint8)


@dataclass(frozen=True, slots=True)
class _DataSet:
    draw_world: Callable[[np.random.Generator, int], World]
    rays_from_pixels: Callable[[int, int, int], np.ndarray]  # (scene, height, width) -> [3, 3]
    scene_name: Callable[[int, bool], str]  # (number within its split, is it for test)
    write: Callable[[str, Synthesize, Path], None]
    variations: tuple[str, ...] = ("clone",)


def synthesize(dataset: str, params: Synthesize, out: Path) -> Path:
    """Render `dataset` (`hypersim-synthetic`, ...) into the folder `out` as archives of the upstream's kind.

    The folder appears whole or not at all. Returns `out`. Raises ValueError for an unknown data set or too many scenes.
    """
    out = Path(out)
    recipe = _recipe(dataset)
    for key in ("num_train_scenes", "num_test_scenes"):
        if getattr(params, key) > MAX_SCENES:
            raise ValueError(f"synthesize.{key} must be at most {MAX_SCENES}, got {getattr(params, key)}")
    with only_writer(out):
        for left_over in out.parent.glob(f".{out.name}.*.part"):
            remove(left_over)
        with write_aside(out) as folder:
            folder.mkdir(parents=True)
            recipe.write(dataset, params, folder)
    return out


def render_scene(dataset: str, params: Synthesize, scene_index: int) -> Iterator[RenderedFrame]:
    """The frames of one scene, exact; scenes 0.. are for training, num_train_scenes.. for test."""
    recipe = _recipe(dataset)
    seed = [params.seed, crc32(dataset.encode()), scene_index]
    rng = np.random.default_rng(seed)
    world = recipe.draw_world(rng, scene_index)
    view = _View(recipe.rays_from_pixels(scene_index, params.height, params.width), params.height, params.width)
    scene = scene_name(dataset, params, scene_index)
    num_variations = len(recipe.variations)
    for number in range(params.frames_per_scene):
        pose_number, turn = divmod(number, num_variations)
        if turn == 0:
            pose = world.pose(np.random.default_rng([*seed, pose_number]))
            seen = _look(world, view, pose)
        variation = recipe.variations[turn]
        air = world.in_fog(FOG_PER_M) if variation == "fog" else world.air
        yield _frame(seen, view, air, pose, scene, number, pose_number, variation)


def _numbered(word: str, number: int, is_test: bool) -> str:
    """`word` and a number that begins with 1 for training and with 9 for test."""
    return f"{word}{9 if is_test else 1}{number + 1:02d}"


def scene_name(dataset: str, params: Synthesize, scene_index: int) -> str:
    """The scene's name, in the data set's own manner."""
    is_test = scene_index >= params.num_train_scenes
    return _recipe(dataset).scene_name(scene_index - is_test * params.num_train_scenes, is_test)


def _recipe(dataset: str) -> _DataSet:
    if dataset not in DATASETS:
        raise ValueError(f"cannot synthesize {dataset!r}; known are {', '.join(DATASETS)}")
    return DATASETS[dataset]


# Rendering


class _View:
    """Rays of a camera with z = 1, so that their multiples are planar depth."""

    def __init__(self, rays_from_pixels: np.ndarray, height: int, width: int) -> None:
        self.size = (height, width)
        y, x = np.mgrid[:height, :width].reshape(2, -1)
        self.centres = _rays(rays_from_pixels, x + 0.5, y + 0.5)  # [N, 3]
        self.subpixels = np.stack([_rays(rays_from_pixels, x + dx, y + dy) for dx, dy in SUBPIXELS])  # [2, N, 3]
        self.ray_lengths = np.linalg.norm(self.centres, axis=1)  # [N]
        self.pixel_angle = float(np.linalg.norm(self.centres[1] - self.centres[0])) if width > 1 else 0.01


def _rays(rays_from_pixels: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    rays = np.stack([x, y, np.ones_like(x)], axis=-1) @ rays_from_pixels.T
    return rays / rays[..., 2:]


class _Seen(NamedTuple):
    """What a view met, before the air: at pixel centres, and at subpixels of the pixels on edges."""

    directions: np.ndarray  # [N, 3]
    hits: Hits
    radiance: np.ndarray  # [N, 3]
    edges: np.ndarray  # [E] pixels
    edge_directions: np.ndarray  # [len(SUBPIXELS) * E, 3]
    edge_hits: Hits
    edge_radiance: np.ndarray  # [len(SUBPIXELS) * E, 3]


def _look(world: World, view: _View, pose: Pose) -> _Seen:
    origin, rotation = np.array(pose.position_m), pose.world_from_camera()

    def cast(rays: np.ndarray) -> tuple[np.ndarray, Hits, np.ndarray]:
        directions = rays @ rotation.T
        hits = world.solids.cast(origin, directions)
        return directions, hits, shade(world.solids, world.light, origin, directions, hits, view.pixel_angle)

    centre = cast(view.centres)
    edges = np.flatnonzero(_edges(centre[1].solid.reshape(view.size)))
    return _Seen(*centre, edges, *cast(view.subpixels[:, edges].reshape(-1, 3)))


def _frame(
    seen: _Seen, view: _View, air: Air, pose: Pose, scene: str, number: int, pose_number: int, variation: str
) -> RenderedFrame:
    ray_distance_m = seen.hits.distances * view.ray_lengths
    radiance = through_air(air, seen.radiance, seen.directions, ray_distance_m)
    edge_distance_m = seen.edge_hits.distances * np.tile(view.ray_lengths[seen.edges], len(SUBPIXELS))
    finer = through_air(air, seen.edge_radiance, seen.edge_directions, edge_distance_m)
    samples = np.concatenate([radiance[None, seen.edges], finer.reshape(len(SUBPIXELS), -1, 3)])
    radiance[seen.edges] = samples.mean(axis=0)
    entity = np.where(seen.hits.solid == NOTHING, -1, seen.hits.solid + 1).astype(np.int32)
    images = (radiance, seen.hits.distances, ray_distance_m, entity, view.centres)
    shaped = (image.reshape(*view.size, *image.shape[1:]) for image in images)
    return RenderedFrame(scene, number, pose_number, variation, pose, *shaped)


def _edges(solid: np.ndarray) -> np.ndarray:
    edges = np.zeros(solid.shape, dtype=bool)
    for axis in (0, 1):
        differs = np.diff(solid, axis=axis) != 0
        near, far = [slice(None)] * 2, [slice(None)] * 2
        near[axis], far[axis] = slice(None, -1), slice(1, None)
        edges[tuple(near)] |= differs
        edges[tuple(far)] |= differs
    return edges


# Archives


class _Zip:
    """A zip whose bytes depend on its members only."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._zip = zipfile.ZipFile(path, "w")

    def __enter__(self) -> "_Zip":
        return self

    def __exit__(self, *_: object) -> None:
        self._zip.close()

    def add(self, name: str, data: bytes, *, deflate: bool = False) -> None:
        info = zipfile.ZipInfo(name, date_time=(2020, 1, 1, 0, 0, 0))
        info.create_system, info.external_attr = 3, 0o644 << 16
        info.compress_type = zipfile.ZIP_DEFLATED if deflate else zipfile.ZIP_STORED
        self._zip.writestr(info, data, compresslevel=1 if deflate else None)


def _add_to_tar(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.mtime = len(data), 0o644, 1_577_836_800
    tar.addfile(info, io.BytesIO(data))


def _png(array: np.ndarray, mode: str | None = None) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array, mode).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _jpeg(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def _npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def _hdf5(array: np.ndarray, chunks: tuple[int, ...] | None = None) -> bytes:
    import h5py

    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        if chunks:
            chunks = tuple(min(size, chunk) for size, chunk in zip(array.shape, chunks, strict=True))
        file.create_dataset(
            "dataset", data=array, chunks=chunks, **({"compression": "gzip", "compression_opts": 1} if chunks else {})
        )
    return buffer.getvalue()


def _csv(path: Path, rows: Iterable[dict]) -> None:
    rows = list(rows)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _write_checksums(folder: Path, name: str, algorithm: str) -> None:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    lines = [f"{digest_file(path, algorithm)}  {path.relative_to(folder).as_posix()}\n" for path in files]
    (folder / name).write_text("".join(lines))


def _scenes(dataset: str, params: Synthesize) -> Iterator[int]:
    """Scene indices, with a bar on a terminal and log lines elsewhere."""
    num_scenes = params.num_train_scenes + params.num_test_scenes
    bar = tqdm(range(num_scenes), desc=dataset, unit="scene", disable=None)
    for index in bar:
        yield index
        if bar.disable and ((index + 1) % 10 == 0 or index + 1 == num_scenes):
            log.info("%s: %d of %d scenes", dataset, index + 1, num_scenes)


# HyperSim


def hypersim_cam_from_uv(scene_index: int, height: int, width: int) -> np.ndarray:
    """M_cam_from_uv [3, 3]: (u, v, 1) to a ray, u right, v up in [-1, 1]; camera y up, z backwards.

    Scenes take turns: nominal camera, tilted image plane with shift, nominal, other focal length with shift.
    """
    half_width = np.tan(np.radians(HYPERSIM_FOV_DEG) / 2)
    half_height = half_width * height / width
    kind = scene_index % 4
    rng = np.random.default_rng([4, scene_index])
    if kind == 1:
        tilt = np.radians(rng.uniform(2.5, 4.0))
        shift_x, shift_y = rng.uniform(-0.03, 0.03), rng.uniform(-0.05, 0.05)
        column_v = (0, half_height * np.cos(tilt), half_height * np.sin(tilt))
        return np.array([(half_width, 0, 0), column_v, (shift_x, shift_y, -1.0)]).T
    if kind == 3:
        scale = rng.choice([0.90, 0.93, 1.07, 1.10])
        shift = (rng.uniform(-0.04, 0.04), rng.uniform(-0.04, 0.04), -1.0)
        return np.array([(scale * half_width, 0, 0), (0, scale * half_height, 0), shift]).T
    return np.diag([half_width, half_height, -1.0])


def _hypersim_rays_from_pixels(scene_index: int, height: int, width: int) -> np.ndarray:
    uv_from_pixels = np.array([[2 / width, 0, -1], [0, -2 / height, 1], [0, 0, 1]])
    return np.diag([1, -1, -1]) @ hypersim_cam_from_uv(scene_index, height, width) @ uv_from_pixels


def _hypersim_name(number: int, is_test: bool) -> str:
    return f"ai_{(950 if is_test else 900) + number // 10:03d}_{number % 10 + 1:03d}"


def _hypersim_frame_id(number: int) -> int:
    return number + (number + 1) // 4  # every fifth frame was taken out before release


def _write_hypersim(dataset: str, params: Synthesize, out: Path) -> None:
    split_rows, camera_rows = [], []
    for index in _scenes(dataset, params):
        scene = scene_name(dataset, params, index)
        split = "test" if index >= params.num_train_scenes else "train"
        split_rows += _hypersim_split_rows(scene, split, params.frames_per_scene)
        camera_rows.append(_hypersim_camera_row(scene, index, params.height, params.width))
        with _Zip(out / f"{scene}.zip") as archive:
            _write_hypersim_scene(archive, scene, index, render_scene(dataset, params, index))
    split_rows += _withdrawn_rows("ai_999_001", range(3), "OUTSIDE VIEWING AREA (BAD INITIALIZATION)")
    camera_rows.append(_hypersim_camera_row("ai_999_001", 0, params.height, params.width))
    _csv(out / "metadata_images_split_scene_v1.csv", split_rows)
    _csv(out / "metadata_camera_parameters.csv", camera_rows)
    _write_checksums(out, "SHA256SUMS", "sha256")


def _hypersim_split_rows(scene: str, split: str, num_frames: int) -> list[dict]:
    released = [_hypersim_frame_id(number) for number in range(num_frames)]
    withdrawn = set(range(released[-1] + 1)) - set(released)
    rows = [_hypersim_split_row(scene, frame_id, True, "", split) for frame_id in released]
    rows += _withdrawn_rows(scene, withdrawn, "CONTENT FLAGGED FOR REMOVAL")
    return sorted(rows, key=lambda row: row["frame_id"])


def _withdrawn_rows(scene: str, frame_ids: Iterable[int], reason: str) -> list[dict]:
    return [_hypersim_split_row(scene, frame_id, False, reason, "") for frame_id in frame_ids]


def _hypersim_split_row(scene: str, frame_id: int, is_public: bool, reason: str, split: str) -> dict:
    return {
        "scene_name": scene,
        "camera_name": "cam_00",
        "frame_id": frame_id,
        "included_in_public_release": is_public,
        "exclude_reason": reason,
        "split_partition_name": split,
    }


def _hypersim_metres_per_unit(scene_index: int) -> float:
    return 0.0254 if scene_index % 2 else 0.01


def _hypersim_camera_row(scene: str, scene_index: int, height: int, width: int) -> dict:
    cam_from_uv = hypersim_cam_from_uv(scene_index, height, width)
    near, far = 1.0, 1000.0
    projection = np.zeros((4, 4))
    projection[[0, 1, 3], :3] = np.linalg.inv(cam_from_uv)
    projection[2, :3] = projection[3, :3] * (far + near) / (far - near)
    projection[2, 3] = -2 * far * near / (far - near)
    row = {
        "scene_name": scene,
        "settings_output_img_height": float(height),
        "settings_output_img_width": float(width),
        "settings_units_info_meters_scale": _hypersim_metres_per_unit(scene_index),
        "settings_camera_fov": float(np.radians(HYPERSIM_FOV_DEG)),
    }
    row |= {f"M_cam_from_uv_{i}{j}": float(cam_from_uv[i, j]) for i in range(3) for j in range(3)}
    return row | {f"M_proj_{i}{j}": float(projection[i, j]) for i in range(4) for j in range(4)}


def _write_hypersim_scene(archive: _Zip, scene: str, scene_index: int, frames: Iterator[RenderedFrame]) -> None:
    metres_per_unit = _hypersim_metres_per_unit(scene_index)
    detail = f"parameter_name,parameter_value\nmeters_per_asset_unit,{metres_per_unit}\n"
    archive.add(f"{scene}/_detail/metadata_scene.csv", detail.encode())
    frame_ids, positions, orientations = [], [], []
    for frame in frames:
        frame_id = _hypersim_frame_id(frame.number)
        frame_ids.append(frame_id)
        positions.append(np.array(frame.pose.position_m) / metres_per_unit)
        orientations.append(frame.pose.world_from_camera() @ np.diag([1, -1, -1]))
        _add_hypersim_frame(archive, f"{scene}/images/scene_cam_00", frame_id, frame)
    keyframes = {"orientations": orientations, "positions": positions, "frame_indices": frame_ids}
    for name, values in keyframes.items():
        archive.add(f"{scene}/_detail/cam_00/camera_keyframe_{name}.hdf5", _hdf5(np.array(values)))


def _add_hypersim_frame(archive: _Zip, stem: str, frame_id: int, frame: RenderedFrame) -> None:
    exposure = 0.5 + 3 * ((frame_id * 7) % 10) / 10  # each frame its own: tone mapping has to undo it
    radiance = (frame.radiance * exposure).astype(np.float16)
    met = np.isfinite(frame.ray_distance_m)
    ray_distance_m = np.where(met, frame.ray_distance_m, np.nan).astype(np.float16)
    name = f"frame.{frame_id:04d}"
    archive.add(f"{stem}_final_hdf5/{name}.color.hdf5", _hdf5(radiance, (96, 128, 3)))
    archive.add(f"{stem}_geometry_hdf5/{name}.depth_meters.hdf5", _hdf5(ray_distance_m, (96, 128)))
    archive.add(f"{stem}_geometry_hdf5/{name}.render_entity_id.hdf5", _hdf5(frame.entity, (96, 128)))


# Virtual KITTI 2


def _vkitti2_rays_from_pixels(scene_index: int, height: int, width: int) -> np.ndarray:
    return np.linalg.inv(pinhole(VKITTI2_FOCAL_WIDTHS * width, height, width))


def _vkitti2_name(number: int, is_test: bool) -> str:
    return _numbered("Scene", number, is_test)


def _write_vkitti2(dataset: str, params: Synthesize, out: Path) -> None:
    with ExitStack() as stack:
        rgb = stack.enter_context(tarfile.open(out / "vkitti_2.0.3_rgb.tar", "w"))
        depth = stack.enter_context(tarfile.open(out / "vkitti_2.0.3_depth.tar", "w"))
        packed = stack.enter_context((out / "vkitti_2.0.3_textgt.tar.gz").open("wb"))
        packed = stack.enter_context(gzip.GzipFile(filename="", mode="wb", fileobj=packed, mtime=0))
        text = stack.enter_context(tarfile.open(fileobj=packed, mode="w"))
        for index in _scenes(dataset, params):
            num_frames = dict.fromkeys(("clone", "fog"), 0)
            for frame in render_scene(dataset, params, index):
                num_frames[frame.variation] += 1
                stem = f"{frame.scene}/{frame.variation}/frames"
                number = f"{frame.pose_number:05d}"
                _add_to_tar(rgb, f"{stem}/rgb/Camera_0/rgb_{number}.jpg", _jpeg(frame.srgb))
                _add_to_tar(depth, f"{stem}/depth/Camera_0/depth_{number}.png", _png(_centimetres(frame)))
            for variation, count in num_frames.items():
                if count:
                    name = f"{frame.scene}/{variation}/intrinsic.txt"
                    _add_to_tar(text, name, _vkitti2_intrinsics(count, params.height, params.width))
    _write_checksums(out, "vkitti_2.0.3_md5_checksums.txt", "md5")


def _centimetres(frame: RenderedFrame) -> np.ndarray:
    return np.rint(np.minimum(frame.planar_depth_m * 100, VKITTI2_SKY_CM)).astype(np.uint16)


def _vkitti2_intrinsics(num_frames: int, height: int, width: int) -> bytes:
    # Upstream counts pixels from their centres (620.5 for 1242 columns): half a pixel less than this project.
    focal_px = VKITTI2_FOCAL_WIDTHS * width
    lines = ["frame cameraID K[0,0] K[1,1] K[0,2] K[1,2]"]
    lines += [f"{n} 0 {focal_px:.6f} {focal_px:.6f} {width / 2 - 0.5} {height / 2 - 0.5}" for n in range(num_frames)]
    return "".join(f"{line}\n" for line in lines).encode()


# TartanAir, first and second version


def _tartanair_rays_from_pixels(scene_index: int, height: int, width: int) -> np.ndarray:
    return np.linalg.inv(pinhole(focal_px_from_fov(90, width), height, width))


def _draw_tartanair(rng: np.random.Generator, scene_index: int) -> World:
    return draw_hall(rng) if scene_index % 3 == 2 else draw_garden(rng)


def _ned_pose(pose: Pose) -> str:
    """Position and quaternion `x y z qx qy qz qw`: north is +y, east +x, down -z; camera x forward, z down."""
    x, y, z = pose.position_m
    (sine, cosine), (up, level) = _half_angle(-pose.yaw), _half_angle(pose.pitch)
    values = (y, x, -z, -sine * up, cosine * up, sine * level, cosine * level)
    return " ".join(f"{value:.9f}" for value in values)


def _half_angle(angle: float) -> tuple[float, float]:
    return float(np.sin(angle / 2)), float(np.cos(angle / 2))


def _write_tartanair(dataset: str, params: Synthesize, out: Path) -> None:
    for index in _scenes(dataset, params):
        environment = scene_name(dataset, params, index)
        folder, poses = f"{environment}/{environment}/Easy/P000", []
        with (
            _Zip(out / environment / "Easy/image_left.zip") as images,
            _Zip(out / environment / "Easy/depth_left.zip") as depths,
        ):
            for frame in render_scene(dataset, params, index):
                poses.append(_ned_pose(frame.pose))
                images.add(f"{folder}/image_left/{frame.number:06d}_left.png", _png(frame.srgb))
                depth_m = _with_sky(frame, TARTANAIR_SKY_M).astype(np.float16).astype(np.float32)
                depths.add(f"{folder}/depth_left/{frame.number:06d}_left_depth.npy", _npy(depth_m), deflate=True)
            images.add(f"{folder}/pose_left.txt", "".join(f"{pose}\n" for pose in poses).encode())
            if index % 3 == 0:
                # Upstream's archives were packed on a Mac: an AppleDouble side-car where arrays are expected.
                depths.add(f"{folder}/depth_left/._000000_left_depth.npy", APPLE_DOUBLE)
    _write_checksums(out, "SHA256SUMS", "sha256")


def _with_sky(frame: RenderedFrame, sky_m: float) -> np.ndarray:
    sky_planar_m = sky_m / np.linalg.norm(frame.rays, axis=-1)
    return np.where(np.isfinite(frame.planar_depth_m), np.minimum(frame.planar_depth_m, sky_planar_m), sky_planar_m)


def _write_tartanair2(dataset: str, params: Synthesize, out: Path) -> None:
    for index in _scenes(dataset, params):
        environment = scene_name(dataset, params, index)
        folder, poses = f"{environment}/Data_easy/P000", []
        with (
            _Zip(out / environment / "Data_easy/image_lcam_front.zip") as images,
            _Zip(out / environment / "Data_easy/depth_lcam_front.zip") as depths,
        ):
            for frame in render_scene(dataset, params, index):
                stem = f"{frame.number:06d}_lcam_front"
                poses.append(_ned_pose(frame.pose))
                images.add(f"{folder}/image_lcam_front/{stem}.png", _png(frame.srgb))
                packed = _packed_float32(_with_sky(frame, TARTANAIR2_SKY_M))
                depths.add(f"{folder}/depth_lcam_front/{stem}_depth.png", _png(packed))
            images.add(f"{folder}/pose_lcam_front.txt", "".join(f"{pose}\n" for pose in poses).encode())
    _write_checksums(out, "SHA256SUMS", "sha256")


def _packed_float32(depth_m: np.ndarray) -> np.ndarray:
    """The four bytes of each little-endian float32 as B, G, R, A; here in Pillow's order R, G, B, A."""
    bgra = np.ascontiguousarray(depth_m, dtype="<f4").view(np.uint8).reshape(*depth_m.shape, 4)
    return np.ascontiguousarray(bgra[..., [2, 1, 0, 3]])


APPLE_DOUBLE = bytes.fromhex("00051607000200004d6163204f532058").ljust(4096, b"\0")

DATASETS: dict[str, _DataSet] = {
    "hypersim-synthetic": _DataSet(
        draw_world=lambda rng, scene_index: draw_room(rng),
        rays_from_pixels=_hypersim_rays_from_pixels,
        scene_name=_hypersim_name,
        write=_write_hypersim,
    ),
    "vkitti2-synthetic": _DataSet(
        draw_world=lambda rng, scene_index: draw_street(rng),
        rays_from_pixels=_vkitti2_rays_from_pixels,
        scene_name=_vkitti2_name,
        write=_write_vkitti2,
        variations=("clone", "fog"),
    ),
    "tartanair-synthetic": _DataSet(
        draw_world=_draw_tartanair,
        rays_from_pixels=_tartanair_rays_from_pixels,
        scene_name=lambda number, is_test: _numbered("env", number, is_test),
        write=_write_tartanair,
    ),
    "tartanair2-synthetic": _DataSet(
        draw_world=_draw_tartanair,
        rays_from_pixels=_tartanair_rays_from_pixels,
        scene_name=lambda number, is_test: _numbered("Env", number, is_test),
        write=_write_tartanair2,
    ),
}
