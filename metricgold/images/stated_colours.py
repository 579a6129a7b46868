"""Colour spaces that a file states by a code instead of an ICC profile, as profiles.

DCF 2.0 marks photographs in Adobe RGB by the interoperability index R03; PNG's chunk cICP and HEIF's nclx give codes of
ITU-T H.273. High dynamic range (PQ, HLG) has no agreed white here and is not converted.
"""

import struct
from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
from PIL import ExifTags, Image

_ADOBE_RGB = "R03"
# Red, green and blue as CIE x, y: Adobe RGB (1998), 4.3.1; H.273, table 2. Their white is D65.
_PRIMARIES: dict[str | int, tuple[tuple[float, float], ...]] = {
    _ADOBE_RGB: ((0.64, 0.33), (0.21, 0.71), (0.15, 0.06)),
    9: ((0.708, 0.292), (0.17, 0.797), (0.131, 0.046)),  # BT.2020
    12: ((0.68, 0.32), (0.265, 0.69), (0.15, 0.06)),  # Display P3
}
_SRGB_LIKE = (1, 2, 6, 13, 14, 15)  # transfer of H.273, table 3: cameras mean sRGB's by all of them
_D65, _D50 = (0.3127, 0.3290), np.array([0.9642, 1, 0.8249])
_BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])


def stated_profile(image: Image.Image, exif: Mapping[int, Any]) -> bytes | None:
    """The ICC profile of the colours that a file without one states; None for sRGB and what is not known here."""
    if exif.get(ExifTags.Interop.InteropIndex) == _ADOBE_RGB:
        return _matrix_profile(_ADOBE_RGB)
    nclx = image.info.get("nclx_profile") or {}
    codes = nclx.get("color_primaries"), nclx.get("transfer_characteristics")
    primaries, transfer = image.info.get("cicp", codes)
    return _matrix_profile(primaries) if primaries in _PRIMARIES and transfer in _SRGB_LIKE else None


@cache
def _matrix_profile(space: str | int) -> bytes:
    """A display profile of version 4 (ICC.1:2010, 7 and 9.2) with three colours and one curve."""
    colours = np.column_stack([_xyz(x, y) for x, y in _PRIMARIES[space]])
    white = _xyz(*_D65)
    colours = colours * np.linalg.solve(colours, white)
    adapt = np.linalg.solve(_BRADFORD, np.diag((_BRADFORD @ _D50) / (_BRADFORD @ white)) @ _BRADFORD)
    curve = _para(0, 563 / 256) if space == _ADOBE_RGB else _para(3, 2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
    tags = {b"wtpt": _xyz_tag(_D50), **{n + b"TRC": curve for n in (b"r", b"g", b"b")}}
    tags |= {n + b"XYZ": _xyz_tag(column) for n, column in zip((b"r", b"g", b"b"), (adapt @ colours).T, strict=True)}
    table, body, start = b"", b"", 128 + 4 + 12 * len(tags)
    for name, content in tags.items():
        table += struct.pack(">4sII", name, start + len(body), len(content))
        body += content
    head = struct.pack(">I4xI4s4s4s12x4s28x", start + len(body), 0x04200000, b"mntr", b"RGB ", b"XYZ ", b"acsp")
    head += b"".join(_fixed(value) for value in _D50)
    return head.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + body


def _xyz(x: float, y: float) -> np.ndarray:
    return np.array([x / y, 1, (1 - x - y) / y])


def _fixed(value: float) -> bytes:
    return struct.pack(">i", round(value * 65536))


def _xyz_tag(values: np.ndarray) -> bytes:
    return b"XYZ \0\0\0\0" + b"".join(_fixed(value) for value in values)


def _para(function: int, *parameters: float) -> bytes:
    return struct.pack(">4s4xH2x", b"para", function) + b"".join(_fixed(value) for value in parameters)
