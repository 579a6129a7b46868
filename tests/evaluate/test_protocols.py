"""Which pixels count by each protocol, how predictions are fitted, and which frames are asked for."""

import hashlib
import math
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from metricgold.datasets import Frame, FrameRef
from metricgold.evaluate import protocols
from metricgold.evaluate.protocols import Crop, Protocol, load_protocol, names_digest, protocol_names, protocols_of
from metricgold.metrics import depth_metrics
from tests.support import ROOT, SHARED

LISTS = SHARED / "samples" / "metadata"

KITTI_SIZES = ((375, 1242), (370, 1224), (374, 1238), (370, 1226), (376, 1241))


def frame_of(depth_m, *, layers=None, valid=None, name="scene/0001"):
    """A frame whose truth is this map; depth 0 is invalid."""
    depth_m = np.asarray(depth_m, np.float32)
    valid = depth_m > 0 if valid is None else valid
    rgb = np.zeros((*depth_m.shape, 3), np.uint8)
    camera = np.array([[100.0, 0, 50.0], [0, 100.0, 40.0], [0, 0, 1]])
    return Frame(rgb, np.where(valid, depth_m, np.float32(0)), valid, camera, "scene", name, layers or {})


def of_one_depth(shape, depth_m=2.0, **kwargs):
    return frame_of(np.full(shape, depth_m), **kwargs)


def pixels(name, frame):
    return int(load_protocol(name).counted(frame)[1].sum())


