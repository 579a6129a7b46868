import io
import json
import struct

import numpy as np
import pytest
from hypothesis import given, strategies as st
from hypothesis.extra.numpy import arrays

from metricgold.images import point_cloud
from metricgold.images.camera import pinhole, points_from_depth
from metricgold.images.point_cloud import ply_comments, write_glb, write_ply

trimesh = pytest.importorskip("trimesh")
RNG = np.random.default_rng(0)
POINTS_M = RNG.normal(0, 3, (50, 3)).astype(np.float32)
RGB = RNG.integers(0, 256, (50, 3), np.uint8)
CLOUD_IN_GLTF = POINTS_M * np.array([1, -1, -1], np.float32)


def written(write, points_m=POINTS_M, rgb=RGB, attributes=None) -> bytes:
    file = io.BytesIO()
    write(file, points_m, rgb, attributes or {"model": "m/3", "source": "Straße\n日本.jpg"})
    return file.getvalue()


def loaded(data: bytes, kind: str):
    return trimesh.load_scene(io.BytesIO(data), file_type=kind).dump()[0]


def chunks_of(glb: bytes) -> tuple[dict, bytes]:
    """The two chunks of a GLB by its specification, chapter 4.4, with every length checked."""
    assert struct.unpack_from("<4sII", glb) == (b"glTF", 2, len(glb))
    found, place = {}, 12
    while place < len(glb):
        length, name = struct.unpack_from("<I4s", glb, place)
        assert length % 4 == 0
        found[name] = glb[place + 8 : place + 8 + length]
        place += 8 + length
    assert place == len(glb)
    return json.loads(found[b"JSON"]), found.get(b"BIN\0", b"")


LONG = {"input": "深度/" + "很长的名字" * 40 + ".jpg", "params": json.dumps(dict.fromkeys(map(str, range(300)), 1.5))}


def by_trimesh(path):
    cloud = trimesh.load_scene(path).dump()[0]
    return cloud.vertices, cloud.colors[:, :3]


def by_plyfile(path):
    vertex = pytest.importorskip("plyfile").PlyData.read(path)["vertex"]
    return np.stack([vertex[axis] for axis in "xyz"], -1), np.stack([vertex[c] for c in ("red", "green", "blue")], -1)


def by_open3d(path):
    cloud = pytest.importorskip("open3d").io.read_point_cloud(str(path))
    return np.asarray(cloud.points), np.asarray(cloud.colors) * 255


def by_meshlab(path):
    meshes = pytest.importorskip("pymeshlab").MeshSet()
    meshes.load_new_mesh(str(path))
    mesh = meshes.current_mesh()
    return mesh.vertex_matrix(), mesh.vertex_color_matrix()[:, :3] * 255


def by_vtk(path):
    reader = pytest.importorskip("vtkmodules.vtkIOPLY").vtkPLYReader()
    to_numpy = pytest.importorskip("vtkmodules.util.numpy_support").vtk_to_numpy
    reader.SetFileName(str(path))
    reader.Update()
    cloud = reader.GetOutput()
    return to_numpy(cloud.GetPoints().GetData()), to_numpy(cloud.GetPointData().GetArray("RGB"))


@pytest.mark.parametrize("attributes", [{}, LONG], ids=["short", "long"])
@pytest.mark.parametrize("read", [by_trimesh, by_plyfile, by_open3d, by_meshlab, by_vtk])
def test_ply_is_read_by_others_with_the_same_metres_and_colours(read, attributes, tmp_path):
    """Those that are not installed are left out; Open3D, MeshLab and VTK are too large for every machine."""
    path = tmp_path / "cloud.ply"
    path.write_bytes(written(write_ply, attributes=attributes))
    points_m, rgb = read(path)
    np.testing.assert_array_equal(np.asarray(points_m, np.float32), POINTS_M)
    np.testing.assert_allclose(rgb, RGB, atol=1e-3)


@pytest.mark.parametrize("attributes", [{"model": "m/3", "source": "Straße\n日本.jpg"}, LONG])
def test_ply_says_its_unit_axes_and_attributes_in_short_lines(attributes):
    head = written(write_ply, attributes=attributes).split(b"end_header\n")[0].decode("ascii").splitlines()
    assert max(map(len, head)) <= 250
    comments: dict[str, str] = {}
    for _, key, text in (line.split(" ", 2) for line in head if line.startswith("comment")):
        comments[key] = comments.get(key, "") + json.loads(text)
    assert comments["unit"] == "metres"
    assert comments["axes"].startswith("x right, y down, z forward")
    assert attributes.items() <= comments.items()


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=700), st.integers(1, 79))
def test_any_text_is_made_up_of_short_lines(text, name_length):
    lines = list(ply_comments("n" * name_length, text))
    assert max(map(len, lines)) <= 250
    assert "".join(json.loads(line.split(" ", 2)[2]) for line in lines) == text


