"""Launches of the spectral filter's kernels: sizes, strides, scratch, and how the work is cut."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from medsora_ops import launch
from medsora_ops.spectral.tables import fourier_tables

_SUMMED = 256  # numbers of a weight's gradient that a program sums


@dataclass(frozen=True)
class FilterConfig:
    """How the work is cut: rows, columns, image columns and terms of one product, programs for each multiprocessor."""

    rows: int = 64
    columns: int = 16
    width: int = 64
    terms: int = 32
    programs: int = 2
    num_warps: int = 4

    def options(self) -> dict:
        return dict(num_warps=self.num_warps, num_stages=1, enable_fp_fusion=True)


CONFIG = FilterConfig()


@dataclass(frozen=True)
class Sizes:
    """Of the images, and of the blocks that hold them."""

    channels: int
    depth: int
    count: int
    height: int
    width: int
    piece: int
    config: FilterConfig

    @classmethod
    def of(cls, config: FilterConfig, *images: Tensor) -> Sizes:
        """images: (B, C, D, H, W), of one shape."""
        batch, channels, depth, height, width = images[0].shape
        steps = [step for x in images for step in _steps(x)]
        piece = math.gcd(16 // images[0].element_size(), width, *steps)
        return cls(channels, depth, batch * depth, height, width, piece, config)

    @property
    def half(self) -> int:
        return self.width // 2 + 1

    @property
    def packs(self) -> int:
        """Of the images of one channel."""
        return -(-self.count // (self.blocks["ROWS"] // self.height))

    @property
    def blocks(self) -> dict[str, int]:
        rows, width = max(32, _power(self.height)), max(16, _power(self.width))
        block = self.config.columns
        columns = -(-self.half // block) * block
        return dict(
            ROWS=rows,
            WIDTH=width,
            COLUMNS=columns,
            BLOCK_H=min(self.config.rows, rows),
            BLOCK_K=block,
            TERMS=min(self.config.terms, width),
        )

    def tables(self, device: torch.device) -> Tensor:
        blocks = self.blocks
        return fourier_tables(self.height, self.width, blocks["ROWS"], blocks["WIDTH"], blocks["COLUMNS"], device)

    def steps(self, x: Tensor) -> list[int]:
        return [step // self.piece for step in _steps(x)]


def filtered(x: Tensor, weight: Tensor, config: FilterConfig, *, conjugate: bool = False) -> Tensor:
    """x + the filter of x by the weight, or by its conjugate."""
    images = five_dimensions(x)
    y = x.new_empty(x.shape)
    sizes = Sizes.of(config, images)
    blocks, width = sizes.blocks, max(16, _power(sizes.width))
    programs = programs_for(sizes.channels * sizes.packs, x, config)
    rows, columns, block = blocks["ROWS"], blocks["COLUMNS"], blocks["BLOCK_K"]
    scratch = x.new_empty(programs * rows * (4 * block + 2 * columns), dtype=torch.float32)
    with launch.on_device(x):
        launch.launch(
            _kernels().spectral_filter_kernel,
            programs,
            *(images, *sizes.steps(images), y, as_read(weight), sizes.tables(x.device), scratch),
            *(sizes.channels, sizes.depth, sizes.count, sizes.height, sizes.width // sizes.piece, sizes.half),
            sizes.packs,
            PIECE=sizes.piece,
            COMPLEX=weight.is_complex(),
            CONJUGATE=conjugate,
            BLOCK_W=min(config.width, width),
            **blocks,
            **config.options(),
            **launch.at_most(x.device, 255),  # two programs share a multiprocessor and may take all that it has
        )
    return y


def weight_gradient(grad: Tensor, x: Tensor, weight: Tensor, config: FilterConfig) -> Tensor:
    """The sum over all images of a channel of conj(spectrum of x) * spectrum of grad, with its multiplicities."""
    images, grads = five_dimensions(x), five_dimensions(grad)
    sizes = Sizes.of(config, images, grads)
    blocks, wide = sizes.blocks, weight.is_complex()
    rows, columns, block = blocks["ROWS"], blocks["COLUMNS"], blocks["BLOCK_K"]
    # As many parts of the packs as keep every program busy.
    units = sizes.channels * (columns // block) * (rows // blocks["BLOCK_H"])
    most = config.programs * launch.multiprocessors(x.device)
    parts = min(sizes.packs, -(-most // max(1, units)))
    programs = programs_for(parts * units, x, config)
    found = x.new_empty(parts, sizes.channels, 2, rows, columns, dtype=torch.float32)
    scratch = x.new_empty(programs * rows * 4 * block, dtype=torch.float32)
    out = x.new_empty(weight.shape, dtype=torch.complex64 if wide else torch.float32)
    with launch.on_device(x):
        launch.launch(
            _kernels().spectral_weight_grad_kernel,
            programs,
            *(images, *sizes.steps(images), grads, *sizes.steps(grads), found, sizes.tables(x.device), scratch),
            *(sizes.channels, sizes.depth, sizes.count, sizes.height, sizes.width // sizes.piece, sizes.packs, parts),
            PIECE=sizes.piece,
            COMPLEX=wide,
            **blocks,
            **config.options(),
        )
        launch.launch(
            _kernels().spectral_weight_sum_kernel,
            -(-out.numel() // _SUMMED),
            *(found, torch.view_as_real(out) if wide else out, sizes.channels, parts, sizes.height, sizes.width),
            COMPLEX=wide,
            ROWS=rows,
            COLUMNS=columns,
            BLOCK=_SUMMED,
            enable_fp_fusion=True,
        )
    return out.to(weight.dtype)


def five_dimensions(x: Tensor) -> Tensor:
    """(B, C, ..., H, W) as (B, C, D, H, W), read where it lies if strides allow it and points of a row lie together."""
    x = x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()
    return x.reshape(*x.shape[:2], math.prod(x.shape[2:-2]), *x.shape[-2:])


def _steps(images: Tensor) -> list[int]:
    """Strides of all dimensions but the last; that of a dimension of one entry means nothing."""
    return [0 if size == 1 else step for size, step in zip(images.shape[:-1], images.stride()[:-1], strict=True)]


def as_read(weight: Tensor) -> Tensor:
    """The weight as float32, a complex one as pairs; a lazy conjugate is made true, for its address does not tell."""
    if weight.is_complex():
        return torch.view_as_real(weight.detach().resolve_conj().contiguous())
    return weight.detach().float().contiguous()


def programs_for(units: int, x: Tensor, config: FilterConfig) -> int:
    return min(units, config.programs * launch.multiprocessors(x.device))


def _power(size: int) -> int:
    return 1 << (size - 1).bit_length()


def _kernels():
    from medsora_ops.spectral import spectral_kernels

    return spectral_kernels
