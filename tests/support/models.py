"""A model that costs nothing: random weights in the folder of a checkpoint."""

from pathlib import Path


def write_random_model(folder: Path) -> Path:
    """A pipeline of a few thousand weights; the same bytes each time."""
    import torch
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel

    from metricgold.model.pipeline import EmptyPrompt, MetricGoldPipeline

    torch.manual_seed(0)
    channels = {"block_out_channels": (8, 8), "norm_num_groups": 4}
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, **channels
    )
    unet = UNet2DConditionModel(
        in_channels=8,
        out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=8,
        attention_head_dim=4,
        **channels,
    )
    scheduler = DDIMScheduler(prediction_type="v_prediction")
    MetricGoldPipeline(unet, vae, scheduler, EmptyPrompt(2, 8), 0.5, 80.0, 16, 16).save_pretrained(folder)
    return folder
