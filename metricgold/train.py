"""Fine-tune the U-Net on latent caches (MetricGold, arXiv 2411.10886; Marigold, arXiv 2312.02145).

Everything random in a step is drawn from (seed, step), and a checkpoint holds weights, optimiser and average:
a killed run goes on from its last checkpoint and ends with the same bytes as one that was left alone.

    models/metricgold/          the result: a diffusers pipeline folder with lineage.json
    models/metricgold.state/    fingerprint.json, step-NNNNNN/ (safetensors only), metrics.jsonl
"""

import csv
import json
import logging
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from diffusers import DDIMScheduler, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from tqdm import tqdm

from metricgold.backbone import backbone_digest, load_backbone, load_depth_vae, made_from, vae_digest
from metricgold.latents import LatentFrame
from metricgold.mixture import Draw, Mixture
from metricgold.model import MetricGoldPipeline
from metricgold.noise import multi_resolution_noise
from metricgold.params import LogDepthRange, Train
from metricgold.shards import LatentCache
from metricgold.sigterm import stop_on_sigterm
from metricgold.storage import digest_json, only_writer, read_json, remove, write_aside, write_json

log = logging.getLogger(__name__)

KEPT_CHECKPOINTS = 2


def train(
    params: Train,
    log_depth: LogDepthRange,
    caches: dict[str, Path],
    backbone: Path,
    out: Path,
    *,
    depth_vae: Path | None = None,
    resume: str = "auto",
    plot: Path | None = None,
    report: Callable[[dict[str, float]], None] | None = None,
) -> Path:
    """Train and write the pipeline folder `out`; state for resuming lies in `<out>.state`.

    depth_vae: what `metricgold depth-vae` made; the result decodes depth with it. Training itself never decodes.
    resume: "auto" goes on from a checkpoint of exactly these params and data, "fresh" starts over. `report`
    receives every row of metrics.jsonl, `plot` is the same as csv. SIGTERM saves a checkpoint and exits 143.
    Raises ValueError when the caches do not fit the backbone or each other, BlockingIOError when another run
    writes here.
    """
    state = Path(out).with_name(Path(out).name + ".state")
    opened = {name: LatentCache(path) for name, path in caches.items()}
    processing = _check_caches(opened, log_depth, backbone)
    digest = backbone_digest(backbone)  # gigabytes for the real one: read once
    with only_writer(state):
        parts = load_backbone(backbone)
        if depth_vae is not None:
            parts["vae"] = load_depth_vae(depth_vae, backbone)
        run = _Run(params, opened, parts, state)
        run.start(_fingerprint(params, log_depth, opened, digest), fresh=resume == "fresh")
        run.loop(report)
        lineage = {
            "train": params.model_dump(),
            "log_depth": log_depth.model_dump(),
            "backbone": made_from(backbone) | {"digest": digest},
            "depth_vae": read_json(depth_vae / "depth_vae.json") if depth_vae else None,
            "latents": {name: {"index": cache.digest, "num_frames": len(cache)} for name, cache in opened.items()},
            "step": params.num_steps,
        }
        run.export(Path(out), processing | log_depth.model_dump(), lineage)
        if plot is not None:
            _write_plot(state / "metrics.jsonl", plot)
    return Path(out)


def _check_caches(caches: dict[str, LatentCache], log_depth: LogDepthRange, backbone: Path) -> dict[str, int]:
    """All caches must come from this VAE, this log depth and one size; returns that size."""
    expected: dict[str, Any] = {"vae": vae_digest(backbone), "log_depth": log_depth.model_dump()}
    sizes = {name: [cache.identity["encode"][side] for side in ("height", "width")] for name, cache in caches.items()}
    for name, cache in caches.items():
        for key, value in expected.items():
            if cache.identity[key] != value:
                found = cache.identity[key]
                raise ValueError(f"{cache.path}: {key} is {found}, this run needs {value}; encode {name} again")
    if len({tuple(size) for size in sizes.values()}) != 1:
        raise ValueError(f"the latent caches differ in size: {sizes}")
    height, width = next(iter(sizes.values()))
    return {"processing_height": height, "processing_width": width}


def _fingerprint(params: Train, log_depth: LogDepthRange, caches: dict[str, LatentCache], backbone_sha256: str) -> str:
    # How often a run saves or speaks does not change what it learns.
    learnt = params.model_dump(exclude={"checkpoint_every", "log_every"})
    return digest_json(
        {
            "train": learnt,
            "log_depth": log_depth.model_dump(),
            "caches": {name: cache.digest for name, cache in caches.items()},
            "backbone": backbone_sha256,
        }
    )


