"""Recordings of four kinds become a team's own data; what they do not say is asked for."""

import json

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from metricgold.cli import main
from metricgold.datasets.import_frames import import_frames
from metricgold.datasets.readers import list_frames, open_dataset

CAMERA = (40.0, 44.0, 16.0, 12.0)
KEYED = dict(zip(("fx", "fy", "cx", "cy"), CAMERA, strict=True)) | {"width": 32, "height": 24}


def write_rgb(path, size=(24, 32)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((*size, 3), 90, np.uint8)).save(path)


def write_depth(path, stored=2000, size=(24, 32)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full(size, stored, np.uint16)).save(path)


def write_json(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def only(raw):
    (frame,) = open_dataset("mine", raw)
    return frame


def write_tum(folder):
    for time in ("1.000000", "2.000000", "3.000000"):
        write_rgb(folder / f"rgb/{time}.png")
    for time in ("1.015000", "1.985000", "3.030000"):
        write_depth(folder / f"depth/{time}.png", 10_000)
    rgbs = "".join(f"{time} rgb/{time}.png\n" for time in ("1.000000", "2.000000", "3.000000"))
    depths = "".join(f"{time} depth/{time}.png\n" for time in ("1.015000", "1.985000", "3.030000"))
    (folder / "rgb.txt").write_text(f"# color images\n{rgbs}")
    (folder / "depth.txt").write_text(f"# depth maps\n{depths}")


def test_tum_pairs_what_is_nearest_in_time(tmp_path):
    write_tum(tmp_path)
    with pytest.raises(ValueError, match=r"tum states no camera; give --camera"):
        import_frames(tmp_path)
    done = import_frames(tmp_path, camera=(40, 44, 15.5, 11.5))
    assert (done.layout, done.frames, done.unit, done.kind) == ("tum", 2, 0.0002, "planar")
    refs = list_frames("mine", tmp_path).frames
    assert [ref.depth_path.name for ref in refs] == ["1.015000.png", "1.985000.png"]
    frame = next(open_dataset("mine", tmp_path))
    np.testing.assert_allclose(frame.intrinsics, [[40, 0, 16], [0, 44, 12], [0, 0, 1]])
    np.testing.assert_allclose(frame.planar_depth_m, 2, rtol=1e-6)


def test_associations_of_tum_in_either_order(tmp_path):
    write_tum(tmp_path)
    rows = ["1.0 rgb/1.000000.png 1.015 depth/1.015000.png", "3.03 depth/3.030000.png 3.0 rgb/3.000000.png"]
    (tmp_path / "associations.txt").write_text("\n".join(rows))
    import_frames(tmp_path, camera=(40, 44, 15.5, 11.5), unit="millimetre")
    refs = list_frames("mine", tmp_path).frames
    assert [ref.depth_path.name for ref in refs] == ["1.015000.png", "3.030000.png"]
    assert refs[0].camera.metres_per_unit == 0.001


def test_polycam_with_its_smaller_depth(tmp_path):
    for prefix, fx in (("", 1.0), ("corrected_", 40.0)):
        write_json(tmp_path / f"room/keyframes/{prefix}cameras/17.json", KEYED | {"fx": fx, "t_00": 1})
        write_rgb(tmp_path / f"room/keyframes/{prefix}images/17.jpg")
    write_json(tmp_path / "room/keyframes/corrected_cameras/18.json", KEYED)  # without its files
    write_depth(tmp_path / "room/keyframes/depth/17.png", size=(6, 8))
    done = import_frames(tmp_path)
    assert done == ("polycam", 1, 1, 1, "millimetre", "planar")
    frame = only(tmp_path)
    assert frame.scene == "room" and frame.rgb.shape == (24, 32, 3)
    np.testing.assert_array_equal(frame.intrinsics, [[40, 0, 16], [0, 44, 12], [0, 0, 1]])
    np.testing.assert_array_equal(frame.planar_depth_m, np.float32(2))


@pytest.mark.parametrize(
    "intrinsics",
    [[40, 0, 16, 0, 44, 12, 0, 0, 1], [[40, 0, 16], [0, 44, 12], [0, 0, 1]], [[40, 0, 0], [0, 44, 0], [16, 12, 1]]],
    ids=str,
)
def test_cameras_of_arkit_by_rows_or_columns(tmp_path, intrinsics):
    write_json(tmp_path / "frame_00012.json", {"intrinsics": intrinsics, "cameraPoseARFrame": [0] * 16})
    write_rgb(tmp_path / "frame_00012.jpg")
    write_depth(tmp_path / "depth_00012.png", size=(6, 8))
    import_frames(tmp_path)
    np.testing.assert_array_equal(only(tmp_path).intrinsics, [[40, 0, 16], [0, 44, 12], [0, 0, 1]])


def write_transforms(folder, **changes):
    frame = {"file_path": "./images/1.png", "depth_file_path": "depth/1.png", "transform_matrix": [], "fl_x": 80}
    camera = {"fl_x": 1, "fl_y": 88, "cx": 32, "cy": 24, "w": 64, "h": 48, "camera_model": "OPENCV", "k1": 0.0}
    write_json(folder / "transforms.json", camera | {"frames": [frame]} | changes)
    write_rgb(folder / "images/1.png")
    write_depth(folder / "depth/1.png")


def test_transforms_of_nerfstudio(tmp_path):
    """A frame's own numbers come first; the camera is scaled from the size that it is given for."""
    write_transforms(tmp_path)
    with pytest.raises(
        ValueError, match="nerfstudio does not say whether depth is planar or ray distance; give --kind"
    ):
        import_frames(tmp_path)
    import_frames(tmp_path, kind="ray distance")
    frame = only(tmp_path)
    np.testing.assert_array_equal(frame.intrinsics, [[40, 0, 16], [0, 44, 12], [0, 0, 1]])
    assert frame.planar_depth_m[12, 16] == pytest.approx(2, rel=1e-3) and frame.planar_depth_m[0, 0] < 1.9


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"camera_model": "OPENCV_FISHEYE"}, r"frames\.0: camera_model: expected a pinhole, found 'OPENCV_FISHEYE'"),
        ({"k1": 0.1}, r"frames\.0: k1: expected images without distortion"),
        ({"fl_y": "wide"}, r"frames\.0: fl_y: expected a number of pixels, found 'wide'"),
        ({"frames": {}}, r"frames: expected a list of frames"),
        ({"frames": [{"file_path": "1.png"}]}, r"frames\.0: expected file_path and depth_file_path"),
        ({"frames": []}, r"names 0 frames, and none of them has its files"),
    ],
    ids=str,
)
def test_transforms_that_cannot_be_read_name_the_place(tmp_path, changes, message):
    write_transforms(tmp_path, **changes)
    with pytest.raises(ValueError, match=message):
        import_frames(tmp_path, kind="planar")
    assert not (tmp_path / "frames.csv").exists() and not (tmp_path / "dataset.yaml").exists()


