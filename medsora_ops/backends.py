"""Which implementation serves which operator on which device, and why.

Every operator has a `reference` (plain PyTorch, any device). Faster implementations join by one call of `register`.
The choice is made at each call: the backend named by `use_backend` or `MEDSORA_BACKEND` if it can serve the operator,
else the available implementation with the highest priority for the device. On a GPU the one that preferred.json names
for the size comes before all others.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from medsora_ops import preferred

BACKENDS = ("reference", "native", "triton", "cuda")
OPERATORS = ("gather", "merge", "path_scan", "ssd_scan", "spectral_filter", "focal_frequency_loss")
EACH_OTHERS_GRADIENT = ("gather", "merge")
DEVICES = ("cpu", "cuda")  # those the report speaks of

_log = logging.getLogger("medsora_ops")
_requested: contextvars.ContextVar[str | None] = contextvars.ContextVar("medsora_backend", default=None)
_table: dict[tuple[str, str], Implementation] = {}
_announced: set[tuple[str, str, str]] = set()


@dataclass(frozen=True)
class Implementation:
    """One implementation of one operator.

    forward, backward: callables whose arguments the operator's `op.py` defines. No backward for gather and merge.
    devices: device types it runs on; None for every one that torch knows.
    priority: the highest one available serves a device by default.
    unavailable: returns None when it can run here, else the reason why not, in words.
    supports: given the operator's arguments, returns None or the reason why this call is not served.
    """

    operator: str
    backend: str
    forward: Callable
    backward: Callable | None
    devices: tuple[str, ...] | None
    priority: int
    unavailable: Callable[[], str | None]
    supports: Callable[..., str | None]

    def runs_on(self, device: str) -> bool:
        """Whether it was written for this device type, be it available or not."""
        return self.devices is None or device in self.devices


def register(
    operator: str,
    backend: str,
    forward: Callable,
    backward: Callable | None = None,
    *,
    devices: tuple[str, ...] | None = None,
    priority: int = 0,
    unavailable: Callable[[], str | None] = lambda: None,
    supports: Callable[..., str | None] = lambda *args, **kwargs: None,
) -> None:
    """Add one implementation to the table.

    Raises ValueError for a name outside `OPERATORS` or `BACKENDS`, and for a missing backward.
    """
    if operator not in OPERATORS:
        raise ValueError(f"operator: got {operator!r}, wants one of {', '.join(OPERATORS)}")
    _check_backend(backend)
    if backward is None and operator not in EACH_OTHERS_GRADIENT:
        raise ValueError(f"backward: got None, wants the gradient of {operator}")
    _table[operator, backend] = Implementation(
        operator, backend, forward, backward, devices, priority, unavailable, supports
    )
    _ranked.cache_clear()


def requested() -> str:
    """The backend asked for by `use_backend` or `MEDSORA_BACKEND`, "" if none is.

    A registered operator carries this name to its gradient, which may run in another thread or after the block.
    Raises ValueError if `MEDSORA_BACKEND` is no backend's name.
    """
    name = _requested.get() or os.environ.get("MEDSORA_BACKEND") or ""
    if name:
        _check_backend(name)
    return name


def select(operator: str, device: str, *args, backend: str = "", **kwargs) -> Implementation:
    """The implementation that serves `operator` on `device` for these arguments.

    Logged once at INFO level, with the reasons why any of a higher priority does not.

    backend: a name carried from an earlier call, in place of what is asked for now.
    A requested backend that cannot serve the call is an error; without a request the best available one is taken.
    """
    wanted, passed_over = backend or requested(), []
    if wanted:
        chosen = _table.get((operator, wanted))
        reason = _refusal(chosen, operator, wanted, device, *args, **kwargs)
        if reason is not None:
            raise ValueError(f"backend {wanted!r} cannot serve {operator} on {device}: {reason}")
    else:
        first = preferred.backend(operator, *args) if device == "cuda" else None
        for chosen in _ranked(operator, device, first):
            reason = _refusal(chosen, operator, chosen.backend, device, *args, **kwargs)
            if reason is None:
                break
            passed_over.append(f"{chosen.backend}: {reason}")
        else:
            raise ValueError(f"no implementation of {operator} on {device}: {'; '.join(passed_over) or 'none yet'}")
    if (operator, device, chosen.backend) not in _announced:
        _announced.add((operator, device, chosen.backend))
        why = f" ({'; '.join(passed_over)})" if passed_over else ""
        _log.info("%s on %s is served by %s%s", operator, device, chosen.backend, why)
    return chosen


@contextlib.contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Within the block, operators run on backend `name`: "reference", "native", "triton" or "cuda".

    Raises ValueError for an unknown name at once, and at the call if that backend cannot serve it.
    The environment variable `MEDSORA_BACKEND` does the same for a whole process. A gradient runs on the backend of its
    operator, even after the block; inside torch.compile each asks when it runs.
    """
    _check_backend(name)
    token = _requested.set(name)
    try:
        yield
    finally:
        _requested.reset(token)


def _check_backend(name: str) -> None:
    if name not in BACKENDS:
        raise ValueError(f"backend: got {name!r}, wants one of {', '.join(BACKENDS)}")


@functools.cache  # asked at every call of an operator, and the table hardly ever changes
def _ranked(operator: str, device: str, first: str | None = None) -> tuple[Implementation, ...]:
    """Those that run on the device type, be they available or not: backend `first`, then the highest priority."""
    suited = (i for (name, _), i in _table.items() if name == operator and i.runs_on(device))
    return tuple(sorted(suited, key=lambda i: (i.backend == first, i.priority), reverse=True))


def _refusal(chosen, operator, backend, device, *args, **kwargs) -> str | None:
    if chosen is None:
        return f"{backend} has no {operator} yet"
    if not chosen.runs_on(device):
        return f"runs on {', '.join(chosen.devices)} only"
    return chosen.unavailable() or chosen.supports(*args, **kwargs)


@dataclass(frozen=True)
class ReportRow:
    """One line of `backend_report`: an operator, a backend, whether it can run here, and which devices it serves."""

    operator: str
    backend: str
    available: bool
    reason: str
    serves: tuple[str, ...]


def backend_report() -> list[ReportRow]:
    """Each operator with each backend: available or not and why, and which devices it serves by default."""
    rows = []
    for operator in OPERATORS:
        best = {d: next((i for i in _ranked(operator, d) if i.unavailable() is None), None) for d in DEVICES}
        for backend in BACKENDS:
            chosen = _table.get((operator, backend))
            reason = f"{backend} has no {operator} yet" if chosen is None else chosen.unavailable()
            serves = tuple(d for d in DEVICES if chosen is not None and best[d] is chosen)
            rows.append(ReportRow(operator, backend, reason is None, reason or "", serves))
    return rows
