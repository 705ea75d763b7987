"""Settings of the port, and of connections to upstreams."""

from __future__ import annotations

from pathlib import Path

from attrs import frozen

from cgw.config.declare import setting
from cgw.config.kinds import CA_FILE, HOST, HOUR, KIB, MIB, MINUTE, SECRET, Secret, duration, integer, size


@frozen
class ServerSettings:
    """The port that clients connect to, and what a client may take of it."""

    port: int = setting(
        "PORT", integer(least=0, most=65535), 9992, "The port to listen on; 0 takes any free one, and logs which."
    )
    host: str = setting("CODY_GATEWAY_HOST", HOST, "127.0.0.1", "The address to listen on; 0.0.0.0 or :: is all.")
    max_body_bytes: int = setting(
        "CODY_GATEWAY_MAX_BODY_BYTES",
        size(least=KIB, most=1024 * MIB),
        32 * MIB,
        "The largest request body that is read; larger ones get 413.",
    )
    max_head_bytes: int = setting(
        "CODY_GATEWAY_MAX_HEAD_BYTES",
        size(least=KIB, most=MIB),
        64 * KIB,
        "The largest request line and headers together; larger ones get 431.",
    )
    header_timeout_seconds: float = setting(
        "CODY_GATEWAY_HEADER_TIMEOUT",
        duration(most=HOUR),
        10.0,
        "How long a request's head may take from its first byte; then 408.",
    )
    body_timeout_seconds: float = setting(
        "CODY_GATEWAY_BODY_TIMEOUT", duration(most=HOUR), 75.0, "How long a request's body may take; then 408."
    )
    keep_alive_timeout_seconds: float = setting(
        "CODY_GATEWAY_KEEP_ALIVE_TIMEOUT",
        duration(),
        75.0,
        "How long a connection may be idle between requests before it is closed.",
    )
    drain_timeout_seconds: float = setting(
        "CODY_GATEWAY_DRAIN_TIMEOUT",
        duration(least=0),
        30.0,
        "How long open responses may go on after SIGTERM or SIGINT; then they are cut.",
    )
    client_stall_timeout_seconds: float = setting(
        "CODY_GATEWAY_CLIENT_STALL_TIMEOUT",
        duration(),
        60.0,
        "How long a client may take nothing of its response before it is dropped.",
    )
    diagnostics_secret: Secret | None = setting(
        "CODY_GATEWAY_DIAGNOSTICS_SECRET",
        SECRET,
        None,
        "When set, /-/healthz answers only to `Authorization: Bearer` with this secret.",
    )


@frozen
class UpstreamSettings:
    """Connections to providers, and how long each phase of a request to one may take; 504 when it takes longer."""

    ca_file: Path | None = setting(
        "CODY_GATEWAY_UPSTREAM_CA_FILE",
        CA_FILE,
        None,
        "A file of CA certificates (PEM) that are trusted besides the system's.",
    )
    connect_timeout_seconds: float = setting(
        "CODY_GATEWAY_UPSTREAM_CONNECT_TIMEOUT",
        duration(most=HOUR),
        5.0,
        "How long connecting may take: name look-up, TCP and TLS.",
    )
    head_timeout_seconds: float = setting(
        "CODY_GATEWAY_UPSTREAM_HEAD_TIMEOUT",
        duration(most=HOUR),
        60.0,
        "How long the response's head may take once the request is sent.",
    )
    silence_timeout_seconds: float = setting(
        "CODY_GATEWAY_UPSTREAM_SILENCE_TIMEOUT",
        duration(most=HOUR),
        60.0,
        "How long the response's body may pause.",
    )
    relay_tick_seconds: float = setting(
        "CODY_GATEWAY_RELAY_TICK",
        duration(least=0, most=1),
        0.001,
        "Under load, the longest that an event of a stream may wait to be passed on with others; 0 is never.",
    )
    request_timeout_seconds: float = setting(
        "CODY_GATEWAY_REQUEST_TIMEOUT",
        duration(),
        10 * MINUTE,
        "How long a request may take in total, its streamed response included, unless X-Timeout-Ms says otherwise.",
    )
    max_timeout_seconds: float = setting(
        "CODY_GATEWAY_MAX_TIMEOUT", duration(), 10 * MINUTE, "The most that X-Timeout-Ms can ask for."
    )
