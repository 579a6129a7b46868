"""Twins of the benchmarks packed in the publishers' own archives and formats, which the benchmarks' readers read.

Archives carry neither dates nor owners: equal frames give equal bytes.
"""

import gzip
import io
import os
import struct
import tarfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from metricgold.datasets.holes import fill_holes
from metricgold.datasets.synthetic.archives import (
    DATED,
    ZipOfBytes,
    add_to_tar,
    image_bytes,
    png_bytes,
    scene_indices,
    write_checksums,
)
from metricgold.datasets.synthetic.benchmark_recipe import BenchmarkRecipe, take_shots
from metricgold.datasets.synthetic.sensors import (
    Shot,
    border_px,
    depth_edges,
    kinect_depth_m,
    lidar_depth_m,
    plane_ids,
    scanner_depth_m,
    sparse_scan_m,
)
from metricgold.datasets.synthetic.world import Pose
from metricgold.extras import naming_the_extra
from metricgold.params import SynthesizeBenchmark

if TYPE_CHECKING:
    import h5py

MATLAB_HEAD = "MATLAB {} MAT-file, Platform: GLNXA64, Created on: Wed Jan  1 00:00:00 2020"
IBIMS_UNITS_PER_METRE = 65535 / 50
# k1, k2, p1, p2, k3, k4, sx1, sy1 with which the fisheye model is a pinhole up to 50 degrees off its axis, to 3e-5.
PINHOLE_AS_FISHEYE = (0.332666, 0.140444, 0.0, 0.0, 0.029748, 0.052606, 0.0, 0.0)
FLSEA_M = 25.0  # beyond which nothing is seen in water
MOVED = 2  # in ETH3D's mask images: what was not so when it was scanned


# NYU Depth v2


def write_nyuv2(recipe: BenchmarkRecipe, params: SynthesizeBenchmark, out: Path) -> None:
    """One MATLAB 7.3 file, which is HDF5 behind 512 bytes, with every array's axes reversed, and the split's lists."""
    import h5py

    path = out / "nyu_depth_v2/nyu_depth_v2_labeled.mat"
    path.parent.mkdir()
    number = params.num_scenes * params.frames_per_scene
    height, width = recipe.size(0, params)
    # In memory first: on a full disk HDF5 ends the process as it closes a file.
    with h5py.File("mat", "w", driver="core", backing_store=False, userblock_size=512) as file:
        for name, dtype, shape in (
            ("images", "u1", (number, 3, width, height)),
            ("rawDepths", "<f4", (number, width, height)),
            ("depths", "<f4", (number, width, height)),
        ):
            options: dict[str, Any] = {"chunks": (1, *shape[1:]), "compression": "gzip", "compression_opts": 1}
            file.create_dataset(name, shape, dtype, **options).attrs["MATLAB_class"] = np.bytes_(
                "uint8" if dtype == "u1" else "single"
            )
        scenes: list[str] = []
        for scene, shot in shots_of(recipe, params):
            raw_m = kinect_depth_m(shot)
            file["images"][len(scenes)] = white_bordered(shot.frame.srgb).T
            file["rawDepths"][len(scenes)] = raw_m.T
            file["depths"][len(scenes)] = fill_holes(raw_m).T
            scenes.append(scene)
        write_cell(file, "scenes", scenes)
        write_cell(file, "sceneTypes", [scene.rpartition("_")[0] for scene in scenes])
        file.flush()
        image = file.id.get_file_image()
    head = MATLAB_HEAD.format("7.3").ljust(124).encode() + struct.pack("<H2s", 0x0200, b"IM")
    path.write_bytes(head.ljust(512, b"\0") + image)
    (out / "indoor_seg_sup").mkdir()
    lists = {"trainNdxs": np.empty((0, 1)), "testNdxs": np.arange(1.0, number + 1)[:, None]}
    (out / "indoor_seg_sup/splits.mat").write_bytes(mat5_bytes(lists))
    write_checksums(out, "SHA256SUMS", "sha256")


def white_bordered(rgb: np.ndarray) -> np.ndarray:
    """The photograph, warped onto the depth camera's view: its border is white."""
    border = border_px(rgb.shape[0])
    bordered = np.full_like(rgb, 255)
    bordered[border:-border, border:-border] = rgb[border:-border, border:-border]
    return bordered


