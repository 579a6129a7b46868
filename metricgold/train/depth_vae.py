"""Fine-tune what decodes depth: the VAE's decoder, on log depth alone. Encoder and latents stay as they are.

Images are never decoded, so the pipeline's one VAE can carry the result: latent caches stay valid (vae_digest looks
at the encoder only), and the U-Net need not know. The loss is the L1 of log depth over valid pixels, on crops that go
through the frozen encoder. Everything random in a step is drawn from (seed, step): a killed run goes on from its
checkpoint and ends, on the same device, with the same weights as one that was left alone.

    models/depth-vae/          the result: vae/ as in a backbone, and depth_vae.json, which says what made it
    models/depth-vae.state/    fingerprint.json, checkpoint.safetensors
"""

import logging
import shutil
import signal
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from safetensors import safe_open
from safetensors.torch import save_file
from tqdm import tqdm

from metricgold.datasets import Frame, FrameRef, frame_batches, list_frames, readable, some_frames
from metricgold.evaluate import Encoding, Floor, measure_floor, range_edges_m
from metricgold.log_depth import LogDepth
from metricgold.model import (
    check_size,
    default_device,
    encode_log_depth,
    filled_log_depth,
    load_vae,
    vae_digest,
    vae_factor,
)
from metricgold.params import DepthVae, LogDepthRange
from metricgold.storage import (
    digest_file,
    digest_folder,
    digest_json,
    only_writer,
    read_json,
    remove,
    stop_on_sigterm,
    write_aside,
    write_json,
)
from metricgold.train.mixture import Draw, Mixture

log = logging.getLogger(__name__)

SPLIT = "train"
NUM_READERS = 4  # threads that read a step's frames ahead of the decoder
LOG_EVERY = 100


def train_depth_vae(
    params: DepthVae,
    log_depth: LogDepthRange,
    raw_folders: dict[str, Path],
    backbone: Path,
    out: Path,
    metrics: Path,
    *,
    size: tuple[int, int],
    device: str = "",
    report: Callable[[dict[str, float]], None] | None = None,
) -> Path:
    """Fine-tune the decoder on training frames fitted to `size` (height, width) and write the folder `out`.

    With params.num_steps 0 the backbone's VAE is handed on, byte for byte. `metrics` receives a flat JSON: the floor
    of held-out frames, `<data set>/before/abs_rel`, `.../after/...`, by depth, the means over data sets, and
    num_steps. `report` receives a row of step and loss every LOG_EVERY steps. SIGTERM saves a checkpoint and exits
    143. Raises ValueError for a size that does not suit the VAE and for a data set without frames of a split,
    BlockingIOError when another run writes here.
    """
    state, device = Path(out).with_name(Path(out).name + ".state"), device or default_device()
    vae = load_vae(backbone).to(device).eval()
    check_size(vae, size)
    with only_writer(state):
        held_out = {
            name: some_frames(name, raw, params.split, params.frames_per_dataset) for name, raw in raw_folders.items()
        }
        before = _floors(vae, held_out, params, log_depth, size, "before")
        after = before
        if params.num_steps:
            run = _Run(params, LogDepth(**log_depth.model_dump()), vae, raw_folders, size, state)
            run.start(_fingerprint(params, log_depth, raw_folders, run.frames, backbone, size))
            run.loop(report)
            after = _floors(vae, held_out, params, log_depth, size, "after")
        else:
            log.info("depth_vae.num_steps is 0: depth is decoded by the backbone's decoder as it is")
        _write_folder(Path(out), vae if params.num_steps else None, backbone, params, log_depth)
    figures = _figures({"before": before, "after": after}) | {"num_steps": params.num_steps}
    _say(figures)
    write_json(metrics, figures)
    return Path(out)


def _write_folder(
    out: Path, vae: AutoencoderKL | None, backbone: Path, params: DepthVae, log_depth: LogDepthRange
) -> None:
    """The VAE, or the backbone's own files for None, and what it was made from."""
    made_from = {
        "depth_vae": params.model_dump(),
        "log_depth": log_depth.model_dump(),
        "encoder": vae_digest(backbone),
        "backbone_vae": digest_folder(Path(backbone) / "vae"),
    }
    with write_aside(out) as aside:
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
    log_depth: LogDepthRange,
    raw_folders: dict[str, Path],
    frames: list[list[FrameRef]],
    backbone: Path,
    size: tuple[int, int],
) -> str:
    # What is measured, and how often a run saves, does not change what it learns.
    learnt = params.model_dump(exclude={"checkpoint_every", "split", "frames_per_dataset"})
    ledgers = {name: raw / "ledger.json" for name, raw in raw_folders.items()}
    return digest_json(
        {
            "depth_vae": learnt,
            "log_depth": log_depth.model_dump(),
            "size": size,
            "frames": digest_json([[ref.name for ref in refs] for refs in frames]),
            "ledgers": {name: digest_file(path) for name, path in ledgers.items() if path.is_file()},
            "vae": digest_folder(Path(backbone) / "vae"),
        }
    )


