"""ETH3D's reader on a miniature scene in the publisher's layout."""

import tracemalloc

import numpy as np
import pytest
from PIL import Image

from metricgold.datasets import eth3d
from metricgold.datasets.readers import list_frames, open_dataset, read_frame
from tests.support import SHARED

LIST = SHARED / "samples/metadata/marigold/eth3d_depth/eth3d_filename_list.txt"
HEIGHT, WIDTH = 4, 6
CAMERAS = """\
# Camera list with one line of data per camera:
#   CAMERA_ID, MODEL, WIDTH, HEIGHT, PARAMS[]
# Number of cameras: 2
0 PINHOLE 6 4 3.5 3.25 3.1 1.9
1 PINHOLE 12 8 7 7 6 4
"""
# The photograph's camera of the scene courtyard, as it is published.
LENS = (
    "THIN_PRISM_FISHEYE 6048 4032 3411.42 3410.02 3041.29 2014.07 "
    "0.21047 0.21102 -5.36231e-06 0.00051541 -0.158023 0.406856 -8.46499e-05 0.000861313"
)


def write_scene(raw, names=("DSC_0001",), scene="courtyard", cameras=CAMERAS):
    calibration = raw / scene / "dslr_calibration_jpg"
    for folder in (calibration, *(raw / scene / kind / "dslr_images" for kind in ("images", "ground_truth_depth"))):
        folder.mkdir(parents=True, exist_ok=True)
    (calibration / "cameras.txt").write_text(cameras)
    rows = [f"{i} 1 0 0 0 0.5 0.25 -7 0 dslr_images/{name}.JPG\n1.5 2.5 -1 3 4 17\n" for i, name in enumerate(names)]
    (calibration / "images.txt").write_text("# IMAGE_ID, QW, ..., NAME\n#   POINTS2D[]\n" + "".join(rows))
    for name in names:
        Image.new("RGB", (WIDTH, HEIGHT), (10, 200, 90)).save(raw / scene / f"images/dslr_images/{name}.JPG")
        write_depth(raw, np.full((HEIGHT, WIDTH), 2.5), scene, name)


def write_depth(raw, depth_m, scene="courtyard", name="DSC_0001"):
    depth_m.astype("<f4").tofile(raw / scene / f"ground_truth_depth/dslr_images/{name}.JPG")


def write_mask(raw, mask, name="DSC_0001"):
    folder = raw / "courtyard/masks_for_images/dslr_images"
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(mask.astype(np.uint8)).save(folder / f"{name}.png")


def test_depth_by_rows_and_its_mask(tmp_path):
    write_scene(tmp_path)
    depth_m = np.arange(24, dtype=np.float32).reshape(HEIGHT, WIDTH) / 4  # 0 is none, as are:
    depth_m[3, 3:] = np.inf, np.nan, -1
    write_depth(tmp_path, depth_m)
    mask = np.zeros((HEIGHT, WIDTH))
    mask[1, 0], mask[1, 1], mask[3, 3] = 1, 2, 1  # looks other than the scan; the scan is wrong; no depth anyway
    write_mask(tmp_path, mask)
    (frame,) = open_dataset("eth3d", tmp_path)
    assert (frame.scene, frame.name) == ("courtyard", "courtyard/DSC_0001")
    expected = depth_m.copy()
    expected[0, 0] = expected[3, 3:] = 0
    np.testing.assert_array_equal(frame.layers["unmasked_depth_m"], expected)
    np.testing.assert_array_equal(frame.layers["unmasked"], expected > 0)
    expected[1, :2] = 0  # were 1.5 and 1.75 m
    np.testing.assert_array_equal(frame.planar_depth_m, expected)
    np.testing.assert_array_equal(frame.valid_mask, expected > 0)
    assert frame.valid_mask.sum() == 18
    np.testing.assert_array_equal(frame.intrinsics, [[3.5, 0, 3.1], [0, 3.25, 1.9], [0, 0, 1]])


