"""What clips look like to a network: the feature extractors behind FVD, CD-FVD, FID and IS, and the weight-free proxy.

Each takes clips uint8 (B, T, H, W, 3) and states its protocol, which the result file repeats, since distances of other
protocols do not compare.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from medsora.files import load_tensors
from medsora.metrics import MotionFeatures
from medsora.pretrained import locate, require_transformers

I3D_SIDE, I3D_SHORTEST = 224, 9
AT_ONCE = 32  # frames that Inception sees together


class Motion:
    """The proxy: `MotionFeatures`, which need no weights and are no substitute for a trained network's."""

    name, title, size = "motion", "motion distance (weight-free proxy)", MotionFeatures.size
    unit, shortest = "clip", 5

    def __init__(self):
        self.protocol = {
            "features": "23 fixed numbers of a clip (medsora.metrics.MotionFeatures), no network",
            "proxy": True,
            "covariance": "half of the sample covariance, half of its diagonal, 0.01 on the diagonal",
        }
        self._features = MotionFeatures()

    def __call__(self, clips: np.ndarray) -> dict[str, np.ndarray]:
        return {"features": np.stack([self._features(clip) for clip in clips])}


class I3D:
    """FVD's network, TorchScript as the projects StyleGAN-V and fvd-comparison pass it on; run after a checksum match.

    Unterthiner et al. 2018, "Towards Accurate Generative Models of Video". Features: 400 logits a clip.
    """

    name, title, size = "fvd", "FVD (I3D)", 400
    unit, shortest = "clip", I3D_SHORTEST

    def __init__(self, weights: str, device: str | torch.device = "cpu"):
        found = locate("i3d", weights, "--i3d")
        try:
            self.network = torch.jit.load(found.path, map_location=device).eval()
        except RuntimeError as error:
            raise ValueError(
                f"--i3d: {found.path} is no TorchScript file ({str(error).strip().splitlines()[0]})"
            ) from error
        self.device = device
        self.protocol = {
            "features": "logits of I3D (TorchScript, return_features)",
            "weights": {"path": str(found.path), "sha256": found.sha256},
            "pictures": "bilinear to 224 x 224, no antialiasing, [-1, 1]",
            "frames": "all",
        }

    @torch.no_grad()
    def __call__(self, clips: np.ndarray) -> dict[str, np.ndarray]:
        x = resized(clips, I3D_SIDE, self.device) * 2 - 1
        features = self.network(x.permute(0, 2, 1, 3, 4), rescale=False, resize=False, return_features=True)
        if features.ndim != 2 or features.shape[1] != self.size:
            raise ValueError(f"--i3d: the network gave shape {tuple(features.shape)}, wants (clips, {self.size})")
        return {"features": features.double().cpu().numpy()}


class VideoMAE:
    """CD-FVD's network, less swayed by single frames. Ge et al. 2024, "On the Content Bias in Frechet Video Distance".

    Pixels go in as in that project's code: in [0, 1], not normalised.
    """

    name, title = "cd_fvd", "CD-FVD (VideoMAE)"
    unit, shortest = "clip", 1

    def __init__(self, weights: str, device: str | torch.device = "cpu"):
        from medsora.evaluation.videomae import load_videomae

        require_transformers("--videomae")
        found = locate("videomae", weights, "--videomae")
        self.network = load_videomae(found.path, "--videomae").to(device)
        self.size, self.shortest, self.device = self.network.width, self.network.frames, device
        self.protocol = {
            "features": "mean of VideoMAE's last tokens, normalised where its classifier has it so",
            "weights": {"path": str(found.path), "sha256": found.sha256},
            "pictures": f"bilinear to {self.network.side} x {self.network.side}, no antialiasing, [0, 1]",
            "frames": f"{self.network.frames}, evenly spaced where a clip has more",
        }

    @torch.no_grad()
    def __call__(self, clips: np.ndarray) -> dict[str, np.ndarray]:
        frames = np.linspace(0, clips.shape[1] - 1, self.network.frames).round().astype(int)
        features = self.network(resized(clips[:, frames], self.network.side, self.device))
        return {"features": features.double().cpu().numpy()}


class Inception:
    """The network of FID (Heusel et al. 2017) and IS (Salimans et al. 2016), applied to each frame."""

    name, title, size = "fid", "FID (Inception, frames)", 2048
    unit, shortest = "frame", 1

    def __init__(self, weights: str, device: str | torch.device = "cpu"):
        from medsora.evaluation.inception import SIDE, InceptionV3

        found = locate("inception", weights, "--inception")
        self.network, self.side, self.device = InceptionV3(), SIDE, device
        try:
            state = self.network.state_dict()  # for the counters of batches, which older files do not hold
            counters = {name: tensor for name, tensor in state.items() if name.endswith("num_batches_tracked")}
            self.network.load_state_dict(counters | load_tensors(found.path), strict=True)
        except (ValueError, RuntimeError) as error:
            raise ValueError(
                f"--inception: {found.path} does not fit pytorch-fid's Inception: {' '.join(str(error).split())[:200]}"
            ) from error
        self.network.to(device).eval()
        self.protocol = {
            "features": "last pooling of Inception v3 (2015-12-05, as pytorch-fid converted it)",
            "weights": {"path": str(found.path), "sha256": found.sha256},
            "pictures": "bilinear to 299 x 299, no antialiasing, [-1, 1]",
            "frames": "every frame of every clip",
        }

    @torch.no_grad()
    def __call__(self, clips: np.ndarray) -> dict[str, np.ndarray]:
        pictures = clips.reshape(-1, 1, *clips.shape[2:])
        made = [
            self.network(resized(pictures[start : start + AT_ONCE], self.side, self.device)[:, 0] * 2 - 1)
            for start in range(0, len(pictures), AT_ONCE)
        ]
        features, scores = (torch.cat(parts) for parts in zip(*made, strict=True))
        probabilities = torch.softmax(scores.double(), dim=1)
        return {"features": features.double().cpu().numpy(), "probabilities": probabilities.cpu().numpy()}


def resized(clips: np.ndarray, side: int, device: str | torch.device) -> Tensor:
    """uint8 (B, T, H, W, 3) -> float32 (B, T, 3, side, side) in [0, 1], bilinear between pixel centres."""
    x = torch.from_numpy(np.ascontiguousarray(clips)).to(device).permute(0, 1, 4, 2, 3).float() / 255
    frames = functional.interpolate(x.flatten(0, 1), size=(side, side), mode="bilinear", align_corners=False)
    return frames.unflatten(0, x.shape[:2])
