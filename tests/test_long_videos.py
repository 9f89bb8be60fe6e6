"""Videos longer than a window: how windows are joined, what decides them, and that memory does not grow."""

import gc
from itertools import islice

import numpy as np
import pytest
import torch
from micro_model import micro_pipeline

from medsora.long_videos import count_windows, joined

CALL = dict(num_inference_steps=2, progress=False)


@pytest.fixture(scope="module")
def pipeline():
    return micro_pipeline(levels=100)  # few levels, so that untrained predictions are not blown up


def given_frames(count):
    return np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)


def whole(chunks):
    return np.concatenate(list(chunks), axis=1)


class TestJoining:
    @pytest.mark.parametrize("window, overlap", [(16, 1), (16, 8), (17, 9), (9, 8), (8, 1)])
    @pytest.mark.parametrize("num_frames", [1, 5, 8, 16, 17, 24, 25, 100])
    def test_equal_neighbours_make_one_video(self, window, overlap, num_frames):
        """Windows cut from one long video give it back, in as few windows as hold it."""
        count = count_windows(num_frames, window, overlap)
        starts = [i * (window - overlap) for i in range(count)]
        assert starts[-1] + window >= num_frames and (count == 1 or starts[-2] + window < num_frames)
        video = torch.rand(2, starts[-1] + window, 2, 2, 3)
        chunks = list(joined((video[:, s : s + window] for s in starts), overlap, num_frames))
        assert len(chunks) == count
        torch.testing.assert_close(torch.cat(chunks, 1), video[:, :num_frames])

    @pytest.mark.parametrize("overlap", [1, 8])
    def test_a_difference_is_spread_over_the_shared_frames(self, overlap):
        windows = (torch.full((1, 16, 1, 1, 3), float(value)) for value in (0, 1))
        made = torch.cat(list(joined(windows, overlap, 32 - overlap)), 1)[0, :, 0, 0, 0]
        steps = made.diff()
        assert made.shape == (32 - overlap,) and made[0] == 0 and made[-1] == 1
        torch.testing.assert_close(steps[steps > 0], torch.full((overlap + 1,), 1 / (overlap + 1)))

    def test_windows_are_asked_for_one_by_one(self):
        asked = []

        def windows():
            for number in range(1000):
                asked.append(number)
                yield torch.zeros(1, 8, 1, 1, 3)

        chunks = joined(windows(), 1, None)
        assert not asked
        assert sum(chunk.shape[1] for chunk in islice(chunks, 3)) == 21 and asked == [0, 1, 2]


