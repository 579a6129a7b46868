"""Peers as methods: tiny random weights of the very classes, or modules of the same interface where none install."""

import importlib.util
import json
import shutil
import sys
from math import atan, degrees
from types import ModuleType

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from metricgold.evaluate.peers import open_peer
from tests.evaluate.peer_folders import save_marigold, save_transformers

RGB = np.random.default_rng(0).integers(0, 256, (40, 64, 3), dtype=np.uint8)
CAMERA = np.array([[80.0, 0, 32], [0, 80, 20], [0, 0, 1]])
FOV_DEG = degrees(2 * atan(32 / 80))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A folder of each kind, made at the first call for it."""
    root, made = tmp_path_factory.mktemp("peers"), {}

    def folder(model, **options):
        key = f"{model}-{len(made)}" if options else model
        if options or model not in made:
            save = (
                save_marigold if model == "marigold" else lambda place, **rest: save_transformers(place, model, **rest)
            )
            made[key] = save(root / key, **options)
        return made[key]

    return folder


# --- diffusers ----------------------------------------------------------------------------------------------


def test_marigold_gives_relative_depth_of_the_images_size_and_the_same_each_time(folders):
    peer = open_peer(f"marigold:{folders('marigold')}")
    first, second = peer.estimate([RGB, RGB], None)
    assert first.kind == "relative_depth" and first.depth.dtype == np.float32 and first.depth.shape == (40, 64)
    assert np.ptp(first.depth) > 0
    np.testing.assert_array_equal(first.depth, second.depth)
    assert peer.name == "marigold" and not peer.takes_camera
    assert peer.digest == open_peer(f"marigold:{folders('marigold')}").digest


def test_marigold_of_few_steps_and_of_disparity(folders):
    lcm = folders("marigold", scheduler="LCMScheduler", prediction_type="disparity", default_denoising_steps=1)
    (estimate,) = open_peer(f"marigold:{lcm}").estimate([RGB], None)
    assert estimate.kind == "relative_disparity" and estimate.depth.shape == (40, 64)


@pytest.mark.parametrize("key, value, message", [
    ("_class_name", "StableDiffusionPipeline", "is of StableDiffusionPipeline, expected MarigoldDepthPipeline"),
    ("unet", ["my_code", "UNet"], r"has unet as \['my_code', 'UNet'\], expected diffusers:UNet2D"),
    ("prediction_type", "normals", "has prediction_type 'normals', expected depth or disparity"),
    ("prediction_type", None, "does not say what its numbers are; say marigold=OUTPUT:"),
])  # fmt: skip
def test_a_marigold_of_something_else_is_refused_before_anything_is_loaded(folders, tmp_path, key, value, message):
    shutil.copytree(folders("marigold"), tmp_path / "m")
    path = tmp_path / "m" / "model_index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    with pytest.raises(ValueError, match=message) as error:
        open_peer(f"marigold:{tmp_path / 'm'}")
    assert str(tmp_path / "m") in str(error.value) and "\n" not in str(error.value)


# --- transformers -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model, options, kind, middle", [
    ("depth_anything", {"depth_estimation_type": "metric", "max_depth": 20}, "depth_m", 10),
    ("depth_anything", {}, "relative_disparity", 0),
    ("glpn", {}, "depth_m", 5),
])  # fmt: skip
def test_the_configuration_says_what_a_models_numbers_are(folders, model, options, kind, middle):
    peer = open_peer(f"transformers:{folders(model, **options)}")
    (estimate,) = peer.estimate([RGB], None)
    assert estimate.kind == kind and estimate.depth.shape == (40, 64) and estimate.depth.dtype == np.float32
    assert np.median(estimate.depth) == pytest.approx(middle, rel=0.05, abs=1e-3)  # random weights hardly move it
    assert not peer.takes_camera


def test_what_the_configuration_does_not_say_is_stated_by_the_user(folders):
    dpt = folders("dpt")
    with pytest.raises(ValueError, match=r"dpt: config.json does not say .*; say transformers=OUTPUT:.*relative_disp"):
        open_peer(f"transformers:{dpt}")
    (estimate,) = open_peer(f"transformers=relative_disparity:{dpt}").estimate([RGB], None)
    assert estimate.kind == "relative_disparity" and estimate.depth.shape == (40, 64)
    assert open_peer(f"transformers=depth_m:{dpt}").digest != open_peer(f"transformers=relative_depth:{dpt}").digest
    with pytest.raises(ValueError, match=r"gives relative_disparity by its config\.json, not depth_m"):
        open_peer(f"transformers=depth_m:{folders('depth_anything')}")


class Processor:
    """An image processor's two calls; what comes after the model remembers which field of view it was given."""

    def __init__(self):
        self.seen = []

    def __call__(self, images, return_tensors):
        from transformers import BatchFeature

        return BatchFeature({"pixel_values": torch.zeros(1, 3, 64, 64)})

    def post_process_depth_estimation(self, outputs, sizes):
        self.seen.append((outputs.field_of_view, sizes))
        return [{"predicted_depth": torch.full(tuple(sizes[0]), -1.0)}]