class _Run:
    """One training run: models, optimiser, position."""

    def __init__(self, params: Train, caches: dict[str, LatentCache], backbone: dict[str, Any], state: Path) -> None:
        self.params, self.state = params, state
        self.caches = list(caches.values())
        weights = [params.weights.get(name, 1.0) for name in caches]
        self.mixture = Mixture([len(cache) for cache in self.caches], weights, params.seed, flip=params.flip)
        self.accelerator = Accelerator(mixed_precision=params.mixed_precision)
        self.accelerator.gradient_accumulation_steps = len(self._micro_batches())
        self.backbone = backbone
        self.scheduler = training_scheduler(backbone["scheduler"], params)
        unet: UNet2DConditionModel = backbone["unet"].train()
        if params.gradient_checkpointing:
            unet.enable_gradient_checkpointing()
        optimizer = torch.optim.AdamW(unet.parameters(), lr=params.lr, fused=True)
        self.unet, self.optimizer = self.accelerator.prepare(unet, optimizer)
        self.average = [p.detach().clone() for p in self.unet.parameters()] if params.ema_decay else None
        self.prompt = backbone["empty_prompt"].embedding.detach().to(self.accelerator.device)
        self.scaling = backbone["vae"].config.scaling_factor
        self.step = 0
        self.losses: list[float] = []  # since the last row of metrics.jsonl

    # -- checkpoints --------------------------------------------------------------------------------------

    def start(self, fingerprint: str, *, fresh: bool) -> None:
        """Go on from the newest checkpoint of this fingerprint, or clear what another run left."""
        mark = self.state / "fingerprint.json"
        if fresh or not mark.is_file() or read_json(mark) != fingerprint:
            remove(self.state)
            write_json(mark, fingerprint)
        for path in self.state.glob(".*"):
            remove(path)  # half-written checkpoints of a killed run
        checkpoints = sorted(self.state.glob("step-*"))
        if checkpoints:
            self._load(checkpoints[-1])
            log.info("going on from step %d of %d", self.step, self.params.num_steps)
        self._cut_metrics()

    def save(self) -> None:
        if not self.accelerator.is_main_process:
            return
        with write_aside(self.state / f"step-{self.step:06d}") as folder:
            folder.mkdir()
            unet = self.accelerator.unwrap_model(self.unet)
            save_file(unet.state_dict(), folder / "unet.safetensors")
            save_file(_flat(self.optimizer.state_dict()["state"]), folder / "optimizer.safetensors")
            if self.average is not None:
                save_file({str(i): p for i, p in enumerate(self.average)}, folder / "average.safetensors")
            scaler = self.accelerator.scaler
            position = {"step": self.step, "losses": self.losses, "scaler": scaler.state_dict() if scaler else None}
            write_json(folder / "state.json", position)
        for old in sorted(self.state.glob("step-*"))[:-KEPT_CHECKPOINTS]:
            remove(old)

    def _load(self, folder: Path) -> None:
        self.accelerator.unwrap_model(self.unet).load_state_dict(load_file(folder / "unet.safetensors"))
        whole = self.optimizer.state_dict()
        self.optimizer.load_state_dict(whole | {"state": _nested(load_file(folder / "optimizer.safetensors"))})
        if self.average is not None:
            for i, tensor in load_file(folder / "average.safetensors").items():
                self.average[int(i)].copy_(tensor)
        position = read_json(folder / "state.json")
        self.step, self.losses = position["step"], position["losses"]
        if self.accelerator.scaler:
            self.accelerator.scaler.load_state_dict(position["scaler"])

    def _cut_metrics(self) -> None:
        """Forget rows beyond the checkpoint: they will be written again."""
        path = self.state / "metrics.jsonl"
        rows = read_metrics(path) if path.is_file() else []
        with write_aside(path) as aside:
            aside.write_text("".join(_line(row) for row in rows if row["step"] <= self.step))

    # -- steps --------------------------------------------------------------------------------------------

    def loop(self, report: Callable[[dict[str, float]], None] | None) -> None:
        params = self.params
        bar = tqdm(total=params.num_steps, initial=self.step, desc="train", unit="step", disable=None)
        with stop_on_sigterm() as stop, self._batches() as batches, (self.state / "metrics.jsonl").open("a") as file:
            for draws_and_frames in batches:
                loss, grad_norm = self._update(*draws_and_frames)
                self.step += 1
                self.losses.append(loss)
                bar.update()
                bar.set_postfix(loss=f"{loss:.4f}")
                if self.step % params.log_every == 0 or self.step == params.num_steps:
                    row = {"step": self.step, "loss": float(np.mean(self.losses)), "grad_norm": grad_norm}
                    row["lr"] = learning_rate(self.step - 1, params)
                    self._tell(row, file, report)
                    self.losses = []
                if self.step % params.checkpoint_every == 0 or stop.is_set():
                    # Rows must be on disk before the checkpoint that counts on them.
                    file.flush()
                    self.save()
                if stop.is_set():
                    log.warning("stopped at step %d of %d; the same command goes on", self.step, params.num_steps)
                    raise SystemExit(128 + signal.SIGTERM)
        bar.close()

    def _tell(self, row: dict[str, float], file, report: Callable[[dict[str, float]], None] | None) -> None:
        if not self.accelerator.is_main_process:
            return
        file.write(_line(row))
        if row["step"] % (10 * self.params.log_every) == 0 or row["step"] == self.params.num_steps:
            log.info("step %d of %d, loss %.4f, lr %.2e", row["step"], self.params.num_steps, row["loss"], row["lr"])
        if report is not None:
            report(row)

    @contextmanager
    def _batches(self) -> Iterator[Iterator[tuple[list[Draw], list[LatentFrame]]]]:
        """The samples of each remaining step, read one step ahead by a thread."""

        def read(step: int) -> tuple[list[Draw], list[LatentFrame]]:
            draws = self.mixture.draw(step, self.params.batch_size)
            return draws, [self.caches[draw.dataset][draw.frame] for draw in draws]

        def ahead(pool: ThreadPoolExecutor) -> Iterator[tuple[list[Draw], list[LatentFrame]]]:
            steps = range(self.step, self.params.num_steps)
            coming = pool.submit(read, steps[0]) if steps else None
            for step in steps:
                batch = coming.result()
                coming = pool.submit(read, step + 1) if step + 1 < steps.stop else None
                yield batch

        with ThreadPoolExecutor(max_workers=1) as pool:
            yield ahead(pool)

    def _micro_batches(self) -> list[slice]:
        """This device's share of a batch; all devices together go through all of it."""
        micro, world = self.params.micro_batch_size, self.accelerator.num_processes
        starts = range(0, self.params.batch_size, micro)
        if len(starts) % world:
            raise ValueError(
                f"train.batch_size {self.params.batch_size} gives {len(starts)} micro-batches, "
                f"which {world} devices cannot share evenly"
            )
        return [slice(start, start + micro) for start in starts[self.accelerator.process_index :: world]]

    def _update(self, draws: list[Draw], frames: list[LatentFrame]) -> tuple[float, float]:
        """One optimiser step over the whole batch, in micro-batches; returns loss and gradient norm."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.step, self.params)
        inputs = self._inputs(draws, frames)
        losses = []
        for part in self._micro_batches():
            with self.accelerator.accumulate(self.unet):
                loss = self._loss({name: tensor[part].to(self.accelerator.device) for name, tensor in inputs.items()})
                self.accelerator.backward(loss)
                losses.append(loss.detach())
                if self.accelerator.sync_gradients:
                    norm = self.accelerator.clip_grad_norm_(self.unet.parameters(), self.params.max_grad_norm)
                self.optimizer.step()
                self.optimizer.zero_grad()
        if self.average is not None:
            # The average starts as a plain mean and becomes exponential: no bias from the first weights.
            weight = max(1 - self.params.ema_decay, 1 / (self.step + 2))
            torch._foreach_lerp_(self.average, [p.detach() for p in self.unet.parameters()], weight)
        return self.accelerator.reduce(torch.stack(losses).mean(), "mean").item(), float(norm)

    def _inputs(self, draws: list[Draw], frames: list[LatentFrame]) -> dict[str, torch.Tensor]:
        """Latents, mask, noise and timesteps of one step, drawn from (seed, step)."""
        params = self.params
        arrays = {
            name: np.stack([_mirrored(getattr(f, name), draw.flip) for draw, f in zip(draws, frames, strict=True)])
            for name in ("rgb_latent", "depth_latent", "latent_mask")
        }
        rgb, depth = (torch.from_numpy(arrays[name]).float() * self.scaling for name in ("rgb_latent", "depth_latent"))
        key = int(np.random.SeedSequence([params.seed, self.step, 1]).generate_state(1, np.uint64)[0] >> 1)
        generator = torch.Generator().manual_seed(key)
        num_timesteps = self.scheduler.config.num_train_timesteps
        uniform = torch.randint(num_timesteps, (len(draws),), generator=generator)
        timesteps = shifted_timesteps(uniform, num_timesteps, params.timestep_shift)
        strength = params.noise.strength * (
            timesteps / num_timesteps if params.noise.annealed else torch.ones(len(draws))
        )
        noise = multi_resolution_noise(depth.shape, strength, generator)
        valid = torch.from_numpy(arrays["latent_mask"])[:, None]  # [B, 1, h, w]
        return {"rgb": rgb, "depth": depth, "valid": valid, "noise": noise, "timesteps": timesteps}

    def _loss(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        depth, noise, timesteps = inputs["depth"], inputs["noise"], inputs["timesteps"]
        noisy = self.scheduler.add_noise(depth, noise, timesteps)
        prompt = self.prompt.expand(len(depth), -1, -1)
        sample = torch.cat([inputs["rgb"], noisy], dim=1)  # [B, 2c, h, w]
        with self.accelerator.autocast():
            output = self.unet(sample, timesteps, encoder_hidden_states=prompt).sample
        return masked_mse(output.float(), self._target(depth, noise, timesteps), inputs["valid"])

    def _target(self, depth: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        kind = self.params.prediction_type
        if kind == "v_prediction":
            return self.scheduler.get_velocity(depth, noise, timesteps)
        return noise if kind == "epsilon" else depth

    # -- result -------------------------------------------------------------------------------------------

    def export(self, out: Path, config: dict[str, Any], lineage: dict[str, Any]) -> None:
        """Write the pipeline folder whole or not at all."""
        if not self.accelerator.is_main_process:
            return
        unet = self.accelerator.unwrap_model(self.unet)
        if self.average is not None:
            with torch.no_grad():
                for parameter, mean in zip(unet.parameters(), self.average, strict=True):
                    parameter.copy_(mean)
        parts = self.backbone | {"unet": unet, "scheduler": self.scheduler}
        with write_aside(out) as aside:
            MetricGoldPipeline(**parts, **config).save_pretrained(aside)
            write_json(aside / "lineage.json", lineage)


def training_scheduler(scheduler: DDIMScheduler, params: Train) -> DDIMScheduler:
    """The backbone's schedule with the params' prediction type and terminal SNR, trailing spacing."""
    return DDIMScheduler.from_config(
        scheduler.config,
        prediction_type=params.prediction_type,
        rescale_betas_zero_snr=params.zero_terminal_snr,
        timestep_spacing="trailing",
    )


def learning_rate(step: int, params: Train) -> float:
    """Linear warm-up, then exponential decay to final_lr_ratio at decay_steps, flat after it (Marigold)."""
    warm = min(1.0, (step + 1) / params.warmup_steps) if params.warmup_steps else 1.0
    span = max(1, params.decay_steps - params.warmup_steps)
    share = min(1.0, max(0, step - params.warmup_steps) / span)
    return params.lr * warm * params.final_lr_ratio**share


def shifted_timesteps(timesteps: torch.Tensor, num_timesteps: int, shift: float) -> torch.Tensor:
    """Uniform timesteps moved towards noise: t -> s t / (1 + (s - 1) t) on [0, 1] (arXiv 2403.03206, eq. 23).

    Few-step inference lives there, and a prediction from much noise has to look at the image.
    """
    share = (timesteps + 0.5) / num_timesteps
    return (shift * share / (1 + (shift - 1) * share) * num_timesteps).long()


def masked_mse(output: torch.Tensor, target: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """Mean over samples of each one's mean squared error over its valid latents.

    output, target [B, c, h, w]; valid bool [B, 1, h, w]. Each sample weighs the same, whatever its share of
    valid latents, so the loss of a batch is the mean of its micro-batches' losses.
    """
    error = ((output - target) ** 2).mean(dim=1, keepdim=True) * valid
    counts = valid.sum(dim=(1, 2, 3)).clamp(min=1)
    return (error.sum(dim=(1, 2, 3)) / counts).mean()


def read_metrics(path: Path) -> list[dict[str, float]]:
    """Rows of metrics.jsonl; a last line cut short by a kill is left out."""
    rows = []
    for line in Path(path).read_text().splitlines(keepends=True):
        if line.endswith("\n"):
            rows.append(json.loads(line))
    return rows


def _write_plot(metrics: Path, plot: Path) -> None:
    rows = read_metrics(metrics)
    with write_aside(plot) as aside, aside.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=["step", "loss", "lr", "grad_norm"])
        writer.writeheader()
        writer.writerows(rows)


def _line(row: dict[str, float]) -> str:
    return json.dumps(row, sort_keys=True) + "\n"


def _mirrored(array: np.ndarray, flip: bool) -> np.ndarray:
    return array[..., ::-1] if flip else array


def _flat(state: dict[int, dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    return {f"{i}.{name}": tensor for i, values in state.items() for name, tensor in values.items()}


def _nested(flat: dict[str, torch.Tensor]) -> dict[int, dict[str, torch.Tensor]]:
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key, tensor in flat.items():
        i, name = key.split(".")
        state.setdefault(int(i), {})[name] = tensor
    return state
