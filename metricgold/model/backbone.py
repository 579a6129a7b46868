"""The backbone: VAE, U-Net with eight input channels, noise schedule and empty prompt, in one diffusers folder.

It comes from Stable Diffusion v2 or a checkpoint made from it, such as Marigold's with its eight channels (a hub id
pinned by revision, or a folder in diffusers layout; the first of source and mirrors that has the right weights), or
is a small stand-in of the same classes, trained on the data sets' own images, for machines without a GPU or a hub.
Either way the folder holds unet/, vae/, scheduler/, empty_prompt/ and backbone.json, which says what it was made from.
Weights are read from safetensors only: a pickle can run any program.
"""

import hashlib
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from safetensors import SafetensorError, safe_open

from metricgold.model.configs import naming_the_folder
from metricgold.model.parts import check_schedule, empty_prompt, widen_conv_in
from metricgold.model.pipeline import EmptyPrompt
from metricgold.model.stand_in import train_stand_in
from metricgold.params import Backbone, LogDepthRange, Mirror
from metricgold.storage import (
    Lines,
    digest_file,
    digest_folder,
    digest_json,
    only_writer,
    read_json,
    write_aside,
    write_json,
)

log = logging.getLogger(__name__)

# The parts of a Stable Diffusion folder, and the file of each part that has weights.
PARTS = ("unet", "vae", "scheduler", "text_encoder", "tokenizer")
WEIGHTS = {
    "unet": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
}


def prepare_backbone(params: Backbone, range_m: LogDepthRange, raw_folders: dict[str, Path], out: Path) -> Path:
    """Write the backbone folder `out` and return it.

    range_m      metres of the log depth that the stand-in learns
    raw_folders  by data set, read by the stand-in only

    Raises ValueError when neither the source nor a mirror is Stable Diffusion with the weights of params.sha256.
    """
    with only_writer(out), write_aside(out, marks=["backbone.json"]) as aside:
        if params.source == "stand-in":
            parts = train_stand_in(params.stand_in, range_m.to_log_depth(), raw_folders)
            origin: dict[str, Any] = {"source": "stand-in", "stand_in": params.stand_in.model_dump()}
        else:
            place, folder, digests = fetch_stable_diffusion(params)
            parts = load_stable_diffusion(folder)
            origin = {"source": place.source, "revision": place.revision, "sha256": digests}
        if params.fresh_unet:
            with torch.random.fork_rng():
                torch.manual_seed(0)
                parts["unet"] = UNet2DConditionModel.from_config(parts["unet"].config)
            origin["fresh_unet"] = True
        for name, part in parts.items():
            part.save_pretrained(aside / name)
        write_json(aside / "backbone.json", origin | {"version": params.version})
    return out


def load_backbone(folder: Path) -> dict[str, Any]:
    """Read unet, vae, scheduler and empty_prompt, all float32. ValueError names a folder that is not a backbone."""
    folder = Path(folder)
    if not (folder / "backbone.json").is_file():
        raise ValueError(f"{folder} is not a backbone: backbone.json is missing; run `metricgold backbone`")
    with_weights = {"unet": UNet2DConditionModel, "vae": AutoencoderKL, "empty_prompt": EmptyPrompt}
    with naming_the_folder(folder, "backbone"):
        parts = {"scheduler": DDIMScheduler.from_pretrained(folder / "scheduler")}
        for name, kind in with_weights.items():  # without that word diffusers would read a pickled .bin
            parts[name] = kind.from_pretrained(folder / name, use_safetensors=True)
    for part in parts.values():
        # diffusers notes where a part was read from; that path must not travel into the checkpoint.
        part.register_to_config(_name_or_path="")
    return parts


def load_vae(folder: Path, dtype: torch.dtype = torch.float32) -> AutoencoderKL:
    """Read a backbone's VAE alone. ValueError names a folder without one."""
    with naming_the_folder(_vae_folder(folder), "VAE"):
        return AutoencoderKL.from_pretrained(_vae_folder(folder), torch_dtype=dtype, use_safetensors=True)


def _vae_folder(folder: Path) -> Path:
    if not (Path(folder) / "vae").is_dir():
        raise ValueError(f"{folder} is not a backbone: vae/ is missing; run `metricgold backbone`")
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
    # These change latents and do not show in the names and shapes of the weights.
    layers = {key: config.get(key) for key in ("act_fn", "norm_num_groups")}
    weights = {}
    try:
        with safe_open(path, framework="pt") as file:
            names = [name for name in file.keys() if name.startswith(("encoder.", "quant_conv."))]  # noqa: SIM118
            for name in names:
                tensor = file.get_tensor(name).contiguous()
                content = tensor.view(torch.uint8).numpy().tobytes()
                head = f"{tensor.dtype} {list(tensor.shape)} ".encode()
                weights[name] = hashlib.sha256(head + content).hexdigest()
    except SafetensorError as error:
        raise ValueError(f"{path} cannot be read: {error}; run `metricgold backbone` again") from error
    return digest_json({"layers": layers, "weights": weights})


