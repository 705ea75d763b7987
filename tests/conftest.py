"""What all tests share."""

from __future__ import annotations

import signal


def pytest_configure() -> None:
    """Let programs under test be interrupted, also where the tests run in the background of a shell, which ignores
    SIGINT for all that it starts there."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
