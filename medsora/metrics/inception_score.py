"""The Inception score: are single frames recognised as something, and different frames as different things?"""

from __future__ import annotations

import numpy as np

PARTS = 10  # as its authors have it


class InceptionScore:
    """exp(mean KL(p(y|x) || p(y))), from sums only.

    After Salimans et al. 2016, "Improved Techniques for Training GANs".

    splits: the score is taken of so many parts, frame i in part i mod splits, and mean and deviation over parts are
    reported, as its authors do (they cut the set in a row; parts that take turns need no knowledge of its size). Which
    frames share a part, and with it the mean a little, depends on how they were spread over the scores that are merged.
    """

    def __init__(self, classes: int, splits: int = PARTS):
        if splits < 1:
            raise ValueError(f"splits: got {splits}, wants at least 1")
        self.count, self.parts = 0, splits
        self._probability = np.zeros((splits, classes))
        self._negative_entropy = np.zeros(splits)
        self._counts = np.zeros(splits, dtype=np.int64)

    def add(self, probabilities: np.ndarray) -> None:
        """Takes in class probabilities (N, classes), each row 0 or more with sum 1; ValueError for others."""
        p = np.asarray(probabilities, dtype=np.float64)
        if p.ndim != 2 or p.shape[1] != self._probability.shape[1]:
            raise ValueError(f"probabilities: got shape {p.shape}, wants (N, {self._probability.shape[1]})")
        if not ((p >= 0).all() and np.allclose(p.sum(axis=1), 1, atol=1e-3)):
            raise ValueError("probabilities: got rows that are no probabilities, wants numbers from 0 with sum 1")
        part = (self.count + np.arange(len(p))) % len(self._counts)
        np.add.at(self._probability, part, p)
        np.add.at(self._negative_entropy, part, np.where(p > 0, p * np.log(np.where(p > 0, p, 1)), 0).sum(axis=1))
        np.add.at(self._counts, part, 1)
        self.count += len(p)

    def merge(self, other: InceptionScore) -> None:
        """Takes in the frames that another one has seen, part by part."""
        self._probability += other._probability
        self._negative_entropy += other._negative_entropy
        self._counts += other._counts
        self.count += other.count

    def result(self) -> tuple[float, float]:
        """Mean and (population) deviation of the score over parts; from 1 to the number of classes.

        Raises ValueError for fewer frames than parts.
        """
        if not self._counts.all():
            raise ValueError(f"count: got {self.count} frames, wants one or more a part ({len(self._counts)})")
        marginal = self._probability / self._counts[:, None]
        entropy = np.where(marginal > 0, marginal * np.log(np.where(marginal > 0, marginal, 1)), 0).sum(axis=1)
        scores = np.exp(self._negative_entropy / self._counts - entropy)
        return float(scores.mean()), float(scores.std())
