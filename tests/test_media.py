"""Written videos: what was put in comes out again, the synthetic mark is in the file, and no part file is left."""

import os

import av
import numpy as np
import pytest
import torch
from PIL import Image

from medsora import media


@pytest.fixture(scope="module")
def clip():
    """A coloured disc that moves over a gradient: uint8 (12, 48, 64, 3)."""
    rows, columns = np.mgrid[:48, :64]
    frames = np.zeros((12, 48, 64, 3), np.uint8)
    for t in range(12):
        frames[t, ..., 2] = columns * 2
        frames[t][np.hypot(rows - 24, columns - 10 - 4 * t) < 8] = (220, 60, 40)
    return frames


def decoded(path):
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(stream)])
        return frames, float(stream.average_rate), stream.codec_context.name


def error(a, b):
    return np.abs(a.astype(float) - b.astype(float)).mean()


def test_mp4_comes_back(tmp_path, clip):
    media.write_mp4(tmp_path / "a.mp4", clip, 12.5)
    frames, rate, codec = decoded(tmp_path / "a.mp4")
    assert frames.shape == clip.shape and rate == pytest.approx(12.5)
    assert error(frames, clip) < 4
    assert codec == ("h264" if "libx264" in av.codecs_available else "mpeg4")


def test_mp4_of_odd_size_gets_one_more_row_and_column(tmp_path, clip):
    odd = clip[:, :47, :63]
    media.write_mp4(tmp_path / "a.mp4", odd, 10)
    frames, _, _ = decoded(tmp_path / "a.mp4")
    assert frames.shape == clip.shape
    assert error(frames[:, :47, :63], odd) < 4


def test_mp4_without_x264_is_mpeg4(tmp_path, clip, monkeypatch):
    monkeypatch.setattr(av, "codecs_available", av.codecs_available - {"libx264"})
    media.write_mp4(tmp_path / "a.mp4", clip, 10)
    frames, rate, codec = decoded(tmp_path / "a.mp4")
    assert codec == "mpeg4" and rate == 10
    assert error(frames, clip) < 6
    assert media.read_mark(tmp_path / "a.mp4") == media.SYNTHETIC_MARK


def test_mp4_of_one_frame_and_a_fractional_rate(tmp_path, clip):
    media.write_mp4(tmp_path / "a.mp4", clip[:1], 29.97)
    frames, rate, _ = decoded(tmp_path / "a.mp4")
    assert len(frames) == 1 and rate == pytest.approx(29.97)


def test_the_same_frames_give_the_same_bytes(clip):
    assert media.encode_mp4(clip, 10) == media.encode_mp4(clip, 10)


def test_an_mp4_that_grows_in_pieces_is_that_of_all_frames(tmp_path, clip):
    with media.Mp4Writer(tmp_path / "a.mp4", 10) as writer:
        for piece in (clip[:1], clip[1:7], clip[7:]):
            writer.add(piece)
        with pytest.raises(ValueError, match=r"frames: got \(24, 32\) pixels, wants \(48, 64\) as before"):
            writer.add(clip[:, :24, :32])
    assert (tmp_path / "a.mp4").read_bytes() == media.encode_mp4(clip, 10)


def test_gif_comes_back(tmp_path, clip):
    media.write_gif(tmp_path / "a.gif", clip, 10)
    with Image.open(tmp_path / "a.gif") as gif:
        assert gif.n_frames == 12 and gif.info["loop"] == 0
        for t in range(12):
            gif.seek(t)
            assert gif.info["duration"] == 100
            assert error(np.asarray(gif.convert("RGB")), clip[t]) < 4


def test_gif_keeps_its_rate_though_it_counts_in_hundredths_of_a_second(tmp_path, clip):
    media.write_gif(tmp_path / "a.gif", clip, 30)
    with Image.open(tmp_path / "a.gif") as gif:
        lengths = []
        for t in range(gif.n_frames):
            gif.seek(t)
            lengths.append(gif.info["duration"])
    assert set(lengths) == {30, 40} and sum(lengths) == 400


