"""Convolutions over space and time that are fast for one small video on a CPU too.

There torch has a rule by which it gives two videos to oneDNN and unfolds one, which takes several times as long: a step
of the tiny VAE then spends nearly all its time so. Hence one goes as two that are half as long.
"""

import torch
from diffusers.models.autoencoders.autoencoder_kl_cogvideox import CogVideoXSafeConv3d
from torch import Tensor, nn

SMALL = 20480  # torch's bound, on the product of all sizes but the width


class Conv3d(CogVideoXSafeConv3d):
    """The backbone's convolution, with its parameters and, but for rounding, its results.

    forward(x (B, C, T, H, W)) -> (B, C', T - k + 1, H', W'): k taps in time, which is not padded here.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self._small(x):
            return super().forward(x)
        frames = x.shape[2] - self.kernel_size[0] + 1
        half = -(-frames // 2)
        halves = x[:, :, : half + self.kernel_size[0] - 1], x[:, :, frames - half :]
        first, second = super().forward(torch.cat(halves)).split(1)
        return torch.cat((first, second[:, :, 2 * half - frames :]), dim=2)

    def _small(self, x: Tensor) -> bool:
        return (
            x.device.type == "cpu"
            and x.dtype == torch.float32
            and x.shape[0] == 1
            and x.shape[1] * x.shape[2] * x.shape[3] <= SMALL
            and self.kernel_size[1:] != (1, 1)  # which need no unfolding
            and self.stride == self.dilation == (1, 1, 1)
            and self.padding[0] == 0
            and torch.backends.mkldnn.is_available()
        )


def take_small_videos(model: nn.Module) -> None:
    """Make the backbone's convolutions those of above, with their weights."""
    for module in model.modules():
        if type(module) is CogVideoXSafeConv3d:
            module.__class__ = Conv3d
