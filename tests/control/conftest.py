"""The gateway of the tests of whole exchanges, for the other engine's tests too."""

from __future__ import annotations

from tests.gateway.conftest import gateway, upstream

__all__ = ["gateway", "upstream"]
