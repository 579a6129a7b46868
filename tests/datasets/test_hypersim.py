"""HyperSim's reader on miniature scenes in the data set's own formats."""

import zlib

import h5py
import numpy as np
import pytest

from metricgold.datasets.arrays import read_hdf5, read_size
from metricgold.datasets.readers import hypersim, list_frames, open_dataset, read_frame
from metricgold.datasets.synthetic.archives import hypersim_cam_from_uv
from metricgold.datasets.synthetic.render import render_scene
from metricgold.datasets.synthetic.synthesize import RECIPES
from metricgold.images.camera import rays_from_intrinsics
from metricgold.params.sections import Synthesize
from tests.support.hypersim import NOMINAL_CAMERA, write_cameras

HEIGHT, WIDTH = 12, 16
TILTED = (0.58, 0.0, -0.07, 0.0, 0.43, 0.09, 0.0, 0.004, -1.004)
SHIFTED = (0.5774, 0.0, 0.11, 0.0, 0.433, -0.08, 0.0, 0.0, -1.0)
STEEP = (0.55, 0.01, 0.10, 0.0, 0.41, -0.12, 0.03, 0.09, -1.02)  # leans both ways


def write_hdf5(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file["dataset"] = array


def write_frame(raw, scene="ai_001_001", camera="00", frame="0000", *, distance=None, colour=None, entity=None):
    images = raw / scene / "images"
    geometry = images / f"scene_cam_{camera}_geometry_hdf5"
    distance = np.full((HEIGHT, WIDTH), 2.0) if distance is None else distance
    colour = np.full((HEIGHT, WIDTH, 3), 0.5) if colour is None else colour
    write_hdf5(geometry / f"frame.{frame}.depth_meters.hdf5", distance.astype(np.float16))
    write_hdf5(images / f"scene_cam_{camera}_final_hdf5" / f"frame.{frame}.color.hdf5", colour.astype(np.float16))
    if entity is not None:
        write_hdf5(geometry / f"frame.{frame}.render_entity_id.hdf5", entity.astype(np.int32))


@pytest.fixture
def raw(tmp_path):
    write_cameras(tmp_path, {"ai_001_001": NOMINAL_CAMERA, "ai_002_001": TILTED})
    return tmp_path


@pytest.mark.parametrize("camera", [NOMINAL_CAMERA, TILTED])
def test_a_wall_across_the_axis_becomes_flat(raw, camera):
    """A wall 3 m along the axis: its distance grows to the border, its planar depth does not."""
    write_cameras(raw, {"ai_001_001": camera})
    rays = hypersim.rays_from_camera(camera, HEIGHT, WIDTH)
    write_frame(raw, distance=3 * np.linalg.norm(rays, axis=-1) / rays[..., 2])
    (frame,) = open_dataset("hypersim", raw)
    np.testing.assert_allclose(frame.planar_depth_m, 3, rtol=2**-11)  # float16


# Exactness, against formulas that share nothing with the reader

# Planes in camera space, y up, z backwards: floor, ceiling, walls; no wall is square to the axis.
NORMALS = np.array([(0, 1, 0), (0, -1, 0.02), (1, 0, 0.3), (-1, 0, 0.2), (0.1, 0.05, 1)])
OFFSETS = np.array([-1.6, -1.4, -3.1, -3.4, -7.3])  # a point is on a plane where its product with the normal is this


def see_room(camera, height, width):
    """Distance and planar depth of every pixel, by intersecting each ray with each plane; float64 [H, W] each."""
    distance, planar = np.empty((height, width)), np.empty((height, width))
    for row, column in np.ndindex(height, width):
        u, v = -1 + (2 * column + 1) / width, 1 - (2 * row + 1) / height
        ray = np.array([camera[3 * i] * u + camera[3 * i + 1] * v + camera[3 * i + 2] for i in range(3)])
        with np.errstate(divide="ignore"):
            times = OFFSETS / (NORMALS @ ray)
        nearest = times[times > 0].min()
        distance[row, column] = nearest * np.sqrt((ray**2).sum())
        planar[row, column] = -nearest * ray[2]
    return distance, planar


def by_constant_focal(distance):
    """What everyone does: one focal length for all scenes, 886.81 px of 1024."""
    height, width = distance.shape
    x, y = np.meshgrid(np.arange(width) + 0.5 - width / 2, np.arange(height) + 0.5 - height / 2)
    focal_px = 886.81 / 1024 * width
    return distance * focal_px / np.sqrt(x**2 + y**2 + focal_px**2)


@pytest.mark.parametrize(
    ("camera", "least_error"),
    [(NOMINAL_CAMERA, 0), (SHIFTED, 0.05), (TILTED, 0.05), (STEEP, 0.05)],
    ids=["nominal", "shifted", "tilted", "steep"],
)
def test_planar_depth_is_exact_everywhere_where_a_constant_focal_is_not(raw, camera, least_error):
    distance, planar = see_room(camera, 48, 64)
    write_cameras(raw, {"ai_001_001": camera})
    write_frame(raw, distance=distance, colour=np.ones((48, 64, 3)))
    (frame,) = open_dataset("hypersim", raw)
    assert frame.valid_mask.all()
    assert _worst(frame.planar_depth_m, planar) < 2**-11 + 1e-6  # half a step of float16; the bound is 1e-3
    wrong = _worst(by_constant_focal(distance.astype(np.float16).astype(np.float64)), planar)
    assert wrong > least_error if least_error else wrong < 1e-3


@pytest.mark.parametrize("scene_index", range(4))
def test_rendered_scenes_keep_their_planar_depth(raw, scene_index):
    params = Synthesize(version=1, num_train_scenes=4, num_test_scenes=1, frames_per_scene=1, height=24, width=32)
    (truth,) = render_scene(RECIPES["hypersim-synthetic"], params, scene_index)
    write_cameras(raw, {"ai_001_001": hypersim_cam_from_uv(scene_index, 24, 32).ravel().tolist()})
    distance = np.where(np.isfinite(truth.ray_distance_m), truth.ray_distance_m, np.nan)
    write_frame(raw, distance=distance, colour=truth.radiance, entity=truth.entity)
    (frame,) = open_dataset("hypersim", raw)
    assert _worst(frame.planar_depth_m[frame.valid_mask], truth.planar_depth_m[frame.valid_mask]) < 1e-3
    np.testing.assert_array_equal(frame.valid_mask, np.isfinite(truth.planar_depth_m))


def _worst(depth_m, truth_m):
    return abs(depth_m / truth_m - 1).max()


def test_pixel_centres_lie_half_a_pixel_in():
    """In a picture of two by two pixels the centres are at u, v = -1/2 and 1/2."""
    rays = hypersim.rays_from_camera((1, 0, 0, 0, 1, 0, 0, 0, -1), 2, 2)
    np.testing.assert_array_equal(rays[..., 0], [[-0.5, 0.5], [-0.5, 0.5]])
    np.testing.assert_array_equal(rays[..., 1], [[-0.5, -0.5], [0.5, 0.5]])  # y down
    np.testing.assert_array_equal(rays[..., 2], 1)


def test_pinhole_fit_is_exact_for_a_shifted_pinhole():
    camera = (0.6, 0, -0.1, 0, 0.45, 0.2, 0, 0, -1)
    rays = hypersim.rays_from_camera(camera, HEIGHT, WIDTH)
    intrinsics = hypersim.fit_pinhole(rays)
    np.testing.assert_allclose(rays_from_intrinsics(intrinsics, HEIGHT, WIDTH), rays / rays[..., 2:], atol=1e-12)


def test_pinhole_fit_is_the_least_squares_one():
    rays = hypersim.rays_from_camera(TILTED, HEIGHT, WIDTH)
    best = _squared_error(hypersim.fit_pinhole(rays), rays)
    rng = np.random.default_rng(0)
    for _ in range(50):
        nudged = hypersim.fit_pinhole(rays)
        nudged[[0, 0, 1, 1], [0, 2, 1, 2]] += rng.normal(scale=0.05, size=4)
        assert _squared_error(nudged, rays) > best


def _squared_error(intrinsics, rays):
    pixels = rays / rays[..., 2:] @ intrinsics.T
    y, x = np.mgrid[0.5:HEIGHT, 0.5:WIDTH]
    return ((pixels[..., 0] - x) ** 2 + (pixels[..., 1] - y) ** 2).sum()


def test_nan_and_entity_minus_one_are_invalid(raw):
    distance, entity = np.full((HEIGHT, WIDTH), 2.0), np.full((HEIGHT, WIDTH), 7)
    distance[0, 0], entity[5, 5] = np.nan, -1
    write_frame(raw, distance=distance, entity=entity)
    (frame,) = open_dataset("hypersim", raw)
    assert sorted(zip(*np.nonzero(~frame.valid_mask), strict=True)) == [(0, 0), (5, 5)]


def test_without_entity_ids_nan_stands_in_and_is_told(raw, caplog):
    """Where nothing was hit the colour says nothing about exposure."""
    distance, colour = np.full((HEIGHT, WIDTH), 2.0), np.full((HEIGHT, WIDTH, 3), 2.0)
    distance[:6], colour[:6] = np.nan, 100
    write_frame(raw, distance=distance, colour=colour)
    (frame,) = open_dataset("hypersim", raw)
    assert (frame.rgb[6:] == 204).all()
    assert "1 frames lack render_entity_id" in caplog.text


def test_depth_beyond_16_bits_of_millimetres_stays(raw):
    """65.535 m is where others' PNGs wrap round."""
    write_frame(raw, distance=np.full((HEIGHT, WIDTH), 300.0))
    (frame,) = open_dataset("hypersim", raw)
    assert frame.valid_mask.all()
    assert frame.planar_depth_m.max() > 299


def test_entity_zero_is_refused(raw):
    write_frame(raw, entity=np.zeros((HEIGHT, WIDTH)))
    with pytest.raises(ValueError, match=r"frame\.0000\.render_entity_id\.hdf5: entity id 0"):
        list(open_dataset("hypersim", raw))


def test_tone_mapping_leaves_out_unknown_pixels():
    """The 90th percentile of known brightness comes out as 0.8 of full scale; a bright unknown part moves nothing."""
    colour = np.full((10, 10, 3), 2.0, dtype=np.float16)
    colour[0] = 100
    known = np.ones((10, 10), dtype=bool)
    known[0] = False
    assert (hypersim.tone_map(colour, known)[1:] == 204).all()  # 0.8 * 255
    assert (hypersim.tone_map(colour, known)[0] == 255).all()


def test_tone_mapping_is_the_official_formula_bit_for_bit():
    """The published tool's lines, in the float32 that it computes in."""
    rng = np.random.default_rng(0)
    colour = np.exp(rng.normal(0, 2, (96, 128, 3))).astype(np.float16)
    known = rng.random((96, 128)) < 0.8
    linear = colour.astype(np.float32)
    brightness = 0.3 * linear[:, :, 0] + 0.59 * linear[:, :, 1] + 0.11 * linear[:, :, 2]
    scale = np.power(0.8, 2.2) / float(np.percentile(brightness[known], 90))
    display = np.clip(np.power(np.maximum(np.float32(scale) * linear, 0), np.float32(1 / 2.2)), 0, 1)
    np.testing.assert_array_equal(hypersim.tone_map(colour, known), np.rint(display * 255))


@pytest.mark.parametrize(
    ("value", "known", "expected"),
    [
        (5e-5, True, 0),  # too dark: p < 1e-4
        (0.25, False, 136),  # nothing known: scale 1, 255 * 0.25^(1/2.2) = 135.8
        (np.nan, True, 0),
        (np.inf, True, 255),
        (-1.0, False, 0),
    ],
)
def test_tone_mapping_of_odd_frames(value, known, expected):
    colour = np.full((4, 4, 3), value, dtype=np.float16)
    assert (hypersim.tone_map(colour, np.full((4, 4), known)) == expected).all()


def test_listing_keeps_gaps_in_the_numbers_and_counts_missing_members(raw):
    for frame in ("0000", "0002", "0007"):
        write_frame(raw, frame=frame)
    write_frame(raw, camera="03", frame="0001")
    images = raw / "ai_001_001" / "images"
    (images / "scene_cam_00_geometry_hdf5" / "frame.0002.depth_meters.hdf5").unlink()
    (images / "scene_cam_03_final_hdf5" / "frame.0001.color.hdf5").unlink()
    listing = list_frames("hypersim", raw)
    assert [ref.name for ref in listing.frames] == ["ai_001_001/cam_00/frame.0000", "ai_001_001/cam_00/frame.0007"]
    # 0001, 0003 to 0006 of cam_00 and 0000 of cam_03 have nothing at all.
    assert listing.gaps == {"depth missing": 1, "number missing": 6, "rgb missing": 1}


def test_a_broken_member_is_named(raw):
    write_frame(raw)
    (ref,) = list_frames("hypersim", raw).frames
    ref.depth_path.write_bytes(ref.depth_path.read_bytes()[:500])
    with pytest.raises(ValueError, match=r"frame\.0000\.depth_meters\.hdf5: cannot be read"):
        read_frame(ref)
    ref.depth_path.unlink()
    with pytest.raises(ValueError, match=r"frame\.0000\.depth_meters\.hdf5: no such file"):
        read_frame(ref)


def test_members_of_different_size_are_refused(raw):
    write_frame(raw, colour=np.ones((HEIGHT, WIDTH + 1, 3)))
    with pytest.raises(ValueError, match=r"color\.hdf5: expected shape \[12, 16, 3\], got \[12, 17, 3\]"):
        list(open_dataset("hypersim", raw))


@pytest.mark.parametrize("array", [np.full((HEIGHT, WIDTH), 2), np.zeros(HEIGHT), np.zeros((0, 0)), np.zeros(())])
def test_what_is_no_distance_map_is_refused(raw, array):
    write_frame(raw)
    (ref,) = list_frames("hypersim", raw).frames
    write_hdf5(ref.depth_path, array)
    with pytest.raises(ValueError, match=r"depth_meters\.hdf5: expected"):
        read_frame(ref)


@pytest.mark.parametrize("camera", [["x"] * 9, [0.0] * 9, [0.58, 0, 0, 0, 0.43, 0, 0, 0, float("nan")]])
def test_a_row_that_is_no_camera_is_named(raw, camera):
    write_frame(raw)
    write_cameras(raw, {"ai_001_001": camera})
    with pytest.raises(ValueError, match=r"metadata_camera_parameters\.csv: .*scene ai_001_001: .* is not a camera"):
        list_frames("hypersim", raw)


def test_a_scene_without_camera_is_refused_not_guessed(raw):
    write_frame(raw, scene="ai_009_009")
    with pytest.raises(ValueError, match=r"metadata_camera_parameters\.csv: no row for scene ai_009_009"):
        list_frames("hypersim", raw)


SPLIT_CSV = """scene_name,camera_name,frame_id,included_in_public_release,exclude_reason,split_partition_name
ai_001_001,cam_00,0,True,,train
ai_001_001,cam_00,1,False,content_removed,
ai_002_001,cam_00,0,True,,test
"""


def test_the_csv_decides_the_split_and_what_is_public(raw):
    write_frame(raw, frame="0000")
    write_frame(raw, frame="0001")
    write_frame(raw, scene="ai_002_001")
    (raw / "metadata_images_split_scene_v1.csv").write_text(SPLIT_CSV)
    train = list_frames("hypersim-synthetic", raw, split="train")
    assert [ref.name for ref in train.frames] == ["ai_001_001/cam_00/frame.0000"]
    assert train.gaps == {"in no split": 1}
    assert [ref.scene for ref in list_frames("hypersim", raw, split="test").frames] == ["ai_002_001"]
    assert len(list_frames("hypersim", raw).frames) == 3
    with pytest.raises(ValueError, match="hypersim has no split 'dev'; known: test, train"):
        list_frames("hypersim", raw, split="dev")


# HDF5: chunks that only gzip packed are inflated here, everything else by h5py; both give the same numbers

NUMBERS = np.random.default_rng(0).normal(size=(25, 33, 3)).astype(np.float16)
GZIP = {"chunks": (12, 16, 1), "compression": "gzip", "compression_opts": 9}


@pytest.mark.parametrize(
    "layout",
    [
        GZIP,  # and chunks that overhang the border
        GZIP | {"chunks": (25, 33, 3)},
        GZIP | {"dtype": ">f2"},
        GZIP | {"dtype": "<f8"},
        GZIP | {"shuffle": True},
        GZIP | {"fletcher32": True},
        {"chunks": (12, 16, 1)},
        {"chunks": (12, 16, 1), "compression": "lzf"},
        {},
    ],
    ids=str,
)
def test_every_layout_is_read(tmp_path, layout):
    path = tmp_path / "x.hdf5"
    with h5py.File(path, "w") as file:
        file.create_dataset("dataset", data=NUMBERS, **layout)
    read = read_hdf5(path)
    np.testing.assert_array_equal(read, NUMBERS)
    assert read.dtype == np.dtype(layout.get("dtype", np.float16))


def test_chunks_that_were_never_written_are_the_fill_value(tmp_path):
    with h5py.File(tmp_path / "x.hdf5", "w") as file:
        file.create_dataset("dataset", NUMBERS.shape, np.float16, fillvalue=7, **GZIP)[:3] = NUMBERS[:3]
    read = read_hdf5(tmp_path / "x.hdf5")
    np.testing.assert_array_equal(read[:3], NUMBERS[:3])
    assert (read[12:] == 7).all()


def test_a_chunk_stored_as_it_is(tmp_path):
    """HDF5 leaves out gzip where it does not pay, and says so beside the chunk."""
    block = NUMBERS[:12, :16, :1].tobytes()
    with h5py.File(tmp_path / "x.hdf5", "w") as file:
        dataset = file.create_dataset("dataset", data=NUMBERS, **GZIP)
        dataset.id.write_direct_chunk((0, 0, 0), block, filter_mask=1)
    np.testing.assert_array_equal(read_hdf5(tmp_path / "x.hdf5"), NUMBERS)


@pytest.mark.parametrize("block", [b"", b"not zlib", zlib.compress(b"short"), zlib.compress(bytes(10**6))])
def test_a_chunk_of_the_wrong_size_is_refused(tmp_path, block):
    with h5py.File(tmp_path / "x.hdf5", "w") as file:
        dataset = file.create_dataset("dataset", data=NUMBERS, **GZIP)
        dataset.id.write_direct_chunk((12, 16, 1), block or b"\0")
    with pytest.raises(ValueError, match=r"x\.hdf5: cannot be read"):
        read_hdf5(tmp_path / "x.hdf5")


def test_one_wrong_bit_in_a_chunk_is_found(tmp_path):
    with h5py.File(tmp_path / "x.hdf5", "w") as file:
        dataset = file.create_dataset("dataset", data=NUMBERS, **GZIP)
        info = dataset.id.get_chunk_info(3)
    data = bytearray((tmp_path / "x.hdf5").read_bytes())
    data[info.byte_offset + info.size // 2] ^= 1
    (tmp_path / "x.hdf5").write_bytes(data)
    with pytest.raises(ValueError, match=r"x\.hdf5: cannot be read"):
        read_hdf5(tmp_path / "x.hdf5")


def test_a_size_that_no_image_has_is_refused_before_it_is_allocated(tmp_path):
    with h5py.File(tmp_path / "x.hdf5", "w") as file:
        file.create_dataset("dataset", (1 << 20, 1 << 20), np.float16, chunks=(128, 128))
    with pytest.raises(ValueError, match=r"x\.hdf5: cannot be read: expected at most 1073741824 bytes"):
        read_hdf5(tmp_path / "x.hdf5")


@pytest.mark.parametrize("content", ["a group", "text"])
def test_what_is_no_array_of_numbers_is_refused(tmp_path, content):
    with h5py.File(tmp_path / "x.hdf5", "w") as file:
        if content == "text":
            file["dataset"] = content
        else:
            file.create_group("dataset")
    with pytest.raises(ValueError, match=r"x\.hdf5: cannot be read: expected numbers"):
        read_hdf5(tmp_path / "x.hdf5")


@pytest.mark.parametrize("way", ["external storage", "external link", "soft link", "virtual"])
def test_numbers_of_another_file_are_refused(tmp_path, way):
    """HDF5 would read them from any file that this user may read."""
    secret, path = tmp_path / "secret", tmp_path / "x.hdf5"
    with h5py.File(secret, "w", userblock_size=512) as file:
        file["dataset"] = NUMBERS
    with h5py.File(path, "w") as file:
        if way == "external storage":
            file.create_dataset("dataset", (16, 16), np.uint8, external=[(str(secret), 0, 256)])
        elif way == "virtual":
            layout = h5py.VirtualLayout(NUMBERS.shape, NUMBERS.dtype)
            layout[:] = h5py.VirtualSource(str(secret), "dataset", NUMBERS.shape)
            file.create_virtual_dataset("dataset", layout)
        else:
            file["beyond"] = h5py.ExternalLink(str(secret), "/")
            link = h5py.SoftLink("/beyond/dataset") if way == "soft link" else file.get("beyond", getlink=True)
            file["dataset"] = h5py.ExternalLink(str(secret), "/dataset") if way == "external link" else link
    for read in (read_hdf5, read_size):
        with pytest.raises(ValueError, match=r"x\.hdf5: cannot be read: .*(in another file|is a link), expected"):
            read(path)


def test_a_file_without_the_dataset_is_named(tmp_path):
    write_hdf5(tmp_path / "x.hdf5", NUMBERS)
    with h5py.File(tmp_path / "x.hdf5", "a") as file:
        file.move("dataset", "other")
    with pytest.raises(ValueError, match=r"x\.hdf5: cannot be read: .*no dataset 'dataset'"):
        read_hdf5(tmp_path / "x.hdf5")


def test_what_an_unpacker_leaves_behind_is_no_scene(tmp_path):
    """Its folder has no row in the csv of cameras, which ended the listing."""
    from metricgold.datasets.listing import folders_below

    for scene in ("ai_001_001", "__MACOSX", ".Trash-1000"):
        (tmp_path / scene / "images").mkdir(parents=True)
    assert folders_below(tmp_path, "*/images") == [tmp_path / "ai_001_001/images"]