@pytest.fixture
def processor(monkeypatch):
    """In place of Depth Pro's own, which needs torchvision."""
    import transformers

    processor = Processor()
    monkeypatch.setitem(sys.modules, "torchvision", ModuleType("torchvision"))
    monkeypatch.setattr(transformers.AutoImageProcessor, "from_pretrained", lambda *_, **__: processor)
    return processor


def test_depth_pro_takes_the_camera_that_is_given_and_its_own_where_none_is(folders, processor):
    peer = open_peer(f"transformers:{folders('depth_pro')}")
    assert peer.takes_camera
    estimates = peer.estimate([RGB], None) + peer.estimate([RGB], [CAMERA])
    (own, size), (given, _) = processor.seen
    assert size == [(40, 64)] and own.shape == (1,)
    np.testing.assert_allclose(given.numpy(), [FOV_DEG], rtol=1e-6)
    # Resizing that overshoots below zero is a wrong depth, not one without a logarithm.
    assert [one.kind for one in estimates] == ["depth_m"] * 2 and estimates[0].depth.min() == np.float32(1e-3)


def test_a_depth_pro_without_its_camera_head_needs_a_protocol_that_gives_the_camera(folders, processor):
    peer = open_peer(f"transformers:{folders('depth_pro', use_fov_model=False)}")
    with pytest.raises(ValueError, match="take a protocol that gives the camera"):
        peer.estimate([RGB], None)
    assert peer.estimate([RGB], [CAMERA])


@pytest.mark.skipif(importlib.util.find_spec("torchvision") is not None, reason="torchvision is installed")
@pytest.mark.parametrize("model", ["zoedepth", "depth_pro"])
def test_what_needs_torchvision_says_so(folders, model):
    with pytest.raises(ValueError, match=r"torchvision is not installed, .* pip install 'metricgold\[peers\]'"):
        open_peer(f"transformers:{folders(model)}")


with_torchvision = pytest.mark.skipif(
    importlib.util.find_spec("torchvision") is None, reason="no torchvision: ZoeDepth and Depth Pro were not run whole"
)


@with_torchvision
def test_zoedepth_gives_metres(folders):
    (estimate,) = open_peer(f"transformers:{folders('zoedepth')}").estimate([RGB], None)
    assert estimate.kind == "depth_m" and estimate.depth.shape == (40, 64) and (estimate.depth > 0).all()


@with_torchvision
def test_metres_of_depth_pro_are_in_proportion_to_the_focal_length(folders, tmp_path):
    import transformers

    shutil.copytree(folders("depth_pro"), tmp_path / "peer")
    model = transformers.DepthProForDepthEstimation.from_pretrained(tmp_path / "peer")
    with torch.no_grad():
        model.head.layers[4].weight.zero_()
        model.head.layers[4].bias.fill_(0.5)  # inverse depth at a focal length of one image width
    model.save_pretrained(tmp_path / "peer")
    transformers.DepthProImageProcessor(size={"height": 64, "width": 64}).save_pretrained(tmp_path / "peer")
    (estimate,) = open_peer(f"transformers:{tmp_path / 'peer'}").estimate([RGB], [CAMERA])
    np.testing.assert_allclose(estimate.depth, 80 / 64 / 0.5, rtol=1e-5)