class TestVideos:
    def test_the_first_window_is_the_short_video(self, pipeline):
        short = pipeline(num_videos=2, seed=3, class_labels=1, **CALL).videos
        video = whole(pipeline.long(20, num_videos=2, seed=3, class_labels=1, overlap=1, **CALL))
        assert video.shape == (2, 20, 32, 32, 3) and video.dtype == np.float32
        np.testing.assert_array_equal(video[:, :7], short[:, :7])
        assert video.min() >= 0 and video.max() <= 1

    def test_a_window_goes_on_from_the_frames_before_it(self, pipeline):
        """The second window is the video a call makes from the first one's last frames and the window's noise."""
        overlap, seen = 8, []
        hook = pipeline.denoiser.register_forward_pre_hook(lambda _, a, k: seen.append(k), with_kwargs=True)
        with hook:
            first, second = islice(pipeline.long(None, window=16, overlap=overlap, **CALL), 2)
        given = pipeline(num_frames=16, **CALL).videos[:, -overlap:]
        np.testing.assert_array_equal(first, pipeline(num_frames=16, **CALL).videos[:, :-overlap])
        with torch.no_grad():
            encoded = pipeline.vae.encode(torch.from_numpy(given).permute(0, 4, 1, 2, 3) * 2 - 1).latent_dist.mean
        expected = encoded.transpose(1, 2) * 0.7
        assert "first_frames" not in seen[0] and len(seen) == 4
        assert seen[2]["first_frames_mask"].tolist() == [[1.0, 1.0, 0.0, 0.0]]
        torch.testing.assert_close(seen[2]["first_frames"][:, :2], expected)

    def test_seed_video_and_window_decide(self, pipeline):
        long = {n: whole(pipeline.long(n, overlap=1, seed=2, **CALL)) for n in (22, 29)}
        np.testing.assert_array_equal(long[22][:, :21], long[29][:, :21])
        other = whole(pipeline.long(22, overlap=1, seed=5, **CALL))
        assert np.abs(other - long[22]).max() > 0.01
        pair = whole(pipeline.long(22, num_videos=2, first_index=0, overlap=1, seed=2, **CALL))
        np.testing.assert_allclose(pair[:1], long[22], atol=1e-4)
        later = whole(pipeline.long(22, first_index=1, overlap=1, seed=2, **CALL))
        np.testing.assert_allclose(pair[1:], later, atol=1e-4)
        fresh = micro_pipeline(fresh=True)  # predicts nothing: what differs are the draws
        windows = [fresh._sample(fresh.check_inputs(), range(1), None, lambda n: None, k) for k in range(3)]
        assert len({float(w.sum()) for w in windows}) == 3

    def test_given_frames_labels_and_guidance_reach_each_window(self, pipeline):
        call = dict(overlap=1, class_labels="b", guidance_scale=2.0, first_frame=given_frames(1), **CALL)
        seen, named = [], micro_pipeline(levels=100)
        named.register_to_config(class_names=["a", "b", "c"])
        with named.denoiser.register_forward_pre_hook(lambda _, a, k: seen.append(k), with_kwargs=True):
            whole(named.long(15, **call))
        assert [None if k["class_labels"] is None else k["class_labels"].item() for k in seen] == [1, None] * 4
        assert all("first_frames" in k for k in seen)
        seen.clear()  # without a label or a first frame, the frames of the window before guide
        with named.denoiser.register_forward_pre_hook(lambda _, a, k: seen.append(k), with_kwargs=True):
            whole(named.long(15, overlap=1, guidance_scale=2.0, **CALL))
        assert ["first_frames" in k for k in seen] == [False, False, True, False, True, False]

    def test_bar_and_callback_count_all_windows(self, pipeline, capfd):
        steps = []
        whole(pipeline.long(22, overlap=1, num_videos=2, num_inference_steps=3, on_step=steps.append))
        assert steps == [2] * 9 and "9/9" in capfd.readouterr().err


def test_memory_does_not_depend_on_the_length(pipeline):
    def most_alive(windows):
        gc.collect()
        sizes = []
        for chunk in pipeline.long(1 + 7 * windows, overlap=1, output_type="pt", **CALL):
            del chunk
            gc.collect()
            sizes.append(sum(x.nbytes for x in gc.get_objects() if type(x) is torch.Tensor))
        assert len(sizes) == windows
        return max(sizes)

    gc.freeze()  # what is there already is not looked through again and again
    try:
        assert most_alive(12) == most_alive(3) > 0
    finally:
        gc.unfreeze()


WRONG = [
    (dict(num_frames=0), "num_frames: got 0, wants 1 or more"),
    (dict(num_frames=2.5), "num_frames: got 2.5, wants 1 or more"),
    (dict(window=12), r"window: got 12, wants 1, 8k or 8k \+ 1 frames"),
    (dict(overlap=2), "overlap: got 2, wants the number of frames this model was given in training, 1, 8 or 9"),
    (dict(overlap=8), "overlap: got 8, wants fewer than the 8 frames of a window"),
    (dict(window=1), "overlap: got 1, wants fewer than the 1 frames of a window"),
    (dict(batch_size=2), "batch_size: got 2, wants num_videos alone"),
    (dict(output_type="latent"), "output_type: got 'latent', wants np or pt"),
    (dict(class_labels=7), "class_labels: got 7, wants numbers from 0 to 2"),
    (dict(guidance_scale=-1.0), "guidance_scale: got -1.0, wants a number of 0 or more"),
    (dict(first_frame=given_frames(9)), "first_frame: got 9 frames, wants at most the video's 8"),
]


@pytest.mark.parametrize("arguments, words", WRONG, ids=[words[:40] for _, words in WRONG])
def test_a_wrong_argument_is_named_at_once(pipeline, arguments, words):
    with pytest.raises(ValueError, match=words):
        pipeline.long(**{"num_frames": 20} | arguments)


def test_a_model_without_given_frames_cannot_go_on():
    plain = micro_pipeline(first_frame_conditioning=False)
    with pytest.raises(ValueError, match="overlap: got 1, wants a model trained with first_frame_conditioning"):
        plain.long(20, overlap=1)
