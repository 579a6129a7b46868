"""Rendered scenes packed in the layouts of the publishers' own archives, with a list of checksums written last.

Archives carry neither dates nor owners: equal frames give equal bytes.
"""

import csv
import gzip
import io
import tarfile
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from PIL import Image

from metricgold.datasets.synthetic.render import Recipe, RenderedFrame, render_scene
from metricgold.datasets.synthetic.world import Pose
from metricgold.params import Synthesize
from metricgold.storage import Progress, digest_file

HYPERSIM_FOV_DEG = 60.0
VKITTI2_FOCAL_WIDTHS = 725.0087 / 1242  # focal length in image widths
VKITTI2_SKY_CM = 65535
TARTANAIR_SKY_M = 4100.0  # a sphere around the camera
TARTANAIR2_SKY_M = 10_000.0
DATED = 1_577_836_800  # 1 January 2020
APPLE_DOUBLE = bytes.fromhex("00051607000200004d6163204f532058").ljust(4096, b"\0")


# HyperSim


def write_hypersim(recipe: Recipe, params: Synthesize, out: Path) -> None:
    """One zip a scene, and the two csv files of the data set: splits and cameras."""
    split_rows: list[dict[str, Any]] = []
    camera_rows = []
    for index in scene_indices(recipe.dataset, params.num_scenes):
        scene = recipe.scene_name(params, index)
        split, _ = params.place(index)
        released = {hypersim_frame_id(number) for number in range(params.frames_per_scene)}
        for frame_id in range(max(released) + 1):
            is_released = frame_id in released
            split_rows.append(
                hypersim_split_row(scene, frame_id, split)
                if is_released
                else hypersim_split_row(scene, frame_id, excluded="CONTENT FLAGGED FOR REMOVAL")
            )
        camera_rows.append(hypersim_camera_row(scene, index, params.height, params.width))
        with ZipOfBytes(out / f"{scene}.zip") as archive:
            add_hypersim_scene(archive, scene, index, render_scene(recipe, params, index))
    for frame_id in range(3):
        split_rows.append(
            hypersim_split_row("ai_999_001", frame_id, excluded="OUTSIDE VIEWING AREA (BAD INITIALIZATION)")
        )
    camera_rows.append(hypersim_camera_row("ai_999_001", 0, params.height, params.width))
    write_csv(out / "metadata_images_split_scene_v1.csv", split_rows)
    write_csv(out / "metadata_camera_parameters.csv", camera_rows)
    write_checksums(out, "SHA256SUMS", "sha256")


def add_hypersim_scene(archive: "ZipOfBytes", scene: str, scene_index: int, frames: Iterator[RenderedFrame]) -> None:
    """Colour, distance and entity of every frame, and the trajectory in the scene's own units and axes (y up)."""
    metres_per_unit = hypersim_metres_per_unit(scene_index)
    detail = f"parameter_name,parameter_value\nmeters_per_asset_unit,{metres_per_unit}\n"
    archive.add(f"{scene}/_detail/metadata_scene.csv", detail.encode())
    frame_ids, positions, orientations = [], [], []
    for frame in frames:
        frame_id = hypersim_frame_id(frame.number)
        frame_ids.append(frame_id)
        positions.append(np.array(frame.pose.position_m) / metres_per_unit)
        orientations.append(frame.pose.world_from_camera() @ np.diag([1, -1, -1]))
        has_hit = np.isfinite(frame.ray_distance_m)
        ray_distance_m = np.where(has_hit, frame.ray_distance_m, np.nan).astype(np.float16)
        final, geometry = (f"{scene}/images/scene_cam_00_{kind}_hdf5" for kind in ("final", "geometry"))
        name = f"frame.{frame_id:04d}"
        archive.add(f"{final}/{name}.color.hdf5", hdf5_bytes(hypersim_linear(frame), (96, 128, 3)))
        archive.add(f"{geometry}/{name}.depth_meters.hdf5", hdf5_bytes(ray_distance_m, (96, 128)))
        archive.add(f"{geometry}/{name}.render_entity_id.hdf5", hdf5_bytes(frame.entity, (96, 128)))
    keyframes = {"orientations": orientations, "positions": positions, "frame_indices": frame_ids}
    for name, values in keyframes.items():
        archive.add(f"{scene}/_detail/cam_00/camera_keyframe_{name}.hdf5", hdf5_bytes(np.array(values)))


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


def hypersim_linear(frame: RenderedFrame) -> np.ndarray:
    """Linear colour float16 [H, W, 3], with an exposure of each frame's own, which tone mapping has to undo."""
    exposure = 0.5 + 3 * ((hypersim_frame_id(frame.number) * 7) % 10) / 10
    return (frame.radiance * exposure).astype(np.float16)


def hypersim_frame_id(number: int) -> int:
    """Every fifth frame was taken out before release."""
    return number + (number + 1) // 4


def hypersim_metres_per_unit(scene_index: int) -> float:
    """Scenes are modelled in centimetres and in inches in turn."""
    return 0.0254 if scene_index % 2 else 0.01