def write_cell(file: "h5py.File", name: str, texts: Iterable[str]) -> None:
    """A MATLAB cell [1, N] of texts: references to arrays of UTF-16 codes in the group #refs#."""
    import h5py

    references = []
    for number, text in enumerate(texts):
        codes = np.frombuffer(text.encode("utf-16-le"), "<u2")[:, None]
        item = file.create_dataset(f"#refs#/{name}{number}", data=codes)
        item.attrs["MATLAB_class"], item.attrs["MATLAB_int_decode"] = np.bytes_("char"), np.int32(2)
        references.append(item.ref)
    cell = file.create_dataset(name, (1, len(references)), h5py.ref_dtype)
    cell[0] = references
    cell.attrs["MATLAB_class"] = np.bytes_("cell")


def mat5_bytes(arrays: dict[str, np.ndarray]) -> bytes:
    """A MATLAB 5 file of float64 arrays, each compressed. Format: MathWorks, MAT-File Format, level 5."""

    def element(kind: int, data: bytes) -> bytes:
        return struct.pack("<II", kind, len(data)) + data + bytes(-len(data) % 8)

    out = MATLAB_HEAD.format("5.0").ljust(124).encode() + struct.pack("<H2s", 0x0100, b"IM")
    for name, array in arrays.items():
        matrix = element(6, struct.pack("<II", 6, 0))  # class double
        matrix += element(5, struct.pack(f"<{array.ndim}i", *array.shape)) + element(1, name.encode())
        matrix += element(9, array.astype("<f8").tobytes(order="F"))
        packed = zlib.compress(element(14, matrix))
        out += struct.pack("<II", 15, len(packed)) + packed
    return out


# KITTI


def write_kitti(recipe: BenchmarkRecipe, params: SynthesizeBenchmark, out: Path) -> None:
    """A zip of photographs a drive, one of annotated depth for all, one of camera matrices a date.

    Annotated depth lies below data_depth_annotated/, where that of the real archive is extracted to.
    """
    dates = {}
    with ZipOfBytes(out / "data_depth_annotated.zip") as depths:
        for index in scene_indices(recipe.dataset, params.num_scenes):
            drive = recipe.name_scene(index)
            dates[drive[:10]] = index
            part = "val" if index % 2 else "train"
            with ZipOfBytes(out / f"raw_data/{drive.removesuffix('_sync')}/{drive}.zip") as photographs:
                for shot in take_shots(recipe, params, index):
                    name = f"{5 + 10 * shot.frame.number:010d}.png"  # the first five frames have no annotated depth
                    photographs.add(f"{drive[:10]}/{drive}/image_02/data/{name}", png_bytes(shot.frame.srgb))
                    units = np.rint(lidar_depth_m(shot) * 256).astype(np.uint16)
                    folder = f"data_depth_annotated/{part}/{drive}/proj_depth/groundtruth/image_02"
                    depths.add(f"{folder}/{name}", png_bytes(units))
    for date, index in dates.items():
        with ZipOfBytes(out / f"raw_data/{date}_calib.zip") as archive:
            archive.add(f"{date}/calib_cam_to_cam.txt", kitti_calibration(recipe, params, index).encode())
    write_checksums(out, "SHA256SUMS", "sha256")


def kitti_calibration(recipe: BenchmarkRecipe, params: SynthesizeBenchmark, scene_index: int) -> str:
    """calib_cam_to_cam.txt with the rectified left colour camera, whose first pixel has its centre at 0."""
    height, width = recipe.size(scene_index, params)
    (fx, _, cx), (_, fy, cy), _ = recipe.intrinsics(scene_index, height, width)
    projection = (fx, 0, cx - 0.5, 0, 0, fy, cy - 0.5, 0, 0, 0, 1, 0)
    numbers = {
        "S_rect_02": (width, height),
        "R_rect_02": (1, 0, 0, 0, 1, 0, 0, 0, 1),
        "P_rect_02": projection,
    }
    lines = [f"{key}: {' '.join(f'{value:.9e}' for value in values)}\n" for key, values in numbers.items()]
    return "calib_time: 01-Jan-2020 00:00:00\n" + "".join(lines)


# ETH3D


