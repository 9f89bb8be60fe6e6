"""From files to clips to cached latents: everything that training reads.

Names load when they are first used, because readers and encoders bring large libraries with them.
"""

from importlib import import_module

_HOMES = {
    "PrepareSettings": "settings",
    "Video": "video",
    "UnreadableVideo": "video",
    "read_video": "readers",
    "load_cine": "cine",
    "render": "phantom",
    "Manifest": "manifest",
    "prepare_frames": "frames",
    "prepare_latents": "latents",
    "FrameClips": "clips",
    "LatentClips": "clips",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str):
    if name in _HOMES:
        return getattr(import_module(f"medsora.data.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'medsora.data' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
