"""Set-up of all tests."""

from __future__ import annotations

import os
import signal
import tempfile
from pathlib import Path

import pytest
import trustme
from hypothesis import HealthCheck, settings


def pytest_configure(config: pytest.Config) -> None:
    """Set property tests up, keep TLS contexts cheap, and have programs be interrupted by SIGINT."""
    # How long an example takes says how busy the machine is.
    settings.register_profile("cgw", deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile("cgw")
    # Nothing here leaves the machine, and every gateway and every client would read all CAs of the world: tens of
    # milliseconds of CPU for each.
    folder = tempfile.TemporaryDirectory(prefix="cgw-tests-ca-")
    config.add_cleanup(folder.cleanup)
    authority = Path(folder.name, "ca.pem")
    trustme.CA().cert_pem.write_to_path(str(authority))
    os.environ |= {"SSL_CERT_FILE": str(authority), "SSL_CERT_DIR": folder.name}
    # A shell without job control starts background commands with SIGINT ignored, and child processes inherit that.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
