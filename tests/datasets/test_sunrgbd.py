"""SUN RGB-D's reader on miniature captures, and its list of them, a MATLAB 5 file packed as MATLAB packs it."""

import struct
import zlib
from random import Random

import cv2
import numpy as np
import pytest
from PIL import Image

from metricgold.datasets import mat5, sunrgbd
from metricgold.datasets.mat5 import read_cell_of_texts
from metricgold.datasets.readers import list_frames, open_dataset
from tests.support import SHARED

HEIGHT, WIDTH = 6, 10
NYU = "/n/fs/sun3d/data/SUNRGBD/kv1/NYUdata/NYU0352"
PLACE = "/n/fs/sun3d/data/SUNRGBD/xtion/sun3ddata/mit_w85_16/16_1/0004876-000163390500/"


def element(kind, content):
    if 0 < len(content) <= 4:
        return struct.pack("<HH", kind, len(content)) + content.ljust(4, b"\0")
    return struct.pack("<II", kind, len(content)) + content + bytes(-len(content) % 8)


def matrix(matrix_class, shape, name, content):
    flags, dimensions = struct.pack("<II", matrix_class, 0), struct.pack("<ii", *shape)
    return element(14, element(6, flags) + element(5, dimensions) + element(1, name.encode()) + content)


def cell_of(name, texts):
    chars = [matrix(4, (1, len(t)), "", element(4, t.encode("utf-16-le"))) for t in texts]
    return matrix(1, (1, len(texts)), name, b"".join(chars))


def write_mat(path, *variables, packed=True):
    packed_ones = [zlib.compress(variable) for variable in variables]
    data = b"".join(struct.pack("<II", 15, len(one)) + one for one in packed_ones) if packed else b"".join(variables)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"MATLAB 5.0 MAT-file, Platform: GLNXA64".ljust(124) + b"\0\1IM" + data)
    return path


def write_list(raw, test, train=()):
    """As published: two cells of paths, and a struct that nobody needs here."""
    other = matrix(6, (1, 1), "n", element(9, struct.pack("<d", 1.0)))
    return write_mat(raw / sunrgbd.SPLIT_LIST, other, cell_of("alltest", test), cell_of("alltrain", train))


def rotated(millimetres):
    """As upstream stores it: the lowest bit of depth is bit 3 of the file."""
    return ((millimetres << 3) | (millimetres >> 13)).astype(np.uint16)


def write_capture(raw, stored, *, depth=None, filled=None, name="0000041", depth_name=None, size=(HEIGHT, WIDTH)):
    folder = raw / "SUNRGBD" / stored.partition("/SUNRGBD/")[2]
    millimetres = np.full(size, 2000, np.uint16)
    depth, filled = (rotated(millimetres) if one is None else one for one in (depth, filled))
    for kind, picture in (("image", np.full((*size, 3), 90, np.uint8)), ("depth", depth), ("depth_bfx", filled)):
        (folder / kind).mkdir(parents=True, exist_ok=True)
        suffix = ".jpg" if kind == "image" else ".png"
        Image.fromarray(picture).save(folder / kind / ((name if kind == "image" else depth_name or name) + suffix))
    (folder / "intrinsics.txt").write_text(
        "529.500000 0.000000 365.000000\n0.000000 529.500000 265.000000\n0.000000 0.000000 1.000000\n"
    )
    return folder


def test_bits_mask_layer_and_camera_by_hand(tmp_path):
    depth, filled = np.zeros((HEIGHT, WIDTH), np.uint16), np.full((HEIGHT, WIDTH), 8, np.uint16)
    # 1 mm, 2.347 m, 8.191 m and the first that needs the rotated bits, 8.192 m; 2347 = 0b100100101011
    depth[0, 0], depth[1, 2], depth[5, 9], depth[3, 3] = 8, 18776, 65528, 1
    write_capture(tmp_path, NYU, depth=depth, filled=filled)
    write_list(tmp_path, [NYU])
    (frame,) = open_dataset("sunrgbd", tmp_path)
    assert (frame.scene, frame.name) == ("test/kv1/NYUdata/NYU0352", "test/kv1/NYUdata/NYU0352")
    assert np.argwhere(frame.valid_mask).tolist() == [[0, 0], [1, 2], [3, 3], [5, 9]]
    expected_m = np.float32([0.001, 2.347, 8.192, 8.191])
    np.testing.assert_allclose(frame.planar_depth_m[frame.valid_mask], expected_m, rtol=1e-6)
    np.testing.assert_array_equal(frame.layers["filled_depth_m"], np.full((HEIGHT, WIDTH), 0.001, np.float32))
    # Counted from 1 upstream: its 365th column is centred at 364.5 here.
    np.testing.assert_array_equal(frame.intrinsics, [[529.5, 0, 364.5], [0, 529.5, 264.5], [0, 0, 1]])


