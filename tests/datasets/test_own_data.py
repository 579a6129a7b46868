"""The reader of a team's own data: what is stated is what comes out, and what is not stated is an error."""

from multiprocessing.reduction import ForkingPickler

import numpy as np
import pytest
import tifffile
import yaml
from PIL import Image

from metricgold.datasets import own_data
from metricgold.datasets.readers import list_frames, open_dataset, read_frame
from metricgold.images.camera import rays_from_intrinsics
from metricgold.storage.files import read_json
from tests.support.workers import sent

HEIGHT, WIDTH = 6, 8
STATED = {
    "depth": {"unit": "millimetre", "kind": "planar", "invalid": 0, "far": None},
    "intrinsics": {"first_pixel": 0, "fx": 10.0, "fy": 11.0, "cx": 3.5, "cy": 2.5},
    "splits": {"train": ["house_*"], "test": ["barn"]},
}
MILLIMETRES = np.arange(1000, 1000 + HEIGHT * WIDTH, dtype=np.uint16).reshape(HEIGHT, WIDTH)


def state(raw, **changes):
    """Write dataset.yaml with changes like depth={"unit": "metre"}; a value None drops the section."""
    stated = {key: dict(value) for key, value in STATED.items()}
    for key, change in changes.items():
        stated[key] = {**stated.get(key, {}), **change} if isinstance(change, dict) else change
    raw.mkdir(parents=True, exist_ok=True)
    (raw / "dataset.yaml").write_text(yaml.safe_dump({k: v for k, v in stated.items() if v is not None}))


def write_depth(path, depth):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix.lower() == ".npy":
        with path.open("wb") as file:
            np.save(file, depth)
    elif depth.dtype in (np.float16, np.float64) and path.suffix.lower() == ".tif":
        tifffile.imwrite(path, depth)
    elif path.suffix == ".npz":
        np.savez_compressed(path, depth=depth)
    else:
        Image.fromarray(depth).save(path)


def write_rgb(path, size=(HEIGHT, WIDTH), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((*size, 3), 90, dtype=np.uint8)).save(path, **options)


def write_one(raw, stored=MILLIMETRES, suffix=".png", **changes):
    """One frame in the plain layout, and what is stated of it."""
    state(raw, **changes)
    write_rgb(raw / "barn/rgb/0001.png")
    write_depth(raw / f"barn/depth/0001{suffix}", stored)
    return raw


def write_csv(raw, *lines):
    (raw / "frames.csv").write_text("\n".join(lines) + "\n")


def only(raw, name="mine"):
    (frame,) = open_dataset(name, raw)
    return frame


@pytest.mark.parametrize(
    ("suffix", "stored"),
    [
        (".png", MILLIMETRES),
        (".npy", MILLIMETRES.astype(np.float32)),
        (".npy", MILLIMETRES.astype(np.int64)[..., None]),
        (".npz", MILLIMETRES.astype(np.float64)),
        (".tif", MILLIMETRES.astype(np.float32)),
        (".tiff", MILLIMETRES),
        (".tif", MILLIMETRES.astype(np.float16)),
        (".TIF", MILLIMETRES.astype(np.float64)),
        (".NPY", MILLIMETRES.astype(np.float32)),
    ],
    ids=lambda value: value if isinstance(value, str) else str(value.dtype),
)
def test_every_format_gives_the_same_metres(tmp_path, suffix, stored):
    frame = only(write_one(tmp_path, stored, suffix))
    np.testing.assert_array_equal(frame.planar_depth_m, (MILLIMETRES / 1000).astype(np.float32))
    assert frame.valid_mask.all()
    assert (frame.scene, frame.name) == ("barn", "barn/0001")


@pytest.mark.parametrize(
    ("suffix", "content"),
    [
        (".pgm", b"P5\n# of a sensor\n8 6\n65535\n" + MILLIMETRES.astype(">u2").tobytes()),
        (".pgm", b"P5 8 6 10000 " + MILLIMETRES.astype(">u2").tobytes()),  # stretched by most readers
        (".pfm", b"Pf\n8 6\n-1.0\n" + MILLIMETRES[::-1].astype("<f4").tobytes()),
        (".PFM", b"Pf\r\n8 6\r\n1.0\r\n" + MILLIMETRES[::-1].astype(">f4").tobytes()),
    ],
)
def test_netpbm(tmp_path, suffix, content):
    write_one(tmp_path)
    (tmp_path / "barn/depth/0001.png").unlink()
    (tmp_path / f"barn/depth/0001{suffix}").write_bytes(content)
    np.testing.assert_array_equal(only(tmp_path).planar_depth_m, (MILLIMETRES / 1000).astype(np.float32))


def test_channels_of_an_exr(tmp_path):
    openexr = pytest.importorskip("OpenEXR")
    write_one(tmp_path)
    (tmp_path / "barn/depth/0001.png").unlink()
    path, metres = str(tmp_path / "barn/depth/0001.exr"), MILLIMETRES.astype(np.float32)
    openexr.File({}, {"Depth.V": metres}).write(path)
    np.testing.assert_array_equal(only(tmp_path).planar_depth_m, metres / 1000)
    openexr.File({}, {"R": metres + 1, "G": metres, "B": metres}).write(path)
    with pytest.raises(ValueError, match=r"0001\.exr: .*holds B, G, R; depth\.array in dataset\.yaml must say which"):
        only(tmp_path)
    state(tmp_path, depth={"array": "R"})
    np.testing.assert_array_equal(only(tmp_path).planar_depth_m, (metres + 1) / 1000)


