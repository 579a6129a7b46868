"""One small project from archives to a depth file, each link of whose chain is broken on purpose and named."""

import io
import json
import os
import re
import shutil
import subprocess
from contextlib import chdir, contextmanager
from pathlib import Path

import numpy as np
import pytest
import yaml
from click.testing import CliRunner
from PIL import Image

from metricgold.cli import main
from metricgold.datasets.manifest import load_manifest
from metricgold.datasets.synthetic.synthesize import synthesize
from metricgold.download.stage import download
from metricgold.encode.stage import encode
from metricgold.export import export_hub
from metricgold.params.sections import Predict, Synthesize
from metricgold.predict.stage import predict_all
from metricgold.registry.lineage_page import broken_links, render_page, summary_of, tree_lines
from metricgold.registry.provenance import trace
from metricgold.registry.pyfunc import fetch_model
from metricgold.registry.versions import register
from metricgold.storage.files import digest_file, digest_folder, digest_json
from metricgold.train.stage import train
from tests.conftest import DATASET, TINY
from tests.registry.project import SCORES, mlflow_client
from tests.support import ROOT
from tests.support.browser import Browser, find_browser
from tests.support.s3 import s3_bucket, s3_client, s3_environment  # noqa: F401

DEPTH = "depth/a/one.png.depth.png"
DEMO = Path("data/demo/depth/hypersim-synthetic-00.png.depth.png")
RAW, CACHE, MODEL = Path("data/raw") / DATASET, Path("data/latents") / DATASET, Path("models/metricgold")


@pytest.fixture(scope="module")
def made(tmp_path_factory, tiny_backbone):
    """A project after synthesize, download, encode, train, register and predict."""
    folder = tmp_path_factory.mktemp("lineage")
    env = {key: os.environ.pop(key) for key in ("MLFLOW_TRACKING_URI",) if key in os.environ}
    with chdir(folder):
        Path("params.yaml").write_text(yaml.safe_dump(TINY.model_dump(mode="json")))
        small = Synthesize(height=32, width=48, num_train_scenes=2, num_test_scenes=1, num_val_scenes=1)
        synthesize(DATASET, small, Path("data/synthetic") / DATASET)
        download(load_manifest(DATASET), RAW)
        shutil.copytree(tiny_backbone, "models/backbone")
        encode(DATASET, TINY.encode, TINY.log_depth, RAW, Path("models/backbone"), CACHE)
        for words in (["init", "-q"], ["add", "params.yaml"], ["commit", "-qm", "params"]):
            subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", *words], check=True)
        train(TINY.train, TINY.log_depth, {DATASET: CACHE}, Path("models/backbone"), MODEL)
        Path("metrics").mkdir()
        Path("metrics/evaluate.json").write_text(json.dumps(SCORES | {"model_digest": digest_folder(MODEL)}))
        register(TINY, MODEL, Path("metrics/evaluate.json"))
        Path("photos/a").mkdir(parents=True)
        rgb = np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)
        Image.fromarray(rgb).save("photos/a/one.png")
        params = Predict(
            num_inference_steps=1, ensemble_size=1, gallery=0, outputs=["log-png", "npz", "preview", "json"]
        )
        model, name = fetch_model("models:/metricgold@candidate")
        predict_all(params, model, "photos", "depth", model_name=name)
    os.environ.update(env)
    return folder


