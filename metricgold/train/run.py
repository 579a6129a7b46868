"""One training run of the U-Net: models, optimiser and position; a step, validation, the exported pipeline."""

import logging
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from math import isfinite
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor2_0
from safetensors.torch import load_file

from metricgold.datasets import evenly_spaced
from metricgold.images import relative_focal
from metricgold.model import MetricGoldPipeline, UncertaintyScale, new_camera_token
from metricgold.params import Train
from metricgold.shards import CROP_MARK, LatentCache, LatentFrame, shard_names
from metricgold.storage import row_line, write_aside, write_json
from metricgold.train.checkpoints import BROKEN, Tensors, read_position, save_folder
from metricgold.train.mixture import Draw, Mixture
from metricgold.train.network import Network
from metricgold.train.objective import Objective, training_scheduler
from metricgold.train.optimizer import SpikeGuard, exponential_rate, new_optimizer
from metricgold.train.resumable import MetricRow, ResumableRun
from metricgold.train.sessions import note_result

log = logging.getLogger(__name__)

DROPPED_CAMERAS = 3  # the stream of random numbers, beside those of the mixture and the objective


class Validate(Protocol):
    """Measures the weights of this moment on held-out frames."""

    def __call__(self, pipe: MetricGoldPipeline, step: int, /) -> dict[str, float]:
        """Figures of metricgold.metrics; whatever pictures it writes are in place when it returns."""


Calibrate = Callable[[MetricGoldPipeline], UncertaintyScale]  # what the pipeline then states as its uncertainty


class Samples(NamedTuple):
    """A step's samples: which frames were drawn, and what the caches hold of them."""

    draws: list[Draw]
    frames: list[LatentFrame]


@dataclass(frozen=True, slots=True)
class BestValidation:
    """The best validation so far; value None before the first."""

    value: float | None = None
    step: int = 0
    worse_since: int = 0  # validations after it

    def is_beaten_by(self, value: float, metric: str) -> bool:
        """Whether a figure of this metric is better: larger for delta, smaller for errors."""
        sign = -1 if metric.startswith("delta") else 1
        return isfinite(value) and (self.value is None or sign * value < sign * self.value)


