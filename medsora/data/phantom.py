"""A procedural endoscopy: a camera that moves through a colon-like tube, in as many clips and two classes as wanted.

It is synthetic and looks it; it serves where many clips or a class label are needed and no patient may be involved.

The wall is a height field R(z, angle): distance from the centre line, along the tube and around it. Each pixel's ray is
followed in growing steps until it leaves the tube, then shaded by a lamp that sits beside the camera.
"""

from dataclasses import dataclass

import numpy as np

LABELS = ("normal", "polyp")

CELLS_PER_UNIT = 40  # table rows for each tube radius along z
ANGLE_CELLS = 256
VIEW_DEPTH = 9.0  # how far a ray is followed, in tube radii
MARCH_STEPS = 60
HALF_FIELD = 1.15  # tangent of half the field of view: about 98 degrees
PIXELS_AT_ONCE = 1 << 17


@dataclass
class _Wall:
    """Tables over (z cell, angle cell), float32: radius, its two slopes, colour, and the shift of the centre line."""

    radius: np.ndarray  # (rows, angles)
    slope_z: np.ndarray  # dR/dz
    slope_angle: np.ndarray  # dR/dangle
    gloss: np.ndarray  # how much light a wet spot throws back, 0 to 1
    albedo: np.ndarray  # (rows, angles, 3)
    centre: np.ndarray  # (rows, 2): x and y of the centre line


