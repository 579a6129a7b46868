"""A thousand damaged frames: each is a Frame, or a ValueError that names the file and says what is wrong with it.

They are read in a process of their own, because libraries in C end a process where Python would raise.
"""

import warnings
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from random import Random

import h5py
import numpy as np
import pytest
from PIL import Image

from metricgold.datasets.frame import Frame
from metricgold.datasets.readers import FrameRef, read_frame
from tests.support.hypersim import NOMINAL_CAMERA

HEIGHT, WIDTH = 24, 32
NUM_PER_DATASET = 250
DATASETS = ("hypersim", "vkitti2", "tartanair", "tartanair2", "nyuv2", "kitti", "sunrgbd")


@pytest.mark.parametrize("dataset", DATASETS)
def test_damage_is_survived_and_named(dataset, tmp_path):
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as child:
        outcomes = child.submit(read_damaged, dataset, tmp_path, range(NUM_PER_DATASET)).result(timeout=60)
    assert set(outcomes) <= {"frame", "refused"}
    assert outcomes.total() == NUM_PER_DATASET
    assert outcomes["refused"] > NUM_PER_DATASET / 2


def read_damaged(dataset: str, folder: Path, seeds: range) -> Counter[str]:
    """How many were a frame or refused; anything else under what it was."""
    warnings.simplefilter("ignore")  # decoders may say what they like
    ref = write_frame(dataset, folder)
    assert isinstance(read_frame(ref), Frame)
    return Counter(_outcome(*damaged(ref, Random(f"{dataset} {seed}"))) for seed in seeds)


def _outcome(ref: FrameRef, path: Path) -> str:
    try:
        frame = read_frame(ref)
        return "frame" if frame.rgb.shape[:2] == frame.valid_mask.shape else f"{path}: {frame.rgb.shape}"
    except ValueError as error:
        # Where sizes differ, either of the two files may be named.
        named = [str(one) for one in (ref.rgb_path, ref.depth_path, path) if str(error).startswith(f"{one}: ")]
        return "refused" if named and len(str(error)) > len(named[0]) + 5 else f"{path}: {error}"
    except Exception as error:
        return f"{path}: {error!r}"
    finally:
        path.unlink()


def damaged(ref: FrameRef, chance: Random) -> tuple[FrameRef, Path]:
    """The frame with one of its files in a damaged copy."""
    fields = [field for field in ("rgb_path", "depth_path", "entity_path") if getattr(ref, field)]
    whole = getattr(ref, chance.choice(fields))
    path = whole.with_name(f"damaged{whole.suffix}")
    path.write_bytes(chance.choice(DAMAGES)(whole.read_bytes(), chance))
    return replace(ref, **{field: path for field in fields if getattr(ref, field) == whole}), path


# Damages: bytes and chance to bytes


def flip(data: bytes, chance: Random) -> bytes:
    """A few bits anywhere, or in the head, where the numbers are that decide most."""
    flipped, end = bytearray(data), chance.choice([len(data), min(len(data), 1024)])
    for _ in range(chance.randint(1, 8)):
        flipped[chance.randrange(end)] ^= 1 << chance.randrange(8)
    return bytes(flipped)


def cut(data: bytes, chance: Random) -> bytes:
    return data[: chance.randrange(len(data))]


def blank(data: bytes, chance: Random) -> bytes:
    """A sector of zeros or ones, as disks leave them."""
    start = chance.randrange(len(data))
    sector = chance.choice([b"\0", b"\xff"]) * min(chance.randint(1, 512), len(data) - start)
    return data[:start] + sector + data[start + len(sector) :]


def claim(data: bytes, chance: Random) -> bytes:
    """A number that says more, or less, than there is."""
    size = chance.choice([1, 2, 4, 8])
    number = chance.choice([0, 1, 2**31 - 1, 2**32, 2**63 - 1, 2**64 - 1]) % 2 ** (8 * size)
    start = chance.randrange(min(len(data), 2048) - size)
    return data[:start] + number.to_bytes(size, chance.choice(["little", "big"])) + data[start + size :]


def repeat(data: bytes, chance: Random) -> bytes:
    """A part twice, or left out."""
    return data[: chance.randrange(len(data))] + data[chance.randrange(len(data)) :]


def swap(_data: bytes, chance: Random) -> bytes:
    """Another kind of file under this name."""
    return chance.choice([b"", b"<html>404</html>", b"\x89PNG\r\n\x1a\n", b"\x93NUMPY", b"\x89HDF\r\n\x1a\n"])


