"""Folders of tiny peers with random weights, of the very classes that real ones have."""

import json
from pathlib import Path

import torch


def save_marigold(folder: Path, scheduler: str = "DDIMScheduler", **options) -> Path:
    """Marigold's pipeline with a VAE that halves twice and one layer of everything."""
    import diffusers
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    torch.manual_seed(0)
    blocks = {"block_out_channels": (8, 16), "norm_num_groups": 4}
    unet = diffusers.UNet2DConditionModel(
        **{"in_channels": 8, "out_channels": 4, "layers_per_block": 1, "cross_attention_dim": 8, **blocks},
        **{"attention_head_dim": 4, "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D")},
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )
    vae = diffusers.AutoencoderKL(
        **blocks, down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2
    )
    words = {"<|startoftext|>": 0, "<|endoftext|>": 1}
    folder.mkdir(parents=True)
    (folder / "words.json").write_text(json.dumps(words))
    (folder / "pairs.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer(str(folder / "words.json"), str(folder / "pairs.txt"), model_max_length=8)
    text = CLIPTextConfig(
        **{"vocab_size": 2, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1},
        **{"num_attention_heads": 1, "max_position_embeddings": 8, "bos_token_id": 0, "eos_token_id": 1},
    )
    defaults = {"prediction_type": "depth", "default_denoising_steps": 2, "default_processing_resolution": 32}
    pipe = diffusers.MarigoldDepthPipeline(
        unet=unet,
        vae=vae,
        scheduler=getattr(diffusers, scheduler)(),
        text_encoder=CLIPTextModel(text),
        tokenizer=tokenizer,
        **(defaults | options),
    )
    pipe.save_pretrained(folder)
    return folder


VIT = {"hidden_size": 8, "num_hidden_layers": 4, "num_attention_heads": 1, "intermediate_size": 8}


def save_transformers(folder: Path, model: str, **options) -> Path:
    """A model of transformers by its type, with the processor that runs without torchvision if it has one."""
    import transformers

    torch.manual_seed(0)
    config, kind, processor = TYPES[model]
    made = getattr(transformers, kind)(config(transformers, options))
    made.save_pretrained(folder)
    if processor:
        options = {"size": {"height": 28, "width": 28}} if "GLPN" not in processor else {"size_divisor": 32}
        getattr(transformers, processor)(**options).save_pretrained(folder)
    return folder


def _depth_anything(transformers, options):
    backbone = transformers.Dinov2Config(
        **{**VIT, "mlp_ratio": 1, "image_size": 28, "patch_size": 14, "out_indices": [1, 2, 3, 4]},
        reshape_hidden_states=False,
    )
    sizes = {"reassemble_hidden_size": 8, "neck_hidden_sizes": [4] * 4, "fusion_hidden_size": 4, "head_hidden_size": 4}
    return transformers.DepthAnythingConfig(backbone_config=backbone, patch_size=14, **sizes, **options)


def _dpt(transformers, options):
    sizes = {"neck_hidden_sizes": [4] * 4, "fusion_hidden_size": 4, "backbone_out_indices": [0, 1, 2, 3]}
    return transformers.DPTConfig(**VIT, **sizes, image_size=32, patch_size=16, is_hybrid=False, **options)


def _glpn(transformers, options):
    sizes = {"hidden_sizes": [4] * 4, "decoder_hidden_size": 4, "depths": [1] * 4, "num_attention_heads": [1] * 4}
    return transformers.GLPNConfig(**sizes, **options)


def _zoedepth(transformers, options):
    backbone = transformers.BeitConfig(
        **{**VIT, "image_size": 32, "patch_size": 16, "out_features": [f"stage{i}" for i in range(1, 5)]},
        **{"reshape_hidden_states": False, "use_relative_position_bias": True},
    )
    sizes = {"neck_hidden_sizes": [4] * 4, "fusion_hidden_size": 4, "bottleneck_features": 4}
    return transformers.ZoeDepthConfig(
        **{"backbone_config": backbone, "bin_embedding_dim": 4, "num_relative_features": 4, **sizes},
        bin_configurations=[{"n_bins": 4, "min_depth": 0.001, "max_depth": 10.0}],
        **options,
    )


def _depth_pro(transformers, options):
    backbone = transformers.Dinov2Config(**{**VIT, "mlp_ratio": 1, "image_size": 16, "patch_size": 8})
    sizes = {"fusion_hidden_size": 8, "intermediate_hook_ids": [2, 0], "intermediate_feature_dims": [4, 4]}
    scales = {"scaled_images_feature_dims": [4, 4, 4], "patch_size": 16, "num_fov_head_layers": 1}
    models = dict.fromkeys(("image_model_config", "patch_model_config", "fov_model_config"), backbone)
    return transformers.DepthProConfig(**models, **sizes, **scales, **({"use_fov_model": True} | options))


TYPES = {
    "depth_anything": (_depth_anything, "DepthAnythingForDepthEstimation", "DPTImageProcessorPil"),
    "dpt": (_dpt, "DPTForDepthEstimation", "DPTImageProcessorPil"),
    "glpn": (_glpn, "GLPNForDepthEstimation", "GLPNImageProcessorPil"),
    "zoedepth": (_zoedepth, "ZoeDepthForDepthEstimation", "ZoeDepthImageProcessorPil"),
    "depth_pro": (_depth_pro, "DepthProForDepthEstimation", None),
}
