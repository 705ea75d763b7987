"""Signals in the process: what each does, and that only SIGTERM and SIGINT end it."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest
import trio

from cgw.errors import ConfigError
from cgw.service.signals import HANDLED_SIGNALS, Reload, SignalActions
from cgw.telemetry.log_level import LogLevel
from tests.support.waiting import wait_until


@pytest.fixture(autouse=True)
def info_level() -> Iterator[None]:
    """The root logger's level is INFO, as in production; the former one is restored."""
    root = logging.getLogger()
    former = root.level
    root.setLevel(logging.INFO)
    yield
    root.setLevel(former)


@asynccontextmanager
async def open_actions() -> AsyncIterator[SignalActions]:
    """Handle this process's signals while the block runs."""
    with trio.open_signal_receiver(*HANDLED_SIGNALS) as received:
        actions = SignalActions(LogLevel())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(actions.run, received)
            yield actions
            nursery.cancel_scope.cancel()


def send(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)


async def test_sighup_reloads_everything_although_one_fails(caplog: pytest.LogCaptureFixture) -> None:
    """Each reload runs; a failure is logged with its name and its problems, a bug with its traceback."""
    done: list[str] = []

    async def wrong_file() -> None:
        raise ConfigError(["actors.toml: actor[0].limits is missing", "actors.toml: another"])

    async def bug() -> None:
        raise RuntimeError("unexpected")

    async def fine() -> None:
        done.append("fine")

    async with open_actions() as actions:
        reloads = [Reload("actors file", wrong_file), Reload("TLS certificate", bug), Reload("other", fine)]
        actions.begin_serving(reloads=reloads, cut=lambda: None)
        send(signal.SIGHUP)
        await wait_until(lambda: bool(done))
        assert not actions.stopping.is_set()
    errors = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert errors[0].getMessage() == (
        "actors file: not reloaded, what was in force stays: "
        "actors.toml: actor[0].limits is missing; actors.toml: another"
    )
    assert errors[1].getMessage().startswith("TLS certificate: not reloaded")
    assert errors[1].exc_info is not None
    assert len(errors) == 2


async def test_a_reload_that_hangs_does_not_hold_up_sigterm() -> None:
    """SIGTERM is acted on while a reload waits."""
    started = trio.Event()

    async def hang() -> None:
        started.set()
        await trio.sleep_forever()

    async with open_actions() as actions:
        actions.begin_serving(reloads=[Reload("slow", hang)], cut=lambda: None)
        send(signal.SIGHUP)
        await started.wait()
        send(signal.SIGTERM)
        with trio.fail_after(5):
            await actions.stopping.wait()


async def test_sigusr1_toggles_debug_logging_and_sighup_restores_the_level() -> None:
    """Debug logging goes on and off with SIGUSR1; SIGHUP returns to the configured level."""
    root = logging.getLogger()
    async with open_actions():
        send(signal.SIGUSR1)
        await wait_until(lambda: root.level == logging.DEBUG)
        send(signal.SIGUSR1)
        await wait_until(lambda: root.level == logging.INFO)
        send(signal.SIGUSR1)
        await wait_until(lambda: root.level == logging.DEBUG)
        send(signal.SIGHUP)
        await wait_until(lambda: root.level == logging.INFO)


async def test_sigquit_logs_the_stacks(caplog: pytest.LogCaptureFixture) -> None:
    """The stack of this very test is in the log afterwards, and nothing ends."""
    async with open_actions() as actions:
        send(signal.SIGQUIT)
        await wait_until(lambda: any("test_sigquit_logs_the_stacks" in message for message in caplog.messages))
        assert not actions.stopping.is_set()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_second_signal_to_stop_cuts(number: signal.Signals) -> None:
    """The first one asks to stop, and each further one cuts."""
    cuts: list[None] = []
    async with open_actions() as actions:
        actions.begin_serving(reloads=(), cut=lambda: cuts.append(None))
        send(number)
        await actions.stopping.wait()
        assert actions.stop_signal == number.name
        assert not cuts
        assert not actions.start_scope.cancel_called
        send(signal.SIGTERM)
        await wait_until(lambda: bool(cuts))


async def test_a_signal_while_starting_cancels_the_start() -> None:
    """What is not served yet needs no drain."""
    async with open_actions() as actions:
        with actions.start_scope:
            send(signal.SIGTERM)
            await trio.sleep(5)
        assert actions.start_scope.cancelled_caught
