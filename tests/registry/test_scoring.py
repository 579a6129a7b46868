"""A version as MLflow calls it: what it takes, what it answers, and how it refuses; in Python and over HTTP."""

import ast
import base64
import io
import json
import os
import re
import subprocess
import sys
import sysconfig
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import distributions
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import ExifTags, Image

from metricgold.images import read_depth, read_uncertainty_png, register_heif
from metricgold.model import load_pipeline
from metricgold.params import Predict
from metricgold.registry.invocations import answer_requests
from metricgold.registry.scoring import _load_pyfunc
from tests.registry.project import PARAMS, register_scores
from tests.support import ROOT
from tests.support.pickles import ALLOWED, UNSAFE, is_pickle, loads_pickles
from tests.support.serving import mlflow_serve

PREDICT = Predict(num_inference_steps=2, ensemble_size=1)
RGB = np.random.default_rng(0).integers(0, 256, (24, 36, 3), dtype=np.uint8)


def encoded(kind="PNG", rgb=RGB, **options):
    register_heif()
    file = io.BytesIO()
    Image.fromarray(rgb).save(file, kind, **options)
    return file.getvalue()


def text(data):
    return base64.b64encode(data).decode()


def array(answered):
    return np.load(io.BytesIO(base64.b64decode(answered)), allow_pickle=False)


@pytest.fixture(scope="module")
def version(random_model):
    return _load_pyfunc(str(random_model), PREDICT.model_dump(mode="json"))


@pytest.fixture(scope="module")
def pipe(random_model):
    return load_pipeline(random_model)


@pytest.fixture(scope="module")
def expected(pipe):
    return pipe(RGB, num_inference_steps=2, ensemble_size=1)


def test_arrays_are_answered_with_arrays(version, pipe, expected):
    answer = version.predict(RGB)
    assert answer["depth"].dtype == np.float32 and answer["valid_mask"].dtype == bool
    np.testing.assert_array_equal(answer["depth"], expected.planar_depth_m)
    np.testing.assert_array_equal(answer["valid_mask"], expected.valid_mask)
    assert (answer["unit"], answer["kind"], answer["encoding"]) == ("metres", "planar depth", "arrays")
    assert answer["uncertainty"] is None and answer["uncertainty_calibrated"] is False  # one member shows none
    assert (answer["focal_from"], answer["near_m"], answer["far_m"]) == ("fov_deg", 0.5, 80.0)
    assert answer["scale_assumed"] is False and answer["num_members"] == 1
    several = version.predict(RGB, params={"ensemble_size": 3, "seed": 5})
    again = pipe(RGB, num_inference_steps=2, ensemble_size=3, seed=5)
    np.testing.assert_array_equal(several["depth"], again.planar_depth_m)
    np.testing.assert_array_equal(several["uncertainty"], again.uncertainty)


@pytest.mark.parametrize(
    "rows", [np.stack([RGB, RGB]), [RGB, RGB], [{"image": RGB}, {"image": RGB.tolist()}], [RGB.tolist()] * 2]
)
def test_many_images_are_answered_one_by_one(version, expected, rows):
    answers = version.predict(rows)
    assert len(answers) == 2
    for answer in answers:
        np.testing.assert_allclose(answer["depth"], expected.planar_depth_m, rtol=1e-4)


@pytest.mark.parametrize(
    "image",
    [
        encoded(),
        bytearray(encoded()),
        text(encoded()),
        base64.encodebytes(encoded()).decode(),
        f"data:image/png;base64,{text(encoded())}",
    ],
)
def test_a_file_is_answered_with_files(version, expected, image):
    for answer in (version.predict(image), *version.predict([image]), version.predict({"image": image})):
        assert answer["encoding"] == "npy"
        np.testing.assert_array_equal(array(answer["depth"]), expected.planar_depth_m)
        np.testing.assert_array_equal(array(answer["valid_mask"]), expected.valid_mask)
        json.dumps(answer, allow_nan=False)
    assert isinstance(version.predict(image, params={"encoding": "arrays"})["depth"], np.ndarray)
    assert version.predict(RGB, params={"encoding": "npy"})["encoding"] == "npy"


