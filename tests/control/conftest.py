"""The gateway of the tests of whole exchanges, for the tests of control routes."""

from __future__ import annotations

from tests.gateway.conftest import gateway, upstream

__all__ = ["gateway", "upstream"]
