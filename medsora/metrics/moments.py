"""Mean and covariance of features that pass by once, so that a set of any size needs the memory of one matrix."""

from __future__ import annotations

import numpy as np


class Moments:
    """Running mean and covariance of rows, in float64, by the update of Chan, Golub & LeVeque 1979.

    size: numbers D in a row. Attributes: count, mean (D,). Two halves of a set joined by `merge` give what the whole
    would, within rounding.
    """

    def __init__(self, size: int):
        self.count = 0
        self.mean = np.zeros(size)
        self._scatter = np.zeros((size, size))

    def add(self, rows: np.ndarray) -> None:
        """Takes in rows (N, D), finite numbers; ValueError for other shapes or values."""
        rows = np.asarray(rows, dtype=np.float64)
        if rows.ndim != 2 or rows.shape[1] != len(self.mean):
            raise ValueError(f"rows: got shape {rows.shape}, wants (N, {len(self.mean)})")
        if not np.isfinite(rows).all():
            raise ValueError("rows: got values that are not finite")
        if len(rows):
            mean = rows.mean(axis=0)
            self._join(len(rows), mean, (rows - mean).T @ (rows - mean))

    def merge(self, other: Moments) -> None:
        """Takes in the rows that another one has seen."""
        if other.count:
            self._join(other.count, other.mean, other._scatter)

    @property
    def covariance(self) -> np.ndarray:
        """Sample covariance (D, D), divided by N - 1; ValueError for fewer than 2 rows."""
        if self.count < 2:
            raise ValueError(f"count: got {self.count} rows, wants at least 2 for a covariance")
        return self._scatter / (self.count - 1)

    def _join(self, count: int, mean: np.ndarray, scatter: np.ndarray) -> None:
        total, apart = self.count + count, mean - self.mean
        self._scatter += scatter + np.outer(apart, apart) * (self.count * count / total)
        self.mean = self.mean + apart * (count / total)
        self.count = total
