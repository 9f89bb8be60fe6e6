"""What does the video VAE minimise? Pixel, spectrum, perception and latent terms, each with a weight of its own."""

from pathlib import Path

from torch import Tensor, nn

from medsora.training.lpips import LPIPS
from medsora_ops import focal_frequency_loss


class VAELoss(nn.Module):
    """Weighted sum of reconstruction terms and the KL divergence of the posterior; a term of weight 0 is not computed.

    l1: weight of the mean absolute error of pixels.
    focal: weight of the focal frequency loss (Jiang et al., ICCV 2021) of each frame and channel.
    lpips: weight of LPIPS (Zhang et al., CVPR 2018), averaged over frames; needs `lpips_weights`, a path as `LPIPS`
        takes it.
    kl: weight of KL(posterior || N(0, 1)), averaged over latent elements (a weight of that average, not of the sum).

    forward(reconstruction, target, posterior=None): frames (B, 3, T, H, W) in [-1, 1], any float dtype, computed in
        float32; posterior a distribution with `mean`, `logvar`, `var`, or None to leave KL out. Returns the loss, a
        float32 scalar, and a dictionary of detached terms before weighting: "loss", "l1", and those in use of "focal",
        "lpips", "kl".
    Raises ValueError for negative weights, for shapes that differ, and for an `lpips` without weights.
    """

    def __init__(
        self,
        l1: float = 1.0,
        focal: float = 0.1,
        lpips: float = 0.0,
        kl: float = 1e-6,
        lpips_weights: str | Path | None = None,
    ):
        super().__init__()
        self.weights = {"l1": l1, "focal": focal, "lpips": lpips, "kl": kl}
        for name, weight in self.weights.items():
            if not weight >= 0:
                raise ValueError(f"{name}: got {weight}, wants a weight of at least 0")
        if lpips > 0 and lpips_weights is None:
            raise ValueError("lpips_weights: got None, wants the path of VGG16 and LPIPS weights for lpips > 0")
        self.perception = LPIPS(lpips_weights) if lpips > 0 else None

    def forward(self, reconstruction: Tensor, target: Tensor, posterior=None) -> tuple[Tensor, dict[str, Tensor]]:
        if reconstruction.shape != target.shape or target.ndim != 5:
            raise ValueError(
                f"reconstruction: got shape {tuple(reconstruction.shape)} for a target of {tuple(target.shape)}, wants "
                "(batch, channels, frames, H, W) for both"
            )
        reconstruction, target = reconstruction.float(), target.float()
        terms = {"l1": (reconstruction - target).abs().mean()}
        if self.weights["focal"]:
            terms["focal"] = focal_frequency_loss(reconstruction, target)
        if self.perception is not None:
            terms["lpips"] = self.perception(as_images(reconstruction), as_images(target)).mean()
        if self.weights["kl"] and posterior is not None:
            terms["kl"] = kl_divergence(posterior)
        loss = sum(self.weights[name] * term for name, term in terms.items())
        return loss, {name: term.detach() for name, term in ({"loss": loss} | terms).items()}


def kl_divergence(posterior) -> Tensor:
    """KL(N(mean, var) || N(0, 1)) in nats, averaged over all latent elements; float32 scalar."""
    mean, logvar = posterior.mean.float(), posterior.logvar.float()
    return 0.5 * (mean.square() + logvar.exp() - 1.0 - logvar).mean()


def as_images(frames: Tensor) -> Tensor:
    """(B, C, T, H, W) -> (B T, C, H, W)."""
    return frames.transpose(1, 2).flatten(0, 1)
