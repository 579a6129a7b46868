"""params.yaml as frozen, typed sections. The command line reads it once; stages take the section they need."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)

from metricgold.log_depth import Encoding, EncodingName, LogDepth
from metricgold.params.paths import require_dataset_name
from metricgold.params.words import PRESETS, Camera, Dtype, Output, PredictionType, Spacing, Windows
from metricgold.storage import faults_of, read_yaml

Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]
DatasetName = Annotated[str, AfterValidator(require_dataset_name)]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class Section(BaseModel):
    """A part of params.yaml: it cannot be changed, and unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class MetreRange(Section):
    """Metres that map to -1 and +1 (arXiv 2411.10886; the paper does not state its own values)."""

    near_m: PositiveFloat = 0.5
    far_m: PositiveFloat = 80.0

    @model_validator(mode="after")
    def _near_is_nearer(self) -> "MetreRange":
        if self.near_m >= self.far_m:
            raise ValueError(f"near_m {self.near_m} must be below far_m {self.far_m}")
        return self


class LogDepthRange(MetreRange):
    """The range of log depth, and what the VAE sees of it."""

    # Left out where it is the paper's, so that the digests of what was made before this key stay.
    encoding: EncodingName = Field("log", exclude_if=lambda name: name == "log")

    def to_log_depth(self, relative_focal: float = 1.0) -> LogDepth:
        """The mapping of this range onto [-1, 1], of an image with that relative focal length; here one for all."""
        return LogDepth(self.near_m, self.far_m)

    def to_encoding(self) -> Encoding:
        """What the VAE sees of log depth of this range, whatever the lens."""
        return Encoding(self.encoding, self.near_m, self.far_m)


class CanonicalRange(LogDepthRange):
    """Metres of canonical depth that map to -1 and +1: what a lens of relative focal length 1 would need.

    Planar depth over the image's relative focal length (Metric3D, arXiv 2307.10984), so that the same picture is the
    same canonical depth, whatever lens took it.
    """

    # A start, wider than percentiles 0.5 to 99.5 of the demo's frames and their crops (0.95 to 86 m). `metricgold
    # vae-floor` reports those of the data at hand.
    near_m: PositiveFloat = 0.45
    far_m: PositiveFloat = 100.0
    canonical: Literal[True] = True  # so that a cache of it is not taken for one of metres

    def to_log_depth(self, relative_focal: float = 1.0) -> LogDepth:
        """The mapping of this range onto [-1, 1], in metres of an image with that relative focal length."""
        return LogDepth(self.near_m * relative_focal, self.far_m * relative_focal)


class Synthesize(Section):
    """Worlds to render: how many, how large."""

    version: PositiveInt = 1
    seed: Count = 0
    height: PositiveInt = 64
    width: PositiveInt = 96
    num_train_scenes: PositiveInt = 40  # per data set
    num_test_scenes: PositiveInt = 8
    num_val_scenes: Count = 0  # for train.validation and train.uncertainty
    frames_per_scene: PositiveInt = 10

    @property
    def num_scenes(self) -> int:
        """Of all splits."""
        return self.num_train_scenes + self.num_test_scenes + self.num_val_scenes

    def place(self, scene_index: int) -> tuple[str, int]:
        """Split of a scene, and its number within that split: 0.. train, then test, then val."""
        number = scene_index
        for split, count in (("train", self.num_train_scenes), ("test", self.num_test_scenes)):
            if number < count:
                return split, number
            number -= count
        return "val", number


class SynthesizeBenchmark(Section):
    """Twins of the benchmarks to render; each keeps its benchmark's own camera, and so its own width."""

    version: PositiveInt = 1
    seed: Count = 0
    height: Annotated[int, Field(ge=24)] = 120
    num_scenes: Annotated[int, Field(ge=1, le=900)] = 16  # per benchmark, all for test
    frames_per_scene: PositiveInt = 2


class Download(Section):
    """Which parts of the data sets to fetch, and how patiently."""

    version: PositiveInt = 1
    num_workers: PositiveInt = 4  # archives at once
    connections_per_host: PositiveInt = 4  # at most; more would burden the publishers' servers
    patience_s: PositiveFloat = 300.0  # without a single byte, over all mirrors, before an archive is given up
    stall_s: PositiveFloat = 30.0  # a request that delivers next to nothing for this time is ended
    # Null and not empty, because DVC cannot read back the inline {} and [] that it writes.
    scenes: dict[DatasetName, list[str]] | None = None  # data set -> globs over scenes; without an entry all
    limit_gb: dict[DatasetName, PositiveFloat] | None = None  # GB extracted; full scenes in the manifest's order
    streamed: list[DatasetName] | None = None  # whose training scenes encode fetches one by one and deletes again


