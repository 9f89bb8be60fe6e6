"""Operators in the frequency domain: a learned spectral filter and the focal frequency loss."""

from medsora_ops.spectral import cuda, native, triton  # noqa: F401  (they join the backend table)
from medsora_ops.spectral.op import focal_frequency_loss, spectral_filter

__all__ = ["focal_frequency_loss", "spectral_filter"]
