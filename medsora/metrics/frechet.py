"""The Frechet distance between two sets of clips, each seen as a Gaussian in feature space."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from medsora.metrics.motion import MotionFeatures

# Half of each off-diagonal covariance. Some thirty clips, many of them overlapping windows of one recording, cannot
# carry all correlations of the feature; the same fixed share on both sides keeps distances comparable.
SHRINKAGE = 0.5
# Variance added to each value, a tenth of the feature's unit squared: what two small sets of good clips differ by.
FLOOR = 0.01


def frechet_distance(
    mean_a: np.ndarray, covariance_a: np.ndarray, mean_b: np.ndarray, covariance_b: np.ndarray
) -> float:
    """Squared 2-Wasserstein distance of two Gaussians, |m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)).

    After Dowson & Landau 1982, "The Frechet distance between multivariate normal distributions". Means (D,),
    covariances (D, D), symmetric and positive semi-definite, singular ones included: the trace of the root is taken
    as the sum of the singular values of C_a^(1/2) C_b^(1/2), from two symmetric eigenproblems in float64, so no complex
    numbers and no inverse occur. Returns 0 or more. Raises ValueError for shapes that do not fit or values that are not
    finite.
    """
    means = [np.asarray(mean, dtype=np.float64) for mean in (mean_a, mean_b)]
    covariances = [np.asarray(covariance, dtype=np.float64) for covariance in (covariance_a, covariance_b)]
    size = means[0].shape
    if len(size) != 1 or means[1].shape != size or any(c.shape != 2 * size for c in covariances):
        shapes = ", ".join(str(x.shape) for x in (means[0], covariances[0], means[1], covariances[1]))
        raise ValueError(f"means, covariances: got shapes {shapes}, wants (D,), (D, D), (D,), (D, D)")
    if not all(np.isfinite(x).all() for x in (*means, *covariances)):
        raise ValueError("means, covariances: got values that are not finite")
    root_a, root_b = (_root(covariance) for covariance in covariances)
    cross = np.linalg.svd(root_a @ root_b, compute_uv=False).sum()
    apart = np.square(means[0] - means[1]).sum()
    return float(max(0.0, apart + np.trace(covariances[0]) + np.trace(covariances[1]) - 2 * cross))


def frechet_motion_distance(
    real: Sequence[np.ndarray], other: Sequence[np.ndarray], features: MotionFeatures | None = None
) -> float:
    """Frechet distance of the `MotionFeatures` of two sets of clips.

    real, other: at least 2 clips each, uint8 (T, H, W, 3) in [0, 255]; compare clips of equal length, size and frame
    rate. A set's covariance is half of the sample covariance plus half of its diagonal, plus 0.01 on the diagonal, so
    that thirty clips suffice. Returns 0 or more; 0 for equal sets. Raises ValueError for fewer or other clips.
    """
    features = features or MotionFeatures()
    gaussians = []
    for name, clips in (("real", real), ("other", other)):
        if len(clips) < 2:
            raise ValueError(f"{name}: got {len(clips)} clips, wants at least 2")
        gaussians += _gaussian(np.stack([features(clip) for clip in clips]))
    return frechet_distance(*gaussians)


def regularised(covariance: np.ndarray) -> np.ndarray:
    """A sample covariance (D, D) of `MotionFeatures` as the motion distance takes it: half of it, half of its diagonal,
    and 0.01 on the diagonal."""
    diagonal = np.diag(np.diag(covariance))
    return (1 - SHRINKAGE) * covariance + SHRINKAGE * diagonal + FLOOR * np.eye(len(covariance))


def _gaussian(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and regularised covariance of features (N, D)."""
    return values.mean(axis=0), regularised(np.cov(values, rowvar=False))


def _root(covariance: np.ndarray) -> np.ndarray:
    """The symmetric square root; eigenvalues that rounding made negative count as zero."""
    values, vectors = np.linalg.eigh((covariance + covariance.T) / 2)
    return vectors * np.sqrt(np.clip(values, 0, None)) @ vectors.T
