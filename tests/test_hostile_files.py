"""Files of strangers are data: no code of theirs runs, no path leads out, no head takes the memory; one line says so.

Each case makes a file that means harm and reads it as the program does. What is here beside: YAML in
tests/storage/test_yaml_files.py, archives in tests/download/test_archives_fuzz.py, photographs in
tests/images/test_photo.py, what commands say in tests/test_wrong_invocations.py.
"""

import json
import shutil
import struct
import time
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import pytest

from metricgold.datasets import import_frames
from metricgold.datasets.stored_depth import read_stored_depth
from metricgold.evaluate.peers import open_peer
from metricgold.images import read_depth
from metricgold.model import load_backbone, load_pipeline, load_vae
from metricgold.predict.calibrate import read_facts
from metricgold.predict.claims import read_claims
from metricgold.registry.pyfunc import checkpoint_in
from metricgold.shards import FORMAT, LatentCache
from metricgold.storage import globs, message_of, read_json
from tests.registry.conftest import random_model  # noqa: F401 - a fixture

RAN = "code-of-strangers-ran"
CODE = f"open({RAN!r}, 'w').close()\nclass Evil:\n    pass\n"
WEIGHTS = "diffusion_pytorch_model"
HUGE = 1 << 40


class Case(NamedTuple):
    """`make` gives a path that `read` refuses in a line with all of `names`."""

    make: Callable[[Path], Path]
    read: Callable[[Path], Any]
    names: list[str]


# Model folders: `make` gets a copy of a sound one


def without_weights(name: str, content: bytes) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / f"unet/{WEIGHTS}.safetensors").unlink()
        (folder / "unet" / name).write_bytes(content)
        return folder

    return make


def with_values(name: str, **values: Any) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        path = folder / name
        path.write_text(json.dumps(json.loads(path.read_text()) | values))
        for place in (folder, folder / "unet", Path()):
            for module in ("evil", "None", "pipeline"):
                (place / f"{module}.py").write_text(CODE)
        return folder

    return make