# Depth that is coded, of another size, or has its mask beside it


def test_rotated_bits_of_sun_rgbd(tmp_path):
    rotated = MILLIMETRES << 3 | MILLIMETRES >> 13
    frame = only(write_one(tmp_path, rotated, depth={"coding": "sunrgbd"}))
    np.testing.assert_array_equal(frame.planar_depth_m, (MILLIMETRES / 1000).astype(np.float32))


def test_log_depth_of_this_project(tmp_path):
    from metricgold.images import write_log_depth_png
    from metricgold.log_depth import LogDepth

    depth_m = (MILLIMETRES / 1000).astype(np.float32)
    depth_m[0, :2] = np.nan, 200
    write_one(tmp_path, depth={"coding": "metricgold", "unit": "metre"})
    write_log_depth_png(tmp_path / "barn/depth/0001.png", depth_m, LogDepth(0.5, 80.0), {})
    frame = only(tmp_path)
    np.testing.assert_allclose(frame.planar_depth_m[1:], depth_m[1:], rtol=1e-4)
    assert not frame.valid_mask[0, :2].any() and frame.valid_mask.sum() == HEIGHT * WIDTH - 2
    write_depth(tmp_path / "barn/depth/0001.png", MILLIMETRES)
    with pytest.raises(ValueError, match=r"depth/0001\.png"):
        only(tmp_path)


def test_log_depth_of_moge(tmp_path):
    from PIL.PngImagePlugin import PngInfo

    code = np.full((HEIGHT, WIDTH), 1, np.uint16)
    code[0, :4] = 0, 65535, 65534, 32768
    write_one(tmp_path, depth={"coding": "moge", "unit": "metre"})
    texts = PngInfo()
    texts.add_text("near", "0.5")
    texts.add_text("far", "32.0")
    Image.fromarray(code).save(tmp_path / "barn/depth/0001.png", pnginfo=texts)
    frame = only(tmp_path)
    assert not frame.valid_mask[0, :2].any()
    np.testing.assert_allclose(frame.planar_depth_m[0, 2:5], [32, 4, 0.5], rtol=1e-4)
    write_depth(tmp_path / "barn/depth/0001.png", MILLIMETRES)
    with pytest.raises(ValueError, match=r"0001\.png: .*texts near and far"):
        only(tmp_path)


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_colours_of_carla(tmp_path, mode):
    code = np.full((HEIGHT, WIDTH), 256**3 - 1)
    code[0, :3] = 1, 256, 12_345_678
    colours = np.stack([code & 255, code >> 8 & 255, code >> 16, code * 0 + 255], axis=-1).astype(np.uint8)
    write_one(tmp_path, depth={"coding": "carla", "unit": "metre", "far": 1000})
    Image.fromarray(colours[..., : len(mode)]).save(tmp_path / "barn/depth/0001.png")
    frame = only(tmp_path)
    np.testing.assert_allclose(frame.planar_depth_m[0, :3], np.array([1, 256, 12_345_678]) / 16777.215, rtol=1e-6)
    assert frame.valid_mask.sum() == 3


@pytest.mark.parametrize("change", [{"unit": "millimetre"}, {"unit": "metre", "kind": "ray distance"}], ids=str)
def test_a_coding_that_gives_planar_metres_contradicts_another_statement(tmp_path, change):
    write_one(tmp_path, depth={"coding": "carla", **change})
    with pytest.raises(ValueError, match=r"dataset\.yaml: depth: the coding carla gives planar metres: expected unit"):
        list_frames("mine", tmp_path)


def test_a_coding_is_one_of_png(tmp_path):
    write_one(tmp_path, MILLIMETRES, ".npy", depth={"coding": "sunrgbd"})
    with pytest.raises(ValueError, match=r"0001\.npy: depth\.coding sunrgbd is one of \.png files"):
        only(tmp_path)


@pytest.mark.parametrize("of", ["rgb", "depth"])
def test_depth_smaller_than_its_rgb(tmp_path, of):
    """As a phone has it: nearest, never a mean; the camera of either image."""
    camera = {"fx": 40.0, "fy": 44.0, "cx": 15.5, "cy": 11.5}
    if of == "depth":
        camera = {"fx": 10.0, "fy": 11.0, "cx": 3.5, "cy": 2.5, "width": WIDTH, "height": HEIGHT}
    stored = MILLIMETRES.copy()
    stored[2, 3] = 0
    write_one(tmp_path, stored, intrinsics=camera)
    write_rgb(tmp_path / "barn/rgb/0001.png", (4 * HEIGHT, 4 * WIDTH))
    with pytest.raises(ValueError, match=r"depth/0001\.png: expected shape \[24, 32\], got \[6, 8\]"):
        only(tmp_path)
    state(tmp_path, depth={"resize": "nearest"}, intrinsics=camera)
    frame = only(tmp_path)
    np.testing.assert_allclose(frame.intrinsics, [[40, 0, 16], [0, 44, 12], [0, 0, 1]])
    np.testing.assert_allclose(frame.planar_depth_m, np.kron(stored / 1000, np.ones((4, 4))), rtol=1e-6)
    write_rgb(tmp_path / "barn/rgb/0001.png", (4 * HEIGHT, 6 * WIDTH))
    with pytest.raises(
        ValueError, match=r"8 x 6 is not the rgb's 48 x 24, scaled|is not .* its camera's image, scaled"
    ):
        only(tmp_path)