def hypersim_split_row(scene: str, frame_id: int, split: str = "", excluded: str = "") -> dict[str, Any]:
    """A row of metadata_images_split_scene_v1.csv: a frame in a split, or excluded from the release for a reason."""
    return {
        "scene_name": scene,
        "camera_name": "cam_00",
        "frame_id": frame_id,
        "included_in_public_release": not excluded,
        "exclude_reason": excluded,
        "split_partition_name": split,
    }


def hypersim_camera_row(scene: str, scene_index: int, height: int, width: int) -> dict[str, Any]:
    """A row of metadata_camera_parameters.csv, with near and far planes at 1 and 1000 units."""
    cam_from_uv = hypersim_cam_from_uv(scene_index, height, width)
    near, far = 1.0, 1000.0
    projection = np.zeros((4, 4))
    projection[[0, 1, 3], :3] = np.linalg.inv(cam_from_uv)
    projection[2, :3] = projection[3, :3] * (far + near) / (far - near)
    projection[2, 3] = -2 * far * near / (far - near)
    row: dict[str, Any] = {
        "scene_name": scene,
        "settings_output_img_height": float(height),
        "settings_output_img_width": float(width),
        "settings_units_info_meters_scale": hypersim_metres_per_unit(scene_index),
        "settings_camera_fov": float(np.radians(HYPERSIM_FOV_DEG)),
    }
    row |= {f"M_cam_from_uv_{i}{j}": float(cam_from_uv[i, j]) for i in range(3) for j in range(3)}
    return row | {f"M_proj_{i}{j}": float(projection[i, j]) for i in range(4) for j in range(4)}


# Virtual KITTI 2


def write_vkitti2(recipe: Recipe, params: Synthesize, out: Path) -> None:
    """One tar of photographs, one of depth, one compressed of intrinsics, each over all scenes and weathers."""
    with ExitStack() as stack:
        rgb = stack.enter_context(tarfile.open(out / "vkitti_2.0.3_rgb.tar", "w"))
        depth = stack.enter_context(tarfile.open(out / "vkitti_2.0.3_depth.tar", "w"))
        file = stack.enter_context((out / "vkitti_2.0.3_textgt.tar.gz").open("wb"))
        packed = stack.enter_context(gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=0))
        text = stack.enter_context(tarfile.open(fileobj=packed, mode="w"))
        for index in scene_indices(recipe.dataset, params.num_scenes):
            scene = recipe.scene_name(params, index)
            num_frames = dict.fromkeys(recipe.variations, 0)
            for frame in render_scene(recipe, params, index):
                num_frames[frame.variation] += 1
                folder, number = f"{scene}/{frame.variation}/frames", f"{frame.pose_number:05d}"
                centimetres = np.rint(np.minimum(frame.planar_depth_m * 100, VKITTI2_SKY_CM)).astype(np.uint16)
                add_to_tar(rgb, f"{folder}/rgb/Camera_0/rgb_{number}.jpg", image_bytes(frame.srgb, "JPEG", quality=95))
                add_to_tar(depth, f"{folder}/depth/Camera_0/depth_{number}.png", png_bytes(centimetres))
            for variation, count in num_frames.items():
                if count:
                    intrinsics = vkitti2_intrinsics(count, params.height, params.width)
                    add_to_tar(text, f"{scene}/{variation}/intrinsic.txt", intrinsics)
    write_checksums(out, "vkitti_2.0.3_md5_checksums.txt", "md5")


def vkitti2_intrinsics(num_frames: int, height: int, width: int) -> bytes:
    """intrinsic.txt, in which the first pixel has its centre at 0 (620.5 for 1242 columns), here at 0.5."""
    focal_px = VKITTI2_FOCAL_WIDTHS * width
    lines = ["frame cameraID K[0,0] K[1,1] K[0,2] K[1,2]"]
    lines += [f"{n} 0 {focal_px:.6f} {focal_px:.6f} {width / 2 - 0.5} {height / 2 - 0.5}" for n in range(num_frames)]
    return "".join(f"{line}\n" for line in lines).encode()


# TartanAir, first and second version


def write_tartanair(recipe: Recipe, params: Synthesize, out: Path) -> None:
    """A zip of photographs and one of float32 depth for each environment, under one trajectory."""
    for index in scene_indices(recipe.dataset, params.num_scenes):
        environment = recipe.scene_name(params, index)
        folder, poses = f"{environment}/{environment}/Easy/P000", ""
        with (
            ZipOfBytes(out / environment / "Easy/image_left.zip") as images,
            ZipOfBytes(out / environment / "Easy/depth_left.zip") as depths,
        ):
            for frame in render_scene(recipe, params, index):
                poses += ned_pose(frame.pose)
                images.add(f"{folder}/image_left/{frame.number:06d}_left.png", png_bytes(frame.srgb))
                depth_m = depth_under_sky(frame, TARTANAIR_SKY_M).astype(np.float16).astype(np.float32)
                depth = io.BytesIO()
                np.save(depth, depth_m, allow_pickle=False)
                depths.add(f"{folder}/depth_left/{frame.number:06d}_left_depth.npy", depth.getvalue(), deflate=True)
            images.add(f"{folder}/pose_left.txt", poses.encode())
            if index % 3 == 0:
                # Upstream's archives were packed on a Mac: an AppleDouble side-car where arrays are expected.
                depths.add(f"{folder}/depth_left/._000000_left_depth.npy", APPLE_DOUBLE)
    write_checksums(out, "SHA256SUMS", "sha256")


