"""What the U-Net learns in a step: diffusion, or depth in one step.

diffusion  velocity, noise or depth from a noisy depth latent, at a timestep drawn anew for each sample (Marigold,
           arXiv 2312.02145)
one-step   depth from no noise at the last timestep (Lotus-D, arXiv 2409.18124; E2E-FT, arXiv 2409.11355)

One path for both: one-step is diffusion whose timestep is always the last and whose noise is zero. With a terminal
SNR of zero nothing of the depth is left there, and the velocity is minus the depth: a regression of the clean latent,
whether the backbone predicts it or the velocity. The depth half of the U-Net's input is zeros, as in E2E-FT, and not
cut off, as in Lotus-D (both papers find noise worse than none): so the U-Net, its folder and the pipeline stay those of
diffusion, whose weights may be fine-tuned to one step. B samples, c channels of h x w latents, scaled.

A loss is a mean over all valid latents of a step, not over its samples: every latent pulls alike, whether it is the
only one of its sample or one of thousands. As micro-batches differ in latents, each is a sum over its own, divided by
the weight of the whole step; so the gradients of all of them add up to that of the step at once.
"""

from collections.abc import Sequence

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler
from torch.nn import functional

from metricgold.model import vae_factor
from metricgold.params import Train
from metricgold.train.noise import multi_resolution_noise