def test_a_file_outside_the_folder_is_refused(tmp_path):
    write_transforms(tmp_path / "mine")
    write_depth(tmp_path / "depth.png")
    frame = {"file_path": "images/1.png", "depth_file_path": "../depth.png"}
    write_transforms(tmp_path / "mine", frames=[frame], fl_x=80)
    with pytest.raises(ValueError, match=r"\.\./depth\.png: is not below .*mine"):
        import_frames(tmp_path / "mine", kind="planar")


def test_what_is_there_is_not_overwritten_and_two_kinds_are_not_mixed(tmp_path):
    with pytest.raises(
        ValueError, match=r"neither it nor a folder in it holds one of transforms\.json \(nerfstudio\), "
    ):
        import_frames(tmp_path)
    write_tum(tmp_path / "a")
    write_transforms(tmp_path / "b")
    with pytest.raises(ValueError, match=r"recordings of one kind were expected; a is tum, b is nerfstudio"):
        import_frames(tmp_path, kind="planar")
    (tmp_path / "b/transforms.json").unlink()
    with pytest.raises(ValueError, match=r"dataset\.yaml: depth\.unit: .*found 'inch'"):
        import_frames(tmp_path, camera=(40, 44, 15.5, 11.5), unit="inch")
    import_frames(tmp_path, camera=(40, 44, 15.5, 11.5))
    with pytest.raises(ValueError, match=r"dataset\.yaml: exists; move it away to import anew"):
        import_frames(tmp_path, camera=(40, 44, 15.5, 11.5))


def test_on_the_command_line(tmp_path):
    write_tum(tmp_path)
    wrong = CliRunner().invoke(main, ["import-frames", str(tmp_path), "--camera", "525,525"])
    assert wrong.exit_code == 2 and "expected four numbers" in wrong.output
    done = CliRunner().invoke(main, ["import-frames", str(tmp_path), "--camera", "40,44,15.5,11.5", "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["frames"] == 2