# --- the floor before and after -----------------------------------------------------------------------------


def _floors(
    vae: AutoencoderKL,
    held_out: dict[str, list[FrameRef]],
    params: DepthVae,
    log_depth: LogDepthRange,
    size: tuple[int, int],
    when: str,
) -> dict[str, Floor]:
    encoding = Encoding("log", log_depth.near_m, log_depth.far_m)
    edges_m = range_edges_m(LogDepth(log_depth.near_m, log_depth.far_m))
    floors = {}
    for name, refs in held_out.items():
        batches = frame_batches(refs, size, params.batch_size, f"depth-vae {name}, floor {when}")
        floors[name] = measure_floor(vae, batches, [encoding], edges_m)[encoding]
    return floors


def _figures(floors: dict[str, dict[str, Floor]]) -> dict[str, float]:
    figures: dict[str, float] = {}
    for when, of_dataset in floors.items():
        for name, floor in of_dataset.items():
            figures |= floor.figures(f"{name}/{when}", by_depth=True)
        for key in ("abs_rel", "delta1"):
            figures[f"mean/{when}/{key}"] = float(np.mean([getattr(floor, key) for floor in of_dataset.values()]))
    return figures


def _say(figures: dict[str, float]) -> None:
    before, after = (figures[f"mean/{when}/abs_rel"] for when in ("before", "after"))
    log.info("VAE floor of held-out frames: AbsRel %.4f before, %.4f after", before, after)
    if after > before:
        log.warning("fine-tuning has made the VAE floor worse: AbsRel %.4f, was %.4f", after, before)


# --- training -----------------------------------------------------------------------------------------------


def log_depth_loss(
    output: torch.Tensor, target: torch.Tensor, valid: torch.Tensor, gradient_weight: float
) -> torch.Tensor:
    """Mean |e| over valid pixels, e = output - target; all [B, H, W].

    gradient_weight times the mean difference of e between valid neighbours, across and down, is added: an error
    that is smooth bends no surface and shifts no edge.
    """
    error = output - target
    loss = _mean(error.abs(), valid)
    if gradient_weight:
        for axis in (-1, -2):
            steps = (_but_first(error, axis) - _but_last(error, axis)).abs()
            both_valid = _but_first(valid, axis) & _but_last(valid, axis)
            loss = loss + gradient_weight * _mean(steps, both_valid)
    return loss


