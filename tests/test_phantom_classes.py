"""The parts of the benchmark of classes: its clips, its classifier, its tables."""

import numpy as np
import torch

from benchmarks.phantom_classes import accuracy, as_text, confusion, rendered_clips, trained_classifier
from medsora.data.phantom import render


def spotted_clips(count, seed):
    """Noise; those of class 1 have a red spot somewhere."""
    rng = np.random.default_rng(seed)
    clips, classes = rng.integers(60, 120, (count, 4, 32, 32, 3), dtype=np.uint8), np.arange(count) % 2
    for clip in clips[1::2]:
        row, column = rng.integers(0, 26, 2)
        clip[:, row : row + 6, column : column + 6] = (220, 20, 20)
    return clips, classes


def test_rendered_clips_are_windows_of_both_classes_of_each_anatomy():
    clips, classes = rendered_clips(range(30_000, 30_002))
    assert clips.shape == (4, 16, 32, 32, 3) and clips.dtype == np.uint8 and classes.tolist() == [0, 1, 0, 1]
    assert np.array_equal(clips[3], render(30_001, 24, 32, polyp=True)[8:])


def test_the_classifier_finds_a_spot_in_clips_it_has_not_seen():
    state = torch.get_rng_state()
    model = trained_classifier(*spotted_clips(64, 0), steps=60, seed=0, batch=16)
    assert torch.equal(torch.get_rng_state(), state)  # it draws numbers of its own
    table = confusion(model, *spotted_clips(40, 1))
    assert [sum(row) for row in table] == [20, 20] and accuracy(table) > 0.9
    again = trained_classifier(*spotted_clips(64, 0), steps=60, seed=0, batch=16)
    assert confusion(again, *spotted_clips(40, 1)) == table


def test_tables_count_what_was_told():
    model = torch.nn.Module()
    model.forward = lambda clips: torch.stack([torch.zeros(len(clips)), clips[:, 0, 0, 0, 0].float() - 100], 1)
    clips = np.zeros((5, 1, 1, 1, 3), np.uint8)
    clips[2:] = 200
    table = confusion(model, clips, np.array([0, 0, 0, 1, 1]))
    assert table == [[2, 1], [0, 2]] and accuracy(table) == 0.8
    assert "80.0%" in as_text({"made up": table})
