"""The server as its clients meet it: answers, limits, who may ask, and what happens to what they left."""

import io
import json
import os
import re
import shutil
import socket
import subprocess
import tempfile
import time
import zipfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest
from PIL import Image

from metricgold.images import focal_px_from_35mm, read_depth, read_rgb
from metricgold.images.depth_files import read_uncertainty_png
from metricgold.params import OUTPUTS
from metricgold.predict.outputs import SUFFIXES
from metricgold.serve.model import kinds_here
from tests.support import ROOT
from tests.support.serving import (
    DIGEST,
    CountingModel,
    depth_of,
    encoded,
    photograph,
    served_model,
    serving,
)
from tests.support.waiting import wait_until

PHOTO = encoded(photograph())


@pytest.fixture(scope="module")
def shared():
    model = CountingModel()
    with serving(model) as (client, service):
        yield client, service, model


@pytest.fixture
def client(shared):
    return shared[0]


def metres(answer: httpx.Response) -> np.ndarray:
    assert answer.status_code == 200, answer.text
    return read_depth(io.BytesIO(answer.content)).planar_depth_m


def ask(client, data=PHOTO, **query):
    return client.post("/v1/depth", content=data, params=query)


# --- answers --------------------------------------------------------------------------------------------------


def test_depth_of_raw_bytes_and_of_a_form(client):
    for answer in (ask(client), client.post("/v1/depth", files={"image": ("a b/ü.png", PHOTO, "image/png")})):
        np.testing.assert_allclose(metres(answer), depth_of(photograph()), rtol=1e-4)
    assert answer.headers["content-type"] == "image/png"
    assert "filename*=UTF-8''%C3%BC.png.depth.png" in answer.headers["content-disposition"]
    assert read_depth(io.BytesIO(answer.content)).attributes["model_digest"] == DIGEST


@pytest.mark.parametrize("kind", OUTPUTS)
def test_every_kind_is_the_file_that_predict_writes(client, kind, tmp_path):
    if kind not in kinds_here():
        assert ask(client, format=kind).status_code == 422
        return
    alone = ask(client, format=kind)
    assert alone.status_code == 200, alone.text
    both = zipfile.ZipFile(io.BytesIO(ask(client, format=[kind, "npz", "json"]).content))
    assert sorted(both.namelist()) == sorted({f"upload{SUFFIXES[name]}" for name in (kind, "npz", "json")})
    if kind != "json":  # which names the depth file beside it
        assert both.read(f"upload{SUFFIXES[kind]}") == alone.content
    facts = json.loads(both.read("upload.json"))
    assert (facts["width"], facts["height"], facts["num_members"]) == (64, 48, 2)
    assert facts["input_tag"].startswith("sha256:") and facts["uncertainty_median"] == pytest.approx(0.05)
    if kind == "uncertainty":
        np.testing.assert_allclose(read_uncertainty_png(io.BytesIO(alone.content))[0], 0.05, atol=1e-4)


def test_exif_counts_unless_the_query_states_a_camera(client):
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0xA405] = 28  # FocalLengthIn35mmFilm
    photo = encoded(photograph(), "JPEG", exif=exif)
    exif_px = focal_px_from_35mm(28, 48, 64)
    for query, expected_px, place in [
        ({}, exif_px, "exif"),
        ({"focal_px": 70}, 70, "argument"),
        ({"focal_35mm": 50}, focal_px_from_35mm(50, 48, 64), "argument"),
        ({"fov_deg": 90}, 32, "argument"),
    ]:
        facts = ask(client, photo, format="json", **query).json()
        assert facts["focal_px"] == pytest.approx(expected_px) and facts["focal_from"] == place
        assert facts["intrinsics"][0][0] == facts["focal_px"]