def _mean(values: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    return (values * valid).sum() / valid.sum().clamp(min=1)


def _but_first(tensor: torch.Tensor, axis: int) -> torch.Tensor:
    return tensor.narrow(axis, 1, tensor.shape[axis] - 1)


def _but_last(tensor: torch.Tensor, axis: int) -> torch.Tensor:
    return tensor.narrow(axis, 0, tensor.shape[axis] - 1)


def learning_rate(step: int, params: DepthVae) -> float:
    """Linear warm-up, then linearly to nought at the last step."""
    warm = min(1.0, (step + 1) / params.warmup_steps) if params.warmup_steps else 1.0
    return params.lr * warm * (1 - step / params.num_steps)


class _Run:
    """One run: the VAE, of which only what decodes may change, its optimiser, its position."""

    def __init__(
        self,
        params: DepthVae,
        log_depth: LogDepth,
        vae: AutoencoderKL,
        raw_folders: dict[str, Path],
        size: tuple[int, int],
        state: Path,
    ) -> None:
        self.params, self.log_depth, self.vae, self.size, self.state = params, log_depth, vae, size, state
        factor = vae_factor(vae)
        self.crop = tuple(min(params.crop, side) // factor * factor for side in size)
        if not all(self.crop):
            raise ValueError(f"depth_vae.crop {params.crop} is smaller than one latent of {factor} pixels")
        self.frames = [list_frames(name, raw, split=SPLIT).frames for name, raw in raw_folders.items()]
        for name, refs in zip(raw_folders, self.frames, strict=True):
            if not refs:
                raise ValueError(f"{name}: no frame of split {SPLIT!r} in {raw_folders[name]} to fine-tune on")
        self.mixture = Mixture([len(refs) for refs in self.frames], [1.0] * len(self.frames), params.seed, flip=True)
        vae.requires_grad_(False)
        self.weights = {
            name: weight.requires_grad_()
            for name, weight in vae.named_parameters()
            if name.startswith(("decoder.", "post_quant_conv."))
        }
        self.optimizer = torch.optim.AdamW(self.weights.values(), lr=params.lr, weight_decay=0.0)
        self.step = 0

    # -- checkpoints --------------------------------------------------------------------------------------

    def start(self, fingerprint: str) -> None:
        """Go on from the checkpoint of this fingerprint, or clear what another run left."""
        mark, checkpoint = self.state / "fingerprint.json", self.state / "checkpoint.safetensors"
        if not mark.is_file() or read_json(mark) != fingerprint:
            remove(self.state)
            write_json(mark, fingerprint)
        for path in self.state.glob(".*"):
            remove(path)  # half-written checkpoints of a killed run
        if checkpoint.is_file():
            self._load(checkpoint)
            log.info("going on from step %d of %d", self.step, self.params.num_steps)

    def save(self) -> None:
        """Weights, the optimiser's moments and the step, in one file."""
        tensors = {f"weight/{name}": weight.detach() for name, weight in self.weights.items()}
        for i, moments in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer/{i}/{key}": tensor for key, tensor in moments.items()}
        with write_aside(self.state / "checkpoint.safetensors") as aside:
            save_file(tensors, aside, metadata={"step": str(self.step)})

    def _load(self, path: Path) -> None:
        moments: dict[int, dict[str, torch.Tensor]] = {}
        with safe_open(path, framework="pt") as file, torch.no_grad():
            for key in file.keys():  # noqa: SIM118
                kind, *rest = key.split("/")
                if kind == "weight":
                    self.weights[rest[0]].copy_(file.get_tensor(key))
                else:
                    moments.setdefault(int(rest[0]), {})[rest[1]] = file.get_tensor(key)
            self.step = int(file.metadata()["step"])
        self.optimizer.load_state_dict(self.optimizer.state_dict() | {"state": moments})

    # -- steps --------------------------------------------------------------------------------------------

    def loop(self, report: Callable[[dict[str, float]], None] | None) -> None:
        """All steps that are left, and a checkpoint after the last."""
        num_steps, losses = self.params.num_steps, []
        bar = tqdm(total=num_steps, initial=self.step, desc="depth-vae", unit="step", disable=None)
        with bar, stop_on_sigterm() as stop:
            for target, valid in self._batches():
                losses.append(self._update(target, valid))
                self.step += 1
                bar.update()
                if self.step % LOG_EVERY == 0 or self.step == num_steps:
                    self._tell({"step": self.step, "loss": float(np.mean(losses))}, report)
                    losses = []
                if self.step % self.params.checkpoint_every == 0 or self.step == num_steps or stop.is_set():
                    self.save()
                if stop.is_set():
                    log.warning("stopped at step %d of %d; the same command goes on", self.step, num_steps)
                    raise SystemExit(128 + signal.SIGTERM)

    def _tell(self, row: dict[str, float], report: Callable[[dict[str, float]], None] | None) -> None:
        log.info("step %d of %d, loss %.4f", row["step"], self.params.num_steps, row["loss"])
        if report is not None:
            report(row)

    def _update(self, target: torch.Tensor, valid: torch.Tensor) -> float:
        """One optimiser step on a batch of log depth [B, h, w]; returns the loss."""
        device = self.vae.device
        target, valid = target.to(device), valid.to(device)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.step, self.params)
        with torch.no_grad():
            latent = encode_log_depth(self.vae, target)
        with torch.autocast(device.type, torch.bfloat16, enabled=self.params.mixed_precision == "bf16"):
            # Not decode_log_depth: what is clipped has no gradient, and would stay outside for good.
            output = self.vae.decode(latent).sample.mean(dim=1)
        loss = log_depth_loss(output.float(), target, valid, self.params.gradient_weight)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.weights.values(), self.params.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.item()

    def _batches(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Log depth and valid mask, [B, h, w] each, of every step that is left; threads read ahead."""
        coming: deque[Future[Any]] = deque()
        with ThreadPoolExecutor(NUM_READERS) as readers:
            for step in range(self.step, self.params.num_steps):
                coming.append(readers.submit(self._read, step))
                if len(coming) > NUM_READERS:
                    yield coming.popleft().result()
            while coming:
                yield coming.popleft().result()

    def _read(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        rng = np.random.default_rng([self.params.seed, step, 1])
        crops = [self._crop(draw, rng) for draw in self.mixture.draw(step, self.params.batch_size)]
        log_depth, valid = (np.stack(arrays) for arrays in zip(*crops, strict=True))
        return torch.from_numpy(log_depth), torch.from_numpy(valid)

    def _crop(self, draw: Draw, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Log depth and valid mask of one sample, [h, w] each."""
        height, width = self.crop
        top, left = (int(rng.integers(side - part + 1)) for side, part in zip(self.size, self.crop, strict=True))
        frame = self._frame(draw)
        window = np.s_[top : top + height, left : left + width]
        depth_m, valid = frame.planar_depth_m[window], frame.valid_mask[window]
        if draw.flip:
            depth_m, valid = depth_m[:, ::-1], valid[:, ::-1]
        return filled_log_depth(self.log_depth, depth_m, valid), np.ascontiguousarray(valid)

    def _frame(self, draw: Draw) -> Frame:
        """The frame that was drawn, or the next one that can be read."""
        refs = self.frames[draw.dataset]
        for ref in refs[draw.frame :] + refs[: draw.frame]:
            if (frame := readable(ref, self.size)) is not None:
                return frame
        raise ValueError(f"{refs[0].dataset}: not one of {len(refs)} training frames can be read")