def test_smaller_ray_distance_is_made_planar_by_its_own_rays(tmp_path):
    rays = rays_from_intrinsics(np.array([[5.0, 0, 4], [0, 6.0, 3], [0, 0, 1]]), HEIGHT, WIDTH)
    stored = 3.0 * np.linalg.norm(rays, axis=-1)  # a wall 3 m ahead
    camera = {"first_pixel": 0.5, "fx": 10.0, "fy": 12.0, "cx": 8.0, "cy": 6.0}
    depth = {"unit": "metre", "kind": "ray distance", "resize": "nearest"}
    write_one(tmp_path, stored, ".npy", depth=depth, intrinsics=camera)
    write_rgb(tmp_path / "barn/rgb/0001.png", (2 * HEIGHT, 2 * WIDTH))
    np.testing.assert_allclose(only(tmp_path).planar_depth_m, 3, rtol=1e-6)


@pytest.mark.parametrize(("meaning", "suffix"), [("valid", ".png"), ("invalid", ".png"), ("valid", ".npy")])
def test_a_separate_mask(tmp_path, meaning, suffix):
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[1:3] = 1
    write_one(tmp_path, depth={"mask": meaning})
    assert list_frames("mine", tmp_path).gaps == {"mask missing": 1}
    write_depth(tmp_path / f"barn/mask/0001{suffix}", mask)
    frame = only(tmp_path)
    np.testing.assert_array_equal(frame.valid_mask, (mask == 1) == (meaning == "valid"))
    before = own_data.write_ledger("mine", tmp_path).read_bytes()
    write_depth(tmp_path / f"barn/mask/0001{suffix}", 1 - mask)
    assert own_data.write_ledger("mine", tmp_path).read_bytes() != before
    write_depth(tmp_path / f"barn/mask/0001{suffix}", mask[:2])
    with pytest.raises(ValueError, match=r"mask/0001\.\w+: expected a mask \[6, 8\], got uint8 \[2, 8\]"):
        only(tmp_path)


def test_a_column_of_masks(tmp_path):
    write_one(tmp_path, depth={"mask": "valid", "resize": "nearest"})
    write_rgb(tmp_path / "barn/rgb/0001.png", (2 * HEIGHT, 2 * WIDTH))
    state(tmp_path, depth={"mask": "valid", "resize": "nearest"}, intrinsics={"width": WIDTH, "height": HEIGHT})
    write_csv(tmp_path, "rgb,depth,scene", "barn/rgb/0001.png,barn/depth/0001.png,barn")
    with pytest.raises(ValueError, match=r"frames\.csv: lacks the columns mask"):
        list_frames("mine", tmp_path)
    write_csv(tmp_path, "rgb,depth,mask,scene", "barn/rgb/0001.png,barn/depth/0001.png,good.png,barn")
    mask = np.zeros((2 * HEIGHT, 2 * WIDTH), bool)
    mask[:, 5] = True
    Image.fromarray(mask).save(tmp_path / "good.png")  # of the rgb's size
    np.testing.assert_array_equal(only(tmp_path).valid_mask, mask)


@pytest.mark.parametrize(
    ("unit", "metres"), [("metre", 1), ("centimetre", 0.01), ("millimetre", 0.001), (1 / 256, 1 / 256), (2, 2)]
)
def test_units(tmp_path, unit, metres):
    frame = only(write_one(tmp_path, depth={"unit": unit}))
    np.testing.assert_allclose(frame.planar_depth_m, MILLIMETRES * metres, rtol=1e-7)


def test_ray_distance_becomes_planar_with_the_stated_camera(tmp_path):
    camera = {"first_pixel": 0, "fx": 5.0, "fy": 6.0, "cx": 1.0, "cy": 4.0}
    rays = rays_from_intrinsics(np.array([[5.0, 0, 1.5], [0, 6.0, 4.5], [0, 0, 1]]), HEIGHT, WIDTH)
    ray_distance = 3.0 * np.linalg.norm(rays, axis=-1)  # of a wall 3 m ahead
    frame = only(
        write_one(tmp_path, ray_distance, ".npy", depth={"unit": "metre", "kind": "ray distance"}, intrinsics=camera)
    )
    np.testing.assert_allclose(frame.planar_depth_m, 3.0, rtol=1e-6)
    np.testing.assert_array_equal(frame.intrinsics, [[5, 0, 1.5], [0, 6, 4.5], [0, 0, 1]])


@pytest.mark.parametrize(("first_pixel", "cx"), [(0, 4.0), (0.5, 3.5)])
def test_pixel_convention(tmp_path, first_pixel, cx):
    assert only(write_one(tmp_path, intrinsics={"first_pixel": first_pixel})).intrinsics[0, 2] == cx


def test_invalid_and_far_are_stored_values(tmp_path):
    stored = MILLIMETRES.astype(np.float32) / 1000
    stored[0, :6] = (-0.1, 0, np.nan, np.inf, 999.9, 1000)
    depth = {"unit": "metre", "invalid": [-0.1, 1.008], "far": 1000}
    frame = only(write_one(tmp_path, stored, ".npy", depth=depth))
    expected = np.ones((HEIGHT, WIDTH), dtype=bool)
    expected[0, [0, 1, 2, 3, 5]] = False
    expected[1, 0] = False  # 1.008 in 32 bits
    np.testing.assert_array_equal(frame.valid_mask, expected)


