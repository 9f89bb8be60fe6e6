"""Is a variant right? Held against the definition in float64 before it is timed.

Two calls are judged by the last video: one on that video alone, whose results must all be right, and the very call that
will be timed, whose outputs and gradients of rows must be right there too (an offset that overflows shows at the end of
a batch) and finite everywhere.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.gpu.shapes import NAMES, Shape
from benchmarks.gpu.variants import DEFINITION, variants
from benchmarks.harness.correctness import Wrong, relative_rms

# Relative rms errors of outputs, of gradients, and of gradients of one number a head, sums with cancellation. With
# bfloat16 operands of matrix products are rounded to 8 bits; the definition rounds results only.
ALLOWED = {torch.float32: (1e-5, 5e-5, 5e-4), torch.bfloat16: (2.5e-2, 5e-2, 0.15)}
ONE_A_HEAD = ("dt_bias", "A", "D")


def passing(call: Callable, inputs: dict[str, Tensor], grads: list[Tensor] | None) -> Callable[[], tuple[Tensor, ...]]:
    """What is timed: the outputs, and with `grads` of them the gradients of all inputs."""
    if grads is None:

        def forward():
            with torch.no_grad():
                return tuple(call(**inputs))

        return forward
    leaves = [tensor.requires_grad_() for tensor in inputs.values()]

    def both():
        outputs = tuple(call(**inputs))
        return (*outputs, *torch.autograd.grad(outputs, leaves, grads))

    return both


class Judge:
    """Knows the right results for the last video of `inputs`, gradients included, and in what type they were found."""

    def __init__(self, shape: Shape, inputs: dict[str, Tensor], grads: list[Tensor]):
        self._shape = shape
        self._last = {name: t[-1:] if name == NAMES[0] else t for name, t in inputs.items()}
        self._last = {name: t.detach().clone() for name, t in self._last.items()}
        self._grads = [grad[-1:].clone() for grad in grads]
        for dtype in (torch.float64, torch.float32):
            try:
                self._right = self._definition(dtype)
            except torch.OutOfMemoryError:
                torch.cuda.empty_cache()
                continue
            self.dtype = str(dtype).removeprefix("torch.")
            return
        raise torch.OutOfMemoryError("the definition of one video does not fit in memory")

    def errors(self, call: Callable, inputs: dict[str, Tensor], grads: list[Tensor] | None) -> dict[str, float]:
        """Relative RMS errors of the call on the last video alone. Raises Wrong where one is above what is allowed."""
        alone = None if grads is None else self._grads
        found = self._named(passing(call, dict(self._last), alone)(), alone)
        errors = {name: self._error(name, found[name]) for name in found}
        for name, result in self._named(passing(call, inputs, grads)(), grads).items():
            if not result.isfinite().all():
                raise Wrong(f"{name}: got numbers that are not finite, of all {self._shape.videos} videos")
            if name.startswith("output") or name == f"d({NAMES[0]})":
                self._error(name, result[-1:], " at the last of all videos")
        return errors

    def _definition(self, dtype: torch.dtype) -> dict[str, Tensor]:
        wide = {name: tensor.to(dtype) for name, tensor in self._last.items()}
        grads = [grad.to(dtype) for grad in self._grads]
        definition = variants(self._shape, compiled=False)[DEFINITION]
        return {name: t.detach() for name, t in self._named(passing(definition, wide, grads)(), grads).items()}

    def _named(self, results: tuple[Tensor, ...], grads) -> dict[str, Tensor]:
        outputs = [f"output {path}" for path in range(len(self._shape.paths))]
        gradients = [] if grads is None else [f"d({name})" for name in NAMES]
        return dict(zip((*outputs, *gradients), results, strict=True))

    def _error(self, name: str, found: Tensor, where: str = "") -> float:
        right = self._right[name]
        if found.shape != right.shape:
            raise Wrong(f"{name}: got shape {tuple(found.shape)}, wants {tuple(right.shape)}")
        error = relative_rms(found, right)
        outputs, gradients, sums = ALLOWED[self._shape.scale.dtype]
        of_head = name.removeprefix("d(").removesuffix(")") in ONE_A_HEAD
        allowed = outputs if name.startswith("output") else sums if of_head else gradients
        if not error <= allowed:
            raise Wrong(
                f"{name}: relative RMS error {error:.2e} against {self.dtype}{where}, wants at most {allowed:.1e}"
            )
        return error
