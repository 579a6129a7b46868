"""Wrong invocations of every command: one line that names what is wrong, code 1 or 2, never a traceback.

A case is the words, the files that differ from a sound project (None: not there, a name with / at its end: a folder),
the exit code, and what the line must name.
"""

import io
import shlex
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

from metricgold.cli import main
from metricgold.registry.mlflow_client import open_client
from tests.registry.conftest import random_model  # noqa: F401 - a fixture

READING_PARAMS = (
    *("synthesize hypersim-synthetic", "download hypersim-synthetic", "inspect mine", "backbone", "encode mine"),
    *("vae-floor", "depth-vae", "plan", "train", "evaluate", "benchmark mine", "register", "promote", "profile list"),
    "profile use h100",
)
PARAMS_FAULTS = {
    "given twice": ("datasets: [mine]\ntrain:\n  lr: 1e-5\n  lr: 1e-4\n", ["params.yaml", "line 4", "lr"]),
    "no YAML": ("datasets: [mine\n", ["params.yaml", "line 1"]),
    "bad bytes": (b"datasets: [mine]\n# caf\xe9\n", ["params.yaml", "line 2", "0xe9"]),
}


class Case(NamedTuple):
    words: str
    code: int
    names: list[str]
    files: dict[str, str | bytes | None] = {}


def params(text: str) -> dict[str, str]:
    return {"params.yaml": f"datasets: [mine]\n{text}\n"}


DEEP = "[" * 100_000
STATEMENT = """\
depth: {unit: millimetre, kind: planar, invalid: 0, far: null}
intrinsics: {first_pixel: 0, fx: 60.0, fy: 60.0, cx: 31.5, cy: 23.5}
splits: {train: ["*"]}
"""
RAW = "data/raw/mine/"
MANIFEST = """\
name: tiny
role: train
title: Tiny
source: https://example.org
licence: {name: CC BY 4.0, url: https://example.org/licence, terms: Attribution.}
citation: Nobody, 2026
depth: {unit: metre, kind: planar, invalid: "0"}
mirrors: ["https://example.org/tiny"]
archives: [{path: a.zip}]
splits: {scenes: {train: ["a*"]}}
"""


def manifest(old: str, new: str) -> dict[str, str]:
    assert old in MANIFEST
    return {"data_manifests/tiny.yaml": MANIFEST.replace(old, new)}


def statement(old: str, new: str) -> dict[str, str]:
    assert old in STATEMENT
    return {RAW + "dataset.yaml": STATEMENT.replace(old, new)}


def rows(content: str | bytes) -> dict[str, str | bytes]:
    return {RAW + "dataset.yaml": STATEMENT, RAW + "frames.csv": content}


