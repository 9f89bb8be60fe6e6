"""Which errors are the user's to mend, and how a command shows them."""

import errno
import os
import sys
import time
from collections.abc import Callable

HEAD_START = 10.0  # seconds, in which the launcher sees that the first has ended, and ends the others
# What a system says of a place that its user may not use, that is of another kind or that is full.
OF_THE_PLACE = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENOTDIR, errno.EISDIR,
                errno.EEXIST, errno.ENAMETOOLONG}  # fmt: skip


class UserError(ValueError):
    """A setting, file or argument that its user can put right; the message says how, in one sentence."""


def run_command(main: Callable[[], int | None]) -> int:
    """Runs a command's body; a `UserError` becomes one line on stderr and exit code 2, without a traceback.

    So does a file or folder that cannot be used: forbidden, read-only, of another kind, on a full disk. Any other
    exception is a defect of the program and keeps its traceback. Of several processes that torchrun started
    the first speaks; another, which mostly fails for the same reason, only where the first has not ended them all.
    """
    try:
        return main() or 0
    except UserError as error:
        return _refuse(str(error))
    except OSError as error:
        if error.errno not in OF_THE_PLACE:
            raise
        return _refuse(f"cannot use {error.filename or 'a file'}: {error.strerror}")


def _refuse(sentence: str) -> int:
    """Prints the sentence, in its turn, and returns the exit code."""
    process = int(os.environ.get("RANK", 0))
    if process:
        time.sleep(HEAD_START)
    where = f"error (process {process}): " if process else "error: "
    print(where + " ".join(sentence.split()), file=sys.stderr)
    return 2
