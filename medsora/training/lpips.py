"""How alike do two frames look? LPIPS (Zhang et al., CVPR 2018) on VGG16 features, with weights a user provides."""

from pathlib import Path

import torch
from torch import Tensor, nn

from medsora.files import load_tensors
from medsora.pretrained import locate

# VGG16: output channels of each convolution by stage; the distance reads the last activation of each stage.
STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # of ImageNet colours in [-1, 1], as LPIPS has them
SMALLEST_SIDE = 16  # four poolings by two


class LPIPS(nn.Module):
    """Perceptual distance of frames, frozen.

    weights: a file or a folder, with or without a checksum (see `medsora.pretrained`). Together its .pth, .pt and
        .safetensors files hold torchvision's VGG16 (`features.<layer>.weight`, `.bias`; its classifier is not used) and
        the LPIPS linear layers (`lin<stage>.model.1.weight`, version 0.1 for VGG). Read without running any code.
    sha256: checksum of the weights.
    forward(one, other): frames (N, 3, H, W) in [-1, 1], sides of at least 16 -> (N,) distances, 0 for equal frames.
    Raises ValueError if files are missing or do not fit.
    """

    def __init__(self, weights: str | Path):
        super().__init__()
        self.features = vgg16_features()
        self.lin = nn.ParameterList(nn.Parameter(torch.zeros(1, stage[-1], 1, 1)) for stage in STAGES)
        self.register_buffer("shift", torch.tensor(SHIFT).reshape(1, 3, 1, 1))
        self.register_buffer("scale", torch.tensor(SCALE).reshape(1, 3, 1, 1))
        self.sha256 = self._load(weights)
        self.requires_grad_(False)

    def forward(self, one: Tensor, other: Tensor) -> Tensor:
        for name, frames in (("one", one), ("other", other)):
            if frames.ndim != 4 or frames.shape[1] != 3 or min(frames.shape[-2:]) < SMALLEST_SIDE:
                raise ValueError(
                    f"{name}: got shape {tuple(frames.shape)}, wants (frames, 3, H, W) with sides of at least "
                    f"{SMALLEST_SIDE}"
                )
        distances = [
            (weight * (unit(a) - unit(b)).square()).sum(dim=1).mean(dim=(-2, -1))
            for weight, a, b in zip(self.lin, self._stages(one), self._stages(other), strict=True)
        ]
        return torch.stack(distances).sum(dim=0)

    def _stages(self, frames: Tensor) -> list[Tensor]:
        hidden, stages = (frames - self.shift) / self.scale, []
        for layer in self.features:
            if isinstance(layer, nn.MaxPool2d):
                stages.append(hidden)
            hidden = layer(hidden)
        return [*stages, hidden]

    def _load(self, given: str | Path) -> str:
        """Fills the weights in; returns their checksum."""
        located = locate("lpips", given, "lpips_weights")
        path, found = located.path, read_tensors(located.path)
        wanted = {f"features.{k}": t for k, t in self.features.state_dict().items()}
        wanted |= {f"lin{i}.model.1.weight": weight for i, weight in enumerate(self.lin)}
        missing = sorted(wanted.keys() - found.keys())
        left_over = sorted(key for key in found.keys() - wanted.keys() if not key.startswith("classifier."))
        shapes = sorted(key for key in wanted.keys() & found.keys() if wanted[key].shape != found[key].shape)
        for problem, keys in (("lacks", missing), ("has unknown", left_over), ("has another shape of", shapes)):
            if keys:
                raise ValueError(
                    f"lpips_weights: {path} {problem} {keys[0]} ({len(keys)} in all), wants VGG16 features and the "
                    "LPIPS linear layers for VGG"
                )
        with torch.no_grad():
            for key, parameter in wanted.items():
                parameter.copy_(found[key])
        return located.sha256


def vgg16_features() -> nn.Sequential:
    """The convolutions of VGG16 (Simonyan & Zisserman, 2015), numbered as torchvision's; no last pooling."""
    layers, channels = [], 3
    for number, stage in enumerate(STAGES):
        if number:
            layers.append(nn.MaxPool2d(kernel_size=2))
        for width in stage:
            layers += [nn.Conv2d(channels, width, kernel_size=3, padding=1), nn.ReLU()]
            channels = width
    return nn.Sequential(*layers)


def unit(features: Tensor) -> Tensor:
    """Scale each position's channel vector to length one."""
    return features / (torch.linalg.vector_norm(features, dim=1, keepdim=True) + 1e-10)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a .pth, .pt or .safetensors file, or of every such file in a folder."""
    suffixes = (".pth", ".pt", ".safetensors")
    files = sorted(f for f in path.iterdir() if f.suffix in suffixes) if path.is_dir() else [path]
    if not files or not files[0].is_file():
        raise ValueError(f"lpips_weights: got {path}, wants a .pth or .safetensors file or a folder with such files")
    tensors = {}
    for file in files:
        try:
            tensors |= load_tensors(file)
        except ValueError as error:
            raise ValueError(f"lpips_weights: {error}") from error
    return tensors
