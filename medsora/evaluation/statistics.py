"""What is kept of a set of clips: sums and moments of features, spectra and motion, whatever number passes by."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from medsora.metrics import InceptionScore, Moments, band_energies, frechet_distance, temporal_statistics
from medsora.metrics.frechet import regularised
from medsora.metrics.temporal import STATISTICS

Estimate = Callable[[np.ndarray], np.ndarray]  # frames -> flow between neighbours


class ClipStatistics:
    """Statistics of one set of clips, taken in batch by batch.

    extractors: of `medsora.evaluation.features`. bands: of the spectrum. halves: keep features in two halves, so that
    the distance between them can be told.
    Attributes: clips, frames; features, {name: [Moments of a half, ...]}; scores, {name: InceptionScore}; energies,
    (bands,) sum over frames; motion, {statistic: one number a clip}.
    """

    def __init__(self, extractors: Sequence, bands: int, halves: bool = False):
        self.clips = self.frames = 0
        self.features = {e.name: [Moments(e.size) for _ in range(1 + halves)] for e in extractors}
        self.scores: dict[str, InceptionScore] = {}
        self.energies = np.zeros(bands)
        self.motion: dict[str, list[float]] = {name: [] for name in STATISTICS}

    def add(self, clips: np.ndarray, extractors: Sequence, estimate: Estimate, half: int = 0) -> None:
        """Takes in clips, uint8 (B, T, H, W, 3)."""
        for extractor in extractors:
            found = extractor(clips)
            self.features[extractor.name][half].add(found["features"])
            if "probabilities" in found:
                p = found["probabilities"]
                self.scores.setdefault(extractor.name, InceptionScore(p.shape[1])).add(p)
        self.energies += band_energies(clips.reshape(-1, *clips.shape[2:]), len(self.energies)).sum(0).numpy()
        if clips.shape[1] > 1:
            for clip in clips:
                for name, value in temporal_statistics(clip, estimate).items():
                    self.motion[name].append(value)
        self.clips += clips.shape[0]
        self.frames += clips.shape[0] * clips.shape[1]

    def merge(self, other: ClipStatistics) -> None:
        """Takes in what another process has gathered."""
        for name, halves in other.features.items():
            for mine, theirs in zip(self.features[name], halves, strict=True):
                mine.merge(theirs)
        for name, score in other.scores.items():
            if name in self.scores:
                self.scores[name].merge(score)
            else:
                self.scores[name] = score
        self.energies += other.energies
        for name, values in other.motion.items():
            self.motion[name] += values
        self.clips += other.clips
        self.frames += other.frames

    def moments(self, name: str) -> Moments:
        """Of the whole set."""
        whole = Moments(len(self.features[name][0].mean))
        for half in self.features[name]:
            whole.merge(half)
        return whole


def distance(name: str, one: Moments, other: Moments) -> float | None:
    """Frechet distance of two sets of features, the proxy's with its own covariance; None for fewer than 2 samples."""
    if min(one.count, other.count) < 2:
        return None
    covariances = [m.covariance for m in (one, other)]
    if name == "motion":
        covariances = [regularised(covariance) for covariance in covariances]
    return frechet_distance(one.mean, covariances[0], other.mean, covariances[1])