def test_sides_scenes_and_files_of_other_names(tmp_path):
    """Slashes as in the real list; depth of SUN3D is named by its own time."""
    train = "/n/fs/sun3d/data//SUNRGBD/xtion/sun3ddata/mit_w85_16/16_2/0000001-000000000001"
    write_capture(tmp_path, PLACE, name="0004876-000163390500", depth_name="0004880-000163371000")
    write_capture(tmp_path, train)
    write_capture(tmp_path, NYU, size=(7, 5))
    write_list(tmp_path, [NYU, PLACE], [train])
    frames = list_frames("sunrgbd", tmp_path).frames
    assert [(ref.scene, ref.name) for ref in frames] == [
        ("test/kv1/NYUdata/NYU0352", "test/kv1/NYUdata/NYU0352"),
        ("test/xtion/sun3ddata/mit_w85_16", "test/xtion/sun3ddata/mit_w85_16/16_1/0004876-000163390500"),
        ("train/xtion/sun3ddata/mit_w85_16", "train/xtion/sun3ddata/mit_w85_16/16_2/0000001-000000000001"),
    ]
    listing = list_frames("sunrgbd", tmp_path, split="test")
    assert (listing.frames, listing.gaps) == (frames[:2], {"in no split": 1})
    shapes = [frame.valid_mask.shape for frame in open_dataset("sunrgbd", tmp_path, split="test")]
    assert shapes == [(7, 5), (HEIGHT, WIDTH)]


def test_missing_files_are_gaps_and_the_filled_depth_may_be_missing(tmp_path):
    names = [f"{NYU[:-4]}{number:04d}" for number in range(4)]
    folders = [write_capture(tmp_path, name) for name in names[:3]]
    (folders[0] / "image/0000041.jpg").unlink()
    (folders[1] / "depth/0000041.png").unlink()
    (folders[2] / "depth_bfx/0000041.png").unlink()
    write_list(tmp_path, names)
    listing = list_frames("sunrgbd", tmp_path, split="test")
    assert [ref.name for ref in listing.frames] == ["test/kv1/NYUdata/NYU0002"]
    assert listing.gaps == {"depth missing": 1, "rgb missing": 2}
    (frame,) = open_dataset("sunrgbd", tmp_path)
    assert frame.layers == {}


def test_what_is_not_as_published_is_one_clear_line(tmp_path):
    folder = write_capture(tmp_path, NYU)
    with pytest.raises(ValueError, match=r"traintestSUNRGBD/allsplit\.mat: no such file"):
        open_dataset("sunrgbd", tmp_path)
    for stored in ("/n/fs/elsewhere", "/x/SUNRGBD/", "/x/SUNRGBD/kv1/../../../other"):
        write_list(tmp_path, [stored])
        with pytest.raises(ValueError, match=r"allsplit\.mat: expected folders below /SUNRGBD/, got '/"):
            open_dataset("sunrgbd", tmp_path)
    write_list(tmp_path, [NYU])
    (folder / "intrinsics.txt").write_text("529.5 0 365 0 529.5 265")
    with pytest.raises(
        ValueError, match=r"intrinsics\.txt: cannot be read: expected the nine numbers of a camera matrix"
    ):
        list(open_dataset("sunrgbd", tmp_path))
    write_capture(tmp_path, NYU, filled=np.zeros((HEIGHT, WIDTH + 1), np.uint16))
    with pytest.raises(ValueError, match=r"depth_bfx/0000041\.png: expected shape \[6, 10\], got \[6, 11\]"):
        list(open_dataset("sunrgbd", tmp_path))
    write_capture(tmp_path, NYU, depth=np.zeros((HEIGHT, WIDTH), np.uint8))
    with pytest.raises(ValueError, match=r"depth/0000041\.png: cannot be read: expected mode I;16, got L"):
        list(open_dataset("sunrgbd", tmp_path))
    write_capture(tmp_path, NYU, name="0000042")
    with pytest.raises(ValueError, match=r"NYU0352/image: expected one \.jpg file, got 2"):
        open_dataset("sunrgbd", tmp_path)


