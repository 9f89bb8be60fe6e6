"""Measures of quality: how close a reconstruction is to its original, and generated clips to recorded ones."""

from medsora.metrics.fidelity import psnr, ssim
from medsora.metrics.frechet import frechet_distance, frechet_motion_distance
from medsora.metrics.inception_score import InceptionScore
from medsora.metrics.moments import Moments
from medsora.metrics.motion import MotionFeatures
from medsora.metrics.nearest import NearestWindows
from medsora.metrics.spectrum import SpectralComparison, band_energies
from medsora.metrics.temporal import temporal_statistics, warping_error, wasserstein

__all__ = [
    "InceptionScore",
    "Moments",
    "MotionFeatures",
    "NearestWindows",
    "SpectralComparison",
    "band_energies",
    "frechet_distance",
    "frechet_motion_distance",
    "psnr",
    "ssim",
    "temporal_statistics",
    "warping_error",
    "wasserstein",
]
