"""The page of an evaluation: its numbers, curves and videos in one HTML file, and the pictures it is made of."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from medsora import media
from medsora.evaluation.memorisation import PAGE
from medsora.evaluation.results import table
from medsora.files import write_bytes
from medsora.report import Report
from medsora.training.results import mosaic

REAL, MADE, OTHER = "#5b6675", "#0b7285", "#c2410c"
MOTION = {"speed": "speed, pixels a frame", "jerk": "change of speed", "warping_error": "warping error"}


def write_page(folder: Path, result: dict, tiles: Mapping[str, np.ndarray], fps: float) -> Path:
    """Writes report.html and its pictures into `folder`.

    result: as `medsora.evaluation.results` describes it. tiles: uint8 (N, T, H, W, 3) of "generated" and "real";
    pictures of reconstruction and of nearest recordings are taken from `folder` where they are. fps: of the videos.
    """
    report = Report(
        f"Evaluation: {Path(result['target']).name}",
        f"{result['target']} against {result['reference']}. Generated videos on this page are synthetic: for research "
        "use only, not for diagnosis.",
    )
    report.figures(_key_figures(result))
    for warning in result["warnings"]:
        report.paragraph(f"Note: {warning}")
    _add_videos(report, folder, tiles, fps)
    report.heading("Numbers")
    report.table(["measure", "value", "on"], table(result))
    if "motion" in result["generation"]:
        report.paragraph(
            "The motion distance is a proxy that needs no weights: a Frechet distance on 23 fixed numbers a clip. It "
            "is no substitute for FVD and compares with other motion distances only."
        )
    _add_reconstruction(report, folder, result["reconstruction"])
    _add_spectrum(report, folder, result["spectrum"])
    _add_motion(report, folder, result["temporal"])
    _add_nearest(report, folder, result["memorisation"])
    _add_protocol(report, result)
    report.write(folder / "report.html")
    return folder / "report.html"


def _key_figures(result: dict) -> list[tuple[str, str]]:
    """What is read first: reconstruction, distances, and whether there are copies."""
    wanted = {"reconstruction, PSNR", "reconstruction, spectral distance", "samples that may be copies"}
    wanted |= {item["title"] for item in result["generation"].values()}
    return [(title, value) for title, value, _ in table(result) if title in wanted]


def _add_videos(report: Report, folder: Path, tiles: Mapping[str, np.ndarray], fps: float) -> None:
    report.heading("Videos")
    for side, title in (("generated", "Generated"), ("real", "Recorded")):
        clips = tiles[side]
        if clips.shape[1] > 1:
            media.write_mp4(folder / f"{side}.mp4", mosaic(clips), fps, synthetic=side == "generated")
            report.video(folder / f"{side}.mp4", f"{title}, side by side")
        sheet = folder / f"{side}.png"
        media.contact_sheet(sheet, list(clips[:6]), columns=8, synthetic=side == "generated", width=PAGE)
        report.image(sheet, f"{title}: each row is one clip, its frames left to right")


def _add_reconstruction(report: Report, folder: Path, found: dict | None) -> None:
    if not found:
        return
    report.heading("Reconstruction by the video VAE")
    spectrum = found["spectrum"]
    panels = {
        "energy kept": "energy_ratio",
        "energy of the error": "error_ratio",
        "log-spectra apart, dB": "log_difference",
    }
    series = {title: {"video VAE": (spectrum[name], MADE)} for title, name in panels.items()}
    if found["without_compensation"]:
        plain = found["without_compensation"]["spectrum"]
        for title, name in panels.items():
            series[title]["its backbone alone"] = (plain[name], OTHER)
        report.paragraph(
            "The backbone alone is the same VAE with its compensation set to zero. Where both were trained together it "
            "was never meant to work without; where a pretrained backbone was frozen, the difference is what the "
            "compensation adds."
        )
    draw(folder / "reconstruction-spectrum.png", spectrum["frequency"], series, ideal={"energy kept": 1.0})
    report.curves(
        folder / "reconstruction-spectrum.png",
        "By frequency, from flat (0) to the finest that pixels carry (1), relative to the recorded clips: the energy "
        "given back, the energy of the error, and how far the spectra are apart (root mean square over frames). Energy "
        "that is kept while the error stays is detail in the wrong place.",
    )
    if (folder / "reconstruction.png").is_file():
        report.image(folder / "reconstruction.png", "Rows in pairs: recorded, then reconstructed")


def _add_spectrum(report: Report, folder: Path, found: dict) -> None:
    report.heading("Spectra: generated and recorded")
    series = {
        "mean power by band, dB": {
            "recorded": (_decibels(found["real"]), REAL),
            "generated": (_decibels(found["generated"]), MADE),
        },
        "generated less recorded, dB": {"difference": (found["difference"], OTHER)},
    }
    draw(folder / "spectrum.png", found["frequency"], series, ideal={"generated less recorded, dB": 0.0})
    report.curves(folder / "spectrum.png", "Below zero on the right: generated frames lack fine detail")


def _add_motion(report: Report, folder: Path, found: dict | None) -> None:
    if not found:
        return
    report.heading("Motion")
    rows = []
    for name, title in MOTION.items():
        for side, label in (("real", "recorded"), ("generated", "generated")):
            d = found[side][name]
            rows.append([title, label, *(f"{x:.4g}" for x in (d["mean"], d["deviation"], *d["quantiles"]))])
    report.table(["measure", "side", "mean", "deviation", "5 %", "median", "95 %"], rows)
    report.paragraph(
        f"From optical flow ({found['flow']}), one number a clip. Warping error: mean square difference between a "
        "frame and the next one drawn back along the flow, where both are in view. A still clip has none, so judge it "
        "beside the speed."
    )


def _add_nearest(report: Report, folder: Path, found: dict | None) -> None:
    if not found:
        return
    report.heading("Nearest recordings")
    curves = {"generated": ([record["distance"] for record in found["samples"]], MADE)}
    if found["recorded"]:
        curves["recorded, to others"] = (found["recorded"], REAL)
    draw_distribution(folder / "nearest-distances.png", curves, "distance to the nearest recording, grey levels")
    report.curves(
        folder / "nearest-distances.png", "Share of clips that have a recording within the distance, at 16 x 16 pixels"
    )
    if found["recorded"]:
        report.paragraph(
            f"{found['nearer']} of {len(found['samples'])} samples are nearer to a recording than "
            f"{found['threshold']:.2f} grey levels, the distance below which 5 % of the recordings are to another: "
            "look at these as possible copies."
        )
    else:
        report.paragraph("No recording has another one of another time, so there is nothing to compare distances with.")
    report.image(folder / "nearest.png", "The samples nearest to a recording, each above that recording")


def _add_protocol(report: Report, result: dict) -> None:
    report.heading("Protocol")
    rows = [[name, str(value)] for name, value in result["protocol"].items() if not isinstance(value, dict)]
    for side in ("generated", "real"):
        for name, value in result["protocol"][side].items():
            if name not in ("skipped", "sha256"):
                rows.append([f"{side}: {name}", str(value)])
    for item in result["generation"].values():
        protocol = item["protocol"]
        rows.append([item["title"], protocol["features"]])
        for name in ("pictures", "frames", "covariance"):
            if name in protocol:
                rows.append([f"{item['title']}: {name}", protocol[name]])
        if "weights" in protocol:
            rows.append([f"{item['title']}: SHA-256 of the weights", protocol["weights"]["sha256"]])
    rows += [[name, value] for name, value in result["versions"].items()]
    report.table(["", "value"], rows)


def draw(path: Path, x: Sequence[float], panels: Mapping[str, Mapping[str, tuple[Sequence[float], str]]],
         ideal: Mapping[str, float]) -> None:  # fmt: skip
    """Panels side by side, each with curves {name: (y, colour)} over frequency; a line where the ideal is known."""
    figure, axes = _figure(len(panels))
    for axis, (title, curves) in zip(axes, panels.items()):
        if title in ideal:
            axis.axhline(ideal[title], color=REAL, linewidth=0.8, linestyle=":")
        for name, (y, colour) in curves.items():
            axis.plot(x, y, color=colour, label=name, marker=".", markersize=4)
        axis.set(title=title, xlabel="frequency, of the highest", xlim=(0, 1))
        if min(min(y) for y, _ in curves.values()) >= 0:
            axis.set_ylim(bottom=0)
        axis.legend(fontsize=7, frameon=False)
    _save(figure, path)


def draw_distribution(path: Path, curves: Mapping[str, tuple[Sequence[float], str]], xlabel: str) -> None:
    """The share of numbers up to each value, a step curve for each set."""
    figure, [axis] = _figure(1)
    for name, (values, colour) in curves.items():
        values = np.sort(values)
        axis.step([0, *values], np.arange(len(values) + 1) / len(values), where="post", color=colour, label=name)
    axis.set(xlabel=xlabel, ylabel="share", ylim=(0, 1.02), xlim=(0, None))
    axis.legend(fontsize=8, frameon=False)
    _save(figure, path)


def _figure(panels: int):
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.4 * panels, 3.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, panels, squeeze=False)[0]
    for axis in axes:
        axis.grid(alpha=0.25, linewidth=0.5)
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=8)
        axis.title.set_fontsize(10)
    return figure, axes


def _save(figure, path: Path) -> None:
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=110, format="png")
    write_bytes(path, buffer.getvalue())


def _decibels(power: Sequence[float]) -> list[float]:
    from medsora.metrics.spectrum import ROUNDING

    return (10 * np.log10(np.asarray(power) + ROUNDING)).tolist()
