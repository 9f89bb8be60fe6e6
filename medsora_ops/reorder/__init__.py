"""Tokens in the order in which a path visits them, and back."""

from medsora_ops.reorder import cuda, native, triton  # noqa: F401  (they join the backend table)
from medsora_ops.reorder.op import gather, merge

__all__ = ["gather", "merge"]
