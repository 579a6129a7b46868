"""FLSea's reader on miniature files in the publisher's layout, and on two real frames."""

import shutil

import numpy as np
import pytest
import tifffile
from PIL import Image

from metricgold.datasets.readers import list_frames, open_dataset
from tests.support import SHARED

SAMPLES = SHARED / "samples/flsea_uw/uw_depth_example"
HEIGHT, WIDTH = 4, 8
STAMP = "16233043763678300"


def write_frame(raw, dive="canyons/u_canyon/u_canyon", stamp=STAMP, depth_m=None):
    for kind in ("imgs", "depth", "seaErra"):
        (raw / dive / kind).mkdir(parents=True, exist_ok=True)
    rgb = Image.new("RGB", (WIDTH, HEIGHT), (0, 90, 120))
    rgb.save(raw / dive / f"imgs/{stamp}.tiff", compression="tiff_lzw")
    rgb.save(raw / dive / f"seaErra/{stamp}_SeaErra.tiff", compression="tiff_lzw")
    depth = Image.fromarray(np.full((HEIGHT, WIDTH), 2.5, np.float32) if depth_m is None else depth_m)
    depth.save(raw / dive / f"depth/{stamp}_SeaErra_abs_depth.tif", compression="tiff_lzw")


def test_metres_and_no_depth(tmp_path):
    depth_m = np.full((HEIGHT, WIDTH), 2.5, np.float32)
    depth_m[0, :4] = 0, 9.746973, -1, np.nan
    write_frame(tmp_path, depth_m=depth_m)
    (frame,) = open_dataset("flsea", tmp_path)
    assert (frame.scene, frame.name) == ("canyons/u_canyon", f"canyons/u_canyon/{STAMP}")
    np.testing.assert_array_equal(frame.planar_depth_m[0], np.float32([0, 9.746973, 0, 0, 2.5, 2.5, 2.5, 2.5]))
    assert frame.valid_mask.sum() == 29
    assert frame.rgb[1, 1].tolist() == [0, 90, 120]


@pytest.mark.parametrize(
    ("dive", "scene", "camera"),
    [
        # (cx + 0.5) of an image of 968 x 608 whose pixel centres are counted from 0
        (
            "canyons/u_canyon/u_canyon",
            "canyons/u_canyon",
            (1175.3913431656817, 1174.2805075232263, 466.75954, 271.711663),
        ),
        ("red_sea/sub_pier", "red_sea/sub_pier", (1296.666758476217, 1300.831316354508, 502.003864, 276.661712)),
    ],
)
def test_the_camera_is_that_of_the_place(tmp_path, dive, scene, camera):
    write_frame(tmp_path, dive)
    (frame,) = open_dataset("flsea", tmp_path)
    assert frame.scene == scene
    scale = np.array([WIDTH / 968, HEIGHT / 608] * 2)
    np.testing.assert_allclose(frame.intrinsics[[0, 1, 0, 1], [0, 1, 2, 2]], camera * scale, rtol=1e-7)


def test_all_dives_are_measured_and_gaps_counted(tmp_path):
    for dive in ("canyons/flatiron/flatiron", "red_sea/pier_path/pier_path"):
        for number in range(3):
            write_frame(tmp_path, dive, f"{STAMP}{number}")
    (tmp_path / f"canyons/flatiron/flatiron/imgs/{STAMP}0.tiff").unlink()
    (tmp_path / f"red_sea/pier_path/pier_path/depth/{STAMP}1_SeaErra_abs_depth.tif").unlink()
    listing = list_frames("flsea", tmp_path, split="test")
    assert [ref.name for ref in listing.frames] == [
        f"canyons/flatiron/{STAMP}1",
        f"canyons/flatiron/{STAMP}2",
        f"red_sea/pier_path/{STAMP}0",
        f"red_sea/pier_path/{STAMP}2",
    ]
    assert listing.gaps == {"depth missing": 1, "rgb missing": 1}


def test_depth_of_another_size_kind_or_half_a_file(tmp_path):
    write_frame(tmp_path, depth_m=np.ones((2, 2), np.float32))
    with pytest.raises(ValueError, match=r"_abs_depth\.tif: expected shape \[4, 8\], got \[2, 2\]"):
        list(open_dataset("flsea", tmp_path))
    write_frame(tmp_path, depth_m=np.ones((HEIGHT, WIDTH), np.uint8))
    with pytest.raises(ValueError, match=r"_abs_depth\.tif: cannot be read: expected mode F, got L"):
        list(open_dataset("flsea", tmp_path))
    write_frame(tmp_path)
    path = tmp_path / f"canyons/u_canyon/u_canyon/depth/{STAMP}_SeaErra_abs_depth.tif"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"_abs_depth\.tif: cannot be read"):
        list(open_dataset("flsea", tmp_path))


def unpack_lzw(packed: bytes) -> bytes:
    """The LZW of TIFF 6.0: codes of 9 to 12 bits, the first bit foremost, 256 clears the table and 257 ends."""
    bits, position, width = int.from_bytes(packed), 8 * len(packed), 9
    table, unpacked, previous = [], [], None
    while True:
        position -= width
        code = bits >> position & (1 << width) - 1
        if code == 257:
            return b"".join(unpacked)
        if code == 256:
            table, previous, width = [bytes([byte]) for byte in range(256)] + [b"", b""], None, 9
            continue
        word = table[code] if code < len(table) else previous + previous[:1]
        if previous is not None:
            table.append(previous + word[:1])
        unpacked.append(word)
        previous = word
        width = len(f"{len(table) + 1:b}") if len(table) > 510 else 9


def unpack_depth(path, rows):
    """The first rows of a TIFF, float32, by its tags and unpack_lzw alone."""
    with tifffile.TiffFile(path) as tiff:
        page, data = tiff.pages.first, path.read_bytes()
        num_strips = -(-rows // page.rowsperstrip)
        spans = list(zip(page.dataoffsets, page.databytecounts, strict=True))[:num_strips]
        numbers = b"".join(unpack_lzw(data[offset : offset + size]) for offset, size in spans)
        return np.frombuffer(numbers, "<f4").reshape(-1, page.imagewidth)[:rows]


@pytest.mark.skipif(not SAMPLES.is_dir(), reason="the real frames lie beside the project, not in it")
def test_real_frames(tmp_path):
    dive = tmp_path / "canyons/u_canyon/u_canyon"
    for kind, suffix, into in (("rgb", ".tiff", "imgs"), ("depth", "_depth.tif", "depth")):
        (dive / into).mkdir(parents=True)
        for number in ("0000", "0005"):
            ending = ".tiff" if into == "imgs" else "_SeaErra_abs_depth.tif"
            shutil.copy(SAMPLES / kind / f"{number}{suffix}", dive / into / f"{number}{ending}")
    first, second = open_dataset("flsea", tmp_path)
    assert first.rgb.shape == second.rgb.shape == (608, 968, 3)
    for frame, number in ((first, "0000"), (second, "0005")):
        stored = unpack_depth(SAMPLES / f"depth/{number}_depth.tif", 128)
        np.testing.assert_array_equal(frame.planar_depth_m[:128], stored)
        np.testing.assert_array_equal(frame.valid_mask[:128], stored > 0)
    assert [int(frame.valid_mask.sum()) for frame in (first, second)] == [492_480, 378_015]
    assert [float(frame.planar_depth_m.max()) for frame in (first, second)] == [9.746973037719727, 13.715475082397461]
    assert float(first.planar_depth_m[304, 484]) == pytest.approx(4.398046)
    np.testing.assert_allclose(first.intrinsics[0], [1175.3913431656817, 0, 466.7595428966926])
