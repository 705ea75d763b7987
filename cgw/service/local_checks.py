"""Checks of what the settings name on this machine: files, the data directory, ports."""

from __future__ import annotations

import errno
import os
import shutil
import socket
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TypeVar

import trio

from cgw.config.kinds import MIB, format_size
from cgw.errors import ConfigError, explain_os_error
from cgw.events.sinks.registry import choose_sinks
from cgw.flagging.tokens import load_tokenizer
from cgw.providers.registry import list_providers
from cgw.service.build import build_all_dialects, build_server_tls, build_static_source, build_upstream_tls
from cgw.service.certificate import SOON_DAYS, read_days_left
from cgw.service.findings import Finding, Severity, explain_listening, explain_problems, parse_finding
from cgw.service.lifecycle import EVENTS_NAME, is_activated
from cgw.service.settings import Settings
from cgw.service.sources import check_source_settings, has_remote_source
from cgw.transport.listeners import open_listeners

T = TypeVar("T")

LOW_SPACE_BYTES = 256 * MIB
"""Some 400,000 usage events."""

_FULL = {errno.ENOSPC, errno.EDQUOT}


async def check_actors(settings: Settings) -> list[Finding]:
    """Check the actors file, and that anybody may use the gateway at all."""
    variable = "CODY_GATEWAY_ACTORS_FILE"
    try:
        await _run_blocking(partial(build_static_source, settings))
    except ConfigError as error:
        return explain_problems(variable, error, "correct the file; `cgw token new` prints a valid entry")
    if settings.actors.allow_anonymous or settings.actors.file is not None or has_remote_source(settings):
        return []  # a file without actors is a problem of its own
    remedy = (
        "name a file of `cgw token new` entries, or set CODY_GATEWAY_DOTCOM_ACCESS_TOKEN, "
        "CODY_GATEWAY_ENTERPRISE_PORTAL_URL or CODY_GATEWAY_ALLOW_ANONYMOUS"
    )
    return [Finding(variable, "is not set, so nobody may use the gateway", remedy, Severity.WARNING)]


async def check_sources(settings: Settings) -> list[Finding]:
    """Check that the settings of the sources on the network go together."""
    await trio.lowlevel.checkpoint()
    try:
        check_source_settings(settings)
    except ConfigError as error:
        return [parse_finding(problem) for problem in error.problems]
    return []


async def check_sinks(settings: Settings) -> list[Finding]:
    """Check that the settings of the sinks of usage events go together."""
    await trio.lowlevel.checkpoint()
    try:
        choose_sinks(settings)
    except ConfigError as error:
        return [parse_finding(problem) for problem in error.problems]
    return []


async def check_provider_settings(settings: Settings) -> list[Finding]:
    """Check that a provider has a key, and that routes can be built from each provider's settings."""
    keys = [provider.access_token for provider in settings.providers.values()]
    if all(key is None for key in (*keys, settings.embeddings.sourcegraph_api_token)):
        variables = ", ".join(provider.access_token_variable for provider in list_providers(settings.providers))
        return [Finding(variables, "are not set, so there are no provider routes", "set one", Severity.WARNING)]
    try:
        await _run_blocking(partial(build_all_dialects, settings))
    except ConfigError as error:
        parts = [problem.partition(": ") for problem in error.problems]
        return [Finding(variable, wrong, "correct the provider's settings") for variable, _, wrong in parts]
    return []


async def check_tokenizer(settings: Settings) -> list[Finding]:
    """Check that the vocabulary by which prompts are counted can be loaded."""
    path = settings.flagging.tokenizer_file
    if path is None:
        await trio.lowlevel.checkpoint()
        return []
    try:
        await _run_blocking(partial(load_tokenizer, path))
    except ConfigError as error:
        return [parse_finding(problem) for problem in error.problems]
    return []


async def check_tls(settings: Settings) -> list[Finding]:
    """Check the certificate and key of the public port, and the CA file of upstreams."""
    findings = await _run_blocking(partial(_examine_tls, settings))
    try:
        await _run_blocking(partial(build_upstream_tls, settings))
    except ConfigError as error:
        findings += explain_problems("CODY_GATEWAY_UPSTREAM_CA_FILE", error, "name a readable file of CA certificates")
    return findings