class Inspect(Section):
    """Which frames to check before training on a data set."""

    version: PositiveInt = 1
    split: Literal["train", "val", "test"] | None = None  # None: all that are there
    num_frames: PositiveInt = 1000  # decoded and checked, evenly over scenes; names and headers of all


class StandIn(Section):
    """A small VAE and U-Net of the same classes as SD2's, trained on the data sets' own images."""

    # identity: latents are the image itself, so that the U-Net works on pixels. Left out where it is the default, so
    # that the digests of what was made before this key stay.
    vae: Literal["trained", "identity"] = Field("trained", exclude_if=lambda kind: kind == "trained")
    # What the VAE learns depth maps in, in equal shares. Left out where it is the default, as above.
    encodings: Annotated[list[EncodingName], Field(min_length=1)] = Field(
        ["log"], exclude_if=lambda names: names == ["log"]
    )
    vae_channels: list[PositiveInt] = [16, 32, 32]
    latent_channels: PositiveInt = 4
    vae_steps: Count = 1000
    vae_batch_size: PositiveInt = 8
    vae_crop: PositiveInt = 48
    vae_lr: PositiveFloat = 4e-3
    unet_channels: list[PositiveInt] = [32, 64, 128]
    unet_layers: PositiveInt = 1  # residual blocks a level
    unet_steps: Count = 0  # of image generation, before it sees depth
    unet_lr: PositiveFloat = 1e-3
    text_width: PositiveInt = 32
    num_frames: PositiveInt = 600
    seed: Count = 0

    @model_validator(mode="after")
    def _an_image_has_three_colours(self) -> "StandIn":
        if self.vae == "identity" and self.latent_channels != 3:
            raise ValueError(f"vae identity needs latent_channels 3, got {self.latent_channels}")
        return self


class Mirror(Section):
    """One more place to fetch the backbone from."""

    source: str  # a diffusers folder or a hub id
    revision: str | None = None  # commit of the hub id; required for one


class Backbone(Section):
    """The image generator that training starts from."""

    version: PositiveInt = 1
    source: str = "stand-in"  # "stand-in", a diffusers folder, or a hub id
    revision: str | None = None  # commit of the hub id; required for one
    # Null and not empty, because DVC cannot read back the inline {} and [] that it writes.
    mirrors: list[Mirror] | None = None  # tried in order when the source is gone or its weights are not those of sha256
    sha256: dict[Literal["unet", "vae", "text_encoder"], Sha256] | None = None  # of each part's weights file
    fresh_unet: bool = False  # random weights in place of the source's: what its generative training is worth
    stand_in: StandIn = StandIn()


class Encode(Section):
    """Frames to latents: size, crops, precision."""

    version: PositiveInt = 1
    # Pixels: every frame is scaled, whole and evenly, to the area of height x width. So is every image in prediction.
    height: PositiveInt = 64
    width: PositiveInt = 96
    batch_size: PositiveInt = 16
    frames_per_shard: PositiveInt = 256
    dtype: Dtype = "float32"  # of the VAE; latents are stored as float16
    max_dtype_error: PositiveFloat = 0.01  # of decoded depth against float32's, mean and relative
    views: PositiveInt = 1  # of each frame: the whole frame, then random crops, mirrored or not
    min_crop: Annotated[float, Field(gt=0, le=1)] = 0.5  # sides of the smallest crop, as a share of the largest
    # Share of a sample's latents that must have depth in every pixel, or it is left out: one with less costs a training
    # step as much as a full one and teaches a twentieth of it, beside a target that is mostly fill.
    min_valid: Fraction = 0.05

    @property
    def view_shares(self) -> tuple[float, ...]:
        """Sides of a frame's views as shares of the whole frame's; those of random ones as they are on average."""
        num_random = self.views - 1
        return (1.0, *(self.min_crop ** ((i + 0.5) / num_random) for i in range(num_random)))