def load_depth_vae(folder: Path, backbone: Path) -> AutoencoderKL:
    """Read the VAE that depth-vae wrote, for the pipeline. ValueError when its latents are not the backbone's."""
    if not (Path(folder) / "depth_vae.json").is_file():
        raise ValueError(f"{folder} is not a VAE for depth: depth_vae.json is missing; run `metricgold depth-vae`")
    if vae_digest(folder) != vae_digest(backbone):
        raise ValueError(f"{folder} has another encoder than {backbone}; run `metricgold depth-vae` again")
    vae = load_vae(folder)
    vae.register_to_config(_name_or_path="")
    return vae


def made_from(folder: Path) -> dict[str, Any]:
    """What a backbone was made from: source, revision, digests."""
    return read_json(Path(folder) / "backbone.json")


# Stable Diffusion v2


def fetch_stable_diffusion(params: Backbone) -> tuple[Mirror, Path, dict[str, str]]:
    """The first of source and mirrors with the right weights, its local folder, and the digests of its weights.

    When there is none, ValueError says of each place what is wrong with it.
    """
    faults = []
    for place in (Mirror(source=params.source, revision=params.revision), *(params.mirrors or ())):
        try:
            folder = folder_of(place)
            return place, folder, check_weights(folder, params.sha256 or {})
        except ValueError as error:
            log.warning("backbone: %s", error)
            faults.append(str(error))
    raise ValueError(Lines(faults))


def folder_of(place: Mirror) -> Path:
    """The local folder itself, or the hub's snapshot of a pinned commit, safetensors only."""
    source, revision = place.source, place.revision
    if Path(source).is_dir():
        return Path(source)
    if revision is None or not re.fullmatch(r"[0-9a-f]{40}", revision):
        raise ValueError(
            f"backbone source {source!r} is not a folder; as a hub id it needs a revision, "
            f"a commit of 40 hex digits, got {revision!r}"
        )
    from huggingface_hub import snapshot_download

    # Each part's one file of weights: the hub's folders also hold half-precision and pickled copies, gigabytes each.
    patterns = [f"{part}/*.{kind}" for part in PARTS for kind in ("json", "txt")]
    patterns += [f"{part}/{name}" for part, name in WEIGHTS.items()]
    try:
        return Path(snapshot_download(source, revision=revision, allow_patterns=patterns))
    except OSError as error:  # gone, forbidden, out of reach: all of the hub's errors are OSErrors
        raise ValueError(f"backbone source {source!r} at {revision} cannot be fetched: {error}") from error


def check_weights(folder: Path, expected: Mapping[Any, str]) -> dict[str, str]:
    """sha256 of each file of weights; `expected` holds some of them by part. ValueError names a fault."""
    for part in PARTS:
        if not (folder / part).is_dir():
            raise ValueError(f"{folder} is not a Stable Diffusion folder: {part}/ is missing")
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


def load_stable_diffusion(folder: Path) -> dict[str, Any]:
    """The parts of a backbone by name, from a Stable Diffusion folder; the text encoder is run once and left out.

    Raises ValueError when the schedule contradicts itself or the parts do not fit each other.
    """
    with naming_the_folder(folder, "Stable Diffusion"):
        scheduler = DDIMScheduler.from_pretrained(folder / "scheduler")
        unet = UNet2DConditionModel.from_pretrained(folder / "unet", use_safetensors=True, torch_dtype=torch.float32)
        vae = AutoencoderKL.from_pretrained(folder / "vae", use_safetensors=True, torch_dtype=torch.float32)
    try:
        check_schedule(scheduler)
    except ValueError as error:
        raise ValueError(f"{folder / 'scheduler'}: {error}") from error
    if unet.config.out_channels != vae.config.latent_channels:
        outs, channels = unet.config.out_channels, vae.config.latent_channels
        raise ValueError(f"{folder}: the U-Net gives {outs} channels, the VAE's latents have {channels}")
    return {
        "unet": widen_conv_in(unet, vae.config.latent_channels),
        "vae": vae,
        "scheduler": scheduler,
        "empty_prompt": embed_empty_prompt(folder, unet.config.cross_attention_dim),
    }


def embed_empty_prompt(folder: Path, width: int) -> EmptyPrompt:
    """Run the text encoder once on the empty prompt, padded as Marigold does: start and end token only."""
    from transformers import CLIPTextModel, CLIPTokenizer

    with naming_the_folder(folder, "Stable Diffusion"), torch.no_grad():
        tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
        encoder = CLIPTextModel.from_pretrained(folder / "text_encoder", use_safetensors=True, dtype=torch.float32)
        tokens = tokenizer("", padding="do_not_pad", truncation=True, return_tensors="pt").input_ids
        embedding = encoder(tokens)[0][0]  # [tokens, width]
    if embedding.shape[1] != width:
        raise ValueError(f"{folder}: the text encoder is {embedding.shape[1]} wide, the U-Net expects {width}")
    return empty_prompt(embedding)


# ---------------------------------------------------------------------------------------------------------
# The stand-in
