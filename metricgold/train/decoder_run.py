"""One run that fine-tunes the VAE's decoder on encoded depth: its crops, its loss, a step."""

import logging
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file

from metricgold.datasets import Frame, list_frames, readable
from metricgold.download import refuse_edited
from metricgold.images import TrainingSize
from metricgold.model import encode_log_depth, filled_log_depth
from metricgold.params import DepthVae, LogDepthRange
from metricgold.storage import remove
from metricgold.train.checkpoints import Tensors
from metricgold.train.mixture import Draw, Mixture
from metricgold.train.optimizer import linear_rate
from metricgold.train.resumable import ResumableRun

log = logging.getLogger(__name__)

SPLIT = "train"
LOG_EVERY = 100


class Crops(NamedTuple):
    """A step's samples, [B, h, w] each."""

    log_depth: torch.Tensor
    valid: torch.Tensor  # bool
    no_surface: torch.Tensor  # bool


class DecoderRun(ResumableRun[Crops]):
    """Fine-tunes `vae` in place, of which only what decodes may change, on frames as a network of `size` sees them.

    Raises ValueError for params.crop below one latent, and for a data set without training frames.
    """

    name = "depth-vae"
    num_readers = 4

    def __init__(
        self,
        params: DepthVae,
        range_m: LogDepthRange,
        vae: AutoencoderKL,
        raw_folders: dict[str, Path],
        size: TrainingSize,
        state: Path,
    ) -> None:
        super().__init__(
            state,
            params.num_steps,
            checkpoint_every=params.checkpoint_every,
            log_every=LOG_EVERY,
            keep_checkpoints=1,
        )
        self.params, self.range_m, self.vae, self.size = params, range_m, vae, size
        self.encoding = range_m.to_encoding()
        self.crop = [min(params.crop, side) // size.multiple * size.multiple for side in (size.height, size.width)]
        if not all(self.crop):
            raise ValueError(f"depth_vae.crop {params.crop} is smaller than one latent of {size.multiple} pixels")
        self.frames = [list_frames(name, raw, split=SPLIT).frames for name, raw in raw_folders.items()]
        for name, refs in zip(raw_folders, self.frames, strict=True):
            if not refs:
                raise ValueError(f"{name}: no frame of split {SPLIT!r} in {raw_folders[name]} to fine-tune on")
            refuse_edited(raw_folders[name], refs)
        self.mixture = Mixture([len(refs) for refs in self.frames], [1.0] * len(self.frames), params.seed, flip=True)
        vae.requires_grad_(False)
        self.weights = {
            name: weight.requires_grad_()
            for name, weight in vae.named_parameters()
            if name.startswith(("decoder.", "post_quant_conv."))
        }
        self.optimizer = torch.optim.AdamW(self.weights.values(), lr=params.lr, weight_decay=0.0)

    def start(self, fingerprint: str, *, fresh: bool = False) -> None:
        super().start(fingerprint, fresh=fresh)
        if (old := self.state / "checkpoint.safetensors").is_file():
            log.warning("%s was written by an earlier version and is deleted; starting from the first step", old)
            remove(old)

    def read(self, step: int) -> Crops:
        rng = np.random.default_rng([self.params.seed, step, 1])
        crops = [self.read_crop(draw, rng) for draw in self.mixture.draw(step, self.params.batch_size)]
        return Crops(*(torch.from_numpy(np.stack(arrays)) for arrays in zip(*crops, strict=True)))

    def read_crop(self, draw: Draw, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
        """Log depth, valid mask and mask of no surface [h, w] of a random crop of the frame that was drawn."""
        frame = self.readable_frame(draw)
        grid = self.size.grid(*frame.valid_mask.shape)
        # A strip that is smaller than the crop continues as at its edge.
        room = (max(0, side - part) + 1 for side, part in zip(grid.size, self.crop, strict=True))
        window = grid.window(*(int(rng.integers(places)) for places in room), *self.crop)
        depth_m, *masks = (
            np.ascontiguousarray(window.sample(array)[:, :: -1 if draw.flip else 1])
            for array in (frame.planar_depth_m, frame.valid_mask, frame.no_surface)
        )
        log_depth = self.range_m.to_log_depth(self.size.relative_focal(grid.intrinsics(frame.intrinsics)))
        return filled_log_depth(log_depth, depth_m, masks[0]), *masks

    def readable_frame(self, draw: Draw) -> Frame:
        """The frame that was drawn, or the next one that can be read, at its own size. ValueError where none can."""
        refs = self.frames[draw.dataset]
        for ref in refs[draw.frame :] + refs[: draw.frame]:
            if (frame := readable(ref)) is not None:
                return frame
        raise ValueError(f"{refs[0].dataset}: not one of {len(refs)} training frames can be read")

    def learning_rate(self, step: int) -> float:
        return linear_rate(step, self.params)

    def update(self, batch: Crops) -> float:
        device = self.vae.device
        d, valid = batch.log_depth.to(device), batch.valid.to(device)
        with torch.no_grad():
            latent = encode_log_depth(self.vae, d, self.encoding)
        with torch.autocast(device.type, torch.bfloat16, enabled=self.params.mixed_precision == "bf16"):
            # Not decode_log_depth: what is clipped has no gradient, and would stay out of range for good.
            output = self.vae.decode(latent).sample.mean(dim=1)
        target = self.encoding.of_log_depth(d)
        loss = log_depth_loss(output.float(), target, valid, self.params.gradient_weight)
        if self.params.no_surface_weight:
            too_near = (1 - output.float()).clamp(min=0) * batch.no_surface.to(device)
            loss = loss + self.params.no_surface_weight * too_near.mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.weights.values(), self.params.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.item()

    def contents(self) -> tuple[dict[str, Tensors], dict[str, Any]]:
        return {"decoder": {name: weight.detach() for name, weight in self.weights.items()}}, {}

    def restore(self, folder: Path, position: dict[str, Any]) -> None:
        with torch.no_grad():
            for name, tensor in load_file(folder / "decoder.safetensors").items():
                self.weights[name].copy_(tensor)


def log_depth_loss(
    output: torch.Tensor, target: torch.Tensor, valid: torch.Tensor, gradient_weight: float
) -> torch.Tensor:
    """Mean |e| over valid pixels, e = output - target; all [B, H, W].

    gradient_weight times the mean difference of e between valid neighbours, across and down, is added: an error
    that is smooth bends no surface and shifts no edge.
    """

    def mean(values: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
        return (values * where).sum() / where.sum().clamp(min=1)

    error = output - target
    loss = mean(error.abs(), valid)
    if gradient_weight:
        for axis in (-1, -2):
            last = error.shape[axis] - 1
            slope = (error.narrow(axis, 1, last) - error.narrow(axis, 0, last)).abs()
            both_valid = valid.narrow(axis, 1, last) & valid.narrow(axis, 0, last)
            loss = loss + gradient_weight * mean(slope, both_valid)
    return loss
