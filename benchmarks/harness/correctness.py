"""Is a variant right? It is held against the definition in float64 before it is timed.

An error may be at most a few times the one that the definition, plain PyTorch, makes in the case's own type: sums taken
in another order stay below that, mistakes do not. (The tests of the operators are stricter.)
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.harness.case import Case, Operator, Problem

FACTOR = 4.0
FEW, ROUNDINGS = 32, 8
Results = dict[str, Tensor]


class Wrong(AssertionError):
    """A variant's result is too far from the definition's; it is not timed."""


def prepared(
    case: Case, call: Operator, inputs: dict[str, Tensor], problem: Problem | None = None
) -> Callable[[], tuple[Tensor, ...]]:
    """What is timed: `call` on the inputs and, for a pass back, the gradients of what is differentiated."""
    differentiated = (problem or case.problem).differentiated
    if not case.backward:

        def forward():
            with torch.no_grad():
                return _tuple(call(**inputs))

        return forward
    if not differentiated:
        return lambda: _tuple(call(**inputs))

    leaves = [inputs[name].requires_grad_() for name in differentiated]
    grads: list[Tensor] = []

    def both():
        outputs = _tuple(call(**inputs))
        if not grads:
            grads.extend(_gradient_like(output, seed) for seed, output in enumerate(outputs))
        return (*outputs, *torch.autograd.grad(outputs, leaves, grads))

    return both


def named(case: Case, results: tuple[Tensor, ...], problem: Problem | None = None) -> Results:
    """Results by name: "output 0", ... and "d(input)", ..."""
    gradients = (problem or case.problem).differentiated if case.backward else ()
    outputs = len(results) - len(gradients)
    names = [f"output {i}" for i in range(outputs)] + [f"d({name})" for name in gradients]
    return dict(zip(names, results, strict=True))


class Judge:
    """Knows the right results of a case, or of one of its problems, and how far from them a variant may be."""

    def __init__(self, case: Case, inputs: dict[str, Tensor], problem: Problem | None = None):
        self._case, self._problem = case, problem or case.problem
        if self._problem.tolerance is not None:
            self._right = self._computed(inputs)
            self.tolerance = dict.fromkeys(self._right, self._problem.tolerance)
            return
        self._right = self._computed({name: t.detach().to(_widest(t.dtype)) for name, t in inputs.items()})
        plain = self._computed(inputs)
        self.tolerance = {name: self._allowed(name, plain[name]) for name in self._right}

    def _computed(self, inputs: dict[str, Tensor]) -> Results:
        call = prepared(self._case, self._problem.definition, inputs, self._problem)
        return named(self._case, call(), self._problem)

    def errors(self, results: tuple[Tensor, ...]) -> dict[str, float]:
        """Relative RMS error of each result. Raises Wrong where one is above its tolerance or of another shape."""
        found = named(self._case, results, self._problem)
        errors = {}
        for name, right in self._right.items():
            if found[name].shape != right.shape:
                raise Wrong(f"{name}: got shape {tuple(found[name].shape)}, wants {tuple(right.shape)}")
            errors[name] = relative_rms(found[name], right)
            if not errors[name] <= self.tolerance[name]:
                given = self._problem.tolerance is not None
                raise Wrong(
                    f"{name}: relative RMS error {errors[name]:.2e} against {'the definition' if given else 'float64'},"
                    f" wants at most {self.tolerance[name]:.2e}"
                    + ("" if given else f", {FACTOR:g} times that of plain PyTorch")
                )
        return errors

    def _allowed(self, name: str, plain: Tensor) -> float:
        error = relative_rms(plain, self._right[name])
        # A single number may come out right by luck, or nearly so the few of a gradient of heads.
        least = torch.finfo(plain.dtype).eps if plain.numel() == 1 else 0.0
        if plain.numel() <= FEW:
            least = max(least, ROUNDINGS * torch.finfo(torch.float32).eps)
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
