"""Coloured points in metres as PLY and glTF files."""

import json
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from metricgold.images.depth_files import open_whole, with_own

MAX_PLY_LINE = 250  # bytes


def write_ply(
    target: str | Path | BinaryIO, points_m: np.ndarray, rgb: np.ndarray, attributes: Mapping[str, str]
) -> None:
    """Write points_m [N, 3], metres in the camera's axes, and colours rgb uint8 [N, 3] to target as a binary PLY.

    x is right, y down, z forward; comments in the head say so, and hold the attributes as JSON strings. A long one
    continues in further comments of its name, because MeshLab refuses lines above 500 bytes and Open3D ends its process
    at one above 1,000. Points that are not finite are left out. Raises ValueError for points and colours of other
    shapes.
    """
    points_m, rgb = _known(points_m, rgb)
    own = {"unit": "metres", "kind": "points", "axes": "x right, y down, z forward; the camera is at 0, 0, 0"}
    comments = (line for name, text in with_own(own, attributes).items() for line in ply_comments(name, text))
    floats, bytes_ = ("x", "y", "z"), ("red", "green", "blue")
    head = ["ply", "format binary_little_endian 1.0", *comments, f"element vertex {len(points_m)}"]
    head += [*(f"property float {name}" for name in floats), *(f"property uchar {name}" for name in bytes_)]
    vertices = np.empty(len(points_m), [("point", "<f4", 3), ("colour", "u1", 3)])
    vertices["point"], vertices["colour"] = points_m, rgb
    with open_whole(target) as file:
        file.write("\n".join([*head, "end_header", ""]).encode("ascii"))
        file.write(vertices.data)


def ply_comments(name: str, text: str) -> Iterator[str]:
    """An attribute as lines of a PLY, each of MAX_PLY_LINE bytes at most; the strings in them make up the text."""
    start, part = f"comment {name} ", ""
    for character in text:
        if len(start + json.dumps(part + character)) > MAX_PLY_LINE:
            yield start + json.dumps(part)
            part = ""
        part += character
    yield start + json.dumps(part)


_FLOAT, _ARRAY_BUFFER, _POINTS = 5126, 34962, 0  # glTF 2.0, 3.6.2.2, 5.11.5 and 5.24.4
_MAX_POINTS = 178_000_000  # of 24 bytes: a GLB counts its bytes with 32 bits


def write_glb(
    target: str | Path | BinaryIO, points_m: np.ndarray, rgb: np.ndarray, attributes: Mapping[str, str]
) -> None:
    """Write points_m [N, 3], metres in the camera's axes, and colours rgb uint8 [N, 3] to target as a glTF 2.0 binary.

    In the file x is right, y up and -z forward and colours are linear floats, as glTF 2.0 defines (section 3.4 and
    3.7). The attributes are the asset's extras. Points that are not finite are left out; without points the scene is
    empty. Raises ValueError for points and colours of other shapes, and for more points than a GLB can count.
    """
    points_m, rgb = _known(points_m, rgb)
    if len(points_m) > _MAX_POINTS:
        raise ValueError(f"a GLB holds up to {_MAX_POINTS} points, got {len(points_m)}: write a PLY")
    own = {"unit": "metres", "kind": "points", "axes": "x right, y up, z backward; the camera is at 0, 0, 0"}
    gltf = {"asset": {"version": "2.0", "generator": "metricgold", "extras": with_own(own, attributes)}, "scene": 0}
    positions = points_m.astype("<f4") * np.array([1, -1, -1], "<f4")
    with open_whole(target) as file:
        if len(positions):
            _put_glb(file, gltf | gltf_scene(positions), positions, linear_of_srgb()[rgb])
        else:
            _put_glb(file, gltf | {"scenes": [{}]})


def _known(points_m: np.ndarray, rgb: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    points_m, rgb = np.asarray(points_m, np.float32), np.asarray(rgb)
    if points_m.shape[-1:] != (3,) or points_m.shape != rgb.shape or rgb.dtype != np.uint8:
        raise ValueError(
            f"points [N, 3] and uint8 colours [N, 3] were expected, got {list(points_m.shape)} and "
            f"{rgb.dtype} {list(rgb.shape)}"
        )
    x, y, z = np.isfinite(points_m).T
    known = x & y & z
    return points_m.compress(known, axis=0), rgb.compress(known, axis=0)


def linear_of_srgb() -> np.ndarray:
    """The 256 values of sRGB (IEC 61966-2-1) as linear float32 in [0, 1]."""
    values = np.arange(256) / 255
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    return linear.astype("<f4")


def gltf_scene(positions: np.ndarray) -> dict[str, Any]:
    """The part of a glTF document that describes one cloud: positions, then colours, in one buffer."""
    count = len(positions)
    bounds = {"min": [float(axis.min()) for axis in positions.T], "max": [float(axis.max()) for axis in positions.T]}
    triples = {"componentType": _FLOAT, "type": "VEC3", "count": count}
    view = {"buffer": 0, "target": _ARRAY_BUFFER, "byteLength": count * 12}
    return {
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0}],
        "meshes": [{"primitives": [{"mode": _POINTS, "attributes": {"POSITION": 0, "COLOR_0": 1}}]}],
        "accessors": [triples | {"bufferView": 0} | bounds, triples | {"bufferView": 1}],
        "bufferViews": [view | {"byteOffset": 0}, view | {"byteOffset": count * 12}],
        "buffers": [{"byteLength": count * 24}],
    }


def _put_glb(file: BinaryIO, gltf: Mapping[str, Any], *arrays: np.ndarray) -> None:
    # glTF 2.0, 4.4: head, then chunks of 4-byte words, each with its length and its name.
    text = json.dumps(gltf, allow_nan=False).encode()
    text += b" " * (-len(text) % 4)
    chunks = [(b"JSON", [text])] + ([(b"BIN\0", [array.data for array in arrays])] if arrays else [])
    lengths = [sum(memoryview(part).nbytes for part in parts) for _, parts in chunks]
    file.write(struct.pack("<4sII", b"glTF", 2, 12 + sum(8 + length for length in lengths)))
    for length, (name, parts) in zip(lengths, chunks, strict=True):
        file.write(struct.pack("<I4s", length, name))
        file.writelines(parts)
