"""What is trained: the U-Net, and beside it the camera's token where there is one."""

import torch
from diffusers import UNet2DConditionModel

from metricgold.model import CameraToken


class Network(torch.nn.Module):
    """The parts of a pipeline that learn, under their names there."""

    def __init__(self, unet: UNet2DConditionModel, camera_token: CameraToken | None) -> None:
        super().__init__()
        self.unet, self.camera_token = unet, camera_token

    @property
    def parts(self) -> dict[str, torch.nn.Module]:
        """The modules by name: unet, and camera_token."""
        return dict(self.named_children())

    def forward(
        self,
        sample: torch.Tensor,
        timesteps: torch.Tensor,
        prompt: torch.Tensor,
        ln_focal: torch.Tensor | None = None,
        known: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The U-Net's output [B, c, h, w] for [B, 2c, h, w], with prompt [B, tokens, width]; ln_focal, known: [B]."""
        if self.camera_token is not None:
            prompt = torch.cat([prompt, self.camera_token(ln_focal, known)], dim=1)
        output: torch.Tensor = self.unet(sample, timesteps, encoder_hidden_states=prompt).sample
        return output
