"""What rows of ablations say: numbers by question, a table in words that fit their size, curves as a picture.

A difference counts as more than chance where every seed shows it in the same direction and its mean exceeds the spread
of the seeds' differences; with two seeds or three that is a weak test, and is called so.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks.reports.pictures import INK, SOFT, write

Curve = Sequence[Sequence[float]]  # (step, loss) pairs in the order of steps
BASE = "base"
# Question -> the arms it compares with the base, in its picture's order.
ORDER_ARMS = ("raster", "released order")
ATTENTION_ARMS = ("factorised attention", "full attention")
VAE_BASE, VAE_ARMS = "none compensation", ("spectral compensation", "conv compensation")
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")  # Okabe and Ito


def summary(rows: Sequence[Mapping]) -> list[dict]:
    """A table for each measure whose arms are all there.

    Each: "title"; "unit"; "better" ("lower", "higher" or ""); "base"; "arms": by name "values" of the seeds in order
    (None: not reached), "mean" of them (None where one is None), and for all but the base "difference" of the means and
    "beyond_seeds", whether it exceeds the seeds' spread (None where that cannot be said).
    """
    seeds = sorted({row["seed"] for row in rows})
    by = {(row["arm"], row["seed"]): row for row in rows}
    tables = []

    def add(title: str, base: str, others: Sequence[str], value, unit: str, better: str = "lower") -> None:
        arms = (base, *others)
        if all((arm, seed) in by for arm in arms for seed in seeds):
            values = {arm: [value(by[arm, seed], seed) for seed in seeds] for arm in arms}
            tables.append(
                {"title": title, "unit": unit, "better": better, "base": base, "arms": compared(values, base)}
            )

    def at_equal_time(row: Mapping, seed: int) -> float:
        whole = (by[arm, seed] for arm in (BASE, *ATTENTION_ARMS))
        seconds = min(one["curve"][-1][0] * one["seconds_per_step"] for one in whole)
        return loss_at(row["curve"], seconds / row["seconds_per_step"])

    last = "held-out denoising loss at the last step"
    add("Alignment: " + last, "no alignment", [BASE], lambda row, seed: row["curve"][-1][1], "")
    add(
        "Alignment: steps to the loss at which training without it ended", "no alignment", [BASE],
        lambda row, seed: steps_to(row["curve"], by["no alignment", seed]["curve"][-1][1]), "steps",
    )  # fmt: skip
    add("Scan order: " + last, BASE, ORDER_ARMS, lambda row, seed: row["curve"][-1][1], "")
    add("Scans or attention: held-out denoising loss at equal time", BASE, ATTENTION_ARMS, at_equal_time, "")
    add("Scans or attention: " + last, BASE, ATTENTION_ARMS, lambda row, seed: row["curve"][-1][1], "")
    add("Scans or attention: time of a step", BASE, ATTENTION_ARMS, lambda row, seed: row["seconds_per_step"], "s")
    add("Scans or attention: parameters", BASE, ATTENTION_ARMS, lambda row, seed: row["parameters"], "", "")
    for name, title, unit in (("psnr_db", "PSNR", "dB"), ("ssim", "SSIM", "")):

        def found(row: Mapping, seed: int, name: str = name) -> float:
            return row[name]

        add(f"Compensation: {title} on held-out frames", VAE_BASE, VAE_ARMS, found, unit, "higher")
    return tables


def compared(values: Mapping[str, Sequence[float | None]], base: str) -> dict[str, dict]:
    """Means of arms over seeds, and their differences from the base; see `summary`."""
    arms = {}
    for arm, found in values.items():
        whole = None not in found
        arms[arm] = {"values": list(found), "mean": statistics.mean(found) if whole else None}
        if arm == base:
            continue
        differences = [a - b for a, b in zip(found, values[base]) if a is not None and b is not None]
        paired = len(differences) == len(found)
        arms[arm]["difference"] = statistics.mean(differences) if paired else None
        arms[arm]["beyond_seeds"] = beyond_spread(differences) if paired and len(found) > 1 else None
    return arms


def beyond_spread(differences: Sequence[float]) -> bool:
    """Whether all differences have one sign and their mean is larger than their spread."""
    one_sign = min(differences) > 0 or max(differences) < 0
    return one_sign and abs(statistics.mean(differences)) > max(differences) - min(differences)


def steps_to(curve: Curve, loss: float) -> float | None:
    """The step at which the curve first reaches a loss, by straight lines between its points; None if never."""
    for (before, high), (after, low) in zip(curve, curve[1:]):
        if high <= loss:
            return float(before)
        if low <= loss:
            return before + (after - before) * (high - loss) / (high - low)
    return float(curve[-1][0]) if curve[-1][1] <= loss else None


def loss_at(curve: Curve, step: float) -> float:
    """The loss at a step, between the curve's points by a straight line, beyond its ends that of the end."""
    for (before, first), (after, second) in zip(curve, curve[1:]):
        if step <= after:
            return first + (second - first) * max(step - before, 0) / (after - before)
    return float(curve[-1][1])


