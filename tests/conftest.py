"""Set-up of all tests."""

from __future__ import annotations

import signal


def pytest_configure() -> None:
    """Restore the default handling of SIGINT, so that programs under test can be interrupted."""
    # A shell without job control starts background commands with SIGINT ignored, and child processes inherit that.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
