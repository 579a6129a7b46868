"""A VAE whose latents are the image itself, so that the U-Net, its trainer and the pipeline work on pixels.

It is an AutoencoderKL like any other, without a level that halves, and all that reads a VAE reads it. Its layers end in
GroupNorm, SiLU and a convolution, and these weights undo them: exact to the rounding of float32.

    SiLU       SiLU(x) - SiLU(-x) = x: every colour has two channels, whose norms have opposite signs
    GroupNorm  two channels of +-LOUD decide the variance, beside which no image counts; a pair of empty channels shows
               the mean that was taken away, and is subtracted
"""

import torch
from diffusers import AutoencoderKL

COLOURS = 3
LOUD = 2.0**15  # float16 holds it; images of [-1, 1] change the variance by less than float32 shows


@torch.no_grad()
def identity_vae() -> AutoencoderKL:
    """Latents [B, 3, H, W] that are the image, unscaled, and back."""
    channels = 2 * COLOURS + 4  # a pair for each colour, an empty and a loud one
    vae = AutoencoderKL(
        block_out_channels=(channels,),
        layers_per_block=0,
        latent_channels=COLOURS,
        norm_num_groups=1,
        scaling_factor=1.0,
        use_quant_conv=False,
        use_post_quant_conv=False,
        mid_block_add_attention=False,
    )
    for weights in vae.parameters():
        weights.zero_()  # residual blocks then add nothing
    for half in (vae.encoder, vae.decoder):
        half.conv_in.bias[-2:] = torch.tensor([LOUD, -LOUD])
        half.conv_norm_out.weight[0::2] = LOUD * (2 / channels) ** 0.5
        half.conv_norm_out.weight[1::2] = -LOUD * (2 / channels) ** 0.5
        plus, minus = slice(0, -4, 2), slice(1, -4, 2)
        centre = torch.eye(COLOURS)
        for pair in (plus, minus):
            half.conv_in.weight[pair, :, 1, 1] = centre
        half.conv_out.weight[:COLOURS, plus, 1, 1] = centre
        half.conv_out.weight[:COLOURS, minus, 1, 1] = -centre
        half.conv_out.weight[:COLOURS, -4:-2, 1, 1] = torch.tensor([-1.0, 1.0])  # less the empty pair
    return vae.eval()