def markdown(tables: Sequence[Mapping], about: Mapping) -> str:
    """The tables for a reader, with how much they can bear."""
    seeds = len(about["seeds"])
    lines = [
        "# Ablations: a tiny experiment",
        "",
        f"Denoisers of the tiny preset, {about['steps']} steps on {about['data']}; video VAEs, {about['vae_steps']} "
        f"steps on the ultrasound cine; {seeds} seed{'' if seeds == 1 else 's'} each; {about['machine']}. Few clips, "
        "short training: this says how the parts behave here, and nothing about other data, sizes or longer runs.",
        "",
        "*Beyond the seeds' spread*: every seed shows the difference in one direction, and its mean is larger than the "
        "range of the differences; a weak test, with so few seeds. A video is some 64 tokens here, where attention is "
        "cheap: how both grow with tokens is what the layer benchmarks measure.",
    ]
    for table in tables:
        unit = f", {table['unit']}" if table["unit"] else ""
        better = f" ({table['better']} is better)" if table["better"] else ""
        lines += ["", f"**{table['title']}**{unit}{better}", ""]
        lines += ["| | mean | seeds | difference | beyond the seeds' spread |", "| --- | --- | --- | --- | --- |"]
        for arm, found in table["arms"].items():
            seeds_found = ", ".join(map(_number, found["values"]))
            said = {True: "yes", False: "no", None: "cannot be said"}
            last = ["", ""] if arm == table["base"] else [_signed(found["difference"]), said[found["beyond_seeds"]]]
            lines.append("| " + " | ".join([arm, _number(found["mean"]), seeds_found, *last]) + " |")
    return "\n".join(lines) + "\n"


def draw(path: Path, rows: Sequence[Mapping], tables: Sequence[Mapping], about: Mapping) -> None:
    """Curves of the denoisers by question, thick the mean over seeds, thin each seed; the VAEs' PSNR as dots."""
    figure = Figure(figsize=(13.5, 8.0), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(
        f"Ablations, a tiny experiment: {about['steps']} steps, {len(about['seeds'])} seeds, {about['machine']}",
        color=INK,
    )
    panels = figure.subplots(2, 2)
    _curves(panels[0, 0], rows, (BASE, "no alignment"), "Alignment", "step")
    _curves(panels[0, 1], rows, (BASE, *ORDER_ARMS), "Order of the scans", "step")
    _curves(panels[1, 0], rows, (BASE, *ATTENTION_ARMS), "Scans or attention, by time", "seconds of training")
    _dots(panels[1, 1], next((t for t in tables if "PSNR" in t["title"]), None))
    write(figure, path)


def _curves(panel, rows: Sequence[Mapping], arms: Sequence[str], title: str, axis: str) -> None:
    shown = {BASE: {"Alignment": "with alignment", "Order of the scans": "spirals"}.get(title, "scans")}
    for color, arm in zip(COLORS, arms):
        own = [row for row in rows if row["arm"] == arm]
        if not own:
            continue
        scale = statistics.mean(row["seconds_per_step"] for row in own) if "time" in title else 1
        steps = [step * scale for step, _ in own[0]["curve"]]
        for row in own:
            panel.plot(steps, [loss for _, loss in row["curve"]], color=color, linewidth=0.7, alpha=0.5)
        mean = [statistics.mean(losses) for losses in zip(*([loss for _, loss in row["curve"]] for row in own))]
        panel.plot(steps, mean, color=color, linewidth=2, label=shown.get(arm, arm))
    panel.set_title(title, color=INK)
    panel.set_xlabel(axis, color=SOFT)
    panel.set_ylabel("held-out denoising loss", color=SOFT)
    panel.set_yscale("log")
    panel.yaxis.set_major_formatter(lambda value, place: f"{value:g}")
    panel.yaxis.set_minor_formatter(lambda value, place: f"{value:g}")
    panel.tick_params(which="both", labelsize=8)
    panel.legend(frameon=False)
    _plain(panel)


def _dots(panel, table: Mapping | None) -> None:
    panel.set_title("Compensation in the video VAE", color=INK)
    for place, found in enumerate(table["arms"].values() if table else []):
        panel.plot([place] * len(found["values"]), found["values"], "o", color=COLORS[0], alpha=0.5)
        panel.plot([place - 0.2, place + 0.2], [found["mean"]] * 2, color=COLORS[0], linewidth=2)
    names = [arm.removesuffix(" compensation") for arm in table["arms"]] if table else []
    panel.set_xticks(range(len(names)), names)
    panel.set_xlim(-0.6, max(len(names), 1) - 0.4)
    panel.set_ylabel("PSNR on held-out frames, dB", color=SOFT)
    _plain(panel)


def _plain(panel) -> None:
    panel.spines[["top", "right"]].set_visible(False)
    panel.grid(alpha=0.25, which="both", linewidth=0.5)


def _number(value: float | None) -> str:
    if value is None:
        return "not reached"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _signed(value: float | None) -> str:
    return "-" if value is None else ("+" if value > 0 else "") + _number(value)