def test_formats_that_browsers_do_not_know_are_read_and_turned_upright(client):
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = np.rot90(photograph())  # as a camera held upright stores it
    answer = ask(client, encoded(np.ascontiguousarray(turned), "TIFF", exif=exif))
    np.testing.assert_allclose(metres(answer), depth_of(photograph()), rtol=1e-4)
    heic = encoded(photograph(64, 64), "HEIF", quality=95)
    expected = depth_of(read_rgb(heic, max_pixels=10_000))
    np.testing.assert_allclose(metres(ask(client, heic)), expected, rtol=1e-4)


def test_model_metrics_and_openapi(shared):
    client, _, model = shared
    found = client.get("/v1/model").json()
    assert (found["name"], found["digest"], found["one_step"]) == ("metricgold/3", DIGEST, False)
    assert found["presets"] == ["paper", "balanced", "fast", "one-step"] and "glb" in found["formats"]
    assert ask(client, preset="balanced").status_code == 200
    assert model.options[-1]["num_inference_steps"] == 10 and model.options[-1]["ensemble_size"] == 4
    text = client.get("/metrics").text
    assert 'metricgold_requests_total{status="200"}' in text
    assert f'metricgold_model_info{{digest="{DIGEST}",name="metricgold/3"}} 1.0' in text
    api = client.get("/openapi.json").json()
    post = api["paths"]["/v1/depth"]["post"]
    assert {"multipart/form-data", "image/*"} <= set(post["requestBody"]["content"])
    assert all("example" in post["responses"][code]["content"]["application/json"] for code in ("200", "415", "429"))
    assert {one["name"] for one in post["parameters"]} == {"format", "preset", "focal_px", "focal_35mm", "fov_deg"}
    assert client.get("/docs").status_code == 404  # it would load scripts of another host


def test_a_one_step_model_needs_not_be_told():
    with serving(CountingModel(one_step=True)) as (client, _):
        assert client.get("/v1/model").json()["presets"] == ["one-step"]
        assert ask(client).status_code == 200
        refused = ask(client, preset="paper")
        assert refused.status_code == 422 and "one-step" in refused.json()["error"]


# --- what is refused ------------------------------------------------------------------------------------------

