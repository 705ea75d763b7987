"""The work of every client of the scenario ``limits``: actors, their limits, and the measurements.

Limits are so large that all is admitted, and refill so slowly (one request in 100 s) that in the end the store must
count exactly what was charged.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from attrs import define, evolve, field
from msgspec import Struct

from benchmarks.histogram import Histogram
from benchmarks.machine import read_cpu
from cgw.limits.claims import ClaimGroup, build_actor_group
from cgw.limits.options import LimiterOptions
from cgw.limits.reservations import Reservation, ReservationIds
from cgw.model import MAX_TOKEN_MS, Actor, Feature, RateLimit

__all__ = [
    "FEATURES",
    "OPTIONS",
    "RATE_LIMIT",
    "ClientReport",
    "Order",
    "Tally",
    "Window",
    "ask_reservation",
    "build_actors",
    "build_group",
]

ACTOR_COUNT = 20
LIMIT = 150_000
RATE_LIMIT = RateLimit(
    limit=LIMIT,
    interval_ms=MAX_TOKEN_MS // LIMIT,
    allowed_models=("*",),
    concurrent_requests=LIMIT,
    concurrent_interval_ms=MAX_TOKEN_MS // LIMIT,
    max_in_flight=10_000,
)
OPTIONS = LimiterOptions(notify_thresholds=(90, 95, 100))
FEATURES = (Feature.CHAT_COMPLETIONS, Feature.CODE_COMPLETIONS)
"""The first one's quota, rate and slots in flight are the first three limits, the second one's the next three."""


class Order(Struct):
    """A client's instructions: the store, the calling actors, and the duration."""

    socket: str
    store_pid: int
    callers: int
    limits: int
    warm_ms: int
    window_ms: int


class ClientReport(Struct):
    """A client's report. ``charged`` counts all pairs by actor, warm-up included; the rest is the window's.

    CPU in nanoseconds: the client's own process, and the store's. ``pair`` is the time from when a caller wanted its
    pair, so waiting for a thread or a connection counts; ``admit`` and ``settle`` are the calls alone. Times are those
    of all pairs that were under way while the window was open: a caller that never gets its turn is seen.
    """

    window_ns: int
    cpu_ns: int
    store_cpu_ns: int
    pairs: int
    charged: list[int]
    pair: Histogram
    admit: Histogram
    settle: Histogram


def build_actors() -> list[Actor]:
    """Static actors: those whose usage is held against the thresholds of alerts, as cgw does unless told otherwise."""
    return [
        Actor(f"bench-{number}", "", "static", True, dict.fromkeys(FEATURES, RATE_LIMIT))
        for number in range(ACTOR_COUNT)
    ]


def build_group(actor: Actor, limits: int) -> ClaimGroup:
    """The first ``limits`` (1 to 6) of an actor's limits; with 3 exactly what a request of the first feature claims."""
    thresholds = " ".join(map(str, OPTIONS.notify_thresholds))
    groups = [
        build_actor_group(actor, feature, RATE_LIMIT, lease_ms=OPTIONS.lease_ms, thresholds=thresholds)
        for feature in FEATURES
    ]
    return evolve(groups[0], claims=(groups[0].claims + groups[1].claims)[:limits])


def ask_reservation(group: ClaimGroup, ids: ReservationIds) -> Reservation:
    """A reservation that is still to be admitted: what builds the calls, as the limiter builds them."""
    return Reservation(group, (), ids.next())


@define
class Tally:
    """The measurements of one thread, or of one process of tasks. Times in nanoseconds of ``time.perf_counter_ns``."""

    charged: list[int] = field(factory=lambda: [0] * ACTOR_COUNT)
    pairs: list[tuple[int, int, int, int]] = field(factory=list)
    """When each was settled, and how long pair, admit and settle took."""

    def note(self, actor: int, wanted_at: int, began_at: int, admitted_at: int) -> int:
        """A pair is settled now, and charged; returns the time."""
        now = time.perf_counter_ns()
        self.charged[actor] += 1
        self.pairs.append((now, now - wanted_at, admitted_at - began_at, now - admitted_at))
        return now


@define
class Window:
    """The span that is measured; callers go on until ``is_over``."""

    order: Order
    is_over: bool = False
    _opened: tuple[int, int, int] = field(default=(0, 0, 0), init=False)
    _closed: tuple[int, int, int] = field(default=(0, 0, 0), init=False)

    def open(self) -> None:
        self._opened = self._read()

    def close(self) -> None:
        self._closed = self._read()
        self.is_over = True

    def _read(self) -> tuple[int, int, int]:
        store_ns = sum(read_cpu([self.order.store_pid]).values())
        return time.perf_counter_ns(), time.process_time_ns(), store_ns

    def report(self, tallies: Sequence[Tally]) -> ClientReport:
        """Return the measurements between :meth:`open` and :meth:`close`."""
        opened_at, closed_at = self._opened[0], self._closed[0]
        pairs = [
            pair for tally in tallies for pair in tally.pairs if opened_at <= pair[0] and pair[0] - pair[1] < closed_at
        ]
        window_ns, cpu_ns, store_cpu_ns = (
            after - before for before, after in zip(self._opened, self._closed, strict=True)
        )
        return ClientReport(
            window_ns,
            cpu_ns,
            store_cpu_ns,
            sum(pair[0] < closed_at for pair in pairs),
            [sum(counts) for counts in zip(*(tally.charged for tally in tallies), strict=True)],
            *(Histogram.of(pair[column] for pair in pairs) for column in (1, 2, 3)),
        )