def test_a_photograph_without_a_mask_image_is_not_masked(tmp_path):
    write_scene(tmp_path, ("DSC_0001", "DSC_0002"))
    write_mask(tmp_path, np.ones((HEIGHT, WIDTH)), "DSC_0002")
    write_mask(tmp_path, np.ones((HEIGHT, WIDTH)), "DSC_0009")  # of a photograph that is not among them
    assert [int(frame.valid_mask.sum()) for frame in open_dataset("eth3d", tmp_path)] == [24, 0]


def test_the_nearest_pinhole_of_a_published_lens():
    """It maps rays to the pixels that the lens puts them on, 15 pixels off in the mean; fx of the file is 71 off."""
    camera = eth3d.parse_camera(f"0 {LENS}")[1]
    intrinsics = eth3d.nearest_pinhole(camera)
    rng = np.random.default_rng(0)
    rays = np.stack([rng.uniform(-1.1, 1.1, 200_000), rng.uniform(-0.75, 0.75, 200_000)], axis=-1)
    # The formula again: the angle to the axis instead of its tangent, then the polynomial.
    radius = np.hypot(*rays.T)
    u, v = rays.T * np.arctan(radius) / radius
    _, _, _, fx, fy, cx, cy, k1, k2, p1, p2, k3, k4, sx1, sy1 = camera
    r2 = u**2 + v**2
    radial = 1 + k1 * r2 + k2 * r2**2 + k3 * r2**3 + k4 * r2**4
    x = fx * (u * radial + 2 * p1 * u * v + p2 * (r2 + 2 * u**2) + sx1 * r2) + cx
    y = fy * (v * radial + 2 * p2 * u * v + p1 * (r2 + 2 * v**2) + sy1 * r2) + cy
    inside = (x > 0) & (x < 6048) & (y > 0) & (y < 4032)
    pixels, rays = np.stack([x, y], axis=-1)[inside], rays[inside]

    def rms_px(matrix):
        return np.sqrt(((rays * matrix.diagonal()[:2] + matrix[:2, 2] - pixels) ** 2).sum(axis=-1).mean())

    assert rms_px(intrinsics) == pytest.approx(15, abs=2)
    assert rms_px(np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])) == pytest.approx(71, abs=5)
    np.testing.assert_allclose(intrinsics.diagonal()[:2], [3300, 3310], atol=1)
    undone = eth3d.undo_lens((pixels - [cx, cy]) / [fx, fy], np.array(camera[7:]))
    np.testing.assert_allclose(undone[:, :2] / undone[:, 2:], rays, atol=1e-7)


def test_thumbnails_and_missing_members(tmp_path):
    write_scene(tmp_path, ("DSC_0001", "DSC_0002", "DSC_0003"))
    scene = tmp_path / "courtyard"
    (scene / "images/dslr_images/DSC_0001.JPG.jpg").write_bytes(b"a thumbnail")
    (scene / "images/dslr_images/DSC_0002.JPG").unlink()
    (scene / "ground_truth_depth/dslr_images/DSC_0003.JPG").unlink()
    write_scene(tmp_path, ("DSC_0004",), scene="meadow")
    (tmp_path / "meadow/dslr_calibration_jpg/images.txt").unlink()
    listing = list_frames("eth3d", tmp_path)
    assert [ref.name for ref in listing.frames] == ["courtyard/DSC_0001"]
    assert listing.gaps == {"depth missing": 1, "intrinsics missing": 1, "rgb missing": 1}


@pytest.mark.parametrize("num_bytes", [0, 95, 97, 6 * 4 * 2])
def test_a_depth_file_of_another_size(tmp_path, num_bytes):
    write_scene(tmp_path)
    (tmp_path / "courtyard/ground_truth_depth/dslr_images/DSC_0001.JPG").write_bytes(bytes(num_bytes))
    expected = (
        rf"ground_truth_depth/dslr_images/DSC_0001\.JPG: .*expected 96 bytes, float32 of 6 x 4 .* got {num_bytes}$"
    )
    with pytest.raises(ValueError, match=expected):
        list(open_dataset("eth3d", tmp_path))


