"""The lens as one more token of the prompt: the U-Net's weights stay as they are, its cross-attention sees one more."""

from math import inf, log, nan

import torch
from diffusers import ModelMixin
from diffusers.configuration_utils import ConfigMixin, register_to_config

from metricgold.params import Camera


class CameraToken(ModelMixin, ConfigMixin):
    """A token from the relative focal length of what the U-Net sees, or a learnt one that says "unknown".

    width: of the prompt's tokens; hidden: of the one layer between; shortest: the relative focal length that it tells
    of every shorter one too.
    """

    __module__ = "metricgold.model"  # what every saved model_index.json names: the face, wherever this file moves

    @register_to_config
    def __init__(self, width: int = 1024, hidden: int = 64, shortest: float = 0.0) -> None:
        super().__init__()
        self.embed = torch.nn.Sequential(torch.nn.Linear(1, hidden), torch.nn.SiLU(), torch.nn.Linear(hidden, width))
        self.unknown = torch.nn.Parameter(torch.zeros(width))

    def forward(self, ln_focal: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
        """Tokens float32 [B, 1, width] from ln of the relative focal length [B], which counts where known, bool [B]."""
        told = ln_focal.nan_to_num(0.0).clamp(min=log(self.config.shortest) if self.config.shortest else -inf)
        tokens = self.embed(told[:, None])
        return torch.where(known[:, None], tokens, self.unknown)[:, None]

    def of(self, relative_focal: float | None) -> torch.Tensor:
        """The token [1, 1, width] of one image; None: its camera is not known."""
        ln_focal = torch.tensor([nan if relative_focal is None else relative_focal], device=self.unknown.device).log()
        return self(ln_focal, ~ln_focal.isnan())


def new_camera_token(width: int, seed: int, camera: Camera = "token") -> CameraToken:
    """A token to be trained, for prompts of that width; a function of the seed.

    Beside canonical depth it tells lenses longer than 1 alone. Crops show training what those see. Nothing shows it
    wider lenses than the frames' own: a token would say there what it never learnt, while the division of depth by the
    focal length holds for every lens.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return CameraToken(width, shortest=1.0 if "canonical" in camera else 0.0)
