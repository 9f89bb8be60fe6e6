"""The Mamba-2 scan over plain sequences and, fused with what surrounds it, along paths over a grid of tokens."""

from medsora_ops.scan import native, triton  # noqa: F401  (they join the backend table)
from medsora_ops.scan.op import path_scan, ssd_scan

__all__ = ["path_scan", "ssd_scan"]