def test_maps_as_png_are_those_of_a_batch_job(version, pipe):
    answer = version.predict(text(encoded()), params={"encoding": "png", "ensemble_size": 3})
    expected = pipe(RGB, num_inference_steps=2, ensemble_size=3)
    depth_m, uncertainty, valid = (
        io.BytesIO(base64.b64decode(answer[name])) for name in ("depth", "uncertainty", "valid_mask")
    )
    np.testing.assert_allclose(read_depth(depth_m).planar_depth_m, expected.planar_depth_m, rtol=1e-4)
    np.testing.assert_allclose(read_uncertainty_png(uncertainty)[0], expected.uncertainty, atol=1e-4)
    np.testing.assert_array_equal(np.array(Image.open(valid)), expected.valid_mask)
    alone = version.predict(text(encoded()), params={"encoding": "png"})
    assert answer["encoding"] == "png" and alone["uncertainty"] is None  # one member shows none


@pytest.mark.parametrize("kind", ["JPEG", "HEIF"])
def test_the_camera_of_exif_counts_unless_one_is_stated(version, kind):
    exif = Image.Exif()
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.FocalLengthIn35mmFilm] = 50
    photo = encoded(kind, np.full((200, 300, 3), 90, np.uint8), exif=exif.tobytes())
    by_exif = version.predict(photo)
    assert by_exif["focal_from"] == "exif" and by_exif["focal_px"] == pytest.approx(50 / 43.2666 * 360.555, rel=1e-3)
    assert by_exif["intrinsics"][0][2] == 150 and array(by_exif["depth"]).shape == (200, 300)
    stated = {"focal_px": 321, "fov_deg": 50.0, "intrinsics": [[300, 0, 140], [0, 310, 99], [0, 0, 1]]}
    for name, value in stated.items():
        answer = version.predict({"image": photo, name: value})
        assert answer["focal_from"] == "argument"
        assert answer["focal_px"] == pytest.approx({"focal_px": 321, "fov_deg": 321.676, "intrinsics": 300}[name])


def test_a_data_frame_is_rows(version, expected):
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"image": [text(encoded())] * 2, "focal_px": [30.0, np.nan]})
    first, second = version.predict(frame)
    assert (first["focal_from"], second["focal_from"]) == ("argument", "fov_deg")
    np.testing.assert_allclose(array(second["depth"]), expected.planar_depth_m, rtol=1e-4)


def test_presets_decide_steps_and_members_that_are_not_given(version, pipe):
    answer = version.predict(RGB, params={"preset": "fast", "num_inference_steps": 3, "seed": None})
    depth_m = pipe(RGB, num_inference_steps=3, ensemble_size=2).planar_depth_m
    np.testing.assert_array_equal(answer["depth"], depth_m)


