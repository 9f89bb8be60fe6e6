"""Progress on a terminal, and sparsely in a log file."""

import sys

from tqdm import tqdm


def step_bar(label: str, done: int, total: int, shown: bool, unit: str = "step") -> tqdm:
    """A bar of steps, or another unit, with the time left; where stderr is no terminal, a line every half minute."""
    terminal = sys.stderr.isatty()
    return tqdm(
        total=total,
        initial=done,
        desc=label,
        unit=unit,
        dynamic_ncols=terminal,
        mininterval=0.2 if terminal else 30,
        maxinterval=1 if terminal else 30,
        disable=not shown,
    )
