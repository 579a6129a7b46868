"""Virtual KITTI 2's reader on a miniature tree."""

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
import pytest
from PIL import Image

from metricgold.datasets.readers import list_frames, open_dataset, read_frame

HEIGHT, WIDTH = 6, 10


def write_frame(raw, scene="Scene01", variation="clone", camera=0, frame=0, *, centimetres=None):
    folder = raw / scene / variation
    units = np.full((HEIGHT, WIDTH), 1234, dtype=np.uint16) if centimetres is None else centimetres
    for kind in ("rgb", "depth"):
        (folder / "frames" / kind / f"Camera_{camera}").mkdir(parents=True, exist_ok=True)
    rgb = Image.fromarray(np.full((HEIGHT, WIDTH, 3), 90, dtype=np.uint8))
    rgb.save(folder / f"frames/rgb/Camera_{camera}/rgb_{frame:05d}.jpg")
    Image.fromarray(units).save(folder / f"frames/depth/Camera_{camera}/depth_{frame:05d}.png")
    intrinsics = folder / "intrinsic.txt"
    if not intrinsics.exists():
        intrinsics.write_text("frame cameraID K[0,0] K[1,1] K[0,2] K[1,2]\n")
    with intrinsics.open("a") as file:
        file.write(f"{frame} {camera} {725.0087 + frame} 725.0087 4.5 2.5\n")


def test_centimetres_sky_and_intrinsics(tmp_path):
    units = np.array([[1, 1234, 65534], [65535, 0, 300]], dtype=np.uint16)
    units = np.pad(units, ((0, HEIGHT - 2), (0, WIDTH - 3)), constant_values=256)
    write_frame(tmp_path, centimetres=units)
    (frame,) = open_dataset("vkitti2", tmp_path)
    np.testing.assert_allclose(frame.planar_depth_m[:2, :3], [[0.01, 12.34, 655.34], [0, 0, 3]], rtol=1e-6)
    np.testing.assert_array_equal(frame.valid_mask[:2, :3], [[True, True, True], [False, False, True]])
    assert np.argwhere(frame.no_surface).tolist() == [[1, 0]]  # 65535; nobody measured where there is a 0
    # The file's principal point counts from the centre of the first pixel, a frame's from its corner.
    np.testing.assert_array_equal(frame.intrinsics, [[725.0087, 0, 5], [0, 725.0087, 3], [0, 0, 1]])


def test_all_variations_and_both_cameras_in_order(tmp_path):
    for variation in ("rain", "clone"):
        for camera in (1, 0):
            for number in (1, 0):
                write_frame(tmp_path, variation=variation, camera=camera, frame=number)
    frames = list(open_dataset("vkitti2", tmp_path))
    assert [frame.name for frame in frames] == [
        f"Scene01/{variation}/Camera_{camera}/{number:05d}"
        for variation in ("clone", "rain")
        for camera in (0, 1)
        for number in (0, 1)
    ]
    assert frames[1].intrinsics[0, 0] == 726.0087  # of its own frame


def test_missing_members_and_intrinsics_are_counted(tmp_path):
    for number in range(4):
        write_frame(tmp_path, frame=number)
    frames = tmp_path / "Scene01/clone/frames"
    (frames / "depth/Camera_0/depth_00001.png").unlink()
    (frames / "rgb/Camera_0/rgb_00002.jpg").unlink()
    lines = (tmp_path / "Scene01/clone/intrinsic.txt").read_text().splitlines(keepends=True)
    (tmp_path / "Scene01/clone/intrinsic.txt").write_text("".join(lines[:-1]))
    listing = list_frames("vkitti2", tmp_path)
    assert [ref.name[-1] for ref in listing.frames] == ["0"]
    assert listing.gaps == {"depth missing": 1, "intrinsics missing": 1, "rgb missing": 1}


@pytest.mark.parametrize(
    "row", ["0 0 725 725 620.5", "0 0 725 725 620.5 187 1", "0 0 725 x 620.5 187", "0 0 0 725 1 1"]
)
def test_a_row_that_is_no_camera_is_named(tmp_path, row):
    write_frame(tmp_path)
    (tmp_path / "Scene01/clone/intrinsic.txt").write_text(f"frame cameraID K K K K\n{row}\n")
    with pytest.raises(ValueError, match=rf"intrinsic\.txt: cannot be read: expected frame, camera, .* got '{row}'"):
        list_frames("vkitti2", tmp_path)


def test_names_that_are_no_numbers_have_no_intrinsics(tmp_path):
    write_frame(tmp_path)
    for kind, suffix in (("rgb", "jpg"), ("depth", "png")):
        folder = tmp_path / f"Scene01/clone/frames/{kind}/Camera_0"
        (folder / f"{kind}_copy.{suffix}").write_bytes((folder / f"{kind}_00000.{suffix}").read_bytes())
    listing = list_frames("vkitti2", tmp_path)
    assert len(listing.frames) == 1
    assert listing.gaps == {"intrinsics missing": 1}


def test_a_wrong_checksum_of_depth_is_found(tmp_path):
    """Pillow alone would hand out other depth."""
    write_frame(tmp_path)
    path = tmp_path / "Scene01/clone/frames/depth/Camera_0/depth_00000.png"
    data = bytearray(path.read_bytes())
    data[data.index(b"IDAT") + 12] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"depth_00000\.png: cannot be read: broken PNG file"):
        list(open_dataset("vkitti2", tmp_path))


def test_an_8_bit_depth_is_refused(tmp_path):
    write_frame(tmp_path)
    path = tmp_path / "Scene01/clone/frames/depth/Camera_0/depth_00000.png"
    Image.fromarray(np.zeros((HEIGHT, WIDTH), dtype=np.uint8)).save(path)
    with pytest.raises(ValueError, match=r"depth_00000\.png: cannot be read: expected mode I;16, got L"):
        list(open_dataset("vkitti2", tmp_path))


def test_a_truncated_photograph_is_named(tmp_path):
    write_frame(tmp_path)
    path = tmp_path / "Scene01/clone/frames/rgb/Camera_0/rgb_00000.jpg"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ValueError, match=r"rgb_00000\.jpg: cannot be read: .*[Tt]runcated"):
        list(open_dataset("vkitti2", tmp_path))


def test_scenes_stay_on_one_side(tmp_path):
    for scene in ("Scene01", "Scene02", "Scene06"):
        write_frame(tmp_path, scene=scene)
        write_frame(tmp_path, scene=scene, variation="fog")
    by_split = {
        split: {ref.scene for ref in list_frames("vkitti2", tmp_path, split=split).frames}
        for split in ("train", "val", "test")
    }
    assert by_split == {"train": {"Scene02"}, "val": {"Scene06"}, "test": {"Scene01"}}


def test_references_travel_between_processes(tmp_path):
    write_frame(tmp_path)
    (ref,) = list_frames("vkitti2", tmp_path).frames
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        frame = pool.submit(read_frame, ref).result()
    np.testing.assert_array_equal(frame.planar_depth_m, read_frame(ref).planar_depth_m)


def test_unknown_names(tmp_path):
    with pytest.raises(
        ValueError, match="unknown data set 'cityscapes'; known: hypersim, vkitti2, tartanair, tartanair2"
    ):
        open_dataset("cityscapes", tmp_path)
    with pytest.raises(ValueError, match="no frames of vkitti2; metricgold download vkitti2 fills it"):
        open_dataset("vkitti2", tmp_path)
