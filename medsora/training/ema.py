"""The exponential moving average of the weights, which is what a finished model samples with."""

import contextlib
from collections.abc import Iterator

import torch
from torch import nn


class MovingAverage:
    """An exponential moving average of a module's trained parameters, kept in float32.

    The decay warms up: after n updates it is min(decay, (1 + n) / (10 + n)), so that a short run's average is not
    dominated by its initial weights. `decay = 0` makes the average equal the weights.
    """

    def __init__(self, module: nn.Module, decay: float):
        if not 0 <= decay < 1:
            raise ValueError(f"ema_decay: got {decay}, wants 0 <= ema_decay < 1")
        self.decay = decay
        self.updates = 0
        self._parameters = dict(trained_parameters(module))
        self.values = {name: p.detach().float().clone() for name, p in self._parameters.items()}

    def current_decay(self) -> float:
        """The decay that the next update uses."""
        return min(self.decay, (1 + self.updates) / (10 + self.updates)) if self.decay else 0.0

    @torch.no_grad()
    def update(self) -> None:
        """Moves the average towards the module's present weights."""
        weights = [self._parameters[name].detach().float() for name in self.values]
        torch._foreach_lerp_(list(self.values.values()), weights, 1.0 - self.current_decay())
        self.updates += 1

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Within the block the module holds the averaged weights; afterwards its own, bit for bit."""
        own = {name: p.detach().clone() for name, p in self._parameters.items()}
        self._assign(self.values)
        try:
            yield
        finally:
            self._assign(own)

    @torch.no_grad()
    def _assign(self, values: dict[str, torch.Tensor]) -> None:
        for name, parameter in self._parameters.items():
            parameter.copy_(values[name])


def trained_parameters(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """The parameters that training changes, with their names."""
    return ((name, p) for name, p in module.named_parameters() if p.requires_grad)