# The list


def test_texts_of_all_encodings_and_lengths(tmp_path):
    texts = ["a", "ab", "abc", "é" * 9, "x" * 300]
    kinds = {4: "utf-16-le", 16: "utf-8", 2: "latin-1"}
    for kind, encoding in kinds.items():
        chars = [matrix(4, (1, len(text)), "", element(kind, text.encode(encoding))) for text in texts]
        variable = matrix(1, (1, len(texts)), "names", b"".join(chars))
        for packed in (True, False):
            path = write_mat(tmp_path / "list.mat", cell_of("other", ["y"]), variable, packed=packed)
            assert read_cell_of_texts(path, "names") == texts


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "expected a MATLAB 5 file"),
        (b"MATLAB 7.3 MAT-file".ljust(124) + b"\0\2IM", "expected a MATLAB 5 file"),
        (b"MATLAB 5.0 MAT-file".ljust(124) + b"\1\0MI", "expected a MATLAB 5 file"),
        (b"MATLAB 5.0 MAT-file".ljust(124) + b"\0\1IM" + cell_of("b", ["x"]), "has no array called names"),
        (b"MATLAB 5.0 MAT-file".ljust(124) + b"\0\1IM" + cell_of("names", ["x"])[:-8], "expected whole arrays"),
        (b"MATLAB 5.0 MAT-file".ljust(124) + b"\0\1IM" + matrix(4, (1, 1), "names", element(4, b"x\0")), "got class 4"),
    ],
)
def test_another_list_is_one_clear_line(tmp_path, data, message):
    path = tmp_path / "list.mat"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=rf"^[^\n]*list\.mat: cannot be read: [^\n]*{message}"):
        read_cell_of_texts(path, "names")


def test_a_list_that_inflates_without_end_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(mat5, "MAX_INFLATED_BYTES", 1000)
    path = write_mat(tmp_path / "list.mat", bytes(2000))
    with pytest.raises(ValueError, match=r"list\.mat: cannot be read: expected a whole array of at most 1000 bytes"):
        read_cell_of_texts(path, "names")


def test_damage_to_a_list_is_survived_and_named(tmp_path):
    whole = write_mat(tmp_path / "list.mat", cell_of("names", [NYU, PLACE] * 5), packed=False).read_bytes()
    for seed in range(150):
        chance, data = Random(seed), bytearray(whole)
        for _ in range(chance.randint(1, 4)):
            data[chance.randrange(len(data))] = chance.choice([0, 1, 255, chance.randrange(256)])
        path = tmp_path / "list.mat"
        path.write_bytes(data[: chance.choice([len(data), chance.randrange(len(data))])])
        try:
            assert all(isinstance(text, str) for text in read_cell_of_texts(path, "names"))
        except ValueError as error:
            assert str(error).startswith(f"{path}: ")


SAMPLES = SHARED / "samples/sunrgbd/open3d"


@pytest.mark.skipif(not SAMPLES.is_dir(), reason="the real samples lie beside the project, not in it")
def test_a_real_pair_against_opencv(tmp_path):
    folder = write_capture(tmp_path, NYU, name="SUN")
    (folder / "image/SUN.jpg").write_bytes((SAMPLES / "SUN_color.jpg").read_bytes())
    for kind in ("depth", "depth_bfx"):
        (folder / kind / "SUN.png").write_bytes((SAMPLES / "SUN_depth.png").read_bytes())
    write_list(tmp_path, [NYU])
    (frame,) = open_dataset("sunrgbd", tmp_path, split="test")
    stored = cv2.imread(str(SAMPLES / "SUN_depth.png"), cv2.IMREAD_UNCHANGED).astype(int)
    millimetres = stored // 8 + stored % 8 * 8192
    np.testing.assert_allclose(frame.planar_depth_m, millimetres / 1000, rtol=1e-7)
    np.testing.assert_array_equal(frame.valid_mask, stored > 0)
    depth_m = frame.planar_depth_m[frame.valid_mask]
    assert (depth_m.min(), depth_m.max()) == (np.float32(1.057), np.float32(9.87))
    # As others read it, by 8000 and without the rotation, what is beyond 8.191 m comes out at millimetres.
    assert (millimetres > 8191).sum() == (abs(stored / 8000 - millimetres / 1000) > 1e-3).sum() > 0