DAMAGES = (flip, flip, flip, cut, blank, claim, claim, repeat, swap)


# Whole frames


def write_frame(dataset: str, folder: Path) -> FrameRef:
    """A small frame in the formats of its data set."""
    rng = np.random.default_rng(0)
    depth_m = rng.uniform(1, 9, (HEIGHT, WIDTH)).astype(np.float16)
    rgb = rng.integers(256, size=(HEIGHT, WIDTH, 3), dtype=np.uint8)
    write = {
        "hypersim": _write_hdf5,
        "vkitti2": _write_jpeg_png,
        "tartanair": _write_npy,
        "tartanair2": _write_png,
        "nyuv2": _write_mat,
        "kitti": _write_two_png,
        "sunrgbd": _write_capture,
    }
    return write[dataset](folder, rgb, depth_m)


def _write_hdf5(folder: Path, rgb: np.ndarray, depth_m: np.ndarray) -> FrameRef:
    arrays = {"rgb": (rgb / 99).astype(np.float16), "depth": depth_m, "entity": (rgb[..., 0] | 1).astype(np.int32)}
    for name, array in arrays.items():
        with h5py.File(folder / f"{name}.hdf5", "w") as file:
            chunks = (12, 16, 1)[: array.ndim]
            file.create_dataset("dataset", data=array, chunks=chunks, compression="gzip", compression_opts=9)
    paths = (folder / f"{name}.hdf5" for name in arrays)
    return FrameRef("hypersim", "s", "s/0", *paths, camera=NOMINAL_CAMERA)


def _write_jpeg_png(folder: Path, rgb: np.ndarray, depth_m: np.ndarray) -> FrameRef:
    Image.fromarray(rgb).save(folder / "rgb.jpg")
    Image.fromarray((depth_m * 100).astype(np.uint16)).save(folder / "depth.png")
    return FrameRef("vkitti2", "s", "s/0", folder / "rgb.jpg", folder / "depth.png", camera=(25.0, 25.0, 15.5, 11.5))


def _write_npy(folder: Path, rgb: np.ndarray, depth_m: np.ndarray) -> FrameRef:
    Image.fromarray(rgb).save(folder / "rgb.png")
    np.save(folder / "depth.npy", depth_m.astype(np.float32))
    return FrameRef("tartanair", "s", "s/0", folder / "rgb.png", folder / "depth.npy")


def _write_png(folder: Path, rgb: np.ndarray, depth_m: np.ndarray) -> FrameRef:
    Image.fromarray(rgb).save(folder / "rgb.png")
    bgra = depth_m.astype("<f4").view(np.uint8).reshape(HEIGHT, WIDTH, 4)
    Image.fromarray(np.ascontiguousarray(bgra[..., [2, 1, 0, 3]])).save(folder / "depth.png")
    return FrameRef("tartanair2", "s", "s/0", folder / "rgb.png", folder / "depth.png")


def _write_mat(folder: Path, rgb: np.ndarray, depth_m: np.ndarray) -> FrameRef:
    path = folder / "labeled.mat"
    with h5py.File(path, "w", userblock_size=512) as file:
        for name, array in {"images": rgb, "rawDepths": depth_m, "depths": depth_m}.items():
            numbers = (array if name == "images" else array.astype(np.float32)).T[None]
            file.create_dataset(name, data=numbers, chunks=numbers.shape, compression="gzip")
    return FrameRef("nyuv2", "s", "s/0001", path, path, index=0)


def _write_two_png(folder: Path, rgb: np.ndarray, depth_m: np.ndarray) -> FrameRef:
    Image.fromarray(rgb).save(folder / "rgb.png")
    Image.fromarray((depth_m * 256).astype(np.uint16)).save(folder / "depth.png")
    return FrameRef("kitti", "s", "s/0", folder / "rgb.png", folder / "depth.png", camera=(25.0, 25.0, 15.5, 11.5))


def _write_capture(folder: Path, rgb: np.ndarray, depth_m: np.ndarray) -> FrameRef:
    for name in ("image", "depth", "depth_bfx"):
        (folder / name).mkdir()
        picture = rgb if name == "image" else (depth_m * 1000).astype(np.uint16) << 3
        Image.fromarray(picture).save(folder / name / ("1.jpg" if name == "image" else "1.png"))
    (folder / "intrinsics.txt").write_text("25 0 16 0 25 12 0 0 1")
    paths = folder / "image/1.jpg", folder / "depth/1.png"
    return FrameRef("sunrgbd", "s", "s/1", *paths, layer_paths=(("filled_depth_m", folder / "depth_bfx/1.png"),))
