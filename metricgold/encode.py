"""Raw frames to latents: reader -> fit to size -> VAE -> shards. Resumes at the first missing shard."""

import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from tqdm import tqdm

from metricgold.backbone import load_vae, vae_digest
from metricgold.datasets import FrameRef, list_frames, read_frame
from metricgold.frame import Frame
from metricgold.latents import (
    LatentFrame,
    encode_log_depth,
    encode_rgb,
    filled_log_depth,
    fit_frame,
    latent_valid_mask,
    rgb_to_tensor,
    vae_factor,
)
from metricgold.log_depth import LogDepth
from metricgold.params import Encode, LogDepthRange
from metricgold.shards import INDEX, shard_fits, shard_path, write_index, write_shard
from metricgold.storage import digest_file, digest_json, only_writer, remove

log = logging.getLogger(__name__)

SPLIT = "train"


def encode(
    dataset: str, params: Encode, log_depth: LogDepthRange, raw: Path, backbone: Path, out: Path, *, device: str = ""
) -> Path:
    """Encode the training frames of one data set; returns the index.

    A frame that cannot be read or has no valid latent is dropped and counted by reason. Raises ValueError
    when the size does not suit the VAE or nothing is left, BlockingIOError when another run writes to `out`.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    vae = load_vae(backbone, dtype=getattr(torch, params.dtype)).to(device).eval()
    factor = vae_factor(vae)
    if params.height % factor or params.width % factor:
        raise ValueError(
            f"encode.height x encode.width must be multiples of the VAE's {factor}, "
            f"got {params.height} x {params.width}"
        )
    listing = list_frames(dataset, raw, split=SPLIT)
    identity = _identity(dataset, params, log_depth, backbone, raw, listing.frames)
    groups = [
        listing.frames[start : start + params.frames_per_shard]
        for start in range(0, len(listing.frames), params.frames_per_shard)
    ]
    with only_writer(out):
        _forget_foreign(out, len(groups), identity)
        missing = [number for number in range(len(groups)) if not shard_path(out, number).exists()]
        log.info("%s: %d frames in %d shards, %d to encode", dataset, len(listing.frames), len(groups), len(missing))
        for number in tqdm(missing, desc=f"encode {dataset}", unit="shard", disable=None):
            frames, dropped = _encode_frames(vae, groups[number], params, LogDepth(**log_depth.model_dump()))
            write_shard(shard_path(out, number), frames, dropped, identity)
            log.info("%s: shard %d of %d, %d frames", dataset, number + 1, len(groups), len(frames))
        index = write_index(out, len(groups), identity, gaps=listing.gaps)
    return index


def _identity(
    dataset: str, params: Encode, log_depth: LogDepthRange, backbone: Path, raw: Path, refs: Sequence[FrameRef]
) -> dict[str, Any]:
    """Everything that a latent depends on. Batch size is part of it: it can change the last bit."""
    ledger = Path(raw) / "ledger.json"
    return {
        "dataset": dataset,
        "split": SPLIT,
        "encode": params.model_dump(),
        "log_depth": log_depth.model_dump(),
        "vae": vae_digest(backbone),
        "frames": digest_json([ref.name for ref in refs]),
        "ledger": digest_file(ledger) if ledger.is_file() else None,
    }


def _forget_foreign(out: Path, num_shards: int, identity: dict[str, Any]) -> None:
    """Delete what an encode of another identity left, or a killed write; keep whole shards of ours."""
    wanted = {shard_path(out, number) for number in range(num_shards)}
    for path in sorted(out.glob("*")) + sorted(out.glob(".*.part")):
        if path.name == INDEX or path not in wanted or not shard_fits(path, identity):
            remove(path)


def _encode_frames(
    vae: AutoencoderKL, refs: Sequence[FrameRef], params: Encode, log_depth: LogDepth
) -> tuple[list[LatentFrame], list[str]]:
    frames, dropped = [], []
    batch: list[Frame] = []
    for outcome in _read_ahead(refs, params.height, params.width):
        if isinstance(outcome, str):
            dropped.append(outcome)
            continue
        batch.append(outcome)
        if len(batch) == params.batch_size:
            frames += _encode_batch(vae, batch, log_depth)
            batch = []
    frames += _encode_batch(vae, batch, log_depth) if batch else []
    kept = [frame for frame in frames if frame.valid_mask.any()]
    return kept, dropped + ["no valid latent"] * (len(frames) - len(kept))


def _read_ahead(refs: Sequence[FrameRef], height: int, width: int) -> Iterator[Frame | str]:
    """Frames in order, decoded by threads ahead of the VAE; the reason instead of a frame that fails."""

    def read(ref: FrameRef) -> Frame | str:
        try:
            return fit_frame(read_frame(ref), height, width)
        except (ValueError, OSError) as error:
            log.warning("dropped %s: %s", ref.name, error)
            return "unreadable"

    with ThreadPoolExecutor(max_workers=2) as pool:
        yield from pool.map(read, refs)


@torch.no_grad()
def _encode_batch(vae: AutoencoderKL, frames: Sequence[Frame], log_depth: LogDepth) -> list[LatentFrame]:
    rgb = rgb_to_tensor(np.stack([frame.rgb for frame in frames]))
    filled = [filled_log_depth(log_depth, frame.planar_depth_m, frame.valid_mask) for frame in frames]
    rgb_latents = encode_rgb(vae, rgb.to(vae.device))
    depth_latents = encode_log_depth(vae, torch.from_numpy(np.stack(filled)).to(vae.device))
    return [
        LatentFrame(
            rgb_latent=rgb_latent.cpu().numpy().astype(np.float16),
            depth_latent=depth_latent.cpu().numpy().astype(np.float16),
            valid_mask=latent_valid_mask(frame.valid_mask, vae_factor(vae)),
            intrinsics=frame.intrinsics,
            scene=frame.scene,
            name=frame.name,
        )
        for frame, rgb_latent, depth_latent in zip(frames, rgb_latents, depth_latents, strict=True)
    ]
