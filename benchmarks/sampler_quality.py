"""How good are few denoising steps, by each sampler? `python -m benchmarks.sampler_quality --model runs/tiny`.

For each sampler and 250, 100, 50, 25, 20 and 10 predictions of the denoiser, the same videos (the same numbers of the
same seed) are made and compared with the recorded clips that the model was trained on, by the motion distance, and with
what the sampler makes of the same noise in the most predictions, by PSNR. Heun's sampler asks twice a step, so it takes
half the steps. Rows that are done are kept in the record: the same command goes on where it was stopped.

The videos are made in sets of 16, and the distance is measured for each set: their spread is what chance does to it.
DDPM draws noise in each step, other noise for another number of steps; its agreement says how far chance moves a video.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
from pathlib import Path

import numpy as np

from benchmarks.harness.environment import environment, revision
from medsora.diffusion import SCHEDULERS
from medsora.errors import UserError, run_command
from medsora.files import save_tensors, write_bytes, write_json

RESULTS = Path(__file__).parent / "results" / "sampler-quality-cpu.json"
PREDICTIONS = (250, 100, 50, 25, 20, 10)
SET = 16
COLOURS = {"ddpm": "#8C8C8C", "ddim": "#0072B2", "dpm-solver++": "#D55E00", "heun": "#009E73"}


def main(arguments: list[str] | None = None) -> None:
    """Measures what the record lacks, writes it after each row, and draws the picture."""
    options = _parse(arguments)
    if options.sets < 1 or min(options.predictions) < 1 or max(options.predictions) > 1000:
        raise UserError("--sets, --predictions: wants 1 or more sets and 1 to 1000 predictions")
    from medsora.saved_model import load_pipeline, model_hashes
    from medsora.training.progress import step_bar

    hashes = model_hashes(options.model)
    pipeline = load_pipeline(options.model, options.device)
    real = recorded_clips(Path(options.model), pipeline)
    head = {
        "what": "videos of few denoising steps against recorded clips and against those of the most predictions",
        "model": {"sha256": hashes, "frames": pipeline.config.num_frames, "size": pipeline.config.height},
        "videos": options.sets * SET,
        "set": SET,
        "seed": options.seed,
        "most_predictions": max(options.predictions),
        "recorded_clips": len(real),
    }
    rows = known_rows(options.output, head)
    videos = References(options.output.with_suffix(".reference.safetensors"), hashes, options)
    todo = [
        (name, count)
        for name in options.samplers
        for count in sorted(set(options.predictions), reverse=True)
        if not any((row["sampler"], row["predictions"]) == (name, made_predictions(name, count)) for row in rows)
    ]
    total = options.sets * SET * sum(made_predictions(name, count) for name, count in todo)
    with step_bar("sampling", 0, total, shown=bool(todo)) as bar:
        for name, count in todo:
            rows.append(measured(pipeline, real, name, count, videos, options, bar))
            order = {sampler: place for place, sampler in enumerate(SCHEDULERS)}
            rows.sort(key=lambda row: (order[row["sampler"]], -row["predictions"]))
            where = {"environment": environment(), "revision": revision()}
            write_json(options.output, head | {"rows": rows} | where)
    videos.path.unlink(missing_ok=True)
    print(table(rows))
    draw(options.output.with_suffix(".png"), rows)
    print(f"written {options.output} and {options.output.with_suffix('.png')}")


def measured(pipeline, real: list[np.ndarray], name: str, count: int, videos: References, options, bar) -> dict:
    """One row: a sampler at a number of predictions."""
    from medsora.metrics import frechet_motion_distance, psnr

    made, steps = videos.made(pipeline, name, count, bar)
    reference, _ = videos.made(pipeline, name, videos.most, bar)
    sets = np.split(made, options.sets)
    distances = [round(float(frechet_motion_distance(real, clips)), 3) for clips in sets]
    row = {
        "sampler": name,
        "steps": steps,
        "predictions": made_predictions(name, count),
        "motion_distance": round(float(np.mean(distances)), 3),
        "motion_distance_of_each_set": distances,
    }
    if count != videos.most:
        agreement = [float(psnr(a, b)) for a, b in zip(made, reference, strict=True)]
        row["psnr_to_most_db"] = round(float(np.mean(agreement)), 2)
    return row


class References:
    """What samplers make of each video in the most predictions, kept in a file while a measurement goes on."""

    def __init__(self, path: Path, hashes: dict[str, str], options):
        self.path, self.options = path, options
        self.most = max(options.predictions)
        self._key = json.dumps([hashes, options.sets, options.seed, self.most], sort_keys=True)
        self._known: dict[str, np.ndarray] = self._read()

    def made(self, pipeline, name: str, count: int, bar) -> tuple[np.ndarray, int]:
        """Videos uint8 (N, T, H, W, 3), and the sampler's steps."""
        from medsora.media import to_uint8

        steps = steps_for(name, count)
        if count == self.most and name in self._known:
            return self._known[name], steps
        made = to_uint8(
            pipeline(
                num_videos=self.options.sets * SET,
                num_inference_steps=steps,
                scheduler=name,
                seed=self.options.seed,
                batch_size=SET,
                progress=False,
                on_step=bar.update,
            ).videos
        )
        if count == self.most:
            import torch

            self._known[name] = made
            tensors = {known: torch.from_numpy(videos) for known, videos in self._known.items()}
            save_tensors(self.path, tensors, {"key": self._key})
        return made, steps

    def _read(self) -> dict[str, np.ndarray]:
        from safetensors import safe_open

        if not self.path.is_file():
            return {}
        with safe_open(self.path, framework="np") as file:
            if (file.metadata() or {}).get("key") != self._key:
                return {}
            return {name: file.get_tensor(name) for name in file.keys()}