class VaeFloor(Section):
    """The true depth through the VAE and back: which encoding and which range lose least."""

    version: PositiveInt = 1
    # The range is chosen by this figure, so not `test`.
    split: Literal["train", "val", "test"] = "train"
    frames_per_dataset: PositiveInt = 50
    batch_size: PositiveInt = 8
    dtype: Dtype = "float32"  # of the VAE
    ranges_m: Annotated[list[MetreRange], Field(min_length=1)] = [
        MetreRange(near_m=near_m, far_m=far_m)
        for near_m, far_m in ((0.5, 80.0), (0.3, 80.0), (1.0, 80.0), (0.5, 40.0), (0.5, 150.0))
    ]  # log_depth is always measured too


class DepthVae(Section):
    """The VAE's decoder, fine-tuned on log depth; encoder and latents stay as they are."""

    version: PositiveInt = 1
    num_steps: Count = 0  # 0: the backbone's decoder as it is
    seed: Count = 0
    batch_size: PositiveInt = 8
    crop: PositiveInt = 256  # pixels a side, at most encode's size
    lr: PositiveFloat = 2e-5
    warmup_steps: Count = 100
    gradient_weight: Annotated[float, Field(ge=0)] = 0.5  # of the error's differences between neighbours; 0: none
    # Of pixels known to show no surface, such as sky, that decode to less than far_m; at 0 they become walls.
    no_surface_weight: Fraction = 0.0
    max_grad_norm: PositiveFloat = 1.0
    mixed_precision: Literal["no", "bf16"] = "no"
    checkpoint_every: PositiveInt = 500
    split: Literal["val", "test"] = "test"  # its floor is reported before and after
    frames_per_dataset: PositiveInt = 50


class Noise(Section):
    """Annealed multi-resolution noise (Marigold, arXiv 2312.02145, section 3.2)."""

    strength: Fraction = 0.9
    annealed: bool = True


class Phase(Section):
    """Shares of samples up to a step, in place of train.weights."""

    until_step: PositiveInt
    # 0: left out; not named: 1
    weights: Annotated[dict[DatasetName, Annotated[float, Field(ge=0)]], Field(min_length=1)]


class Validation(Section):
    """Held-out frames predicted while training; the weights that do best on them become the model."""

    every: PositiveInt = 1000  # steps
    split: Literal["val", "test"] = "val"
    frames_per_dataset: PositiveInt = 16  # evenly spaced, always the same
    num_inference_steps: PositiveInt = 1  # and one run each, to be quick
    batch_size: PositiveInt = 1  # images at once: decoding them needs memory beside the training
    # The figure that decides which weights are best, averaged over data sets.
    metric: Literal["abs_rel", "rmse_m", "rmse_log", "silog", "delta1"] = "abs_rel"
    patience: PositiveInt | None = None  # validations without a better one, after which training ends


class Uncertainty(Section):
    """Held-out frames predicted after training: what the model states as its standard error is fitted to their errors.

    Each is predicted by one member, by two and so on up to ensemble_size, which is what it costs.
    """

    version: PositiveInt = 1
    split: Literal["val", "test"] = "val"
    frames_per_dataset: Annotated[int, Field(ge=2)] = 64  # evenly spaced
    num_inference_steps: PositiveInt = 1
    ensemble_size: Annotated[int, Field(ge=1, le=10)] = 4
    batch_size: PositiveInt = 8  # images x members at once
    min_m: PositiveFloat = 0.1  # truth that counts, as in evaluate
    max_m: PositiveFloat = 80.0