def with_link(name: str, target: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(target)
        return folder

    return make


def with_shards_elsewhere(place: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        outside = folder.parent / "outside.safetensors"
        (folder / f"unet/{WEIGHTS}.safetensors").rename(outside)
        index = {"metadata": {}, "weight_map": {"conv_in.weight": place.format(outside=outside)}}
        (folder / f"unet/{WEIGHTS}.safetensors.index.json").write_text(json.dumps(index))
        return folder

    return make


PICKLE = f"cos\nsystem\n(Vtouch {RAN}\ntR.".encode()  # its program as text; loaded, it would run the command
HEAD = json.dumps({"conv_in.weight": {"dtype": "F32", "shape": [HUGE, 9], "data_offsets": [0, HUGE * 36]}}).encode()
INDEX = "model_index.json"
MODELS = {
    **{f"pickle {name}": (without_weights(name, PICKLE), ["unet", "safetensors"]) for name in (
        *(f"{WEIGHTS}{suffix}" for suffix in (".bin", ".pt", ".ckpt", ".safetensors")), "pytorch_model.bin", "model.pt",
    )},
    "head of exabytes": (without_weights(f"{WEIGHTS}.safetensors", struct.pack("<Q", 1 << 60)), ["unet"]),
    "shape of terabytes": (
        without_weights(f"{WEIGHTS}.safetensors", struct.pack("<Q", len(HEAD)) + HEAD), ["unet"]
    ),
    "module of the folder": (with_values(INDEX, unet=["evil", "Evil"]), [INDEX, "unet", "evil"]),
    "module of Python": (with_values(INDEX, vae=["os", "system"]), [INDEX, "vae", "os"]),
    "other class": (with_values(INDEX, vae=["diffusers", "OnnxRuntimeModel"]), [INDEX, "OnnxRuntimeModel"]),
    "part of its own": (with_values(INDEX, safety_checker=["evil", "Evil"]), [INDEX, "safety_checker"]),
    "pipeline of the folder": (with_values(INDEX, _class_name=["evil", "Evil"]), [INDEX, "_class_name", "evil"]),
    "other pipeline": (with_values(INDEX, _class_name="StableDiffusionPipeline"), [INDEX, "StableDiffusion"]),
    "auto_map": (with_values("unet/config.json", auto_map={"AutoModel": "evil.Evil"}), ["config.json", "auto_map"]),
    "quantizer": (
        with_values("unet/config.json", quantization_config={"quant_method": "bitsandbytes"}),
        ["config.json", "quantization_config"],
    ),
    "shards above": (with_shards_elsewhere("../../outside.safetensors"), ["unet", "outside"]),
    "shards anywhere": (with_shards_elsewhere("{outside}"), ["unet", "outside"]),
    "config without end": (with_link("unet/config.json", "/dev/zero"), ["config.json", "67,108,864 bytes"]),
    "index without end": (with_link(INDEX, "/dev/zero"), [INDEX]),
}  # fmt: skip


@pytest.fixture
def stranger(tmp_path, monkeypatch):
    """A working folder in which code of strangers would leave a file."""
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    assert not list(tmp_path.rglob(RAN))


def refused(read: Callable[[Path], Any], path: Path, names: list[str]) -> None:
    start_s = time.monotonic()
    with pytest.raises(ValueError) as error:
        read(path)
    line = message_of(error.value)
    assert [name for name in names if name not in line] == [], line
    assert "\n" not in line
    assert time.monotonic() - start_s < 20


@pytest.mark.parametrize("what", MODELS)
def test_a_model_s_folder(what, stranger, random_model):  # noqa: F811
    make, names = MODELS[what]
    refused(load_pipeline, make(Path(shutil.copytree(random_model, stranger / "model"))), names)


@pytest.mark.parametrize("module", ["None", "diffusers", "UNet2DConditionModel"])
def test_files_of_code_beside_weights_are_left_alone(module, stranger, random_model):  # noqa: F811
    folder = Path(shutil.copytree(random_model, stranger / "model"))
    for place in (folder, folder / "unet", folder / "empty_prompt"):
        (place / f"{module}.py").write_text(CODE)
    if module != "UNet2DConditionModel":  # what diffusers would take for a pipeline or a part, and refuses
        refused(load_pipeline, folder, ["model"])
    else:
        load_pipeline(folder)


@pytest.mark.parametrize("load", [load_backbone, load_vae])
def test_a_backbone_s_folder(load, stranger, random_model):  # noqa: F811
    folder = Path(shutil.copytree(random_model, stranger / "backbone"))
    (folder / "backbone.json").write_text("{}")
    path = folder / "vae/config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"auto_map": {"AutoModel": "evil.Evil"}}))
    refused(load, folder, ["vae/config.json", "auto_map"])


@pytest.mark.parametrize(
    ("kind", "file", "config", "name"),
    [
        ("marigold", INDEX, {"_class_name": "MarigoldDepthPipeline", "vae": ["os", "system"]}, "vae"),
        ("marigold", INDEX, {"_class_name": "MarigoldDepthPipeline", "text_encoder": ["transformers", "AutoModel"]},
         "text_encoder"),
        ("marigold", INDEX, {"_class_name": ["evil", "Evil"]}, "evil"),
        ("marigold", INDEX, {"_class_name": "MarigoldDepthPipeline", "layers": 10**9}, "layers"),
        ("transformers", "config.json", {"model_type": "dpt", "auto_map": {"AutoConfig": "evil.Evil"}}, "auto_map"),
        ("transformers", "config.json", {"model_type": "dpt", "num_hidden_layers": 10**9}, "num_hidden_layers"),
        ("unidepth", "config.json", {"model": {"name": "os"}}, "model.name"),
    ],
)  # fmt: skip
def test_a_peer_s_folder(kind, file, config, name, stranger):
    folder = stranger / "peer"
    folder.mkdir()
    (folder / file).write_text(json.dumps(config))
    (folder / "evil.py").write_text(CODE)
    (folder / "model.safetensors").write_bytes(b"")
    refused(lambda path: open_peer(f"{kind}:{path}"), folder, [str(folder), file, name])


# Arrays


def head_of_npy(*shape: int, dtype: str = "<f4") -> bytes:
    head = f"{{'descr': {dtype!r}, 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head.encode()


def npz(path: Path, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return path


def npz_of_gigabytes(path: Path) -> Path:
    """A few kB that unpack to more than may be, as they say themselves."""
    npz(path, planar_depth_m=b"")
    content = path.read_bytes()
    for mark, at in ((b"PK\x01\x02", 24), (b"PK\x03\x04", 22)):
        place = content.index(mark) + at
        content = content[:place] + struct.pack("<I", 3 << 30) + content[place + 4 :]
    path.write_bytes(content)
    return path


def exr_of_terabytes(path: Path) -> Path:
    openexr = pytest.importorskip("OpenEXR")
    openexr.File({"type": openexr.scanlineimage}, {"Z": np.ones((2, 2), np.float32)}).write(str(path))
    content = path.read_bytes()
    for window in (b"dataWindow\0box2i\0", b"displayWindow\0box2i\0"):
        place = content.index(window) + len(window) + 4
        content = content[:place] + struct.pack("<4i", 0, 0, 1 << 18, 1 << 18) + content[place + 16 :]
    path.write_bytes(content)
    return path


def tiff_of_terabytes(path: Path) -> Path:
    import tifffile

    tifffile.imwrite(path, np.ones((2, 2)))
    content = path.read_bytes()
    for tag in (256, 257):  # width, height: of 4 bytes each
        place = content.index(struct.pack("<HH", tag, 4))
        content = content[: place + 8] + struct.pack("<I", 1 << 18) + content[place + 12 :]
    path.write_bytes(content)
    return path


ARRAYS: dict[str, Callable[[Path], Path]] = {
    "objects.npy": lambda path: path.write_bytes(head_of_npy(1, dtype="|O") + PICKLE) and path,
    "objects.npz": lambda path: npz(path, planar_depth_m=head_of_npy(1, dtype="|O") + PICKLE),
    "pickle.npy": lambda path: path.write_bytes(PICKLE) and path,
    "pickle.npz": lambda path: path.write_bytes(PICKLE) and path,
    "head.npy": lambda path: path.write_bytes(head_of_npy(HUGE, 9)) and path,
    "head.npz": lambda path: npz(path, planar_depth_m=head_of_npy(1 << 18, 1 << 15)),
    "negative.npz": lambda path: npz(path, planar_depth_m=head_of_npy(-4, -4) + bytes(64)),
    "array.npz": lambda path: path.write_bytes(head_of_npy(1 << 18, 1 << 15)) and path,
    "gigabytes.npz": npz_of_gigabytes,
    "terabytes.exr": exr_of_terabytes,
    "terabytes.tiff": tiff_of_terabytes,
    "pixels.pfm": lambda path: path.write_bytes(b"Pf 999999999 999999999 -1\n") and path,
}


@pytest.mark.parametrize("read", [read_stored_depth, read_depth])
@pytest.mark.parametrize("name", ARRAYS)
def test_an_array(name, read, stranger):
    refused(read, ARRAYS[name](stranger / name), [name])


# Caches


def cache_with(folder: Path, spoil: Callable[[h5py.Group], None], **index: Any) -> Path:
    """A latent cache of one frame, spoilt."""
    folder.mkdir()
    with h5py.File(folder / "s-000.h5", "w") as file:
        file.attrs.update({"format": FORMAT, "sizes": '{"8x8": 1}', "num_frames": 1})
        group = file.create_group("8x8")
        group["frame"] = np.zeros(1, [("rgb_latent", "f2", (4, 1, 1)), ("name", "S1")])
        group["valid_mask"] = np.frombuffer(zlib.compress(bytes(8)), np.uint8)
        group["valid_mask"].attrs["shape"] = (8, 8)
        group["valid_mask_begin"] = np.array([0, len(group["valid_mask"])])
        spoil(group)
    shards = [{"scene": "s", "file": "s-000.h5", "num_frames": 1, "sha256": ""}]
    (folder / "index.json").write_text(json.dumps({"format": FORMAT, "num_frames": 1, "shards": shards} | index))
    return folder


def packed(name: str, length: int) -> Callable[[h5py.Group], None]:
    """Numbers that take no room in the file."""

    def spoil(group: h5py.Group) -> None:
        dtype, attributes = group[name].dtype, dict(group[name].attrs)
        del group[name]
        group.create_dataset(name, (length,), dtype, chunks=(1 << 16,), compression="gzip").attrs.update(attributes)

    return spoil


def bomb(group: h5py.Group) -> None:
    stream = zlib.compress(bytes(1 << 28), 9)
    del group["valid_mask"], group["valid_mask_begin"]
    group["valid_mask"] = np.frombuffer(stream, np.uint8)
    group["valid_mask"].attrs["shape"] = (1 << 20, 1 << 20)
    group["valid_mask_begin"] = np.array([0, len(stream)])


CACHES = {
    "no shards": (lambda group: None, {"shards": None}, ["index.json"]),
    "frames that are not there": (lambda group: None, {"num_frames": 10**12}, ["index.json", "1000000000000"]),
    "begins": (packed("valid_mask_begin", HUGE), {}, ["s-000.h5"]),
    "frames": (packed("frame", HUGE), {}, ["s-000.h5"]),
    "mask": (bomb, {}, ["s-000.h5", "mask"]),
}


@pytest.mark.parametrize("what", CACHES)
def test_a_cache(what, stranger):
    spoil, index, names = CACHES[what]
    refused(lambda path: LatentCache(path).valid_mask(0), cache_with(stranger / "cache", spoil, **index), names)


# Records


def test_rows_of_any_number(stranger, monkeypatch):
    import pyarrow as pa
    from pyarrow import parquet

    from metricgold.evaluate import read_rows_files

    parquet.write_table(pa.table({name: pa.nulls(1000) for name in "abc"}), "mine.parquet")
    monkeypatch.setattr("metricgold.evaluate.rows.MAX_CELLS", 2999)
    refused(lambda path: read_rows_files([path]), Path("mine.parquet"), ["mine.parquet", "3,000"])


@pytest.mark.parametrize("data", ["../../outside", "/etc", "a/../../..", 3, None, ["x"]])
def test_a_version_s_folder(data, stranger):
    flavors = {"python_function": {"data": data}} if data is not None else 3
    (stranger / "MLmodel").write_text(json.dumps({"flavors": flavors}))
    refused(checkpoint_in, stranger, [str(stranger)])


FACTS = {"model": "m", "model_digest": "d", "params": {}, "near_m": 1, "far_m": 2, "intrinsics": None}


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({"near_m": float("nan")}, "near_m"),
        ({"far_m": float("inf")}, "far_m"),
        ({"near_m": -1}, "near_m"),
        ({"params": [1]}, "params"),
        ({"intrinsics": [[1, 0], [0, 1]]}, "intrinsics"),
        ({"intrinsics": [[float("nan"), 0, 0]] * 3}, "intrinsics"),
        ({"model_digest": None}, "model_digest"),
    ],
)
def test_a_side_car(values, name):
    assert read_facts(json.dumps(FACTS).encode(), "a.json") == FACTS
    with pytest.raises(ValueError, match=rf"^a\.json: {name}"):
        read_facts(json.dumps(FACTS | values).encode(), "a.json")
    with pytest.raises(ValueError, match=r"^a\.json"):
        read_facts(b"[]", "a.json")


def test_what_is_beside_a_depth_file(stranger):
    Path("a.depth.png").write_bytes(b"")
    Path("a.json").write_text("[]")
    refused(lambda path: read_claims(str(path)), stranger / "a.depth.png", ["a.json"])
    Path("a.json").unlink()
    Path("receipt.jsonl").write_text('["a.depth.png"]\n')
    refused(lambda path: read_claims(str(path)), stranger / "a.depth.png", ["receipt.jsonl"])


@pytest.mark.parametrize("value", ["NaN", "Infinity", "1e400", "9" * 400, "-1e300"])
@pytest.mark.parametrize("key", ["w", "fl_x", "cx"])
def test_a_recording_s_numbers(key, value, stranger):
    for name in ("a.png", "b.png"):
        Path(name).write_bytes(b"")
    values = {name: "5" for name in ("w", "h", "fl_x", "fl_y", "cx", "cy")} | {key: value}
    numbers = ", ".join(f'"{name}": {number}' for name, number in values.items())
    frames = '"frames": [{"file_path": "a.png", "depth_file_path": "b.png"}]'
    Path("transforms.json").write_text(f"{{{numbers}, {frames}}}")
    refused(lambda path: import_frames(path, kind="planar"), stranger, ["transforms.json", key])


def test_json_that_is_too_long(stranger):
    with Path("index.json").open("wb") as file:
        file.truncate(1 << 40)  # takes no room on the disk
    refused(read_json, stranger / "index.json", ["index.json", "67,108,864 bytes"])


def test_globs_of_many_stars_take_no_time():
    start_s = time.monotonic()
    assert not globs.matches("/".join(["**", "a"] * 14) + "/z", "a/" * 60 + "b")
    assert globs.matches("/".join(["**", "a"] * 14) + "/b", "a/" * 60 + "b")
    assert not globs.matches("*a" * 14 + "z", "a" * 60 + "b")
    assert time.monotonic() - start_s < 20  # where every place of every star is tried, it does not end
