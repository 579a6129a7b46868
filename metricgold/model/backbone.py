"""The backbone: VAE, U-Net with eight input channels, noise schedule and empty prompt, in one diffusers folder.

It comes from Stable Diffusion v2 or a checkpoint made from it, such as Marigold's with its eight channels (a hub id
pinned by revision, or a folder in diffusers layout; the first of source and mirrors that has the right weights), or
is a small stand-in of the same classes, trained on the data sets' own images, for machines without a GPU or a hub.
Either way the same files come out: unet/, vae/, scheduler/, empty_prompt/ and backbone.json, which says what it was
made from. Weights are read from safetensors only: a pickle runs what it likes.
"""

import hashlib
import logging
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from safetensors import SafetensorError, safe_open
from torch.nn import functional
from tqdm import tqdm

from metricgold.datasets import Frame, list_frames, read_frame
from metricgold.log_depth import LogDepth
from metricgold.model.pipeline import EmptyPrompt
from metricgold.model.vae import filled_log_depth, rgb_to_tensor
from metricgold.params import PREDICTION_TYPES, Backbone, LogDepthRange, Mirror, StandIn
from metricgold.storage import digest_file, digest_folder, digest_json, only_writer, read_json, write_aside, write_json

log = logging.getLogger(__name__)

# SD2's own schedule; the trainer changes prediction type and terminal SNR as its params say.
SCHEDULE = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "v_prediction",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}

# What a Stable Diffusion folder consists of, and the file of weights of each part that has some.
PARTS = ("unet", "vae", "scheduler", "text_encoder", "tokenizer")
WEIGHTS = {
    "unet": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
}


def prepare_backbone(params: Backbone, log_depth: LogDepthRange, raw_folders: dict[str, Path], out: Path) -> Path:
    """Write the backbone folder. Raises ValueError when the source is not what Stable Diffusion v2 looks like."""
    with only_writer(out), write_aside(out) as aside:
        if params.source == "stand-in":
            parts = _train_stand_in(params.stand_in, LogDepth(log_depth.near_m, log_depth.far_m), raw_folders)
            made_from: dict[str, Any] = {"source": "stand-in", "stand_in": params.stand_in.model_dump()}
        else:
            place, folder, digests = _fetch(params)
            parts = _load_stable_diffusion(folder)
            made_from = {"source": place.source, "revision": place.revision, "sha256": digests}
        for name, part in parts.items():
            part.save_pretrained(aside / name)
        write_json(aside / "backbone.json", made_from | {"version": params.version})
    return out


def load_backbone(folder: Path) -> dict[str, Any]:
    """Read unet, vae, scheduler and empty_prompt, all float32. ValueError names the folder that is no backbone."""
    folder = Path(folder)
    if not (folder / "backbone.json").is_file():
        raise ValueError(f"{folder} is no backbone: backbone.json is missing; run `metricgold backbone`")
    classes = {
        "unet": UNet2DConditionModel,
        "vae": AutoencoderKL,
        "scheduler": DDIMScheduler,
        "empty_prompt": EmptyPrompt,
    }
    parts = {name: kind.from_pretrained(folder / name) for name, kind in classes.items()}
    for part in parts.values():
        # diffusers notes where a part was read from; that path must not travel into the checkpoint.
        part.register_to_config(_name_or_path="")
    return parts


def load_vae(folder: Path, dtype: torch.dtype = torch.float32) -> AutoencoderKL:
    """Read a backbone's VAE alone."""
    return AutoencoderKL.from_pretrained(_vae_folder(folder), torch_dtype=dtype)


def _vae_folder(folder: Path) -> Path:
    if not (Path(folder) / "vae").is_dir():
        raise ValueError(f"{folder} is no backbone: vae/ is missing; run `metricgold backbone`")
    return Path(folder) / "vae"


def backbone_digest(folder: Path) -> str:
    """sha256 over all files of a backbone."""
    return digest_folder(folder)


def vae_digest(folder: Path) -> str:
    """sha256 over the encoder of a backbone's VAE: the identity of every latent made with it.

    Nothing else counts: a decoder fine-tuned on log depth leaves latents as they are, and they are stored unscaled.
    """
    vae = _vae_folder(folder)
    config, path = read_json(vae / "config.json"), vae / "diffusion_pytorch_model.safetensors"
    # Not to be seen in the names and shapes of the weights.
    layers = {key: config.get(key) for key in ("act_fn", "norm_num_groups")}
    try:
        with safe_open(path, framework="pt") as file:
            names = [name for name in file.keys() if name.startswith(("encoder.", "quant_conv."))]  # noqa: SIM118
            weights = {name: _digest_tensor(file.get_tensor(name)) for name in names}
    except SafetensorError as error:
        raise ValueError(f"{path} cannot be read: {error}; run `metricgold backbone` again") from error
    return digest_json({"layers": layers, "weights": weights})