FAULTS = [  # a request, its params, and what is said
    ("/etc/passwd", {}, r"image is a text of 11 characters that is not base64"),
    (["zz%%"], {}, r"inputs\[0\]: image is a text of 4 characters that is not base64"),
    ([text(encoded()), text(b"hello")], {}, r"inputs\[1\]: image: not an image of a known format"),
    (text(encoded("JPEG")[:-200]), {}, r"image: cannot be read as an image"),
    (text(encoded(rgb=np.zeros((2, 40, 3), np.uint8))), {}, r"image: .*a strip of 20:1, longer than 8:1"),
    ([{"imag": 1}], {}, r"inputs\[0\]: unknown field imag, expected some of image, focal_px, fov_deg, intrinsics"),
    ({"focal_px": 3}, {}, r"no image, expected a row with image"),
    ({"image": RGB, "focal_px": -1}, {}, r"focal_px must be a positive number of pixels, got -1"),
    ({"image": RGB, "focal_px": "wide"}, {}, r"focal_px must be a positive number of pixels, got 'wide'"),
    ({"image": RGB, "focal_px": 9, "fov_deg": 60}, {}, r"a camera is stated in one way, got focal_px and fov_deg"),
    ({"image": RGB, "intrinsics": [[1], [2, 3]]}, {}, r"intrinsics must be a \[3, 3\] of numbers, got \[\[1\], \[2, 3"),
    ({"image": RGB, "intrinsics": {"fx": 3}}, {}, r"intrinsics must be a \[3, 3\] of numbers, got \{'fx': 3\}"),
    ({"image": [[1], [2, 3]]}, {}, r"an image must be uint8 \[H, W, 3\], got lists of unequal lengths"),
    (RGB[..., 0], {}, r"an image must be uint8 \[H, W, 3\], got uint8 \[24, 36\]"),
    (RGB / 255, {}, r"an image must be uint8 \[H, W, 3\], got float64 \[24, 36, 3\]"),
    (RGB.astype(int) + 100, {}, r"an image must have values from 0 to 255, got 100 to 355"),
    (3.5, {}, r"an image must be uint8 \[H, W, 3\], got float64 \[\]"),
    (None, {}, r"no image, expected a row with image"),
    (RGB, {"preset": "quick"}, r"preset is 'quick', expected one of paper, balanced, fast, one-step"),
    (RGB, {"encoding": "jpg"}, r"encoding is 'jpg', expected one of arrays, npy, png"),
    (RGB, {"num_inference_steps": 0}, r"num_inference_steps must be an integer from 1 to 1000, got 0"),
    (RGB, {"seed": -1}, r"seed must be an integer from 0"),
    (RGB, {"sead": 1}, r"unknown parameter sead, expected some of preset, num_inference_steps"),
]


@pytest.mark.parametrize(("request_", "params", "said"), FAULTS)
def test_a_fault_of_a_request_is_one_line_with_status_400(version, request_, params, said):
    with pytest.raises(ValueError, match=f"^{said}") as caught:
        version.predict(request_, params=params)
    assert caught.value.get_http_status_code() == 400
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300
    assert json.loads(caught.value.serialize_as_json())["message"] == str(caught.value)


def test_a_fault_of_the_model_is_one_line_with_status_500(version, monkeypatch):
    def out_of_memory(*_, **__):
        raise MemoryError(f"in {ROOT}")

    monkeypatch.setattr(version, "pipeline", type("Broken", (), {"__call__": out_of_memory, "is_one_step": False})())
    with pytest.raises(ValueError, match=r"^the model failed: MemoryError$") as caught:
        version.predict(RGB)
    assert caught.value.get_http_status_code() == 500


def test_many_threads_get_the_same_as_one(version):
    images = [np.roll(RGB, shift, axis=1) for shift in range(8)]
    alone = [version.predict(image)["depth"] for image in images]
    with ThreadPoolExecutor(8) as pool:
        for one, answer in zip(alone, pool.map(version.predict, images), strict=True):
            np.testing.assert_array_equal(answer["depth"], one)


@pytest.fixture
def artefact(project):
    """The folder of a registered version."""
    import mlflow

    return Path(mlflow.artifacts.download_artifacts(register_scores()["model_uri"]))


def test_the_artefact_says_what_it_takes_answers_and_is(artefact):
    from mlflow.models import Model

    model = Model.load(str(artefact))
    assert model.signature.inputs.input_names() == ["image", "focal_px", "fov_deg", "intrinsics"]
    assert model.signature.inputs.required_input_names() == ["image"]
    outputs = set(model.signature.outputs.input_names())
    assert outputs >= {"depth", "valid_mask", "uncertainty", "intrinsics", "focal_from", "unit"}
    params = {spec.name: spec.default for spec in model.signature.params.params}
    assert params == dict.fromkeys(("preset", "num_inference_steps", "ensemble_size", "encoding")) | {"seed": 0}
    (example,) = model.load_input_example(str(artefact))
    jpeg = base64.b64decode(example["image"])
    assert jpeg.startswith(b"\xff\xd8") and len(jpeg) < 4096
    about = model.metadata
    assert (about["near_m"], about["far_m"], about["camera"], about["unit"]) == (0.5, 80.0, "none", "metres")
    assert about["uncertainty_calibrated"] is False
    assert about["presets"]["fast"] == {"num_inference_steps": 2, "ensemble_size": 2}
    assert model.flavors["python_function"]["config"]["num_inference_steps"] == PARAMS.predict.num_inference_steps
    requirements = (artefact / "requirements.txt").read_text().split()
    assert all("==" in line for line in requirements) and not any(line.startswith("mlflow==") for line in requirements)
    answers = _load_pyfunc(str(artefact / "data" / "metricgold"), PREDICT.model_dump()).predict([example])
    assert set(answers[0]) == outputs


