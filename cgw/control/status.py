"""The service's state as probes see it."""

from __future__ import annotations

import enum

from attrs import define


class Phase(enum.Enum):
    """The stage of the service's life."""

    STARTING = "starting"
    SERVING = "serving"
    DRAINING = "draining"


@define
class ServiceStatus:
    """The ``phase``, which decides readiness, and the ``public_port`` once it is bound."""

    phase: Phase = Phase.STARTING
    public_port: int | None = None

    @property
    def is_ready(self) -> bool:
        """True if load balancers should send new requests."""
        return self.phase is Phase.SERVING
