"""``cgw serve``: the process around the service: logging, signals, interpreter settings, exit status."""

from __future__ import annotations

import gc
import logging
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager
from functools import partial

import trio

from cgw.allocator import keep_freed_memory
from cgw.config.describe import list_secrets
from cgw.errors import ConfigError, StoreUnavailable
from cgw.lifetime import open_background_task
from cgw.service.check import examine
from cgw.service.descriptors import raise_descriptor_limit
from cgw.service.findings import list_warnings, merge
from cgw.service.lifecycle import open_service
from cgw.service.settings import Settings
from cgw.service.signals import HANDLED_SIGNALS, SignalActions
from cgw.service.start_log import log_start, log_unreachable_hosts
from cgw.service.telemetry import ProcessReports
from cgw.telemetry.log_level import LogLevel
from cgw.telemetry.logs import Logs, open_logging
from cgw.telemetry.masking import SecretMask
from cgw.telemetry.otlp_receivers import find_project
from cgw.telemetry.sentry import ErrorReports, open_error_reports
from cgw.telemetry.traces import build_is_traced

EXIT_OK = 0

SWITCH_SECONDS = 0.0005
"""The time that one thread may keep the interpreter from another that waits for it."""

GC_THRESHOLDS = (10_000, 10, 10)
"""Allocations, and collections of younger generations, before each generation is collected; see :mod:`gc`."""

logger = logging.getLogger("cgw.service")


def run_service(settings: Settings) -> int:
    """Serve until SIGTERM or SIGINT; return the exit status.

    Raises :exc:`~cgw.errors.ConfigError`, with a sentence for each thing that keeps the service from starting.
    """
    # The relay's thread must not wait long while the Trio thread runs a long piece of Python (the default is 5 ms).
    sys.setswitchinterval(SWITCH_SECONDS)
    keep_freed_memory()
    logs = settings.logs
    is_terminal = {"text": True, "json": False}.get(logs.format)
    with (
        open_logging(
            sys.stderr,
            is_terminal=is_terminal,
            has_colour=sys.stderr.isatty() and logs.no_color is None,
            level=logs.level,
            secrets=list_secrets(settings),
            project_id=find_project(settings.traces),
            labels={"environment": settings.dotcom.environment},
            is_traced=build_is_traced(settings.traces, settings.otlp),
        ) as log,
        _open_error_reports(settings) as error_reports,
    ):
        for warning in settings.warnings:
            logger.warning("%s", warning)
        raise_descriptor_limit()
        try:
            trio.run(_serve_until_signal, settings, error_reports, log)
        except* (ConfigError, StoreUnavailable) as errors:
            problems = [problem for error in _leaves(errors) for problem in _list_problems(error)]
            # The start ended at its first problem; the operator sees them all.
            findings = examine(settings)
            raise ConfigError(merge(problems, findings), list_warnings(findings)) from None
    return EXIT_OK


def _open_error_reports(settings: Settings) -> AbstractContextManager[ErrorReports | None]:
    dsn = settings.sentry.dsn
    return open_error_reports(
        None if dsn is None else dsn.reveal(),
        environment=settings.dotcom.environment,
        mask=SecretMask(list_secrets(settings)),
    )


async def _serve_until_signal(settings: Settings, error_reports: ErrorReports | None, log: Logs) -> None:
    # Before anything else: from here on no signal but SIGTERM and SIGINT ends the process.
    with trio.open_signal_receiver(*HANDLED_SIGNALS) as received:
        log_level = LogLevel()
        actions = SignalActions(log_level)
        async with open_background_task(partial(actions.run, received)):
            with actions.start_scope:
                await _serve(settings, actions, ProcessReports(log_level, log, error_reports))
    logger.info("ended")


async def _serve(settings: Settings, actions: SignalActions, reports: ProcessReports) -> None:
    async with open_service(settings, reports) as service:
        actions.begin_serving(reloads=service.reloads, cut=service.cut)
        log_start(service)
        _spare_garbage_collection()
        async with open_background_task(partial(log_unreachable_hosts, settings)):
            await actions.stopping.wait()
        delay, timeout = settings.server.drain_delay_seconds, settings.server.drain_timeout_seconds
        logger.info(
            "%s: draining: the port closes in %g seconds, then open responses have up to %g seconds",
            actions.stop_signal,
            delay,
            timeout,
        )
        await service.drain(timeout, delay_seconds=delay)


def _spare_garbage_collection() -> None:
    """Exclude what start-up has allocated from every later collection, and collect less often.

    A full collection that walks all modules takes some 20 ms, which every stream would feel as a gap.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)


def _list_problems(error: BaseException) -> tuple[str, ...]:
    return error.problems if isinstance(error, ConfigError) else (str(error),)


def _leaves(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error
