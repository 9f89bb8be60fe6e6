"""The built-in real data: an echocardiogram that comes with pydicom."""

import numpy as np

from medsora.data.video import Video

SECTOR = (slice(14, 222), slice(68, 276))  # rows, columns of the ultrasound sector, without the scanner's text
TRAIN_FRAMES = slice(0, 22)
VAL_FRAMES = slice(22, 30)
SPLIT_NOTE = (
    "The cine has one patient, so it is split by time (frames 0 to 21 train, 22 to 29 validation): "
    "its validation figures check fitting, not generalisation."
)


def load_cine() -> Video:
    """The ultrasound cine `pydicom.examples.ybr_color`, cut to its sector.

    Returns:
        Video with frames (30, 208, 208, 3) uint8 at 30 frames a second, of one patient, one and a bit heartbeats.
    """
    from pydicom import examples
    from pydicom.pixels import pixel_array

    dataset = examples.ybr_color
    frames = pixel_array(dataset)[:, SECTOR[0], SECTOR[1]]
    return Video(np.ascontiguousarray(frames), fps=1000.0 / float(dataset.FrameTime), patient="cine")