class TrainingRun(ResumableRun[Samples]):
    """Fine-tunes the U-Net of `parts` (a backbone) on latent caches; config: the pipeline's own settings.

    Where params.camera has a token, it learns with the U-Net: one optimiser, one average, one checkpoint.
    """

    name = "train"

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
        super().__init__(
            state,
            params.num_steps,
            checkpoint_every=params.checkpoint_every,
            log_every=params.log_every,
            keep_checkpoints=params.keep_checkpoints,
        )
        self.params, self.accelerator, self.is_writer = params, accelerator, accelerator.is_main_process
        self.parts, self.config, self.measure = parts, config, validate
        self.names, self.caches = list(caches), list(caches.values())
        self.frames = [frames_drawn(cache, params) for cache in self.caches]
        self.mixture = mixture_of(params, dict(zip(self.names, map(len, self.frames), strict=True)))
        self.share = share_of_batch(params, accelerator)
        self.scheduler = training_scheduler(parts["scheduler"], params)
        self.network, self.optimizer = prepare_network(parts["unet"], params, accelerator)
        self.average = [p.detach().clone() for p in self.network.parameters()] if params.ema_decay else None
        self.prompt = parts["empty_prompt"].embedding.detach().to(accelerator.device)
        if params.decoded_loss_weight:
            parts["vae"].requires_grad_(False).to(accelerator.device)
        self.objective = Objective(params, self.scheduler, parts["vae"])
        self.scaling = parts["vae"].config.scaling_factor
        self.guard, self.best = SpikeGuard(params.spike_factor), BestValidation()

    # --- a step ---

    def read(self, step: int) -> Samples:
        draws = self.mixture.draw(step, self.params.batch_size)
        return Samples(draws, [self.caches[draw.dataset][self.frames[draw.dataset][draw.frame]] for draw in draws])

    def learning_rate(self, step: int) -> float:
        return exponential_rate(step, self.params)

    def update(self, batch: Samples) -> float | None:
        """One optimiser step over the batch, in micro-batches; left out where the guard finds a fault."""
        loss = self.add_gradients(self.inputs(batch))
        norm = float(self.accelerator.clip_grad_norm_(self.network.parameters(), self.params.max_grad_norm))
        # Over all processes, so that all of them come to one decision.
        mean_loss = self.accelerator.reduce(loss, "sum").item()
        fault = self.guard.fault(mean_loss, norm)
        if fault is None:
            self.optimizer.step()
            if self.average is not None:
                # The average starts as a plain mean and becomes exponential: no bias from the first weights.
                weight = max(1 - self.params.ema_decay, 1 / (self.step + 2))
                torch._foreach_lerp_(self.average, [p.detach() for p in self.network.parameters()], weight)
            self.guard.note_update(norm)
        else:
            self._leave_out(fault, batch)
        self.optimizer.zero_grad()
        return mean_loss if fault is None else None

    def add_gradients(self, groups: Sequence[tuple[dict[str, torch.Tensor], list[int]]]) -> torch.Tensor:
        """Gradients of this process's micro-batches; returns their part of the step's loss. groups: see `inputs`."""
        device, world = self.accelerator.device, self.accelerator.num_processes
        of_step = torch.stack([self.objective.weights(inputs) for inputs, _ in groups]).sum(dim=0).to(device)
        parts = [(inputs, part) for inputs, samples in groups for part in self.micro_batches(samples)]
        losses = []
        for number, (inputs, part) in enumerate(parts, 1):
            # The last backward pass shares the gradients with the other processes, which takes their mean.
            with nullcontext() if number == len(parts) else self.accelerator.no_sync(self.network):
                loss = self.loss({name: tensor[part].to(device) for name, tensor in inputs.items()}, of_step)
                self.accelerator.backward(loss * world)
            losses.append(loss.detach())
        return torch.stack(losses).sum()

    def inputs(self, batch: Samples) -> list[tuple[dict[str, torch.Tensor], list[int]]]:
        """For each shape in the batch, those samples' inputs, and which of the batch they are.

        Inputs are scaled latents [B, c, h, w] and valid mask [B, 1, h, w], and what the objective draws for this step.
        """
        of_shape: defaultdict[tuple[int, ...], list[int]] = defaultdict(list)
        for number, frame in enumerate(batch.frames):
            of_shape[frame.depth_latent.shape].append(number)
        groups = [
            (self._latents(Samples([batch.draws[i] for i in ids], [batch.frames[i] for i in ids])), ids)
            for ids in of_shape.values()
        ]
        drawn = self.objective.draws([tuple(latents["depth"].shape) for latents, _ in groups], self.step)
        known = self._known_cameras(len(batch.frames))
        return [
            (latents | draw | self._lenses([batch.frames[i] for i in ids]) | {"known": known[ids]}, ids)
            for (latents, ids), draw in zip(groups, drawn, strict=True)
        ]

    def _known_cameras(self, num_samples: int) -> torch.Tensor:
        """Which of a step's samples the network is told the lens of, bool [B]; a function of (seed, step)."""
        rng = np.random.default_rng([self.params.seed, self.step, DROPPED_CAMERAS])
        return torch.from_numpy(rng.random(num_samples) >= self.params.camera_dropout)

    def _lenses(self, frames: Sequence[LatentFrame]) -> dict[str, torch.Tensor]:
        """ln of the relative focal length of each, [B]."""
        size = self.config["processing_height"], self.config["processing_width"]
        focals = [relative_focal(frame.intrinsics, *size) for frame in frames]
        return {"ln_focal": torch.tensor(focals, dtype=torch.float32).log()}

    def _latents(self, samples: Samples) -> dict[str, torch.Tensor]:
        """Scaled latents and valid mask of samples of one shape, mirrored where their draw says so."""

        def stacked(name: str) -> torch.Tensor:
            arrays = [(frame.arrays[name], draw.flip) for draw, frame in zip(*samples, strict=True)]
            return torch.from_numpy(np.stack([array[..., ::-1] if flip else array for array, flip in arrays]))

        rgb, depth = (stacked(name).float() * self.scaling for name in ("rgb_latent", "depth_latent"))
        valid, no_surface = (stacked(name)[:, None] for name in ("latent_mask", "no_surface_mask"))
        return {"rgb": rgb, "depth": depth, "valid": valid, "no_surface": no_surface}

    def micro_batches(self, samples: Sequence[int]) -> list[list[int]]:
        """This process's share of samples of one shape, whose places in the batch are given, in micro-batches."""
        own = [i for i, place in enumerate(samples) if place in self.share]
        size = self.params.micro_batch_size
        return [own[start : start + size] for start in range(0, len(own), size)]

    def loss(self, inputs: dict[str, torch.Tensor], of_step: torch.Tensor) -> torch.Tensor:
        """The objective's loss of the U-Net's output for a micro-batch, a part of the step's."""
        prompt = self.prompt.expand(len(inputs["depth"]), -1, -1)
        sample = self.objective.sample(inputs)  # [B, 2c, h, w]
        if self.params.channels_last:
            sample = sample.contiguous(memory_format=torch.channels_last)
        with self.accelerator.autocast():
            output = self.network(sample, inputs["timesteps"], prompt, inputs["ln_focal"], inputs["known"])
        return self.objective.loss(output.float(), inputs, of_step)

    def _leave_out(self, fault: str, batch: Samples) -> None:
        """Count an update that is not made and name its frames. ValueError after too many in a row."""
        self.guard.note_left_out()
        if self.accelerator.scaler:
            self.accelerator.scaler.update()  # halves the scale, if that was the reason
        step, path = self.step + 1, self.state / "bad_batches.jsonl"
        log.warning("step %d left out: %s", step, fault)
        if self.is_writer:
            names = [f"{self.names[draw.dataset]}: {frame.name}" for draw, frame in zip(*batch, strict=True)]
            with path.open("a") as file:
                file.write(row_line({"step": step, "fault": fault, "frames": names}))
        if self.guard.in_a_row > self.params.max_skipped:
            raise ValueError(
                f"step {step}: {self.guard.in_a_row} updates in a row had to be left out, "
                f"train.max_skipped is {self.params.max_skipped}; the last: {fault}; frames in {path}"
            )

    def wait_for_everyone(self) -> None:
        self.accelerator.wait_for_everyone()

    def any_process(self, flag: bool) -> bool:
        if self.accelerator.num_processes == 1:
            return flag
        return self.accelerator.reduce(torch.tensor(float(flag), device=self.accelerator.device), "sum").item() > 0

    # --- checkpoints ---

    def contents(self) -> tuple[dict[str, Tensors], dict[str, Any]]:
        parts = {name: part.state_dict() for name, part in self.learning.items()}
        if self.average is not None:
            parts["average"] = {str(i): p for i, p in enumerate(self.average)}
        scaler = self.accelerator.scaler
        return parts, {
            "scaler": scaler.state_dict() if scaler else None,
            "guard": self.guard.position(),
            "best": asdict(self.best),
        }

    def restore(self, folder: Path, position: dict[str, Any]) -> None:
        for name, part in self.learning.items():
            part.load_state_dict(load_file(folder / f"{name}.safetensors"))
        if self.average is not None:
            for i, tensor in load_file(folder / "average.safetensors").items():
                self.average[int(i)].copy_(tensor)
        if self.accelerator.scaler:
            self.accelerator.scaler.load_state_dict(position["scaler"])
        self.best = BestValidation(**position["best"])
        self.guard.resume(position["guard"])

    def start(self, fingerprint: str, *, fresh: bool = False) -> None:
        super().start(fingerprint, fresh=fresh)
        if self.is_writer:
            self.check_best()
        (self.best,) = broadcast_object_list([self.best])

    def check_best(self) -> None:
        """Make best/ again from the checkpoint of its step where it is broken; without one forget it, aloud."""
        folder, step = self.state / "best", self.best.step
        if self.best.value is None:
            return
        try:
            if (present := read_position(folder)["step"]) == step:
                return
            fault = f"it is of step {present}"
        except BROKEN as error:
            fault = str(error)
        try:
            weights = self.weights_of(self.state / f"step-{step:06d}")
            if save_folder(folder, weights, {"step": step}):
                log.warning("%s did not hold the weights of step %d (%s); made again", folder, step, fault)
                return
        except BROKEN:
            pass  # that checkpoint is gone, as most are
        log.warning(
            "%s does not hold the best weights, of step %d (%s): the best of the validations to come become the "
            "result, the last weights without one",
            folder, step, fault,
        )  # fmt: skip
        self.best = BestValidation(worse_since=self.best.worse_since)

    def weights_of(self, checkpoint: Path) -> dict[str, Tensors]:
        """The parts that would have been exported at a checkpoint; raises one of BROKEN where it is not complete."""
        read_position(checkpoint)
        weights = {part: load_file(checkpoint / f"{part}.safetensors") for part in self.learning}
        if self.average is not None:
            average = load_file(checkpoint / "average.safetensors")
            names = self.accelerator.unwrap_model(self.network).named_parameters()
            for i, (name, _) in enumerate(names):
                part, _, inner = name.partition(".")
                weights[part][inner] = average[str(i)]
        return weights

    @property
    def learning(self) -> dict[str, torch.nn.Module]:
        """What learns, by the names of the pipeline's parts."""
        network: Network = self.accelerator.unwrap_model(self.network)
        return network.parts

    # --- rows and validation ---

    def figures(self) -> MetricRow:
        """The last gradient norm, and how many updates were left out so far."""
        return {"grad_norm": self.guard.norms[-1]} | ({"skipped": self.guard.skipped} if self.guard.skipped else {})

    def validate(self) -> MetricRow:
        """Measure the weights that would be exported now, where that is due; the best are kept in best/."""
        validation = self.params.validation
        if validation is None or (self.step % validation.every and self.step != self.num_steps):
            return {}
        figures, is_best = {}, False
        if self.is_writer and self.measure is not None:
            with self._averaged(), self._pipeline() as pipe:
                figures = self.measure(pipe, self.step)
                if validation.metric not in figures:
                    raise ValueError(
                        f"validation gave {sorted(figures)}, train.validation.metric is {validation.metric}"
                    )
                # Only weights that are on the disk can become the result.
                is_best = self.best.is_beaten_by(figures[validation.metric], validation.metric) and save_folder(
                    self.state / "best",
                    {name: part.state_dict() for name, part in self.learning.items()},
                    {"step": self.step},
                )
        figures, is_best = broadcast_object_list([figures, is_best])
        if is_best:
            self.best = BestValidation(figures[validation.metric], self.step)
        else:
            self.best = BestValidation(self.best.value, self.best.step, self.best.worse_since + 1)
        return {f"val_{name}": value for name, value in figures.items()}

    def announce(self, row: MetricRow) -> None:
        if figures := ", ".join(f"{name[4:]} {value:.4g}" for name, value in row.items() if name.startswith("val_")):
            best = ", the best so far" if self.best.step == self.step else ""
            log.info("step %d, validation: %s%s", self.step, figures, best)
        if self.is_done():
            log.info("no better validation than that of step %d: done at %d", self.best.step, self.step)

    def is_done(self) -> bool:
        """Whether validation has not become better for as long as train.validation.patience allows."""
        patience = self.params.validation.patience if self.params.validation else None
        return patience is not None and self.best.worse_since >= patience

    @contextmanager
    def _pipeline(self) -> Iterator[MetricGoldPipeline]:
        """The pipeline of the weights in training, on this device."""
        parts = self.parts | self.learning | {"scheduler": self.scheduler}
        try:
            yield MetricGoldPipeline(**parts, **self.config).to(self.accelerator.device)
        finally:
            self.network.train()

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """The average, if there is one, in place of the weights, without a copy of either."""
        average = self.average or []

        def swap() -> None:
            for i, (parameter, mean) in enumerate(zip(self.network.parameters(), average, strict=False)):
                parameter.data, average[i] = mean, parameter.data

        swap()
        try:
            yield
        finally:
            swap()

    # --- result ---

    def export(self, out: Path, lineage: dict[str, Any], calibrate: Calibrate | None) -> None:
        """Write the pipeline folder, complete or not at all: the weights with the best validation, or else the last."""
        if not self.is_writer:
            return
        self.check_best()
        with self._averaged(), self._pipeline() as pipe, write_aside(out, marks=["lineage.json"]) as aside:
            if self.best.value is not None:
                for name, part in self.learning.items():
                    part.load_state_dict(load_file(self.state / "best" / f"{name}.safetensors"))
            if calibrate is not None:
                pipe.calibrate(calibrate(pipe))
            pipe.save_pretrained(aside)
            step = self.step if self.best.value is None else self.best.step
            write_json(aside / "lineage.json", lineage | {"step": step})
        note_result(self.state, out)


