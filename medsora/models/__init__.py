"""The models: denoiser and video VAE. Each loads when first asked for, because diffusers takes seconds to import."""

import importlib

_HOMES = {
    "MedSora": "medsora.models.denoiser",
    "MedSoraOutput": "medsora.models.denoiser",
    "FrequencyCompensatedVAE": "medsora.models.vae",
    "load_released": "medsora.models.released",
}

__all__ = list(_HOMES)


def __getattr__(name: str):
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'medsora.models' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