@pytest.mark.parametrize("key", ["unit", "kind", "invalid", "far"])
def test_what_is_not_stated_is_not_guessed(tmp_path, key):
    write_one(tmp_path)
    stated = yaml.safe_load((tmp_path / "dataset.yaml").read_text())
    del stated["depth"][key]
    (tmp_path / "dataset.yaml").write_text(yaml.safe_dump(stated))
    with pytest.raises(ValueError, match=rf"dataset\.yaml: depth\.{key}: missing, and it is never guessed"):
        list_frames("mine", tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"depth": {"unit": "mm"}}, r"depth\.unit: .*'metre', 'centimetre' or 'millimetre'.* found 'mm'"),
        ({"depth": {"unit": True}}, r"depth\.unit: .*found True"),
        ({"depth": {"unit": -1.0}}, r"depth\.unit: .*greater than 0"),
        ({"depth": {"kind": "z"}}, r"depth\.kind: .*'planar' or 'ray distance'"),
        ({"depth": {"scale": 2}}, r"depth\.scale: Extra inputs are not permitted, found 2"),
        ({"intrinsics": {"first_pixel": 1}}, r"intrinsics\.first_pixel: "),
        ({"intrinsics": {"fx": None}}, r"intrinsics: lacks fx: give all of fx, fy, cx, cy or none"),
        ({"intrinsics": None}, r"intrinsics: missing"),
        ({"intrinsics": {"fy": 0.0}}, r"intrinsics\.fy: "),
        ({"colour": {}}, r"colour: Extra inputs"),
    ],
    ids=str,
)
def test_a_wrong_statement_names_file_key_and_value(tmp_path, changes, message):
    write_one(tmp_path, **changes)
    with pytest.raises(ValueError, match=rf"dataset\.yaml: {message}") as raised:
        list_frames("mine", tmp_path)
    assert len(str(raised.value).splitlines()) == 1


def test_a_unit_given_twice_is_not_the_last_one(tmp_path):
    write_one(tmp_path)
    path = tmp_path / "dataset.yaml"
    path.write_text("depth:\n  unit: metre\n" + path.read_text().replace("depth:\n", "", 1))
    with pytest.raises(ValueError, match=r"dataset\.yaml: line \d+: unit is given twice"):
        list_frames("mine", tmp_path)


def test_powers_of_ten_are_numbers(tmp_path):
    write_one(tmp_path)
    path = tmp_path / "dataset.yaml"
    text = path.read_text()
    path.write_text(text.replace("far: null", "far: 1e10").replace("unit: millimetre", "unit: 1e-3"))
    assert path.read_text() != text
    (ref,) = list_frames("mine", tmp_path).frames
    assert (ref.camera.far, ref.camera.metres_per_unit) == (1e10, 0.001)


def test_broken_yaml(tmp_path):
    (tmp_path / "dataset.yaml").write_text("depth: [")
    with pytest.raises(ValueError, match=r"dataset\.yaml: line 1: is not YAML"):
        list_frames("mine", tmp_path)
    (tmp_path / "dataset.yaml").write_text("")
    with pytest.raises(ValueError, match=r"dataset\.yaml: depth: missing"):
        list_frames("mine", tmp_path)


# The list of frames


def test_rows_of_a_csv_with_their_own_cameras(tmp_path):
    state(tmp_path, intrinsics={"fx": None, "fy": None, "cx": None, "cy": None})
    for name in ("a", "b", "c"):
        write_rgb(tmp_path / f"photos/{name}.jpg")
    for name in ("a", "b", "d"):
        write_depth(tmp_path / f"lidar/{name}.png", MILLIMETRES)
    rows = ["photos/b.jpg,lidar/b.png,house_2,20,21,4,3,", " photos/a.jpg ,lidar/a.png,house_1,10,11,4.5,3,first"]
    rows += ["photos/c.jpg,lidar/c.png,barn,10,10,4,3,", "photos/d.jpg,lidar/d.png,barn,10,10,4,3,", ""]
    (tmp_path / "frames.csv").write_text("\ufeffrgb,depth,scene,fx,fy,cx,cy,name\n" + "\r\n".join(rows))
    frames = list(open_dataset("mine", tmp_path))
    assert [(frame.name, frame.scene) for frame in frames] == [("first", "house_1"), ("photos/b", "house_2")]
    np.testing.assert_array_equal(frames[0].intrinsics, [[10, 0, 5], [0, 11, 3.5], [0, 0, 1]])
    assert list_frames("mine", tmp_path).gaps == {"depth missing": 1, "rgb missing": 1}


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["rgb,depth", "a,b"], r"lacks the columns scene"),
        (["rgb,depth,scene,unit", "a,b,c,m"], r"unknown columns unit; known: rgb, depth, scene, name"),
        (["rgb,depth,scene,fx", "a,b,c,1"], r"has the columns fx, which dataset\.yaml states too"),
        (["rgb,depth,scene", "a,b,"], r"line 2: scene: is empty"),
        (["rgb,depth,scene", "a,b"], r"line 2: scene: is empty"),
        (["rgb,depth,scene", "a,b,c,d"], r"line 2: has more cells"),
        (["rgb,depth,scene", "../a,b,c"], r"line 2: rgb: \.\./a must be a path below"),
        (["rgb,depth,scene", "a,/etc/b,c"], r"line 2: depth: /etc/b must be a path below"),
    ],
    ids=str,
)
def test_a_wrong_csv_names_line_and_column(tmp_path, lines, message):
    write_one(tmp_path)
    write_csv(tmp_path, *lines)
    with pytest.raises(ValueError, match=rf"frames\.csv: {message}"):
        list_frames("mine", tmp_path)


