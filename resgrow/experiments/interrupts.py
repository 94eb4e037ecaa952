"""SIGINT and SIGTERM as an exception that never lands in the middle of a file."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(BaseException):
    """A signal asked the run to stop. Not an Exception: no handler of ordinary errors may swallow it."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum

    @property
    def exit_code(self) -> int:
        """128 + signal number, the shell's convention: 130 for SIGINT, 143 for SIGTERM."""
        return 128 + self.signum


class Interrupts:
    """Turns the first SIGINT or SIGTERM into ``Interrupted``; later ones are ignored while the run winds up."""

    def __init__(self) -> None:
        self._held = 0
        self._pending: int | None = None
        self._raised = False

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if self._raised:
            return
        if self._held:
            self._pending = signum
            return
        self._raise(signum)

    def _raise(self, signum: int) -> None:
        self._raised = True
        raise Interrupted(signum)

    @contextmanager
    def caught(self) -> Iterator[Interrupts]:
        """Installs the handlers for the time of the block (only in the main thread, as Python demands)."""
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        previous = {signum: signal.signal(signum, self._handle) for signum in SIGNALS}
        try:
            yield self
        finally:
            for signum, handler in previous.items():
                signal.signal(signum, handler)

    @contextmanager
    def held(self) -> Iterator[None]:
        """A signal that arrives inside the block is raised at its end."""
        self._held += 1
        try:
            yield
        finally:
            self._held -= 1
        if self._pending is not None and not self._held:
            signum, self._pending = self._pending, None
            self._raise(signum)
