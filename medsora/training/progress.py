"""Progress on a terminal, and sparsely in a log file."""

import sys

from tqdm import tqdm


def step_bar(label: str, done: int, total: int, shown: bool) -> tqdm:
    """A bar of steps with the time left; where stderr is no terminal it prints a line every half minute only."""
    terminal = sys.stderr.isatty()
    return tqdm(
        total=total,
        initial=done,
        desc=label,
        unit="step",
        dynamic_ncols=terminal,
        mininterval=0.2 if terminal else 30,
        maxinterval=1 if terminal else 30,
        disable=not shown,
    )
