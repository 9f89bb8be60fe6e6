"""The way of a call from a public operator to the implementation that serves it, and the way back of its gradient.

Operators stand in torch's library with the name of a backend as their last argument. A gradient may run in another
thread or after the block of `use_backend`; by that name it goes to the backend that was asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from medsora_ops import backends


def call(operator: str, *arguments) -> Tensor | Sequence[Tensor]:
    """Run `operator` on checked arguments, the first of which is a tensor on the device that serves it."""
    if torch.compiler.is_compiling():
        return getattr(torch.ops.medsora_ops, operator)(*arguments, "")
    chosen = backends.select(operator, arguments[0].device.type, *arguments)
    # The reference is differentiable as it stands: the registered operator would add its dispatch and, for a scan,
    # compute forward again on the way back. That makes a training step half as long again, for less memory.
    if chosen.backend == "reference":
        return chosen.forward(*arguments)
    return getattr(torch.ops.medsora_ops, operator)(*arguments, backends.requested())


def implement(library: torch.library.Library, operator: str, *, backward: bool = True) -> None:
    """Let `operator` of the library, and `<operator>_backward` if it has one, ask the backend table at each call."""
    for device in ("CPU", "CUDA"):
        library.impl(operator, _forward(operator), device)
        if backward:
            library.impl(f"{operator}_backward", _backward(operator), device)


def _forward(operator: str) -> Callable:
    def run(*arguments):
        *arguments, backend = arguments
        chosen = backends.select(operator, arguments[0].device.type, *arguments, backend=backend)
        return _contiguous(chosen.forward(*arguments))

    return run


def _backward(operator: str) -> Callable:
    def run(grads, *arguments):
        *arguments, backend = arguments
        chosen = backends.select(operator, arguments[0].device.type, *arguments, backend=backend)
        return _contiguous(chosen.backward(grads, *arguments))

    return run


def _contiguous(found: Tensor | Sequence[Tensor]) -> Tensor | list[Tensor]:
    """As the fake implementations promise."""
    return found.contiguous() if isinstance(found, Tensor) else [one.contiguous() for one in found]