def test_a_misspelt_parameter_is_refused_by_mlflow_too(artefact, version, caplog):
    """MLflow would leave it out and answer with another depth than was asked for."""
    from mlflow.models import Model
    from mlflow.pyfunc import PyFuncModel

    model = PyFuncModel(Model.load(str(artefact)), version)
    for misspelt in ("sead", "ensemble"):
        with pytest.raises(ValueError, match=rf"^unknown parameter '{misspelt}', expected some of preset, "):
            model.predict(RGB, params={misspelt: 1})
    assert model.predict(RGB, params={"seed": 1})["num_members"] == 1
    model._model_meta.signature.params.params.pop()  # a model with other params is none of ours
    model.predict(RGB, params={"sead": 1})


HTTP_FAULTS = [
    ("text/csv", b"image\n" + text(encoded()).encode(), 415, "content type is text/csv, expected application/json"),
    ("text/csv", b"", 415, "content type is text/csv"),
    ("image/jpeg", encoded("JPEG"), 415, "content type is image/jpeg"),
    ("application/vnd.apache.parquet", b"PAR1", 415, "content type is application/vnd.apache.parquet"),
    (None, b"{}", 415, "content type is none, expected application/json"),
    ("application/json", encoded("JPEG"), 400, "the body is not JSON: "),
    ("application/json; charset=utf-8", b"", 400, "the body is not JSON: Expecting value"),
    ("application/json", b"[" * 100_000, 400, "the body is not JSON: "),
    (
        "application/json",
        b"[1, 2]",
        400,
        "the body has no inputs, expected a JSON object with inputs and perhaps params",
    ),
    ("application/json", {"dataframe_records": [{"image": "x"}]}, 400, "the body has no inputs"),
    ("application/json", {"inputs": [], "parameters": {}}, 400, "unknown key parameters in the body, expected inputs"),
    ("application/json", {"inputs": [], "params": [1]}, 400, "params must be a JSON object"),
    ("application/json", {"inputs": text(encoded()), "params": {"seed": "abc"}}, 400, "Invalid parameters found: "),
    ("application/json", {"inputs": text(encoded()), "params": {"seed": "a" * 9999}}, 400, "Invalid parameters"),
    ("application/json", {"inputs": text(encoded()), "params": {"sead": 1}}, 400, "unknown parameter 'sead', "),
    (
        "application/json",
        {"inputs": "a text in place of an image"},
        400,
        "image is a text of 27 characters",
    ),
    ("application/json", {"inputs": None}, 400, "no image, expected a row"),
    ("application/json", {"inputs": {"image": text(encoded())[:200]}}, 400, "image: "),
]


@pytest.fixture
def scoring_app(artefact, version, monkeypatch):
    """MLflow's server around a version, in this process."""
    from mlflow.models import Model
    from mlflow.pyfunc import PyFuncModel, scoring_server
    from starlette.testclient import TestClient

    monkeypatch.setenv("_MLFLOW_IS_IN_SERVING_ENVIRONMENT", "true")  # which it sets
    monkeypatch.setattr(scoring_server, "invocations", scoring_server.invocations)
    answer_requests()
    model = PyFuncModel(Model.load(str(artefact)), version)
    with TestClient(scoring_server.init(model), raise_server_exceptions=False) as client:
        yield client


