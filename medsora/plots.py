"""Line plots as png files, drawn off screen and without matplotlib's global figure state."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from medsora.files import replacing

COLORS = ("#2166ac", "#d6604d", "#1b7837", "#9970ab", "#e08214", "#35978f", "#c51b7d", "#636363")
FEW_POINTS = 12  # a line through so few is drawn with its points


def plot_curves(
    path: str | os.PathLike,
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    xlabel: str = "step",
    ylabel: str = "",
    log_x: bool = False,
    log_y: bool = False,
    title: str = "",
    size: tuple[float, float] = (6.4, 3.6),
) -> None:
    """Draws one line for each (x, y) of `series`, named in a legend, and writes `path` as png.

    Values that are not finite leave a gap; on a logarithmic axis so do those that are not positive. size: width and
    height in inches at 120 dots an inch.

    Raises:
        ValueError: `path` does not end in .png, there is no series, or an x and y differ in length or are not 1-D.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    if Path(path).suffix.lower() != ".png":
        raise ValueError(f"path must end in .png, got {path}")
    if not series:
        raise ValueError("series must hold at least one curve, got none")
    figure = Figure(figsize=size, dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for number, (name, (x, y)) in enumerate(series.items()):
        x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
        if x.ndim != 1 or x.shape != y.shape:
            raise ValueError(f"series[{name!r}] must be x and y, 1-D and of one length, got {x.shape} and {y.shape}")
        shown = np.isfinite(x) & np.isfinite(y) & ((x > 0) | (not log_x)) & ((y > 0) | (not log_y))
        y = np.where(shown, y, np.nan)
        marker = "o" if shown.sum() <= FEW_POINTS else None
        color = COLORS[number % len(COLORS)]
        axes.plot(x, y, label=str(name), color=color, linewidth=1.6, marker=marker, markersize=4)
    axes.set_xscale("log" if log_x else "linear")
    axes.set_yscale("log" if log_y else "linear")
    _dress(axes, xlabel, ylabel, title, legend=len(series) > 1)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png")


def _dress(axes, xlabel: str, ylabel: str, title: str, legend: bool) -> None:
    axes.set(xlabel=xlabel, ylabel=ylabel)
    axes.set_title(title, loc="left", fontsize=11)
    axes.grid(color="0.85", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("0.6")
    axes.tick_params(color="0.6", labelsize=9)
    if legend:
        axes.legend(frameon=False, fontsize=9)
