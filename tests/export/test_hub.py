import base64
import json
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
from PIL import Image

from metricgold.export.hub import export_hub
from metricgold.model import digest_model
from metricgold.model.pipeline import MetricGoldPipeline
from metricgold.storage.files import digest_folder

TEXTS = {
    "README.md": "---\nlicense: apache-2.0\nlibrary_name: diffusers\n---\n# A model\n",
    "LICENSE.md": "# Licences\n",
}


@pytest.fixture(scope="module")
def exported(tmp_path_factory, tiny_model):
    out = tmp_path_factory.mktemp("hub") / "model"
    assert export_hub(tiny_model, TEXTS, out) == {"hub": str(out), "model_digest": digest_folder(tiny_model)}
    return out


def depth_by(folder):
    rgb = np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)
    return MetricGoldPipeline.from_pretrained(folder)(rgb, num_inference_steps=1, ensemble_size=1).planar_depth_m


def test_the_folder_has_the_checkpoint_as_it_is_and_its_words(exported, tiny_model):
    added = {"README.md", "LICENSE.md", "example.py"}
    of_model = {path.relative_to(tiny_model) for path in tiny_model.rglob("*") if path.is_file()}
    assert {path.relative_to(exported) for path in exported.rglob("*") if path.is_file()} == of_model | set(
        map(Path, added)
    )
    assert all((exported / path).read_bytes() == (tiny_model / path).read_bytes() for path in of_model)


def test_it_is_known_as_the_model_that_it_is_of(exported, tiny_model):
    """Depth that it predicts names the same model; what is not beside it on purpose counts."""
    assert digest_model(exported) == digest_model(tiny_model) == digest_folder(tiny_model) != digest_folder(exported)
    (exported / ".gitattributes").write_text("*.safetensors filter=lfs\n")  # as a hub adds
    (exported / "unet" / "README.md").write_text("of no hub")
    assert digest_model(exported) != digest_model(tiny_model)
    (exported / "unet" / "README.md").unlink()
    assert digest_model(exported) == digest_model(tiny_model)
    (exported / ".gitattributes").unlink()


def test_the_example_runs_as_it_is(exported, tmp_path):
    Image.fromarray(np.zeros((30, 40, 3), np.uint8)).save(tmp_path / "photo.png")
    command = [sys.executable, exported / "example.py", tmp_path / "photo.png", tmp_path / "depth.npz"]
    answer = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert "median depth" in answer.stdout
    assert np.load(tmp_path / "depth.npz")["planar_depth_m"].shape == (30, 40)


def test_an_export_replaces_an_earlier_one_and_nothing_else(exported, tiny_model, tmp_path):
    out = shutil.copytree(exported, tmp_path / "again")
    export_hub(tiny_model, TEXTS | {"README.md": "new"}, out)
    assert (out / "README.md").read_text() == "new"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.tex").write_text("years of work")
    with pytest.raises(FileExistsError):
        export_hub(tiny_model, TEXTS, tmp_path / "mine")
    with pytest.raises(ValueError, match="is not a checkpoint"):
        export_hub(tmp_path, TEXTS, tmp_path / "out")


class Hub(BaseHTTPRequestHandler):
    """As much of a model hub as one upload needs; what is committed goes into `files` by path."""

    files: dict[str, bytes] = {}

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path.endswith("/validate-yaml"):
            self.answer({"errors": [], "warnings": []})
        elif "/preupload/" in self.path:
            paths = [file["path"] for file in json.loads(body)["files"]]
            whole = [{"path": path, "uploadMode": "regular", "shouldIgnore": False, "oid": None} for path in paths]
            self.answer({"files": whole, "commitOid": "0" * 40})
        elif "/commit/" in self.path:
            for line in filter(None, body.splitlines()):
                row = json.loads(line)
                if row["key"] == "file":
                    self.files[row["value"]["path"]] = base64.b64decode(row["value"]["content"])
            url = f"http://{self.headers['Host']}/team/model/commit/{'0' * 40}"
            self.answer({"commitUrl": url, "commitOid": "0" * 40, "hookOutput": ""})
        else:
            self.answer({"url": f"http://{self.headers['Host']}/team/model"})

    def do_GET(self):
        self.answer({"id": "team/model", "sha": "0" * 40, "siblings": []})

    def answer(self, value):
        data = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *words):
        pass


def test_a_hub_takes_it_as_it_is_and_gives_the_same_model(exported, tiny_model, tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        api = huggingface_hub.HfApi(endpoint=f"http://127.0.0.1:{server.server_address[1]}", token="a-token")
        api.upload_folder(repo_id="team/model", folder_path=exported)
        server.shutdown()
    for path, content in Hub.files.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(content)
    assert digest_folder(tmp_path) == digest_folder(exported)
    np.testing.assert_array_equal(depth_by(tmp_path), depth_by(tiny_model))
    card = huggingface_hub.ModelCard.load(tmp_path / "README.md")
    assert card.data.license == "apache-2.0" and card.data.library_name == "diffusers"