def write_eth3d(recipe: BenchmarkRecipe, params: SynthesizeBenchmark, out: Path) -> None:
    """Three 7z a scene: photographs with COLMAP's cameras, float32 depth named like them, and mask images."""
    for index in scene_indices(recipe.dataset, params.num_scenes):
        scene = recipe.name_scene(index)
        height, width = recipe.size(index, params)
        images: dict[str, bytes] = {}
        depths, masks, poses = {}, {}, []
        for shot in take_shots(recipe, params, index):
            name = f"DSC_{index + 1:02d}{shot.frame.number:02d}"
            depth_m = sparse_scan_m(shot)
            where = "dslr_images/" + name
            images[f"{scene}/images/{where}.JPG"] = image_bytes(shot.frame.srgb, "JPEG", quality=95)
            depth = np.where(depth_m > 0, depth_m, np.inf).astype("<f4")
            depths[f"{scene}/ground_truth_depth/{where}.JPG"] = depth.tobytes()
            masks[f"{scene}/masks_for_images/{where}.png"] = png_bytes(moved_mask(shot))
            poses.append((f"{where}.JPG", shot.frame.pose))
        (fx, _, cx), (_, fy, cy), _ = recipe.intrinsics(index, height, width)
        numbers = (fx, fy, cx, cy, *PINHOLE_AS_FISHEYE)
        camera = f"0 THIN_PRISM_FISHEYE {width} {height} {' '.join(f'{number:.9g}' for number in numbers)}\n"
        images[f"{scene}/dslr_calibration_jpg/cameras.txt"] = camera.encode()
        images[f"{scene}/dslr_calibration_jpg/images.txt"] = colmap_images(poses).encode()
        for kind, members in (("jpg", images), ("depth", depths), ("occlusion", masks)):
            write_7z(out / f"{scene}_dslr_{kind}.7z", members)
    write_checksums(out, "SHA256SUMS", "sha256")


def moved_mask(shot: Shot) -> np.ndarray:
    """uint8 [H, W]: leaves move in the wind, and glass is not where the scanner has it."""
    leaves = shot.shows([solid.material == "foliage" for solid in shot.world.solids.solids])
    return np.where(leaves, MOVED, np.where(shot.is_glass, 1, 0)).astype(np.uint8)


def colmap_images(poses: Iterable[tuple[str, Pose]]) -> str:
    """images.txt: a pose from the world to the camera, and an empty line of key points, for each photograph."""
    text = "# IMAGE_ID, QW, QX, QY, QZ, TX, TY, TZ, CAMERA_ID, NAME\n"
    for number, (name, pose) in enumerate(poses):
        to_camera = pose.world_from_camera().T
        # The camera is turned about z by its yaw after about x by its pitch less a right angle.
        tilt = (pose.pitch - np.pi / 2) / 2
        cosine, sine = np.cos(pose.yaw / 2), np.sin(pose.yaw / 2)
        turn = (cosine * np.cos(tilt), -cosine * np.sin(tilt), -sine * np.sin(tilt), -sine * np.cos(tilt))
        values = (*turn, *(-to_camera @ pose.position_m))
        text += f"{number} {' '.join(f'{value:.9f}' for value in values)} 0 {name}\n\n"
    return text


def write_7z(path: Path, members: dict[str, bytes]) -> None:
    """A 7z whose bytes depend on its members only: it takes their dates from files."""
    with naming_the_extra():
        import py7zr

    filters = [{"id": py7zr.FILTER_LZMA2, "preset": 1}]
    with TemporaryDirectory() as folder, py7zr.SevenZipFile(path, "w", filters=filters) as archive:
        for number, (name, data) in enumerate(members.items()):
            file = Path(folder) / str(number)
            file.write_bytes(data)
            file.chmod(0o644)
            os.utime(file, (DATED, DATED))
            archive.write(file, name)


# DIODE