@pytest.fixture
def project(made, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(made)
    return made


def kinds(link):
    return [one.kind for _, one in link.walk()]


def states(link):
    return {one.kind: one.state for _, one in link.walk()}


def the(link, kind):
    return next(one for _, one in link.walk() if one.kind == kind)


CHAIN = [
    "depth file",
    "version",
    "code",
    "checkpoint",
    "params",
    "backbone",
    "cache",
    "data set",
    "manifest",
    "archives",
]


def test_from_a_depth_file_back_to_the_checksums_of_archives(project):
    """Every digest computed here again from the files, by other words than the command's."""
    chain = trace(DEPTH, verify=True)
    assert kinds(chain) == CHAIN
    assert set(states(chain).values()) == {"whole"}
    assert chain.digest == digest_file(Path(DEPTH))
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    assert the(chain, "code").digest == commit
    assert the(chain, "version").digest == the(chain, "checkpoint").digest == digest_folder(MODEL)
    assert the(chain, "params").digest == digest_json(TINY.model_dump(mode="json"))
    assert the(chain, "backbone").digest == digest_folder(Path("models/backbone"))
    assert the(chain, "cache").digest == digest_file(CACHE / "index.json")
    ledger = json.loads((RAW / "ledger.json").read_text())
    assert the(chain, "manifest").digest == ledger["manifest_sha256"]
    archives = the(chain, "archives").facts["archives"]
    assert {path: one["digest"] for path, one in archives.items()} == {
        path: entry["members_sha256"] for path, entry in ledger["archives"].items()
    }
    for path, one in archives.items():
        published = {key: digest for key, digest in one.items() if key != "digest"}
        assert published, "each archive has a published checksum"
        source = Path("data/synthetic") / DATASET / path
        assert published == {key: digest_file(source, key) for key in published}


def test_without_verify_no_weights_are_read(project):
    found = states(trace(DEPTH))
    assert found["checkpoint"] == found["backbone"] == "recorded"
    # Of the archives the ledger's digests are compared with those in the version's lineage.json.
    compared = ("depth file", "version", "cache", "manifest", "archives")
    assert {found[kind] for kind in compared} == {"whole"}


@pytest.mark.parametrize(
    ("uri", "first"),
    [
        ("depth/receipt.jsonl#a/one.png", "depth file"),
        ("depth/a/one.png.preview.jpg", "depth file"),
        ("depth/a/one.png.depth.npz", "depth file"),
        ("depth/a/one.png.json", "depth file"),
        ("models:/metricgold@candidate", "version"),
        ("models:/metricgold/1", "version"),
        ("models/metricgold", "checkpoint"),
        (str(CACHE), "cache"),
    ],
)
def test_the_chain_begins_where_it_is_asked_for(project, uri, first):
    chain = trace(uri)
    assert chain.kind == first and not broken_links(chain)
    assert kinds(chain)[-4:] == CHAIN[-4:]


def test_an_exported_folder_leads_to_its_version(project, tmp_path):
    export_hub(MODEL, {"README.md": "# A card"}, tmp_path / "hub")
    chain = trace(str(tmp_path / "hub"), verify=True)
    assert chain.kind == "checkpoint" and kinds(chain)[-4:] == CHAIN[-4:]
    assert chain.digest == digest_folder(MODEL) and chain.facts["version"] == "metricgold/1"
    assert not broken_links(chain)


def test_a_depth_file_on_s3(project, s3_bucket):  # noqa: F811
    for path in Path("depth").rglob("*"):
        if path.is_file():
            s3_client().upload_file(str(path), s3_bucket, f"jobs/{path.as_posix()}")
    chain = trace(f"s3://{s3_bucket}/jobs/{DEPTH}")
    assert kinds(chain) == CHAIN and not broken_links(chain)
    assert chain.num_compared == trace(DEPTH).num_compared


@contextmanager
def changed(path, change):
    """A file with other bytes, None for none, as long as this lasts."""
    path, aside = Path(path), Path(path).with_name(f".aside-{Path(path).name}")
    shutil.copy2(path, aside)
    try:
        content = change(path.read_bytes())
        if content is None:
            path.unlink()
        else:
            path.write_bytes(content)
        yield
    finally:
        aside.replace(path)


def flip(content):
    """The same with its last bit turned."""
    return content[:-1] + bytes([content[-1] ^ 1])


def in_json(*keys, value):
    """A change of one value in a JSON file."""

    def change(content):
        values = json.loads(content)
        inner = values
        for key in keys[:-1]:
            inner = inner[key]
        inner[keys[-1]] = value
        return json.dumps(values).encode()

    return change


def one_of(folder, pattern):
    return sorted(Path(folder).rglob(pattern))[0]


BREAKS = {
    "depth file": (lambda: DEPTH, lambda content: repaint(content), "its bytes are not those that the side-car names"),
    "side-car": (
        lambda: "depth/a/one.png.json",
        in_json("model_digest", value="0" * 64),
        "the side-car names another model_digest than the file itself",
    ),
    "checkpoint": (
        lambda: one_of(artifact(), "*.safetensors"),
        flip,
        "are not those that were registered",
    ),
    "backbone": (lambda: one_of("models/backbone", "*.safetensors"), flip, "models/backbone is another by now"),
    "cache": (lambda: CACHE / "index.json", in_json("num_frames", value=7), f"{CACHE} is another cache by now"),
    "shard": (lambda: one_of(CACHE, "*.h5"), flip, "is not what was encoded"),
    "lost shard": (lambda: one_of(CACHE, "*.h5"), lambda _: None, "is gone"),
    "data set": (
        lambda: RAW / "ledger.json",
        lambda content: content.replace(b'"members_sha256": "', b'"members_sha256": "0'),
        "is not what the cache was encoded from",
    ),
    "manifest": (
        lambda: RAW / "manifest.yaml",
        lambda content: content.replace(
            b"name: tartanair-synthetic\n", b"name: tartanair-synthetic\nmembers: ['*x']\n"
        ),
        "it names other members or splits than were downloaded",
    ),
    "raw file": (lambda: one_of(RAW, "*.npy"), flip, "is not what was downloaded"),
    "archive": (
        lambda: one_of(Path("data/synthetic") / DATASET, "*.zip"),
        flip,
        "is not what was published",
    ),
}
LINK_OF = {
    "side-car": "depth file",
    "shard": "cache",
    "lost shard": "cache",
    "raw file": "archives",
    "archive": "archives",
}


def artifact():
    """The checkpoint in the registry."""
    return fetch_model("models:/metricgold/1")[0]


def repaint(content):
    """The same depth file with other pixels."""
    with Image.open(io.BytesIO(content)) as image:
        from PIL import PngImagePlugin

        texts = PngImagePlugin.PngInfo()
        for key, text in image.info.items():
            texts.add_text(key, text)
        pixels = np.asarray(image).copy()
        pixels[0, 0] ^= 1
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG", pnginfo=texts)
    return file.getvalue()


@pytest.mark.parametrize("where", BREAKS)
def test_a_broken_link_is_named(project, where):
    find, change, why = BREAKS[where]
    with changed(find(), change):
        broken = broken_links(trace(DEPTH, verify=True))
    link = LINK_OF.get(where, where)
    fault = next(fault for fault in broken if why in fault["why"])
    assert fault["link"].rpartition(" → ")[2].startswith(f"{link} ")
    assert fault["expected"] and fault["found"] and fault["expected"] != fault["found"]
    assert not broken_links(trace(DEPTH, verify=True)), "and whole again afterwards"


def test_a_commit_that_this_checkout_lacks(project):
    Path(".git").rename(".git.aside")
    try:
        subprocess.run(["git", "init", "-q"], check=True)
        (fault,) = broken_links(trace(DEPTH))
        assert fault["link"].rpartition(" → ")[2].startswith("code commit ")
        assert "`git fetch` may bring it" in fault["why"]
    finally:
        shutil.rmtree(".git")
        Path(".git.aside").rename(".git")


def test_a_version_that_is_of_another_model(project):
    """The depth file names version 1; here that is another, while the project's own checkpoint is the one."""
    client = mlflow_client()
    was = client.get_model_version("metricgold", "1").tags["model_digest"]
    client.set_model_version_tag("metricgold", "1", "model_digest", "0" * 64)
    try:
        chain = trace(DEPTH)
    finally:
        client.set_model_version_tag("metricgold", "1", "model_digest", was)
    (fault,) = broken_links(chain)
    assert fault["link"].endswith(" → version metricgold/1") and fault["why"] == "metricgold/1 is of another model"
    assert (fault["expected"], fault["found"]) == (was, "0" * 64)
    assert "cache" in kinds(chain), "and goes on with what is known"


@pytest.mark.parametrize(
    ("change", "link", "why"),
    [
        (
            lambda record: record["params"]["train"].update(seed=9),
            "params",
            "they are not those of the version's params_digest",
        ),
        (lambda record: record["caches"][DATASET].update(digest="0"), "checkpoint", "names another cache of"),
        (lambda record: record["model"].update(digest="0"), "version", "its lineage.json is of another model"),
        (lambda record: record.update(note=1), "version", "its lineage.json is not the one that was registered"),
        (lambda record: record["code"].update(commit="0" * 40), "code", "this checkout lacks"),
        (
            lambda record: record["datasets"][DATASET].update(
                archives=dict.fromkeys(record["datasets"][DATASET]["archives"], "0")
            ),
            "archives",
            "is another than when the model was registered",
        ),
    ],
)
def test_a_lineage_json_that_was_changed(project, change, link, why):
    """Of the version: its digest is a tag, and the checkpoint's own lineage.json says the same."""
    run_id = mlflow_client().get_model_version("metricgold", "1").run_id
    (path,) = Path("mlruns").rglob(f"{run_id}/artifacts/lineage.json")

    def edit(content):
        record = json.loads(content)
        change(record)
        return json.dumps(record).encode()

    with changed(path, edit):
        broken = broken_links(trace(DEPTH, verify=True))
    assert any(why in fault["why"] and fault["link"].rpartition(" → ")[2].startswith(link) for fault in broken), broken


def test_the_model_of_another_project(project, tmp_path, monkeypatch):
    """Where nothing knows the digest, the chain ends there, with the digest that was looked for."""
    shutil.copytree("depth", tmp_path / "depth")
    monkeypatch.chdir(tmp_path)
    (fault,) = broken_links(trace(DEPTH))
    assert fault["why"] == "no registered version and no checkpoint here is this model"
    assert fault["expected"] == json.loads(Path("depth/a/one.png.json").read_text())["model_digest"]
    assert not Path("mlflow.db").exists(), "looking makes no registry"


def test_a_clone_with_the_registry_alone(project, made, tmp_path, monkeypatch):
    """Without data or weights, records carry the chain to the archives."""
    shutil.copytree(made / "depth", tmp_path / "clone/depth")
    subprocess.run(["git", "clone", "-q", made, tmp_path / "clone/code"], check=True)
    (tmp_path / "clone/depth").rename(tmp_path / "clone/code/depth")
    monkeypatch.chdir(tmp_path / "clone/code")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{made / 'mlflow.db'}")
    chain = trace(DEPTH)
    assert kinds(chain)[:7] == CHAIN[:7]
    cache = the(chain, "cache")
    assert cache.state == "recorded" and cache.digest == digest_file(made / CACHE / "index.json")
    assert any("dvc pull" in note for note in cache.notes)
    assert [one.kind for one in (the(chain, kind) for kind in CHAIN)] == CHAIN
    ledger = json.loads((made / RAW / "ledger.json").read_text())
    archives = {path: one["digest"] for path, one in the(chain, "archives").facts["archives"].items()}
    assert archives == {path: entry["members_sha256"] for path, entry in ledger["archives"].items()}
    assert the(chain, "manifest").digest == ledger["manifest_sha256"]
    assert not broken_links(chain)


def test_a_clone_that_pulled_what_dvc_has(project, made, tmp_path, monkeypatch):
    """Weights, caches and ledgers are there, raw files are not: all that is there is hashed, the rest is noted."""
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "-q", made, clone], check=True)
    for path in ("depth", "models", CACHE, RAW / "ledger.json"):
        (clone / path).parent.mkdir(parents=True, exist_ok=True)
        (shutil.copyfile if (made / path).is_file() else shutil.copytree)(made / path, clone / path)
    monkeypatch.chdir(clone)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{made / 'mlflow.db'}")
    chain = trace(DEPTH, verify=True)
    assert kinds(chain) == CHAIN and not broken_links(chain)
    found = states(chain)
    assert {found[kind] for kind in CHAIN[:7]} == {"whole"}
    archives = the(chain, "archives")
    assert archives.state == "whole" and any("of their files are not here" in note for note in archives.notes)


