"""What the operators ask of their arguments, and the sentence a caller reads when one does not fit."""

from __future__ import annotations

import math

import torch

from medsora_ops.paths import ScanPath

Tensor = torch.Tensor


def tensor(name: str, value: Tensor, dimensions: str) -> None:
    """`value` must be a real floating point tensor with the named dimensions, such as "(batch, tokens, channels)".

    A name "..." stands for any number of dimensions, none included.
    """
    if not isinstance(value, Tensor):
        raise ValueError(f"{name}: got {type(value).__name__}, wants a tensor {dimensions}")
    if not value.is_floating_point():
        raise ValueError(f"{name}: got {value.dtype}, wants a floating point dtype")
    wanted = 1 + dimensions.count(", ")
    if value.dim() < wanted - 1 if "..." in dimensions else value.dim() != wanted:
        raise ValueError(f"{name}: got shape {tuple(value.shape)}, wants {dimensions}")


def shape(name: str, value: Tensor, wanted: tuple[int, ...], dimensions: str) -> None:
    """`value` must be a floating point tensor of exactly the shape `wanted`."""
    tensor(name, value, dimensions)
    if tuple(value.shape) != wanted:
        raise ValueError(f"{name}: got shape {tuple(value.shape)}, wants {wanted} {dimensions}")


def goes_with(name: str, value: Tensor, other_name: str, other: Tensor, *, or_float32: bool = False) -> None:
    """`value` must live on the device of `other` and have its dtype (or float32, where parameters may be wider)."""
    if value.device != other.device:
        raise ValueError(f"{name}: got device {value.device}, wants that of {other_name}, {other.device}")
    if value.dtype != other.dtype and not (or_float32 and value.dtype == torch.float32):
        also = " or torch.float32" if or_float32 and other.dtype != torch.float32 else ""
        raise ValueError(f"{name}: got {value.dtype}, wants that of {other_name}, {other.dtype}{also}")


def divisor(name: str, value: int, total: int, of_what: str) -> None:
    """`value` must be an integer of at least 1 that divides `total`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1 or total % value:
        raise ValueError(f"{name}: got {value!r}, wants an integer of at least 1 that divides {of_what}, {total}")


def path(value: ScanPath, name: str, tokens: int | None = None, where: str = "") -> None:
    """`value` must be a ScanPath; over `tokens` tokens if that is given, those of the argument `where`."""
    if not isinstance(value, ScanPath):
        raise ValueError(f"{name}: got {type(value).__name__}, wants a ScanPath")
    if tokens is not None and math.prod(value.grid) != tokens:
        raise ValueError(
            f"{name}: got a path over the grid {value.grid} of {math.prod(value.grid)} tokens,"
            f" wants one over the {tokens} tokens of {where}"
        )
