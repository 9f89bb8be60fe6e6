"""The denoiser: a diffusion model over video latents whose blocks mix local attention with Mamba-2 scans.

After "Optical Flow Representation Alignment Mamba Diffusion Model for Medical Video Generation" (arXiv 2411.01647).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils import BaseOutput
from torch import Tensor, nn
from torch.nn import functional as F

from medsora.models.attention import LocalAttention
from medsora.models.conditioning import LabelEmbedding, TimestepEmbedding, position_table
from medsora.models.mixer import SPIRALS, SpatialMixer, TemporalMixer
from medsora.models.presets import denoiser_preset
from medsora.models.tables import Tables

HEAD_WIDTH = 64
BRANCHES = 3


@dataclass
class MedSoraOutput(BaseOutput):
    """sample: (B, F, 2C, h, w), predicted noise and variance interpolation.

    hidden: `depth` tensors (B, F, tokens, D), the stream after each block's spatial branch, where asked for; else None.
    """

    sample: Tensor
    hidden: tuple[Tensor, ...] | None = None


class Block(nn.Module):
    """Local attention, spatial scan and temporal scan, each a gated residual under adaLN-zero modulation.

    Each branch: u = norm(x) (1 + scale) + shift; x = x + gate * branch(u).
    """

    def __init__(self, attention: LocalAttention, spatial: SpatialMixer, temporal: TemporalMixer, hidden_size: int):
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(hidden_size, eps=1e-5) for _ in range(BRANCHES))
        self.attention = attention
        self.spatial = spatial
        self.temporal = temporal
        self.modulation = nn.Linear(hidden_size, 3 * BRANCHES * hidden_size)

    def forward(self, x: Tensor, condition: Tensor, grid: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
        """x: (B, F*H*W, D); condition: (B, D) -> the stream after the block, and after its spatial branch."""
        batch, tokens, width = x.shape
        modulation = self.modulation(F.silu(condition))[:, None].chunk(3 * BRANCHES, dim=-1)
        (shift_a, scale_a, gate_a), (shift_s, scale_s, gate_s), (shift_t, scale_t, gate_t) = (
            modulation[3 * i : 3 * i + 3] for i in range(BRANCHES)
        )
        norm_a, norm_s, norm_t = self.norms
        u = modulate(norm_a(x), shift_a, scale_a).view(batch * grid[0], -1, width)
        x = x + gate_a * self.attention(u).view(batch, tokens, width)
        x = x + gate_s * self.spatial(modulate(norm_s(x), shift_s, scale_s), grid)
        after_spatial = x
        x = x + gate_t * self.temporal(modulate(norm_t(x), shift_t, scale_t), grid)
        return x, after_spatial


class FinalLayer(nn.Module):
    """Modulated norm and a linear map from each token to its patch of noise and variance."""

    def __init__(self, hidden_size: int, patch_values: int):
        super().__init__()
        self.norm = nn.LayerNorm(hidden_size, elementwise_affine=False, eps=1e-6)
        self.modulation = nn.Linear(hidden_size, 2 * hidden_size)
        self.linear = nn.Linear(hidden_size, patch_values)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """x: (B, L, D); condition: (B, D) -> (B, L, patch_values)."""
        shift, scale = self.modulation(F.silu(condition))[:, None].chunk(2, dim=-1)
        return self.linear(modulate(self.norm(x), shift, scale))


class MedSora(ModelMixin, ConfigMixin):
    """Predicts the noise in video latents, and the variance of a reverse step.

    in_channels: latent channels C. patch_size: side of a patch of latents that makes one token. hidden_size: width D,
    a multiple of 4. depth: blocks. state_size: state of the scans, N. head_dim: head width of the scans, P.
    planes: plane families of the spatial scan, of "fw", "fh", "hw". scan_order: "spiral" (block i walks spiral
    i mod 8), "raster" or "released". temporal_bidirectional: scan time both ways.
    attention_window: reach of the local attention in tokens. attention_heads: None for heads of width 64.
    attention_output: a linear map after the heads. num_classes: classes to condition on; label `num_classes` says
    "no label". first_frame_conditioning: take given frames in C + 1 more input channels.
    stored_grid: keep the position table of this (H, W) token grid among the weights, as released weights do.

    Any number of frames and any latent height and width divisible by patch_size are accepted at run time.
    Raises ValueError for settings that do not fit together.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["Block"]
    # Decays are exponentials of these: `from_pretrained(torch_dtype=torch.bfloat16)` leaves them in float32.
    _keep_in_fp32_modules = ["A_log", "dt_bias"]

    @register_to_config
    def __init__(
        self,
        in_channels: int = 16,
        patch_size: int = 2,
        hidden_size: int = 512,
        depth: int = 6,
        state_size: int = 128,
        head_dim: int = 64,
        planes: tuple[str, ...] = ("fw", "fh"),
        scan_order: str = "spiral",
        temporal_bidirectional: bool = True,
        attention_window: int = 8,
        attention_heads: int | None = None,
        attention_output: bool = True,
        num_classes: int = 0,
        first_frame_conditioning: bool = False,
        stored_grid: tuple[int, int] | None = None,
    ):
        super().__init__()
        for name, value in (("in_channels", in_channels), ("patch_size", patch_size), ("depth", depth)):
            if value < 1:
                raise ValueError(f"{name}: got {value}, wants 1 or more")
        if num_classes < 0:
            raise ValueError(f"num_classes: got {num_classes}, wants 0 or more")
        if hidden_size < 4 or hidden_size % 4:
            raise ValueError(f"hidden_size: got {hidden_size}, wants a positive multiple of 4")
        if attention_heads is None:
            if hidden_size % HEAD_WIDTH:
                raise ValueError(
                    f"hidden_size: got {hidden_size}, wants a multiple of {HEAD_WIDTH} unless attention_heads is given"
                )
            attention_heads = hidden_size // HEAD_WIDTH
        entering = 2 * in_channels + 1 if first_frame_conditioning else in_channels
        self.patch_embedding = nn.Conv2d(entering, hidden_size, patch_size, stride=patch_size)
        self.timestep_embedding = TimestepEmbedding(hidden_size)
        self.label_embedding = LabelEmbedding(num_classes, hidden_size) if num_classes else None
        self.blocks = nn.ModuleList(
            Block(
                LocalAttention(hidden_size, attention_heads, attention_window, attention_output),
                SpatialMixer(hidden_size, state_size, head_dim, tuple(planes), scan_order, i % SPIRALS),
                TemporalMixer(hidden_size, state_size, head_dim, temporal_bidirectional),
                hidden_size,
            )
            for i in range(depth)
        )
        self.final_layer = FinalLayer(hidden_size, patch_size**2 * 2 * in_channels)
        self.position_table = None
        if stored_grid is not None:
            table = position_table(*stored_grid, hidden_size)
            self.position_table = nn.Parameter(table[None], requires_grad=False)
        self._tables = Tables()
        self.gradient_checkpointing = False
        self._initialise()

    @classmethod
    def preset(cls, name: str, **overrides) -> MedSora:
        """A denoiser of size "tiny", "S", "B", "L" or "XL" with our options, or any of them overridden."""
        return cls(**{**denoiser_preset(name), **overrides})

    @classmethod
    def released_preset(cls, name: str, **overrides) -> MedSora:
        """A denoiser of size "S", "B", "L" or "XL" in the form of the released code, into which its weights fit."""
        return cls(**{**denoiser_preset(name, released=True), **overrides})

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor,
        *,
        class_labels: Tensor | None = None,
        first_frames: Tensor | None = None,
        first_frames_mask: Tensor | None = None,
        return_hidden: bool = False,
    ) -> MedSoraOutput:
        """One prediction.

        sample: noisy latents (B, F, C, h, w), h and w divisible by patch_size. timestep: (B,).
        class_labels: int64 (B,) in [0, num_classes], None for "no label". (Their range is checked on the CPU.)
        first_frames: given clean latents (B, F, C, h, w), and first_frames_mask (B, F), 1 where a frame is given;
        elsewhere first_frames is not read. None for no given frames.
        return_hidden: also return the stream after each block's spatial branch.
        Raises ValueError for inputs that do not fit the model.
        """
        self._check(sample, timestep, class_labels, first_frames, first_frames_mask)
        batch, frames, _, height, width = sample.shape
        patch = self.config.patch_size
        grid = (frames, height // patch, width // patch)
        if self.config.first_frame_conditioning:
            sample = _with_given_frames(sample, first_frames, first_frames_mask)
        x = self.patch_embedding(sample.flatten(0, 1).to(self.patch_embedding.weight.dtype))
        x = x.flatten(2).transpose(1, 2) + self._positions(grid[1], grid[2])
        x = x.reshape(batch, -1, self.config.hidden_size)
        condition = self.timestep_embedding(timestep)
        if self.label_embedding is not None:
            condition = condition + self.label_embedding(class_labels, batch)

        hidden = []
        for block in self.blocks:
            if self.gradient_checkpointing and torch.is_grad_enabled():
                x, after_spatial = self._gradient_checkpointing_func(block, x, condition, grid)
            else:
                x, after_spatial = block(x, condition, grid)
            if return_hidden:
                hidden.append(after_spatial.view(batch, frames, -1, self.config.hidden_size))
        output = self._unpatch(self.final_layer(x, condition), grid)
        return MedSoraOutput(sample=output, hidden=tuple(hidden) if return_hidden else None)

    def prepare(self, frames: int, height: int, width: int) -> None:
        """Makes the tables for latents of this size, on the weights' device; `forward` makes them otherwise.

        Call it before a first call under `torch.compile(fullgraph=True)` or graph capture, which cannot make them.
        """
        grid = (frames, height // self.config.patch_size, width // self.config.patch_size)
        self._positions(*grid[1:])
        for block in self.blocks:
            for family in (*block.spatial.families(grid), *block.temporal.families(grid)):
                for path in family:
                    path.offsets(self.patch_embedding.weight.device)

    def _positions(self, height: int, width: int) -> Tensor:
        """The position table of an (H, W) token grid, (1, H*W, D) in the weights' type."""
        weight = self.patch_embedding.weight
        if self.position_table is not None and tuple(self.config.stored_grid) == (height, width):
            return self.position_table.to(weight.dtype)
        return self._tables.get(
            (height, width, weight.device, weight.dtype),
            lambda: position_table(height, width, self.config.hidden_size)[None].to(weight.device, weight.dtype),
        )

    def _unpatch(self, patches: Tensor, grid: tuple[int, int, int]) -> Tensor:
        """(B, F*H*W, p*p*2C), values ordered (row, column, channel), -> (B, F, 2C, H*p, W*p)."""
        (frames, height, width), patch = grid, self.config.patch_size
        x = patches.view(len(patches), frames, height, width, patch, patch, -1)
        return x.permute(0, 1, 6, 2, 4, 3, 5).reshape(len(patches), frames, -1, height * patch, width * patch)

    def _check(self, sample, timestep, class_labels, first_frames, first_frames_mask) -> None:
        channels, patch, classes = self.config.in_channels, self.config.patch_size, self.config.num_classes
        shape = tuple(sample.shape)
        if sample.dim() != 5 or shape[2] != channels or 0 in shape:
            raise ValueError(f"sample: got shape {shape}, wants (batch, frames, {channels}, height, width)")
        if shape[3] % patch or shape[4] % patch:
            raise ValueError(f"sample: got latents of {shape[3]} x {shape[4]}, wants multiples of patch_size {patch}")
        if tuple(timestep.shape) != (shape[0],):
            raise ValueError(f"timestep: got shape {tuple(timestep.shape)}, wants ({shape[0]},), one a video")
        if class_labels is not None:
            if tuple(class_labels.shape) != (shape[0],) or class_labels.is_floating_point():
                raise ValueError(
                    f"class_labels: got {class_labels.dtype} of shape {tuple(class_labels.shape)}, "
                    f"wants integers of shape ({shape[0]},)"
                )
            on_cpu = class_labels.device.type == "cpu" and not torch.compiler.is_compiling()
            if on_cpu and not ((class_labels >= 0) & (class_labels <= classes)).all():
                raise ValueError(
                    f"class_labels: got {class_labels.tolist()}, wants 0 to {classes}, where {classes} says no label"
                )
        if (first_frames is None) != (first_frames_mask is None):
            raise ValueError("first_frames, first_frames_mask: got one without the other, wants both or neither")
        if first_frames is None:
            return
        if not self.config.first_frame_conditioning:
            raise ValueError("first_frames: got given frames, wants None for a model without first_frame_conditioning")
        if tuple(first_frames.shape) != shape:
            raise ValueError(f"first_frames: got shape {tuple(first_frames.shape)}, wants that of sample, {shape}")
        if tuple(first_frames_mask.shape) != shape[:2]:
            raise ValueError(f"first_frames_mask: got shape {tuple(first_frames_mask.shape)}, wants {shape[:2]}")

    @torch.no_grad()
    def _initialise(self) -> None:
        """Linear maps Xavier with zero bias; modulations, the last map and the given frames' weights at zero."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        embedding = self.patch_embedding
        nn.init.xavier_uniform_(embedding.weight.view(len(embedding.weight), -1))
        nn.init.zeros_(embedding.bias)
        embedding.weight[:, self.config.in_channels :] = 0
        if self.label_embedding is not None:
            nn.init.normal_(self.label_embedding.table.weight, std=0.02)
        for linear in (*(b.modulation for b in self.blocks), self.final_layer.modulation, self.final_layer.linear):
            nn.init.zeros_(linear.weight)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """x (1 + scale) + shift, in one pass over x."""
    return torch.addcmul(shift, x, 1 + scale)


def _with_given_frames(sample: Tensor, given: Tensor | None, mask: Tensor | None) -> Tensor:
    """Lays given frames and their mask beside the sample's channels: (B, F, 2C + 1, h, w)."""
    if given is None:
        given, mask = torch.zeros_like(sample), sample.new_zeros(sample.shape[:2])
    mask = mask.to(sample.dtype)[:, :, None, None, None].expand(-1, -1, 1, *sample.shape[3:])
    # torch.where, not a product: whatever lies in frames that are not given must not be read, NaN included.
    given = torch.where(mask > 0, given.to(sample.dtype), 0)
    return torch.cat([sample, given, mask], dim=2)
