"""MedSora: train and sample short synthetic medical videos.

`import medsora` stays cheap: heavy libraries load when a name that needs them is first used.
"""

__all__ = ["MedSoraPipeline", "__version__"]


def __getattr__(name: str):
    if name == "MedSoraPipeline":
        from medsora.pipeline import MedSoraPipeline

        return MedSoraPipeline
    if name == "__version__":
        from medsora_ops.version import __version__

        return __version__
    raise AttributeError(f"module 'medsora' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