def test_contact_sheet_shows_evenly_spaced_frames_enlarged(tmp_path, clip):
    flat = np.zeros((9, 16, 16, 3), np.uint8) + (np.arange(9) * 20).astype(np.uint8)[:, None, None, None]
    media.contact_sheet(tmp_path / "a.png", [flat, flat[:2]], columns=5)
    sheet = np.asarray(Image.open(tmp_path / "a.png"))
    tile, gap = 16 * 16, media.GAP  # enlarged to LARGEST_TILE
    assert sheet.shape == (2 * (tile + gap) + gap, 5 * (tile + gap) + gap, 3)
    middles = [gap + tile // 2 + i * (tile + gap) for i in range(5)]
    assert [int(sheet[middles[0], x, 0]) for x in middles] == [0, 40, 80, 120, 160]
    assert [int(sheet[middles[1], x, 0]) for x in middles] == [0, 20, *[media.BACKGROUND[0]] * 3]


def test_contact_sheet_stays_within_its_width_and_writes_labels(tmp_path, clip):
    media.contact_sheet(tmp_path / "plain.png", [clip], columns=12)
    media.contact_sheet(tmp_path / "labelled.png", [clip], columns=12, labels=["normal"])
    plain, labelled = (Image.open(tmp_path / f"{name}.png") for name in ("plain", "labelled"))
    assert plain.width == 12 * (2 * 64 + media.GAP) + media.GAP
    assert labelled.height > plain.height
    strip = np.asarray(labelled)[: labelled.height - plain.height]
    assert (strip > 150).any()  # ink


@pytest.mark.parametrize("name", ["a.mp4", "a.gif", "a.png"])
@pytest.mark.parametrize("synthetic", [True, False])
def test_the_mark_is_there_unless_the_video_is_real(tmp_path, clip, name, synthetic):
    path = tmp_path / name
    if name.endswith("mp4"):
        media.write_mp4(path, clip, 10, synthetic=synthetic)
    elif name.endswith("gif"):
        media.write_gif(path, clip, 10, synthetic=synthetic)
    else:
        media.contact_sheet(path, [clip], synthetic=synthetic)
    assert media.read_mark(path) == (media.SYNTHETIC_MARK if synthetic else None)
    assert (b"synthetic: generated by MedSora" in path.read_bytes()) == synthetic


def test_mp4_bears_the_mark_as_its_title_too(tmp_path, clip):
    media.write_mp4(tmp_path / "a.mp4", clip, 10)
    with av.open(str(tmp_path / "a.mp4")) as container:
        assert container.metadata["title"] == media.SYNTHETIC_MARK


@pytest.mark.parametrize("write", [media.write_mp4, media.write_gif])
@pytest.mark.parametrize(
    ("frames", "fps", "words"),
    [
        (np.zeros((2, 8, 8, 3)), 10, "frames: got float64"),
        (np.zeros((2, 8, 8), np.uint8), 10, "wants uint8"),
        (np.zeros((0, 8, 8, 3), np.uint8), 10, "none of them 0"),
        (np.zeros((2, 8, 8, 3), np.uint8), 0, "fps: got 0"),
        (np.zeros((2, 8, 8, 3), np.uint8), float("nan"), "fps: got nan"),
    ],
)
def test_bad_frames_and_rates_are_refused_and_nothing_is_written(tmp_path, write, frames, fps, words):
    with pytest.raises(ValueError, match=words):
        write(tmp_path / "a.out", frames, fps)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("videos", "options", "words"),
    [
        ([], {}, "at least one video"),
        ([np.zeros((2, 8, 8, 3), np.uint8), np.zeros((2, 8, 9, 3), np.uint8)], {}, "all of one size"),
        ([np.zeros((2, 8, 8, 3), np.uint8)], {"columns": 0}, "columns"),
        ([np.zeros((2, 8, 8, 3), np.uint8)], {"labels": ["a", "b"]}, "labels: got 2"),
    ],
)
def test_contact_sheet_refuses(tmp_path, videos, options, words):
    with pytest.raises(ValueError, match=words):
        media.contact_sheet(tmp_path / "a.png", videos, **options)


def test_a_failed_write_leaves_the_old_file(tmp_path, clip, monkeypatch):
    path = tmp_path / "a.mp4"
    media.write_mp4(path, clip, 10)
    before = path.read_bytes()

    def full(*_):
        raise OSError("no space left")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="no space"):
        media.write_mp4(path, clip[::-1], 10)
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["a.mp4"]


def test_to_uint8_rounds_clips_and_takes_tensors():
    values = [-1.0, 0.0, 0.5, 1.0, 2.0, float("nan")]
    expected = [0, 0, 128, 255, 255, 0]
    assert media.to_uint8(np.array(values)).tolist() == expected
    assert media.to_uint8(torch.tensor(values, dtype=torch.bfloat16)).tolist() == expected
