"""Videos pass once: memory does not grow with their number, and parts join to what the whole gives."""

import tracemalloc
from types import SimpleNamespace

import numpy as np
import pytest

from medsora.alignment.flow import estimate_flow
from medsora.data import PrepareSettings, prepare_frames
from medsora.evaluation.features import Motion
from medsora.evaluation.measure import Evaluation, compare_motion, compare_spectra
from medsora.evaluation.reconstruction import in_batches, measure_reconstruction
from medsora.evaluation.reference import Reference, Window, resized
from medsora.evaluation.settings import EvaluateSettings
from medsora.evaluation.statistics import ClipStatistics, distance


def drawn(number, frames=8, side=32):
    return np.random.default_rng(number).integers(0, 256, (frames, side, side, 3), dtype=np.uint8)


class Drawn:
    """Videos that exist only while they are read."""

    kind, skipped, names = "folder", [], ["a.npy"]

    def __init__(self, count):
        self.count, self.shape, self.most = count, (8, 32, 32), 0

    def __len__(self):
        return self.count

    def read(self, number):
        return drawn(number)

    def prepare(self, progress=True):
        pass

    def require_enough(self, used):
        assert used == self.count

    def describe(self):
        return {"source": "drawn"}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "phantom"
    prepare_frames("builtin:phantom:4", folder, PrepareSettings(size=32, num_frames=8, val_fraction=0.3), False)
    return folder


def evaluation(dataset, count, windows=20):
    settings = EvaluateSettings(reference_videos=windows, nearest=2, batch_size=3)
    reference = Reference(dataset, "all", 32)
    still = lambda frames: np.zeros((len(frames) - 1, *frames.shape[1:3], 2), np.float32)  # noqa: E731
    return Evaluation(Drawn(count), reference, [Motion()], still, settings, progress=False)


def test_many_videos_need_the_memory_of_a_few(dataset):
    def peak(count):
        tracemalloc.start()
        found = evaluation(dataset, count).run()
        used = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert found["generation"]["motion"]["generated"] == count
        return used

    peak(18)
    few, many = peak(18), peak(72)
    assert many - few < 4 * drawn(0).nbytes, (few, many)  # 54 videos more


class FirstPixels:
    """Features of a frame: its first so many values."""

    name, title, size, unit, shortest = "pixels", "first pixels", 400, "frame", 1
    protocol = {"features": "first pixels"}

    def __call__(self, clips):
        return {"features": clips.reshape(-1, 32 * 32 * 3)[:, : self.size].astype(float)}


def test_frames_that_several_windows_show_count_once_in_the_warning(dataset):
    compared = evaluation(dataset, 60, windows=80)
    compared.extractors = [FirstPixels()]
    interval = compared.interval
    shown = {frame.tobytes() for window in compared.windows for frame in compared.reference.read(window, 8, interval)}
    found = compared.run()
    assert found["generation"]["pixels"]["real"] == 8 * 80 > FirstPixels.size > len(shown)
    assert [w for w in found["warnings"] if "pixels" in w] == [
        f"first pixels: {len(shown)} recorded frames are too few for features of 400 numbers, so the distance is too "
        "large and depends on their number; compare it only with distances of as many."
    ]


def test_statistics_in_batches_are_those_of_all_at_once(dataset):
    clips = np.stack([drawn(number) for number in range(7)])
    whole, parts, other = (ClipStatistics([Motion()], 8) for _ in range(3))
    whole.add(clips, [Motion()], estimate_flow)
    for batch in in_batches(clips[:4], 3):
        parts.add(np.stack(batch), [Motion()], estimate_flow)
    other.add(clips[4:], [Motion()], estimate_flow)
    parts.merge(other)
    assert (parts.clips, parts.frames) == (whole.clips, whole.frames) == (7, 56)
    np.testing.assert_allclose(parts.energies, whole.energies)
    assert distance("motion", parts.moments("motion"), whole.moments("motion")) == pytest.approx(0, abs=1e-6)
    assert compare_spectra(whole, parts)["distance"] == pytest.approx(0, abs=1e-9)
    found = compare_motion(whole, parts, "dis")
    assert found["wasserstein"]["speed"] == 0 and found["real"]["speed"]["mean"] > 0


def test_windows_are_all_or_drawn_without_repetition(dataset):
    reference = Reference(dataset, "all", 32)
    every = reference.windows(8, 2, 10_000, True, 0)
    assert len(every) == len(set(every)) == 4 * (24 - 14) * 2
    some = reference.windows(8, 2, 30, True, 5)
    assert len(set(some)) == 30 and set(some) < set(every) and some == sorted(some, key=every.index)
    assert some == reference.windows(8, 2, 30, True, 5) != reference.windows(8, 2, 30, True, 6)
    assert not any(window.flip for window in reference.windows(8, 2, 10_000, False, 0))
    whole = reference.whole_windows(8, 100)
    assert len(whole) == 12 and len(reference.whole_windows(8, 5)) == 5
    assert {window.start for window in whole} == {0, 8, 16}


def test_windows_are_the_frames_they_name(dataset):
    reference = Reference(dataset, "train", 32)
    name, frames = next(reference.recordings())
    np.testing.assert_array_equal(reference.read(Window(name, 3), 4, 2), frames[3:10:2])
    np.testing.assert_array_equal(reference.read(Window(name, 3, True), 4, 2), frames[3:10:2, :, ::-1])
    smaller = Reference(dataset, "train", 16).read(Window(name, 0), 2, 1)
    np.testing.assert_allclose(smaller, frames[:2].reshape(2, 16, 2, 16, 2, 3).mean((2, 4)), atol=1)


def test_resizing_cuts_the_long_side_at_its_centre():
    frames = np.zeros((1, 40, 60, 3), np.uint8)
    frames[:, :, 10:50] = 200
    assert (resized(frames, 40) == 200).all() and (resized(frames, 20) == 200).all()


class Halving:
    """A video autoencoder of no weights that gives frames back at half their contrast."""

    device, dtype = "cpu", __import__("torch").float32

    def encode(self, x):
        return SimpleNamespace(latent_dist=SimpleNamespace(mode=lambda: x))

    def decode(self, z):
        return SimpleNamespace(sample=z / 2)


def test_reconstruction_measures_what_an_autoencoder_does():
    seen = []
    clips = [drawn(number) for number in range(5)]
    found = measure_reconstruction(Halving(), iter(clips), 8, 2, look=lambda clip, made: seen.append((clip, made)))
    assert (found["clips"], found["frames"], found["size"], found["lpips"]) == (5, 8, [32, 32], None)
    perceived = measure_reconstruction(Halving(), iter(clips), 8, 2, lpips=lambda a, b: (a - b).abs().mean((1, 2, 3)))
    apart = np.mean([np.abs(a.astype(float) - b).mean() / 127.5 for a, b in seen])  # frames go in in [-1, 1]
    assert perceived["lpips"] == pytest.approx(apart, rel=1e-5) and perceived["psnr"] == found["psnr"]
    error = np.mean([10 * np.log10(255**2 / np.square(a.astype(float) - b).mean()) for a, b in seen])
    assert found["psnr"] == pytest.approx(error) and len(seen) == 5
    np.testing.assert_allclose(found["spectrum"]["energy_ratio"], 0.25, atol=0.01)
    np.testing.assert_allclose(found["spectrum"]["error_ratio"], 0.25, atol=0.01)
    assert found["spectrum"]["distance"] == pytest.approx(20 * np.log10(2), abs=0.1)
    with pytest.raises(ValueError, match="got none"):
        measure_reconstruction(Halving(), iter(()))