def render(seed: int, num_frames: int, size: int, polyp: bool) -> np.ndarray:
    """Renders a clip of the phantom.

    Args:
        seed: Decides the anatomy, the motion and the noise; `polyp` leaves the three as they are.
        num_frames: Frames, at 10 a second in the phantom's own pace.
        size: Height and width in pixels.
        polyp: Whether a polyp sits on the wall, in view.

    Returns:
        (num_frames, size, size, 3) uint8 RGB; the same arguments give the same bytes.

    Raises:
        ValueError: `num_frames` or `size` is below 1.
    """
    if num_frames < 1 or size < 1:
        raise ValueError(f"num_frames is {num_frames} and size is {size}; both must be at least 1")
    rng = np.random.default_rng([seed, 0x5EED])
    camera = _camera(rng, num_frames)
    wall = _wall(rng, length=camera["z"][-1] + VIEW_DEPTH + 1.0)
    if polyp:
        _add_polyp(wall, np.random.default_rng([seed, 0x9017]), camera["z"][-1])
    wall.slope_z, wall.slope_angle = _slopes(wall.radius)
    frames = np.empty((num_frames, size, size, 3), np.uint8)
    batch = max(1, PIXELS_AT_ONCE // size**2)
    for start in range(0, num_frames, batch):
        part = slice(start, min(start + batch, num_frames))
        light = _shade(wall, {name: value[part] for name, value in camera.items()}, size)
        noise = np.random.default_rng([seed, start]).standard_normal(light.shape, np.float32)
        frames[part] = np.clip(255.0 * light + 1.2 * noise + 0.5, 0, 255)
    return frames


def _camera(rng: np.random.Generator, num_frames: int) -> dict[str, np.ndarray]:
    """Place and gaze of the camera at each frame: forward at a changing pace, swaying as a hand-held scope does."""
    time = np.arange(num_frames) / 10.0  # seconds
    pace, phase = rng.uniform(0.35, 0.7), rng.uniform(0, 2 * np.pi, 8)

    def sway(size, rate, which):
        return size * np.sin(rate * time + phase[which]) + 0.3 * size * np.sin(2.7 * rate * time + phase[which + 1])

    return {
        "z": 0.6 + pace * time + 0.06 * (1 - np.cos(2.0 * time)),
        "x": sway(0.16, 1.3, 0),
        "y": sway(0.16, 1.1, 1),
        "yaw": sway(0.20, 0.9, 2),
        "pitch": sway(0.17, 1.0, 3),
        "roll": sway(0.12, 0.6, 4) + phase[6],
        "lamp": 1.0 + 0.08 * np.sin(1.7 * time + phase[7]),
    }


def _noise(rng: np.random.Generator, shape: tuple[int, int], low: float, high: float, power: float) -> np.ndarray:
    """Smooth noise of unit deviation, periodic around the tube: a band of wave numbers (cycles a tube radius of wall)
    with amplitude falling as `wave number ** -power`."""
    rows, angles = shape
    along = np.fft.fftfreq(rows) * CELLS_PER_UNIT
    around = np.fft.rfftfreq(angles) * angles / (2 * np.pi)
    wave = np.hypot(along[:, None], around[None])
    gain = np.where((wave >= low) & (wave <= high), np.maximum(wave, 1e-6) ** -power, 0.0)
    field = np.fft.irfft2(np.fft.rfft2(rng.standard_normal(shape)) * gain, s=shape)
    return (field / (field.std() + 1e-9)).astype(np.float32)


def _wall(rng: np.random.Generator, length: float) -> _Wall:
    """Haustra between crescent folds, mucosa with vessels, and a bending centre line."""
    rows = int(np.ceil(length * CELLS_PER_UNIT)) + 1
    z = (np.arange(rows) / CELLS_PER_UNIT)[:, None]
    angle = (np.arange(ANGLE_CELLS) * 2 * np.pi / ANGLE_CELLS)[None]
    shape = (rows, ANGLE_CELLS)
    twist = rng.uniform(0, 2 * np.pi)
    # the three bands of muscle along a colon (taeniae) give the lumen its rounded triangle
    radius = 1.0 + 0.07 * np.cos(3 * angle + twist + 0.15 * z) + 0.02 * _noise(rng, shape, 0.1, 1.2, 1.0)
    place = rng.uniform(0.1, 0.6)
    while place < length + 1:
        height, width = rng.uniform(0.26, 0.46), rng.uniform(0.07, 0.12)
        turn, tilt = rng.uniform(0, 2 * np.pi), rng.uniform(0, 0.25)
        crescent = 0.62 + 0.38 * np.cos(angle - turn) - 0.16 * np.cos(3 * angle + twist)
        offset = z - place - tilt * np.cos(angle - turn + 1.0)
        radius -= height * np.clip(crescent, 0.05, 1) * np.exp(-(np.abs(offset / width) ** 1.7))
        place += rng.uniform(0.65, 1.15)
    mottle, fine = _noise(rng, shape, 0.2, 2.5, 1.0), _noise(rng, shape, 3.0, 14.0, 0.5)
    radius = radius + 0.0035 * fine

    base = np.array([0.90, 0.50, 0.40]) + rng.uniform(-0.04, 0.04, 3)
    albedo = base * (1 + 0.06 * mottle + 0.025 * fine)[..., None]
    albedo[..., 1:] *= (1 - 0.06 * mottle)[..., None]
    for low, high, sharpness, depth in ((0.25, 1.4, 0.06, 0.40), (0.9, 4.0, 0.10, 0.22)):  # trunks, branches
        vessel = np.exp(-((_noise(rng, shape, low, high, 0.8) / sharpness) ** 2))
        vessel *= np.clip(
            0.7 + 0.5 * _noise(rng, shape, 0.1, 0.8, 0.5), 0, 1
        )  # they dive under the mucosa here and there
        albedo *= 1 - vessel[..., None] * depth * np.array([0.35, 1.0, 0.85])
    gloss = np.clip(0.5 + 0.5 * _noise(rng, shape, 1.5, 9.0, 0.6), 0, 1)

    bend, shift = rng.uniform(0.25, 0.5, 2), rng.uniform(0, 2 * np.pi, 2)
    centre = bend * np.sin(np.array([0.55, 0.47]) * z + shift)
    return _Wall(
        radius.astype(np.float32), None, None, gloss.astype(np.float32), albedo.astype(np.float32), centre.astype("f4")
    )


def _add_polyp(wall: _Wall, rng: np.random.Generator, last_z: float) -> None:
    """Raises a rounded, redder, smoother bump on the wall, ahead of where the camera ends."""
    rows, angles = wall.radius.shape
    place, turn, breadth = last_z + rng.uniform(0.7, 1.0), rng.uniform(0, 2 * np.pi), rng.uniform(0.46, 0.56)
    z = (np.arange(rows) / CELLS_PER_UNIT)[:, None] - place
    around = (np.arange(angles) * 2 * np.pi / angles)[None] - turn
    around = (around + np.pi) % (2 * np.pi) - np.pi
    lumps = 1 + 0.06 * _noise(rng, wall.radius.shape, 0.6, 2.5, 0.5)
    away = np.hypot(z, 0.8 * around) / breadth * lumps
    dome = np.sqrt(np.clip(1 - away**4, 0, 1)).astype(np.float32)
    base = np.minimum(wall.radius, 0.92)
    wall.radius = np.where(dome > 0, np.minimum(wall.radius, base - 0.8 * breadth * dome), wall.radius)
    blend = np.clip(1.4 * dome, 0, 1)[..., None]
    flesh = np.array([0.80, 0.22, 0.20]) * (1 + 0.10 * _noise(rng, wall.radius.shape, 2.0, 10.0, 0.4))[..., None]
    wall.albedo = (wall.albedo * (1 - blend) + flesh * blend).astype(np.float32)


def _slopes(radius: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """dR/dz and dR/dangle by central differences; the angle wraps round."""
    slope_z = np.gradient(radius, axis=0) * CELLS_PER_UNIT
    slope_angle = (np.roll(radius, -1, 1) - np.roll(radius, 1, 1)) * (radius.shape[1] / (4 * np.pi))
    return slope_z.astype(np.float32), slope_angle.astype(np.float32)


def _rays(camera: dict[str, np.ndarray], size: int) -> tuple[np.ndarray, np.ndarray]:
    """Slopes u, v of each pixel's ray against the tube axis: (frames, size * size) float32 each."""
    axis = (np.arange(size) + 0.5) / size * 2 - 1
    right, down = (HALF_FIELD * grid.ravel()[None] for grid in np.meshgrid(axis, axis))
    cos, sin = np.cos(camera["roll"])[:, None], np.sin(camera["roll"])[:, None]
    u = cos * right - sin * down + camera["yaw"][:, None]
    v = sin * right + cos * down + camera["pitch"][:, None]
    return u.astype(np.float32), v.astype(np.float32)


def _march(wall: _Wall, camera: dict[str, np.ndarray], u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Depth along the axis at which each ray meets the wall, (frames, pixels) float32; `VIEW_DEPTH` where none does."""
    steps = np.geomspace(0.12, VIEW_DEPTH, MARCH_STEPS).astype(np.float32)
    depth = np.full(u.shape, VIEW_DEPTH, np.float32)
    open_air = np.ones(u.shape, bool)
    gap_before, step_before = np.full(u.shape, -1.0, np.float32), np.float32(0)
    for step in steps:
        x, y, row, column = _locate(wall, camera, u, v, step)
        cell = np.rint(row).astype(np.int32), np.rint(column).astype(np.int32) % ANGLE_CELLS
        gap = np.sqrt(x * x + y * y) - wall.radius[cell]
        hit = open_air & (gap > 0)
        where = gap_before[hit] / (gap_before[hit] - gap[hit])
        depth[hit] = step_before + (step - step_before) * where
        open_air &= gap <= 0
        gap_before, step_before = gap, step
    return depth


def _locate(wall: _Wall, camera: dict[str, np.ndarray], u, v, depth):
    """Where rays are at `depth`: x and y from the centre line, and the place on the wall in cells (row, column)."""
    last = len(wall.radius) - 1
    row = np.minimum((camera["z"][:, None] + depth).astype(np.float32) * CELLS_PER_UNIT, last)
    here = np.rint(camera["z"] * CELLS_PER_UNIT).astype(np.int32)
    # the camera keeps to the centre line, give or take its sway
    start = wall.centre[here] + 0.8 * np.stack([camera["x"], camera["y"]], 1).astype(np.float32)
    centre = wall.centre[np.rint(row).astype(np.int32)]
    x = start[:, :1] - centre[..., 0] + u * depth
    y = start[:, 1:] - centre[..., 1] + v * depth
    return x, y, row, np.arctan2(y, x) * np.float32(ANGLE_CELLS / (2 * np.pi))


def _between_cells(tables: np.ndarray, row: np.ndarray, column: np.ndarray) -> np.ndarray:
    """Bilinear look-up in tables (rows, angles, channels); the angle wraps round."""
    top, left = np.floor(row).astype(np.int32), np.floor(column).astype(np.int32)
    below, right = np.minimum(top + 1, len(tables) - 1), (left + 1) % ANGLE_CELLS
    down, across = (row - top)[..., None], (column - left)[..., None]
    left = left % ANGLE_CELLS
    upper = tables[top, left] * (1 - across) + tables[top, right] * across
    lower = tables[below, left] * (1 - across) + tables[below, right] * across
    return upper * (1 - down) + lower * down


def _shade(wall: _Wall, camera: dict[str, np.ndarray], size: int) -> np.ndarray:
    """Colours in 0 to 1, (frames, size, size, 3) float32: lamp falloff, slope, mucosa, wet spots, lens shading."""
    u, v = _rays(camera, size)
    depth = _march(wall, camera, u, v)
    x, y, row, column = _locate(wall, camera, u, v, depth)
    rho = np.sqrt(x * x + y * y) + 1e-4
    cos, sin = x / rho, y / rho
    tables = np.concatenate([np.stack([wall.slope_z, wall.slope_angle, wall.gloss], -1), wall.albedo], -1)
    looked_up = _between_cells(tables, row, column)
    slope_z, slope_angle, gloss = looked_up[..., 0], looked_up[..., 1] / rho, looked_up[..., 2]
    length = np.sqrt(1 + u * u + v * v)
    steep = np.sqrt(1 + slope_z**2 + slope_angle**2)
    facing = (u * cos + v * sin - slope_angle * (v * cos - u * sin) - slope_z) / (length * steep)
    facing = np.clip(facing, 0, 1)
    distance = depth * length
    falloff = camera["lamp"][:, None].astype(np.float32) / (0.30 + 0.55 * distance**2)
    lens = 1 - 0.22 * ((u - camera["yaw"][:, None]) ** 2 + (v - camera["pitch"][:, None]) ** 2) / (2 * HALF_FIELD**2)
    light = 2.6 * falloff * (0.12 + 0.88 * facing) * lens
    light[depth >= VIEW_DEPTH] = 0
    colour = looked_up[..., 3:] * light[..., None]
    # light that reaches deep folds has been through tissue: it comes back red
    colour *= np.exp(-0.10 * distance[..., None] * np.array([0.2, 1.0, 1.1], np.float32))
    wet = np.clip((facing - 1.035 + 0.085 * gloss) / 0.03, 0, 1) * np.clip(light, 0, 1)
    colour += (0.85 * wet)[..., None] * np.array([1.0, 0.98, 0.95], np.float32)
    colour = 1 - np.exp(-1.25 * colour)  # the sensor's shoulder
    return colour.astype(np.float32).reshape(len(u), size, size, 3)