def frames_drawn(cache: LatentCache, params: Train) -> Sequence[int]:
    """Positions in a cache of the frames that are drawn with equal chances, one that is drawn more often several times.

    Of train.scenes_share of its scenes, evenly spaced over their names, at least one; whole frames whole_weight times.
    """
    if params.scenes_share == 1 and params.whole_weight == 1:
        return range(len(cache))  # which may be millions
    of_scene: defaultdict[str, list[int]] = defaultdict(list)
    begin = 0
    for shard in cache.index["shards"]:
        frames, begin = range(begin, begin + shard["num_frames"]), begin + shard["num_frames"]
        of_scene[shard["scene"]] += frames
        if params.whole_weight > 1:
            names = shard_names(cache.path / shard["file"])
            whole = [frame for frame, name in zip(frames, names, strict=True) if CROP_MARK not in name]
            of_scene[shard["scene"]] += whole * (params.whole_weight - 1)
    scenes = [frames for frames in of_scene.values() if frames]
    kept = evenly_spaced(len(scenes), max(1, round(params.scenes_share * len(scenes))))
    return [frame for i in kept for frame in scenes[i]]


def mixture_of(params: Train, sizes: Mapping[str, int]) -> Mixture:
    """Draws from caches of so many frames by train.weights and train.curriculum; one that they do not name weighs 1."""

    def weights(named: dict[str, float]) -> list[float]:
        return [named.get(name, 1.0) for name in sizes]

    curriculum = [(phase.until_step, weights(phase.weights)) for phase in params.curriculum or ()]
    return Mixture(list(sizes.values()), weights(params.weights), params.seed, flip=params.flip, curriculum=curriculum)