def test_the_command(project, tmp_path):
    run = CliRunner().invoke(main, ["lineage", DEPTH, "--html", str(tmp_path / "page.html")])
    assert run.exit_code == 0, run.output
    assert [line.split()[1] for line in run.stdout.splitlines()[:2]] == ["depth", "✓"]
    answer = json.loads(CliRunner().invoke(main, ["lineage", DEPTH, "--json"]).stdout)
    assert answer["whole"] and answer["broken"] == [] and answer["chain"]["kind"] == "depth file"
    with changed(CACHE / "index.json", in_json("num_frames", value=7)):
        run = CliRunner().invoke(main, ["lineage", DEPTH])
    assert run.exit_code == 1
    assert "expected" in run.stdout and "broken at 1 of" in run.stdout


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("photos", "photos: a folder, expected a checkpoint or a latent cache"),
        ("photos/a/one.png", "photos/a/one.png: expected an output of `metricgold predict`"),
        ("depth/a/two.png.depth.png", "depth/a/two.png.depth.png: no such file"),
        ("depth/receipt.jsonl#two.png", "depth/receipt.jsonl#two.png: no row of this input"),
        ("models:/metricgold@nobody", "no version of metricgold has the alias nobody"),
        ("models:/metricgold", "models:/metricgold: expected models:/name@alias or models:/name/version"),
    ],
)
def test_what_has_no_lineage(project, uri, message):
    run = CliRunner().invoke(main, ["lineage", uri])
    assert run.exit_code == 1 and message in run.stderr and len(run.stderr.splitlines()) == 1