REFUSED = {
    "a text": (415, {"content": b"not a photograph"}, "not an image"),
    "nothing": (415, {"content": b""}, "empty file"),
    "half a photograph": (422, {"content": PHOTO[: len(PHOTO) // 2]}, "cannot be read"),
    "too many pixels": (422, {"content": encoded(np.zeros((101, 100, 3), np.uint8))}, "limit max_pixels"),
    "a strip": (422, {"content": encoded(np.zeros((2, 90, 3), np.uint8))}, "limit max_aspect"),
    "too many bytes": (413, {"content": bytes(200_001)}, "more than 200000 bytes"),
    "many bytes in chunks": (413, {"content": (bytes(1 << 16) for _ in range(100))}, "more than 200000 bytes"),
    "a large form": (413, {"files": {"image": bytes(300_000)}}, "the body is more than"),
    "a form without a file": (400, {"files": {"image": (None, b"text")}}, "form"),
    "two files": (400, {"files": [("a", ("a.png", PHOTO)), ("b", ("b.png", PHOTO))]}, "one file"),
    "a broken form": (400, {"content": PHOTO, "headers": {"content-type": "multipart/form-data; boundary=x"}}, "form"),
    "a form without a boundary": (400, {"content": PHOTO, "headers": {"content-type": "multipart/form-data"}}, "form"),
    "a misspelt parameter": (422, {"content": PHOTO, "params": {"fromat": "glb"}}, "fromat"),
    "an unknown format": (422, {"content": PHOTO, "params": {"format": "pfm"}}, "log-png"),
    "an unknown preset": (422, {"content": PHOTO, "params": {"preset": "best"}}, "paper"),
    "a focal length of 0": (422, {"content": PHOTO, "params": {"focal_px": 0}}, "focal_px"),
    "a focal length that is none": (422, {"content": PHOTO, "params": {"focal_px": "long"}}, "focal_px"),
    "an infinite focal length": (422, {"content": PHOTO, "params": {"focal_px": "inf"}}, "focal_px"),
    "two cameras": (422, {"content": PHOTO, "params": {"focal_px": 50, "fov_deg": 50}}, "one of"),
}


@pytest.fixture(scope="module")
def small():
    with serving(CountingModel(), params={"max_pixels": 10_000}, max_bytes=200_000) as (client, _):
        yield client


@pytest.mark.parametrize("case", REFUSED)
def test_a_fault_is_one_line_with_its_own_status(small, case):
    status, request, part = REFUSED[case]
    answer = small.post("/v1/depth", **request)
    assert answer.status_code == status, answer.text
    assert set(answer.json()) == {"error"} and part in answer.json()["error"] and "\n" not in answer.json()["error"]
    assert ask(small).status_code == 200


def test_other_paths_and_methods_are_refused_in_json(client):
    assert client.get("/v1/depth").status_code == 405
    for path in ("/nowhere", "/page/../app.py", "/page/%2e%2e%2fapp.py", "/page/..%5capp.py"):
        answer = client.get(path)
        assert answer.status_code == 404 and set(answer.json()) == {"error"}


def test_an_upload_that_stays_away_ends():
    with serving(CountingModel(), upload_s=0.2) as (client, service):
        with socket.create_connection((client.base_url.host, client.base_url.port)) as slow:
            slow.sendall(b"POST /v1/depth HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\nabc")
            assert slow.recv(100).startswith(b"HTTP/1.1 408")
        wait_until(lambda: service.in_flight == 0)


def test_a_model_that_fails_or_takes_too_long_says_nothing_of_the_server():
    model = CountingModel()
    with serving(model, timeout_s=0.3) as (client, service):
        model.fails = RuntimeError("/srv/secret/unet.py is out of memory")
        answer = ask(client)
        assert answer.status_code == 500 and "secret" not in answer.text and "log" in answer.json()["error"]
        model.fails = None
        model.gate.clear()
        assert ask(client).status_code == 503
        model.gate.set()
        wait_until(lambda: ask(client).status_code == 200)
        assert service.in_flight == 0


# --- many at once ---------------------------------------------------------------------------------------------


def test_five_hundred_requests_good_and_bad_fifty_at_once(small):
    photos = [photograph(40 + n % 3 * 8, 70 - n % 5 * 9, n) for n in range(40)]
    files = [encoded(rgb) for rgb in photos]
    bad = [name for name in REFUSED if "chunks" not in name]  # whose generator serves once

    def one(n):
        if n % 4 == 3:
            status, request, _ = REFUSED[bad[n // 4 % len(bad)]]
            return small.post("/v1/depth", **request).status_code == status
        data = files[n % 40]
        answer = ask(small, data) if n % 4 else small.post("/v1/depth", files={"image": ("n.png", data)})
        return np.allclose(metres(answer), depth_of(photos[n % 40]), rtol=1e-4)

    with ThreadPoolExecutor(50) as pool:
        right = list(pool.map(one, range(500)))
    assert len(right) == 500 and all(right)
    wait_until(lambda: "metricgold_requests_in_flight 0.0" in small.get("/metrics").text)


def test_concurrent_requests_of_one_size_and_job_share_a_pass():
    model = CountingModel()
    with serving(model, window_s=5) as (client, _), ThreadPoolExecutor(9) as pool:
        model.gate.clear()
        first = pool.submit(ask, client)
        wait_until(lambda: model.batches)
        wide = [pool.submit(ask, client, encoded(photograph(40, 60 + n, n))) for n in range(4)]
        tall = [pool.submit(ask, client, encoded(photograph(60, 40, n))) for n in range(2)]
        fast = [pool.submit(ask, client, preset="balanced") for _ in range(2)]
        wait_until(lambda: "metricgold_requests_in_flight 9.0" in client.get("/metrics").text)
        time.sleep(0.2)  # until all of them are read
        model.gate.set()
        for n, answer in enumerate(wide):
            np.testing.assert_allclose(metres(answer.result()), depth_of(photograph(40, 60 + n, n)), rtol=1e-4)
        assert all(answer.result().status_code == 200 for answer in (first, *tall, *fast))
    assert Counter(map(len, model.batches)) == {1: 1, 4: 1, 2: 2}


def test_one_request_alone_waits_for_nobody():
    with serving(CountingModel(), window_s=20) as (client, _):
        started = time.monotonic()
        assert ask(client).status_code == 200
        assert time.monotonic() - started < 10


def test_one_request_too_many_is_told_to_come_again():
    model = CountingModel()
    with serving(model, max_queue=2) as (client, service), ThreadPoolExecutor(2) as pool:
        model.gate.clear()
        taken = [pool.submit(ask, client) for _ in range(2)]
        wait_until(lambda: service.in_flight == 2)
        refused = ask(client)
        assert refused.status_code == 429 and refused.headers["retry-after"] == "1"
        assert client.get("/readyz").status_code == 503 and client.get("/healthz").status_code == 200
        model.gate.set()
        assert [one.result().status_code for one in taken] == [200, 200]
        wait_until(lambda: client.get("/readyz").status_code == 200)


def test_what_a_client_left_is_not_computed():
    model = CountingModel()
    with serving(model, params={"batch_size": 2}) as (client, service), ThreadPoolExecutor(1) as pool:
        model.gate.clear()
        stays = pool.submit(ask, client)
        wait_until(lambda: model.batches)
        for _ in range(3):
            with socket.create_connection((client.base_url.host, client.base_url.port)) as leaves:
                head = f"POST /v1/depth HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(PHOTO)}\r\n\r\n"
                leaves.sendall(head.encode() + PHOTO)
                wait_until(lambda: service.in_flight == 2)
            wait_until(lambda: service.in_flight == 1)
        model.gate.set()
        assert stays.result().status_code == 200
        assert ask(client).status_code == 200
        assert "metricgold_clients_left_total 3.0" in client.get("/metrics").text
    assert [len(batch) for batch in model.batches] == [1, 1]


def test_requests_that_came_before_another_model_keep_theirs():
    before, after = CountingModel(), CountingModel(one_step=True, scale=2.0)
    with serving(before) as (client, service), ThreadPoolExecutor(8) as pool:
        before.gate.clear()
        early = [pool.submit(ask, client, preset="balanced") for _ in range(4)]
        wait_until(lambda: service.in_flight == 4 and before.batches)
        time.sleep(0.2)
        service.model = served_model(after, name="metricgold/4", digest="cd" * 32)
        late = [pool.submit(ask, client) for _ in range(4)]
        before.gate.set()
        for answer in early:
            np.testing.assert_allclose(metres(answer.result()), depth_of(photograph()), rtol=1e-4)
        for answer in late:
            np.testing.assert_allclose(metres(answer.result()), 2 * depth_of(photograph()), rtol=1e-4)
        assert client.get("/v1/model").json()["name"] == "metricgold/4"
        assert 'metricgold_model_info{digest="abab' not in client.get("/metrics").text


# --- who may ask, and what is kept ----------------------------------------------------------------------------


def test_a_token_guards_what_costs_and_what_tells():
    with serving(CountingModel(), token="s3cret") as (client, _):
        for wrong in ({}, {"authorization": "Bearer wrong"}, {"authorization": "Basic s3cret"}):
            for answer in (
                client.post("/v1/depth", content=PHOTO, headers=wrong),
                client.get("/v1/model", headers=wrong),
                client.get("/metrics", headers=wrong),
            ):
                assert answer.status_code == 401 and answer.headers["www-authenticate"] == "Bearer"
                assert "s3cret" not in answer.text
        right = {"authorization": "Bearer s3cret", "host": "depth.example.org"}
        assert client.post("/v1/depth", content=PHOTO, headers=right).status_code == 200
        assert client.get("/healthz").status_code == client.get("/readyz").status_code == 200


def test_other_sites_cannot_ask_from_a_browser(client):
    """Neither by a request that browsers send unasked, nor by a name of their own for this machine."""
    answer = client.post("/v1/depth", content=PHOTO, headers={"origin": "https://example.org"})
    assert answer.status_code == 403
    assert client.get("/v1/model", headers={"host": "example.org"}).status_code == 400
    own = client.post("/v1/depth", content=PHOTO, headers={"origin": str(client.base_url).rstrip("/")})
    assert own.status_code == 200
    for got in (answer, own, client.options("/v1/depth", headers={"origin": "https://example.org"})):
        assert not [name for name in got.headers if name.startswith("access-control")]
        assert got.headers["x-content-type-options"] == "nosniff"


def test_uploads_stay_in_memory(client, monkeypatch):
    def on_disk(*_, **__):
        raise AssertionError("a file is made")

    monkeypatch.setattr(tempfile.SpooledTemporaryFile, "rollover", on_disk)
    monkeypatch.setattr(tempfile, "TemporaryFile", on_disk)
    noise = np.random.default_rng(0).integers(0, 256, (1000, 1500, 3), dtype=np.uint8)
    answer = client.post("/v1/depth", files={"image": ("noise.png", encoded(noise, compress_level=0))})
    np.testing.assert_allclose(metres(answer), depth_of(noise), rtol=1e-4)


MANUAL = (ROOT / "docs" / "serving.md").read_text()


def test_the_commands_of_the_manual_do_what_it_says(tmp_path):
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    (tmp_path / "photo.jpg").write_bytes(PHOTO)
    commands = re.findall(r"^curl (.*)$", MANUAL, re.MULTILINE)
    with serving(CountingModel(), token="s3cret") as (client, _):
        for command in commands:
            asked = command.replace("http://127.0.0.1:8000", str(client.base_url).rstrip("/"))
            told = "" if "Authorization" in command else " -H 'Authorization: Bearer s3cret'"
            done = subprocess.run(
                ["bash", "-c", f"curl -sSf {asked}{told}"],
                cwd=tmp_path,
                env=os.environ | {"METRICGOLD_SERVE_TOKEN": "s3cret"},
                capture_output=True,
                text=True,
            )
            assert done.returncode == 0, (command, done.stderr)
    assert len(commands) >= 7
    np.testing.assert_allclose(
        read_depth(tmp_path / "photo.jpg.depth.png").planar_depth_m, depth_of(photograph()), rtol=1e-4
    )
    assert (tmp_path / "photo.jpg.glb").read_bytes().startswith(b"glTF")
    assert len(zipfile.ZipFile(tmp_path / "photo.jpg.zip").namelist()) == 2


def test_the_python_of_the_manual_does_what_it_says(client, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photo.jpg").write_bytes(PHOTO)
    (code,) = re.findall(r"^```python\n(.*?)^```$", MANUAL, re.MULTILINE | re.DOTALL)
    names: dict = {}
    exec(code.replace("http://127.0.0.1:8000", str(client.base_url).rstrip("/")), names)
    np.testing.assert_allclose(names["depth_m"], depth_of(photograph()), rtol=1e-4)


def test_no_answer_names_a_path_of_the_server(shared):
    client, *_ = shared
    answers = [ask(client, format=kind) for kind in kinds_here()] + [ask(client, b"text"), ask(client, format="x")]
    answers += [client.get(path) for path in ("/", "/v1/model", "/metrics", "/openapi.json", "/nix")]
    for answer in answers:
        assert b"/nowhere" not in answer.content and b"metricgold/serve" not in answer.content
