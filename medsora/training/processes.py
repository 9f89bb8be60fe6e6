"""How a program leaves the group of processes it trains in."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from accelerate import Accelerator

DRAIN = 0.5  # seconds


def leave_process_group(accelerator: Accelerator) -> None:
    """End the group of `accelerator`; nothing happens where there is one process only.

    gloo's threads drop the tensors of a finished exchange in their own time and need the interpreter's lock for it. One
    that asks for it while the interpreter is ending aborts the process, and they outlive `destroy_process_group` (the
    data-parallel wrapper keeps the group). Sleeping leaves them the lock, and more than the time they need.
    """
    if accelerator.num_processes > 1:
        time.sleep(DRAIN)
        accelerator.end_training()
