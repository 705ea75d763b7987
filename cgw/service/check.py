"""All checks of a configuration, run side by side: for ``cgw check``, and for a start that failed.

To add one, write a function that returns findings in ``local_checks`` or ``network_checks``, and list it below.
"""

from __future__ import annotations

import signal
from collections.abc import Awaitable, Callable, Collection, Sequence
from functools import partial

import trio
from attrs import frozen

from cgw.service.findings import Finding, Severity
from cgw.service.local_checks import (
    check_actors,
    check_data_dir,
    check_ports,
    check_provider_settings,
    check_sinks,
    check_sources,
    check_tls,
    check_tokenizer,
)
from cgw.service.network_checks import check_bigquery, check_data_dir_is_free, check_host, check_redis, list_targets
from cgw.service.settings import Settings

CHECK_SECONDS = 10.0
"""The deadline of each check, for disks and servers that hang; checks of the network have shorter ones inside."""


@frozen
class Check:
    """One check. It is left out when one of its ``variables`` is wrong, since its subject is then unknown."""

    name: str
    variables: tuple[str, ...]
    run: Callable[[], Awaitable[list[Finding]]]


def list_checks(settings: Settings, *, is_running: bool = False) -> list[Check]:
    """Return the checks of ``settings``, in the order of their report.

    With ``is_running`` a gateway with these settings is running, so its ports and its data directory are in use.
    """
    server = settings.server
    port_variables = ("PORT", "CODY_GATEWAY_HOST", "CODY_GATEWAY_ADMIN_PORT", "CODY_GATEWAY_ADMIN_HOST")
    checks = [
        Check("actors file", ("CODY_GATEWAY_ACTORS_FILE",), partial(check_actors, settings)),
        Check("sources of actors", (), partial(check_sources, settings)),
        Check("sinks of events", (), partial(check_sinks, settings)),
        Check("providers", (), partial(check_provider_settings, settings)),
        Check("tokenizer", ("CODY_GATEWAY_TOKENIZER_FILE",), partial(check_tokenizer, settings)),
        Check("TLS files", ("CODY_GATEWAY_TLS_CERT_FILE", "CODY_GATEWAY_TLS_KEY_FILE"), partial(check_tls, settings)),
        Check("data directory and events", ("CODY_GATEWAY_DATA_DIR",), partial(check_data_dir, settings)),
    ]
    if not is_running:
        checks += [
            Check(f"port {server.port}", port_variables, partial(check_ports, settings)),
            Check(
                "embedded store", ("CODY_GATEWAY_DATA_DIR", "REDIS_ENDPOINT"), partial(check_data_dir_is_free, settings)
            ),
        ]
    checks.append(Check("Redis", ("REDIS_ENDPOINT",), partial(check_redis, settings)))
    if settings.bigquery.project_id is not None and "bigquery" in (settings.shipping.sinks or ("bigquery",)):
        checks.append(Check("BigQuery", ("CODY_GATEWAY_BIGQUERY_PROJECT_ID",), partial(check_bigquery, settings)))
    return checks + list_host_checks(settings)


def list_host_checks(settings: Settings) -> list[Check]:
    """Return the checks of the hosts that the settings name, without Redis."""
    return [
        Check(target.variable, (target.variable,), partial(check_host, target, settings))
        for target in list_targets(settings)
    ]


async def run_checks(checks: Sequence[Check], *, wrong: Collection[str] = ()) -> list[Finding]:
    """Run ``checks`` side by side, without those about the variables in ``wrong``; return what they find, in order.

    Takes at most :data:`CHECK_SECONDS`; a check that takes longer is itself a finding. Cancel-safe.
    """
    checks = [check for check in checks if not set(check.variables) & set(wrong)]
    findings: dict[str, list[Finding]] = {check.name: [] for check in checks}

    async def run(check: Check) -> None:
        with trio.move_on_after(CHECK_SECONDS) as deadline_scope:
            findings[check.name] = await check.run()
        if deadline_scope.cancelled_caught:
            variable = (*check.variables, "CODY_GATEWAY_ACTORS_FILE")[0]
            wrong = f"the check of {check.name} did not end within {CHECK_SECONDS:g} s"
            remedy = "find out what hangs: a disk, a network file system, a server"
            findings[check.name] = [Finding(variable, wrong, remedy, Severity.OUTAGE)]

    async with trio.open_nursery() as nursery:
        for check in checks:
            nursery.start_soon(run, check)
    return [finding for check in checks for finding in findings[check.name]]


def examine(settings: Settings, *, wrong: Collection[str] = (), is_running: bool = False) -> list[Finding]:
    """Run all checks of ``settings`` in a Trio run of their own, for the command line. See :func:`run_checks`.

    Raises :exc:`KeyboardInterrupt` when SIGINT or SIGTERM comes meanwhile. Must be called in the main thread.
    """
    checks = list_checks(settings, is_running=is_running)
    return trio.run(partial(_run_until_signal, checks, wrong))


async def _run_until_signal(checks: Sequence[Check], wrong: Collection[str]) -> list[Finding]:
    findings: list[Finding] | None = None
    # Received by a task: a handler that raises, as those of an early start do, could break Trio's own loop.
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as received:
        async with trio.open_nursery() as nursery:

            async def wait_signal() -> None:
                await anext(received)
                nursery.cancel_scope.cancel()

            nursery.start_soon(wait_signal)
            findings = await run_checks(checks, wrong=wrong)
            nursery.cancel_scope.cancel()
    if findings is None:
        raise KeyboardInterrupt
    return findings