class Train(Section):
    """Fine-tuning of the U-Net: objective, data, optimiser, checkpoints."""

    version: PositiveInt = 1
    seed: Count = 0
    objective: Literal["diffusion", "one-step"] = "diffusion"
    loss: Literal["l1", "l2"] = "l2"
    decoded_loss_weight: Annotated[float, Field(ge=0)] = 0.0  # of the error of decoded log depth; one-step only
    decoded_loss: Literal["l1", "sinkhorn"] = "l1"  # sinkhorn: each pixel matched in its window (arXiv 2609.08084)
    # Side of the square crop, in latents; memory grows with its area, because the decoder's gradient is kept.
    decoded_crop: PositiveInt = 32
    # Of latents known to show no surface, such as sky, relative to those with depth; their target is far_m.
    invalid_weight: Fraction = 0.0
    # Share of far_m from which on the model's predictions say that there is no surface; 1: where they saturate.
    no_surface_from: Annotated[float, Field(gt=0, le=1)] = 1.0
    weights: dict[DatasetName, PositiveFloat] = {}  # data set -> share of samples; empty: equal shares
    curriculum: list[Phase] | None = None  # by until_step; after the last one `weights`
    # Of each data set's scenes, evenly spaced over their names: how much data a result needs.
    scenes_share: Annotated[float, Field(gt=0, le=1)] = 1.0
    whole_weight: PositiveInt = 1  # a whole frame is drawn so many times as often as a random crop (encode.views)
    num_steps: PositiveInt = 30_000
    batch_size: PositiveInt = 32  # samples per optimiser step, over all accumulations and devices
    micro_batch_size: PositiveInt = 8
    lr: PositiveFloat = 3e-5
    warmup_steps: Count = 100
    final_lr_ratio: Fraction = 0.01  # exponential decay to this share at decay_steps
    decay_steps: PositiveInt = 25_000
    max_grad_norm: PositiveFloat = 1.0
    # An update whose gradient norm is this many times the recent median is skipped.
    spike_factor: Annotated[float, Field(gt=1)] = 20.0
    max_skipped: Count = 10  # updates skipped in a row; one more ends the run
    noise: Noise = Noise()
    # Different timesteps that training visits, evenly spaced down from the last one, which is all noise.
    num_timesteps: Annotated[int, Field(ge=1, le=1000)] = 1000
    timestep_shift: PositiveFloat = 1.0  # above 1: more of the noisy timesteps (arXiv 2403.03206, eq. 23)
    prediction_type: PredictionType = "v_prediction"
    zero_terminal_snr: bool = True
    flip: bool = True
    # What the network is told of the lens. canonical: depth over the relative focal length, in the range of
    # canonical_depth; token: that length as one more token of the prompt; none: nothing, as in the paper.
    camera: Camera = "none"
    camera_dropout: Fraction = 0.1  # of samples whose token says "unknown", for images without a known camera
    ema_decay: Fraction = 0.0  # 0: no average
    optimizer: Literal["adamw", "adamw8bit"] = "adamw"  # 8 bits by bitsandbytes: a quarter of the moments' memory
    gradient_checkpointing: bool = False
    channels_last: bool = False
    compile: bool = False
    # Weights and moments stay float32. auto: bf16 where the machine multiplies in it, else no.
    mixed_precision: Literal["auto", "no", "bf16", "fp16"] = "no"
    checkpoint_every: PositiveInt = 500
    keep_checkpoints: PositiveInt = 2
    log_every: PositiveInt = 10
    validation: Validation | None = None
    uncertainty: Uncertainty | None = None  # None: the model states only how much its members differ

    @model_validator(mode="after")
    def _consistent(self) -> "Train":
        if self.batch_size % self.micro_batch_size:
            raise ValueError(
                f"batch_size {self.batch_size} must be a multiple of micro_batch_size {self.micro_batch_size}"
            )
        if self.zero_terminal_snr and self.prediction_type == "epsilon":
            raise ValueError(
                "zero_terminal_snr has no signal at the last timestep: prediction_type epsilon cannot start"
            )
        if self.objective == "one-step" and not self.zero_terminal_snr:
            raise ValueError("objective one-step starts from pure noise: it needs zero_terminal_snr")
        if self.objective == "diffusion" and self.decoded_loss_weight:
            raise ValueError("decoded_loss_weight needs objective one-step: a noisy latent does not decode to depth")
        return self

    @model_validator(mode="after")
    def _in_order(self) -> "Train":
        steps = [phase.until_step for phase in self.curriculum or []]
        if steps != sorted(set(steps)):
            raise ValueError(f"curriculum needs rising until_step, got {steps}")
        for name, section in (("validation", self.validation), ("uncertainty", self.uncertainty)):
            num_steps = section.num_inference_steps if section else 1
            if self.objective == "one-step" and num_steps != 1:
                raise ValueError(f"objective one-step needs {name}.num_inference_steps 1, got {num_steps}")
        return self


class Inference(Section):
    """How a model predicts: 50 steps x 10 runs, as in the paper."""

    num_inference_steps: PositiveInt = 50
    timestep_spacing: Spacing = "trailing"
    ensemble_size: PositiveInt | Literal["auto"] = 10  # auto: members are added until uncertainty_target is met
    max_ensemble_size: PositiveInt = 10  # of auto
    uncertainty_target: PositiveFloat = 0.01  # of auto: what the median depth of an image may still be off, relative
    merge: Literal["depth", "latent"] = "depth"  # median of members' log depth, or the mean of latents decoded once
    # auto: images more than 1.25 times as wide or tall in shape as those of training are seen by windows too.
    windows: Windows = "auto"
    seed: Count = 0
    dtype: Dtype = "float32"  # of U-Net and VAE

    @model_validator(mode="after")
    def _certainty_is_seen_in_depth(self) -> "Inference":
        if (self.ensemble_size, self.merge) == ("auto", "latent"):
            raise ValueError("ensemble_size auto needs merge depth: only decoded members show their uncertainty")
        return self


