"""Ways to fail that figures give away, by thresholds that the page states."""

from dataclasses import dataclass

import numpy as np

from metricgold.evaluate.report.comparisons import Comparison, MethodRows

ALIGNED_GOOD = 0.15  # scale-aligned AbsRel up to which the shape of a scene is right
METRIC_BAD = 2.0  # times the scale-aligned AbsRel from which scale is what is wrong
BLURRY = 0.5  # share of the VAE floor's boundary F1 below which a model is blurrier than its decoder
FLOOR_NEAR = 0.5  # share of the model's AbsRel from which the VAE floor limits it

RULES = (
    f"Scale: scale-aligned AbsRel is at most {ALIGNED_GOOD:g}, but metric AbsRel at least {METRIC_BAD:g} times as "
    "large. It is inconsistent where the ln ratios of the images' medians scatter (standard deviation) by more than "
    "their mean is off, else one factor is off.",
    f"Blurry: boundary F1 is below {BLURRY:g} times that of the model's own VAE floor.",
    f"Poor decoder: the AbsRel of the model's own VAE floor is at least {FLOOR_NEAR:g} times the model's.",
)


@dataclass(frozen=True, slots=True)
class Signature:
    """A way to fail, the method it is seen in, and the figures that show it."""

    name: str
    method: str
    evidence: str


def signatures(comparison: Comparison) -> list[Signature]:
    """What can be read off these figures, method by method."""
    found = []
    for method in comparison.methods:
        if not (method.is_floor or method.is_baseline):
            floor = floor_of(comparison, method)
            found += [of_scale(method), of_blur(method, floor), of_decoder(method, floor)]
    return [one for one in found if one is not None]


def floor_of(comparison: Comparison, method: MethodRows) -> MethodRows | None:
    """The VAE floor of a method: `vae_floor of <its name>`; None where that is the name of several."""
    name = f"vae_floor of {method.rows['method'][0]}"
    floors = [one for one in comparison.methods if one.rows["method"][0] == name]
    return floors[0] if len(floors) == 1 else None


def mean(method: MethodRows | None, figure: str) -> float:
    """Mean of a figure over images; NaN where there is none, and every comparison with it is false."""
    interval = method.interval(figure) if method else None
    return interval.mean if interval else np.nan


def of_scale(method: MethodRows) -> Signature | None:
    """Aligned good, metric bad."""
    metric, aligned = mean(method, "metric/abs_rel"), mean(method, "scale/abs_rel")
    if not (aligned <= ALIGNED_GOOD and metric >= METRIC_BAD * aligned):
        return None
    off, scatter = float(np.nanmean(method.log_ratios)), float(np.nanstd(method.log_ratios))
    evidence = f"AbsRel {metric:.3f} metric, {aligned:.3f} scale-aligned; median ratio {np.exp(off):.2f}, its ln "
    evidence += f"scatters by {scatter:.2f}"
    return Signature("scale-inconsistent" if scatter > abs(off) else "scale off by one factor", method.title, evidence)


def of_blur(method: MethodRows, floor: MethodRows | None) -> Signature | None:
    """Boundary F1 low against the VAE floor's."""
    ours, bound = mean(method, "boundary_f1"), mean(floor, "boundary_f1")
    if not ours < BLURRY * bound:
        return None
    return Signature("blurry", method.title, f"boundary F1 {ours:.3f}, the VAE floor's is {bound:.3f}")


def of_decoder(method: MethodRows, floor: MethodRows | None) -> Signature | None:
    """The VAE floor is near the model."""
    ours, bound = mean(method, "metric/abs_rel"), mean(floor, "metric/abs_rel")
    if not bound >= FLOOR_NEAR * ours:
        return None
    return Signature("poor decoder", method.title, f"AbsRel {ours:.3f}, the VAE floor's is {bound:.3f} already")
