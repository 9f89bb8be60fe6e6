"""The picture area that is kept: without black borders, square, at the working size."""

from collections.abc import Iterable

import numpy as np

DARK = 14  # mean brightness of 255 below which a place counts as black; codecs and sensors leave up to about 10
FILLED = 0.02  # share of a row that must be brighter for the row to be picture: a time stamp's edge is not enough
LEAST_EXTENT = 16  # pixels; a smaller picture than this is taken for a mistake and nothing is cut


class BorderFinder:
    """Collects the frames of a clip one by one and tells where its picture is.

    A place is judged by its mean over all frames, so noise does not lift a border and one dark frame does not cut the
    picture.
    """

    def __init__(self):
        self.count = 0
        self.total = None

    def add(self, frame: np.ndarray) -> None:
        """Takes in a frame (H, W, 3) uint8."""
        brightness = frame.max(axis=-1)
        if self.total is None:
            self.total = np.zeros(brightness.shape, np.uint64)
        self.total += brightness
        self.count += 1

    @property
    def is_black(self) -> bool:
        """Whether no place of the clip is bright."""
        return not (self.total > DARK * self.count).any()

    def picture(self) -> tuple[slice, slice]:
        """Rows and columns of the picture; all of them where there is no clear border."""
        bright = self.total > DARK * self.count
        rows, columns = _extent(bright.mean(axis=1)), _extent(bright.mean(axis=0))
        if min(rows.stop - rows.start, columns.stop - columns.start) < LEAST_EXTENT:
            return slice(0, bright.shape[0]), slice(0, bright.shape[1])
        return rows, columns


def _extent(filled: np.ndarray) -> slice:
    places = np.flatnonzero(filled > FILLED)
    return slice(int(places[0]), int(places[-1]) + 1) if len(places) else slice(0, 0)


def square_frame(frame: np.ndarray, picture: tuple[slice, slice], size: int) -> np.ndarray:
    """Cuts `frame` (H, W, 3) uint8 to `picture`, resizes its short side to `size` and keeps the centre of the long one.

    Portrait and landscape alike lose the same amount at both ends; nothing is stretched.

    Returns:
        (size, size, 3) uint8.
    """
    import cv2

    frame = np.ascontiguousarray(frame[picture])
    height, width = frame.shape[:2]
    scale = size / min(height, width)
    if scale != 1:
        shape = max(size, round(width * scale)), max(size, round(height * scale))
        frame = cv2.resize(frame, shape, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
    top, left = (frame.shape[0] - size) // 2, (frame.shape[1] - size) // 2
    return np.ascontiguousarray(frame[top : top + size, left : left + size])


def cut(frames: Iterable[np.ndarray], longest: int, shortest: int) -> Iterable[tuple[int, np.ndarray]]:
    """Groups frames into clips of `longest`; a last one of fewer than `shortest` is dropped.

    Yields:
        (number of the clip's first frame, frames (T, H, W, 3)).
    """
    start, held = 0, []
    for frame in frames:
        held.append(frame)
        if len(held) == longest:
            yield start, np.stack(held)
            start, held = start + longest, []
    if len(held) >= shortest:
        yield start, np.stack(held)
