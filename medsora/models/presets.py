"""Sizes of the denoiser by name."""

from __future__ import annotations

DEPTHS = {"S": 6, "B": 12, "L": 24, "XL": 48}
PUBLISHED = {"in_channels": 16, "patch_size": 2, "hidden_size": 512, "state_size": 128}
# Small enough to learn one clip on two CPU cores within minutes; latents of about 8 x 8, 16 tokens a frame.
TINY = {"in_channels": 16, "patch_size": 2, "hidden_size": 256, "depth": 4, "state_size": 32}
# What the released code does and our default does not; its grid is that of 128 x 128 pixels.
RELEASED = {
    "scan_order": "released",
    "temporal_bidirectional": False,
    "attention_heads": 1,
    "attention_output": False,
    "stored_grid": (8, 8),
}


def denoiser_preset(name: str, released: bool = False) -> dict:
    """Constructor settings of `MedSora` for "tiny", "S", "B", "L" or "XL".

    released: the published form, in which released weights fit (S, B, L, XL).
    Raises ValueError for a name that is none of these.
    """
    names = tuple(DEPTHS) if released else ("tiny", *DEPTHS)
    if name not in names:
        raise ValueError(f"preset: got {name!r}, wants one of {', '.join(names)}")
    settings = dict(TINY) if name == "tiny" else {**PUBLISHED, "depth": DEPTHS[name]}
    return {**settings, **RELEASED} if released else settings
