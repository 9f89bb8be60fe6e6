"""A whole pipeline of a few thousand weights, every one drawn, for tests of sampling."""

import torch

from medsora import MedSoraPipeline
from medsora.diffusion import DiffusionSettings, make_scheduler
from medsora.models import FrequencyCompensatedVAE, MedSora

VAE = dict(
    block_out_channels=(8, 8, 8),
    layers_per_block=1,
    latent_channels=4,
    norm_num_groups=2,
    down_block_types=("CogVideoXDownBlock3D",) * 3,
    up_block_types=("CogVideoXUpBlock3D",) * 3,
    sample_height=32,
    sample_width=32,
    pixel_unshuffle=2,
    spectrum_grid=(4, 4),
    scaling_factor=0.7,
)
DENOISER = dict(
    in_channels=4, patch_size=1, hidden_size=32, depth=2, state_size=8, head_dim=16, attention_heads=2, num_classes=3,
    first_frame_conditioning=True,
)  # fmt: skip


def micro_vae(**overrides) -> FrequencyCompensatedVAE:
    torch.manual_seed(0)
    vae = FrequencyCompensatedVAE(**VAE | overrides)
    with torch.no_grad():
        for parameter in vae.compensation_parameters():
            parameter.normal_(std=0.02)
    return vae.eval()


def micro_denoiser(seed: int = 0, fresh: bool = False, **overrides) -> MedSora:
    """fresh: as it is initialised, predicting zero; else with the zero-initialised weights drawn as well."""
    torch.manual_seed(seed)
    denoiser = MedSora(**DENOISER | overrides)
    with torch.no_grad():
        for name, parameter in denoiser.named_parameters():
            if not fresh and name.endswith(("modulation.weight", "final_layer.linear.weight")):
                parameter.normal_(std=0.1)
        if not fresh:
            denoiser.patch_embedding.weight.normal_(std=0.3)
    return denoiser.eval()


def micro_pipeline(scheduler: str = "ddim", levels: int = 1000, **overrides) -> MedSoraPipeline:
    """32 x 32 pixels, 8 frames (4 x 4 x 2 latents); overrides: options of the denoiser."""
    settings = DiffusionSettings(num_train_timesteps=levels)
    return MedSoraPipeline(
        micro_vae(), micro_denoiser(**overrides), make_scheduler(scheduler, settings), num_frames=8, fps=5,
        given_frames=(1, 8, 9),
    )  # fmt: skip
