"""The standard error that a prediction states: fitted to errors on held-out frames, stored with the model.

Of a pixel with ln depth ln z, and s and g as `Signs` has them,

    sigma = u f(z) sqrt(a^2 + (b s)^2 + (c g)^2)

a, b, c  floor, spread and slope of ErrorTerms: a set for each number of members, for few of them show their spread
         badly, and one alone not at all
f        a factor for each range of predicted depth, which makes 68.3 % of held-out pixels lie within sigma there
u        unlikeness of the image, at least 1: how far the statistics of its latent are from those of held-out frames
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import erf, sqrt
from typing import Annotated, Any, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, PositiveFloat, model_validator

from metricgold.log_depth import LogDepth

WITHIN = erf(sqrt(0.5))  # share of a normal distribution within its standard deviation, 0.683
NUM_RANGES = 8  # of predicted depth, with equally many held-out pixels each
PIXELS_OF_FRAME = 500  # that a fit takes of each frame, so that all weigh the same
LAPLACE = 1.148  # -ln(1 - WITHIN): of a Laplace distribution, sigma that holds WITHIN over its scale
SHRINKAGE = 0.1  # of the statistics' correlations, which few frames show badly
MOST_UNLIKE = 20.0  # times as uncertain: a picture of one colour is unlike all others without a bound
LEAST = 1e-4  # nats: what floor begins from, and the least that sigma is


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ErrorTerms(_Frozen):
    """What the formula has for predictions of so many members."""

    floor: PositiveFloat
    spread: NonNegativeFloat
    slope: NonNegativeFloat
    factors: Annotated[list[PositiveFloat], Field(min_length=1)]  # of each range of predicted depth


class UncertaintyScale(_Frozen):
    """The calibration of a model.

    edges_m          metres of predicted depth between the ranges that factors are for, rising; of a network with
                     canonical depth they are of that
    by_members       of one member, of two and so on; a prediction of more has the last
    mean, whitening  of image_statistics: whitening @ (statistics - mean) has variance 1 over held-out frames
    """

    edges_m: list[PositiveFloat]
    by_members: Annotated[list[ErrorTerms], Field(min_length=1)]
    mean: list[float]
    whitening: list[list[float]]

    @model_validator(mode="after")
    def _fits_together(self) -> "UncertaintyScale":
        if self.edges_m != sorted(self.edges_m):
            raise ValueError(f"uncertainty_scale needs rising edges_m, got {self.edges_m}")
        if wrong := {len(terms.factors) for terms in self.by_members} - {len(self.edges_m) + 1}:
            raise ValueError(f"uncertainty_scale needs {len(self.edges_m) + 1} factors, got {wrong.pop()}")
        if {len(self.whitening), *map(len, self.whitening)} != {len(self.mean)}:
            raise ValueError(f"uncertainty_scale needs whitening {len(self.mean)} x {len(self.mean)}")
        return self

    def unlikeness(self, statistics: torch.Tensor) -> float:
        """Mean square of the whitened statistics [N], 1 for a typical held-out frame: 1 to MOST_UNLIKE."""
        mean, whitening = (torch.tensor(one, dtype=torch.float64) for one in (self.mean, self.whitening))
        return _unlikeness(statistics.double().cpu(), mean, whitening)

    def standard_error(self, signs: "Signs", unlikeness: float) -> torch.Tensor:
        """Standard error of ln depth [H, W]."""
        terms = self.by_members[min(signs.num_members, len(self.by_members)) - 1]
        edges = torch.tensor(self.edges_m, device=signs.ln_depth.device, dtype=signs.ln_depth.dtype).log()
        factors = torch.tensor(terms.factors, device=edges.device, dtype=edges.dtype)
        raw = _raw((terms.floor, terms.spread, terms.slope), signs)
        return (unlikeness * factors[torch.bucketize(signs.ln_depth, edges, right=True)] * raw).clamp(min=LEAST)


@dataclass(frozen=True, slots=True, eq=False)
class Signs:
    """What is known of a prediction's error without the truth, [H, W] each.

    ln_depth     ln of depth in metres, as the network has it
    spread       standard deviation of its members, nats: 0 where one member alone sees a pixel
    slope        how much ln depth changes from a pixel to the next, nats
    num_members  of the prediction
    """

    ln_depth: torch.Tensor
    spread: torch.Tensor
    slope: torch.Tensor
    num_members: int

    @classmethod
    def of(cls, members: torch.Tensor, median: torch.Tensor, log_depth: LogDepth) -> "Signs":
        """Those of members [E, H, W], NaN where they do not see a pixel, and their median [H, W], log depth."""
        nats = log_depth.ln_range / 2
        seen = members.isfinite()
        count = seen.sum(dim=0)
        means = members.nan_to_num().sum(dim=0) / count
        squares = torch.where(seen, members - means, 0).square().sum(dim=0)
        spread = (squares / (count - 1).clamp(min=1)).sqrt() * nats
        down, along = (gradient(median, dim) if median.shape[dim] > 1 else 0 * median for dim in (0, 1))
        slope = torch.hypot(down, along) * nats
        return cls(log_depth.denormalize(median).log(), spread, slope, len(members))


def gradient(values: torch.Tensor, dim: int) -> torch.Tensor:
    """As torch.gradient, along one of two dimensions; that would fix the sizes of a graph that is exported."""
    along = values.transpose(0, dim)
    inner = (along[2:] - along[:-2]) / 2
    return torch.cat([along[1:2] - along[:1], inner, along[-1:] - along[-2:-1]]).transpose(0, dim)


def image_statistics(rgb_latent: torch.Tensor) -> torch.Tensor:
    """Means and logarithms of standard deviations of the channels of latents [B, c, h, w]: [B, 2c]."""
    return torch.cat([rgb_latent.mean(dim=(2, 3)), rgb_latent.std(dim=(2, 3)).clamp(min=1e-6).log()], dim=1)


@dataclass(frozen=True, slots=True, eq=False)
class HeldOut:
    """Pixels of a predicted frame whose truth is known, float64 [PIXELS_OF_FRAME] each, and its image_statistics [2c].

    error  |ln of predicted over true depth|; the others as Signs has them
    """

    error: torch.Tensor
    ln_depth: torch.Tensor
    spread: torch.Tensor
    slope: torch.Tensor
    statistics: torch.Tensor

    @classmethod
    def of(cls, signs: Signs, true_depth_m: torch.Tensor, statistics: torch.Tensor) -> "HeldOut":
        """Of true depth [H, W] in the network's metres, NaN where there is none: pixels evenly over the known."""
        known = true_depth_m.isfinite().flatten().nonzero()[:, 0]
        chosen = known[torch.linspace(0, len(known) - 1, PIXELS_OF_FRAME).long()]
        error = (signs.ln_depth - true_depth_m.log()).abs()

        def sample(one: torch.Tensor) -> torch.Tensor:
            return one.flatten()[chosen].double().cpu()

        return cls(
            sample(error), sample(signs.ln_depth), sample(signs.spread), sample(signs.slope), statistics.double().cpu()
        )


