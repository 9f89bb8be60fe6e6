"""Are generated clips copies of recorded ones? Each sample's nearest recording, beside how near recordings are to
one another."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from medsora.evaluation.reference import Reference, Window
from medsora.metrics import NearestWindows
from medsora.metrics.nearest import SIDE, Match

PAGE = 1280  # pixels across a picture
SHOWN = 4  # pairs in the picture, the nearest first
COPY = 0.05  # a sample nearer than so large a share of the recordings are to each other is looked at as a copy


def nearest_recordings(
    samples: np.ndarray,
    reference: Reference,
    windows: list[Window],
    interval: int,
    flips: bool,
    passed: Callable[[int], None],
) -> dict:
    """The nearest recorded window of each sample among all windows of the reference, at 16 x 16 pixels.

    samples: uint8 (N, T, size, size, 3). windows: recorded ones to compare the distances with; each looks for its
    nearest among those of other times. passed: called with 1 for each recording compared with.
    Returns "side" (16), "samples" ([{"distance", "clip", "source", "split", "start", "flip"}], distances in grey levels
    of 255, root mean square), "recorded" (distances of recorded windows; those that have no other are left out), and,
    where there are some, "threshold" (their 5 per cent quantile) and "nearer" (how many samples lie below it).
    """
    frames = samples.shape[1]
    chosen = [windows[i * len(windows) // len(samples)] for i in range(min(len(samples), len(windows)))]
    recorded = np.stack([reference.read(window, frames, interval) for window in chosen])
    of_samples = NearestWindows(samples, interval, flips)
    of_recorded = NearestWindows(recorded, interval, flips, [(w.clip, w.start) for w in chosen])
    for name, clip in reference.recordings():
        of_samples.scan(name, clip)
        of_recorded.scan(name, clip)
        passed(1)
    distances = [match.distance for match in of_recorded.matches if np.isfinite(match.distance)]
    found = {"side": SIDE, "samples": [_record(m, reference) for m in of_samples.matches], "recorded": distances}
    if distances:
        threshold = float(np.quantile(distances, COPY))
        nearer = sum(match.distance < threshold for match in of_samples.matches)
        found |= {"threshold": threshold, "nearer": nearer}
    return found


def draw_pairs(path: Path, found: dict, samples: np.ndarray, reference: Reference, interval: int) -> list[int]:
    """A picture of the samples nearest to a recording, each above that recording; returns their numbers."""
    from medsora.media import contact_sheet

    order = np.argsort([record["distance"] for record in found["samples"]])[:SHOWN]
    rows, labels = [], []
    for number in map(int, order):
        record = found["samples"][number]
        window = Window(record["clip"], record["start"], record["flip"])
        rows += [samples[number], reference.read(window, samples.shape[1], interval)]
        mirrored = ", mirrored" if record["flip"] else ""
        labels += [
            f"generated {number}, {record['distance']:.1f} grey levels from",
            f"recorded ({record['split']}): {record['source']}, frame {record['start']}{mirrored}",
        ]
    contact_sheet(path, rows, labels=labels, width=PAGE)
    return [int(number) for number in order]


def _record(match: Match, reference: Reference) -> dict:
    return {
        "distance": match.distance,
        "clip": match.clip,
        "source": reference.describe(match.clip),
        "split": reference.split_of(match.clip),
        "start": match.start,
        "flip": match.flip,
    }
