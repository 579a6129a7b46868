"""A checkpoint as a folder for a model hub: the diffusers folder as it is, with its card, licences and an example."""

import shutil
from collections.abc import Mapping
from pathlib import Path

from metricgold.model import digest_model
from metricgold.storage import write_aside

EXAMPLE = "example.py"


def export_hub(model: Path, texts: Mapping[str, str], out: Path) -> dict[str, str]:
    """Write the folder `out`, which huggingface_hub.upload_folder and MetricGoldPipeline.from_pretrained take as it is.

    model  a checkpoint
    texts  content of further files by name, such as README.md and LICENSE.md

    Returns where it is, and the digest of the model in it. ValueError where `model` is no checkpoint, FileExistsError
    where something else is at `out`.
    """
    if not (model / "model_index.json").is_file():
        raise ValueError(f"{model} is not a checkpoint: no model_index.json")
    with write_aside(out, marks=[EXAMPLE]) as aside:
        shutil.copytree(model, aside)  # links of a cache become files
        for name, text in texts.items():
            (aside / name).write_text(text, encoding="utf-8")
        shutil.copyfile(Path(__file__).with_name(EXAMPLE), aside / EXAMPLE)
    return {"hub": str(out), "model_digest": digest_model(model)}
