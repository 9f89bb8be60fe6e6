"""The Inception v3 of FID and IS: the network of 2015 with the weights that the project pytorch-fid converted.

After Szegedy et al. 2016, "Rethinking the Inception Architecture for Computer Vision"; what differs from torchvision's:
1008 classes, average pools that leave the rim's padding out, a maximum for a mean in the last block. Parameters are
named as in that file, so that it loads as it is.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

SIDE = 299  # pixels of the pictures it was trained on
FEATURES, CLASSES = 2048, 1008


class Convolution(nn.Module):
    """Convolution, batch norm, ReLU."""

    def __init__(self, channels: int, out: int, kernel, stride: int = 1, padding=0):
        super().__init__()
        self.conv = nn.Conv2d(channels, out, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(out, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.bn(self.conv(x)), inplace=True)


class Mixed(nn.Module):
    """Branches side by side, their channels joined.

    branches: a list of chains; a chain is a list of (name, out channels, kernel, stride), and may end in a list of such
        that all read what comes before it. pool: "mean" or "max", at the same size and with a convolution `branch_pool`
        to `pooled` channels behind it, or "shrink", a maximum by two alone.
    """

    def __init__(self, channels: int, branches: list[list], pool: str, pooled: int = 0):
        super().__init__()
        self.chains, self.pool = [], pool
        for branch in branches:
            before, chain = channels, []
            for step in branch:
                ends = step if isinstance(step, list) else [step]
                for name, out, kernel, stride in ends:
                    self.add_module(name, Convolution(before, out, kernel, stride, _padding(kernel, stride)))
                chain.append([name for name, *_ in ends])
                before = ends[0][1]
            self.chains.append(chain)
        if pooled:
            self.branch_pool = Convolution(channels, pooled, 1)

    def forward(self, x: Tensor) -> Tensor:
        made = []
        for chain in self.chains:
            hidden = [x]
            for names in chain:
                hidden = [getattr(self, name)(hidden[0]) for name in names]
            made += hidden
        if self.pool == "shrink":
            return torch.cat([*made, functional.max_pool2d(x, 3, 2)], 1)
        if self.pool == "max":
            pooled = functional.max_pool2d(x, 3, 1, 1)
        else:
            pooled = functional.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
        return torch.cat([*made, self.branch_pool(pooled)], 1)


class InceptionV3(nn.Module):
    """Features and class scores of pictures.

    forward(pictures (N, 3, 299, 299) in [-1, 1]) -> features (N, 2048), after the last pooling, and scores (N, 1008):
    logits without their bias, as the Inception score takes them.
    """

    def __init__(self):
        super().__init__()
        self.Conv2d_1a_3x3 = Convolution(3, 32, 3, stride=2)
        self.Conv2d_2a_3x3 = Convolution(32, 32, 3)
        self.Conv2d_2b_3x3 = Convolution(32, 64, 3, padding=1)
        self.Conv2d_3b_1x1 = Convolution(64, 80, 1)
        self.Conv2d_4a_3x3 = Convolution(80, 192, 3)
        self.Mixed_5b = fine(192, pooled=32)
        self.Mixed_5c = fine(256, pooled=64)
        self.Mixed_5d = fine(288, pooled=64)
        self.Mixed_6a = Mixed(
            288,
            [
                [("branch3x3", 384, 3, 2)],
                [("branch3x3dbl_1", 64, 1, 1), ("branch3x3dbl_2", 96, 3, 1), ("branch3x3dbl_3", 96, 3, 2)],
            ],
            "shrink",
        )
        self.Mixed_6b = long(128)
        self.Mixed_6c = long(160)
        self.Mixed_6d = long(160)
        self.Mixed_6e = long(192)
        self.Mixed_7a = Mixed(
            768,
            [
                [("branch3x3_1", 192, 1, 1), ("branch3x3_2", 320, 3, 2)],
                [
                    ("branch7x7x3_1", 192, 1, 1),
                    ("branch7x7x3_2", 192, (1, 7), 1),
                    ("branch7x7x3_3", 192, (7, 1), 1),
                    ("branch7x7x3_4", 192, 3, 2),
                ],
            ],
            "shrink",
        )
        self.Mixed_7b = wide(1280, "mean")
        self.Mixed_7c = wide(2048, "max")
        self.fc = nn.Linear(FEATURES, CLASSES)

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(pictures)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(functional.max_pool2d(x, 3, 2)))
        x = functional.max_pool2d(x, 3, 2)
        for name, block in self.named_children():
            if name.startswith("Mixed"):
                x = block(x)
        features = x.mean((2, 3))
        return features, functional.linear(features, self.fc.weight)


def fine(channels: int, pooled: int) -> Mixed:
    """The blocks on 35 x 35 places."""
    return Mixed(
        channels,
        [
            [("branch1x1", 64, 1, 1)],
            [("branch5x5_1", 48, 1, 1), ("branch5x5_2", 64, 5, 1)],
            [("branch3x3dbl_1", 64, 1, 1), ("branch3x3dbl_2", 96, 3, 1), ("branch3x3dbl_3", 96, 3, 1)],
        ],
        "mean",
        pooled,
    )


def long(width: int) -> Mixed:
    """The blocks on 17 x 17 places, whose kernels are rows and columns of seven."""
    row, column = (1, 7), (7, 1)
    return Mixed(
        768,
        [
            [("branch1x1", 192, 1, 1)],
            [("branch7x7_1", width, 1, 1), ("branch7x7_2", width, row, 1), ("branch7x7_3", 192, column, 1)],
            [
                ("branch7x7dbl_1", width, 1, 1),
                ("branch7x7dbl_2", width, column, 1),
                ("branch7x7dbl_3", width, row, 1),
                ("branch7x7dbl_4", width, column, 1),
                ("branch7x7dbl_5", 192, row, 1),
            ],
        ],
        "mean",
        192,
    )


def wide(channels: int, pool: str) -> Mixed:
    """The blocks on 8 x 8 places, whose branches fork at their ends."""
    row, column = (1, 3), (3, 1)
    return Mixed(
        channels,
        [
            [("branch1x1", 320, 1, 1)],
            [("branch3x3_1", 384, 1, 1), [("branch3x3_2a", 384, row, 1), ("branch3x3_2b", 384, column, 1)]],
            [
                ("branch3x3dbl_1", 448, 1, 1),
                ("branch3x3dbl_2", 384, 3, 1),
                [("branch3x3dbl_3a", 384, row, 1), ("branch3x3dbl_3b", 384, column, 1)],
            ],
        ],
        pool,
        192,
    )


def _padding(kernel, stride: int):
    """What keeps the size; none where it shrinks."""
    if stride > 1:
        return 0
    return tuple(side // 2 for side in kernel) if isinstance(kernel, tuple) else kernel // 2
