"""A case is an operator, layer or step at one shape, type and number of passes; its variants are the ways to do it."""

from __future__ import annotations

import functools
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from benchmarks.harness.work import PASSES, Work
from medsora_ops import backend_report, use_backend

Operator = Callable[..., "Tensor | tuple[Tensor, ...]"]
LEVELS = ("operator", "layer", "model")


class Unavailable(Exception):
    """A variant cannot run here, or not for this case; the message says why."""


@dataclass(frozen=True)
class Problem:
    """What is computed, and what is right.

    inputs: makes the tensors by name, the same at each call. differentiated: those whose gradients belong to a pass
    back; the others need none. If there are none of them, gradients are the affair of the call itself.
    definition: plain PyTorch for any floating point type, which judges the variants: in float64, unless
    tolerance: the relative error allowed against the definition in its own type, for steps that are not one type's.
    """

    inputs: Callable[[], dict[str, object]]
    differentiated: tuple[str, ...]
    definition: Operator
    tolerance: float | None = None


@dataclass(frozen=True)
class Variant:
    """One way to compute the operator of a case.

    call: takes the inputs by name, returns its output or outputs; raises Unavailable where it cannot.
    compiled: whether its first call takes long because it compiles something.
    problem: what it computes, where that is not what the case's other variants do: layers that may replace each other.
    facts: what a record should tell of it besides its figures, asked for after its first call.
    """

    name: str
    call: Operator
    compiled: bool = False
    problem: Problem | None = None
    facts: Callable[[], dict[str, object]] = dict


@dataclass(frozen=True)
class Case:
    """What is timed together and compared.

    work: what no implementation does without; None where variants differ in it. inputs, differentiated, definition: see
    `Problem`. level: "operator", "layer" or "model". facts: what else a record should hold, such as the tokens.
    """

    operator: str
    shape: str
    dtype: torch.dtype
    passes: str
    work: Work | None
    inputs: Callable[[], dict[str, object]]
    differentiated: tuple[str, ...]
    definition: Operator
    variants: tuple[Variant, ...]
    level: str = LEVELS[0]
    facts: dict[str, object] = field(default_factory=dict)
    tolerance: float | None = None

    def __post_init__(self):
        if self.level not in LEVELS:
            raise ValueError(f"level: got {self.level!r}, wants one of {', '.join(LEVELS)}")
        if self.passes not in PASSES:
            raise ValueError(f"passes: got {self.passes!r}, wants one of {', '.join(PASSES)}")
        names = [variant.name for variant in self.variants]
        if len(set(names)) < len(names):
            raise ValueError(f"variants: got {', '.join(names)}, wants each name once")

    @property
    def backward(self) -> bool:
        return self.passes == PASSES[1]

    @functools.cached_property
    def problem(self) -> Problem:
        """That of the variants that have none of their own."""
        return Problem(self.inputs, self.differentiated, self.definition, self.tolerance)

    @property
    def name(self) -> str:
        return f"{self.operator} {self.shape}, {str(self.dtype).removeprefix('torch.')}, {self.passes}"

    @property
    def slug(self) -> str:
        """The name as pytest's -k can select by its parts: only letters, digits and single dashes."""
        return re.sub(r"[^a-zA-Z0-9_]+", "-", self.name.replace(" x ", "x").replace("+", "and"))


def on_backends(operator: str, call: Operator) -> tuple[Variant, ...]:
    """`call` on each backend that has `operator` and can run here."""
    rows = [row for row in backend_report() if row.operator == operator and row.available]
    return tuple(Variant(row.backend, functools.partial(_on_backend, row.backend, call)) for row in rows)


def _on_backend(backend: str, call: Operator, **inputs):
    with use_backend(backend):
        try:
            return call(**inputs)
        except ValueError as error:
            if "cannot serve" not in str(error):
                raise
            raise Unavailable(str(error)) from error


def by_torch_compile(call: Operator, name: str = "torch.compile", problem: Problem | None = None) -> Variant:
    """`call`, a composition of plain PyTorch, through torch.compile; compiled anew for each case."""
    compiled = None

    def run(**inputs):
        nonlocal compiled
        if compiled is None:
            if inputs_on_cpu(inputs) and not any(map(shutil.which, ("c++", "g++", "clang++"))):
                raise Unavailable("torch.compile needs a C++ compiler on the CPU, and found none")
            torch._dynamo.reset()
            compiled = torch.compile(call, dynamic=False)
        return compiled(**inputs)

    return Variant(name, run, compiled=True, problem=problem)


def inputs_on_cpu(inputs: dict[str, Tensor]) -> bool:
    return all(tensor.device.type == "cpu" for tensor in inputs.values())
