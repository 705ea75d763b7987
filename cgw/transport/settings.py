"""Settings of the port, and of connections to upstreams."""

from __future__ import annotations

from pathlib import Path

from attrs import frozen

from cgw.config.declare import setting
from cgw.config.kinds import CA_FILE, HOST, HOUR, KIB, MIB, MINUTE, SECRET, Secret, duration, integer, size


@frozen
class ServerSettings:
    """The port that clients connect to, and the limits for each client."""

    port: int = setting(
        "PORT", integer(least=0, most=65535), 9992, "The port to listen on; 0 takes any free one, and logs which."
    )
    host: str = setting("CODY_GATEWAY_HOST", HOST, "127.0.0.1", "The address to listen on; 0.0.0.0 or :: means all.")
    max_body_bytes: int = setting(
        "CODY_GATEWAY_MAX_BODY_BYTES",
        size(least=KIB, most=1024 * MIB),
        32 * MIB,
        "The largest request body that is accepted; larger ones get 413.",
    )
    max_head_bytes: int = setting(
        "CODY_GATEWAY_MAX_HEAD_BYTES",
        size(least=KIB, most=MIB),
        64 * KIB,
        "The largest request line and headers together that are accepted; larger ones get 431.",
    )
    header_timeout_seconds: float = setting(
        "CODY_GATEWAY_HEADER_TIMEOUT",
        duration(most=HOUR),
        10.0,
        "How long a request's head may take from its first byte on; after that 408.",
    )
    body_timeout_seconds: float = setting(
        "CODY_GATEWAY_BODY_TIMEOUT", duration(most=HOUR), 75.0, "How long a request's body may take; after that 408."
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
        "How long open responses may continue after SIGTERM or SIGINT; after that they are cut.",
    )
    client_stall_timeout_seconds: float = setting(
        "CODY_GATEWAY_CLIENT_STALL_TIMEOUT",
        duration(),
        60.0,
        "How long a client may read nothing of its response before its connection is closed.",
    )
    diagnostics_secret: Secret | None = setting(
        "CODY_GATEWAY_DIAGNOSTICS_SECRET",
        SECRET,
        None,
        "When set, /-/healthz answers only to `Authorization: Bearer` with this secret.",
    )


@frozen
class UpstreamSettings:
    """Connections to providers, and the timeout of each phase of a request; one that is exceeded gets 504."""

    ca_file: Path | None = setting(
        "CODY_GATEWAY_UPSTREAM_CA_FILE",
        CA_FILE,
        None,
        "A file of CA certificates (PEM) to trust besides the system's.",
    )
    connect_timeout_seconds: float = setting(
        "CODY_GATEWAY_UPSTREAM_CONNECT_TIMEOUT",
        duration(most=HOUR),
        5.0,
        "How long connecting may take: name resolution, TCP and TLS.",
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
        "Under load, how long an event of a stream may wait to be forwarded together with others; 0 means never.",
    )
    request_timeout_seconds: float = setting(
        "CODY_GATEWAY_REQUEST_TIMEOUT",
        duration(),
        10 * MINUTE,
        "How long a request may take in total, its streamed response included, unless X-Timeout-Ms is given.",
    )
    max_timeout_seconds: float = setting(
        "CODY_GATEWAY_MAX_TIMEOUT", duration(), 10 * MINUTE, "The longest timeout that X-Timeout-Ms may ask for."
    )