class Objective:
    """Draws what is random in a step; gives the U-Net's input, its target, and the loss of its output.

    vae: decodes depth for decoded_loss_weight, with gradients to the latents alone; unused without it.
    """

    def __init__(self, params: Train, scheduler: DDIMScheduler, vae: AutoencoderKL) -> None:
        self.params, self.scheduler, self.vae = params, scheduler, vae
        self.num_timesteps = scheduler.config.num_train_timesteps

    def draws(self, shapes: Sequence[tuple[int, ...]], step: int) -> list[dict[str, torch.Tensor]]:
        """Noise and timesteps of one step's samples, and corners of crops; a function of (seed, step).

        shapes: of the samples that have one, [B, c, h, w] each.
        """
        if self.params.objective == "one-step":
            corners = np.random.default_rng(self._key(step, 2))
            return [self._draw_last(shape, corners) for shape in shapes]
        generator = torch.Generator().manual_seed(self._key(step, 1))
        return [self._draw_noisy(shape, generator) for shape in shapes]

    def _draw_last(self, shape: tuple[int, ...], rng: np.random.Generator) -> dict[str, torch.Tensor]:
        timesteps = torch.full((shape[0],), self.num_timesteps - 1)
        room = [max(0, side - self.params.decoded_crop) + 1 for side in shape[2:]]
        corners = torch.from_numpy(rng.integers(room, size=(shape[0], 2)))  # top and left
        return {"noise": torch.zeros(shape), "timesteps": timesteps, "corners": corners}

    def _draw_noisy(self, shape: tuple[int, ...], generator: torch.Generator) -> dict[str, torch.Tensor]:
        visited = min(self.params.num_timesteps, self.num_timesteps)
        uniform = torch.randint(visited, (shape[0],), generator=generator)
        shifted = shifted_timesteps(uniform, visited, self.params.timestep_shift)
        # As `trailing` spaces them in prediction.
        timesteps = ((shifted + 1) * (self.num_timesteps / visited)).round().long() - 1
        noise = self.params.noise
        strength = noise.strength * (timesteps / self.num_timesteps if noise.annealed else torch.ones(shape[0]))
        return {"noise": multi_resolution_noise(shape, strength, generator), "timesteps": timesteps}

    def _key(self, step: int, stream: int) -> int:
        """The seed of one of a step's streams of random numbers."""
        return int(np.random.SeedSequence([self.params.seed, step, stream]).generate_state(1, np.uint64)[0] >> 1)

    def sample(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """The U-Net's input: image and noisy depth latents, [B, 2c, h, w]."""
        noisy = self.scheduler.add_noise(inputs["depth"], inputs["noise"], inputs["timesteps"])
        return torch.cat([inputs["rgb"], noisy], dim=1)

    def target(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """What the U-Net should predict, [B, c, h, w]."""
        kind = self.params.prediction_type
        if kind == "v_prediction":
            return self.scheduler.get_velocity(inputs["depth"], inputs["noise"], inputs["timesteps"])
        return inputs["noise"] if kind == "epsilon" else inputs["depth"]

    def weights(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """How much of what the loss is a mean of these samples have, [2]: weights of latents, and latents in crops."""
        latents = latent_weights(inputs, self.params.invalid_weight).sum()
        in_crops = self._crop(inputs["valid"], inputs).sum() if self.params.decoded_loss_weight else latents
        return torch.stack([latents, in_crops])

    def loss(
        self, output: torch.Tensor, inputs: dict[str, torch.Tensor], of_step: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Error of the U-Net's output [B, c, h, w] over latents that weigh; with decoded_loss_weight also of depth.

        of_step: the sum of `weights` over all samples of the step; their losses add up to the loss of the step.
        """
        params, (latents, in_crops) = self.params, self.weights(inputs) if of_step is None else of_step
        target = self.target(inputs)
        loss = masked_loss(output, target, latent_weights(inputs, params.invalid_weight), params.loss, total=latents)
        if params.decoded_loss_weight:
            loss = loss + params.decoded_loss_weight * self._decoded_loss(output, inputs, in_crops)
        return loss

    def _decoded_loss(
        self, output: torch.Tensor, inputs: dict[str, torch.Tensor], in_crops: torch.Tensor
    ) -> torch.Tensor:
        """Error of encoded depth in pixels, against what the truth's latents decode to, over in_crops latents."""
        clean = -output if self.params.prediction_type == "v_prediction" else output
        with torch.no_grad():
            truth = self._decode(self._crop(inputs["depth"], inputs))
        factor = vae_factor(self.vae)
        valid = self._crop(inputs["valid"], inputs).repeat_interleave(factor, dim=2).repeat_interleave(factor, dim=3)
        output, total = self._decode(self._crop(clean, inputs)), in_crops * factor**2
        if self.params.decoded_loss == "sinkhorn":
            return sinkhorn_loss(output, truth, valid, total=total)
        return masked_loss(output, truth, valid, "l1", total=total)

    def _crop(self, maps: torch.Tensor, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        return square_crops(maps, inputs["corners"], self.params.decoded_crop)

    def _decode(self, latent: torch.Tensor) -> torch.Tensor:
        """Encoded depth [B, 1, H, W]. Not clipped: values out of range must keep a gradient."""
        return self.vae.decode(latent / self.vae.config.scaling_factor).sample.mean(dim=1, keepdim=True)


def training_scheduler(scheduler: DDIMScheduler, params: Train) -> DDIMScheduler:
    """The backbone's schedule with the params' prediction type and terminal SNR, trailing spacing."""
    return DDIMScheduler.from_config(
        scheduler.config,
        prediction_type=params.prediction_type,
        rescale_betas_zero_snr=params.zero_terminal_snr,
        timestep_spacing="trailing",
    )


def shifted_timesteps(timesteps: torch.Tensor, num_timesteps: int, shift: float) -> torch.Tensor:
    """Uniform timesteps moved towards noise: t -> s t / (1 + (s - 1) t) on [0, 1] (arXiv 2403.03206, eq. 23).

    Few-step inference runs there, and a prediction from much noise must rely on the image.
    """
    share = (timesteps + 0.5) / num_timesteps
    return (shift * share / (1 + (shift - 1) * share) * num_timesteps).long()


def masked_loss(
    output: torch.Tensor,
    target: torch.Tensor,
    weights: torch.Tensor,
    kind: str = "l2",
    *,
    total: torch.Tensor | None = None,
) -> torch.Tensor:
    """Mean squared (l2) or absolute (l1) error over the latents of all samples together.

    output, target [B, c, h, w]; weights [B, 1, h, w], bool or float: a latent that weighs 0 does not count at all, not
    even where it is NaN. total: weight of all latents of which these are a part, so that the losses of the parts add up
    to the loss of the whole.
    """
    weights = weights.float()
    # Chosen, not multiplied: 0 x NaN is NaN.
    difference = torch.where(weights > 0, output - target, 0.0)
    error = (difference**2 if kind == "l2" else difference.abs()).mean(dim=1, keepdim=True) * weights
    total = weights.sum() if total is None else total
    return error.sum() / total.clamp(min=torch.finfo(torch.float32).tiny)


def sinkhorn_loss(
    output: torch.Tensor,
    target: torch.Tensor,
    valid: torch.Tensor,
    *,
    total: torch.Tensor | None = None,
    window: int = 5,
    temperature: float = 0.1,
    iterations: int = 5,
) -> torch.Tensor:
    """Mean absolute error over valid pixels, each matched within its window (SinkLoss, Marigold V2, arXiv 2609.08084).

    output, target [B, 1, H, W], valid bool. In each square of window x window pixels Sinkhorn's iterations find a soft
    one-to-one matching of predicted and true values, cheap pairs first: what is thin and a pixel off costs nothing,
    what is blurred as much as ever. Values nearer than the temperature are hardly told apart, in a smooth slope too:
    a window should be small beside what the image shows. total: as for masked_loss.
    """
    height, width = output.shape[2:]
    padding = (0, -width % window, 0, -height % window)  # right and below, not valid

    def windows(maps: torch.Tensor) -> torch.Tensor:
        squares = functional.unfold(functional.pad(maps, padding), window, stride=window)
        return squares.transpose(1, 2)  # [B, windows, pixels]

    inside = windows(valid.float()) > 0
    # Chosen, not multiplied: 0 x NaN is NaN.
    predicted, true = (windows(torch.where(valid, maps, 0.0)) for maps in (output, target))
    both = inside[..., :, None] & inside[..., None, :]
    cost = (predicted[..., :, None] - true[..., None, :]).abs()
    match = torch.where(both, -cost / temperature, -1e6)  # log of the weight of each pair [.., predicted, true]
    for axis in (-1, -2) * iterations:
        match = torch.where(both, match - match.logsumexp(dim=axis, keepdim=True), -1e6)
    error = torch.where(both, match.exp() * cost, 0.0).sum()  # the weights of a true value's pairs add up to one
    total = valid.sum() if total is None else total
    return error / total.clamp(min=torch.finfo(torch.float32).tiny)


def latent_weights(inputs: dict[str, torch.Tensor], invalid_weight: float) -> torch.Tensor:
    """What each latent counts in the loss, [B, 1, h, w]: 1 with depth, invalid_weight where no surface is to be seen.

    What lies below all others is not known: they weigh nothing.
    """
    return inputs["valid"] + invalid_weight * inputs["no_surface"]


def square_crops(maps: torch.Tensor, corners: torch.Tensor, side: int) -> torch.Tensor:
    """The square of each map [B, _, h, w] whose top and left are its corner [B, 2]."""
    pairs = zip(maps, corners.tolist(), strict=True)
    return torch.stack([one[:, top : top + side, left : left + side] for one, (top, left) in pairs])
