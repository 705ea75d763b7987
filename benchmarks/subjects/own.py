"""cgw itself, with authentication, limits (embedded store) and usage events."""

from __future__ import annotations

import hashlib
import secrets
import sys
from pathlib import Path

from attrs import field, frozen

from benchmarks.binaries import REPOSITORY
from benchmarks.subjects.base import Address, Start, ask_version
from benchmarks.tool_processes import Target

__all__ = ["BareRelay", "Cgw"]

ACTORS = """\
[[actor]]
id = "benchmarks"
name = "Benchmarks"
token_sha256 = ["{digest}"]

[actor.limits.chat_completions]
limit = 20_000_000
interval = "24h"
allowed_models = ["*"]
concurrent_requests = 5_000_000
"""


@frozen
class Cgw:
    """The cgw of ``checkout``, this one or another. ``environ`` has the settings of a variant.

    ``is_traced`` has every exchange traced.
    """

    name: str = "cgw"
    environ: dict[str, str] = field(factory=dict)
    checkout: Path = REPOSITORY
    start_seconds: float = 20.0
    has_tls: bool = True
    has_http2: bool = True
    is_traced: bool = False

    def version(self) -> str:
        return ask_version([sys.executable, "-m", "cgw", "--version"])

    def prepare(self, directory: Path, port: int, upstream: Address) -> Start:
        token = "cgw_" + secrets.token_hex(32)
        secret = secrets.token_hex(32)
        actors = directory / "actors.toml"
        actors.write_text(ACTORS.format(digest=hashlib.sha256(token.encode()).hexdigest()))
        return Start(
            command=(sys.executable, "-m", "cgw", "serve"),
            cwd=self.checkout,
            environ={
                "PORT": str(port),
                "REDIS_ENDPOINT": "",
                "CODY_GATEWAY_HOST": "127.0.0.1",
                "CODY_GATEWAY_DATA_DIR": str(directory / "data"),
                "CODY_GATEWAY_ACTORS_FILE": str(actors),
                "CODY_GATEWAY_OPENAI_API_URL": upstream.url,
                "CODY_GATEWAY_OPENAI_ACCESS_TOKEN": "sk-benchmarks",
                "CODY_GATEWAY_UPSTREAM_CA_FILE": str(upstream.ca_file) if upstream.scheme == "https" else "",
                "CODY_GATEWAY_DIAGNOSTICS_SECRET": secret,
                "CODY_GATEWAY_LOG_FORMAT": "json",
                # Scenarios go up to the point where the core is full, and the other gateways refuse nothing there.
                "CODY_GATEWAY_SHED_TARGET": "0s",
                "OTEL_EXPORTER_OTLP_ENDPOINT": upstream.collector_url if self.is_traced else "",
                **self.environ,
            },
            target=Target(port, "/openai/v1/chat/completions", (f"authorization: Bearer {token}",), http2_port=port),
            metrics={"authorization": f"Bearer {secret}"},
        )


@frozen
class BareRelay:
    """cgw's transport alone, without authentication, limits and events: what relaying itself costs."""

    name: str = "cgw-relay"
    start_seconds: float = 20.0
    has_tls: bool = False
    has_http2: bool = False

    def version(self) -> str:
        return Cgw().version()

    def prepare(self, directory: Path, port: int, upstream: Address) -> Start:
        command = (sys.executable, "-m", "cgw.testing.bare_relay", str(port), str(upstream.port))
        return Start(command=command, cwd=REPOSITORY, target=Target(port))
