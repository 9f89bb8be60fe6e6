"""Draws depend on seed, purpose, step and global sample index, and on nothing else."""

import numpy as np
import pytest
import torch

from medsora.training.draws import Draws, Part


def test_a_sample_draws_the_same_whatever_batch_it_is_in():
    draws = Draws(7, "denoiser")
    whole = draws.normal("noise", 3, range(8), (2, 5))
    by_parts = [draws.normal("noise", 3, Part(i, 4).indices(8), (2, 5)) for i in range(4)]
    assert torch.equal(whole, torch.cat(by_parts))
    assert torch.equal(draws.normal("noise", 3, [6], (2, 5))[0], whole[6])


@pytest.mark.parametrize("purpose", ["timesteps", "items"])
def test_batch_wide_draws_split_into_the_same_parts(purpose):
    draws = Draws(7, "denoiser")

    def draw(indices):
        if purpose == "timesteps":
            return draws.timesteps(11, indices, 12, 1000).tolist()
        return draws.items("clip", 11, indices, 12, 5)

    assert sum((draw(Part(i, 3).indices(12)) for i in range(3)), []) == draw(range(12))


def test_seed_stage_purpose_step_and_index_each_matter():
    base = Draws(0, "a").normal("noise", 1, [2], (16,))
    others = [
        Draws(1, "a").normal("noise", 1, [2], (16,)),
        Draws(0, "b").normal("noise", 1, [2], (16,)),
        Draws(0, "a").normal("other", 1, [2], (16,)),
        Draws(0, "a").normal("noise", 2, [2], (16,)),
        Draws(0, "a").normal("noise", 1, [3], (16,)),
    ]
    assert all(not torch.equal(base, other) for other in others)


def test_values_are_fixed_for_good():
    """A change here breaks the exact resume of every run under way."""
    draws = Draws(20241103, "vae")
    assert draws.items("clip", 0, range(6), 6, 6) == [1, 4, 5, 3, 0, 2]
    assert draws.generator("noise", 5, 1).integers(2**32, size=2).tolist() == [1089358273, 462401787]
    assert draws.timesteps(0, range(4), 4, 1000).tolist() == [493, 921, 222, 590]


def test_every_item_is_taken_once_an_epoch():
    draws = Draws(3, "vae")
    taken = [item for step in range(15) for item in draws.items("clip", step, range(4), 4, 10)]
    epochs = [taken[start : start + 10] for start in range(0, 60, 10)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1


def test_timesteps_fill_their_strata_and_reach_both_ends():
    draws = Draws(0, "denoiser")
    batches = np.array([draws.timesteps(step, range(4), 4, 1000).numpy() for step in range(300)])
    assert (np.sort(batches // 250, axis=1) == [0, 1, 2, 3]).all()
    assert batches.min() < 10 and batches.max() > 990
    assert (np.abs(batches.mean(axis=0) - 499.5) < 60).all()  # each place in the batch is uniform over all steps


def test_normal_numbers_are_standard_normal_and_chances_are_met():
    draws = Draws(0)
    numbers = draws.normal("noise", 0, range(64), (256,))
    assert numbers.dtype == torch.float32
    assert abs(float(numbers.mean())) < 0.03 and abs(float(numbers.std()) - 1) < 0.03
    assert abs(float(draws.chance("drop", 0, range(4000), 0.1).float().mean()) - 0.1) < 0.02


def test_unequal_parts_are_refused():
    with pytest.raises(ValueError, match="got 10 samples"):
        Part(0, 4).indices(10)
