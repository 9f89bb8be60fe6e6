"""How does the video VAE restore detail? Residual blocks that sit behind blocks of a backbone that stays as it is.

Structure A (`latent`) follows the mid block of the encoder and of the decoder, structure B (`detail`) each up block of
the decoder. A spectral block is x + mix(spectral_filter(x, gain)); gain and mix start at zero, so that a fresh block
changes no bit. The filter carries its own x, so mix learns at the first step and gain from the second.

Gains are stored as real numbers: a complex parameter would lose its imaginary part in `module.to(torch.bfloat16)`.
"""

import torch
from diffusers.models.autoencoders.autoencoder_kl_cogvideox import CogVideoXCausalConv3d
from torch import Tensor, nn
from torch.nn import functional

from medsora_ops import spectral_filter

COMPENSATIONS = ("spectral", "conv", "none")


class SpectralLatentCompensation(nn.Module):
    """Structure A in the frequency domain: a complex gain for each channel and frequency, then a pointwise mix.

    channels: feature channels.
    grid: (rows, columns) of the canonical image whose half spectrum holds the gain; features of another size get it
        interpolated in frequency, so one set of weights serves every resolution.
    forward(x (B, C, T, H, W), cache) -> (tensor of x's shape and dtype, None): nothing is carried between chunks.
    """

    def __init__(self, channels: int, grid: tuple[int, int] = (16, 16)):
        super().__init__()
        rows, columns = grid
        self.columns = columns
        self.gain = nn.Parameter(torch.zeros(channels, rows, columns // 2 + 1, 2))
        self.mix = zero_(nn.Conv3d(channels, channels, kernel_size=1))

    def forward(self, x: Tensor, cache: None = None) -> tuple[Tensor, None]:
        gain = at_least_float32(self.gain)
        by_row = periodic_interpolation(x.shape[-2], gain.shape[1], like=gain)
        by_column = half_spectrum_interpolation(x.shape[-1], self.columns, like=gain)
        weight = torch.einsum("crkp,hr,wk->chwp", gain, by_row, by_column)
        return x + self.mix(spectral_filter(x, torch.view_as_complex(weight.contiguous()))), None


class SpectralDetailCompensation(nn.Module):
    """Structure B in the frequency domain: a real gain for each channel and radial band, then a causal 3x3x3 mix.

    Bands are spaced evenly from frequency zero to the corner of the spectrum and joined linearly, so high frequencies
    can be lifted on purpose at any resolution.
    forward(x (B, C, T, H, W), cache) -> (tensor of x's shape and dtype, cache for the next chunk): the two frames that
    the mix needs from the chunk before. Without a cache the first frame is repeated, as in the backbone.
    """

    def __init__(self, channels: int, bands: int = 8):
        super().__init__()
        self.gain = nn.Parameter(torch.zeros(channels, bands))
        self.mix = CogVideoXCausalConv3d(channels, channels, kernel_size=3)
        zero_(self.mix.conv)

    def forward(self, x: Tensor, cache: Tensor | None = None) -> tuple[Tensor, Tensor]:
        gain = at_least_float32(self.gain)
        bands = radial_bands(x.shape[-2], x.shape[-1], gain.shape[1], like=gain)
        weight = torch.einsum("cb,bhw->chw", gain, bands)
        correction, cache = self.mix(spectral_filter(x, weight), conv_cache=cache)
        return x + correction, cache


class ConvLatentCompensation(nn.Module):
    """Structure A as released: Conv2d-ReLU-Conv2d-ReLU on frames folded into channels, as a residual.

    folded_frames: how many consecutive frames one image of folded channels holds. The released block folds a whole
        chunk and so is bound to its frame count; 1, the default, treats each frame alone and serves every count. A last
        group that is not full is filled with its last frame.
    scale: a gain for each folded channel, zero at first: after a final ReLU a zeroed convolution could never learn.
        Weights of the released form, which has none, go with a scale of one.
    """

    def __init__(self, channels: int, folded_frames: int = 1):
        super().__init__()
        folded = channels * folded_frames
        self.folded_frames = folded_frames
        self.conv1 = nn.Conv2d(folded, folded, kernel_size=3, padding=1)
        self.conv2 = nn.Conv2d(folded, folded, kernel_size=3, padding=1)
        self.scale = nn.Parameter(torch.zeros(folded, 1, 1))

    def forward(self, x: Tensor, cache: None = None) -> tuple[Tensor, None]:
        batch, channels, frames, height, width = x.shape
        missing = -frames % self.folded_frames
        filled = torch.cat([x, x[:, :, -1:].expand(-1, -1, missing, -1, -1)], dim=2) if missing else x
        grouped = filled.unflatten(2, (-1, self.folded_frames)).movedim(2, 1)  # (B, groups, C, frames in group, H, W)
        images = grouped.reshape(-1, channels * self.folded_frames, height, width)
        correction = self.scale * functional.relu(self.conv2(functional.relu(self.conv1(images))))
        correction = correction.reshape(grouped.shape).movedim(1, 2).reshape(filled.shape)
        return x + correction[:, :, :frames].to(x.dtype), None


class ConvDetailCompensation(nn.Module):
    """Structure B as released: BatchNorm3d-ReLU-Dropout-Conv3d, as a residual with a zeroed, causal convolution.

    In training the batch statistics tie the frames of a chunk together; one call and chunk by chunk agree in `eval()`.
    """

    def __init__(self, channels: int, dropout: float = 0.1):
        super().__init__()
        self.norm = nn.BatchNorm3d(channels)
        self.dropout = nn.Dropout(dropout)
        self.mix = CogVideoXCausalConv3d(channels, channels, kernel_size=3)
        zero_(self.mix.conv)

    def forward(self, x: Tensor, cache: Tensor | None = None) -> tuple[Tensor, Tensor]:
        correction, cache = self.mix(self.dropout(functional.relu(self.norm(x))), conv_cache=cache)
        return x + correction, cache


def attach_compensation(
    vae: nn.Module, kind: str, spectrum_grid: tuple[int, int], bands: int, folded_frames: int
) -> None:
    """Give the backbone `vae` (an AutoencoderKLCogVideoX) compensation blocks of `kind`, one of `COMPENSATIONS`.

    Each becomes the submodule `compensation` of the block it follows, called by a forward hook, so that every key of
    the backbone keeps its name. A hook sees the chunk's `conv_cache` and adds its own part to the one handed on.
    """
    if kind == "none":
        return
    for block, channels in ((m, m.resnets[-1].out_channels) for m in (vae.encoder.mid_block, vae.decoder.mid_block)):
        if kind == "spectral":
            block.compensation = SpectralLatentCompensation(channels, spectrum_grid)
        else:
            block.compensation = ConvLatentCompensation(channels, folded_frames)
    for block in vae.decoder.up_blocks:
        channels = block.resnets[-1].out_channels
        block.compensation = (
            SpectralDetailCompensation(channels, bands) if kind == "spectral" else ConvDetailCompensation(channels)
        )
    for block in (vae.encoder.mid_block, vae.decoder.mid_block, *vae.decoder.up_blocks):
        block.register_forward_hook(_compensate, with_kwargs=True)


def _compensate(block: nn.Module, args: tuple, kwargs: dict, output: tuple[Tensor, dict]) -> tuple[Tensor, dict]:
    """Forward hook of a backbone block, called as block(hidden, temb, zq, conv_cache) -> (hidden, new conv_cache)."""
    hidden, new_cache = output
    cache = kwargs.get("conv_cache", args[3] if len(args) > 3 else None) or {}
    hidden, kept = block.compensation(hidden, cache.get("compensation"))
    return hidden, new_cache if kept is None else new_cache | {"compensation": kept}


def zero_(convolution: nn.Module) -> nn.Module:
    """Set the weight and bias of a convolution to zero; returns it."""
    nn.init.zeros_(convolution.weight)
    nn.init.zeros_(convolution.bias)
    return convolution


def at_least_float32(gain: Tensor) -> Tensor:
    """Gains are applied in float32, whatever a model is cast to; float64 stays for gradient checks."""
    return gain if gain.dtype == torch.float64 else gain.float()


def periodic_interpolation(size: int, grid: int, *, like: Tensor) -> Tensor:
    """(size, grid) matrix from values at the `grid` DFT frequencies to linear values at the `size` ones; periodic."""
    position = torch.fft.fftfreq(size, dtype=like.dtype, device=like.device)[:, None] * grid
    distance = (position - torch.arange(grid, dtype=like.dtype, device=like.device) + grid / 2) % grid - grid / 2
    return (1 - distance.abs()).clamp(min=0)


def half_spectrum_interpolation(size: int, grid: int, *, like: Tensor) -> Tensor:
    """The same between half spectra, (size // 2 + 1, grid // 2 + 1); beyond the last grid frequency its value holds."""
    last = grid // 2
    position = torch.fft.rfftfreq(size, dtype=like.dtype, device=like.device)[:, None] * grid
    return (1 - (position.clamp(max=last) - torch.arange(last + 1, dtype=like.dtype, device=like.device)).abs()).clamp(
        min=0
    )


def radial_bands(height: int, width: int, bands: int, *, like: Tensor) -> Tensor:
    """(bands, height, width // 2 + 1): how much each band owns of each frequency; sums to 1 over the bands.

    Radius 0 is the mean of the image, radius 1 the corner of the spectrum (half a cycle a pixel along both axes).
    """
    rows = torch.fft.fftfreq(height, dtype=like.dtype, device=like.device)[:, None]
    columns = torch.fft.rfftfreq(width, dtype=like.dtype, device=like.device)
    radius = (rows.square() + columns.square()).mul(2).sqrt() * (bands - 1)
    centres = torch.arange(bands, dtype=like.dtype, device=like.device)[:, None, None]
    return (1 - (radius - centres).abs()).clamp(min=0)
