"""Tables that depend on sizes alone, such as positions: made once, kept beside the weights."""

from __future__ import annotations

from collections.abc import Callable, Hashable

import torch
from torch import Tensor


class Tables:
    """Tensors by what they depend on, device and type among it. They are no part of a module's state."""

    def __init__(self) -> None:
        self._made: dict[Hashable, Tensor] = {}  # plain, where a compiled function can find them

    def get(self, key: Hashable, make: Callable[[], Tensor]) -> Tensor:
        """The table of this key; `make()` makes it the first time."""
        known = self._made.get(key)
        if known is not None:
            return known
        with torch.inference_mode(False):  # else a table made while sampling could not serve training
            made = make()
        if type(made) is Tensor and not torch.compiler.is_compiling():  # a fake one would be of use to nobody else
            self._made[key] = made
        return made
