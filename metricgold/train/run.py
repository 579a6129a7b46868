"""Fine-tune the U-Net on latent caches (MetricGold, arXiv 2411.10886; Marigold, arXiv 2312.02145).

Everything random in a step is drawn from (seed, step), and a checkpoint holds weights, optimiser and average:
a killed run goes on from its last checkpoint and ends with the same bytes as one that was left alone.

    models/metricgold/          the result: a diffusers pipeline folder with lineage.json
    models/metricgold.state/    fingerprint.json, step-NNNNNN/ (safetensors only), metrics.jsonl; best/, the weights
                                that did best in validation; bad_batches.jsonl, updates left out and their frames

Started by `accelerate launch`, all processes share each batch; only the first holds the lock and writes.
"""

import csv
import logging
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from math import isfinite
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor2_0
from safetensors.torch import load_file
from tqdm import tqdm

from metricgold.model import MetricGoldPipeline, backbone_digest, load_backbone, load_depth_vae, made_from, vae_digest
from metricgold.params import LogDepthRange, Train
from metricgold.shards import LatentCache, LatentFrame
from metricgold.storage import (
    cut_rows,
    digest_json,
    only_writer,
    read_json,
    read_rows,
    remove,
    row_line,
    stop_on_sigterm,
    write_aside,
    write_json,
)
from metricgold.train.checkpoints import find_checkpoint, flat_state, load_flat_state, save_checkpoint, save_folder
from metricgold.train.mixture import Draw, Mixture
from metricgold.train.objective import Objective, training_scheduler
from metricgold.train.optimizer import Guard, learning_rate, new_optimizer

log = logging.getLogger(__name__)

Report = Callable[[dict[str, float]], None]
Validate = Callable[[MetricGoldPipeline, int], dict[str, float]]  # pipeline and step to figures of metricgold.metrics


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
    report: Report | None = None,
    validate: Validate | None = None,
) -> Path:
    """Train and write the pipeline folder `out`; state for resuming lies in `<out>.state`.

    depth_vae: what `metricgold depth-vae` made; the result decodes depth with it, and so does decoded_loss_weight.
    resume: "auto" goes on from a checkpoint of exactly these params and data, "fresh" starts over. `report`
    receives every row of metrics.jsonl, `plot` is the same as csv. `validate` is asked as params.validation says, its
    figures join the row as val_<name>, and the weights that do best become the result.

    SIGTERM saves a checkpoint and exits 143, not 0: DVC and Prefect would take 0 for a model that is not there.
    Raises ValueError when the caches do not fit the backbone or each other, or when too many updates in a row had to
    be left out; BlockingIOError when another run writes here.
    """
    state = Path(out).with_name(Path(out).name + ".state")
    if params.validation and validate is None:
        raise ValueError("train.validation is set, but this run was given nothing to validate with")
    opened = {name: LatentCache(path) for name, path in caches.items()}
    processing = _check_caches(opened, log_depth, backbone)
    digest = backbone_digest(backbone)  # gigabytes for the real one: read once
    accelerator = Accelerator(mixed_precision=params.mixed_precision)
    with only_writer(state) if accelerator.is_main_process else nullcontext():
        parts = load_backbone(backbone)
        if depth_vae is not None:
            parts["vae"] = load_depth_vae(depth_vae, backbone)
        config = processing | log_depth.model_dump() | {"objective": params.objective}
        run = _Run(params, opened, parts, config, state, accelerator, validate)
        run.start(_fingerprint(params, log_depth, opened, digest, depth_vae), fresh=resume == "fresh")
        run.loop(report)
        lineage = {
            "train": params.model_dump(),
            "log_depth": log_depth.model_dump(),
            "backbone": made_from(backbone) | {"digest": digest},
            "depth_vae": read_json(depth_vae / "depth_vae.json") if depth_vae else None,
            "latents": {name: {"index": cache.digest, "num_frames": len(cache)} for name, cache in opened.items()},
        }
        run.export(Path(out), lineage)
        if plot is not None and accelerator.is_main_process:
            _write_plot(state / "metrics.jsonl", plot)
        accelerator.wait_for_everyone()
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


def _fingerprint(
    params: Train,
    log_depth: LogDepthRange,
    caches: dict[str, LatentCache],
    backbone_sha256: str,
    depth_vae: Path | None,
) -> str:
    # How often a run saves or speaks, and when it gives up, does not change what it learns.
    learnt = params.model_dump(exclude={"checkpoint_every", "keep_checkpoints", "log_every", "max_skipped"})
    decoder = read_json(depth_vae / "depth_vae.json") if depth_vae and params.decoded_loss_weight else None
    return digest_json(
        {
            "train": learnt,
            "log_depth": log_depth.model_dump(),
            "caches": {name: cache.digest for name, cache in caches.items()},
            "backbone": backbone_sha256,
            "depth_vae": decoder,
        }
    )


