"""The picture of a calibration: predicted against measured depth, before and after."""

from pathlib import Path

import numpy as np

from metricgold.predict.robust_fit import Fit


def draw_calibration(path: Path, predicted_m: np.ndarray, measured_m: np.ndarray, fit: Fit) -> None:
    """Write a PNG of two scatters with logarithmic axes; what is right lies on the line. Equal fits: equal bytes."""
    from matplotlib.figure import Figure

    after_m = fit.line.apply(predicted_m)
    ends_m = np.array([min(measured_m.min(), predicted_m.min(), after_m.min()) / 1.3])
    ends_m = np.append(ends_m, max(measured_m.max(), predicted_m.max(), after_m.max()) * 1.3)
    figure = Figure(figsize=(9, 4.6), dpi=100, layout="constrained")
    titles = {
        f"as predicted, AbsRel {fit.abs_rel['none']:.3f}": predicted_m,
        f"{fit.model}, AbsRel {fit.abs_rel[fit.model]:.3f} for points left out"
        if fit.model != "none"
        else f"not kept: scale, AbsRel {fit.abs_rel['scale']:.3f} for points left out": after_m,
    }
    for ax, (title, depth_m) in zip(figure.subplots(1, 2), titles.items(), strict=True):
        ax.plot(ends_m, ends_m, color="0.6", lw=1)
        ax.plot(measured_m[fit.used], depth_m[fit.used], "o", ms=5, alpha=0.7, label="used")
        if not fit.used.all():
            ax.plot(measured_m[~fit.used], depth_m[~fit.used], "x", ms=7, color="tab:red", label="left out: disagrees")
        ax.set(xscale="log", yscale="log", xlim=ends_m, ylim=ends_m, aspect="equal", title=title)
        ax.set(xlabel="measured planar depth, m", ylabel="predicted planar depth, m")
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_major_formatter("{x:g}")
            axis.set_minor_formatter("{x:g}" if ends_m[1] < 10 * ends_m[0] else "")
        ax.grid(alpha=0.3)
        ax.legend(frameon=False, loc="upper left")
    figure.savefig(path, format="png", metadata={"Software": None})
