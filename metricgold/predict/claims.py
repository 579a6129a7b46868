"""What the files of an image say of what made them: the depth file itself, its side-car, its row in the receipt."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from metricgold.images import read_depth
from metricgold.predict.outputs import DEPTH, SUFFIXES, with_digest
from metricgold.predict.receipt import EARLIER, PARTIAL, RECEIPT, ReceiptRow, read_row
from metricgold.storage import Folder, S3Prefix, open_bucket, parse_json

MAX_LEVELS = 32  # of folders between a file and the receipt of its job


@dataclass
class ImageClaims:
    """What is said of one image's depth.

    depth_file  where it is; None where the image has none, or it is gone
    sha256      of its bytes as they are now
    said        by the place that says it, the least removed from the bytes first: facts as in a side-car
    """

    input: str
    depth_file: str | None = None
    sha256: str | None = None
    said: dict[str, dict[str, Any]] = field(default_factory=dict)

    def first(self, name: str) -> Any:
        """A fact as the first place has it that says it."""
        return next((facts[name] for facts in self.said.values() if facts.get(name) is not None), None)


def read_claims(location: str) -> ImageClaims:
    """What is said of the image that a file was made of: any output in a folder or on S3.

    <folder>/receipt.jsonl#<input> is one row, also of a job that still runs. ValueError for what is not an output or
    has no row; OSError where it cannot be read.
    """
    receipt, is_row, key = location.rpartition(f"{RECEIPT}#")
    if is_row:
        sink = open_bucket(receipt or ".")
        row = next((row for row in _rows_with(receipt, key) if row["input"] == key), None)
        if row is None:
            raise ValueError(f"{location}: no row of this input in {RECEIPT}")
        if row["status"] != "done":
            raise ValueError(f"{location}: {row['status']}, it has no depth: {row.get('reason')}")
        return _claims(sink, sink.own_key(key), row)
    name = location.rpartition("/")[2]
    folder = location.removesuffix(name)
    suffix = next((suffix for suffix in sorted(SUFFIXES.values(), key=len, reverse=True) if name.endswith(suffix)), "")
    if not suffix or name == suffix:
        known = ", ".join(SUFFIXES.values())
        raise ValueError(f"{location}: expected an output of `metricgold predict` ({known}) or {RECEIPT}#INPUT")
    sink = open_bucket(folder or ".")
    if not sink.exists(name):
        raise FileNotFoundError(f"{location}: no such file")
    return _claims(sink, name.removesuffix(suffix), _row_above(folder, name))


def _claims(sink: Folder | S3Prefix, stem: str, row: ReceiptRow | None) -> ImageClaims:
    """Of the image whose outputs begin with `stem`."""
    claims = ImageClaims(row["input"] if row else stem)
    named = [stem + SUFFIXES[kind] for kind in DEPTH]
    if row and (output := row.get("output")):
        named.insert(0, stem + next((SUFFIXES[kind] for kind in DEPTH if output.endswith(SUFFIXES[kind])), ""))
    key = next((key for key in named if sink.exists(key)), None)
    if key is not None:
        data = sink.read(key)
        claims.depth_file, claims.sha256 = f"{str(sink).rstrip('/')}/{key}", hashlib.sha256(data).hexdigest()
        claims.said["the file itself"] = _attributes(data, claims.depth_file)
    if sink.exists(stem + SUFFIXES["json"]):
        side_car = parse_json(sink.read(stem + SUFFIXES["json"]), stem + SUFFIXES["json"])
        if not isinstance(side_car, dict):
            raise ValueError(f"{stem + SUFFIXES['json']}: expected an object of facts, got {side_car!r:.80}")
        claims.said["the side-car"] = with_digest(side_car)
    if row:
        claims.said["the receipt"] = with_digest(dict(row))
    return claims


def _attributes(data: bytes, label: str) -> dict[str, Any]:
    """The texts of a depth file, as a side-car has them; empty where it cannot be read."""
    try:
        texts = read_depth(BytesIO(data)).attributes
    except ValueError:
        return {}
    texts = with_digest(texts)
    facts: dict[str, Any] = {name: unquote(texts[name]) for name in ("input", "model", "model_digest") if name in texts}
    return facts | ({"params": parse_json(texts["params"], label)} if "params" in texts else {})


def _row_above(folder: str, name: str) -> ReceiptRow | None:
    """The row that names an output, in the receipt of its folder or of one above; None without one."""
    key = name
    for _ in range(MAX_LEVELS):
        for row in _rows_with(folder, key):
            if key in {file["key"] for file in row.get("outputs", {}).values()}:
                return row
        above, slash, last = folder.rstrip("/").rpartition("/")
        if not last or last in (".", "..") or above == "s3:/":
            break
        folder, key = above + slash, f"{last}/{key}"
    return None


def _rows_with(folder: str, key: str) -> Iterator[ReceiptRow]:
    """Rows of the job with this output, the newest first, that hold a key somewhere; the others are not parsed."""
    text = json.dumps(key)[1:-1].encode()
    for sink, receipt in _receipts(folder):
        for line in sink.lines(receipt):
            if text in line:
                yield read_row(line, f"{sink}: {receipt}")


def _receipts(folder: str) -> Iterator[tuple[Folder | S3Prefix, str]]:
    """What holds rows of the job with this output: the parts of a run that is not done, before its receipts."""
    if folder.startswith("s3://") or Path(folder, PARTIAL).is_dir():
        parts = open_bucket(folder + PARTIAL)
        for entry in reversed(list(parts.entries())):
            yield parts, entry.key
    sink = open_bucket(folder or ".")
    yield from ((sink, receipt) for receipt in (RECEIPT, EARLIER) if sink.exists(receipt))
