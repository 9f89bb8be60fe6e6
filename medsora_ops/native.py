"""Is the native extension there, if not why not, and how many threads may it use?

`extension()` is the compiled module medsora_ops._C, whose functions take raw addresses. torch is imported first: the
extension is compiled for OpenMP but brings no runtime of its own, so that its threads are torch's threads.
"""

from __future__ import annotations

import functools
import importlib
import os
from types import ModuleType

import torch

from medsora_ops.version import __version__

_ALWAYS_FRESH = 32 << 20
_forked = False


def _note_fork() -> None:
    global _forked  # a fact about this process, not a setting
    _forked = True


# The pool's threads do not survive a fork; a parallel region in the child would wait for them for ever.
os.register_at_fork(after_in_child=_note_fork)


@functools.cache
def _load() -> tuple[ModuleType | None, str | None]:
    try:
        module = importlib.import_module("medsora_ops._C")
    except ModuleNotFoundError:
        return None, "the extension medsora_ops._C is not built: install a C++17 compiler and install medsora again"
    except ImportError as error:
        return None, f"the extension medsora_ops._C does not load: {error}"
    built_for = module.build_info()["version"]
    if built_for != __version__:
        return None, f"the extension medsora_ops._C was built for {built_for}, this is {__version__}: install again"
    return module, None


def unavailable() -> str | None:
    """None when the extension can be used here, else the reason why not, in words."""
    return _load()[1]


def extension() -> ModuleType:
    """The compiled module. Raises RuntimeError with the reason of `unavailable()` where there is none."""
    module, reason = _load()
    if module is None:
        raise RuntimeError(reason)
    return module


def threads() -> int:
    """Threads for one native call made now: torch's setting for this thread, or 1 in a forked child."""
    return 1 if _forked else torch.get_num_threads()


def new_empty(like: torch.Tensor, *shape: int) -> torch.Tensor:
    """`like.new_empty(shape)`, backed by huge pages where memory of that size is always fresh.

    From 32 MiB on, glibc asks the system for every block anew and gives it back at once.
    """
    made = like.new_empty(shape)
    if made.nbytes >= _ALWAYS_FRESH:
        extension().back_by_huge_pages(made.data_ptr(), made.nbytes)
    return made


def build_info() -> dict[str, object]:
    """What the extension was built with and what it uses here; empty where there is none.

    Keys: version, compiler, cpp_standard, openmp (date of the specification, 0 without), isa_compiled, isa_supported,
    cuda (version of the toolkit or None), cuda_architectures (90 for sm_90), isa (in use now), threads (asked for now),
    threads_seen (given by the runtime).
    Raises ValueError if MEDSORA_ISA names an instruction set that is not there.
    """
    if unavailable() is not None:
        return {}
    module = extension()
    wanted = threads()
    return module.build_info() | {
        "isa": module.isa_in_use(),
        "threads": wanted,
        "threads_seen": module.threads_seen(wanted),
    }
