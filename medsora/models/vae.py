"""The video VAE: the CogVideoX causal 3D autoencoder with frequency compensation behind its blocks.

It works in chunks of 8 pixel frames (plus one): valid clips have 1, 8k or 8k + 1 frames. It is causal between chunks
only, so an image's latent is not the first latent of its clip.
"""

from collections.abc import Iterator
from fractions import Fraction
from typing import Self

import torch
from diffusers import AutoencoderKLCogVideoX, ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.autoencoders.vae import DecoderOutput
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from torch import Tensor, nn
from torch.nn import functional

from medsora.models.compensation import COMPENSATIONS, attach_compensation
from medsora.models.convolution import take_small_videos
from medsora.pretrained import locate

# A pipeline recognises a component class only if the module that defines it also holds the name ModelMixin.
__all__ = ["ConfigMixin", "FrequencyCompensatedVAE", "ModelMixin"]

CHUNK = 8  # pixel frames encoded together; they become two latent frames
SMALLEST_TILE = 4  # latents along a side
TILE_OVERLAP = 0.25

COMPENSATION_SETTINGS = ("compensation", "spectrum_grid", "detail_bands", "folded_frames")

_DOWN, _UP = "CogVideoXDownBlock3D", "CogVideoXUpBlock3D"
PRESETS = {
    "tiny": dict(
        down_block_types=(_DOWN,) * 3,
        up_block_types=(_UP,) * 3,
        block_out_channels=(32, 64, 64),
        latent_channels=8,
        layers_per_block=1,
        norm_num_groups=8,
        sample_height=64,
        sample_width=64,
        pixel_unshuffle=2,
        spectrum_grid=(8, 8),
        scaling_factor=1.0,
    ),
    "cogvideox": dict(),
}