def test_whatever_is_wrong_with_a_request_is_one_line_with_a_4xx(scoring_app):
    for kind, body, status, said in HTTP_FAULTS:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        answer = scoring_app.post("/invocations", content=content, headers={"Content-Type": kind} if kind else {})
        assert answer.status_code == status and "stack_trace" not in answer.json(), answer.text
        message = answer.json()["message"]
        assert message.startswith(said) and "\n" not in message and len(message) <= 300, message
        assert str(ROOT) not in message and text(encoded())[:40] not in message
    answer = scoring_app.post("/invocations", json={"inputs": text(encoded()), "params": {"num_inference_steps": 2}})
    assert answer.status_code == 200 and array(answer.json()["predictions"]["depth"]).shape == RGB.shape[:2]


def test_another_model_in_mlflow_s_server_is_answered_as_before(monkeypatch):
    from mlflow.pyfunc import scoring_server

    monkeypatch.setattr(scoring_server, "invocations", lambda *asked: asked)
    answer_requests()
    answer_requests()
    other = SimpleNamespace(loader_module="mlflow.sklearn")
    assert scoring_server.invocations(b"", "text/csv", other, None) == (b"", "text/csv", other, None)


def test_an_altered_artefact_does_not_load(artefact):
    import mlflow

    path = artefact / "data" / "metricgold" / "model_index.json"
    path.write_text(path.read_text().replace("80.0", "81.0"))
    with pytest.raises(ValueError, match=r"data/metricgold was altered since it was registered: it has the digest"):
        mlflow.pyfunc.load_model(str(artefact))


def test_no_byte_of_the_artefact_is_a_pickle_nor_loads_one(artefact):
    kinds = set()
    for path in (path for path in artefact.rglob("*") if path.is_file()):
        data, name = path.read_bytes(), path.relative_to(artefact)
        kinds.add(path.suffix)
        starts = {0} | {match.start() for match in re.finditer(rb"\x80[\x02-\x05]", data)}
        assert not any(is_pickle(data[start:]) for start in starts), f"{name} holds a pickle"
        if path.suffix == ".safetensors":
            size = int.from_bytes(data[:8], "little")
            header = json.loads(data[8 : 8 + size])
            ends = [tensor["data_offsets"][1] for key, tensor in header.items() if key != "__metadata__"]
            assert 8 + size + max(ends) == len(data), f"{name} holds more than its tensors"
            continue
        data.decode("utf-8")
        if path.suffix == ".py":
            assert not loads_pickles(ast.parse(data)), f"{name} loads pickles"
        else:
            assert not UNSAFE.search(data), f"{name} names a loader of pickles"
    assert ".safetensors" in kinds and ".py" in kinds and not kinds & {".pkl", ".pickle", ".bin", ".pt", ".ckpt"}


def test_a_pickle_would_be_found():
    call = b"cposixpath\nPosixPath\n"  # what it would call is named, and nothing here calls it
    assert is_pickle(call + b"(Vx\ntR.") and is_pickle(b"\x80\x02" + call + b"X\x01\x00\x00\x00x\x85R.")
    assert not is_pickle(call) and not is_pickle(b"\x80\x02K\x01.")
    assert loads_pickles(ast.parse("import torch\ntorch.load(path)"))
    assert loads_pickles(ast.parse(f"np.load(path, {ALLOWED})"))


FRESH = """\
import base64, importlib.util, io, sys
import mlflow, numpy as np
assert importlib.util.find_spec("metricgold") is None
model = mlflow.pyfunc.load_model(sys.argv[1])
(answer,) = model.predict(model.input_example, params=model.metadata.load_input_example_params(sys.argv[1]))
depth_m = np.load(io.BytesIO(base64.b64decode(answer["depth"])))
print(depth_m.shape, depth_m.dtype, answer["focal_px"], np.isfinite(depth_m).all())
import metricgold
print(metricgold.__file__)
"""


