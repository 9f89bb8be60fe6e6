"""Which errors are the user's to mend, and how a command shows them."""

import os
import sys
import time
from collections.abc import Callable

HEAD_START = 10.0  # seconds, in which the launcher sees that the first has ended, and ends the others


class UserError(ValueError):
    """A setting, file or argument that its user can put right; the message says how, in one sentence."""


def run_command(main: Callable[[], int | None]) -> int:
    """Runs a command's body; a `UserError` becomes one line on stderr and exit code 2, without a traceback.

    Any other exception is a defect of the program and keeps its traceback. Of several processes that torchrun started
    the first speaks; another, which mostly fails for the same reason, only where the first has not ended them all.
    """
    try:
        return main() or 0
    except UserError as error:
        process = int(os.environ.get("RANK", 0))
        if process:
            time.sleep(HEAD_START)
        where = f"error (process {process}): " if process else "error: "
        print(where + " ".join(str(error).split()), file=sys.stderr)
        return 2
