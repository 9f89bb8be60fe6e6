"""Ctrl-C and SIGTERM: a training loop ends its step and saves; anything else stops where it is."""

import contextlib
import signal
import threading
from collections.abc import Iterator

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(BaseException):
    """The run was asked to stop by a signal. Like KeyboardInterrupt it passes `except Exception`.

    signal_number: SIGINT or SIGTERM; saved: where the loop saved a checkpoint first, as words, or None.
    """

    def __init__(self, signal_number: int, saved: str | None = None):
        super().__init__(signal.Signals(signal_number).name)
        self.signal_number = signal_number
        self.saved = saved

    @property
    def exit_code(self) -> int:
        """What a shell expects of a process that a signal ended: 128 + its number."""
        return 128 + self.signal_number


class StopRequests:
    """Turns SIGINT and SIGTERM into `Interrupted`, at once or, inside `deferred()`, when the code asks.

    A second signal inside `deferred()` no longer waits.
    """

    def __init__(self):
        self.pending = 0
        self._deferring = False

    @contextlib.contextmanager
    def listening(self) -> Iterator["StopRequests"]:
        """Installs the handlers for the block (in the main thread; elsewhere Python allows none)."""
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        before = {number: signal.signal(number, self._receive) for number in SIGNALS}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Within the block a first signal only sets `pending`; the code there looks at it between steps."""
        self._deferring = True
        try:
            yield
        finally:
            self._deferring = False

    def _receive(self, number: int, frame) -> None:
        if self._deferring and not self.pending:
            self.pending = number
            return
        raise Interrupted(number)