@pytest.mark.parametrize("focal", ["wide", "0", "-3", "nan", "inf"])
def test_a_focal_length_that_is_none(tmp_path, focal):
    write_one(tmp_path, intrinsics={"fx": None, "fy": None, "cx": None, "cy": None})
    row = f"barn/rgb/0001.png,barn/depth/0001.png,barn,{focal},9,4,3"
    write_csv(tmp_path, "rgb,depth,scene,fx,fy,cx,cy", row)
    with pytest.raises(ValueError, match=rf"frames\.csv: line 2: fx: {focal} is not a focal length"):
        list_frames("mine", tmp_path)


def test_without_any_camera(tmp_path):
    write_one(tmp_path, intrinsics={"fx": None, "fy": None, "cx": None, "cy": None})
    with pytest.raises(ValueError, match=r"dataset\.yaml: intrinsics\.fx: missing, and there is no frames\.csv"):
        list_frames("mine", tmp_path)
    write_csv(tmp_path, "rgb,depth,scene", "barn/rgb/0001.png,barn/depth/0001.png,barn")
    with pytest.raises(ValueError, match=r"frames\.csv: lacks the columns fx, fy, cx, cy, and dataset\.yaml states no"):
        list_frames("mine", tmp_path)


def test_a_frame_named_twice(tmp_path):
    write_one(tmp_path)
    row = "barn/rgb/0001.png,barn/depth/0001.png,barn"
    write_csv(tmp_path, "rgb,depth,scene", row, row)
    with pytest.raises(ValueError, match="frame barn/rgb/0001 is there twice"):
        list_frames("mine", tmp_path)


def test_the_plain_layout_pairs_by_name_and_counts_gaps(tmp_path):
    write_one(tmp_path)
    for extra in ("barn/rgb/0002.jpg", "house_1/rgb/7.png", "barn/rgb/._0001.png", "barn/rgb/.DS_Store.png"):
        write_rgb(tmp_path / extra)
    write_depth(tmp_path / "house_1/depth/7.npy", MILLIMETRES)
    write_depth(tmp_path / "house_1/depth/8.npy", MILLIMETRES)
    listing = list_frames("mine", tmp_path)
    assert [ref.name for ref in listing.frames] == ["barn/0001", "house_1/7"]
    assert listing.gaps == {"depth missing": 1, "rgb missing": 1}
    write_rgb(tmp_path / "barn/rgb/0001.jpg")
    with pytest.raises(ValueError, match=r"0001\.jpg and 0001\.png have one name"):
        list_frames("mine", tmp_path)


def test_nothing_there(tmp_path):
    state(tmp_path)
    with pytest.raises(ValueError, match=r"no frames of mine; there is neither .*frames\.csv nor a folder <scene>/rgb"):
        list_frames("mine", tmp_path)
    write_rgb(tmp_path / "rgb/1.png")
    write_depth(tmp_path / "depth/1.png", MILLIMETRES)
    with pytest.raises(ValueError, match=r"<scene>/depth in .*; .*/rgb and /depth belong into the folder of a scene"):
        list_frames("mine", tmp_path)
    write_csv(tmp_path, "rgb,depth,scene")
    with pytest.raises(ValueError, match=r"no frames of mine; .*frames\.csv names none"):
        list_frames("mine", tmp_path)


def test_what_file_managers_leave_behind_is_no_scene_and_no_frame(tmp_path):
    write_one(tmp_path)
    for scene in ("__MACOSX", ".Trash-1000"):
        write_rgb(tmp_path / scene / "rgb/0001.png")
        write_depth(tmp_path / scene / "depth/0001.png", MILLIMETRES)
    for kind in ("rgb", "depth"):
        for name in ("Thumbs.db", "desktop.ini", ".DS_Store", "._0001.png"):
            (tmp_path / "barn" / kind / name).write_bytes(b"x")
    listing = list_frames("mine", tmp_path)
    assert [ref.name for ref in listing.frames] == ["barn/0001"] and listing.scenes == ["barn"] and not listing.gaps


# Splits and names


def test_what_operating_systems_add_is_neither_scene_nor_frame(tmp_path):
    write_one(tmp_path)
    for scene in ("__MACOSX", ".Trash-1000"):
        write_rgb(tmp_path / scene / "rgb/0001.png")
        write_depth(tmp_path / scene / "depth/0001.png", MILLIMETRES)
    for name in ("Thumbs.db", "desktop.ini", ".DS_Store", "._0001.png", "0001.png:Zone.Identifier"):
        (tmp_path / "barn/rgb" / name).write_bytes(b"x")
    listing = list_frames("mine", tmp_path)
    assert ([ref.name for ref in listing.frames], listing.gaps) == (["barn/0001"], {})