@pytest.mark.slow  # torch and diffusers are compiled to bytecode once more
def test_it_loads_in_an_environment_made_from_its_own_requirements(artefact, tmp_path_factory):
    """Without this project's sources; packages come from what is installed here, at the same versions, offline."""
    folder = tmp_path_factory.mktemp("fresh")
    uv = Path(sys.executable).with_name("uv")
    # Of this folder alone: once setuptools is imported, the copies within it are on the path too, of other versions.
    installed_here = distributions(path=[sysconfig.get_path("purelib")])
    same = [f"{one.name}=={one.version}" for one in installed_here if one.name != "metricgold"]
    (folder / "constraints.txt").write_text("\n".join(same))
    subprocess.run([uv, "venv", "--quiet", folder / "venv"], check=True)
    links = [f"--find-links={links}" for links in os.environ.get("PIP_FIND_LINKS", "").split()]
    command = [uv, "pip", "install", "--quiet", "--offline", *links, "-r", artefact / "requirements.txt"]
    installed = subprocess.run(
        [*command, "-c", folder / "constraints.txt"],
        env=os.environ | {"VIRTUAL_ENV": str(folder / "venv")},
        capture_output=True,
        text=True,
    )
    if installed.returncode != 0:
        pytest.skip(f"uv's cache lacks a package: {' '.join(installed.stderr.split())}")
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [folder / "venv" / "bin" / "python", "-c", FRESH, artefact], cwd=folder, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    answer, package = done.stdout.splitlines()
    assert answer == "(64, 96) float32 83.0 True"
    assert Path(package).is_relative_to(artefact)


@pytest.fixture
def address(artefact, tmp_path):
    """Where `mlflow models serve` answers for a registered version."""
    with mlflow_serve(tmp_path, str(artefact)) as server:
        yield f"{server}/invocations"


def post(address, body):
    request = urllib.request.Request(address, json.dumps(body).encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=120) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


@pytest.mark.slow
def test_mlflow_serves_it(address, pipe):
    """Good and bad requests, many at once: each right, or one line with status 400."""
    images = [np.roll(RGB, shift, axis=1) for shift in range(3)]
    depths_m = [pipe(image, num_inference_steps=2, ensemble_size=1).planar_depth_m for image in images]
    good = [{"inputs": {"image": text(encoded(rgb=image)), "focal_px": 40.0}} for image in images]
    bad = [
        ({"inputs": {"image": text(b"hello")}}, "image: not an image of a known format, or its head is broken"),
        ({"inputs": [{"imag": "x"}]}, "inputs[0]: unknown field imag, expected some of "),
        ({"inputs": good[0]["inputs"], "params": {"sead": 1}}, "unknown parameter 'sead', expected some of "),
        ({"inputs": good[0]["inputs"] | {"focal": 1}}, "unknown field focal, expected some of "),
        ({"inputs": good[0]["inputs"] | {"focal_px": -1}}, "focal_px must be a positive number of pixels, got -1"),
    ]

    def ask(number):
        if number % 3 == 2:
            request, said = bad[number % len(bad)]
            status, answer = post(address, request)
            assert status == 400 and answer["message"].startswith(said) and "stack_trace" not in answer, answer
            assert len(answer["message"]) < 200 and str(ROOT) not in json.dumps(answer)
        else:
            status, answer = post(address, good[number % len(good)])
            assert status == 200, answer
            depth_m = array(answer["predictions"]["depth"])
            np.testing.assert_allclose(depth_m, depths_m[number % len(good)], rtol=1e-4)
            assert answer["predictions"]["focal_px"] == 40.0
        return status

    with ThreadPoolExecutor(50) as pool:
        statuses = list(pool.map(ask, range(500)))
    assert statuses.count(400) == 166
    status, answer = post(address, {"inputs": [{"image": RGB.tolist()}] * 2, "params": {"num_inference_steps": 1}})
    assert status == 200 and np.shape(answer["predictions"][1]["depth"]) == RGB.shape[:2]