class _Pixels(NamedTuple):
    """Those of all frames, float64 [N] each, with the unlikeness of their frames."""

    error: torch.Tensor
    ln_depth: torch.Tensor
    spread: torch.Tensor
    slope: torch.Tensor
    unlikeness: torch.Tensor


def fit_scale(by_members: Sequence[Sequence[HeldOut]]) -> UncertaintyScale:
    """The calibration that fits predictions of the same held-out frames by one member, by two and so on.

    Floor, spread and slope are the most likely ones of errors that have a Laplace distribution; then the factor of each
    range is what makes WITHIN of its pixels lie within sigma. Every frame weighs the same.
    """
    statistics = torch.stack([frame.statistics for frame in by_members[0]])
    others = ~torch.eye(len(statistics), dtype=torch.bool)
    # By the statistics of the other frames, as that of a new image is.
    each = [_unlikeness(one, *_whitening(statistics[rest])) for one, rest in zip(statistics, others, strict=True)]
    unlikeness = torch.tensor(each, dtype=torch.float64).repeat_interleave(PIXELS_OF_FRAME)
    samples = []
    for frames in by_members:
        columns = {name: torch.cat([getattr(one, name) for one in frames]) for name in _Pixels._fields[:-1]}
        samples.append(_Pixels(**columns, unlikeness=unlikeness))
    edges = samples[0].ln_depth.quantile(torch.arange(1, NUM_RANGES).double() / NUM_RANGES).unique()
    terms = [_fit_terms(pixels, edges) for pixels in samples]
    mean, whitening = _whitening(statistics)
    return UncertaintyScale(
        edges_m=edges.exp().tolist(), by_members=terms, mean=mean.tolist(), whitening=whitening.tolist()
    )


def _whitening(statistics: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean [N] of the rows of statistics [frames, N], and what makes their covariance [N, N] the identity.

    Of fewer than 2 N frames all zeros: they do not show what is usual, and no image is unlike them.
    """
    num_frames, size = statistics.shape
    if num_frames < 2 * size:
        return statistics.mean(dim=0), torch.zeros(size, size, dtype=statistics.dtype)
    covariance = statistics.T.cov(correction=0)
    variances = covariance.diagonal().diag()
    # Correlations are shrunk, and no statistic is taken for exactly constant.
    covariance = (1 - SHRINKAGE) * covariance + SHRINKAGE * variances + LEAST * torch.eye(size)
    return statistics.mean(dim=0), torch.linalg.cholesky(covariance.inverse()).T


def _unlikeness(statistics: torch.Tensor, mean: torch.Tensor, whitening: torch.Tensor) -> float:
    return min(max(1.0, (whitening @ (statistics - mean)).square().mean().item()), MOST_UNLIKE)


def _fit_terms(pixels: _Pixels, edges: torch.Tensor) -> ErrorTerms:
    logs = torch.tensor([0.1, 1.0, 1.0], dtype=torch.float64).log().requires_grad_()
    optimizer = torch.optim.LBFGS([logs], max_iter=50, line_search_fn="strong_wolfe")

    def surprise() -> torch.Tensor:
        """Minus the mean log likelihood."""
        optimizer.zero_grad()
        sigma = pixels.unlikeness * _raw(logs.exp(), pixels)
        loss = (sigma.log() + LAPLACE * pixels.error / sigma).mean()
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(surprise)
    floor, spread, slope = logs.detach().exp().tolist()
    ratio = pixels.error / (pixels.unlikeness * _raw((floor, spread, slope), pixels))
    of_range = torch.bucketize(pixels.ln_depth, edges, right=True)
    ratios = [ratio[of_range == i] for i in range(len(edges) + 1)]
    factors = [(one if len(one) else ratio).quantile(WITHIN).clamp(min=LEAST).item() for one in ratios]
    return ErrorTerms(floor=floor, spread=spread if pixels.spread.any() else 0, slope=slope, factors=factors)


def _raw(terms: Any, signs: "Signs | _Pixels") -> torch.Tensor:
    """sqrt(a^2 + (b s)^2 + (c g)^2)."""
    floor, spread, slope = terms
    return (floor**2 + (spread * signs.spread) ** 2 + (slope * signs.slope) ** 2).sqrt()