def test_splits_by_scene_and_exclusions(tmp_path):
    state(tmp_path, exclude=[{"frames": "house_1/2*", "reason": "blurred"}])
    for scene in ("house_1", "house_2", "barn", "shed"):
        for number in (1, 2):
            write_rgb(tmp_path / scene / f"rgb/{number}.png")
            write_depth(tmp_path / scene / f"depth/{number}.png", MILLIMETRES)
    train = list_frames("mine", tmp_path, split="train")
    assert [ref.name for ref in train.frames] == ["house_1/1", "house_2/1", "house_2/2"]
    assert train.gaps == {"excluded: blurred": 1, "in no split": 2}
    assert [ref.name for ref in list_frames("mine", tmp_path, split="test").frames] == ["barn/1", "barn/2"]
    with pytest.raises(ValueError, match=r"dataset\.yaml: splits: has no 'val', known: test, train"):
        list_frames("mine", tmp_path, split="val")
    state(tmp_path, splits={"test": ["*"]})
    with pytest.raises(ValueError, match=r"dataset\.yaml: splits: scene house_1 is in test and train, expected in one"):
        list_frames("mine", tmp_path, split="train")


def test_names_of_other_readers_stay_theirs(tmp_path):
    write_one(tmp_path)
    with pytest.raises(
        ValueError, match=r"dataset\.yaml: vkitti2 has a reader of its own; give your data another name"
    ):
        list_frames("vkitti2", tmp_path)
    with pytest.raises(
        ValueError, match=r"unknown data set 'mine'; known: hypersim, .*any other name needs .*dataset\.yaml"
    ):
        list_frames("mine", tmp_path / "barn")


# Broken files


@pytest.mark.parametrize(
    ("suffix", "content", "message"),
    [
        (".png", np.zeros((HEIGHT, WIDTH), np.uint8), r"0001\.png: cannot be read: expected mode I;16, got L"),
        (".npy", np.ones((HEIGHT, WIDTH - 1)), r"0001\.npy: expected shape \[6, 8\], got \[6, 7\]"),
        (".npy", np.ones((HEIGHT, WIDTH), dtype=complex), r"0001\.npy: expected numbers"),
        (".npy", np.ones((HEIGHT, WIDTH, 3)), r"0001\.npy: expected numbers"),
        (".tif", np.zeros((HEIGHT, WIDTH), np.uint8), r"0001\.tif: cannot be read: expected floating point or 16-bit"),
        (".png", b"", r"0001\.png: cannot be read"),
        (".npz", b"PK\x03\x04 broken", r"0001\.npz: cannot be read"),
        (".tiff", b"II*\x00 broken", r"0001\.tiff: cannot be read"),
        (".exr", b"v/1\x01", r"0001\.exr: cannot be read"),
        (".bmp", b"BM", r"0001\.bmp: depth is read from \.png, \.npy, \.npz, \.tif, \.tiff, \.exr, \.pfm, \.pgm"),
        (".pgm", b"P5 8 6 255\n" + bytes(48), r"0001\.pgm: .*expected 16-bit grey, got values up to 255"),
        (".pgm", b"P5 8 6 65535\n" + bytes(95), r"0001\.pgm: .*expected 96 bytes of pixels, got 95"),
        (".pgm", b"P5 99999999 99999999 65535\n", r"0001\.pgm: .*bytes of pixels, got 0"),
        (".pfm", b"PF\n8 6\n-1\n" + bytes(576), r"0001\.pfm: .*expected the head of a binary grey PGM"),
        (".pfm", b"Pf\n8 6\n-0.25\n" + bytes(192), r"0001\.pfm: .*expected the scale 1 or -1, got -0\.25"),
    ],
    ids=str,
)
def test_broken_depth_is_named(tmp_path, suffix, content, message):
    write_one(tmp_path)
    (tmp_path / "barn/depth/0001.png").unlink()
    path = tmp_path / f"barn/depth/0001{suffix}"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        write_depth(path, content)
    with pytest.raises(ValueError, match=message):
        only(tmp_path)


def test_an_npz_of_several_arrays_needs_a_name(tmp_path):
    write_one(tmp_path)
    (tmp_path / "barn/depth/0001.png").unlink()
    np.savez(tmp_path / "barn/depth/0001.npz", near=MILLIMETRES, z=MILLIMETRES + 1)
    with pytest.raises(ValueError, match=r"holds near, z; depth\.array in dataset\.yaml must say which"):
        only(tmp_path)
    state(tmp_path, depth={"array": "z"})
    assert only(tmp_path).planar_depth_m[0, 0] == np.float32(1.001)
    state(tmp_path, depth={"array": "far"})
    with pytest.raises(ValueError, match=r"0001\.npz: cannot be read: .*far"):
        only(tmp_path)


def test_pickles_are_refused(tmp_path):
    write_one(tmp_path)
    (tmp_path / "barn/depth/0001.png").unlink()
    (tmp_path / "barn/depth/0001.npy").write_bytes(b"\x80\x04]\x94(K\x01K\x02e.")  # the list [1, 2]
    with pytest.raises(ValueError, match=r"0001\.npy: cannot be read"):
        only(tmp_path)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif", ".avif"])
def test_a_turned_photograph_is_refused(tmp_path, suffix):
    write_one(tmp_path)
    (tmp_path / "barn/rgb/0001.png").unlink()
    exif = Image.Exif()
    exif[0x0112] = 6
    write_rgb(tmp_path / f"barn/rgb/0001{suffix}", exif=exif)
    with pytest.raises(ValueError, match=rf"0001\{suffix}: cannot be read: its orientation 6 turns it"):
        only(tmp_path)