def share_of_batch(params: Train, accelerator: Accelerator) -> set[int]:
    """This process's places in a batch; all processes cover it. ValueError where it cannot be shared evenly."""
    micro, world = params.micro_batch_size, accelerator.num_processes
    starts = range(0, params.batch_size, micro)
    if len(starts) % world:
        raise ValueError(
            f"train.batch_size {params.batch_size} gives {len(starts)} micro-batches, "
            f"which {world} devices cannot share evenly"
        )
    return {start + i for start in starts[accelerator.process_index :: world] for i in range(micro)}


def prepare_network(unet: UNet2DConditionModel, params: Train, accelerator: Accelerator) -> tuple[torch.nn.Module, Any]:
    """The U-Net in training mode, with what saves memory or time, a new token of the camera where params ask for one,
    and their optimiser; network and optimiser wrapped by accelerate."""
    assert all(isinstance(one, AttnProcessor2_0) for one in unet.attn_processors.values()), "attention is not SDPA"
    if params.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    if params.channels_last:
        unet.to(memory_format=torch.channels_last)
    if params.compile:
        unet.compile()  # in place: names of weights stay
    has_token = "token" in params.camera
    token = new_camera_token(unet.config.cross_attention_dim, params.seed, params.camera) if has_token else None
    network = Network(unet, token).train()
    return accelerator.prepare(network, new_optimizer(params, network.parameters()))
