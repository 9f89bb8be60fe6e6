"""Is a variant right? It is held against the definition in float64 before it is timed.

An error may be at most a few times the one that the definition, plain PyTorch, makes in the case's own type: sums taken
in another order stay below that, mistakes do not. (The tests of the operators are stricter.)
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.case import Case, Operator

FACTOR = 4.0
Results = dict[str, Tensor]


class Wrong(AssertionError):
    """A variant's result is too far from the definition's; it is not timed."""


def prepared(case: Case, call: Operator, inputs: dict[str, Tensor]) -> Callable[[], tuple[Tensor, ...]]:
    """What is timed: `call` on the inputs and, for a pass back, the gradients of what is differentiated."""
    if not case.backward:

        def forward():
            with torch.no_grad():
                return _tuple(call(**inputs))

        return forward

    leaves = [inputs[name].requires_grad_() for name in case.differentiated]
    grads: list[Tensor] = []

    def both():
        outputs = _tuple(call(**inputs))
        if not grads:
            grads.extend(_gradient_like(output, seed) for seed, output in enumerate(outputs))
        return (*outputs, *torch.autograd.grad(outputs, leaves, grads))

    return both


def named(case: Case, results: tuple[Tensor, ...]) -> Results:
    """Results by name: "output 0", ... and "d(input)", ..."""
    gradients = case.differentiated if case.backward else ()
    outputs = len(results) - len(gradients)
    names = [f"output {i}" for i in range(outputs)] + [f"d({name})" for name in gradients]
    return dict(zip(names, results, strict=True))


class Judge:
    """Knows the right results of a case, and how far plain PyTorch in its type is from them."""

    def __init__(self, case: Case, inputs: dict[str, Tensor]):
        self._case = case
        wide = {name: tensor.detach().to(_widest(tensor.dtype)) for name, tensor in inputs.items()}
        self._right = named(case, prepared(case, case.definition, wide)())
        plain = named(case, prepared(case, case.definition, inputs)())
        self.tolerance = {name: self._allowed(name, plain[name]) for name in self._right}

    def errors(self, results: tuple[Tensor, ...]) -> dict[str, float]:
        """Relative RMS error of each result. Raises Wrong where one is above its tolerance or of another shape."""
        found = named(self._case, results)
        errors = {}
        for name, right in self._right.items():
            if found[name].shape != right.shape:
                raise Wrong(f"{name}: got shape {tuple(found[name].shape)}, wants {tuple(right.shape)}")
            errors[name] = relative_rms(found[name], right)
            if not errors[name] <= self.tolerance[name]:
                raise Wrong(
                    f"{name}: relative RMS error {errors[name]:.2e} against float64,"
                    f" wants at most {self.tolerance[name]:.2e}, {FACTOR:g} times that of plain PyTorch"
                )
        return errors

    def _allowed(self, name: str, plain: Tensor) -> float:
        error = relative_rms(plain, self._right[name])
        # A single number may come out right by luck, which is no measure for others.
        least = torch.finfo(plain.dtype).eps if plain.numel() == 1 else 0.0
        return FACTOR * max(error, least)


def relative_rms(found: Tensor, right: Tensor) -> float:
    """Root mean square of the difference over that of `right`, summed in float64; NaN where there is one."""
    right = right.detach()
    difference = (found.detach().to(right.dtype) - right).abs().square().mean().sqrt()
    size = right.abs().square().mean().sqrt()
    return float(difference / size) if size > 0 else float(difference)


def _tuple(outputs) -> tuple[Tensor, ...]:
    return tuple(outputs) if isinstance(outputs, (tuple, list)) else (outputs,)


def _gradient_like(output: Tensor, seed: int) -> Tensor:
    """The same numbers for the float64 definition and for the variants."""
    drawn = torch.randn(output.shape, generator=torch.Generator().manual_seed(seed))
    return drawn.to(torch.bfloat16).to(output)


def _widest(dtype: torch.dtype) -> torch.dtype:
    return torch.complex128 if dtype.is_complex else torch.float64
