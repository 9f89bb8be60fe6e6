"""What no implementation of an operator does without: bytes moved, arithmetic, exponentials.

Bytes are those of the large tensors, each read or written once by a pass, in the type they are stored in; the gradient
recomputes what it needs and reads nothing else. Operations are float32 additions and multiplications, a fused pair
counting as two. All counts are of the whole batch, and lower bounds: what is left out makes a floor lower, not higher.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

PASSES = ("forward", "forward + backward")


@dataclass(frozen=True)
class Work:
    """bytes: read plus written. operations: float32. exponentials: exp, or log, each counting one."""

    bytes: float
    operations: float
    exponentials: float = 0


def path_scan_work(
    sequences: int,
    length: int,
    *,
    width: int,
    state: int,
    head_dim: int,
    groups: int = 1,
    taps: int = 4,
    directions: int = 1,
    element_size: int = 4,
    backward: bool = False,
) -> Work:
    """One path over `sequences` sequences of `length` tokens (the batch included).

    Bytes: zxbcdt (2E + 2GN + nh a token) read, output (E) written; backward reads zxbcdt and d(output), writes
    d(zxbcdt). Parameters are small and left out.

    Operations: the convolution, 2 taps (E + 2GN) a token and direction, and `scan_operations`; D, gate and norm are
    left out. Backward takes three times as much again: the forward products once more, for the masks and for the
    gradients of gate and norm, and two gradients for each product.

    Exponentials: a token and direction SiLU of the E + 2GN convolved channels and one decay a head; shared by the
    directions the gate silu(z) of E channels and softplus, exp and log, of nh. The decays of a mask over pairs of
    tokens are the quadratic form's own affair (L (L + 1) / 2 a head and sequence more: 2.1 million in place of 1.8 at
    16 x 48, one direction). Backward computes all of them again.
    """
    tokens, heads, mixed = sequences * length, width // head_dim, width + 2 * groups * state
    row = width + mixed + heads
    convolution = 2 * taps * mixed * length
    scan = scan_operations(length, width=width, state=state, groups=groups)
    exponentials = tokens * (directions * (mixed + heads) + width + 2 * heads)
    return Work(
        bytes=tokens * element_size * ((row + width) + (row + width + row if backward else 0)),
        operations=sequences * directions * (convolution + scan) * (4 if backward else 1),
        exponentials=exponentials * (2 if backward else 1),
    )


def scan_operations(length: int, *, width: int, state: int, groups: int) -> int:
    """Operations of the matrix products of one sequence and direction, in its cheapest form.

    A chunk of q tokens takes q (q + 1) / 2 pairs, causal skipping supposed, of 2 (E + GN) operations: its scores,
    shared by the heads of a group, and their product with x. Every chunk but the last adds to the state and every one
    but the first reads it: 2 N E a token each. One chunk is the quadratic form; the chunk length is the best of all.
    """

    def chunked(chunk: int) -> int:
        whole, rest = divmod(length, chunk)
        sizes = [chunk] * whole + [rest] * (rest > 0)
        pairs = whole * (chunk * (chunk + 1) // 2) + rest * (rest + 1) // 2
        carried = (length - sizes[-1]) + (length - sizes[0])
        return 2 * pairs * (width + groups * state) + 2 * state * width * carried

    return min(chunked(chunk) for chunk in range(1, length + 1))


def ssd_scan_work(
    sequences: int,
    length: int,
    *,
    heads: int,
    head_dim: int,
    state: int,
    groups: int = 1,
    element_size: int = 4,
    backward: bool = False,
) -> Work:
    """Bytes: x, dt, B and C read, y written; backward reads them and dy, writes their gradients.

    Operations and exponentials as for `path_scan`, without convolution, softplus, gate and norm: `scan_operations` and
    one decay a token and head.
    """
    width = heads * head_dim
    read = width + heads + 2 * groups * state
    return Work(
        bytes=sequences * length * element_size * (read + width + (read + width + read if backward else 0)),
        operations=sequences
        * scan_operations(length, width=width, state=state, groups=groups)
        * (4 if backward else 1),
        exponentials=sequences * length * heads * (2 if backward else 1),
    )


def reorder_work(tokens: int, channels: int, *, element_size: int = 4, backward: bool = False) -> Work:
    """`gather` reads each row once and writes it twice, `merge` reads two and writes one; each is the other's gradient.

    tokens: of the whole batch. The additions of `merge` are hidden by any memory and left out.
    """
    return Work(bytes=3 * tokens * channels * element_size * (2 if backward else 1), operations=0)


def spectral_filter_work(
    batch: int, channels: int, height: int, width: int, *, element_size: int = 4, backward: bool = False
) -> Work:
    """Batch x channels images of height x width, filtered by a complex weight (8 bytes an entry) a channel.

    Bytes: x and the weight read, y written; backward reads dy, x and the weight, writes dx and d(weight).
    Operations: `real_transform_operations` there and back, 6 a complex product, and the residual. Backward: the same
    filter of dy, the spectrum of x again, and 8 for a complex product summed over the batch.
    """
    images, pixels, bins = batch * channels, height * width, height * (width // 2 + 1)
    transform, weight = real_transform_operations(height, width), 8 * channels * bins
    image_bytes = images * pixels * element_size
    filtered = images * (2 * transform + 6 * bins + pixels)
    if not backward:
        return Work(bytes=2 * image_bytes + weight, operations=filtered)
    return Work(
        bytes=2 * image_bytes + weight + 3 * image_bytes + 2 * weight,
        operations=2 * filtered + images * (transform + 8 * bins),
    )


def focal_loss_work(images: int, height: int, width: int, *, element_size: int = 4, backward: bool = False) -> Work:
    """`images` pairs of height x width, in the usual form (alpha 1).

    Bytes: both images read; backward reads them again and writes the gradient of one.
    Operations: the difference, one real transform, and 8 a bin for its square, root, largest, weight and sum. Backward:
    the difference, its transform and weight again, and the transform back.
    """
    pixels, bins = height * width, height * (width // 2 + 1)
    transform = real_transform_operations(height, width)
    forward = pixels + transform + 8 * bins
    return Work(
        bytes=images * pixels * element_size * (5 if backward else 2),
        operations=images * (2 * forward + transform + 2 * bins if backward else forward),
    )


def real_transform_operations(height: int, width: int) -> float:
    """A two-dimensional Fourier transform of real numbers: half of the usual 5 n log2 n of a complex one."""
    pixels = height * width
    return 2.5 * pixels * math.log2(pixels)