def write_diode(recipe: BenchmarkRecipe, params: SynthesizeBenchmark, out: Path) -> None:
    """val.tar.gz: PNG, float32 .npy of depth [H, W, 1], and a mask that leaves out edges, glass and the sky."""
    with ExitStack() as stack:
        file = stack.enter_context((out / "val.tar.gz").open("wb"))
        packed = stack.enter_context(gzip.GzipFile(filename="", mode="wb", compresslevel=1, fileobj=file, mtime=0))
        tar = stack.enter_context(tarfile.open(fileobj=packed, mode="w"))
        for scene, shot in shots_of(recipe, params):
            kind, _, number = scene.partition("/scene_")
            scan = f"{shot.frame.number + 1:05d}"
            stem = f"val/{scene}/scan_{scan}/{number}_{scan}_{kind}_000_010"
            depth_m = shot.depth_behind_glass_m()
            depth_m = np.where(np.isfinite(depth_m), depth_m, 0)
            trusted = (depth_m > 0) & (depth_m < 350) & ~shot.is_glass & ~depth_edges(shot.frame.planar_depth_m)
            add_to_tar(tar, f"{stem}.png", png_bytes(shot.frame.srgb))
            add_to_tar(tar, f"{stem}_depth.npy", npy_bytes(depth_m[..., None].astype(np.float32)))
            add_to_tar(tar, f"{stem}_depth_mask.npy", npy_bytes(trusted.astype(np.float32)))
    write_checksums(out, "SHA256SUMS", "sha256")


def npy_bytes(array: np.ndarray) -> bytes:
    """A .npy file."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


# FLSea-VI


def write_flsea(recipe: BenchmarkRecipe, params: SynthesizeBenchmark, out: Path) -> None:
    """One zip: TIFF of colours and of float32 depth, 0 where there is none, in folders of the dives."""
    with ZipOfBytes(out / "flsea-vi.zip") as archive:
        for scene, shot in shots_of(recipe, params):
            folder, stamp = f"{scene}/{scene.partition('/')[2]}", f"{DATED}{shot.frame.number:07d}"
            depth_m = np.where(shot.frame.planar_depth_m < FLSEA_M, shot.frame.planar_depth_m, 0)
            archive.add(f"{folder}/imgs/{stamp}.tiff", image_bytes(shot.frame.srgb, "TIFF"))
            depth = image_bytes(depth_m.astype(np.float32), "TIFF")
            archive.add(f"{folder}/depth/{stamp}_SeaErra_abs_depth.tif", depth)
    write_checksums(out, "SHA256SUMS", "sha256")


# iBims-1


def write_ibims1(recipe: BenchmarkRecipe, params: SynthesizeBenchmark, out: Path) -> None:
    """One zip: photographs, 16-bit depth, cameras, masks of one bit, numbered planes, and edges."""
    names = []
    with ZipOfBytes(out / "ibims1_core_raw.zip") as archive:
        for scene, shot in shots_of(recipe, params):
            name = f"{scene}_{shot.frame.number + 1:02d}"
            names.append(name)
            for kind, data in ibims1_files(recipe, shot).items():
                archive.add(f"ibims1_core_raw/{kind}/{name}.{'txt' if kind == 'calib' else 'png'}", data)
        archive.add("ibims1_core_raw/imagelist.txt", "".join(f"{name}\n" for name in names).encode())
    write_checksums(out, "SHA256SUMS", "sha256")


def ibims1_files(recipe: BenchmarkRecipe, shot: Shot) -> dict[str, bytes]:
    """What iBims-1 has of an image, by its folder; the principal point counts pixels from 1."""
    (fx, _, cx), (_, fy, cy), _ = shot.intrinsics
    depth_m = scanner_depth_m(shot)
    files = {
        "rgb": png_bytes(shot.frame.srgb),
        "depth": png_bytes(np.rint(depth_m * IBIMS_UNITS_PER_METRE).astype(np.uint16)),
        "calib": f"{fx:.6f},{fy:.6f},{cx + 0.5:.6f},{cy + 0.5:.6f}\n".encode(),
        "mask_invalid": bit_png_bytes(depth_m > 0),
        "mask_transp": bit_png_bytes(~shot.is_glass),
        "edges": bit_png_bytes(depth_edges(shot.frame.planar_depth_m)),
    }
    return files | {f"mask_{kind}": png_bytes(ids) for kind, ids in plane_ids(shot).items()}


def bit_png_bytes(mask: np.ndarray) -> bytes:
    """A PNG of one bit a pixel."""
    buffer = io.BytesIO()
    Image.fromarray(mask).save(buffer, "PNG")
    return buffer.getvalue()


def shots_of(recipe: BenchmarkRecipe, params: SynthesizeBenchmark) -> Iterator[tuple[str, Shot]]:
    """Every shot of every scene, with the scene's name."""
    for index in scene_indices(recipe.dataset, params.num_scenes):
        for shot in take_shots(recipe, params, index):
            yield recipe.name_scene(index), shot