class Evaluate(Inference):
    """The measurement on held-out scenes of the training sets: which frames, predicted how, and the ruler."""

    version: PositiveInt = 1
    split: Literal["val", "test"] = "test"
    frames_per_dataset: PositiveInt | None = None  # None: all
    batch_size: PositiveInt = 8
    # Truth that counts, whatever a model's own range is: a wider or narrower log_depth is measured on the same pixels.
    # 0.1 m is nearer than what photographs show sharply, and than rooms of HyperSim come often; 80 m is where LiDAR and
    # the tables of outdoor sets end, beyond which VKITTI2 and TartanAir hold mostly backdrop.
    min_m: PositiveFloat = 0.1
    max_m: PositiveFloat = 80.0

    @model_validator(mode="after")
    def _min_is_smaller(self) -> "Evaluate":
        if self.min_m >= self.max_m:
            raise ValueError(f"min_m {self.min_m} must be below max_m {self.max_m}")
        return self

    @property
    def ruler(self) -> LogDepth:
        """min_m and max_m: both ends count."""
        return LogDepth(self.min_m, self.max_m)


class Benchmark(Inference):
    """What is measured on the data sets of `benchmarks`, and how the model predicts there."""

    version: PositiveInt = 1
    frames: PositiveInt | None = None  # of each protocol, evenly spaced; None: all, as tables to compare with need it
    all_protocols: bool = False  # of each benchmark; else its default one, where the command line names none
    batch_size: PositiveInt = 8


class Predict(Inference):
    """Batch jobs: how to predict, what to write, which images to refuse."""

    batch_size: PositiveInt = 16  # images x members through the U-Net at once
    compile: bool = False  # the U-Net, by torch.compile: half a minute or more, once for each processing size
    outputs: Annotated[list[Output], Field(min_length=1)] | None = None  # None: log-png, uncertainty, preview, json
    max_pixels: PositiveInt = 100_000_000  # larger images are refused before they are decoded
    max_aspect: Annotated[float, Field(ge=1)] = 8.0  # long side over short side; longer strips are refused
    allow_truncated: bool = False  # predict on the part that is there of an image that ends early
    drop_edges: bool = False  # leave pixels between two surfaces, of blurred edges, out of point clouds
    fov_deg: Annotated[float, Field(gt=0, lt=180)] = 60.0  # of the long side, where no camera is known
    # Images that may fail before the job does: a share (0.01) or a number of them (20); None: all but one.
    max_failed: PositiveInt | Fraction | None = None
    # Beyond which a job warns that its images differ from those of the last runs: 0.5 is half as much again.
    max_drift: Annotated[float, Field(gt=0)] = 0.5
    gallery: Count = 200  # images in gallery.html; 0: no page
    num_threads: PositiveInt = 4  # twice as many read and write while one thread runs the model
    lease_s: Annotated[float, Field(ge=10)] = 120.0  # another job may take over an S3 output not renewed for this time

    def fitted_to(self, *, is_one_step: bool) -> "Predict":
        """The same, with the preset one-step for a model of one step where these are for models of more."""
        if not is_one_step or self.num_inference_steps == 1:
            return self
        return Predict.model_validate(self.model_dump() | PRESETS["one-step"])


class Headline(Section):
    """Which figures commits are compared by: they are chosen in the code."""

    version: PositiveInt = 1


class BenchmarkGate(Section):
    """What the gate wants of one benchmark, by its default protocol; a key left out is not checked."""

    max_abs_rel: PositiveFloat | None = None
    min_delta1: Fraction | None = None


class Promote(Section):
    """The gate of the champion alias; a key left out is not checked."""

    max_abs_rel: PositiveFloat | None = None
    min_delta1: Fraction | None = None
    max_constant_ratio: PositiveFloat | None = None  # AbsRel over the best constant's
    max_vae_floor_abs_rel: PositiveFloat | None = None
    max_regression: Fraction | None = 0.02  # AbsRel may be worse than the champion's by this share
    benchmarks: dict[DatasetName, BenchmarkGate] | None = None
    # One image of 640 x 480 pixels, predicted as `predict` says on the machine that promotes.
    max_latency_s: PositiveFloat | None = None
    max_memory_gb: PositiveFloat | None = None  # of the GPU if there is one, else of the process
    licence: Literal["commercial"] | None = None  # refuse what a non-commercial data set or weight went into
    # Data sets, or "backbone", that may be used commercially though no licence that is known for it says so.
    cleared: list[str] | None = None


