"""The scenarios: settings of the fake upstream and of the load generator, and the metrics to read."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from attrs import evolve, frozen

from benchmarks.cases import AnyCase, EventsCase, GatewayCase, LimitsCase, OverheadCase, Parameter, Profile

__all__ = ["SCENARIOS", "Scenario"]

MS = 1_000_000
LONGEST_STREAM_SECONDS = 120
"""Longer than any window: streams are ended by a command, never by themselves."""
STREAMS_PER_CONNECTION = 50
COMPLETION_BYTES = 2000
CHAT_BYTES = 4000
"""Sizes of request bodies, as those of an editor: code around the cursor, or a conversation."""


@frozen
class Scenario:
    """A name, a line for ``--help``, and a function that builds the cases for a profile."""

    name: str
    help: str
    build: Callable[[Profile], Iterator[AnyCase]]


def _phases(profile: Profile, window_ms: int) -> dict[str, int | float | str]:
    return {"ramp-ms": profile.ramp_ms, "warm-ms": profile.warm_ms, "window-ms": window_ms}


def _paced(
    profile: Profile, scenario: str, streams: int, rate: int, *, parameters: dict[str, Parameter] | None = None
) -> GatewayCase:
    """Build a case with ``streams`` streams of ``rate`` events/s each, which the upstream ends after the window."""
    return GatewayCase(
        scenario=scenario,
        parameters={"streams": streams, "rate": rate} if parameters is None else parameters,
        upstream={"stream": 1, "events": rate * LONGEST_STREAM_SECONDS, "interval": 1_000_000_000 // rate, "first": 0},
        load={
            **_phases(profile, profile.window_ms),
            "slots": streams,
            # All streams end at once; a saturated subject needs time to forward what it has buffered.
            "drain-ms": 6000,
            "open-limit-ms": 3000,
        },
        window_ms=profile.window_ms,
        offered_events_per_second=streams * rate,
        ends_with_window=True,
    )


def _steady(profile: Profile) -> Iterator[GatewayCase]:
    for streams in profile.streams:
        yield _paced(profile, "steady", streams, 50)


def _throughput(profile: Profile) -> Iterator[GatewayCase]:
    streams = min(100, profile.streams[-1])
    yield _paced(profile, "throughput", streams, 200)


def _flood(profile: Profile) -> Iterator[GatewayCase]:
    streams = min(100, profile.streams[-1])
    for burst in (1, 16):
        yield GatewayCase(
            scenario="flood",
            parameters={"streams": streams, "burst": burst},
            upstream={
                "stream": 1,
                "interval": 0,
                "first": 0,
                "duration": LONGEST_STREAM_SECONDS * 1000 * MS,
                "burst": burst,
            },
            load={
                **_phases(profile, profile.window_ms),
                "slots": streams,
                # The sockets' buffers may hold hundreds of megabytes when the window closes.
                "drain-ms": 8000,
                "open-limit-ms": 1000,
            },
            window_ms=profile.window_ms,
            ends_with_window=True,
        )


def _requests(profile: Profile) -> Iterator[GatewayCase]:
    upstream = {"stream": 0, "first": 0, "bytes": 400}
    window_ms = min(profile.window_ms, 4000)
    common: dict[str, int | float | str] = {
        "stream": 0,
        "warm-ms": profile.warm_ms,
        "window-ms": window_ms,
        "drain-ms": 2000,
    }
    yield GatewayCase(
        scenario="requests",
        parameters={"rate": 200},
        upstream=upstream,
        load={**common, "rate": 200, "max-open": 512},
        window_ms=window_ms,
        counts="requests",
    )
    yield GatewayCase(
        scenario="requests",
        parameters={"connections": 32},
        upstream=upstream,
        load={**common, "slots": 32, "repeat": 1, "open-limit-ms": 2000},
        window_ms=window_ms,
        counts="requests",
    )


def _first_byte(profile: Profile) -> Iterator[GatewayCase]:
    yield _one_at_a_time(profile, "first-byte", {}, events=2)


def _one_at_a_time(
    profile: Profile, scenario: str, parameters: dict[str, Parameter], *, events: int, body_bytes: int = 0
) -> GatewayCase:
    """Build a case of short streams, one after the other on one connection: the latency of an idle subject."""
    window_ms = min(profile.window_ms, 4000)
    return GatewayCase(
        scenario=scenario,
        parameters=parameters,
        upstream={"stream": 1, "events": events, "interval": MS, "first": 0},
        load={
            "slots": 1,
            "repeat": 1,
            "warm-ms": profile.warm_ms,
            "window-ms": window_ms,
            "open-limit-ms": 3000,
            "events": events,
            "body-bytes": body_bytes,
        },
        window_ms=window_ms,
        counts="requests",
    )


def _idle(profile: Profile) -> Iterator[GatewayCase]:
    lasts_ms = profile.ramp_ms * 4 + profile.warm_ms + 2000
    yield GatewayCase(
        scenario="idle",
        parameters={"streams": profile.idle_streams},
        upstream={"stream": 1, "events": 2, "interval": lasts_ms * MS, "first": 0},
        load={
            "ramp-ms": profile.ramp_ms * 3,
            "warm-ms": profile.warm_ms,
            "window-ms": 500,
            "slots": profile.idle_streams,
            "drain-ms": 0,
            "open-limit-ms": 15000,
        },
        window_ms=500,
        needs_fresh_subject=True,
        reads_memory=True,
        leaves_open=True,
    )


def _cancel(profile: Profile) -> Iterator[GatewayCase]:
    window_ms = min(profile.window_ms * 4 // 3, 6000)
    phases: dict[str, tuple[int, int]] = {
        # phase: delay of the first event, gap between events
        "waiting": (3000 * MS, 3000 * MS),
        "streaming": (0, 5 * MS),
        "quiet": (0, 3000 * MS),
    }
    for phase, (first, interval) in phases.items():
        yield GatewayCase(
            scenario="cancel",
            parameters={"phase": phase},
            upstream={"stream": 1, "events": 1000 if phase == "streaming" else 2, "interval": interval, "first": first},
            load={
                "rate": 30,
                "warm-ms": 0,
                "window-ms": window_ms,
                "cancel": "waiting" if phase == "waiting" else "streaming",
                "cancel-ms": 30,  # after the request (waiting), or after the first event
                "drain-ms": 500,
                "max-open": 1024,
            },
            window_ms=window_ms,
            counts="requests",
            awaits_closes=True,
        )


def _slow_reader(profile: Profile) -> Iterator[GatewayCase]:
    streams, slow = min(200, profile.streams[-1]), 10
    smooth = _paced(profile, "slow-reader", streams, 50, parameters={"streams": streams, "rate": 50, "slow": slow})
    yield GatewayCase(
        scenario="slow-reader",
        parameters=smooth.parameters,
        upstream=smooth.upstream,
        second={"stream": 1, "interval": 0, "first": 0, "duration": LONGEST_STREAM_SECONDS * 1000 * MS, "burst": 16},
        load={**smooth.load, "slow": slow, "slow-ms": 1000},
        window_ms=smooth.window_ms,
        ends_with_window=True,
        offered_events_per_second=smooth.offered_events_per_second,
        reads_memory=True,
    )


def _large_prompt(profile: Profile) -> Iterator[GatewayCase]:
    for kilobytes in (100, 1000):
        parameters: dict[str, Parameter] = {"kilobytes": kilobytes}
        yield _one_at_a_time(profile, "large-prompt", parameters, events=5, body_bytes=kilobytes * 1000)


def _tls(profile: Profile) -> Iterator[GatewayCase]:
    streams = min(200, profile.streams[-1])
    plain = _paced(profile, "tls", streams, 50)
    yield GatewayCase(
        scenario="tls",
        parameters=plain.parameters,
        upstream=plain.upstream,
        load=plain.load,
        window_ms=plain.window_ms,
        ends_with_window=True,
        offered_events_per_second=plain.offered_events_per_second,
        is_tls=True,
    )


def _churn(profile: Profile) -> Iterator[GatewayCase]:
    rate = 100
    yield GatewayCase(
        scenario="churn",
        parameters={"rate": rate, "events": 10},
        upstream={"stream": 1, "events": 10, "interval": 5 * MS, "first": 0},
        load={
            "rate": rate,
            "warm-ms": profile.warm_ms,
            "window-ms": profile.window_ms,
            "events": 10,
            "keepalive": 0,
            "max-open": 1024,
        },
        window_ms=profile.window_ms,
        counts="requests",
    )


def _http2(profile: Profile) -> Iterator[GatewayCase]:
    """The same streams over HTTP/1.1 and HTTP/2, one after the other for each subject."""
    streams = min(200, profile.streams[-1])
    for protocol in ("http1", "h2"):
        parameters: dict[str, Parameter] = {"protocol": protocol, "streams": streams, "rate": 50}
        case = _paced(profile, "http2", streams, 50, parameters=parameters)
        yield (
            evolve(case, load={**case.load, "http2": max(streams // STREAMS_PER_CONNECTION, 1)})
            if protocol == "h2"
            else case
        )


def _short_streams(profile: Profile) -> Iterator[GatewayCase]:
    streams = min(200, profile.streams[-1])
    for events in (20, 50, 100):
        lasts_ms = events * 1000 // profile.pace
        yield GatewayCase(
            scenario="short-streams",
            parameters={"streams": streams, "events": events},
            upstream={"stream": 1, "events": events, "interval": 1_000_000_000 // profile.pace, "first": 0},
            load={
                # The first streams begin at times spread over a whole stream, and so do all that follow.
                "ramp-ms": lasts_ms,
                "warm-ms": profile.warm_ms,
                "window-ms": profile.window_ms,
                "slots": streams,
                "repeat": 1,
                "events": events,
                "body-bytes": COMPLETION_BYTES,
                "drain-ms": lasts_ms + 4000,
                "open-limit-ms": 3000,
            },
            window_ms=profile.window_ms,
            offered_events_per_second=streams * profile.pace,
        )


def _autocomplete(profile: Profile) -> Iterator[GatewayCase]:
    rate, users, most = 100, 100, 200
    # A model for completions is faster than one for chats: 100 events/s, so that 44 of the users have an open answer.
    pace = profile.pace * 2
    mix = (
        # share in percent, fewest and most events (0: JSON), bytes of the request
        (40, 0, 0, COMPLETION_BYTES),
        (40, 10, 60, COMPLETION_BYTES),
        (20, 100, most, CHAT_BYTES),
    )
    lasts_ms = most * 1000 // pace
    yield GatewayCase(
        scenario="autocomplete",
        parameters={"rate": rate, "users": users},
        upstream={"stream": 1, "interval": 1_000_000_000 // pace, "first": 0, "bytes": 400},
        load={
            "rate": rate,
            "max-open": users,
            "spread": 1,
            "mix": ",".join("/".join(map(str, kind)) for kind in mix),
            # Before the longest answers have ended, fewer end than begin.
            "warm-ms": lasts_ms + profile.warm_ms,
            "window-ms": profile.window_ms,
            "drain-ms": lasts_ms + 4000,
        },
        window_ms=profile.window_ms,
        counts="requests",
    )


def _telemetry(profile: Profile) -> Iterator[GatewayCase]:
    """Yield cases for the cost of telemetry per exchange and event: compare `cgw-traced` with `cgw-silent`."""
    for case in _requests(profile):
        yield evolve(case, scenario="telemetry")
    streams = min(200, profile.streams[-1])
    yield _paced(profile, "telemetry", streams, 50)


def _overhead(profile: Profile) -> Iterator[OverheadCase]:
    """Yield cases at some rates, and with more connections than one core can serve."""
    at_rate, saturated = _requests(profile)
    # All exchanges count, as the metric has no window.
    at_rate = evolve(at_rate, scenario="overhead", load={**at_rate.load, "warm-ms": 0})
    saturated = evolve(saturated, scenario="overhead", load={**saturated.load, "warm-ms": 0})
    for rate in (50, 200, 1000):
        case = evolve(at_rate, parameters={"rate": rate}, load={**at_rate.load, "rate": rate})
        yield OverheadCase(through=case, direct=case)
    # Without cgw, so many connections would queue for the upstream.
    yield OverheadCase(through=saturated, direct=evolve(saturated, load={**saturated.load, "slots": 1}))


def _limits(profile: Profile) -> Iterator[LimitsCase]:
    window_ms = min(profile.window_ms * 2 // 3, 4000)
    for callers in profile.callers:
        for limits in (1, 3, 6):
            yield LimitsCase(callers=callers, limits=limits, warm_ms=profile.warm_ms, window_ms=window_ms)


def _events(profile: Profile) -> Iterator[EventsCase]:
    window_ms = min(profile.window_ms, 4000)
    for rate in (1000, 0):
        for sink in ("none", "http"):
            yield EventsCase(rate=rate, sink=sink, warm_ms=profile.warm_ms, window_ms=window_ms)


SCENARIOS = {
    scenario.name: scenario
    for scenario in (
        Scenario("steady", "1, 50, 200 and 1000 streams of 50 events/s: CPU per event, latency of events", _steady),
        Scenario("throughput", "100 streams of 200 events/s: 20,000 events/s", _throughput),
        Scenario(
            "flood",
            "100 streams without a pause, 1 or 16 events per write of the upstream: highest throughput",
            _flood,
        ),
        Scenario("requests", "without streaming: latency at 200/s, highest rate of one core", _requests),
        Scenario("first-byte", "one stream at a time: from the request to its first event", _first_byte),
        Scenario("idle", "1000 open streams without events: memory per stream", _idle),
        Scenario(
            "cancel",
            "the client disconnects (waiting, streaming, quiet): time until the upstream connection is closed",
            _cancel,
        ),
        Scenario("slow-reader", "200 steady streams beside 10 clients that read 1 byte/s of a flood", _slow_reader),
        Scenario("large-prompt", "request bodies of 100 KB and 1 MB: first event, CPU per request", _large_prompt),
        Scenario("tls", "200 streams of 50 events/s from a TLS upstream", _tls),
        Scenario("churn", "100 short streams a second, each on a new connection", _churn),
        Scenario("http2", "200 streams of 50 events/s over 4 HTTP/2 connections, and over HTTP/1.1", _http2),
        Scenario("short-streams", "200 streams of 20, 50 and 100 events at once, one after the other", _short_streams),
        Scenario(
            "autocomplete",
            "100 users, 100 requests/s: 80 % completions (half of them streams of 10 to 60 events), 20 % chats",
            _autocomplete,
        ),
        Scenario("telemetry", "what logs and traces cost an exchange and an event: cgw-traced, cgw-silent", _telemetry),
        Scenario("overhead", "cgw's own metric of its overhead, and what the load generator sees of it", _overhead),
        Scenario(
            "limits", "admit + settle of 1, 3 and 6 limits by 1, 50 and 500 callers, compared to redis-py", _limits
        ),
        Scenario(
            "events", "usage events recorded, 1000/s and without a pause, and shipped over HTTP by one process", _events
        ),
    )
}
