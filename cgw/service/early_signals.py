"""Signals before the service can handle them: from the first line of ``cgw serve`` on (``cgw/__main__.py``).

Imports nothing but the standard library's smallest parts, since it has to run before everything else is imported.
"""

from __future__ import annotations

import os
import signal
from types import FrameType

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
OTHER_SIGNALS = (signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1)


def handle_early_signals() -> None:
    """Let SIGTERM and SIGINT end the process with status 0 now, and SIGHUP, SIGQUIT and SIGUSR1 do nothing.

    The kernel ignores a signal without a handler for PID 1 of a container (pid_namespaces(7)), so the default
    disposition of SIGTERM would not end cgw there; that of the other three would end it everywhere else. Nothing needs
    cleaning up yet. Must be called in the main thread.
    """
    for number in STOP_SIGNALS:
        signal.signal(number, _end)
    for number in OTHER_SIGNALS:
        # A function and not SIG_IGN, which children would inherit across exec.
        signal.signal(number, _ignore)


def _end(number: int, frame: FrameType | None) -> None:
    # Not SystemExit: Python runs handlers between any two steps, also inside weak reference callbacks (the import
    # system's module locks have them) and finalizers, where it prints an exception and goes on.
    os._exit(0)


def _ignore(number: int, frame: FrameType | None) -> None:
    pass