@pytest.mark.parametrize(("angle", "turns"), [(0, False), (1, True), (2, True), (3, True)])
def test_a_heic_that_turns_itself_is_refused(tmp_path, angle, turns):
    """The property irot is obeyed by each reader of HEIC; half a turn does not even change the size."""
    from metricgold.datasets.turns import expect_upright
    from metricgold.images import register_heif

    path = tmp_path / "1.heic"
    register_heif()
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(path)
    expect_upright(path)
    # A property more in the list of properties, and longer boxes around it.
    data, irot = path.read_bytes(), b"\0\0\0\x09irot" + bytes([angle])
    end = data.index(b"ipco") - 4 + int.from_bytes(data[(at := data.index(b"ipco") - 4) : at + 4])
    data = data[:end] + irot + data[end:]
    for box in (b"ipco", b"iprp", b"meta"):
        at = data.index(box) - 4
        data = data[:at] + (int.from_bytes(data[at : at + 4]) + len(irot)).to_bytes(4) + data[at + 4 :]
    path.write_bytes(data)
    if turns:
        with pytest.raises(ValueError, match=rf"1\.heic: .*its irot of {90 * angle} degrees turns it"):
            expect_upright(path)
    else:
        expect_upright(path)


@pytest.mark.parametrize(("suffix", "dtype"), [(".png", np.uint16), (".tif", np.uint16), (".tif", np.float32)])
def test_turned_depth_is_refused(tmp_path, suffix, dtype):
    write_one(tmp_path)
    (tmp_path / "barn/depth/0001.png").unlink()
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.fromarray(MILLIMETRES.astype(dtype)).save(tmp_path / f"barn/depth/0001{suffix}", exif=exif)
    with pytest.raises(ValueError, match=rf"depth/0001\{suffix}: cannot be read: its orientation 3 turns it"):
        only(tmp_path)


# Cameras


@pytest.mark.parametrize(
    ("intrinsics", "message"),
    [
        ({"cx": 80.0}, r"principal point 80\.5, 3 is outside the image of 8 x 6"),
        ({"cy": -2.0}, r"principal point 4, -1\.5 is outside"),
        ({"fx": 100.0}, r"field of view over the long side, 8 pixels, is 4\.58 degrees, not 10 to 150"),
        ({"fx": 1.0}, r"field of view .* is 152 degrees"),
        ({"width": 16, "height": 9}, r"8 x 6 is not 16 x 9, its camera's image, scaled"),
    ],
    ids=str,
)
def test_a_camera_that_cannot_belong_to_the_image_is_refused(tmp_path, intrinsics, message):
    raw = write_one(tmp_path, intrinsics=intrinsics)
    with pytest.raises(ValueError, match=rf"rgb/0001\.png: .*{message}"):
        only(raw)
    with pytest.raises(ValueError, match=rf"{raw}: frame barn/0001: .*{message}.* \(1 of 1 frames\)"):
        own_data.check_cameras(raw, list_frames("mine", raw).frames)


def test_a_camera_with_the_size_of_its_own_image_is_scaled_to_the_rgb(tmp_path):
    stated = {"first_pixel": 0, "fx": 200.0, "fy": 220.0, "cx": 79.5, "cy": 59.5, "width": 160, "height": 120}
    frame = only(write_one(tmp_path, intrinsics=stated))
    np.testing.assert_allclose(frame.intrinsics, [[10, 0, 4], [0, 11, 3], [0, 0, 1]])
    own_data.check_cameras(tmp_path, list_frames("mine", tmp_path).frames)
    state(tmp_path, intrinsics=dict.fromkeys(("fx", "fy", "cx", "cy")))
    row = "barn/rgb/0001.png,barn/depth/0001.png,barn,200,220,79.5,59.5"
    write_csv(tmp_path, "rgb,depth,scene,fx,fy,cx,cy,width,height", f"{row},160,120")
    np.testing.assert_array_equal(only(tmp_path).intrinsics, frame.intrinsics)
    write_csv(tmp_path, "rgb,depth,scene,fx,fy,cx,cy,width,height", f"{row},160,0")
    with pytest.raises(ValueError, match=r"frames\.csv: line 2: height: 0 is not a number of pixels"):
        list_frames("mine", tmp_path)
    write_csv(tmp_path, "rgb,depth,scene,fx,fy,cx,cy,width", f"{row},160")
    with pytest.raises(ValueError, match=r"frames\.csv: lacks the columns height"):
        list_frames("mine", tmp_path)


def test_images_of_two_sizes_cannot_have_one_camera(tmp_path, tiny, tiny_backbone):
    from metricgold.encode.stage import encode

    state(tmp_path, intrinsics={"fx": 60.0, "fy": 60.0, "cx": 23.5, "cy": 15.5})
    for number, size in ((1, (32, 48)), (2, (40, 60))):
        write_rgb(tmp_path / f"house_1/rgb/{number}.png", size)
        write_depth(tmp_path / f"house_1/depth/{number}.png", np.full(size, 2500, np.uint16))
    with pytest.raises(ValueError, match=r"house_1/2: it is 60 x 40 and house_1/1, with the same camera, 48 x 32"):
        encode("mine", tiny.encode, tiny.log_depth, tmp_path, tiny_backbone, tmp_path / "out")
    own = {"fx": 60.0, "fy": 60.0, "cx": 23.5, "cy": 15.5, "width": 48, "height": 32}
    state(tmp_path, intrinsics=own)
    assert [frame.intrinsics[0, 0] for frame in open_dataset("mine", tmp_path)] == [60, 75]
    encode("mine", tiny.encode, tiny.log_depth, tmp_path, tiny_backbone, tmp_path / "out")


