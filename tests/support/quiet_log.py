"""A check that nothing which a peer does ends in a traceback."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def quiet_log(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Fail a test that logs a traceback."""
    yield
    tracebacks = [record for record in caplog.get_records("call") if record.exc_info]
    assert not tracebacks, logging.Formatter().format(tracebacks[0])