def test_the_page_shows_every_link_without_a_network(project, tmp_path):
    with changed(CACHE / "index.json", in_json("num_frames", value=7)):
        chain = trace(DEPTH)
    page = tmp_path / "page.html"
    page.write_text(render_page(chain, DEPTH))
    assert page.read_text().count("<rect") == len(kinds(chain)) and "another cache by now" in page.read_text()
    program = find_browser()
    if program is None:
        pytest.skip("no browser here")
    with Browser(program) as browser:
        for width in (360, 1400):
            browser.open(page.as_uri(), width=width)
            assert browser.run("document.documentElement.scrollWidth <= innerWidth"), f"fits {width} px"
        assert not browser.complaints and browser.requests == [page.as_uri()]


def manual_tree():
    """The lines of the manual's tree."""
    page = (ROOT / "docs/registry-and-promotion.md").read_text()
    return (
        next(block for block in page.split("```text\n") if block.startswith("✓ depth file"))
        .split("```")[0]
        .splitlines()
    )


def without_figures(lines):
    """Lines without digests and counts, which differ from demo to demo."""
    return [re.sub(r" +[0-9a-f]{12}\b| +\(\d+ compared\)| \d+ of|\d+ digests", "", line) for line in lines]


def test_the_manual_s_tree_has_the_links_that_are_made(project):
    chain = trace(DEPTH, verify=True)
    words = re.findall(
        r"✓ (depth file|version|code|checkpoint|params|backbone|cache|data set|manifest|archives) ",
        " ".join(manual_tree()),
    )
    assert words[:7] == kinds(chain)[:7] and words[-4:] == kinds(chain)[-4:]
    assert re.fullmatch(r"\d+ links hold; \d+ digests compared", manual_tree()[-1])


@pytest.mark.slow
@pytest.mark.skipif(not (ROOT / DEMO).is_file(), reason="needs the outputs of `make demo`")
def test_the_manual_s_tree_is_that_of_the_demo(monkeypatch):
    monkeypatch.chdir(ROOT)
    chain = trace(str(DEMO), verify=True)
    lines = [*tree_lines(chain), summary_of(chain)]
    assert without_figures(lines) == without_figures(manual_tree())


def test_the_tree_is_drawn_with_a_branch_for_each_link(project):
    lines = list(tree_lines(trace(DEPTH)))
    assert sum(any(mark in line for mark in "✓·✗") for line in lines) == len(CHAIN)
    assert lines[0].startswith("✓ depth file") and lines[1].startswith("└─ ✓ version metricgold/1")
