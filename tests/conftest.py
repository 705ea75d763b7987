"""Set-up of all tests."""

from __future__ import annotations

import signal


def pytest_configure() -> None:
    """Restore SIGINT, which shells ignore in background jobs, so that programs under test can be interrupted."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
