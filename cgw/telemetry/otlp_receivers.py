"""The receivers of traces and metrics: the collector that the settings name, and this process as OTLP describes it."""

from __future__ import annotations

import logging
import os
import socket
import ssl

from attrs import frozen

from cgw import __version__
from cgw.config.kinds import Secret
from cgw.errors import ConfigError
from cgw.telemetry.google_credentials import build_google_authorization, has_google_auth
from cgw.telemetry.otlp_http import OtlpCollector
from cgw.telemetry.otlp_wire import AttributeValue, encode_attributes, encode_text
from cgw.telemetry.settings import OtlpSettings, TraceSettings, parse_pairs

SCOPE = encode_text(1, "cgw") + encode_text(2, __version__)
"""The ``InstrumentationScope`` of everything that cgw sends."""

logger = logging.getLogger("cgw.telemetry")


@frozen
class Signal:
    """A kind of telemetry: its ``name`` in paths and messages, and what is set for it alone.

    ``google_scope`` is the permission that Google Cloud asks for at ``google_url``; ``off`` is the setting that turns
    it off, for an error message.
    """

    name: str
    url: str | None
    headers: Secret | None
    google_url: str
    google_scope: str
    off: str


def open_collector(signal: Signal, projects: TraceSettings, otlp: OtlpSettings) -> OtlpCollector | None:
    """Return the receiver that the settings name, ``None`` for none. The caller closes it.

    The more special setting comes first: the signal's own URL, cgw's own variable for Google Cloud, the collector for
    all signals, Google's own variable. Raises :exc:`~cgw.errors.ConfigError`.
    """
    if signal.url is None and projects.gcp_project_id is not None:
        if not has_google_auth():
            raise ConfigError(
                [
                    f"CODY_GATEWAY_OTEL_GCP_PROJECT_ID: {signal.name} to Google Cloud need the extra `gcp`: "
                    f"install cgw[gcp], or set {signal.off}"
                ]
            )
        return _open_google(signal, projects.gcp_project_id, otlp)
    url = signal.url or (otlp.endpoint and f"{otlp.endpoint}/v1/{signal.name}")
    if url:
        headers = otlp.headers if signal.headers is None else signal.headers
        return OtlpCollector(
            url,
            headers={} if headers is None else parse_pairs(headers.reveal()),
            timeout_seconds=otlp.timeout_seconds,
            tls_context=_build_tls(otlp),
            compresses=otlp.compression == "gzip",
        )
    if projects.google_cloud_project is None:
        return None
    if has_google_auth():
        return _open_google(signal, projects.google_cloud_project, otlp)
    # No error: the variable may be there for other programs.
    logger.warning("GOOGLE_CLOUD_PROJECT: no %s are sent there, because cgw[gcp] is not installed", signal.name)
    return None


def _open_google(signal: Signal, project_id: str, otlp: OtlpSettings) -> OtlpCollector:
    return OtlpCollector(
        signal.google_url,
        headers={"x-goog-user-project": project_id},
        timeout_seconds=otlp.timeout_seconds,
        tls_context=_build_tls(otlp),
        compresses=True,
        authorize=build_google_authorization(signal.google_scope),
    )


def _build_tls(otlp: OtlpSettings) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=None if otlp.ca_file is None else str(otlp.ca_file))


def build_resource(projects: TraceSettings, otlp: OtlpSettings, environment: str) -> bytes:
    """Return the ``Resource`` message: this process in its ``environment``, the same for all signals."""
    attributes: dict[str, AttributeValue | None] = {
        "service.name": otlp.service_name,
        "service.version": __version__,
        "service.instance.id": f"{socket.gethostname()}:{os.getpid()}",
        "deployment.environment.name": environment,
        "host.name": socket.gethostname(),
        "process.pid": os.getpid(),
        "telemetry.sdk.language": "python",
        "telemetry.sdk.name": "cgw",
        "telemetry.sdk.version": __version__,
        # What Google's Telemetry API finds the project by.
        "gcp.project_id": find_project(projects),
    }
    attributes.update(otlp.resource_attributes)
    return encode_attributes(1, attributes)


def find_project(projects: TraceSettings) -> str | None:
    """Return the Google Cloud project of this deployment, where it is known."""
    return projects.gcp_project_id or projects.google_cloud_project
