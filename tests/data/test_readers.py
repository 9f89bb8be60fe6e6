"""Each kind of file is read to the right frames, and each kind of damage ends in a sentence."""

from fractions import Fraction

import numpy as np
import pytest
from made_recordings import moving_frames, write_dicom, write_stills, write_truncated_mp4, write_video
from PIL import Image

from medsora.data import UnreadableVideo, read_video
from medsora.data.stills import natural_key

FRAMES = moving_frames(12)


def closeness(frames, wanted):
    """Mean absolute difference, in grey levels."""
    assert frames.dtype == np.uint8 and frames.shape == wanted.shape
    return np.abs(frames.astype(int) - wanted).mean()


@pytest.mark.parametrize(
    ("name", "codec", "pixels"),
    [
        ("a.mp4", "mpeg4", "yuv420p"),
        ("a.avi", "mpeg4", "yuv420p"),
        ("a.mov", "mjpeg", "yuvj420p"),
        ("a.mkv", "ffv1", "yuv444p"),
        ("a.webm", "libvpx-vp9", "yuv420p"),
        ("A.MP4", "libx264", "yuv420p"),
    ],
)
def test_video_files(tmp_path, name, codec, pixels):
    video = read_video(write_video(tmp_path / name, FRAMES, 20, codec, pixels))
    assert closeness(video.frames, FRAMES) < 6
    assert video.fps == pytest.approx(20, rel=0.01)
    assert video.patient is None and video.warnings == []


def test_gif(tmp_path):
    Image.fromarray(FRAMES[0]).save(
        tmp_path / "a.gif", save_all=True, append_images=[Image.fromarray(f) for f in FRAMES[1:]], duration=100
    )
    video = read_video(tmp_path / "a.gif")
    assert closeness(video.frames, FRAMES) < 8 and video.fps == pytest.approx(10, rel=0.01)


def test_rotated_video_comes_upright(tmp_path):
    """Phones store portrait video lying down, with a matrix that says how to turn it."""
    path = write_video(tmp_path / "a.mp4", FRAMES)
    data = path.read_bytes()
    upright = b"".join(v.to_bytes(4, "big") for v in (0x10000, 0, 0, 0, 0x10000, 0, 0, 0, 0x40000000))
    clockwise = b"".join(
        v.to_bytes(4, "big", signed=True) for v in (0, 0x10000, 0, -0x10000, 0, 0, 48 << 16, 0, 0x40000000)
    )
    header = data.index(b"tkhd")
    place = data.index(upright, header)
    path.write_bytes(data[:place] + clockwise + data[place + 36 :])
    assert closeness(read_video(path).frames, np.rot90(FRAMES, -1, axes=(1, 2))) < 6


def test_wide_pixels_are_made_square(tmp_path):
    path = write_video(tmp_path / "a.mp4", FRAMES, aspect=Fraction(3, 2))
    assert read_video(path).frames.shape == (12, 48, 96, 3)


def test_truncated_mp4_gives_what_is_there(tmp_path):
    video = read_video(write_truncated_mp4(tmp_path / "a.mp4", moving_frames(40)))
    assert 8 <= len(video.frames) < 40
    assert "damaged or cut off" in video.warnings[0] and "of 40" in video.warnings[0]


@pytest.mark.parametrize("lost", [600, 2500])
def test_mp4_without_its_index_is_refused(tmp_path, lost):
    path = write_video(tmp_path / "a.mp4", FRAMES)
    path.write_bytes(path.read_bytes()[:-lost])
    with pytest.raises(UnreadableVideo, match="a.mp4 cannot be read: .*cut off"):
        read_video(path)


def test_text_called_mp4_is_refused(tmp_path):
    (tmp_path / "notes.mp4").write_text("Patient was calm. " * 50)
    with pytest.raises(UnreadableVideo, match="cannot be opened as a video"):
        read_video(tmp_path / "notes.mp4")


def test_sound_without_pictures_is_refused(tmp_path):
    import av

    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 44100), np.float32), format="fltp", layout="mono")
        sound.sample_rate = 44100
        container.mux(stream.encode(sound))
        container.mux(stream.encode())
    with pytest.raises(UnreadableVideo, match="no picture stream"):
        read_video(tmp_path / "a.mp4")


def test_frame_folder_in_natural_order(tmp_path):
    video = read_video(write_stills(tmp_path / "clip", FRAMES), default_fps=12)
    assert (video.frames == FRAMES).all() and video.fps == 12
    names = ["frame10.png", "Frame9.png", "a2b10.png", "a2b9.png", "5.png"]
    assert sorted(names, key=natural_key) == ["5.png", "a2b9.png", "a2b10.png", "Frame9.png", "frame10.png"]


