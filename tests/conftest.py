"""Set-up of all tests."""

from __future__ import annotations

import signal

from hypothesis import HealthCheck, settings


def pytest_configure() -> None:
    """Set property tests up, and restore the default handling of SIGINT, so that programs can be interrupted."""
    # How long an example takes says how busy the machine is.
    settings.register_profile("cgw", deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile("cgw")
    # A shell without job control starts background commands with SIGINT ignored, and child processes inherit that.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
