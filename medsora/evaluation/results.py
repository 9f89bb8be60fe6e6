"""The result of an evaluation: evaluation.json, described here, and the table that a terminal shows.

format            1, the version of this description
notice            that it is for research, not for diagnosis
target, reference what was evaluated, and against what, as they were given
settings          `EvaluateSettings` as they were given
versions, device  of the software and of what computed
protocol          of generation, for both sides:
  num_frames, size    frames of a clip; height and width in pixels
  generated           source ("run" or "folder"), path, videos (measured), frames, stride, size (of the videos before
                      they were resized), resize, skipped ([name, reason]); of a run also settings and sha256 of files
  real                path, split, clips (recordings), windows (measured), frames, stride, flips, size, resize, seed,
                      manifest_sha256
generation        {measure: ...} for "motion" (clips of 5 frames or more) and, with weights, "fvd", "cd_fvd", "fid":
  title, distance (Frechet; null for fewer than 2 samples), halves (the distance between two halves of the recordings,
  every other clip or, of one clip, every other first frame), samples ("clip" or "frame"), real and generated (how
  many samples), size (of a feature), protocol (features, weights with path and sha256, pictures, frames; of the
  weight-free one proxy: true, and covariance)
inception_score   null without weights: {"generated" and "real": [mean, deviation over parts], parts, protocol}
spectrum          frequency (fraction of the highest), real, generated (mean power by band), difference (decibels),
                  distance (mean of the absolute differences, decibels)
temporal          null for single frames: {"flow", "generated" and "real": {statistic: {mean, deviation, quantiles (5 %,
                  50 %, 95 %)}}, "wasserstein": {statistic: distance of the distributions over clips}}; statistics as
                  in `medsora.metrics.temporal_statistics`
reconstruction    null unless a run is evaluated: `measure_reconstruction`, and split, vae_sha256, lpips_sha256,
                  without_compensation (the same of the VAE's backbone alone; null where it has no compensation)
memorisation      null if not asked for: `nearest_recordings`, and pairs (numbers of the samples in nearest.png)
warnings          sentences that a reader of the numbers should know
"""

from __future__ import annotations

import platform
from collections.abc import Sequence

FORMAT = 1
RESULT_FILE = "evaluation.json"
NAMED = 5  # skipped files that a warning names
FEW = (
    "{title}: {count} {side} {unit}s are too few for features of {size} numbers, so the distance is too large and "
    "depends on their number; compare it only with distances of as many."
)


def versions() -> dict[str, str]:
    """Of what computed."""
    import diffusers
    import torch

    import medsora

    return {"medsora": medsora.__version__, "torch": torch.__version__, "diffusers": diffusers.__version__,
            "python": platform.python_version()}  # fmt: skip


def too_few(title: str, unit: str, size: int, real: int, generated: int) -> list[str]:
    """A warning for each side that has fewer samples than a feature has numbers, as its covariance is singular then.

    real, generated: how many different ones there are.
    """
    sides = {"recorded": real, "generated": generated}
    return [
        FEW.format(title=title, count=count, side=side, unit=unit, size=size)
        for side, count in sides.items()
        if count <= size
    ]


def not_used(skipped: Sequence[tuple[str, str]]) -> str:
    """A warning that names the first skipped files, each with its reason."""
    named = "; ".join(": ".join(item) for item in skipped[:NAMED])
    more = f"; and {len(skipped) - NAMED} more, in {RESULT_FILE}" if len(skipped) > NAMED else ""
    return f"{len(skipped)} file(s) were skipped: {named}{more}."


def table(result: dict) -> list[tuple[str, str, str]]:
    """(measure, value, on what) for each number that a reader looks for first."""
    rows: list[tuple[str, str, str]] = []
    found = result["reconstruction"]
    if found:
        split = {"val": "held-out", "train": "training"}[found["split"]]
        on = f"{found['clips']} {split} clip(s) of {found['frames']} frames"
        rows.append(("reconstruction, PSNR", f"{found['psnr']:.2f} dB", on))
        for name in ("ssim", "lpips"):
            if found[name] is not None:
                rows.append((f"reconstruction, {name.upper()}", f"{found[name]:.4f}", on))
        rows.append(("reconstruction, spectral distance", f"{found['spectrum']['distance']:.2f} dB", on))
        plain = found["without_compensation"]
        if plain:
            rows.append(("its backbone alone, PSNR", f"{plain['psnr']:.2f} dB", "compensation set to zero"))
            apart = f"{plain['spectrum']['distance']:.2f} dB"
            rows.append(("its backbone alone, spectral distance", apart, "compensation set to zero"))
    for item in result["generation"].values():
        on = f"{item['generated']} generated and {item['real']} recorded {item['samples']}s"
        rows.append((item["title"], _number(item["distance"]), on))
        if item["halves"] is not None:
            rows.append((f"{item['title']}: recordings to recordings", _number(item["halves"]), "two halves of them"))
    score = result["inception_score"]
    if score:
        for side, name in (("generated", "generated"), ("real", "recorded")):
            mean, deviation = score[side]
            rows.append((f"IS (Inception, frames), {name}", f"{mean:.3f}", f"{deviation:.3f} between its parts"))
    rows.append(("spectra, generated to recorded", f"{result['spectrum']['distance']:.2f} dB", "means over frames"))
    if result["temporal"]:
        rows += _temporal_rows(result["temporal"])
    found = result["memorisation"]
    if found:
        distances = sorted(record["distance"] for record in found["samples"])
        middle = distances[len(distances) // 2]
        on = f"{len(distances)} samples, grey levels at 16 x 16"
        rows.append(("nearest recording, median sample", f"{middle:.2f}", on))
        rows.append(("nearest recording, nearest sample", f"{distances[0]:.2f}", on))
        if found["recorded"]:
            between = sorted(found["recorded"])[len(found["recorded"]) // 2]
            on = f"{len(found['recorded'])} recorded clips"
            rows.append(("nearest other recording, median recording", f"{between:.2f}", on))
            rows.append(("samples that may be copies", f"{found['nearer']}", f"nearer than {found['threshold']:.2f}"))
    return rows


def _temporal_rows(found: dict) -> list[tuple[str, str, str]]:
    names = {
        "warping_error": "warping error",
        "speed": "speed, pixels a frame",
        "jerk": "change of speed, pixels a frame",
        "moving": "share of places that move",
    }
    return [
        (title, _number(found["generated"][name]["mean"]), f"recorded: {_number(found['real'][name]['mean'])}")
        for name, title in names.items()
    ]


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.4g}"