def test_corrupt_frame_is_left_out(tmp_path):
    folder = write_stills(tmp_path / "clip", FRAMES)
    whole = (folder / "frame3.png").read_bytes()
    (folder / "frame3.png").write_bytes(whole[: len(whole) // 2])
    (folder / "frame5.png").write_text("no picture")
    Image.fromarray(FRAMES[0, :20]).save(folder / "frame7.png")
    video = read_video(folder)
    assert (video.frames == FRAMES[[0, 1, 2, 4, 6, 8, 9, 10, 11]]).all()
    assert ["frame3.png" in video.warnings[0], "frame5.png" in video.warnings[1]] == [True, True]
    assert "frame7.png is 64 x 20, not 64 x 48" in video.warnings[2]


def test_folder_of_only_corrupt_frames_is_refused(tmp_path):
    for number in range(9):
        (tmp_path / f"{number}.png").write_text("no picture")
    with pytest.raises(UnreadableVideo, match="not one of its 9 pictures"):
        read_video(tmp_path)


def test_sixteen_bit_stills(tmp_path):
    Image.fromarray(FRAMES[0, ..., 0].astype(np.uint16) << 8).save(tmp_path / "0.png")
    assert (read_video(tmp_path).frames[0, ..., 1] == FRAMES[0, ..., 0]).all()


def test_colour_dicom(tmp_path):
    path = write_dicom(tmp_path / "a.dcm", FRAMES, "RGB", FrameTime="40", PatientID=" P-17 ", PatientName="Doe^Jane")
    video = read_video(path)
    assert (video.frames == FRAMES).all() and video.fps == 25 and video.patient == "P-17" and video.warnings == []


def test_ybr_dicom_is_the_real_cine():
    from pydicom import examples

    from medsora.data import load_cine

    video, cine = read_video(examples.get_path("ybr_color")), load_cine()
    assert video.frames.shape == (30, 240, 320, 3) and video.fps == pytest.approx(30, rel=1e-3)
    assert (video.frames[:, 14:222, 68:276] == cine.frames).all() and cine.fps == video.fps
    assert 5 < cine.frames.mean() < 100  # an ultrasound: mostly dark


@pytest.mark.parametrize("inverted", [False, True])
def test_eight_bit_grey_dicom_keeps_its_values(tmp_path, inverted):
    grey = FRAMES[..., 0]
    path = write_dicom(tmp_path / "a.dcm", grey, "MONOCHROME1" if inverted else "MONOCHROME2", CineRate=15)
    video = read_video(path)
    assert (video.frames[..., 2] == (255 - grey if inverted else grey)).all() and video.fps == 15


def test_sixteen_bit_dicom_is_scaled_by_percentiles(tmp_path):
    grey = (FRAMES[..., 0].astype(np.uint16) * 13) + 500
    grey[0, 0, 0] = 65535  # a hot pixel does not darken the rest
    frames = read_video(write_dicom(tmp_path / "a.dcm", grey, "MONOCHROME2")).frames
    assert np.percentile(frames, 1) < 20 and np.percentile(frames, 99) > 235
    assert np.corrcoef(frames[1:, ..., 0].ravel(), FRAMES[1:, ..., 0].ravel())[0, 1] > 0.99


def test_dicom_window_and_rescaling(tmp_path):
    grey = np.arange(0, 4096, 1, np.uint16).reshape(1, 64, 64)
    path = write_dicom(
        tmp_path / "a.dcm",
        grey,
        "MONOCHROME2",
        RescaleSlope="2",
        RescaleIntercept="-1000",
        WindowCenter=["1000", "1"],
        WindowWidth=["1000", "2"],
    )
    values = read_video(path).frames[0, ..., 0].ravel().astype(float)
    wanted = np.clip((2.0 * np.arange(4096) - 1000 - 500) / 1000 * 255, 0, 255)
    assert np.abs(values - wanted).max() <= 0.51


def test_palette_dicom(tmp_path):
    table = np.random.default_rng(0).integers(0, 256, (256, 3)).astype(np.uint16)
    tags = {}
    for channel, name in enumerate(("Red", "Green", "Blue")):
        tags[f"{name}PaletteColorLookupTableDescriptor"] = [256, 0, 16]
        tags[f"{name}PaletteColorLookupTableData"] = (table[:, channel] << 8).tobytes()
    frames = read_video(write_dicom(tmp_path / "a.dcm", FRAMES[..., 0], "PALETTE COLOR", **tags)).frames
    assert (frames == table[FRAMES[..., 0]]).all()


def test_burned_in_annotation_is_warned_about(tmp_path):
    video = read_video(write_dicom(tmp_path / "a.dcm", FRAMES, "RGB", BurnedInAnnotation="YES", FrameTime="40"))
    assert len(video.warnings) == 1 and "BurnedInAnnotation is YES" in video.warnings[0]


def test_dicom_without_pixels_is_refused(tmp_path):
    with pytest.raises(UnreadableVideo, match="without pixels"):
        read_video(write_dicom(tmp_path / "a.dcm", None, ""))


def test_cut_off_dicom_is_refused(tmp_path):
    path = write_dicom(tmp_path / "a.dcm", FRAMES, "RGB")
    path.write_bytes(path.read_bytes()[:9000])
    with pytest.raises(UnreadableVideo, match="cannot be (decoded|read)"):
        read_video(path)


def test_text_called_dcm_is_refused(tmp_path):
    (tmp_path / "a.dcm").write_text("hello")
    with pytest.raises(UnreadableVideo, match="cannot be read as DICOM"):
        read_video(tmp_path / "a.dcm")


def test_dicom_without_suffix(tmp_path):
    write_dicom(tmp_path / "a.dcm", FRAMES, "RGB").rename(tmp_path / "1.2.840.113")
    assert (read_video(tmp_path / "1.2.840.113").frames == FRAMES).all()


@pytest.mark.parametrize(
    ("array", "wanted"),
    [
        (FRAMES, FRAMES),
        (FRAMES[..., 0], np.repeat(FRAMES[..., :1], 3, -1)),
        (np.concatenate([FRAMES, FRAMES[..., :1]], -1), FRAMES),
        ((FRAMES / 255).astype(np.float32), FRAMES),
        ((FRAMES / 127.5 - 1).astype(np.float64), FRAMES),
    ],
    ids=["rgb", "grey", "alpha", "unit floats", "signed floats"],
)
def test_arrays(tmp_path, array, wanted):
    np.save(tmp_path / "a.npy", array)
    assert np.abs(read_video(tmp_path / "a.npy").frames.astype(int) - wanted).max() <= 1
    np.savez(tmp_path / "a.npz", frames=array, fps=7, other=np.zeros(3))
    video = read_video(tmp_path / "a.npz")
    assert np.abs(video.frames.astype(int) - wanted).max() <= 1 and video.fps == 7


@pytest.mark.parametrize("fps", [0, -5, np.nan, np.inf])
def test_a_rate_that_is_none_is_not_taken(tmp_path, fps):
    np.savez(tmp_path / "a.npz", frames=FRAMES, fps=fps)
    video = read_video(tmp_path / "a.npz", default_fps=12)
    assert video.fps == 12 and any("no frame rate" in w for w in video.warnings)


def test_several_rates_are_refused(tmp_path):
    np.savez(tmp_path / "a.npz", frames=FRAMES, fps=[1, 2])
    with pytest.raises(UnreadableVideo, match="plain numbers"):
        read_video(tmp_path / "a.npz")


def test_a_dicom_whose_frame_time_is_no_number_is_read_at_the_assumed_rate(tmp_path):
    path = write_dicom(tmp_path / "a.dcm", FRAMES, "RGB", FrameTime="47.25")
    data = path.read_bytes()
    assert data.count(b"47.25") == 1
    path.write_bytes(data.replace(b"47.25", b"maybe"))
    video = read_video(path, default_fps=12)
    assert (video.frames == FRAMES).all() and video.fps == 12 and any("no frame rate" in w for w in video.warnings)


def test_an_immense_picture_is_left_out(tmp_path, monkeypatch):
    from PIL import Image

    write_stills(tmp_path / "a", FRAMES)
    Image.fromarray(np.zeros((300, 300, 3), np.uint8)).save(tmp_path / "a" / "frame0.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20_000)
    video = read_video(tmp_path / "a")
    assert len(video.frames) == len(FRAMES) - 1 and any("frame0.png cannot be read" in w for w in video.warnings)


def test_sixteen_bit_array_fills_the_range(tmp_path):
    np.save(tmp_path / "a.npy", FRAMES[..., 0].astype(np.uint16) * 100)
    frames = read_video(tmp_path / "a.npy").frames
    assert frames.min() == 0 and frames.max() == 255


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (np.zeros((4, 5)), "shape"),
        (np.full((9, 8, 8), np.nan), "NaN"),
        (np.array([["a"]]), "shape|numbers"),
        (np.array([{"a": 1}], dtype=object), "plain numbers"),
    ],
)
def test_unfit_arrays_are_refused(tmp_path, array, reason):
    np.save(tmp_path / "a.npy", array, allow_pickle=True)
    with pytest.raises(UnreadableVideo, match=reason):
        read_video(tmp_path / "a.npy")


def test_unknown_and_missing_files_are_refused(tmp_path):
    (tmp_path / "a.txt").write_text("hello")
    with pytest.raises(UnreadableVideo, match="not a kind of video"):
        read_video(tmp_path / "a.txt")
    with pytest.raises(UnreadableVideo, match="does not exist"):
        read_video(tmp_path / "b.mp4")
    with pytest.raises(UnreadableVideo, match="no png or jpg"):
        read_video(tmp_path)