def test_the_digest_follows_what_is_stated(tmp_path):
    write_one(tmp_path)
    first = own_data.digest(tmp_path)
    assert own_data.digest(tmp_path) == first
    write_csv(tmp_path, "rgb,depth,scene", "barn/rgb/0001.png,barn/depth/0001.png,barn")
    listed = own_data.digest(tmp_path)
    state(tmp_path, depth={"unit": "metre"})
    assert len({first, listed, own_data.digest(tmp_path)}) == 3


def test_references_are_small_and_travel(tmp_path):
    (ref,) = list_frames("mine", write_one(tmp_path)).frames
    again = sent(ref)
    np.testing.assert_array_equal(read_frame(again).planar_depth_m, read_frame(ref).planar_depth_m)
    assert len(ForkingPickler.dumps(ref)) < 2000


# Through the stages


def test_latents_of_own_data(tmp_path, tiny, tiny_backbone):
    from metricgold.encode.stage import encode
    from metricgold.shards import LatentCache

    state(tmp_path / "raw", intrinsics={"cx": 24.0, "cy": 16.0})
    for scene in ("house_1", "barn"):
        write_rgb(tmp_path / "raw" / scene / "rgb/1.png", (32, 48))
        write_depth(tmp_path / "raw" / scene / "depth/1.png", np.full((32, 48), 2500, np.uint16))
    encode("mine", tiny.encode, tiny.log_depth, tmp_path / "raw", tiny_backbone, tmp_path / "latents")
    cache = LatentCache(tmp_path / "latents")
    assert [cache[i].name for i in range(len(cache))] == ["house_1/1"]


def test_depth_corrected_in_place_is_encoded_again(tmp_path, tiny, tiny_backbone):
    """Same names, same sizes, metres twice as large; with a ledger of before and without one."""
    from metricgold.encode.stage import encode
    from metricgold.shards import LatentCache

    raw, out = tmp_path / "raw", tmp_path / "latents"
    state(raw, intrinsics={"cx": 24.0, "cy": 16.0})
    write_rgb(raw / "house_1/rgb/1.png", (32, 48))

    def latents_of(metres):
        write_depth(raw / "house_1/depth/1.npy", np.full((32, 48), 1000 * metres, np.float32))
        encode("mine", tiny.encode, tiny.log_depth, raw, tiny_backbone, out)
        return LatentCache(out).digest

    first = latents_of(2)
    assert latents_of(2) == first
    assert len({first, second := latents_of(4)}) == 2
    before = own_data.write_ledger("mine", raw).read_bytes()
    assert latents_of(4) == second
    assert latents_of(5) not in (first, second)
    assert own_data.write_ledger("mine", raw).read_bytes() != before


def test_its_ledger_follows_content_and_the_statement(tmp_path):
    """By scene, so that a scene more encodes that scene only; the same data give the same bytes."""
    raw = write_one(tmp_path / "raw")
    first = own_data.write_ledger("mine", raw).read_bytes()
    assert own_data.write_ledger("mine", raw).read_bytes() == first
    before = read_json(raw / "ledger.json")
    assert before["archives"]["barn"]["scenes"] == ["barn"] and before["archives"]["barn"]["members"] == 2
    write_rgb(raw / "house_1/rgb/0001.png")
    write_depth(raw / "house_1/depth/0001.png", MILLIMETRES)
    after = read_json(own_data.write_ledger("mine", raw))
    assert after["archives"]["barn"] == before["archives"]["barn"]
    assert set(after["archives"]) == {"barn", "house_1"}
    state(raw, depth={"unit": "centimetre"})
    assert read_json(own_data.write_ledger("mine", raw))["stated_sha256"] != after["stated_sha256"]


def test_own_data_take_every_row_of_the_graph(tmp_path, monkeypatch):
    """synthesize and download have nothing to make or fetch, and say so in a file that DVC watches."""
    from click.testing import CliRunner

    from metricgold.cli import main

    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_text("datasets:\n  - mine\n")
    write_one(tmp_path / "data/raw/mine")
    for words in (["synthesize", "mine"], ["download", "mine"]):
        done = CliRunner().invoke(main, words)
        assert done.exit_code == 0, done.output
    assert (tmp_path / "data/synthetic/mine/note.json").is_file()
    assert read_json(tmp_path / "data/raw/mine/ledger.json")["archives"].keys() == {"barn"}
    refused = CliRunner().invoke(main, ["download", "mine", "--verify"])
    assert refused.exit_code == 2 and "your own" in refused.output


def test_from_the_far_value_on_there_is_no_surface_unless_a_mask_takes_it_out(tmp_path):
    """Stored: 0 is invalid, from 9000 on it is sky; the mask leaves out the last column."""
    stored = np.full((HEIGHT, WIDTH), 2000, np.uint16)
    stored[0], stored[1, 0] = 9000, 0
    write_one(tmp_path, depth={"invalid": 0, "far": 9000, "mask": "valid"}, stored=stored)
    mask = np.ones((HEIGHT, WIDTH), bool)
    mask[:, -1] = False
    (tmp_path / "barn/mask").mkdir()
    Image.fromarray(mask).save(tmp_path / "barn/mask/0001.png")
    expected = np.zeros((HEIGHT, WIDTH), bool)
    expected[0, :-1] = True
    np.testing.assert_array_equal(only(tmp_path).no_surface, expected)