def write_tartanair2(recipe: Recipe, params: Synthesize, out: Path) -> None:
    """A zip of photographs and one of depth for each environment; an RGBA pixel's bytes are a float32."""
    for index in scene_indices(recipe.dataset, params.num_scenes):
        environment = recipe.scene_name(params, index)
        folder, poses = f"{environment}/Data_easy/P000", ""
        with (
            ZipOfBytes(out / environment / "Data_easy/image_lcam_front.zip") as images,
            ZipOfBytes(out / environment / "Data_easy/depth_lcam_front.zip") as depths,
        ):
            for frame in render_scene(recipe, params, index):
                name = f"{frame.number:06d}_lcam_front"
                poses += ned_pose(frame.pose)
                images.add(f"{folder}/image_lcam_front/{name}.png", png_bytes(frame.srgb))
                depth_m = np.ascontiguousarray(depth_under_sky(frame, TARTANAIR2_SKY_M), dtype="<f4")
                # The float's bytes in memory order are B, G, R, A; Pillow wants R, G, B, A.
                rgba = depth_m.view(np.uint8).reshape(*depth_m.shape, 4)[..., [2, 1, 0, 3]]
                depths.add(f"{folder}/depth_lcam_front/{name}_depth.png", png_bytes(np.ascontiguousarray(rgba)))
            images.add(f"{folder}/pose_lcam_front.txt", poses.encode())
    write_checksums(out, "SHA256SUMS", "sha256")


def ned_pose(pose: Pose) -> str:
    """A line `x y z qx qy qz qw`, position and quaternion: north is +y, east +x, down -z; camera x forward, z down."""
    x, y, z = pose.position_m
    sine, cosine = np.sin(-pose.yaw / 2), np.cos(-pose.yaw / 2)
    up, level = np.sin(pose.pitch / 2), np.cos(pose.pitch / 2)
    values = (y, x, -z, -sine * up, cosine * up, sine * level, cosine * level)
    return " ".join(f"{value:.9f}" for value in values) + "\n"


def depth_under_sky(frame: RenderedFrame, sky_m: float) -> np.ndarray:
    """Planar depth float64 [H, W] in metres; nothing is farther than a sphere of `sky_m` around the camera."""
    sky_planar_m: np.ndarray = sky_m / np.linalg.norm(frame.rays, axis=-1)
    depth_m: np.ndarray = np.minimum(frame.planar_depth_m, sky_planar_m)
    return depth_m


# Bytes that depend on contents only


class ZipOfBytes:
    """A zip whose bytes depend on its members only."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._zip = zipfile.ZipFile(path, "w")

    def __enter__(self) -> "ZipOfBytes":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._zip.close()

    def add(self, name: str, data: bytes, *, deflate: bool = False) -> None:
        """Append one member."""
        info = zipfile.ZipInfo(name, date_time=(2020, 1, 1, 0, 0, 0))
        info.create_system, info.external_attr = 3, 0o644 << 16
        info.compress_type = zipfile.ZIP_DEFLATED if deflate else zipfile.ZIP_STORED
        self._zip.writestr(info, data, compresslevel=1 if deflate else None)


def add_to_tar(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    """Append one member without owner, dated 1 January 2020."""
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.mtime = len(data), 0o644, DATED
    tar.addfile(info, io.BytesIO(data))


def image_bytes(pixels: np.ndarray, kind: str, **options: int) -> bytes:
    """An image file of Pillow's format `kind`."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def png_bytes(pixels: np.ndarray) -> bytes:
    """A PNG, packed fast rather than small."""
    return image_bytes(pixels, "PNG", compress_level=1)


def hdf5_bytes(array: np.ndarray, chunks: tuple[int, ...] | None = None) -> bytes:
    """An HDF5 file whose `dataset` is the array, in chunks of gzip if their size is given."""
    import h5py

    options: dict[str, Any] = {}
    if chunks:
        sizes = tuple(min(size, chunk) for size, chunk in zip(array.shape, chunks, strict=True))
        options = {"chunks": sizes, "compression": "gzip", "compression_opts": 1}
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        file.create_dataset("dataset", data=array, **options)
    return buffer.getvalue()


def write_csv(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """A header and the rows."""
    rows = list(rows)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def write_checksums(folder: Path, name: str, algorithm: str) -> None:
    """A list in the form of md5sum over all files of the folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    lines = [f"{digest_file(path, algorithm)}  {path.relative_to(folder).as_posix()}\n" for path in files]
    (folder / name).write_text("".join(lines))


def scene_indices(dataset: str, num_scenes: int) -> Iterator[int]:
    """0.. over the scenes, while progress is shown."""
    with Progress(dataset, num_scenes, "scene") as progress:
        for index in range(num_scenes):
            yield index
            progress.advance()
