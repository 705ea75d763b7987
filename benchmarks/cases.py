"""The cases of scenarios: profiles, and the settings of one measurement of each kind."""

from __future__ import annotations

from typing import Literal

from attrs import field, frozen

__all__ = [
    "FULL",
    "PROFILES",
    "SHORT",
    "SMOKE",
    "AnyCase",
    "EventsCase",
    "GatewayCase",
    "LimitsCase",
    "OverheadCase",
    "Parameter",
    "Profile",
]

Parameter = int | float | str | bool


@frozen
class Profile:
    """Sizes and durations of a run, in milliseconds."""

    name: str
    rounds: int
    window_ms: int
    ramp_ms: int
    warm_ms: int
    streams: tuple[int, ...]
    idle_streams: int
    pace: int
    """Events/s of each short stream, whose length decides how long a measurement takes."""
    callers: tuple[int, ...]
    help: str


SHORT = Profile(
    "short", 3, 1500, 300, 300, (1, 50, 200, 1000), 1000, 50, (1, 50, 500), "under 15 minutes with four subjects"
)
FULL = Profile(
    "full", 5, 8000, 1000, 1000, (1, 50, 200, 1000), 1000, 50, (1, 50, 500), "about 20 minutes for each subject"
)
SMOKE = Profile(
    "smoke", 1, 300, 100, 50, (2,), 5, 1000, (5,), "only to check that everything works; its figures mean nothing"
)
PROFILES = {profile.name: profile for profile in (SHORT, FULL, SMOKE)}


@frozen(kw_only=True)
class GatewayCase:
    """Settings of one measurement of a gateway.

    ``upstream`` and ``second`` set the profiles a and b of ``tools/fake_upstream.c``; ``load`` has the options of
    ``tools/load_generator.c``.
    """

    scenario: str
    parameters: dict[str, Parameter] = field(factory=dict)
    upstream: dict[str, int]
    second: dict[str, int] = field(factory=dict)
    load: dict[str, int | float | str]
    window_ms: int
    offered_events_per_second: float | None = None
    counts: Literal["events", "requests"] = "events"
    is_tls: bool = False
    needs_fresh_subject: bool = False
    reads_memory: bool = False
    ends_with_window: bool = False
    """The upstream ends all streams when the window closes; the load checks that each ends correctly."""
    leaves_open: bool = False
    """The load ends while its streams are open: unfinished streams are not errors."""
    awaits_closes: bool = False
    """The load cancels its streams; the upstream records when each connection is closed."""

    @property
    def is_http2(self) -> bool:
        """``True`` if the load's connections use HTTP/2."""
        return "http2" in self.load

    @property
    def seconds(self) -> float:
        """The estimated duration when the subject is not saturated."""
        load = self.load
        total = int(load.get("ramp-ms", 0)) + int(load["warm-ms"]) + self.window_ms
        return total / 1000 + (1.2 if self.needs_fresh_subject else 0.4)


@frozen(kw_only=True)
class LimitsCase:
    """Settings of one measurement of limits alone: ``callers`` that admit and settle without a pause."""

    scenario: str = "limits"
    callers: int
    limits: int
    warm_ms: int
    window_ms: int

    @property
    def parameters(self) -> dict[str, Parameter]:
        return {"callers": self.callers, "limits": self.limits}

    @property
    def seconds(self) -> float:
        """The estimated duration, with the start of a client and a store."""
        return (self.warm_ms + self.window_ms) / 1000 + 0.6


@frozen(kw_only=True)
class EventsCase:
    """Settings of one measurement of usage events alone: ``rate`` events/s, 0 for without a pause, shipped or not.

    ``sink`` is ``none``, or ``http`` for a collector on loopback.
    """

    scenario: str = "events"
    rate: int
    sink: Literal["none", "http"]
    warm_ms: int
    window_ms: int

    @property
    def parameters(self) -> dict[str, Parameter]:
        return {"rate": self.rate or "full", "sink": self.sink}

    @property
    def seconds(self) -> float:
        """The estimated duration; without a pause, shipping takes some times as long as recording."""
        return (self.warm_ms + self.window_ms) / 1000 * (1 if self.rate or self.sink == "none" else 4) + 1


@frozen(kw_only=True)
class OverheadCase:
    """One comparison of cgw's own metric with the load generator: loads ``through`` cgw, and ``direct``, without it."""

    scenario: str = "overhead"
    through: GatewayCase
    direct: GatewayCase

    @property
    def parameters(self) -> dict[str, Parameter]:
        return self.through.parameters

    @property
    def seconds(self) -> float:
        """The estimated duration, with the waits for the metric."""
        return self.through.seconds + 2 * self.direct.seconds + 3


AnyCase = GatewayCase | LimitsCase | EventsCase | OverheadCase