@dataclass
class _Best:
    """The best validation so far."""

    value: float | None = None
    step: int = 0
    worse_since: int = 0  # validations after it

    def beaten_by(self, value: float, metric: str) -> bool:
        sign = -1 if metric.startswith("delta") else 1
        return isfinite(value) and (self.value is None or sign * value < sign * self.value)


class _Run:
    """One training run: models, optimiser, position."""

    def __init__(
        self,
        params: Train,
        caches: dict[str, LatentCache],
        parts: dict[str, Any],
        config: dict[str, Any],
        state: Path,
        accelerator: Accelerator,
        validate: Validate | None,
    ) -> None:
        self.params, self.state, self.accelerator = params, state, accelerator
        self.parts, self.config, self.validate = parts, config, validate
        self.names, self.caches = list(caches), list(caches.values())
        self.mixture = _mixture(params, caches)
        accelerator.gradient_accumulation_steps = len(self._micro_batches())
        self.scheduler = training_scheduler(parts["scheduler"], params)
        self.unet, self.optimizer = self._prepare(parts["unet"])
        self.average = [p.detach().clone() for p in self.unet.parameters()] if params.ema_decay else None
        self.prompt = parts["empty_prompt"].embedding.detach().to(accelerator.device)
        if params.decoded_loss_weight:
            parts["vae"].requires_grad_(False).to(accelerator.device)
        self.objective = Objective(params, self.scheduler, parts["vae"])
        self.scaling = parts["vae"].config.scaling_factor
        self.step = 0
        self.losses: list[float] = []  # since the last row of metrics.jsonl
        self.guard = Guard(params.spike_factor)
        self.best = _Best()

    def _prepare(self, unet: UNet2DConditionModel) -> tuple[torch.nn.Module, Any]:
        params = self.params
        assert all(isinstance(one, AttnProcessor2_0) for one in unet.attn_processors.values()), "attention is not SDPA"
        if params.gradient_checkpointing:
            unet.enable_gradient_checkpointing()
        if params.channels_last:
            unet.to(memory_format=torch.channels_last)
        if params.compile:
            unet.compile()  # in place: names of weights stay
        return self.accelerator.prepare(unet.train(), new_optimizer(params, unet.parameters()))

    # -- checkpoints --------------------------------------------------------------------------------------

    def start(self, fingerprint: str, *, fresh: bool) -> None:
        """Go on from the newest checkpoint of this fingerprint, or clear what another run left."""
        if self.accelerator.is_main_process:
            mark = self.state / "fingerprint.json"
            if fresh or not mark.is_file() or read_json(mark) != fingerprint:
                remove(self.state)
                write_json(mark, fingerprint)
            for path in self.state.glob(".*"):
                remove(path)  # half-written checkpoints of a killed run
        self.accelerator.wait_for_everyone()
        if folder := find_checkpoint(self.state):
            self._load(folder)
            log.info("going on from step %d of %d", self.step, self.params.num_steps)
        if self.accelerator.is_main_process:
            for name in ("metrics.jsonl", "bad_batches.jsonl"):
                cut_rows(self.state / name, self.step)

    def _save(self, metrics: IO[str] | None) -> None:
        if metrics is None:
            return
        try:
            metrics.flush()  # rows must be on disk before the checkpoint that counts on them
        except OSError as error:
            raise OSError(f"{metrics.name}: {error}; the checkpoints before step {self.step} stand") from error
        moments, numbers = flat_state(self.optimizer)
        parts = {"unet": self.accelerator.unwrap_model(self.unet).state_dict(), "optimizer": moments}
        if self.average is not None:
            parts["average"] = {str(i): p for i, p in enumerate(self.average)}
        scaler = self.accelerator.scaler
        position = {
            "step": self.step,
            "losses": self.losses,
            "optimizer": numbers,
            "scaler": scaler.state_dict() if scaler else None,
            "guard": self.guard.position(),
            "best": asdict(self.best),
        }
        save_checkpoint(self.state, self.step, parts, position, keep=self.params.keep_checkpoints)

    def _load(self, folder: Path) -> None:
        position = read_json(folder / "state.json")
        self.accelerator.unwrap_model(self.unet).load_state_dict(load_file(folder / "unet.safetensors"))
        load_flat_state(self.optimizer, load_file(folder / "optimizer.safetensors") | position["optimizer"])
        if self.average is not None:
            for i, tensor in load_file(folder / "average.safetensors").items():
                self.average[int(i)].copy_(tensor)
        if self.accelerator.scaler:
            self.accelerator.scaler.load_state_dict(position["scaler"])
        self.step, self.losses, self.best = position["step"], position["losses"], _Best(**position["best"])
        self.guard.go_on_from(position["guard"])

    # -- steps --------------------------------------------------------------------------------------------

    def loop(self, report: Report | None) -> None:
        params = self.params
        silent = None if self.accelerator.is_main_process else True  # None: on a terminal only
        bar = tqdm(total=params.num_steps, initial=self.step, desc="train", unit="step", disable=silent)
        with stop_on_sigterm() as sigterm, self._batches() as batches, self._metrics_file() as file:
            for draws, frames in batches:
                stop = self._update(draws, frames, sigterm.is_set())
                self.step += 1
                bar.update()
                bar.set_postfix(loss=f"{self.losses[-1]:.4f}" if self.losses else "left out")
                self._speak(file, report)
                if self.step % params.checkpoint_every == 0 or stop or self._done():
                    self._save(file)
                if stop:
                    log.warning("stopped at step %d of %d; the same command goes on", self.step, params.num_steps)
                    raise SystemExit(128 + signal.SIGTERM)
                if self._done():
                    log.info("no better validation than that of step %d: done at %d", self.best.step, self.step)
                    break
        bar.close()

    def _metrics_file(self) -> Any:
        return (self.state / "metrics.jsonl").open("a") if self.accelerator.is_main_process else nullcontext()

    def _done(self) -> bool:
        """Whether validation has not become better for longer than it may."""
        patience = self.params.validation.patience if self.params.validation else None
        return patience is not None and self.best.worse_since >= patience

    def _speak(self, file: IO[str] | None, report: Report | None) -> None:
        """Validate and write a row, where either is due."""
        params, last = self.params, self.step == self.params.num_steps
        look = params.validation is not None and (last or self.step % params.validation.every == 0)
        figures = self._validate() if look else {}
        if not self.losses or not (last or look or self.step % params.log_every == 0):
            return
        row = {"step": self.step, "loss": float(np.mean(self.losses)), "grad_norm": self.guard.norms[-1]}
        row |= {"lr": learning_rate(self.step - 1, params)} | {f"val_{key}": value for key, value in figures.items()}
        if self.guard.skipped:
            row["skipped"] = self.guard.skipped
        self.losses = []
        if file is not None:
            self._tell(row, file, report)

    def _tell(self, row: dict[str, float], file: IO[str], report: Report | None) -> None:
        file.write(row_line(row))
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
            steps = range(self.step, self.step if self._done() else self.params.num_steps)
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

    def _update(self, draws: list[Draw], frames: list[LatentFrame], stop: bool) -> bool:
        """One optimiser step over the whole batch, in micro-batches, if it is sound; whether any process is to stop."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.step, self.params)
        inputs = self._inputs(draws, frames)
        losses = []
        for part in self._micro_batches():
            with self.accelerator.accumulate(self.unet):
                loss = self._loss({name: tensor[part].to(self.accelerator.device) for name, tensor in inputs.items()})
                self.accelerator.backward(loss)
                losses.append(loss.detach())
        norm = float(self.accelerator.clip_grad_norm_(self.unet.parameters(), self.params.max_grad_norm))
        # All processes must come to one decision: of what they all know.
        shared = torch.stack([torch.stack(losses).mean(), torch.tensor(float(stop), device=losses[0].device)])
        loss, stop = self.accelerator.reduce(shared, "mean").tolist()
        fault = self.guard.fault(loss, norm)
        if fault is None:
            self._step(loss, norm)
        else:
            self._leave_out(fault, draws, frames)
        self.optimizer.zero_grad()
        return stop > 0

    def _step(self, loss: float, norm: float) -> None:
        self.optimizer.step()
        if self.average is not None:
            # The average starts as a plain mean and becomes exponential: no bias from the first weights.
            weight = max(1 - self.params.ema_decay, 1 / (self.step + 2))
            torch._foreach_lerp_(self.average, [p.detach() for p in self.unet.parameters()], weight)
        self.losses.append(loss)
        self.guard.made(norm)

    def _leave_out(self, fault: str, draws: list[Draw], frames: list[LatentFrame]) -> None:
        """Count an update that is not made and name its frames. ValueError when there are too many in a row."""
        self.guard.left_out()
        if self.accelerator.scaler:
            self.accelerator.scaler.update()  # halves the scale, if that was too much
        step, path = self.step + 1, self.state / "bad_batches.jsonl"
        log.warning("step %d left out: %s", step, fault)
        if self.accelerator.is_main_process:
            pairs = zip(draws, frames, strict=True)
            names = [f"{self.names[draw.dataset]}: {frame.name}" for draw, frame in pairs]
            with path.open("a") as file:
                file.write(row_line({"step": step, "fault": fault, "frames": names}))
        if self.guard.in_a_row > self.params.max_skipped:
            raise ValueError(
                f"step {step}: {self.guard.in_a_row} updates in a row had to be left out, "
                f"train.max_skipped is {self.params.max_skipped}; the last: {fault}; frames in {path}"
            )

    def _inputs(self, draws: list[Draw], frames: list[LatentFrame]) -> dict[str, torch.Tensor]:
        """Latents, mask, and what the objective draws for this step."""
        arrays = {
            name: np.stack([_mirrored(getattr(f, name), draw.flip) for draw, f in zip(draws, frames, strict=True)])
            for name in ("rgb_latent", "depth_latent", "latent_mask")
        }
        rgb, depth = (torch.from_numpy(arrays[name]).float() * self.scaling for name in ("rgb_latent", "depth_latent"))
        valid = torch.from_numpy(arrays["latent_mask"])[:, None]  # [B, 1, h, w]
        return {"rgb": rgb, "depth": depth, "valid": valid} | self.objective.draw(depth.shape, self.step)

    def _loss(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        prompt = self.prompt.expand(len(inputs["depth"]), -1, -1)
        sample = self.objective.sample(inputs)  # [B, 2c, h, w]
        if self.params.channels_last:
            sample = sample.contiguous(memory_format=torch.channels_last)
        with self.accelerator.autocast():
            output = self.unet(sample, inputs["timesteps"], encoder_hidden_states=prompt).sample
        return self.objective.loss(output.float(), inputs)

    # -- validation ---------------------------------------------------------------------------------------

    def _validate(self) -> dict[str, float]:
        """Figures of the weights that would be exported now; the best ones are kept beside the checkpoints."""
        metric, figures, better = self.params.validation.metric, {}, False
        if self.accelerator.is_main_process:
            with self._averaged(), self._pipeline() as pipe:
                figures = self.validate(pipe, self.step)
                if metric not in figures:
                    raise ValueError(f"validation gave {sorted(figures)}, train.validation.metric is {metric}")
                better = self.best.beaten_by(figures[metric], metric)
                if better:
                    # Best is only what lies on the disk.
                    better = save_folder(self.state / "best", {"unet": pipe.unet.state_dict()}, {"step": self.step})
            told = {name: float(f"{value:.4g}") for name, value in figures.items()}
            log.info("step %d, validation: %s%s", self.step, told, ", the best so far" if better else "")
        figures, better = broadcast_object_list([figures, better])
        self.best = (
            _Best(figures[metric], self.step)
            if better
            else _Best(self.best.value, self.best.step, self.best.worse_since + 1)
        )
        return figures

    @contextmanager
    def _pipeline(self) -> Iterator[MetricGoldPipeline]:
        """The pipeline of these very weights, on this device."""
        unet = self.accelerator.unwrap_model(self.unet)
        parts = self.parts | {"unet": unet, "scheduler": self.scheduler}
        try:
            yield MetricGoldPipeline(**parts, **self.config).to(self.accelerator.device)
        finally:
            unet.train()

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """The average in the place of the weights, without a copy of either."""

        def swap() -> None:
            for i, parameter in enumerate(self.unet.parameters() if self.average is not None else ()):
                parameter.data, self.average[i] = self.average[i], parameter.data

        swap()
        try:
            yield
        finally:
            swap()

    # -- result -------------------------------------------------------------------------------------------

    def export(self, out: Path, lineage: dict[str, Any]) -> None:
        """Write the pipeline folder whole or not at all: the weights that did best, or else the last ones."""
        if not self.accelerator.is_main_process:
            return
        with self._averaged(), self._pipeline() as pipe, write_aside(out) as aside:
            if self.best.value is not None:
                pipe.unet.load_state_dict(load_file(self.state / "best" / "unet.safetensors"))
            pipe.save_pretrained(aside)
            step = self.step if self.best.value is None else self.best.step
            write_json(aside / "lineage.json", lineage | {"step": step})


def _mixture(params: Train, caches: dict[str, LatentCache]) -> Mixture:
    def weights(named: dict[str, float]) -> list[float]:
        return [named.get(name, 1.0) for name in caches]

    curriculum = [(phase.until_step, weights(phase.weights)) for phase in params.curriculum or ()]
    sizes = [len(cache) for cache in caches.values()]
    return Mixture(sizes, weights(params.weights), params.seed, flip=params.flip, curriculum=curriculum)


def _write_plot(metrics: Path, plot: Path) -> None:
    rows = read_rows(metrics)
    columns = ["step", "loss", "lr", "grad_norm"]
    columns += sorted({key for row in rows for key in row} - set(columns))
    with write_aside(plot) as aside, aside.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=columns)
        writer.writeheader()
        writer.writerows(rows)


def _mirrored(array: np.ndarray, flip: bool) -> np.ndarray:
    return array[..., ::-1] if flip else array