class FrequencyCompensatedVAE(AutoencoderKLCogVideoX):
    """Compress clips 8x in space and 4x in time, and back, with residual compensation of lost detail.

    compensation: "spectral" (learned gains on the spectrum of features), "conv" (plain convolutions), or "none".
    spectrum_grid: (rows, columns) of the image whose half spectrum holds the latent gains.
    detail_bands: radial bands of the detail gains.
    folded_frames: frames folded into channels by the convolutional latent compensation.
    pixel_unshuffle: side of the pixel blocks folded into channels before the encoder and unfolded after the decoder.
    All other arguments are those of diffusers' `AutoencoderKLCogVideoX`; `sample_height` and `sample_width` are in
    pixels. A fresh compensation reproduces the backbone bit for bit, but for one small video on a CPU, whose
    convolutions are summed in another order (`medsora.models.convolution`).
    `config.scaling_factor`: latents times this have about unit variance.
    Raises ValueError for settings that do not fit.
    """

    @register_to_config
    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int = 3,
        down_block_types: tuple[str, ...] = (_DOWN,) * 4,
        up_block_types: tuple[str, ...] = (_UP,) * 4,
        block_out_channels: tuple[int, ...] = (128, 256, 256, 512),
        latent_channels: int = 16,
        layers_per_block: int = 3,
        act_fn: str = "silu",
        norm_eps: float = 1e-6,
        norm_num_groups: int = 32,
        temporal_compression_ratio: float = 4,
        sample_height: int = 480,
        sample_width: int = 720,
        scaling_factor: float = 1.15258426,
        shift_factor: float | None = None,
        latents_mean: tuple[float, ...] | None = None,
        latents_std: tuple[float, ...] | None = None,
        force_upcast: float = True,
        use_quant_conv: bool = False,
        use_post_quant_conv: bool = False,
        invert_scale_latents: bool = False,
        compensation: str = "spectral",
        spectrum_grid: tuple[int, int] = (16, 16),
        detail_bands: int = 8,
        folded_frames: int = 1,
        pixel_unshuffle: int = 1,
    ):
        if compensation not in COMPENSATIONS:
            raise ValueError(f"compensation: got {compensation!r}, wants one of {', '.join(COMPENSATIONS)}")
        if temporal_compression_ratio != 4 or len(block_out_channels) < 3:
            raise ValueError(
                "temporal_compression_ratio, block_out_channels: got "
                f"{temporal_compression_ratio} with {len(block_out_channels)} blocks, wants 4 with at least 3 blocks"
            )
        for name, value in (("pixel_unshuffle", pixel_unshuffle), ("folded_frames", folded_frames)):
            if value < 1:
                raise ValueError(f"{name}: got {value}, wants at least 1")
        if len(spectrum_grid) != 2 or min(spectrum_grid) < 2 or detail_bands < 2:
            raise ValueError(
                f"spectrum_grid, detail_bands: got {spectrum_grid} and {detail_bands}, wants two sides of at least 2 "
                "and at least 2 bands"
            )
        super().__init__(
            in_channels=in_channels * pixel_unshuffle**2,
            out_channels=out_channels * pixel_unshuffle**2,
            down_block_types=down_block_types,
            up_block_types=up_block_types,
            block_out_channels=block_out_channels,
            latent_channels=latent_channels,
            layers_per_block=layers_per_block,
            act_fn=act_fn,
            norm_eps=norm_eps,
            norm_num_groups=norm_num_groups,
            temporal_compression_ratio=temporal_compression_ratio,
            sample_height=sample_height // pixel_unshuffle,
            sample_width=sample_width // pixel_unshuffle,
            scaling_factor=scaling_factor,
            shift_factor=shift_factor,
            latents_mean=latents_mean,
            latents_std=latents_std,
            force_upcast=force_upcast,
            use_quant_conv=use_quant_conv,
            use_post_quant_conv=use_post_quant_conv,
            invert_scale_latents=invert_scale_latents,
        )
        # The backbone registered what it was given; the saved settings are those in pixels.
        self.register_to_config(
            in_channels=in_channels, out_channels=out_channels, sample_height=sample_height, sample_width=sample_width
        )
        attach_compensation(self, compensation, tuple(spectrum_grid), detail_bands, folded_frames)
        take_small_videos(self)

    @classmethod
    def preset(cls, name: str, **overrides) -> Self:
        """A new, untrained VAE: "tiny" (trains on a CPU in minutes) or "cogvideox" (the size of CogVideoX)."""
        if name not in PRESETS:
            raise ValueError(f"preset: got {name!r}, wants one of {', '.join(PRESETS)}")
        return cls(**(PRESETS[name] | overrides))

    @classmethod
    def load_backbone(
        cls,
        path_or_name: str,
        *,
        subfolder: str | None = None,
        torch_dtype: torch.dtype | None = None,
        **compensation_settings,
    ) -> Self:
        """Put pretrained `AutoencoderKLCogVideoX` weights under a fresh compensation.

        path_or_name: a folder with config.json and weights, or a hub name, with or without a checksum (see
            `medsora.pretrained`); subfolder: where in it the VAE is, "vae" if that is where its weights are.
        compensation_settings: compensation, spectrum_grid, detail_bands, folded_frames.
        Raises ValueError for another setting, if it cannot be read, or weights are missing, left over or of another
        shape.
        """
        for name in compensation_settings.keys() - COMPENSATION_SETTINGS:
            raise ValueError(
                f"{name}: got a value for pretrained weights, wants {', '.join(COMPENSATION_SETTINGS)} only"
            )
        # Loaded as what it is: diffusers skips the initialisation of modules while it loads a model, so parameters that
        # the file lacks would hold whatever was in memory. Without low_cpu_mem_usage=False they would have none at all.
        folder = locate("cogvideox", path_or_name, "path_or_name", subfolder).path
        try:
            backbone, found = AutoencoderKLCogVideoX.from_pretrained(
                folder,
                torch_dtype=torch_dtype,
                low_cpu_mem_usage=False,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
        except OSError as error:
            raise ValueError(f"path_or_name: cannot load {path_or_name}: {str(error).splitlines()[0]}") from error
        for fault in ("missing", "unexpected", "mismatched"):
            if keys := found[f"{fault}_keys"]:
                raise ValueError(
                    f"path_or_name: the weights in {path_or_name} are not those its config describes: {len(keys)} "
                    f"{fault}, such as {keys[0]}"
                )
        settings = {name: value for name, value in backbone.config.items() if not name.startswith("_")}
        vae = cls(**(settings | compensation_settings))
        weights = {k: v for k, v in vae.state_dict().items() if ".compensation." in k} | backbone.state_dict()
        vae.load_state_dict(weights)
        return vae.to(backbone.dtype).eval()

    @property
    def spatial_compression(self) -> int:
        """Pixels along each side for one latent cell, the pixel unshuffle included."""
        return self.config.pixel_unshuffle * 2 ** (len(self.config.block_out_channels) - 1)

    @property
    def temporal_compression(self) -> int:
        """Pixel frames for one latent frame, beyond a single first one."""
        return int(self.config.temporal_compression_ratio)

    def latent_frames(self, num_frames: int) -> int:
        """Latent frames of a clip of `num_frames`; ValueError unless it has 1, 8k or 8k + 1 frames."""
        if num_frames != 1 and (num_frames < CHUNK or num_frames % CHUNK > 1):
            raise ValueError(f"num_frames: got {num_frames}, wants 1, {CHUNK}k or {CHUNK}k + 1 frames")
        return num_frames // self.temporal_compression + num_frames % CHUNK

    def pixel_frames(self, latent_frames: int) -> int:
        """Pixel frames that `latent_frames` decode to: 1 for 1, 4F for an even number, 4F - 3 for an odd one."""
        if latent_frames < 1:
            raise ValueError(f"latent_frames: got {latent_frames}, wants at least 1")
        return self.temporal_compression * latent_frames - (self.temporal_compression - 1) * (latent_frames % 2)

    def compensation_parameters(self) -> Iterator[nn.Parameter]:
        """The parameters that train when the backbone is pretrained and frozen."""
        return (parameter for name, parameter in self.named_parameters() if ".compensation." in name)

    def enable_tiling(
        self,
        tile_sample_min_height: int | None = None,
        tile_sample_min_width: int | None = None,
        tile_overlap_factor_height: float | None = None,
        tile_overlap_factor_width: float | None = None,
    ) -> None:
        """Encode and decode larger frames in overlapping tiles, blended at their seams: less memory.

        tile_sample_min_height, tile_sample_min_width: sides of a tile in pixels, half the VAE's `sample_height` and
            `sample_width` if None; rounded down to whole latents, and four latents at least.
        tile_overlap_factor_height, tile_overlap_factor_width: the share of a tile that its neighbour covers too, above
            0 and below 1, a quarter if None; rounded to whole latents, and one latent at least.
        Raises ValueError for a side below 1 or a share out of its range.
        """
        sides, shares = [], []
        for name, side, half, share in (
            ("height", tile_sample_min_height, self.config.sample_height // 2, tile_overlap_factor_height),
            ("width", tile_sample_min_width, self.config.sample_width // 2, tile_overlap_factor_width),
        ):
            side, share = half if side is None else side, TILE_OVERLAP if share is None else share
            if side < 1:
                raise ValueError(f"tile_sample_min_{name}: got {side}, wants 1 pixel or more")
            if not 0 < share < 1:
                raise ValueError(f"tile_overlap_factor_{name}: got {share}, wants a share above 0 and below 1")
            latents = max(SMALLEST_TILE, side // self.spatial_compression)
            sides.append(latents * self.spatial_compression // self.config.pixel_unshuffle)
            # The backbone cuts off what is left of strides and overlaps, of pixels and latents each for itself: unless
            # the share is a whole number of latents, and exact, its tiles do not meet.
            shares.append(Fraction(min(max(1, round(share * latents)), latents - 1), latents))
        super().enable_tiling(*sides, *shares)

    def encode(self, x: Tensor, return_dict: bool = True) -> AutoencoderKLOutput | tuple:
        """Posterior of the latents of x (B, 3, T, H, W) in [-1, 1]: `.latent_dist` with mean, std, sample and mode.

        Raises ValueError unless T is 1, 8k or 8k + 1 and H, W are multiples of `spatial_compression`.
        """
        if x.ndim != 5 or x.shape[1] != self.config.in_channels:
            raise ValueError(f"x: got shape {tuple(x.shape)}, wants (batch, {self.config.in_channels}, frames, H, W)")
        self.latent_frames(x.shape[2])
        if x.shape[-2] % self.spatial_compression or x.shape[-1] % self.spatial_compression or 0 in x.shape:
            raise ValueError(
                f"x: got frames of {x.shape[-2]} x {x.shape[-1]}, wants multiples of {self.spatial_compression}"
            )
        return super().encode(fold_pixels(x, self.config.pixel_unshuffle), return_dict=return_dict)

    def decode(self, z: Tensor, return_dict: bool = True) -> DecoderOutput | tuple:
        """Frames (B, 3, T, H, W), about [-1, 1], of latents z (B, C, F, h, w); T is `pixel_frames(F)`."""
        if z.ndim != 5 or z.shape[1] != self.config.latent_channels or 0 in z.shape:
            raise ValueError(
                f"z: got shape {tuple(z.shape)}, wants (batch, {self.config.latent_channels}, latent frames, h, w)"
            )
        frames = unfold_pixels(super().decode(z, return_dict=False)[0], self.config.pixel_unshuffle)
        return DecoderOutput(sample=frames) if return_dict else (frames,)


def fold_pixels(x: Tensor, side: int) -> Tensor:
    """Space to depth on each frame: (B, C, T, H, W) -> (B, C side^2, T, H / side, W / side)."""
    return x if side == 1 else functional.pixel_unshuffle(x.transpose(1, 2), side).transpose(1, 2)


def unfold_pixels(x: Tensor, side: int) -> Tensor:
    """The inverse of `fold_pixels`."""
    return x if side == 1 else functional.pixel_shuffle(x.transpose(1, 2), side).transpose(1, 2)
