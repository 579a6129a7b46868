"""The stage depth-vae: fine-tune what decodes depth, the VAE's decoder, on encoded depth alone.

Encoder and latents stay as they are and images are never decoded, so the pipeline's one VAE can carry the result:
latent caches stay valid (vae_digest looks at the encoder only), and the U-Net need not know. The loss is the L1 of
encoded depth over valid pixels, on crops that pass through the frozen encoder.

    models/depth-vae/          the result: vae/ as in a backbone, and depth_vae.json, what it was made from
    models/depth-vae.state/    what it resumes from (metricgold.train.resumable)
"""

import logging
import shutil
from pathlib import Path

import numpy as np
from diffusers import AutoencoderKL

from metricgold.datasets import FrameRef, frame_batches
from metricgold.download import unedited_frames
from metricgold.evaluate import Floor, frames_in_range, measure_floor, range_edges_m
from metricgold.images import TrainingSize
from metricgold.model import check_size, default_device, load_vae, vae_digest, vae_factor
from metricgold.params import DepthVae, LogDepthRange
from metricgold.storage import (
    digest_file,
    digest_folder,
    digest_json,
    only_writer,
    require_ours,
    write_aside,
    write_json,
)
from metricgold.train.decoder_run import DecoderRun
from metricgold.train.resumable import Report, state_folder

log = logging.getLogger(__name__)


def train_depth_vae(
    params: DepthVae,
    range_m: LogDepthRange,
    raw_folders: dict[str, Path],
    backbone: Path,
    out: Path,
    metrics: Path,
    *,
    size: tuple[int, int],
    device: str = "",
    report: Report | None = None,
) -> Path:
    """Fine-tune the decoder on training frames and write the folder `out`.

    size: height and width of the network's training; its VAE sees frames as `encode` fits them to it.

    With params.num_steps 0 the result is the backbone's VAE, byte for byte. `metrics` receives a flat JSON: the floor
    of held-out frames, `<data set>/before/abs_rel`, `.../after/...`, by depth, the means over data sets, num_steps, and
    the digests of what was measured, `backbone_vae` before and `depth_vae` after. `report` receives every row of the
    state's metrics.jsonl. SIGTERM saves a checkpoint and exits 143. Raises ValueError for a size that does not suit the
    VAE and for a data set without frames of a split, BlockingIOError when another run writes here.
    """
    out, state = Path(out), state_folder(out)
    require_ours(out, ["depth_vae.json"])  # now, not after the last step
    vae = load_vae(backbone).to(device or default_device()).eval()
    check_size(vae, size)
    seen = TrainingSize(*size, vae_factor(vae))
    with only_writer(state):
        held_out = {
            name: unedited_frames(name, raw, params.split, params.frames_per_dataset)
            for name, raw in raw_folders.items()
        }
        before = _floors(vae, held_out, params, range_m, seen, "before")
        after = before
        if params.num_steps:
            run = DecoderRun(params, range_m, vae, raw_folders, seen, state)
            run.start(_fingerprint(params, range_m, raw_folders, run.frames, backbone, size))
            run.run(report)
            after = _floors(vae, held_out, params, range_m, seen, "after")
        else:
            log.info("depth_vae.num_steps is 0: depth is decoded by the backbone's decoder as it is")
        _write_folder(out, vae if params.num_steps else None, backbone, params, range_m)
    figures = _figures({"before": before, "after": after}) | {"num_steps": params.num_steps}
    was, now = (figures[f"mean/{when}/abs_rel"] for when in ("before", "after"))
    measured = {"backbone_vae": digest_folder(Path(backbone) / "vae"), "depth_vae": digest_folder(out / "vae")}
    log.info("VAE floor of held-out frames: AbsRel %.4f before, %.4f after", was, now)
    if now > was:
        log.warning("fine-tuning has made the VAE floor worse: AbsRel %.4f, was %.4f", now, was)
    write_json(metrics, figures | measured)
    return out


def _write_folder(
    out: Path, vae: AutoencoderKL | None, backbone: Path, params: DepthVae, range_m: LogDepthRange
) -> None:
    """Write the VAE, or for None the backbone's own files, and what it was made from."""
    made_from = {
        "depth_vae": params.model_dump(),
        "log_depth": range_m.model_dump(),
        "encoder": vae_digest(backbone),
        "backbone_vae": digest_folder(Path(backbone) / "vae"),
    }
    with write_aside(out, marks=["depth_vae.json"]) as aside:
        if vae is None:
            shutil.copytree(Path(backbone) / "vae", aside / "vae")
        else:
            vae.register_to_config(_name_or_path="")
            vae.save_pretrained(aside / "vae")
        if vae_digest(aside) != made_from["encoder"]:
            raise RuntimeError("the encoder has changed although nothing may change it")
        write_json(aside / "depth_vae.json", made_from)


def _fingerprint(
    params: DepthVae,
    range_m: LogDepthRange,
    raw_folders: dict[str, Path],
    frames: list[list[FrameRef]],
    backbone: Path,
    size: tuple[int, int],
) -> str:
    """Digest of everything that decides what is learnt."""
    # What is measured, and how often a run saves, does not.
    learnt = params.model_dump(exclude={"checkpoint_every", "split", "frames_per_dataset"})
    ledgers = {name: raw / "ledger.json" for name, raw in raw_folders.items()}
    return digest_json(
        {
            "depth_vae": learnt,
            "log_depth": range_m.model_dump(),
            "size": size,
            "frames": digest_json([[ref.name for ref in refs] for refs in frames]),
            "ledgers": {name: digest_file(path) for name, path in ledgers.items() if path.is_file()},
            "vae": digest_folder(Path(backbone) / "vae"),
        }
    )


def _floors(
    vae: AutoencoderKL,
    held_out: dict[str, list[FrameRef]],
    params: DepthVae,
    range_m: LogDepthRange,
    size: TrainingSize,
    when: str,
) -> dict[str, Floor]:
    """The VAE floor of each data set's held-out frames."""
    encoding = range_m.to_encoding()
    edges_m = range_edges_m(range_m.to_log_depth())
    floors = {}
    for name, refs in held_out.items():
        batches = frames_in_range(
            frame_batches(refs, size, params.batch_size, f"depth-vae {name}, floor {when}"), range_m, size
        )
        floors[name] = measure_floor(vae, batches, [encoding], edges_m)[encoding]
    return floors


def _figures(floors: dict[str, dict[str, Floor]]) -> dict[str, float]:
    """The floors before and after as flat metrics, and their means over data sets."""
    figures: dict[str, float] = {}
    for when, of_dataset in floors.items():
        for name, floor in of_dataset.items():
            figures |= floor.figures(f"{name}/{when}", by_depth=True)
        for key in ("abs_rel", "delta1"):
            figures[f"mean/{when}/{key}"] = float(np.mean([getattr(floor, key) for floor in of_dataset.values()]))
    return figures
