"""Operators for state-space and frequency-domain video models: scans along paths, spectral filters, their backends."""

from medsora_ops.backends import backend_report, use_backend
from medsora_ops.modules import GridMamba2
from medsora_ops.paths import ScanPath, raster_order, snake_order, spiral_order
from medsora_ops.reorder import gather, merge
from medsora_ops.scan import path_scan, ssd_scan
from medsora_ops.spectral import focal_frequency_loss, spectral_filter
from medsora_ops.version import __version__
from medsora_ops.warmup import warmup

__all__ = [
    "GridMamba2",
    "ScanPath",
    "__version__",
    "backend_report",
    "focal_frequency_loss",
    "gather",
    "merge",
    "path_scan",
    "raster_order",
    "snake_order",
    "spectral_filter",
    "spiral_order",
    "ssd_scan",
    "use_backend",
    "warmup",
]
