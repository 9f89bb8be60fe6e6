"""An evaluation from beginning to end: generated videos pass once, recorded windows pass once, then numbers follow."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from medsora.errors import UserError
from medsora.evaluation import results
from medsora.evaluation.reference import Reference, Window, resized
from medsora.evaluation.settings import EvaluateSettings
from medsora.evaluation.statistics import ClipStatistics, Estimate, distance
from medsora.files import file_sha256
from medsora.media import SYNTHETIC_MARK
from medsora.metrics import wasserstein
from medsora.metrics.spectrum import ROUNDING, band_centres
from medsora.processes import ALONE, Processes
from medsora.training.progress import step_bar

if TYPE_CHECKING:
    from medsora.evaluation.generated import FolderVideos, RunVideos

TILES = 16  # videos of each side that are kept for the page


class Evaluation:
    """One comparison of generated videos with a reference; `run()` gives the result that `results` describes.

    Attributes after `run`: tiles, {"generated" and "real": uint8 arrays of some clips}; samples, uint8 (N, T, size,
    size, 3), those that were looked up among recordings.
    """

    def __init__(self, videos: FolderVideos | RunVideos, reference: Reference, extractors: Sequence,
                 estimate: Estimate, settings: EvaluateSettings, processes: Processes = ALONE,
                 progress: bool = True):  # fmt: skip
        self.videos, self.reference, self.estimate = videos, reference, estimate
        self.settings, self.processes, self.progress = settings, processes, progress
        self.num_frames, self.size = videos.shape[0], reference.size
        # The proxy, which nobody asked for by name, is left out where clips are too short for it.
        self.extractors = [e for e in extractors if e.name != "motion" or self.num_frames >= e.shortest]
        self.interval = settings.reference_stride or reference.interval
        self.flips = reference.flips if settings.flips is None else settings.flips
        self.windows = reference.windows(
            self.num_frames, self.interval, settings.reference_videos, self.flips, settings.seed
        )
        self._check()
        self.tiles: dict[str, np.ndarray] = {}
        self.samples = np.empty(0, np.uint8)

    def run(self) -> dict:
        """Samples what is missing, measures, and returns the result, less "reconstruction"."""
        self.videos.prepare(self.progress)
        generated = self._generated()
        self.videos.require_enough(generated.clips)
        real = self._real()
        generation, score = self._distances(real, generated)
        return {
            "format": results.FORMAT,
            "notice": SYNTHETIC_MARK,
            "settings": asdict(self.settings),
            "versions": results.versions(),
            "protocol": self._protocol(real, generated),
            "generation": generation,
            "inception_score": score,
            "spectrum": compare_spectra(real, generated),
            "temporal": compare_motion(real, generated, self.settings.flow),
            "reconstruction": None,
            "memorisation": self._memorisation(),
            "warnings": self._warnings(real, generated, generation),
        }

    def _check(self) -> None:
        """What a network cannot take is told before anything is computed."""
        for extractor in self.extractors:
            if self.num_frames < extractor.shortest:
                raise UserError(
                    f"--num_frames: {extractor.title} wants clips of at least {extractor.shortest} frames, those here "
                    f"have {self.num_frames}"
                )
        if self.settings.bands > self.size // 2:
            raise UserError(f"--bands: got {self.settings.bands}, wants at most {self.size // 2}, half of --size")

    def _generated(self) -> ClipStatistics:
        """One pass over this process's share of the videos; what was skipped and seen is joined over processes."""
        statistics, kept = ClipStatistics(self.extractors, self.settings.bands), {}
        wanted, mine = max(TILES, self.settings.nearest), self.processes.share(range(len(self.videos)))

        def clips() -> Iterable[tuple[int, np.ndarray]]:
            for number in mine:
                frames = self.videos.read(number)
                if frames is not None:
                    frames = resized(frames, self.size)
                    if number < wanted:
                        kept[number] = frames
                    yield 0, frames

        self._pass("generated videos", len(mine), clips(), statistics)
        found = {number: frames for part in self.processes.gathered(kept) for number, frames in part.items()}
        first = [found[number] for number in sorted(found)]
        self.tiles["generated"] = np.stack(first[:TILES]) if first else np.empty(0, np.uint8)
        self.samples = np.stack(first[: self.settings.nearest]) if first[: self.settings.nearest] else self.samples
        skipped = [item for part in self.processes.gathered(self.videos.skipped) for item in part]
        self.videos.skipped = list(dict.fromkeys(skipped))  # all have looked for the first that can be used
        return self._joined(statistics)

    def _real(self) -> ClipStatistics:
        """One pass over this process's share of the windows, in halves: by clip, or by first frame if there is one."""
        statistics = ClipStatistics(self.extractors, self.settings.bands, halves=True)
        order = {name: place for place, name in enumerate(dict.fromkeys(window.clip for window in self.windows))}
        read = partial(self.reference.read, num_frames=self.num_frames, interval=self.interval)
        shown = [self.windows[i * len(self.windows) // TILES] for i in range(min(TILES, len(self.windows)))]
        self.tiles["real"] = np.stack([read(window) for window in shown])

        def half(window: Window) -> int:
            return (order[window.clip] if len(order) > 1 else window.start) % 2

        mine = self.processes.share(self.windows)
        clips = ((half(window), read(window)) for window in mine)
        self._pass("recorded clips", len(mine), clips, statistics)
        return self._joined(statistics)

    def _pass(self, label: str, total: int, clips: Iterable, statistics: ClipStatistics) -> None:
        """Hands clips to the statistics in batches of one half each."""
        held: dict[int, list[np.ndarray]] = {0: [], 1: []}
        with step_bar(label, 0, total, self.progress and self.processes.is_first, "clip") as bar:
            for half, clip in clips:
                held[half].append(clip)
                if len(held[half]) == self.settings.batch_size:
                    statistics.add(np.stack(held[half]), self.extractors, self.estimate, half)
                    held[half].clear()
                bar.update()
            for half, rest in held.items():
                if rest:
                    statistics.add(np.stack(rest), self.extractors, self.estimate, half)

    def _joined(self, statistics: ClipStatistics) -> ClipStatistics:
        first, *others = self.processes.gathered(statistics)
        for other in others:
            first.merge(other)
        return first

    def _distances(self, real: ClipStatistics, generated: ClipStatistics) -> tuple[dict, dict | None]:
        found, score = {}, None
        for e in self.extractors:
            one, other = real.moments(e.name), generated.moments(e.name)
            found[e.name] = {
                "title": e.title,
                "distance": distance(e.name, one, other),
                "halves": distance(e.name, *real.features[e.name]),
                "samples": e.unit,
                "real": one.count,
                "generated": other.count,
                "size": e.size,
                "protocol": e.protocol,
            }
            if e.name in real.scores and min(one.count, other.count) >= real.scores[e.name].parts:
                sides = {"generated": generated.scores[e.name], "real": real.scores[e.name]}
                score = {side: list(s.result()) for side, s in sides.items()}
                score |= {"parts": real.scores[e.name].parts, "protocol": e.protocol}
        return found, score

    def _protocol(self, real: ClipStatistics, generated: ClipStatistics) -> dict:
        manifest = self.reference.folder / "manifest.json"
        return {
            "num_frames": self.num_frames,
            "size": self.size,
            "generated": self.videos.describe()
            | {
                "videos": generated.clips,
                "frames": generated.frames,
                "stride": self.settings.stride,
                "size": list(self.videos.shape[1:]),
                "resize": _resize(self.videos.shape[1:], self.size),
                "skipped": [list(item) for item in self.videos.skipped],
            },
            "real": {
                "path": str(self.reference.folder),
                "split": self.reference.split,
                "clips": len({window.clip for window in self.windows}),
                "windows": real.clips,
                "frames": real.frames,
                "stride": self.interval,
                "flips": self.flips,
                "size": [self.reference.stored_size] * 2,
                "resize": _resize((self.reference.stored_size,) * 2, self.size),
                "seed": self.settings.seed,
                "manifest_sha256": file_sha256(manifest),
            },
        }

    def _memorisation(self) -> dict | None:
        """The first process looks; the others wait for what it finds."""
        if not len(self.samples):
            return None
        from medsora.evaluation.memorisation import nearest_recordings

        def look() -> dict:
            shown = self.progress and self.processes.is_first
            with step_bar("nearest recordings", 0, len(self.reference.clips), shown, "recording") as bar:
                return nearest_recordings(
                    self.samples, self.reference, self.windows, self.interval, self.flips, bar.update
                )

        return self.processes.from_first(look)

    def _warnings(self, real: ClipStatistics, generated: ClipStatistics, generation: dict) -> list[str]:
        found = []
        for item in generation.values():
            if not item["protocol"].get("proxy"):
                recorded = min(item["real"], self._different_frames()) if item["samples"] == "frame" else item["real"]
                found += results.too_few(item["title"], item["samples"], item["size"], recorded, item["generated"])
        sizes = (self.reference.stored_size, *self.videos.shape[1:])
        if len(set(sizes)) > 1:
            found.append(
                f"Recordings are stored at {sizes[0]} x {sizes[0]} and videos at {sizes[1]} x {sizes[2]}; resizing one "
                "side only changes its detail, and distances with it."
            )
        if self.videos.kind == "folder" and any(str(n).endswith((".mp4", ".gif")) for n in self.videos.names):
            found.append(
                "The generated videos were read from compressed files, which the recordings here were not: part of the "
                "distances is compression; evaluate the run itself, or lossless files, to leave it out."
            )
        clips = len({window.clip for window in self.windows})
        if clips < 10:
            found.append(f"The recorded windows are of {clips} clip(s) and overlap: they say little of other patients.")
        if self.videos.skipped:
            found.append(results.not_used(self.videos.skipped))
        return found

    def _different_frames(self) -> int:
        """How many frames the recorded windows show; windows that overlap show some of them several times."""
        steps = self.interval * np.arange(self.num_frames)
        return len({(w.clip, w.flip, frame) for w in self.windows for frame in (w.start + steps).tolist()})


def compare_spectra(real: ClipStatistics, generated: ClipStatistics) -> dict:
    """Mean power by band of both sides, and their difference in decibels."""
    means = {"real": real.energies / real.frames, "generated": generated.energies / generated.frames}
    difference = 10 * np.log10((means["generated"] + ROUNDING) / (means["real"] + ROUNDING))
    return {
        "frequency": band_centres(len(difference)).tolist(),
        **{side: values.tolist() for side, values in means.items()},
        "difference": difference.tolist(),
        "distance": float(np.abs(difference).mean()),
    }


def compare_motion(real: ClipStatistics, generated: ClipStatistics, flow: str) -> dict | None:
    """Each statistic's distribution over clips on both sides, and how far these are apart; None for single frames."""
    if not real.motion["speed"] or not generated.motion["speed"]:
        return None

    def described(values: Sequence[float]) -> dict:
        quantiles = np.quantile(values, [0.05, 0.5, 0.95]).tolist()
        return {"mean": float(np.mean(values)), "deviation": float(np.std(values)), "quantiles": quantiles}

    return {
        "flow": flow,
        "generated": {name: described(values) for name, values in generated.motion.items()},
        "real": {name: described(values) for name, values in real.motion.items()},
        "wasserstein": {name: wasserstein(real.motion[name], generated.motion[name]) for name in real.motion},
    }


def flow_estimate(settings: EvaluateSettings) -> Callable[[np.ndarray], np.ndarray]:
    """The estimator of motion that the settings name."""
    from medsora.alignment.flow import estimate_flow

    return partial(estimate_flow, estimator=settings.flow, weights=settings.flow_weights)


def _resize(before: Sequence[int], size: int) -> str:
    if tuple(before) == (size, size):
        return "none"
    crop = ", long side cut at the centre" if before[0] != before[1] else ""
    return f"short side to {size}, area (down) or bicubic (up){crop}"
