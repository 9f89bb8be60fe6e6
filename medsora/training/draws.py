"""What chance decides in training, as a pure function of (seed, purpose, step, global sample index).

A counter-based generator (Philox, Salmon et al., SC 2011) is keyed by seed and purpose and its counter starts at the
step and the sample's number in the global batch. Rank, micro-batch and history never enter, so one process and many
see the same numbers, and a resumed run needs no stored generator state.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch


@dataclass(frozen=True)
class Part:
    """One of `parts` equal, contiguous parts of a global batch; a rank's micro-batch is such a part."""

    number: int = 0
    parts: int = 1

    def indices(self, total: int) -> range:
        """Global sample indices of this part of `total` samples; a ValueError if the parts would not be equal."""
        if total % self.parts:
            raise ValueError(f"total: got {total} samples, wants a multiple of {self.parts} parts")
        size = total // self.parts
        return range(self.number * size, (self.number + 1) * size)


@dataclass(frozen=True)
class Draws:
    """All random numbers of one stage of training.

    seed: any integer of the user's; stage: a name, so that two stages do not share numbers.
    """

    seed: int
    stage: str = ""

    def generator(self, purpose: str, step: int, index: int = 0) -> np.random.Generator:
        """A numpy generator whose stream belongs to this purpose, step and sample alone."""
        return np.random.Generator(np.random.Philox(key=self._key(purpose), counter=[0, index, step, 0]))

    def normal(self, purpose: str, step: int, indices: Sequence[int], shape: Sequence[int]) -> torch.Tensor:
        """Standard normal numbers, float32 (len(indices), *shape)."""
        shape = tuple(shape)
        draws = [self.generator(purpose, step, i).standard_normal(shape, dtype=np.float32) for i in indices]
        return torch.from_numpy(np.stack(draws)) if draws else torch.empty(0, *shape)

    def uniform(self, purpose: str, step: int, indices: Sequence[int]) -> np.ndarray:
        """Numbers in [0, 1), float64 (len(indices),)."""
        return np.array([self.generator(purpose, step, i).random() for i in indices], dtype=np.float64)

    def chance(self, purpose: str, step: int, indices: Sequence[int], probability: float) -> torch.Tensor:
        """True with the given probability for each sample, bool (len(indices),)."""
        return torch.from_numpy(self.uniform(purpose, step, indices) < probability)

    def items(self, purpose: str, step: int, indices: Sequence[int], total: int, count: int) -> list[int]:
        """Which of `count` items each sample takes, without replacement within an epoch.

        total: samples in one global batch. An epoch is `count` draws; each epoch has an order of its own.
        """
        if count < 1:
            raise ValueError(f"count: got {count} items to draw from, wants at least 1")
        places = [step * total + i for i in indices]
        return [int(self._epoch_order(purpose, place // count, count)[place % count]) for place in places]

    def timesteps(self, step: int, indices: Sequence[int], total: int, num_train_timesteps: int) -> torch.Tensor:
        """Diffusion timesteps, int64 (len(indices),), each uniform on [0, num_train_timesteps).

        Stratified: the batch's `total` samples fall into `total` equal strata in a random order, which lowers the
        variance of the batch's loss and keeps each sample's own distribution uniform.
        """
        strata = self.generator("timestep strata", step).permutation(total)
        offsets = self.uniform("timestep", step, indices)
        return torch.tensor(
            [
                min(int((strata[i] + u) / total * num_train_timesteps), num_train_timesteps - 1)
                for i, u in zip(indices, offsets, strict=True)
            ],
            dtype=torch.int64,
        )

    def integer(self, purpose: str, step: int = 0, index: int = 0) -> int:
        """A seed below 2^63 for generators other than numpy's."""
        return int(self.generator(purpose, step, index).integers(2**63))

    def _epoch_order(self, purpose: str, epoch: int, count: int) -> np.ndarray:
        return _permutation(self, purpose + " order", epoch, count)

    def _key(self, purpose: str) -> np.ndarray:
        return _key(self.seed, self.stage, purpose)


@lru_cache(maxsize=256)
def _key(seed: int, stage: str, purpose: str) -> np.ndarray:
    digest = hashlib.sha256(repr((int(seed), stage, purpose)).encode()).digest()
    return np.frombuffer(digest[:16], dtype=np.uint64)


@lru_cache(maxsize=8)
def _permutation(draws: Draws, purpose: str, epoch: int, count: int) -> np.ndarray:
    return draws.generator(purpose, epoch).permutation(count)