def steps_for(name: str, predictions: int) -> int:
    """Steps of a sampler that ask the denoiser `predictions` times, or once less: Heun asks twice but at the end."""
    return (predictions + 1) // 2 if name == "heun" else predictions


def made_predictions(name: str, predictions: int) -> int:
    """How often the sampler asks in that many steps."""
    return 2 * steps_for(name, predictions) - 1 if name == "heun" else predictions


def recorded_clips(model: Path, pipeline) -> list[np.ndarray]:
    """The clips a run was trained on, as its own measurement takes them."""
    from medsora.data import LatentClips
    from medsora.training.evaluation import real_windows
    from medsora.training.results import REAL_CLIPS

    try:
        stages = json.loads((model / "stages.json").read_text("utf-8"))
        settings = json.loads((model / "settings.json").read_text("utf-8"))["settings"]["prepare"]
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"--model: {model} is not the folder of a finished training run ({error})") from None
    inside = model / "dataset"
    dataset = inside if inside.is_dir() else Path(stages["frames"]["dataset"])
    clips = LatentClips(dataset, "train")
    return real_windows(dataset, clips, pipeline.config.num_frames, settings["interval"], REAL_CLIPS)


def known_rows(path: Path, head: dict) -> list[dict]:
    """Rows measured before of the same model and videos."""
    if not path.is_file():
        return []
    record = json.loads(path.read_text("utf-8"))
    if any(record.get(name) != value for name, value in head.items()):
        raise UserError(f"--output: {path} holds a measurement of another model or of other videos, wants another file")
    return record["rows"]


def table(rows: list[dict]) -> str:
    """The rows as text."""
    lines = [
        f"{'sampler':14}{'steps':>6}{'predictions':>13}{'motion distance':>17}  {'of each set':20}{'PSNR to most':>14}"
    ]
    for row in rows:
        each = " ".join(f"{distance:.1f}" for distance in row["motion_distance_of_each_set"])
        agreement = f"{row['psnr_to_most_db']:.1f} dB" if "psnr_to_most_db" in row else "-"
        lines.append(
            f"{row['sampler']:14}{row['steps']:6}{row['predictions']:13}{row['motion_distance']:17.2f}  {each:20}"
            f"{agreement:>14}"
        )
    return "\n".join(lines)


def draw(path: Path, rows: list[dict]) -> None:
    """Motion distance and agreement over predictions, a line a sampler; dots are the sets."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullLocator

    figure = Figure(figsize=(10, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    distance, agreement = figure.subplots(1, 2)
    for name in dict.fromkeys(row["sampler"] for row in rows):
        mine = [row for row in rows if row["sampler"] == name]
        x, style = [row["predictions"] for row in mine], {"color": COLOURS[name], "label": name}
        distance.plot(x, [row["motion_distance"] for row in mine], marker="o", markersize=4, **style)
        for row in mine:
            each = row["motion_distance_of_each_set"]
            distance.plot([row["predictions"]] * len(each), each, ".", color=COLOURS[name], alpha=0.4, markersize=5)
        compared = [row for row in mine if "psnr_to_most_db" in row]
        where = [row["predictions"] for row in compared]
        agreement.plot(where, [row["psnr_to_most_db"] for row in compared], marker="o", markersize=4, **style)
    means = [row["motion_distance"] for row in rows]
    if max(means) > 5 * min(means):
        distance.set_yscale("log")
    else:
        distance.set_ylim(bottom=0)
    distance.set_title("Motion distance to recorded clips (lower is better)", fontsize=10)
    agreement.set_title("Agreement with the most predictions of the same sampler (PSNR, dB)", fontsize=10)
    for axes in (distance, agreement):
        axes.set_xscale("log")
        ticks = sorted({row["predictions"] for row in rows if row["sampler"] != "heun"}) or PREDICTIONS
        axes.set_xticks(ticks, labels=map(str, ticks))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlabel("predictions of the denoiser for a video")
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    distance.legend(frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=120, format="png")
    write_bytes(path, buffer.getvalue())


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.sampler_quality",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--model", required=True, help="folder of a finished training run, with its data set")
    add("--samplers", nargs="+", choices=SCHEDULERS, default=list(SCHEDULERS), help="which to measure")
    add("--predictions", type=int, nargs="+", default=list(PREDICTIONS), help="how often the denoiser is asked")
    add("--sets", type=int, default=2, help=f"sets of {SET} videos")
    add("--seed", type=int, default=0, help="of the videos")
    add("--output", type=Path, default=RESULTS, help="JSON file of the record; the picture lies beside it")
    add("--device", default="cpu", help='"cpu", "cuda", "auto"')
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(run_command(main))
