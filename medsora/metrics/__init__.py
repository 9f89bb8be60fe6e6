"""Measures of quality: how close a reconstruction is to its original, and generated clips to recorded ones."""

from medsora.metrics.fidelity import psnr, ssim
from medsora.metrics.frechet import frechet_distance, frechet_motion_distance
from medsora.metrics.motion import MotionFeatures

__all__ = ["MotionFeatures", "frechet_distance", "frechet_motion_distance", "psnr", "ssim"]