def _examine_tls(settings: Settings) -> list[Finding]:
    files = {
        "CODY_GATEWAY_TLS_CERT_FILE": settings.tls.cert_file,
        "CODY_GATEWAY_TLS_KEY_FILE": settings.tls.key_file,
    }
    missing = [variable for variable, path in files.items() if path is None]
    if missing:
        # TLS is off where both are missing.
        other = next((variable for variable in files if variable not in missing), None)
        return [] if other is None else [Finding(missing[0], f"is not set, but {other} is", "set both, or neither")]
    findings = []
    for variable, path in files.items():
        try:
            Path(str(path)).open("rb").close()
        except OSError as error:
            wrong = f"{path} cannot be read: {explain_os_error(error)}"
            findings.append(Finding(variable, wrong, "name a PEM file that the user of cgw may read"))
    if findings:
        return findings
    try:
        server_tls = build_server_tls(settings)
    except ConfigError as error:
        variable = ", ".join(files)
        return explain_problems(variable, error, "name a certificate chain and its own private key, without password")
    days = None if server_tls is None else read_days_left(server_tls.get_context(), Path(str(settings.tls.cert_file)))
    if days is None or days >= SOON_DAYS:
        return []
    wrong = "has expired, or is not valid yet" if days < 0 else f"expires in {days:.0f} days"
    # It can be replaced while cgw runs, so it is no reason not to start.
    severity = Severity.OUTAGE if days < 0 else Severity.WARNING
    remedy = "renew it; SIGHUP lets a running cgw read it"
    return [Finding("CODY_GATEWAY_TLS_CERT_FILE", f"{settings.tls.cert_file} {wrong}", remedy, severity)]


async def check_data_dir(settings: Settings) -> list[Finding]:
    """Check that the data directory, and the folder of events in it, can be written, and how much space is left.

    Leaves nothing behind: a directory that is missing is not created, its nearest parent is checked instead.
    """
    return await _run_blocking(partial(_examine_data_dir, settings.data.directory))


def _examine_data_dir(data_dir: Path) -> list[Finding]:
    findings = _examine_folder(data_dir)
    events = data_dir / EVENTS_NAME
    if not findings and os.path.lexists(events):
        findings += _examine_folder(events)
    return findings


def _examine_folder(folder: Path) -> list[Finding]:
    variable = "CODY_GATEWAY_DATA_DIR"
    existing = folder.absolute()
    while not os.path.lexists(existing):
        existing = existing.parent
    if not os.path.isdir(existing):
        return [Finding(variable, f"{existing} is not a directory", "move it away, or name another directory")]
    try:
        # A file without a name, which no other process sees; it finds out read-only and full file systems, too.
        with tempfile.TemporaryFile(dir=existing, buffering=0) as file:
            file.write(b"\0" * 4096)
        free_bytes = shutil.disk_usage(existing).free
    except OSError as error:
        if error.errno in _FULL:
            return [Finding(variable, f"the disk of {existing} is full", "make room on it", Severity.OUTAGE)]
        wrong = f"{existing} cannot be written: {explain_os_error(error)}"
        return [Finding(variable, wrong, "let the user of cgw write there, or name another directory")]
    if free_bytes < LOW_SPACE_BYTES:
        wrong = f"only {free_bytes // MIB} MiB are free in {existing}, less than {format_size(LOW_SPACE_BYTES)}"
        return [Finding(variable, wrong, "make room, or lower CODY_GATEWAY_EVENTS_MAX_BYTES", Severity.WARNING)]
    return []


async def check_ports(settings: Settings) -> list[Finding]:
    """Bind the public port and the admin port for a moment, both at once, so that they are not the same either."""
    server, admin = settings.server, settings.admin
    ports = []
    if not is_activated(settings):
        ports.append(("PORT", "CODY_GATEWAY_HOST", server.host, server.port, server.reuse_port))
    if admin.port is not None:
        ports.append(("CODY_GATEWAY_ADMIN_PORT", "CODY_GATEWAY_ADMIN_HOST", admin.host, admin.port, False))
    findings: list[Finding] = []
    with ExitStack() as stack:
        for variable, host_variable, host, port, is_shared in ports:
            try:
                await (_bind_shared if is_shared else _listen)(stack, host, port)
            except OSError as error:
                findings.append(explain_listening(variable, host_variable, host, port, error))
    return findings


async def _listen(stack: ExitStack, host: str, port: int) -> None:
    for listener in await open_listeners(host, port):
        stack.callback(listener.socket.close)


async def _bind_shared(stack: ExitStack, host: str, port: int) -> None:
    """Bind a shared port without listening: the kernel would give that socket connections of the running gateway."""
    found = await trio.socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, _, _, _, address = found[0]
    sock = stack.enter_context(socket.socket(family, socket.SOCK_STREAM))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    sock.bind(address)


async def _run_blocking(function: Callable[[], T]) -> T:
    # Abandoned when its deadline passes: a network file system may hang for ever.
    return await trio.to_thread.run_sync(function, abandon_on_cancel=True)