def png(values: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(values).save(file, "PNG")
    return file.getvalue()


FRAME: dict[str, str | bytes] = {
    RAW + "dataset.yaml": STATEMENT,
    RAW + "s/rgb/1.png": png(np.zeros((48, 64, 3), np.uint8)),
    RAW + "s/depth/1.png": png(np.full((48, 64), 2000, np.uint16)),
}
TEST_FRAME = FRAME | {RAW + "dataset.yaml": STATEMENT.replace("train:", "test:")}
PREDICTION: dict[str, str | bytes] = {"in/s/1.png": png(np.full((48, 64), 2000, np.uint16))}


def stated(text: str) -> dict[str, str | bytes]:
    return PREDICTION | {"in/predictions.yaml": text}


STUDY = "question: Which?\nseeds: [0]\nfactors:\n  loss:\n    l2: {train: {loss: l2}}\n"
L3 = "    l3: {train: {loss: l3}}\n"
ROW = "s/rgb/1.png,s/depth/1.png,s\n"
CHECKPOINT = {"models/metricgold/model_index.json": "{}"}

CASES = [
    # Words that there are not
    Case("traine", 2, ["traine"]),
    Case("'tr\x1b[2Jain'", 2, [r"tr\x1b[2Jain"]),
    Case("'a\nb'", 2, [r"a\nb"]),
    Case("--colour red train", 2, ["--colour"]),
    Case("manifest chek", 2, ["chek"]),
    Case("profile change", 2, ["change"]),
    *(Case(f"{word} --nonsense", 2, ["--nonsense"]) for word in ("init", "synthesize", "download", "inspect", "plan")),
    *(Case(f"{word} --nonsense", 2, ["--nonsense"]) for word in ("backbone", "encode", "vae-floor", "depth-vae")),
    *(Case(f"{word} --nonsense", 2, ["--nonsense"]) for word in ("train", "evaluate", "predict", "register")),
    *(Case(f"{word} --nonsense", 2, ["--nonsense"]) for word in ("promote", "rollback", "manifest check")),
    *(Case(f"{word} --nonsense", 2, ["--nonsense"]) for word in ("profile list", "profile use", "benchmark")),
    *(Case(word, 2, ["DATASET"]) for word in ("synthesize", "download", "inspect", "encode")),
    Case("init", 2, ["FOLDER"]),
    Case("import-frames", 2, ["FOLDER"]),
    Case("import-frames --nonsense", 2, ["--nonsense"]),
    Case("import-frames in --camera 1,2,3", 2, ["--camera 1,2,3", "FX,FY,CX,CY"]),
    Case("import-frames in --kind z", 2, ["--kind", "planar"]),
    Case("import-frames nowhere", 1, ["nowhere", "not a folder"]),
    Case("import-frames in/rec", 1, ["in/rec", "transforms.json"], {"in/rec/": ""}),
    Case("import-frames in/rec --kind planar", 1, ["transforms.json"], {"in/rec/transforms.json": "{"}),
    Case("import-frames in/rec --kind planar", 1, ["transforms.json", "frames"], {"in/rec/transforms.json": "{}"}),
    Case("import-frames in/rec --kind planar", 1, ["transforms.json"], {"in/rec/transforms.json": b"\xff"}),
    Case(
        "import-frames in/rec --camera 1,2,3,4",
        1,
        ["rgb.txt", "line 1"],
        {"in/rec/rgb.txt": "x y", "in/rec/depth.txt": ""},
    ),
    Case("import-frames in/rec --camera 1,2,3,4", 1, ["depth.txt"], {"in/rec/rgb.txt": ""}),
    Case("import-frames in/rec", 1, ["frame_1.json", "intrinsics"], {"in/rec/frame_1.json": '{"intrinsics": 3}'}),
    Case("predict", 2, ["INPUT"]),
    Case("predict in", 2, ["OUTPUT"]),
    Case("profile use", 2, ["NAME"]),
    *(Case(f"{word} once more", 2, ["once"]) for word in ("backbone", "vae-floor", "depth-vae", "train", "evaluate")),
    *(Case(f"{word} once more", 2, ["once"]) for word in ("register", "promote", "rollback", "plan", "profile list")),
    Case("predict in out more", 2, ["more"]),
    # Params
    *(
        Case(words, 1, names, {"params.yaml": text})
        for words in READING_PARAMS
        for text, names in PARAMS_FAULTS.values()
    ),
    *(Case(words, 1, ["params.yaml"], {"params.yaml": None}) for words in READING_PARAMS[:13]),
    *(Case(f"--params other.yaml {words}", 1, ["other.yaml"]) for words in ("train", "plan", "predict in out")),
    Case("--params data train", 1, ["data"], {"data/": ""}),
    Case("--params /dev/zero train", 1, ["/dev/zero", "4,194,304"]),
    Case("--params params.yaml/x train", 1, ["params.yaml/x"]),
    Case("train", 1, ["params.yaml", "line 2", "*a"], {"params.yaml": "datasets: &a [mine]\ntrain: *a\n"}),
    Case("train", 1, ["params.yaml", "line 2", "deep"], params(f"train: {DEEP}")),
    Case("train", 1, ["params.yaml", "line 2", "python/object"], params("train: !!python/object:os.system {}")),
    Case("train", 1, ["params.yaml", "Params"], {"params.yaml": "- mine\n"}),
    Case("train", 1, ["params.yaml", "datasets"], {"params.yaml": ""}),
    Case("train", 1, ["params.yaml", "datasets"], {"params.yaml": "datasets: []\n"}),
    Case("train", 1, ["params.yaml", "datasets"], {"params.yaml": "datasets: mine\n"}),
    Case("train", 1, ["params.yaml", "datasets"], {"params.yaml": "datasets: [{a: b}]\n"}),
    Case("train", 1, ["params.yaml", "trian", "3"], params("trian: 3")),
    Case("train", 1, ["params.yaml", r"tr\nain"], params(r'"tr\nain": 3')),
    Case("train", 1, ["params.yaml", r"\x1b[2J"], params(r'"\e[2J": 3')),
    Case("train", 1, ["params.yaml", "train.lr", "fast"], params("train: {lr: fast}")),
    Case("train", 1, ["params.yaml", "train.lr", "-1"], params("train: {lr: -1}")),
    Case("train", 1, ["params.yaml", "train.num_steps", "1.5"], params("train: {num_steps: 1.5}")),
    Case("train", 1, ["params.yaml", "train.batch_size", "1.2e+100"], params("train: {batch_size: 12e99}")),
    Case("train", 1, ["params.yaml", "5000 digits"], params(f"train: {{batch_size: {'9' * 5000}}}")),
    Case("train", 1, ["params.yaml", "train"], params("train: []")),
    Case("train", 1, ["params.yaml", "train.weights", "other"], params("train: {weights: {other: 1}}")),
    Case("plan", 1, ["params.yaml", "near_m", "90"], params("log_depth: {near_m: 90}")),
    Case("plan", 1, ["params.yaml", "train.dtype", "int8"], params("train: {dtype: int8}")),
    Case("evaluate", 1, ["params.yaml", "evaluate.ensemble_size"], params("evaluate: {ensemble_size: 0}")),
    Case("inspect mine", 1, ["params.yaml", "inspect.split", "half"], params("inspect: {split: half}")),
    Case("predict in out", 1, ["params.yaml", "predict.outputs", "jpg"], params("predict: {outputs: [jpg]}")),
    Case("predict in out", 1, ["params.yaml", "predict.max_pixels"], params("predict: {max_pixels: lots}")),
    Case("promote", 1, ["params.yaml", "promote.min_delta1", "7"], params("promote: {min_delta1: 7}")),
    Case("backbone", 1, ["params.yaml", "backbone.sha256.unet", "ab"], params("backbone: {sha256: {unet: ab}}")),
    Case("download vkitti2", 1, ["params.yaml", "download.limit_gb"], params("download: {limit_gb: {vkitti2: 0}}")),
    # init, profiles
    Case("init there", 1, ["there"], {"there/": "", "there/x": "x"}),
    Case("init params.yaml", 1, ["params.yaml"]),
    Case("init params.yaml/x", 1, ["params.yaml"]),
    Case("init .", 1, ["."]),
    Case("init /proc/mine", 1, ["/proc"]),
    Case(f"init {'x' * 300}", 1, ["xxx"]),
    Case("profile use rtx", 1, ["rtx", "known"]),
    Case("profile use ../params", 1, ["../params", "known"]),
    Case("profile use 'h\x1b100'", 1, [r"h\x1b100"]),
    Case("profile use h100", 1, ["params.yaml", "edited"]),
    Case("profile use h100", 1, ["params.yaml", "mine"], {"params.yaml": "- mine\n"}),
    Case("--params data profile use h100", 1, ["data"], {"data/": ""}),
    # Manifests
    Case("manifest check nothing.yaml", 1, ["nothing.yaml"]),
    Case("manifest check data", 1, ["data"], {"data/": ""}),
    Case("manifest check tiny", 1, ["tiny.yaml", "archives.0.path"], manifest("path: a.zip", "path: ../a.zip")),
    Case("manifest check tiny", 1, ["tiny.yaml", "mirrors.0"], manifest("https://example.org/tiny", "ftp://x")),
    Case("manifest check tiny", 1, ["tiny.yaml", "line 2", "name"], manifest("role:", "name: x\nrole:")),
    Case("manifest check tiny", 1, ["tiny.yaml", "line 2", "mapping"], manifest("role: train", "role: train: train")),
    Case("manifest check tiny", 1, ["tiny.yaml", "depth.kind", "round"], manifest("planar", "round")),
    Case("manifest check tiny", 1, ["tiny.yaml", r"col\nour"], manifest("role:", '"col\\nour": 3\nrole:')),
    Case("manifest check tiny", 1, ["tiny.yaml", "line 1", "deep"], {"data_manifests/tiny.yaml": f"name: {DEEP}"}),
    Case("manifest check tiny", 1, ["tiny.yaml", "0xff"], {"data_manifests/tiny.yaml": b"\xff\xfe"}),
    Case("download tiny", 1, ["tiny.yaml", "role", "play"], manifest("role: train", "role: play")),
    Case("synthesize tiny", 1, ["tiny.yaml", "citation"], manifest("citation: Nobody, 2026", "citation: [a]")),
    # Data sets
    *(Case(f"{word} nothing", 1, ["nothing"]) for word in ("synthesize", "download", "inspect", "encode")),
    *(Case(f"{word} ../mine", 1, ["../mine"]) for word in ("synthesize", "download", "inspect", "encode")),
    *(Case(f"{word} /tmp/mine", 1, ["/tmp/mine"]) for word in ("synthesize", "download", "inspect", "encode")),
    *(Case(f"{word} 'm\x1bi\nne'", 1, [r"m\x1bi\nne"]) for word in ("synthesize", "download", "inspect", "encode")),
    Case("encode ''", 1, ["''"]),
    Case("encode mine --dask nonsense", 1, ["nonsense"]),
    Case("encode mine --from-remote --dask local:2", 2, ["--dask", "mine"]),
    Case("encode tiny --from-remote", 1, ["tiny", "--accept-licence"], manifest("tiny\nrole", "tiny\nrole")),
    Case("download tiny", 1, ["tiny", "--accept-licence"], manifest("tiny\nrole", "tiny\nrole")),
    Case("download tiny --limit-gb 0", 2, ["--limit-gb", "0"]),
    Case("download tiny --limit-gb much", 2, ["--limit-gb", "much"]),
    Case("download tiny --accept-licence --scenes 'z*'", 1, ["z*"], manifest("a.zip}", "a.zip, scenes: [a1]}")),
    Case("download mine --plan", 2, ["data/raw/mine"], statement("planar", "planar")),
    Case("download mine", 1, ["dataset.yaml", "depth.unit", "feet"], statement("millimetre", "feet")),
    Case("inspect mine", 1, ["dataset.yaml", "line 1", "unit"], statement("unit:", "unit: metre, unit:")),
    Case("inspect mine", 1, ["dataset.yaml", "depth.far"], statement("far: null", "far: never")),
    Case("inspect mine", 1, ["dataset.yaml", "intrinsics.first_pixel", "1"], statement("pixel: 0", "pixel: 1")),
    Case("inspect mine", 1, ["dataset.yaml", "intrinsics", "fy"], statement(" fy: 60.0,", "")),
    Case("inspect mine", 1, ["dataset.yaml", r"col\x1bour"], statement("depth:", '"col\\eour": 1\ndepth:')),
    Case("inspect mine", 1, ["dataset.yaml", "line 1", "deep"], {RAW + "dataset.yaml": f"depth: {DEEP}"}),
    Case("inspect mine", 1, ["dataset.yaml", "0xe4"], {RAW + "dataset.yaml": b"depth: m\xe4h"}),
    Case("inspect mine", 1, ["mine"], statement("planar", "planar")),
    Case("inspect mine", 1, ["frames.csv", "b.jpg"], rows("rgb,depth,scene\n../b.jpg,b.png,s\n")),
    Case("inspect mine", 1, ["frames.csv", "depth"], rows("rgb,scene\nb.jpg,s\n")),
    Case("inspect mine", 1, ["frames.csv"], rows(b"rgb,depth,scene\n\xff.jpg,b.png,s\n")),
    Case("inspect mine", 1, ["s/rgb/1", "twice"], FRAME | {RAW + "frames.csv": "rgb,depth,scene\n" + 2 * ROW}),
    Case("inspect hypersim", 1, ["data/raw/hypersim"]),
    Case("encode mine", 1, ["models/backbone"], FRAME),
    # Models
    Case("vae-floor", 1, ["models/backbone"]),
    Case("depth-vae", 1, ["models/backbone"]),
    Case("train", 1, ["data/latents/mine"]),
    Case("train --resume later", 2, ["--resume", "later"]),
    Case("plan --card gtx", 1, ["gtx"]),
    Case("evaluate", 1, ["models/metricgold"]),
    Case("evaluate", 1, ["models/metricgold", "deep"], {"models/metricgold/model_index.json": DEEP}),
    Case("evaluate", 1, ["models/metricgold"], {"models/metricgold/model_index.json": "[]"}),
    Case("evaluate", 1, ["models/metricgold"], {"models/metricgold/model_index.json": b"\xff"}),
    Case("train", 1, ["index.json"], {"data/latents/mine/index.json": DEEP}),
    Case("train", 1, ["index.json"], {"data/latents/mine/index.json": "[]"}),
    Case("train", 1, ["index.json"], {"data/latents/mine/index.json": "{}"}),
    Case("backbone", 1, ["no/such"], params("backbone: {source: no/such/folder}")),
    Case("backbone", 1, ["revision"], params("backbone: {source: stabilityai/sd}")),
    Case("backbone", 1, ["here"], {**params("backbone: {source: here}"), "here/": ""}),
    Case("encode mine", 1, ["models/backbone", "config.json"], FRAME | {"models/backbone/vae/config.json": DEEP}),
    # Benchmarks
    Case("benchmark", 2, ["NAME", "params.yaml", "benchmarks"]),
    Case("benchmark mine", 1, ["benchmarks", "None"], params("benchmarks:")),
    Case("benchmark ../mine --model MODEL", 1, ["../mine"]),
    Case("benchmark ''", 1, ["''"]),
    Case("benchmark 'm\x1bi\nne'", 1, [r"m\x1bi\nne"]),
    Case("benchmark mine", 1, ["models/metricgold"]),
    Case("benchmark mine --model elsewhere", 1, ["elsewhere"]),
    Case("benchmark mine --model models:/metricgold@nobody", 1, ["nobody"]),
    Case("benchmark nothing --model MODEL", 1, ["nothing", "nyuv2"]),
    Case("benchmark nyuv2 --model MODEL", 1, ["data/benchmarks/nyuv2"]),
    Case("benchmark nyuv2 --model MODEL", 1, ["data/raw/nyuv2", "data/benchmarks/nyuv2"], {"data/raw/nyuv2/": ""}),
    Case("download nyuv2", 1, ["data/raw/nyuv2", "data/benchmarks/nyuv2"], {"data/raw/nyuv2/": ""}),
    Case("benchmark mine --model MODEL", 1, ["dataset.yaml", "splits", "test"], FRAME),
    Case("benchmark mine --model MODEL --protocol nyuv2-eigen", 1, ["mine", "nyuv2-eigen", "whole"], TEST_FRAME),
    Case("benchmark mine --frames 0", 2, ["--frames", "0"]),
    Case("benchmark mine --peer moge", 1, ["'moge'", "KIND:FOLDER"], TEST_FRAME),
    Case("benchmark mine --peer midas:in", 1, ["midas", "KIND"], TEST_FRAME),
    Case("benchmark mine --peer marigold:in", 1, ["in", "model_index.json"], TEST_FRAME),
    Case("benchmark mine --predictions in", 1, ["in", "no such folder"], TEST_FRAME),
    Case("benchmark mine --predictions in", 1, ["in", "s/1", "1 of 1"], TEST_FRAME | {"in/": ""}),
    Case("benchmark mine --predictions in", 1, ["1.png", "predictions.yaml"], TEST_FRAME | PREDICTION),
    Case("benchmark mine --predictions in", 1, ["1.png", "scale"], TEST_FRAME | stated("kind: depth_m")),
    Case("benchmark mine --predictions in", 1, ["predictions.yaml", "kind", "far"], TEST_FRAME | stated("kind: far")),
    Case("benchmark mine --predictions in", 1, ["predictions.yaml", "line 1"], TEST_FRAME | stated("kind: depth_m: 3")),
    Case(
        "benchmark mine --predictions in",
        1,
        ["predictions.yaml", "col"],
        TEST_FRAME | stated(r'{kind: depth_m, "col\nour": 3}'),
    ),
    Case(
        "benchmark mine --predictions in",
        1,
        ["1.png", "64 x 24", "64 x 48", "resize"],
        TEST_FRAME | stated("{kind: depth_m, scale: 0.001}") | {"in/s/1.png": png(np.full((24, 64), 2000, np.uint16))},
    ),
    Case("benchmark --report nowhere.parquet", 1, ["nowhere.parquet"]),
    Case("benchmark --report nowhere.jsonl", 1, ["nowhere.jsonl"]),
    Case("benchmark --report params.yaml", 1, ["params.yaml", "Parquet"]),
    Case("benchmark --report x.jsonl", 1, ["x.jsonl", "line 1"], {"x.jsonl": "{}\n"}),
    Case("benchmark --report x.jsonl", 1, ["x.jsonl", "deep"], {"x.jsonl": DEEP + "\n"}),
    Case("benchmark --report x.jsonl", 1, ["x.jsonl", "0xff"], {"x.jsonl": b"\xff\n"}),
    Case("benchmark --report x.jsonl", 1, ["no row"], {"x.jsonl": ""}),
    Case("benchmark mine --report x.parquet", 2, ["--report", "NAME"]),
    Case("benchmark --report x.parquet --frames 3", 2, ["--report"]),
    # Prediction
    Case("calibrate p.csv --predictions in", 2, ["--out"]),
    Case("calibrate p.csv --out c.json", 2, ["either --predictions or --images"]),
    Case("calibrate p.csv --predictions in --out c.json", 1, ["p.csv", "No such file"]),
    Case("calibrate p.csv --predictions in --out c.json", 1, ["p.csv", "image, x, y, metres"], {"p.csv": "a,b\n1,2\n"}),
    Case("predict photos out --model MODEL --calibration c.json", 1, ["c.json", "No such file"]),
    Case("predict in out --steps 0", 2, ["--steps", "0"]),
    Case("predict in out --steps many", 2, ["--steps", "many"]),
    Case("predict in out --ensemble 0", 2, ["--ensemble", "0"]),
    Case("predict in out --ensemble 1.5", 2, ["--ensemble", "1.5"]),
    Case("predict in out --seed -1", 2, ["--seed", "-1"]),
    Case("predict in out --write jpg", 2, ["--write", "jpg"]),
    Case("predict in out --preset best", 2, ["--preset", "best"]),
    Case("predict in out --max-failed 200%", 2, ["--max-failed", "200%"]),
    Case("predict in out --max-failed -1", 2, ["--max-failed", "-1"]),
    Case("predict in out --max-failed 'n\x1bone'", 2, ["--max-failed", r"n\x1bone"]),
    Case("predict in out --max-images 0", 2, ["--max-images", "0"]),
    Case("predict in out --max-seconds 0", 2, ["--max-seconds", "0"]),
    Case("predict in out --dask", 2, ["--dask"]),
    Case("predict in out", 1, ["models/metricgold"]),
    Case("predict in out --model elsewhere", 1, ["elsewhere"]),
    Case("predict in out --model 'else\nwhere'", 1, [r"else\nwhere"]),
    Case("predict in out --model models:/metricgold", 1, ["models:/metricgold"]),
    Case("predict in out --model MODEL", 1, ["in"]),
    Case("predict 'i\x1bn' out --model MODEL", 1, [r"i\x1bn"]),
    Case("predict photos out --model MODEL --include 'z*'", 1, ["z*"]),
    Case("predict photos params.yaml --model MODEL", 1, ["params.yaml"]),
    Case("predict photos params.yaml/out --model MODEL", 1, ["params.yaml"]),
    Case("predict photos /proc/out --model MODEL", 1, ["/proc/out"]),
    Case("predict photos gs://bucket/x --model MODEL", 1, ["gs://bucket/x"]),
    Case("predict gs://bucket/x out --model MODEL", 1, ["gs://bucket/x"]),
    Case("predict s3:// out --model MODEL", 1, ["s3://"]),
    Case("predict photos out --model MODEL --dask nonsense", 1, ["nonsense"]),
    Case("predict photos out --model MODEL --dask local:0", 1, ["local:0"]),
    Case("predict photos out --model MODEL --dask local:x", 1, ["local:x"]),
    Case("predict photos out --model MODEL --steps 2000", 1, ["num_inference_steps", "2000"]),
    Case("predict photos out --model MODEL", 1, ["receipt.jsonl"], {"out/receipt.jsonl": "nonsense\n"}),
    Case("predict photos out --model MODEL", 1, ["receipt.jsonl"], {"out/receipt.jsonl": DEEP + "\n"}),
    Case("predict photos out --model MODEL", 1, ["receipt.jsonl"], {"out/receipt.jsonl": "[]\n"}),
    # Broken files where this project keeps its own
    Case("inspect mine", 1, ["frames.csv"], rows("rgb,depth,scene\n" + "a" * 200_000 + ",b,s\n")),
    Case("inspect mine", 1, ["data/raw/mine", "missing"], rows("rgb,depth,scene\na\0.png,b.png,s\n")),
    Case("inspect mine", 1, ["data/raw/mine", "missing"], rows("rgb,depth,scene\n" + "a" * 300 + ".png,b.png,s\n")),
    Case("inspect mine", 1, ["1.png"], FRAME | {RAW + "s/depth/1.png": "broken"}),
    Case("inspect mine", 1, ["1.png"], FRAME | {RAW + "s/rgb/1.png": "broken"}),
    Case("inspect mine", 1, ["dataset.yaml"], statement("invalid: 0", "invalid: 1e400")),
    Case("inspect mine", 1, ["dataset.yaml"], statement("fx: 60.0", "fx: .nan")),
    Case("inspect mine", 1, ["dataset.yaml"], statement('train: ["*"]', "train: 3")),
    Case("inspect mine", 1, ["reports"], FRAME | {"reports": "a file"}),
    Case("inspect mine", 1, ["metrics"], FRAME | {"metrics": "a file"}),
    Case("download vkitti2 --plan", 1, ["ledger.sqlite"], {"data/raw/vkitti2/.ledger/ledger.sqlite": "nonsense" * 99}),
    Case("download vkitti2 --verify", 1, ["licence.json"], {"data/raw/vkitti2/.ledger/licence.json": DEEP}),
    Case("download vkitti2 --accept-licence", 1, ["data/raw/vkitti2"], {"data/raw/vkitti2": "a file"}),
    Case("synthesize hypersim-synthetic", 1, ["data/synthetic"], {"data/synthetic": "a file"}),
    Case("vae-floor", 1, ["backbone"], {"models/backbone": "a file"}),
    Case("train", 1, ["index.json"], {"data/latents/mine/index.json": '{"format": 7}'}),
    Case("train", 1, ["data/latents"], {"data/latents": "a file"}),
    Case("evaluate", 1, ["models"], {"models": "a file"}),
    Case("evaluate", 1, ["models/metricgold"], CHECKPOINT),
    Case("predict photos out --model MODEL", 1, [".metricgold.lock"], {"out/.metricgold.lock/": ""}),
    Case("predict photos out --model MODEL", 1, ["out"], {"out": "a file"}),
    Case("predict photos out", 1, ["models/metricgold"], CHECKPOINT),
    Case("predict photos out --write exr --write png --model MODEL", 2, ["png"]),
    Case("predict photos/a.png/b out --model MODEL", 1, ["photos/a.png/b"]),
    Case("predict photos/../../../../../etc/shadow/x out --model MODEL", 1, ["shadow"]),
    Case("predict '' out --model MODEL", 1, ["''"]),
    Case("predict photos '' --model MODEL", 1, ["''"]),
    Case("predict photos out --model ''", 1, ["''"]),
    Case("predict broken out --model MODEL", 1, ["out/receipt.jsonl"], {"broken/a\nb\x1b[2J.png": b"\x89PNG broken"}),
    # Operations
    Case("up", 1, ["prefect.yaml"]),
    Case("up --systemd", 2, ["--systemd"]),
    Case("up", 1, [".metricgold"], {"prefect.yaml": "", ".metricgold": "a file"}),
    Case("doctor --s3", 2, ["--s3"]),
    Case("down now", 2, ["now"]),
    Case("status --nonsense", 2, ["--nonsense"]),
    Case("logs nobody", 1, ["nobody"]),
    Case("logs --lines 0", 2, ["--lines"]),
    # Studies
    Case("study", 2, ["NAME"]),
    Case("study --nonsense", 2, ["--nonsense"]),
    Case("study tiny --jobs 0", 2, ["--jobs"]),
    Case("study tiny --card h100", 2, ["--card", "--plan"]),
    Case("study tiny --page x.md", 2, ["--page", "--report"]),
    Case("study tiny", 1, ["'tiny'", "there are: none"]),
    Case("study ../params", 1, ["../params"]),
    Case("study tiny", 1, ["studies/tiny.yaml", "question"], {"studies/tiny.yaml": "seeds: [0]\n"}),
    Case("study tiny --report", 1, ["studies/tiny.yaml", "Study"], {"studies/tiny.yaml": "- a\n"}),
    Case("study tiny --plan --card gt710", 1, ["gt710", "known"], {"studies/tiny.yaml": STUDY}),
    Case("study tiny --plan", 1, ["factors.loss.l3.train.loss", "l3"], {"studies/tiny.yaml": STUDY + L3}),
    Case("study tiny --no-track", 1, ["data/raw/mine"], {"studies/tiny.yaml": STUDY}),
    # Registry
    Case("serve", 1, ["models/metricgold"]),
    Case("serve --model nowhere", 1, ["nowhere"]),
    Case("serve --host 0.0.0.0", 1, ["0.0.0.0", "METRICGOLD_SERVE_TOKEN"]),
    *(Case(f"serve {option}", 2, [option.split()[0]]) for option in ("--port 70000", "--queue 0", "--max-mb none")),
    Case("lineage", 2, ["URI"]),
    Case("lineage nowhere.png", 1, ["nowhere.png", ".depth.png"]),
    Case("lineage nowhere/receipt.jsonl#a.jpg", 1, ["nowhere"]),
    Case("versions --nonsense", 2, ["--nonsense"]),
    Case("versions once more", 2, ["once"]),
    Case("export", 2, ["--hub", "--onnx", "--torch"]),
    *(Case(f"export {kind} out", 1, ["models/metricgold"]) for kind in ("--hub", "--onnx", "--torch")),
    Case("register", 1, ["models/metricgold"]),
    Case("register", 1, ["metrics/evaluate.json"], CHECKPOINT),
    Case("register", 1, ["metrics/evaluate.json"], CHECKPOINT | {"metrics/evaluate.json": DEEP}),
    Case("register", 1, ["metrics/evaluate.json"], CHECKPOINT | {"metrics/evaluate.json": b"\xff"}),
    Case("register", 1, ["metrics/evaluate.json"], CHECKPOINT | {"metrics/evaluate.json": "[]"}),
    Case("register", 1, ["metrics/evaluate.json"], CHECKPOINT | {"metrics/evaluate.json": "{}"}),
    Case("promote --version x", 1, ["x"]),
    Case("promote --version 99", 1, ["99"]),
    Case("headline", 1, ["metrics/evaluate.json"]),
    Case("promote", 1, ["candidate"]),
    Case("rollback", 1, ["previous"]),
    Case("predict in out --model models:/metricgold@nobody", 1, ["nobody"]),
]


def test_there_are_many():
    assert len(set(map(str, CASES))) == len(CASES) >= 142
    commands = {name for name in main.commands if not hasattr(main.commands[name], "commands")}
    commands |= {f"{name} {sub}" for name in ("manifest", "profile") for sub in main.commands[name].commands}
    assert {name for name in commands if any(case.words.startswith(name) for case in CASES)} == commands


@pytest.fixture(scope="session")
def store(tmp_path_factory):
    """The address of an empty database of MLflow's."""
    store = f"sqlite:///{tmp_path_factory.mktemp('store')}/mlflow.db"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", store)
        with open_client() as client:
            client.search_experiments()
    return store


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with params and a photograph."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("METRICGOLD_TRACEBACK", raising=False)
    Path("params.yaml").write_text("datasets: [mine]\n")
    Path("photos").mkdir()
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save("photos/a.png")
    return tmp_path


@pytest.mark.parametrize("case", CASES, ids=[f"{n}-{case.words[:40]!r}" for n, case in enumerate(CASES)])
def test_a_wrong_invocation_is_one_line(case, project, request, monkeypatch, capsys):
    for name, content in case.files.items():
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        if content is None:
            path.unlink()
        elif name.endswith("/"):
            path.mkdir(exist_ok=True)
        else:
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
    words = shlex.split(case.words)
    if words[0] in ("register", "promote", "rollback") or "models:" in case.words:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", request.getfixturevalue("store"))
    if "MODEL" in words:
        words[words.index("MODEL")] = str(request.getfixturevalue("random_model"))
    capsys.readouterr()  # what making the fixtures has said
    with pytest.raises(SystemExit) as ended:
        main(words)
    out, err = capsys.readouterr()
    print(err, out)  # for whoever looks at a failure
    lines = [line for line in err.splitlines() if line and not line.startswith(("Usage: ", "Try '"))]
    assert ended.value.code == case.code
    assert "Traceback" not in out + err
    if case.words.startswith("manifest check") and case.code == 1:
        lines = [f"Error: {line}" for line in out.splitlines()]  # its answer
    (line,) = lines
    assert line.startswith("Error: ")
    assert line.isprintable()
    for name in case.names:
        assert name in line