def _digest_tensor(tensor: torch.Tensor) -> str:
    head = f"{tensor.dtype} {list(tensor.shape)} ".encode()
    return hashlib.sha256(head + tensor.contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()


def load_depth_vae(folder: Path, backbone: Path) -> AutoencoderKL:
    """Read the VAE that depth-vae wrote, for the pipeline. ValueError when its latents are not the backbone's."""
    if not (Path(folder) / "depth_vae.json").is_file():
        raise ValueError(f"{folder} is no VAE for depth: depth_vae.json is missing; run `metricgold depth-vae`")
    if vae_digest(folder) != vae_digest(backbone):
        raise ValueError(f"{folder} has another encoder than {backbone}; run `metricgold depth-vae` again")
    vae = load_vae(folder)
    vae.register_to_config(_name_or_path="")
    return vae


# ---------------------------------------------------------------------------------------------------------
# Stable Diffusion v2


def _fetch(params: Backbone) -> tuple[Mirror, Path, dict[str, str]]:
    """The first of source and mirrors that is there and has the right weights, and these files' digests.

    ValueError says of each place what is wrong with it.
    """
    faults = []
    for place in (Mirror(source=params.source, revision=params.revision), *(params.mirrors or ())):
        try:
            folder = _folder_of(place)
            return place, folder, _check_weights(folder, params.sha256 or {})
        except ValueError as error:
            log.warning("backbone: %s", error)
            faults.append(str(error))
    raise ValueError("\n".join(faults))


def _folder_of(place: Mirror) -> Path:
    """A local folder as it is; a hub id at a pinned commit, safetensors only."""
    source, revision = place.source, place.revision
    if Path(source).is_dir():
        return Path(source)
    if revision is None or not re.fullmatch(r"[0-9a-f]{40}", revision):
        raise ValueError(
            f"backbone source {source!r} is no folder; as a hub id it needs a revision, "
            f"a commit of 40 hex digits, got {revision!r}"
        )
    from huggingface_hub import snapshot_download

    # Each part's one file of weights: the hub's folders also hold half-precision and pickled copies, gigabytes each.
    patterns = [f"{part}/*.{kind}" for part in PARTS for kind in ("json", "txt")]
    patterns += [f"{part}/{name}" for part, name in WEIGHTS.items()]
    try:
        return Path(snapshot_download(source, revision=revision, allow_patterns=patterns))
    except OSError as error:  # gone, forbidden, not to be reached: all of the hub's errors are OSErrors
        raise ValueError(f"backbone source {source!r} at {revision} cannot be fetched: {error}") from error


def _check_weights(folder: Path, expected: dict[str, str]) -> dict[str, str]:
    """sha256 of each part's weights. ValueError names what is missing, broken or not as expected by part."""
    for part in PARTS:
        if not (folder / part).is_dir():
            raise ValueError(f"{folder} is no Stable Diffusion folder: {part}/ is missing")
    digests = {}
    for part, name in WEIGHTS.items():
        path = folder / part / name
        if not path.is_file():
            raise ValueError(f"{path} is missing: weights are read from safetensors only")
        try:
            with safe_open(path, framework="pt"):
                digests[f"{part}/{name}"] = digest = digest_file(path)
        except SafetensorError as error:
            raise ValueError(f"{path} cannot be read: {error}") from error
        if expected.get(part, digest) != digest:
            raise ValueError(f"{path} has sha256 {digest}, backbone.sha256.{part} is {expected[part]}")
    return digests


def _load_stable_diffusion(folder: Path) -> dict[str, Any]:
    scheduler = DDIMScheduler.from_pretrained(folder / "scheduler")
    try:
        check_schedule(scheduler)
    except ValueError as error:
        raise ValueError(f"{folder / 'scheduler'}: {error}") from error
    unet = UNet2DConditionModel.from_pretrained(folder / "unet", use_safetensors=True, torch_dtype=torch.float32)
    vae = AutoencoderKL.from_pretrained(folder / "vae", use_safetensors=True, torch_dtype=torch.float32)
    if unet.config.out_channels != vae.config.latent_channels:
        outs, channels = unet.config.out_channels, vae.config.latent_channels
        raise ValueError(f"{folder}: the U-Net gives {outs} channels, the VAE's latents have {channels}")
    return {
        "unet": widen_conv_in(unet, vae.config.latent_channels),
        "vae": vae,
        "scheduler": scheduler,
        "empty_prompt": _embed_empty_prompt(folder, unet.config.cross_attention_dim),
    }


def _embed_empty_prompt(folder: Path, width: int) -> EmptyPrompt:
    """Run the text encoder once on the empty prompt, padded as Marigold does: start and end token only."""
    from transformers import CLIPTextModel, CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    encoder = CLIPTextModel.from_pretrained(folder / "text_encoder", use_safetensors=True, dtype=torch.float32)
    tokens = tokenizer("", padding="do_not_pad", truncation=True, return_tensors="pt").input_ids
    with torch.no_grad():
        embedding = encoder(tokens)[0][0]  # [tokens, width]
    if embedding.shape[1] != width:
        raise ValueError(f"{folder}: the text encoder is {embedding.shape[1]} wide, the U-Net expects {width}")
    return _empty_prompt(embedding)


def _empty_prompt(embedding: torch.Tensor) -> EmptyPrompt:
    prompt = EmptyPrompt(*embedding.shape)
    prompt.embedding.data.copy_(embedding)
    return prompt


def widen_conv_in(unet: UNet2DConditionModel, latent_channels: int) -> UNet2DConditionModel:
    """Double the U-Net's input channels: weights repeated and halved, so that two equal latents give the
    activations one gave before (Marigold, section 3.2). A U-Net that is wide enough is left as it is.

    Raises ValueError for any other number of input channels.
    """
    channels = unet.config.in_channels
    if channels == 2 * latent_channels:
        return unet
    if channels != latent_channels:
        raise ValueError(f"the U-Net takes {channels} channels, expected {latent_channels} or {2 * latent_channels}")
    old = unet.conv_in
    wide = torch.nn.Conv2d(2 * channels, old.out_channels, old.kernel_size, old.stride, old.padding)
    wide.weight.data = old.weight.data.repeat(1, 2, 1, 1) / 2
    wide.bias.data = old.bias.data.clone()
    unet.conv_in = wide
    unet.register_to_config(in_channels=2 * channels)
    return unet


def check_schedule(scheduler: DDIMScheduler) -> None:
    """ValueError when prediction type, terminal SNR and spacing of timesteps contradict each other.

    With a terminal SNR of zero the last timestep is noise alone (arXiv 2305.08891): noise says nothing about what to
    predict, and sampling has to begin there.
    """
    config = scheduler.config
    kind, spacing = config.prediction_type, config.timestep_spacing
    if kind not in PREDICTION_TYPES:
        raise ValueError(f"prediction_type {kind!r} is not known; known: {', '.join(PREDICTION_TYPES)}")
    if config.rescale_betas_zero_snr and kind == "epsilon":
        raise ValueError("rescale_betas_zero_snr needs prediction_type v_prediction or sample, got epsilon")
    if config.rescale_betas_zero_snr and spacing == "leading":
        raise ValueError(
            "rescale_betas_zero_snr needs timestep_spacing trailing: leading never visits the last timestep"
        )


# ---------------------------------------------------------------------------------------------------------
# The stand-in


def _train_stand_in(params: StandIn, log_depth: LogDepth, raw_folders: dict[str, Path]) -> dict[str, Any]:
    torch.manual_seed(params.seed)
    images = _sample_images(params, log_depth, raw_folders)  # [N, 3, H, W] in [-1, 1]
    vae = _train_vae(new_vae(params), images, params)
    unet = new_unet(params)
    scheduler = DDIMScheduler(**SCHEDULE)
    prompt = _empty_prompt(torch.randn(2, params.text_width))
    _train_unet(unet, vae, scheduler, prompt, images[0::2], params)
    return {
        "unet": widen_conv_in(unet, params.latent_channels),
        "vae": vae,
        "scheduler": scheduler,
        "empty_prompt": prompt,
    }


def new_vae(params: StandIn) -> AutoencoderKL:
    """An untrained VAE of SD2's class."""
    levels = len(params.vae_channels)
    return AutoencoderKL(
        block_out_channels=tuple(params.vae_channels),
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        layers_per_block=1,
        latent_channels=params.latent_channels,
        norm_num_groups=8,
        sample_size=params.vae_crop,
    )


def new_unet(params: StandIn) -> UNet2DConditionModel:
    """An untrained U-Net of SD2's class, attention at the lowest level only: on a CPU it costs five times
    the rest at the highest."""
    levels = len(params.unet_channels)
    return UNet2DConditionModel(
        in_channels=params.latent_channels,
        out_channels=params.latent_channels,
        block_out_channels=tuple(params.unet_channels),
        down_block_types=("DownBlock2D",) * (levels - 1) + ("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",) + ("UpBlock2D",) * (levels - 1),
        layers_per_block=params.unet_layers,
        cross_attention_dim=params.text_width,
        attention_head_dim=4,
        norm_num_groups=8,
    )


def _sample_images(params: StandIn, log_depth: LogDepth, raw_folders: dict[str, Path]) -> torch.Tensor:
    """Photographs and log-depth maps in turn, from frames spread evenly over the data sets."""
    pictures = []
    for frame in _spread_frames(raw_folders, params.num_frames):
        depth = filled_log_depth(log_depth, frame.planar_depth_m, frame.valid_mask)
        pictures += [rgb_to_tensor(frame.rgb[None])[0], torch.from_numpy(depth).expand(3, -1, -1)]
    size = tuple(min(picture.shape[i] for picture in pictures) for i in (1, 2))
    if min(size) < params.vae_crop:
        raise ValueError(f"backbone.stand_in.vae_crop {params.vae_crop} is larger than the images, {list(size)}")
    return torch.stack([_centre_crop(picture, size) for picture in pictures])


def _spread_frames(raw_folders: dict[str, Path], num_frames: int) -> Iterator[Frame]:
    for name, raw in raw_folders.items():
        frames = list_frames(name, raw, split="train").frames
        share = min(len(frames), -(-num_frames // len(raw_folders)))
        for i in range(share):
            yield read_frame(frames[i * len(frames) // share])


def _centre_crop(picture: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    top, left = ((picture.shape[i + 1] - size[i]) // 2 for i in (0, 1))
    return picture[:, top : top + size[0], left : left + size[1]]


def _fit(name: str, model: torch.nn.Module, num_steps: int, lr: float, loss_of_step: Callable[[int], Any]) -> None:
    """AdamW with a one-cycle learning rate: the most from few steps."""
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=1e-4, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=max(num_steps, 1), pct_start=0.1)
    for step in tqdm(range(num_steps), desc=f"stand-in {name}", disable=None):
        loss = loss_of_step(step)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 0 or step == num_steps - 1:
            log.info("stand-in %s: step %d of %d, loss %.4f", name, step, num_steps, loss.item())
    model.eval()


def _train_vae(vae: AutoencoderKL, images: torch.Tensor, params: StandIn) -> AutoencoderKL:
    rng = np.random.default_rng(params.seed)
    crop, (height, width) = params.vae_crop, images.shape[2:]

    def loss_of_step(_: int) -> torch.Tensor:
        picks = rng.integers(len(images), size=params.vae_batch_size)
        tops = rng.integers(height - crop + 1, size=len(picks))
        lefts = rng.integers(width - crop + 1, size=len(picks))
        batch = torch.stack(
            [images[i, :, t : t + crop, x : x + crop] for i, t, x in zip(picks, tops, lefts, strict=True)]
        )
        mean = vae.encode(batch).latent_dist.mean
        # A little noise makes the decoder forgive what the U-Net gets slightly wrong; the pull to zero keeps
        # the latents bounded, so that the noise cannot be outgrown.
        decoded = vae.decode(mean + 0.03 * torch.randn_like(mean)).sample
        return functional.l1_loss(decoded, batch) + 1e-3 * mean.square().mean()

    _fit("VAE", vae, params.vae_steps, params.vae_lr, loss_of_step)
    with torch.no_grad():
        latents = torch.cat([vae.encode(part).latent_dist.mean for part in images[:256].split(32)])
    vae.register_to_config(scaling_factor=1 / latents.std().item())
    return vae


def _train_unet(unet, vae, scheduler: DDIMScheduler, prompt: EmptyPrompt, images: torch.Tensor, params: StandIn):
    """Teach the U-Net to generate images, as SD2's has learnt: v-prediction on image latents, empty prompt."""
    if not params.unet_steps:
        return
    with torch.no_grad():
        latents = torch.cat([vae.encode(part).latent_dist.mean for part in images.split(32)])
    latents = latents * vae.config.scaling_factor
    generator = torch.Generator().manual_seed(params.seed)

    def loss_of_step(_: int) -> torch.Tensor:
        clean = latents[torch.randint(len(latents), (16,), generator=generator)]
        noise = torch.randn(clean.shape, generator=generator)
        timesteps = torch.randint(SCHEDULE["num_train_timesteps"], (16,), generator=generator)
        noisy = scheduler.add_noise(clean, noise, timesteps)
        context = prompt.embedding.expand(16, -1, -1)
        output = unet(noisy, timesteps, encoder_hidden_states=context).sample
        return functional.mse_loss(output, scheduler.get_velocity(clean, noise, timesteps))

    _fit("U-Net", unet, params.unet_steps, params.unet_lr, loss_of_step)


def made_from(folder: Path) -> dict[str, Any]:
    """What a backbone was made from: source, revision, digests."""
    return read_json(Path(folder) / "backbone.json")
