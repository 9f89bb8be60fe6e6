"""Which errors are the user's to mend, and how a command shows them."""

import sys
from collections.abc import Callable


class UserError(ValueError):
    """A setting, file or argument that its user can put right; the message says how, in one sentence."""


def run_command(main: Callable[[], int | None]) -> int:
    """Runs a command's body; a `UserError` becomes one line on stderr and exit code 2, without a traceback.

    Any other exception is a defect of the program and keeps its traceback.
    """
    try:
        return main() or 0
    except UserError as error:
        print("error: " + " ".join(str(error).split()), file=sys.stderr)
        return 2
