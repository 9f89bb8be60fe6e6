"""Small recordings in every kind of file, made where a test needs them."""

from pathlib import Path

import av
import numpy as np


def moving_frames(count: int, height: int = 48, width: int = 64, seed: int = 0) -> np.ndarray:
    """(count, height, width, 3) uint8: smooth bright colours with a square that moves one pixel a frame."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    base = 120 + 60 * np.sin(x / 9 + rng.uniform(0, 6)) * np.cos(y / 7 + rng.uniform(0, 6))
    frames = np.repeat(np.stack([base, 0.8 * base, 0.6 * base + 30], -1)[None], count, 0)
    for t in range(count):
        left = (4 + t) % (width - 12)
        frames[t, height // 3 : height // 3 + 10, left : left + 10] = (230, 60, 60)
    return frames.astype(np.uint8)


def write_video(
    path: Path, frames: np.ndarray, fps: int = 25, codec="mpeg4", pixels="yuv420p", aspect=None, **options
) -> Path:
    """`aspect`: width of a pixel over its height; `options` go to the container."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream(codec, rate=fps)
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], pixels
        stream.bit_rate, stream.gop_size = 4_000_000, 4
        if aspect:
            stream.codec_context.sample_aspect_ratio = aspect
        for frame in frames:
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24").reformat(format=pixels)
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    return path


def write_truncated_mp4(path: Path, frames: np.ndarray, keep: float = 0.55):
    """An mp4 whose index stands in front, cut off in its picture data."""
    write_video(path, frames, movflags="faststart")
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
    return path


def write_dicom(path: Path, pixels: np.ndarray | None, photometric: str, **tags):
    """Uncompressed DICOM of pixels (T, H, W) or (T, H, W, 3), uint8 or uint16; None for a file without pixels."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, UltrasoundMultiFrameImageStorage, generate_uid

    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = UltrasoundMultiFrameImageStorage
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    if pixels is not None:
        bits = pixels.dtype.itemsize * 8
        dataset.NumberOfFrames, dataset.Rows, dataset.Columns = pixels.shape[:3]
        dataset.SamplesPerPixel = 3 if pixels.ndim == 4 else 1
        dataset.PhotometricInterpretation = photometric
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = bits, bits, bits - 1
        dataset.PixelRepresentation = 0
        if pixels.ndim == 4:
            dataset.PlanarConfiguration = 0
        dataset.PixelData = pixels.tobytes()
        dataset["PixelData"].VR = "OB" if bits == 8 else "OW"
    for name, value in tags.items():
        setattr(dataset, name, value)
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, enforce_file_format=True)
    return path


def write_stills(folder: Path, frames: np.ndarray, pattern: str = "frame{}.png"):
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    for number, frame in enumerate(frames):
        Image.fromarray(frame).save(folder / pattern.format(number))
    return folder