def test_a_mask_of_another_size(tmp_path):
    write_scene(tmp_path)
    write_mask(tmp_path, np.zeros((2, 3)))
    with pytest.raises(ValueError, match=r"DSC_0001\.png: expected shape \[4, 6\], got \[2, 3\]"):
        list(open_dataset("eth3d", tmp_path))


def test_a_photograph_of_another_size_than_its_camera(tmp_path):
    write_scene(tmp_path)
    Image.new("RGB", (WIDTH // 2, HEIGHT // 2)).save(tmp_path / "courtyard/images/dslr_images/DSC_0001.JPG")
    with pytest.raises(ValueError, match=r"images/DSC_0001\.JPG: is 3 x 2, expected 6 x 4 as of its camera"):
        list(open_dataset("eth3d", tmp_path))


@pytest.mark.parametrize(
    "row",
    [
        "0 PINHOLE 6 4 3.5 3.25 3.1",
        "0 OPENCV 6 4 3 3 3 2 0 0 0 0",
        "0 PINHOLE 6 4 0 3 3 2",
        "0",
        "0 PINHOLE 6 4 x 3 3 2",
    ],
)
def test_a_row_that_is_no_camera(tmp_path, row):
    write_scene(tmp_path, cameras=f"# cameras\n{row}\n")
    with pytest.raises(
        ValueError, match=rf"cameras\.txt: .*expected a camera THIN_PRISM_FISHEYE or PINHOLE .*'{row}'$"
    ):
        list_frames("eth3d", tmp_path)


def test_a_photograph_of_an_unknown_camera(tmp_path):
    write_scene(tmp_path, cameras="3 PINHOLE 6 4 3.5 3.25 3.1 1.9\n")
    with pytest.raises(ValueError, match=r"images\.txt: .*the id of a camera of cameras\.txt .*DSC_0001\.JPG'$"):
        list_frames("eth3d", tmp_path)


def test_a_lens_that_cannot_be_undone(tmp_path):
    write_scene(tmp_path, cameras="0 THIN_PRISM_FISHEYE 6 4 3 3 3 2 -9 0 0 0 0 0 0 0\n")
    with pytest.raises(ValueError, match=r"images/DSC_0001\.JPG: .*the distortion \[-9\.0, .* cannot be undone"):
        list(open_dataset("eth3d", tmp_path))


def test_memory_of_a_whole_photograph(tmp_path):
    """6048 x 4032: rgb, depth, mask and the layers without and before the mask are 317 MB; never is twice that held."""
    height, width = 4032, 6048
    write_scene(tmp_path, cameras=f"0 {LENS}\n")
    Image.new("RGB", (width, height)).save(tmp_path / "courtyard/images/dslr_images/DSC_0001.JPG")
    depth_m = np.full((height, width), np.inf, "<f4")
    depth_m[::4] = 3
    write_depth(tmp_path, depth_m)
    mask = np.zeros((height, width), np.uint8)
    mask[:, :1000] = 2
    write_mask(tmp_path, mask)
    (ref,) = list_frames("eth3d", tmp_path).frames
    del depth_m, mask
    tracemalloc.start()
    frame = read_frame(ref)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert frame.valid_mask.sum() == height // 4 * (width - 1000)
    held = sum(array.nbytes for array in (frame.rgb, frame.planar_depth_m, frame.valid_mask, *frame.layers.values()))
    assert held == height * width * (3 + 4 + 1 + 1 + 4)
    assert peak < 1.5 * held


@pytest.mark.skipif(not LIST.exists(), reason="the list lies beside the project, not in it")
def test_the_454_of_the_list(tmp_path):
    rows = [line.split()[0].split("/") for line in LIST.read_text().splitlines()]
    by_scene = {}
    for _, scene, _, _, name in rows:
        by_scene.setdefault(scene, []).append(name.removesuffix(".JPG"))
    for scene, names in by_scene.items():
        write_scene(tmp_path, names, scene)
    write_scene(tmp_path, ("DSC_7000",), "door")  # of the publisher's test part
    frames = list_frames("eth3d", tmp_path, split="test").frames
    assert len(frames) == 454
    assert {ref.name for ref in frames} == {f"{scene}/{name}" for scene, names in by_scene.items() for name in names}
