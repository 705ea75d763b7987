"""Settings of the port, and of connections to upstreams."""

from __future__ import annotations

from pathlib import Path

from attrs import frozen

from cgw.config.declare import setting
from cgw.config.kinds import (
    BOOLEAN,
    CA_FILE,
    HOST,
    HOUR,
    KIB,
    MIB,
    MINUTE,
    NETWORKS,
    PATH,
    SECRET,
    Network,
    Secret,
    duration,
    integer,
    size,
)


@frozen
class ServerSettings:
    """The port that clients connect to, and the limits for each client."""

    port: int = setting(
        "PORT",
        integer(least=0, most=65535),
        9992,
        "The port to listen on; 0 takes any free one, and logs which.",
        other_names=("CODY_GATEWAY_PORT",),
    )
    host: str = setting(
        "CODY_GATEWAY_HOST",
        HOST,
        "127.0.0.1",
        "The address to listen on; 0.0.0.0 is all of IPv4, :: all of IPv4 and IPv6.",
        other_names=("CODY_GATEWAY_ADDR", "CODY_GATEWAY_BIND", "CODY_GATEWAY_LISTEN_ADDRESS"),
    )
    reuse_port: bool = setting(
        "CODY_GATEWAY_REUSE_PORT",
        BOOLEAN,
        False,
        "Share the port with other processes of the same user that set it too (SO_REUSEPORT), "
        "so that a successor can start before this process ends.",
    )
    passed_listeners: int = setting(
        "LISTEN_FDS",
        integer(least=0, most=64),
        0,
        "Set by systemd (socket activation): the number of listening sockets passed from descriptor 3 on; "
        "they are served instead of PORT.",
    )
    passed_to_pid: int | None = setting(
        "LISTEN_PID",
        integer(least=1),
        None,
        "Set by systemd: the process that LISTEN_FDS is meant for; any other one ignores it.",
    )
    http2: bool = setting(
        "CODY_GATEWAY_HTTP2", BOOLEAN, True, "Serve HTTP/2, by prior knowledge and over TLS, beside HTTP/1.1."
    )
    trusted_proxies: tuple[Network, ...] = setting(
        "CODY_GATEWAY_TRUSTED_PROXIES",
        NETWORKS,
        (),
        "Proxies whose word on the client's address is taken: Forwarded, X-Forwarded-For, PROXY protocol.",
        default_text="none",
    )
    max_body_bytes: int = setting(
        "CODY_GATEWAY_MAX_BODY_BYTES",
        size(least=KIB, most=1024 * MIB),
        32 * MIB,
        "The largest request body that is accepted; larger ones get 413.",
    )
    max_upload_bytes: int = setting(
        "CODY_GATEWAY_MAX_UPLOAD_BYTES",
        size(least=KIB, most=16 * 1024 * MIB),
        512 * MIB,
        "The largest request body that is passed on unread (…_PASS_ROUTES); it is not held in memory.",
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
    drain_delay_seconds: float = setting(
        "CODY_GATEWAY_DRAIN_DELAY",
        duration(least=0, most=HOUR),
        0.0,
        "How long everything is still served after SIGTERM while /-/readyz fails, before the port closes.",
    )
    drain_timeout_seconds: float = setting(
        "CODY_GATEWAY_DRAIN_TIMEOUT",
        duration(least=0),
        30.0,
        "How long open responses may go on once the port is closed after SIGTERM or SIGINT; then they are cut.",
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
class OverloadSettings:
    """Bounds of the public port; above each of them the answer is an early 503 with `retry-after`."""

    max_connections: int | None = setting(
        "CODY_GATEWAY_MAX_CONNECTIONS",
        integer(least=1, most=1_000_000),
        None,
        "The most client connections that are open at once.",
        default_text="half of the descriptor limit, less a reserve",
    )
    max_connections_per_address: int | None = setting(
        "CODY_GATEWAY_MAX_CONNECTIONS_PER_ADDRESS",
        integer(least=1, most=1_000_000),
        None,
        "The most connections of one client address; trusted proxies are exempt.",
        default_text="no bound",
    )
    max_exchanges: int | None = setting(
        "CODY_GATEWAY_MAX_EXCHANGES",
        integer(least=1, most=1_000_000),
        None,
        "The most requests to providers that are under way at once.",
        default_text="no bound",
    )
    max_buffered_bytes: int = setting(
        "CODY_GATEWAY_MAX_BUFFERED_BYTES",
        size(least=MIB, most=1024 * 1024 * MIB),
        512 * MIB,
        "The most memory for request bodies, all together; large ones wait for their turn before they are read.",
    )
    shed_target_seconds: float = setting(
        "CODY_GATEWAY_SHED_TARGET",
        duration(least=0, most=MINUTE),
        0.005,
        "While overloaded, requests are refused that have more work (CPU time) than this in front of them; 0 is never.",
    )
    shed_interval_seconds: float = setting(
        "CODY_GATEWAY_SHED_INTERVAL",
        duration(most=MINUTE),
        0.1,
        "How long the work in front of requests must be above four times the shed target to count as overloaded.",
    )


@frozen
class TlsSettings:
    """TLS on the public port, where cgw terminates it itself; the files are read again on SIGHUP."""

    cert_file: Path | None = setting(
        "CODY_GATEWAY_TLS_CERT_FILE",
        PATH,
        None,
        "The certificate chain in PEM form; with the key file, the public port serves TLS only.",
        other_names=("SSL_CERTFILE_PATH", "CODY_GATEWAY_TLS_CERT"),
    )
    key_file: Path | None = setting(
        "CODY_GATEWAY_TLS_KEY_FILE",
        PATH,
        None,
        "The private key of the certificate, in PEM form.",
        other_names=("SSL_KEYFILE_PATH", "CODY_GATEWAY_TLS_KEY"),
    )


@frozen
class AdminSettings:
    """The operators' port: health, version and limits, apart from users' requests."""

    port: int | None = setting(
        "CODY_GATEWAY_ADMIN_PORT",
        integer(least=0, most=65535),
        None,
        "The port for operators; 0 takes any free one, and logs which.",
        default_text="off",
    )
    host: str = setting(
        "CODY_GATEWAY_ADMIN_HOST", HOST, "127.0.0.1", "The address of the admin port; it has no TLS of its own."
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
    unavailable_after: int = setting(
        "CODY_GATEWAY_MODEL_UNAVAILABLE_AFTER",
        integer(least=0, most=100),
        10,
        "How many responses of a model within a minute, 95 % of them failures, make it unavailable: then requests get "
        "503, but for a probe every 5 s; 1 is as in the reference, 0 is never.",
    )
    passes_provider_headers: bool = setting(
        "CODY_GATEWAY_PASS_PROVIDER_HEADERS",
        BOOLEAN,
        False,
        "Pass on the header fields about the provider's account: its rate limits, organization and project.",
    )