class Params(Section):
    """All of params.yaml."""

    datasets: Annotated[list[DatasetName], Field(min_length=1)]
    benchmarks: list[DatasetName] = []  # data sets that only measure; no null, of which DVC can make no stages
    log_depth: LogDepthRange = LogDepthRange()
    canonical_depth: CanonicalRange = CanonicalRange()  # in place of log_depth where train.camera says canonical
    synthesize: Synthesize = Synthesize()
    synthesize_benchmark: SynthesizeBenchmark = SynthesizeBenchmark()
    download: Download = Download()
    inspect: Inspect = Inspect()
    backbone: Backbone = Backbone()
    encode: Encode = Encode()
    vae_floor: VaeFloor = VaeFloor()
    depth_vae: DepthVae = DepthVae()
    train: Train = Train()
    evaluate: Evaluate = Evaluate()
    benchmark: Benchmark = Benchmark()
    headline: Headline = Headline()
    predict: Predict = Predict()
    promote: Promote = Promote()

    @property
    def depth_range(self) -> LogDepthRange:
        """The range of what the network predicts: log_depth, or canonical_depth where train.camera says so."""
        return self.canonical_depth if "canonical" in self.train.camera else self.log_depth

    @model_validator(mode="after")
    def _weights_name_datasets(self) -> "Params":
        shares = {"weights": self.train.weights}
        shares |= {f"curriculum.{i}.weights": phase.weights for i, phase in enumerate(self.train.curriculum or [])}
        for key, weights in shares.items():
            unknown = sorted(set(weights) - set(self.datasets))
            if unknown:
                raise ValueError(f"train.{key} names {unknown}, which datasets {self.datasets} does not list")
            if not any(weights.get(name, 1.0) for name in self.datasets):
                raise ValueError(f"train.{key} leaves no data set to draw from")
        return self

    @model_validator(mode="after")
    def _gate_names_benchmarks(self) -> "Params":
        if unknown := sorted(set(self.promote.benchmarks or {}) - set(self.benchmarks)):
            raise ValueError(f"promote.benchmarks names {unknown}, which benchmarks {self.benchmarks} does not list")
        return self

    @model_validator(mode="after")
    def _sampling_begins_where_noise_is_all(self) -> "Params":
        sections = {"evaluate": self.evaluate, "benchmark": self.benchmark, "predict": self.predict}
        for name, inference in sections.items():
            if self.train.zero_terminal_snr and inference.timestep_spacing == "leading":
                raise ValueError(
                    f"{name}.timestep_spacing leading never visits the last timestep, where sampling begins with "
                    "train.zero_terminal_snr: use trailing, or train without it"
                )
        return self

    @model_validator(mode="after")
    def _one_step_is_measured_so(self) -> "Params":
        for name, inference in (
            ("evaluate", self.evaluate),
            ("benchmark", self.benchmark if self.benchmarks else None),
        ):
            num_steps = inference.num_inference_steps if inference else 1
            if self.train.objective == "one-step" and num_steps != 1:
                raise ValueError(f"train.objective one-step needs {name}.num_inference_steps 1, got {num_steps}")
        return self


def load_params(path: Path = Path("params.yaml"), overrides: Mapping[str, Any] | None = None) -> Params:
    """Read and check a params file. ValueError lists every fault as `file: section.key: what is wrong, got value`.

    overrides  values in place of the file's, by `section.key`
    """
    try:
        values = read_yaml(path)
    except FileNotFoundError as error:
        raise ValueError(f"{path}: no such file; run from the project's root or pass --params") from error
    try:
        values = {} if values is None else values
        for key, value in (overrides or {}).items():
            values = _replaced(values, key.split("."), value)
        return Params.model_validate(values)
    except ValidationError as error:
        faults = ((fault["loc"], f"{fault['msg']}, got {fault['input']!r:.80}") for fault in error.errors())
        raise ValueError(faults_of(path, faults)) from error


def _replaced(values: Any, keys: list[str], value: Any) -> Any:
    """Nested values with another one below these keys."""
    if not keys:
        return value
    inner = values if isinstance(values, dict) else {}
    return inner | {keys[0]: _replaced(inner.get(keys[0]), keys[1:], value)}
