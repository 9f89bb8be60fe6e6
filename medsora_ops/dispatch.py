"""The way of a call from a public operator to the implementation that serves it, and the way back of its gradient.

Operators stand in torch's library with the name of a backend as their last argument. A gradient may run in another
thread or after the block of `use_backend`; by that name it goes to the backend that was asked for.

That library's way costs the host half as much again (benchmarks/host_overhead.py). So it is taken only where somebody
needs to see the operator: torch.compile, fake tensors, a mode that watches. Ordinary eager calls go straight to the
implementation, recorded by an autograd function of the same two halves.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from medsora_ops import backends

_recorded: dict[str, type[torch.autograd.Function]] = {}


def call(operator: str, *arguments) -> Tensor | Sequence[Tensor]:
    """Run `operator` on checked arguments, the first of which is a tensor on the device that serves it."""
    if not _ordinary(arguments):
        wanted = "" if torch.compiler.is_compiling() else backends.requested()
        return getattr(torch.ops.medsora_ops, operator)(*arguments, wanted)
    chosen = backends.select(operator, arguments[0].device.type, *arguments)
    # The reference is differentiable as it stands: recorded whole it would, for a scan, compute forward again on the
    # way back. That makes a training step half as long again, for less memory.
    if chosen.backend == "reference":
        return chosen.forward(*arguments)
    if torch.is_grad_enabled() and any(isinstance(a, Tensor) and a.requires_grad for a in arguments):
        return _recorded[operator].apply(*arguments, backends.requested())
    return _contiguous(chosen.forward(*arguments))


def backward(operator: str, grads, *arguments):
    """The gradients of an operator's tensors; the last argument is the backend that it was asked to run on."""
    tensors = (*grads, *arguments) if isinstance(grads, (list, tuple)) else (grads, *arguments)
    if not _ordinary(tensors):
        return getattr(torch.ops.medsora_ops, f"{operator}_backward")(grads, *arguments)
    return _backward(operator)(grads, *arguments)


def apply(operator: str, *arguments):
    """Like `call`, with the name of a backend as the last argument: for a gradient that is an operator itself."""
    if not _ordinary(arguments):
        return getattr(torch.ops.medsora_ops, operator)(*arguments)
    if torch.is_grad_enabled() and arguments[0].requires_grad:
        return _recorded[operator].apply(*arguments)
    return _forward(operator)(*arguments)


def _ordinary(arguments) -> bool:
    """Whether nobody needs to see the operator: no compiler, mode or transform is at work, no tensor is a stand-in."""
    return not (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack()
        or torch._C._are_functorch_transforms_active()
    ) and all(type(a) in (Tensor, torch.nn.Parameter) for a in arguments if isinstance(a, Tensor))


def differentiate(library: torch.library.Library, operator: str, gradient: Callable, keep: Callable) -> None:
    """Give `operator` its gradient, in torch's library and for ordinary calls.

    keep(ctx, inputs, output) notes what gradient(ctx, saved, grads) needs; grads are a list where the operator returns
    one. gradient returns an entry for each input, a list of None for a list.
    """

    def way_back(ctx, grads):
        saved = ctx.saved_tensors  # asked for once: checkpointing computes them when asked
        if operator in backends.EACH_OTHERS_GRADIENT or not torch.is_grad_enabled():
            return gradient(ctx, saved, grads)
        with torch.no_grad():
            found = gradient(ctx, saved, grads)
        return _refusing(operator, found, (*saved, *(grads if isinstance(grads, list) else [grads])))

    torch.library.register_autograd(f"medsora_ops::{operator}", way_back, setup_context=keep, lib=library)

    class Recorded(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *inputs):
            found = _forward(operator)(*inputs)
            keep(ctx, inputs, found)
            ctx.one = isinstance(found, Tensor)
            return found if ctx.one else tuple(found)

        @staticmethod
        def backward(ctx, *grads):
            found = way_back(ctx, grads[0] if ctx.one else list(grads))
            return tuple(entry if isinstance(entry, Tensor) else None for entry in found)

    _recorded[operator] = Recorded


def _refusing(operator: str, found: Sequence, given: Sequence):
    """What was `found`, its tensors refusing to be differentiated by any that were `given`.

    torch's own once_differentiable lets pass, as constants, results of a gradient that came in as a constant.
    """
    which = [i for i, entry in enumerate(found) if isinstance(entry, Tensor)]
    refusing = dict(zip(which, _Refusing.apply(operator, len(which), *(found[i] for i in which), *given), strict=True))
    return tuple(refusing.get(i, entry) for i, entry in enumerate(found))


class _Refusing(torch.autograd.Function):
    """Hands the first `count` tensors on; of the way from them to the others it says that there is none."""

    @staticmethod
    def forward(ctx, operator, count, *tensors):
        ctx.operator = operator
        return tuple(tensor.detach() for tensor in tensors[:count])

    @staticmethod
    def backward(ctx, *_):
        raise RuntimeError(
            f"{ctx.operator}: cannot differentiate twice, as its gradient has none; ordinary calls of the backend"
            " 'reference' can"
        )


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