def test_glb_is_read_by_others_with_the_same_metres_and_colours():
    cloud = loaded(written(write_glb), "glb")
    np.testing.assert_array_equal(np.asarray(cloud.vertices, np.float32), CLOUD_IN_GLTF)
    linear = cloud.colors[:, :3] / 255  # the reader rounds to 8 bits and leaves them linear
    srgb = np.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055)
    bright = RGB > 80
    assert np.abs(srgb * 255 - RGB)[bright].max() <= 2


def test_glb_keeps_every_colour():
    every = np.arange(256, dtype=np.uint8)[:, None].repeat(3, axis=1)
    gltf, binary = chunks_of(written(write_glb, np.ones((256, 3), np.float32), every))
    linear = np.frombuffer(binary, "<f4", offset=gltf["bufferViews"][1]["byteOffset"]).reshape(-1, 3)
    srgb = np.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055)
    np.testing.assert_array_equal(np.rint(srgb * 255), every)


@given(arrays(np.float32, (7, 3), elements=st.floats(-1e4, 1e4, width=32)))
def test_glb_holds_what_its_accessors_say(points_m):
    gltf, binary = chunks_of(written(write_glb, points_m, RGB[:7]))
    assert gltf["asset"]["version"] == "2.0"
    assert gltf["asset"]["extras"]["unit"] == "metres"
    assert gltf["buffers"][0]["byteLength"] == len(binary)
    assert gltf["meshes"][0]["primitives"][0]["mode"] == 0
    position, colour = gltf["accessors"]
    stored = np.frombuffer(binary, "<f4", position["count"] * 3).reshape(-1, 3)
    np.testing.assert_array_equal(stored.min(axis=0), np.float32(position["min"]))
    np.testing.assert_array_equal(stored.max(axis=0), np.float32(position["max"]))
    assert sum(view["byteLength"] for view in gltf["bufferViews"]) == len(binary)
    assert [(a["type"], a["componentType"], a["count"]) for a in (position, colour)] == [("VEC3", 5126, 7)] * 2


@pytest.mark.parametrize(("write", "kind", "axes"), [(write_ply, "ply", [1, 1, 1]), (write_glb, "glb", [1, -1, -1])])
def test_what_is_no_depth_leaves_no_point(write, kind, axes):
    depth_m = np.full((3, 4), 2.0, np.float32)
    depth_m[0] = [np.nan, np.inf, 0, -1]
    points_m = points_from_depth(depth_m, pinhole(4.0, 3, 4))
    rgb = RNG.integers(0, 256, (3, 4, 3), np.uint8)
    cloud = loaded(written(write, points_m.reshape(-1, 3), rgb.reshape(-1, 3)), kind)
    np.testing.assert_allclose(np.asarray(cloud.vertices) * axes, points_m[1:].reshape(-1, 3), rtol=1e-6)
    assert (np.asarray(cloud.vertices)[:, 2] * axes[2] == 2).all()


def test_a_glb_of_more_points_than_it_counts_is_refused(monkeypatch):
    assert 24 * point_cloud._MAX_POINTS + 2**20 < 2**32 < 24.2 * point_cloud._MAX_POINTS  # with room for its JSON
    monkeypatch.setattr(point_cloud, "_MAX_POINTS", 49)
    with pytest.raises(ValueError, match="up to 49 points, got 50: write a PLY"):
        written(write_glb)
    assert written(write_glb, POINTS_M[1:], RGB[1:])


def test_a_cloud_without_points_is_a_whole_file():
    nothing = np.full((4, 3), np.nan, np.float32)
    gltf, binary = chunks_of(written(write_glb, nothing, RGB[:4]))
    assert (gltf["scenes"], binary) == ([{}], b"")
    assert "meshes" not in gltf
    assert b"element vertex 0\n" in written(write_ply, nothing, RGB[:4])


@pytest.mark.parametrize("write", [write_ply, write_glb])
def test_bad_shapes_and_taken_names_leave_no_file(write, tmp_path):
    for points_m, rgb in [(POINTS_M, RGB[:3]), (POINTS_M[:, :2], RGB), (POINTS_M, RGB / 255)]:
        with pytest.raises(ValueError, match="were expected"):
            write(tmp_path / "a", points_m, rgb, {})
    with pytest.raises(ValueError, match="'unit'"):
        write(tmp_path / "a", POINTS_M, RGB, {"unit": "feet"})
    for name in ("größe", "k\nelement vertex 7"):  # would break a PLY's head
        with pytest.raises(ValueError, match="name of an attribute"):
            write(tmp_path / "a", POINTS_M, RGB, {name: "text"})
    assert not list(tmp_path.iterdir())
    write(tmp_path / "a", POINTS_M, RGB, {})
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert written(write) == written(write)