# --- moge and unidepth, by modules of the same interface ---------------------------------------------------------


class StandIn(torch.nn.Module):
    """One weight, with the calls of MoGe's and UniDepth's models; depth is that weight."""

    def __init__(self, config):
        super().__init__()
        self.config, self.asked = config, []
        self.depth = torch.nn.Parameter(torch.zeros(()))

    @property
    def device(self):
        return self.depth.device


class MoGe(StandIn):
    def __init__(self, **config):
        super().__init__(config)

    def infer(self, image, apply_mask=True, use_fp16=True, fov_x=None):
        assert image.dtype == torch.float32 and image.max() <= 1 and not apply_mask and not use_fp16
        self.asked.append(fov_x)
        return {"depth": self.depth.expand(len(image), *image.shape[2:]), "intrinsics": torch.eye(3)[None]}


class UniDepth(StandIn):
    def infer(self, rgb, camera=None):
        assert rgb.dtype == torch.uint8 and rgb.shape[:2] == (1, 3)
        self.asked.append(camera)
        return {"depth": self.depth.expand(1, 1, *rgb.shape[2:])}


@pytest.fixture
def packages(monkeypatch):
    """The packages moge and unidepth; `made` has the models that were made, by name."""
    made = []

    def remember(kind, version):
        def make(*args, **kwargs):
            made.append((version, kind(*args, **kwargs)))
            return made[-1][1]

        return make

    modules = {
        "moge.model.v1": {"MoGeModel": remember(MoGe, "v1")},
        "moge.model.v2": {"MoGeModel": remember(MoGe, "v2")},
        "unidepth.models": {f"UniDepth{version}": remember(UniDepth, version) for version in ("V1", "V2")},
    }
    for name, content in modules.items():
        for parent in ("moge", "moge.model", "unidepth"):
            monkeypatch.setitem(sys.modules, parent, ModuleType(parent))
        module = ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
    return made


def save_weight(folder, config, **weights):
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    save_file({name: torch.tensor(value) for name, value in weights.items()}, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize("config, version, kind", [
    ({"encoder": "dinov2_vitl14"}, "v1", "relative_depth"),
    ({"encoder": {"backbone": "dinov2_vitl14"}, "scale_head": {"dims": [8, 1]}}, "v2", "depth_m"),
    ({"encoder": {"backbone": "dinov2_vitl14"}}, "v2", "relative_depth"),
])  # fmt: skip
def test_moge_of_either_version(packages, tmp_path, config, version, kind):
    peer = open_peer(f"moge:{save_weight(tmp_path / 'moge', config, depth=3.5)}")
    estimates = peer.estimate([RGB], None) + peer.estimate([RGB], [CAMERA])
    assert [(one.kind, one.depth.shape) for one in estimates] == [(kind, (40, 64))] * 2
    assert estimates[0].depth.max() == 3.5 and peer.takes_camera
    ((made, model),) = packages
    assert made == version and model.config == config
    assert model.asked == [None, pytest.approx(FOV_DEG)]


@pytest.mark.parametrize("version", ["V1", "V2"])
def test_unidepth_of_either_version(packages, tmp_path, version):
    config = {"model": {"name": f"UniDepth{version}"}}
    peer = open_peer(f"unidepth:{save_weight(tmp_path / 'unidepth', config, depth=2.0)}")
    estimates = peer.estimate([RGB], None) + peer.estimate([RGB], [CAMERA])
    assert [(one.kind, one.depth.shape, float(one.depth.max())) for one in estimates] == [("depth_m", (40, 64), 2)] * 2
    ((made, model),) = packages
    assert made == version and model.asked[0] is None
    np.testing.assert_allclose(model.asked[1].numpy(), CAMERA[None])


def test_weights_that_are_missing_are_never_random(packages, tmp_path):
    peer = open_peer(f"moge:{save_weight(tmp_path / 'moge', {'encoder': 'x'}, another=1.0)}")
    with pytest.raises(ValueError, match="weights are missing: depth"):
        peer.estimate([RGB], None)


@pytest.mark.parametrize("kind, config", [("moge", {"encoder": "x"}), ("unidepth", {"model": {"name": "UniDepthV1"}})])
def test_a_package_that_is_not_installed_is_named(monkeypatch, tmp_path, kind, config):
    monkeypatch.setitem(sys.modules, kind, None)
    with pytest.raises(ValueError, match=f"the package {kind} is not installed"):  # before anything is measured
        open_peer(f"{kind}:{save_weight(tmp_path / 'peer', config, depth=1.0)}")


# --- wrong folders ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text, message", [
    ("marigold", "expected KIND:FOLDER with KIND one of marigold, transformers, moge, unidepth"),
    ("midas:models/x", "expected KIND:FOLDER with KIND one of marigold"),
    ("moge=metres:models/x", "'metres' is no kind of depth, expected one of depth_m, disparity_per_m"),
    ("moge:models/x", "models/x is not a moge model: config.json is missing"),
])  # fmt: skip
def test_a_peer_that_is_not_there_is_one_line(text, message):
    with pytest.raises(ValueError, match=message) as error:
        open_peer(text)
    assert "\n" not in str(error.value)


