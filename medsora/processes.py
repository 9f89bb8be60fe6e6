"""The processes of one command: which of them this one is, how they share work and join what they found.

`torchrun --nproc-per-node=8 -m medsora.sample ...` starts eight processes, on several machines more; without it there
is one, for which all of this is nothing. What they exchange is small (records, sums, "I am here"), so it goes by gloo
over the network whatever the models run on; files they share by a file system that all of them see.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

from medsora.errors import UserError
from medsora.files import write_json

T = TypeVar("T")
DRAIN = 0.5  # seconds
PATIENCE = timedelta(days=7)  # the others wait while the first prepares data or samples alone


@dataclass(frozen=True)
class Processes:
    """This process and its companions; all of them call each method that exchanges something, in the same order.

    rank: its number, from 0. count: how many there are.
    """

    rank: int = 0
    count: int = 1

    @property
    def is_first(self) -> bool:
        """Whether it is the one that writes what there is once."""
        return self.rank == 0

    def share(self, items: Sequence[T]) -> list[T]:
        """This process's part of `items`, the same list in each: every count-th, so that each item has one owner."""
        return list(items[self.rank :: self.count])

    def wait(self) -> None:
        """Returns once all processes have come here."""
        if self.count > 1:
            import torch.distributed as group

            group.barrier()

    def from_first(self, make: Callable[[], T]) -> T:
        """What `make()` gives in the first process, where alone it is called; its UserError is raised in all."""
        if self.count == 1:
            return make()
        import torch.distributed as group

        made = refused = None
        if self.is_first:
            try:
                made = make()
            except UserError as error:  # the others would wait for what does not come
                refused = error
        box = [made, refused]
        group.broadcast_object_list(box, src=0)
        if box[1] is not None:
            raise box[1]
        return box[0]

    def gathered(self, value: T) -> list[T]:
        """Every process's value in the order of ranks, in all of them."""
        if self.count == 1:
            return [value]
        import torch.distributed as group

        values: list = [None] * self.count
        group.all_gather_object(values, value)
        return values


ALONE = Processes()


class RecordParts:
    """Records by name that several processes make at once: each keeps its own in a part beside the whole file.

    `samples.json` has parts `samples.part-00003.json`. The parts outlive a command that was killed, whatever number of
    processes goes on; who joins them into the whole file then clears them.
    """

    def __init__(self, whole: Path, processes: Processes):
        self.pattern, self.folder = f"{whole.stem}.part-*.json", whole.parent
        self.own = whole.with_name(f"{whole.stem}.part-{processes.rank:05d}.json")

    def write(self, records: dict) -> None:
        """Writes this process's part, whole."""
        write_json(self.own, records)

    def read(self) -> dict:
        """The records of every part there is, of this command or one before; a damaged part has none."""
        records: dict = {}
        for path in sorted(self.folder.glob(self.pattern)):
            with contextlib.suppress(ValueError, OSError):
                records |= json.loads(path.read_text("utf-8"))
        return records

    def clear(self) -> None:
        """Removes every part."""
        for path in self.folder.glob(self.pattern):
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def joined_processes() -> Iterator[Processes]:
    """Within the block: this process among those torchrun started; `ALONE` where it was not torchrun that did."""
    count = int(os.environ.get("WORLD_SIZE", 1))
    if count == 1:
        yield ALONE
        return
    import torch.distributed as group

    mine = not group.is_initialized()
    if mine:
        group.init_process_group("gloo", timeout=PATIENCE)
    try:
        yield Processes(group.get_rank(), group.get_world_size())
    finally:
        if mine:
            leave_group()


def leave_group() -> None:
    """Ends the group of processes, if there is one.

    gloo's threads drop the tensors of a finished exchange in their own time and need the interpreter's lock for it. One
    that asks for it while the interpreter is ending aborts the process, and they outlive `destroy_process_group` (the
    data-parallel wrapper keeps the group). Sleeping leaves them the lock, and more than the time they need.
    """
    import torch.distributed as group

    if group.is_initialized():
        time.sleep(DRAIN)
        group.destroy_process_group()


def local_device(device: str) -> str:
    """The device this process computes on: "auto" and "cuda" mean the GPU of its place on this machine.

    Raises UserError where this machine has fewer GPUs than processes.
    """
    import torch

    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device == "auto":
        device = "cuda" if gpus else "cpu"
    place, here = int(os.environ.get("LOCAL_RANK", 0)), int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    if device != "cuda" or here == 1:
        return device
    if here > gpus:
        raise UserError(f"--device: got {here} processes on a machine of {gpus} GPU(s), wants at most one a GPU")
    return f"cuda:{place}"


def require_enough(processes: int, items: int, what: str) -> None:
    """Raises UserError where some process would have nothing to work on. what: the items, in the plural."""
    if processes > max(items, 1):
        raise UserError(f"processes: got {processes}, wants at most {max(items, 1)}, the number of {what}")
