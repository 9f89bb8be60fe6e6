"""Can the CUDA kernels of the extension run here, and on which stream?"""

from __future__ import annotations

import functools

import torch

from medsora_ops import native


@functools.cache  # asked at every call
def unavailable() -> str | None:
    """None if the CUDA kernels can run on a GPU that is here, else why not."""
    reason = native.unavailable()
    if reason is not None:
        return reason
    extension = native.extension()
    version = extension.build_info()["cuda"]
    if not version:
        return "the extension medsora_ops._C was built without CUDA: put nvcc on the PATH and install medsora again"
    if torch.version.cuda is None:
        return "this torch is not made for CUDA"
    if not torch.cuda.is_available():
        return "torch sees no GPU"
    unusable = extension.cuda_unusable()
    return (
        f"CUDA {extension.build_info()['cuda']}, which the extension was built with: {unusable}" if unusable else None
    )


@functools.cache
def not_compiled_for(device: torch.device) -> str | None:
    """None if the kernels were compiled for this GPU, else the reason in words."""
    compiled = native.extension().build_info()["cuda_architectures"]
    return refusal(torch.cuda.get_device_capability(device), compiled)


def refusal(capability: tuple[int, int], compiled: list[int]) -> str | None:
    """What is for sm_80 runs on sm_86 too, but not on sm_90; the newest is there as PTX, for all later ones."""
    major, minor = capability
    if any(number // 10 == major and number % 10 <= minor for number in compiled):
        return None
    if 10 * major + minor >= max(compiled):
        return None
    return f"compiled for {', '.join(f'sm_{number}' for number in compiled)}, this GPU is sm_{major}{minor}"


def stream(x: torch.Tensor) -> tuple[int, int]:
    """The device of x and its current stream, as the extension takes them; within `launch.on_device(x)`."""
    return x.device.index, torch.cuda.current_stream(x.device).cuda_stream


@functools.cache  # asked at every call
def chip(device: torch.device) -> tuple[int, int]:
    """What a launch may use: bytes of shared memory of one block, multiprocessors."""
    return tuple(native.extension().cuda_chip(device.index))