def test_pickled_weights_are_not_read(folders, tmp_path):
    shutil.copytree(folders("depth_anything"), tmp_path / "peer")
    weights = tmp_path / "peer" / "model.safetensors"
    torch.save(load_file(weights), tmp_path / "peer" / "pytorch_model.bin")
    weights.unlink()
    with pytest.raises(ValueError, match=r"has no \.safetensors: weights are read from nothing else"):
        open_peer(f"transformers:{tmp_path / 'peer'}")
    save_file({"x": torch.zeros(1)}, tmp_path / "peer" / "other.safetensors")
    with pytest.raises(ValueError, match="cannot be used as a transformers model") as error:
        open_peer(f"transformers:{tmp_path / 'peer'}").estimate([RGB], None)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("model, place", [("depth_anything", "model.safetensors"), ("marigold", "unet/*.safetensors")])
def test_a_part_without_its_weights_is_refused(folders, tmp_path, model, place):
    shutil.copytree(folders(model), tmp_path / "peer")
    (path,) = (tmp_path / "peer").glob(place)
    weights = load_file(path)
    name = sorted(weights)[0]
    save_file({key: weight for key, weight in weights.items() if key != name}, path, metadata={"format": "pt"})
    kind = "marigold" if model == "marigold" else "transformers"
    with pytest.raises(ValueError, match=f"(missing|{name})"):
        open_peer(f"{kind}:{tmp_path / 'peer'}").estimate([RGB], None)


def test_code_in_the_folder_is_not_run(folders, tmp_path):
    shutil.copytree(folders("depth_anything"), tmp_path / "peer")
    path = tmp_path / "peer" / "config.json"
    config = json.loads(path.read_text()) | {"model_type": "own", "depth_estimation_type": "metric"}
    path.write_text(json.dumps(config | {"auto_map": {"AutoConfig": "own.Config"}}))
    (tmp_path / "peer" / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Config: pass\n")
    with pytest.raises(ValueError, match="cannot be used as a transformers model"):
        open_peer(f"transformers:{tmp_path / 'peer'}").estimate([RGB], None)
    assert not (tmp_path / "ran").exists()


def test_the_digest_is_of_what_decides_estimates_and_nothing_else(folders, tmp_path):
    shutil.copytree(folders("depth_anything"), tmp_path / "peer")
    before = open_peer(f"transformers:{tmp_path / 'peer'}").digest
    (tmp_path / "peer" / "README.md").write_text("words")
    assert open_peer(f"transformers:{tmp_path / 'peer'}").digest == before
    path = tmp_path / "peer" / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"do_normalize": False}))
    assert open_peer(f"transformers:{tmp_path / 'peer'}").digest != before