def bounds(mask):
    """First and last row and column, and that the rectangle between them is full."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    box = (rows[0], rows[-1], columns[0], columns[-1])
    assert mask.sum() == len(rows) * len(columns) == (box[1] - box[0] + 1) * (box[3] - box[2] + 1)
    return tuple(map(int, box))


def ref(dataset, name):
    return FrameRef(dataset, "scene", name, Path("rgb"), Path("depth"))


# The files


def test_every_protocol_names_its_source_and_there_is_one_default_for_each_benchmark():
    every = [load_protocol(name) for name in protocol_names()]
    assert {one.benchmark for one in every} == {"nyuv2", "kitti", "eth3d", "diode", "ibims1", "sunrgbd", "flsea"}
    for benchmark in {one.benchmark for one in every}:
        found = protocols_of(benchmark)
        assert [one.default for one in found] == [True] + [False] * (len(found) - 1)
        assert protocols_of(f"{benchmark}-synthetic") == found
    assert all(re.search(r"https://\S+$", source) for one in every for source in one.source)
    assert len({one.digest for one in every}) == len(every)
    assert protocols_of("hypersim") == []


def test_the_manual_lists_every_protocol_and_the_defaults_in_bold():
    rows = [line for line in (ROOT / "docs/protocols.md").read_text().splitlines() if line.startswith("| ")]
    names = [name for row in rows for name in re.findall(r"(\**)`([\w-]+)`", row.split("|")[2])]
    assert sorted(name for _, name in names) == protocol_names()
    assert {name for bold, name in names if bold} == {n for n in protocol_names() if load_protocol(n).default}


def test_a_digest_covers_what_decides_figures_and_nothing_else():
    eigen = load_protocol("nyuv2-eigen")
    for field in ("name", "title", "notes"):
        assert eigen.model_copy(update={field: "other"}).digest == eigen.digest
    others = {
        "benchmark": "kitti",
        "frames": protocols.Frames(count=3),
        "truth": "filled_depth_m",
        "masks": ["mask_invalid"],
        "crop": Crop(),
        "min_m": 0.5,
        "max_m": 9.0,
        "clip_m": None,
        "resize": "nearest",
        "camera": "given",
        "average": "pixel",
        "figures": ("boundary",),
    }
    assert others.keys() == Protocol.model_fields.keys() - {"name", "title", "source", "notes", "default"}
    digests = {eigen.model_copy(update={field: value}).digest for field, value in others.items()}
    assert len(digests) == len(others) and eigen.digest not in digests


def test_a_protocol_with_the_camera_given_is_another():
    given = load_protocol("nyuv2-eigen+camera")
    assert (given.name, given.camera) == ("nyuv2-eigen+camera", "given")
    assert given.digest != load_protocol("nyuv2-eigen").digest


def test_an_unknown_protocol_or_key_is_one_line(monkeypatch, tmp_path):
    with pytest.raises(ValueError, match=r"^unknown protocol 'nyu'; known: diode-all, .*nyuv2-eigen[^\n]*$"):
        load_protocol("nyu")
    (tmp_path / "mine.yaml").write_text("benchmark: nyuv2\ntitle: t\nsource: [s]\nmaximum_m: 10\n")
    monkeypatch.setattr(protocols, "FOLDER", tmp_path)
    with pytest.raises(ValueError, match=r"^[^\n]*mine\.yaml: maximum_m: Extra inputs are not permitted$"):
        load_protocol("mine")


# Crops: rows and columns worked out by hand


def test_eigens_crop_of_nyu():
    """Rows 45:471 and columns 41:601 with excluded ends, 426 x 560; [45:-9, 41:-39] of 480 x 640 is the same."""
    for name in ("nyuv2-eigen", "nyuv2-unidepth"):
        _, counted = load_protocol(name).counted(of_one_depth((480, 640)))
        assert bounds(counted) == (45, 470, 41, 600)
        assert counted.sum() == 426 * 560 == 238_560
    assert pixels("nyuv2-moge", of_one_depth((480, 640))) == 480 * 640


def test_a_twin_of_half_the_size_has_half_the_crop():
    _, counted = load_protocol("nyuv2-eigen").counted(of_one_depth((240, 320)))
    assert bounds(counted) == (22, 235, 20, 299)  # 22.5 and 20.5 round to even, 235.5 and 300.5 too


@pytest.mark.parametrize(("height", "width"), KITTI_SIZES)
def test_crops_of_kitti(height, width):
    """By hand: int(0.40810811 * 352) = 143, int(0.99189189 * 352) = 349, int(0.03594771 * 1216) = 43, 1172, ..."""
    frame = of_one_depth((height, width))
    top, left = height - 352, (width - 1216) // 2
    window = bounds(load_protocol("kitti-benchmark").counted(frame)[1])
    assert window == (top, height - 1, left, left + 1215)
    garg = bounds(load_protocol("kitti-garg").counted(frame)[1])
    assert garg == (top + 143, top + 348, left + 43, left + 1171)
    assert pixels("kitti-garg", frame) == pixels("kitti-unidepth", frame) == 206 * 1129
    eigen = bounds(load_protocol("kitti-eigen").counted(frame)[1])
    assert eigen == (top + 117, top + 320, left + 43, left + 1171)
    assert pixels("kitti-eigen", frame) == 204 * 1129


def test_gargs_crop_of_the_whole_frame_is_another():
    """Of 375 x 1242: rows 153:371 and columns 44:1197, as the script that measures files has it."""
    counted = load_protocol("kitti-garg-frame").counted(of_one_depth((375, 1242)))[1]
    assert bounds(counted) == (153, 370, 44, 1196)
    in_window = load_protocol("kitti-garg").counted(of_one_depth((375, 1242)))[1]
    assert bounds(in_window) == (166, 371, 56, 1184)


def test_kittis_window_in_a_small_twin():
    """188 x 621 of 375 x 1242: 352 * 188 / 375 = 176.5 rows, 1216 / 2 = 608 columns."""
    counted = load_protocol("kitti-benchmark").counted(of_one_depth((188, 621)))[1]
    assert bounds(counted) == (188 - 176, 187, 6, 613)


def test_crops_that_public_scripts_have_elsewhere():
    assert bounds(load_protocol("ibims1-zoe").counted(of_one_depth((480, 640)))[1]) == (45, 470, 41, 600)
    # As it stands, whatever the frame's size.
    assert bounds(load_protocol("sunrgbd-zoe").counted(of_one_depth((530, 730)))[1]) == (45, 470, 41, 600)
    assert bounds(load_protocol("diode-indoor-zoe").counted(of_one_depth((768, 1024)))[1]) == (45, 470, 41, 600)
    # int(0.40810811 * 768) = 313, int(0.99189189 * 768) = 761, int(0.03594771 * 1024) = 36, 987
    assert bounds(load_protocol("diode-outdoor-zoe").counted(of_one_depth((768, 1024)))[1]) == (313, 760, 36, 986)


def test_a_frame_without_room_for_the_window_is_refused():
    crop = Crop(window=(352, 1216))
    with pytest.raises(ValueError, match="a frame of 300 x 1242 pixels has no window of 352 x 1216"):
        crop.mask((300, 1242))
    with pytest.raises(ValueError, match="box and shares exclude each other"):
        Crop(box=(0, 1, 0, 1), shares=(0, 1, 0, 1))


# Ranges: truth at both ends, below, between and beyond

RANGES = {
    "nyuv2-eigen": (1e-3, 10),
    "nyuv2-filled": (1e-3, 10),
    "nyuv2-unidepth": (0, 10),
    "nyuv2-moge": (0, math.inf),
    "kitti-garg": (1e-3, 80),
    "kitti-garg-frame": (1e-3, 80),
    "kitti-eigen": (1e-3, 80),
    "kitti-benchmark": (1e-3, 80),
    "kitti-unidepth": (0, 80),
    "kitti-moge": (0, math.inf),
    "eth3d-depthpro": (0.1, 200),
    "eth3d-marigold": (1e-5, math.inf),
    "eth3d-unidepth": (0, 50),
    "diode-all": (0, math.inf),
    "diode-indoor": (0, math.inf),
    "diode-outdoor": (0, math.inf),
    "diode-indoor-zoe": (1e-3, 10),
    "diode-outdoor-zoe": (1e-3, 80),
    "diode-indoor-unidepth": (0, 25),
    "ibims1": (0, math.inf),
    "ibims1-depthpro": (0.1, 10),
    "ibims1-unidepth": (0, 25),
    "ibims1-zoe": (0, 10),
    "sunrgbd-depthpro": (1e-3, 10),
    "sunrgbd-zoe": (0, 8),
    "sunrgbd-unidepth": (0, 8),
    "flsea": (0.05, 20),
}


@pytest.mark.parametrize("name", protocol_names())
def test_truth_counts_between_the_ends_of_the_range(name):
    """A column of depths in the middle of a frame that is large enough for every crop."""
    low, high = RANGES[name]
    height, width = (375, 1242) if name.startswith("kitti") else (768, 1024) if name.startswith("diode") else (480, 640)
    depths_m = [0.0, low / 2, low, low * 2, 3.0, high * 0.99, high, high * 1.01]
    expected = [False, False, False, low > 0, low < 3 < high, high < math.inf, False, False]
    depths_m = [0.0 if math.isinf(depth) else depth for depth in depths_m]
    depth_m = np.zeros((height, width), np.float32)
    middle = (slice(height // 2 + 60, height // 2 + 60 + len(depths_m)), width // 2)
    depth_m[middle] = depths_m
    good = np.ones(depth_m.shape, bool)
    layers = {"filled_depth_m": depth_m, "unmasked_depth_m": depth_m, "mask_invalid": good, "mask_transp": good}
    true_m, counted = load_protocol(name).counted(frame_of(depth_m, layers=layers))
    assert counted[middle].tolist() == expected
    assert counted.sum() == sum(expected)
    assert true_m.dtype == np.float32 and true_m[middle].tolist() == depth_m[middle].tolist()


# Truth and masks


def test_filled_truth_counts_where_the_sensor_has_none():
    raw = np.full((480, 640), 2.0, np.float32)
    raw[100:110, 100:120] = 0
    raw[:20] = 0  # outside the crop
    filled = np.where(raw > 0, raw, np.float32(3))
    frame = frame_of(raw, layers={"filled_depth_m": filled})
    assert pixels("nyuv2-eigen", frame) == 238_560 - 200
    true_m, counted = load_protocol("nyuv2-filled").counted(frame)
    assert counted.sum() == 238_560 and true_m[105, 110] == 3


def test_marigold_counts_what_the_mask_images_of_eth3d_hide():
    depth_m = np.full((6, 8), 2.0, np.float32)
    frame = frame_of(depth_m, valid=np.arange(48).reshape(6, 8) >= 8, layers={"unmasked_depth_m": depth_m})
    assert pixels("eth3d-depthpro", frame) == 40
    assert pixels("eth3d-marigold", frame) == 48


def test_both_masks_of_ibims_must_be_good():
    depth_m = np.full((6, 8), 2.0, np.float32)
    depth_m[0] = 0  # 8 pixels without truth
    invalid, transparent = np.ones((6, 8), bool), np.ones((6, 8), bool)
    invalid[:2] = False  # 8 more
    transparent[:, 0] = False  # 4 more, of rows 2 to 5
    frame = frame_of(depth_m, layers={"mask_invalid": invalid, "mask_transp": transparent})
    assert pixels("ibims1", frame) == 48 - 8 - 8 - 4
    assert pixels("ibims1-unidepth", frame) == 40


def test_a_layer_that_is_not_there_is_one_line():
    with pytest.raises(
        ValueError,
        match=r"^frame scene/0001 has no layer 'filled_depth_m', which protocol nyuv2-filled needs; has none$",
    ):
        load_protocol("nyuv2-filled").counted(of_one_depth((480, 640)))


def test_counting_changes_nothing_of_the_frame():
    frame = of_one_depth((480, 640))
    load_protocol("nyuv2-eigen").counted(frame)
    assert frame.valid_mask.all()


# Predictions


def test_a_prediction_that_saturates_counts_and_is_clipped_to_the_protocols_range():
    protocol = load_protocol("nyuv2-eigen")
    fitted = protocol.fit(np.full((480, 640), 80.0, np.float32), (480, 640))
    assert (fitted == 10).all()
    assert (load_protocol("nyuv2-unidepth").fit(np.full((480, 640), 80.0), (480, 640)) == 80).all()
    below = load_protocol("eth3d-marigold").fit(np.full((4, 6), -1.0), (4, 6))
    assert np.allclose(below, 1e-5) and below.dtype == np.float32


@pytest.mark.parametrize(("protocol", "corners"), [("nyuv2-unidepth", False), ("nyuv2-eigen", True)])
def test_predictions_are_resized_as_the_public_scripts_do_it(protocol, corners):
    torch = pytest.importorskip("torch")
    small = np.random.default_rng(0).uniform(1, 9, (240, 324)).astype(np.float32)
    double = torch.from_numpy(small).double()[None, None]  # the scripts' float32 misses positions by 1e-4 pixels
    expected = torch.nn.functional.interpolate(double, (480, 640), mode="bilinear", align_corners=corners)[0, 0]
    np.testing.assert_allclose(load_protocol(protocol).fit(small, (480, 640)), expected, rtol=2e-6)


def test_the_nearest_pixel_is_that_of_the_nearest_centre():
    protocol = load_protocol("flsea").model_copy(update={"resize": "nearest"})
    assert protocol.fit(np.array([[1, 2, 3]]), (1, 3)).tolist() == [[1, 2, 3]]
    resized = protocol.resize_map(np.arange(1, 7).reshape(2, 3), (4, 6))
    assert resized.tolist() == [[1, 1, 2, 2, 3, 3]] * 2 + [[4, 4, 5, 5, 6, 6]] * 2


@pytest.mark.parametrize("size", [(375, 1242), (750, 2484), (192, 640), (378, 1246)])
def test_a_prediction_of_a_whole_frame_of_kitti_is_not_squeezed_into_the_window(size):
    """Their aspects differ by less than networks round theirs."""
    y, x = np.mgrid[: size[0], : size[1]]
    pred_m = (10 + 40 * (x + 0.5) / size[1] + 5 * (y + 0.5) / size[0]).astype(np.float32)
    fitted = load_protocol("kitti-garg").fit(pred_m, (375, 1242))
    y, x = np.mgrid[:375, :1242]
    np.testing.assert_allclose(fitted, 10 + 40 * (x + 0.5) / 1242 + 5 * (y + 0.5) / 375, atol=0.1)


def test_the_model_sees_kittis_window_and_its_prediction_is_put_back():
    protocol = load_protocol("kitti-garg")
    assert protocol.window((375, 1242)) == (slice(23, 375), slice(13, 1229))
    assert load_protocol("nyuv2-eigen").window((480, 640)) == (slice(0, 480), slice(0, 640))
    rng, frame = np.random.default_rng(0), of_one_depth((375, 1242))
    pred_m = rng.uniform(1, 70, (352, 1216)).astype(np.float32)
    whole = protocol.fit(pred_m, (375, 1242))
    assert np.array_equal(whole[23:, 13:1229], pred_m)
    assert np.isnan(whole[:23]).all() and np.isnan(whole[:, :13]).all() and np.isnan(whole[:, 1229:]).all()
    assert not np.isnan(whole[protocol.counted(frame)[1]]).any()
    # A map of the frame's own size is one of the whole frame.
    assert np.array_equal(protocol.fit(frame.planar_depth_m, (375, 1242)), frame.planar_depth_m)


@pytest.mark.parametrize(
    ("pred", "what"),
    [
        (np.ones((640, 480)), "a prediction of 480 x 640 pixels has not the aspect of 640 x 480"),
        (np.ones((480, 480)), "a prediction of 480 x 480 pixels has not the aspect of 640 x 480"),
        (np.ones((3, 480, 640)), r"a prediction must be a map \[height, width\], got shape \[3, 480, 640\]"),
        (np.ones((0, 640)), r"a prediction must be a map \[height, width\], got shape \[0, 640\]"),
    ],
)
def test_a_prediction_of_another_shape_is_one_line(pred, what):
    with pytest.raises(ValueError, match=f"^{what}$"):
        load_protocol("nyuv2-eigen").fit(pred, (480, 640))


def test_kitti_as_marigolds_script_measures_it():
    """It crops photograph and truth to the window, masks by shares of that, clips to 1e-5 and 80 m, averages."""
    rng = np.random.default_rng(5)
    true_m = rng.uniform(0.5, 95, (370, 1226)).astype(np.float32)
    true_m[rng.random(true_m.shape) < 0.8] = 0
    pred_m = rng.uniform(-1, 95, (352, 1216)).astype(np.float32)
    protocol = load_protocol("kitti-eigen").model_copy(update={"min_m": 1e-5, "clip_m": (1e-5, 80.0)})
    g, counted = protocol.counted(frame_of(true_m))
    ours = depth_metrics(protocol.fit(pred_m, true_m.shape), g, counted)

    cropped = true_m[370 - 352 :, 5 : 5 + 1216].astype(np.float64)
    mask = np.zeros(cropped.shape, bool)
    mask[int(0.3324324 * 352) : int(0.91351351 * 352), int(0.0359477 * 1216) : int(0.96405229 * 1216)] = True
    mask &= (cropped > 1e-5) & (cropped < 80)
    p, g = np.clip(pred_m.astype(np.float64), 1e-5, 80)[mask], cropped[mask]
    assert ours["abs_rel"] == pytest.approx(np.mean(np.abs(p - g) / g), rel=1e-6)
    assert ours["rmse_m"] == pytest.approx(np.sqrt(np.mean((p - g) ** 2)), rel=1e-6)
    assert ours["delta1"] == pytest.approx(np.mean(np.maximum(p / g, g / p) < 1.25), rel=1e-6)


# Real frames: pixels counted with numpy and OpenCV from the files' integers, without this project


def sample(name, scale, turn=0):
    path = SHARED / "samples" / name
    if not path.exists():
        pytest.skip("the real samples lie beside the project, not in it")
    stored = np.asarray(Image.open(path)).astype(np.uint16)
    return frame_of((stored >> turn | stored << (16 - turn) if turn else stored) / np.float32(scale))


@pytest.mark.parametrize(
    ("name", "pixels_of"),
    [
        ("5", {"garg": 82_930, "eigen": 82_453, "benchmark": 90_728, "garg-frame": 87_504, "moge": 90_839}),
        ("50", {"garg": 89_864, "eigen": 87_203, "benchmark": 96_063, "garg-frame": 94_140, "moge": 96_131}),
    ],
)
def test_pixels_of_real_kitti_frames(name, pixels_of):
    frame = sample(f"kitti/metric3d_demo/depth/{name:0>10}.png", 256)
    assert {crop: pixels(f"kitti-{crop}", frame) for crop in pixels_of} == pixels_of


@pytest.mark.parametrize(
    ("name", "in_crop", "whole"),
    [
        ("metric3d_demo/depth/sync_depth_00000.png", 221_809, 225_121),
        ("metric3d_demo/depth/sync_depth_00050.png", 225_022, 230_598),
        ("unidepth_demo/depth.png", 205_491 - 2_663, 209_294),  # 2,663 pixels of the crop are at 10 m, which ends it
    ],
)
def test_pixels_of_real_nyu_frames(name, in_crop, whole):
    frame = sample(f"nyuv2/{name}", 1000)
    assert (pixels("nyuv2-eigen", frame), pixels("nyuv2-unidepth", frame)) == (in_crop, in_crop)
    assert pixels("nyuv2-moge", frame) == whole


def test_pixels_of_a_real_frame_of_sun():
    frame = sample("sunrgbd/open3d/SUN_depth.png", 1000, turn=3)
    assert pixels("sunrgbd-depthpro", frame) == 251_188
    assert (pixels("sunrgbd-unidepth", frame), pixels("sunrgbd-zoe", frame)) == (243_091, 208_915)


# Frames


def test_the_frames_asked_for_must_be_there():
    pinned = protocols.Frames(count=2, sha256=names_digest(["a/1", "b/2"]))
    protocol = load_protocol("nyuv2-eigen").model_copy(update={"frames": pinned})
    protocol.check_frames([ref("nyuv2", "b/2"), ref("nyuv2", "a/1")])
    asked = r"protocol nyuv2-eigen measures 2 frames of nyuv2 with names of sha256 \w{12}"
    with pytest.raises(ValueError, match=rf"^{asked}, but there are 1 of \w{{12}}$"):
        protocol.check_frames([ref("nyuv2", "a/1")])
    with pytest.raises(ValueError, match="but there are 2 of"):
        protocol.check_frames([ref("nyuv2", "a/1"), ref("nyuv2", "b/3")])
    protocol.check_frames([ref("nyuv2-synthetic", "c/9")])
    with pytest.raises(ValueError, match=r"^protocol nyuv2-eigen measures frames '\*', and there is none$"):
        protocol.check_frames([])


def test_the_digest_of_names_is_that_of_a_sorted_file():
    """As `LC_ALL=C sort names.txt | sha256sum` has it."""
    expected = hashlib.sha256(b"a/1\nb/2\n").hexdigest()
    assert names_digest(["b/2", "a/1"]) == expected


def test_parts_of_diode_are_chosen_by_name():
    refs = [ref("diode", name) for name in ("outdoor/s/1", "indoors/s/2", "indoors/s/1")]
    assert [one.name for one in load_protocol("diode-indoor").select(refs)] == ["indoors/s/1", "indoors/s/2"]
    assert [one.name for one in load_protocol("diode-outdoor").select(refs)] == ["outdoor/s/1"]
    assert len(load_protocol("diode-all").select(refs)) == 3


@pytest.mark.skipif(not LISTS.is_dir(), reason="the publishers' lists lie beside the project, not in it")
@pytest.mark.parametrize(
    ("benchmark", "path", "name"),
    [
        ("nyuv2", "marigold/nyu_depth/labeled/filename_list_test.txt", r"test/(\w+)/rgb_(\d+)\.png "),
        ("kitti", "bts/eigen_test_files_with_gt.txt", r"\S+?/(\w+)/image_02/data/(\d+)\.png (?!None)"),
        ("diode", "marigold/diode_depth/diode_val_all_filename_list.txt", r"(\S+)\.png "),
        ("eth3d", "marigold/eth3d_depth/eth3d_filename_list.txt", r"rgb/(\w+)/images/dslr_images/(\w+)\.JPG "),
        ("ibims1", "ibims/ibims_100.txt", r"ibims/(\w+)_img\.png"),
    ],
)
def test_the_official_frames_are_pinned(benchmark, path, name):
    matches = (re.match(name, line) for line in (LISTS / path).read_text().splitlines())
    refs = [ref(benchmark, "/".join(match.groups())) for match in matches if match]  # 45 of KITTI's lines have no truth
    for protocol in protocols_of(benchmark):
        protocol.check_frames(refs)
        left_out = protocol.select(refs)[-1]
        with pytest.raises(ValueError, match=rf"^protocol {protocol.name} measures \d+ frames of {benchmark}"):
            protocol.check_frames([one for one in refs if one is not left_out])
