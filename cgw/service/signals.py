"""The effects of signals once the process runs; only SIGTERM and SIGINT end it.

SIGTERM, SIGINT   starting ──► end        serving ──► drain ──(again)──► cut
SIGHUP            reload what can be reloaded
SIGQUIT           log the stacks of all tasks and threads
SIGUSR1           debug logging on, or back to the configured level
"""

from __future__ import annotations

import logging
import signal
from collections.abc import AsyncIterable, Awaitable, Callable, Sequence

import trio
from attrs import frozen

from cgw.errors import CgwError, ConfigError
from cgw.service.early_signals import OTHER_SIGNALS, STOP_SIGNALS
from cgw.service.stacks import format_stacks
from cgw.telemetry.log_level import LogLevel

HANDLED_SIGNALS = (*STOP_SIGNALS, *OTHER_SIGNALS)

RELOAD_SECONDS = 30.0
"""How long one reload may take: a file on a network disk may hang, and the signals after it must still be handled."""

logger = logging.getLogger("cgw.service")


@frozen
class Reload:
    """Something that SIGHUP reads again: its name in the log, and what reads it.

    ``run`` keeps what was in force before when it raises.
    """

    name: str
    run: Callable[[], Awaitable[None]]


class SignalActions:
    """Carries out signals, one after the other.

    ``stopping`` is set by the first SIGTERM or SIGINT. Until :meth:`begin_serving` was called it also cancels
    ``start_scope``, in which the service starts.
    """

    def __init__(self, log_level: LogLevel) -> None:
        self._log_level = log_level
        self._reloads: Sequence[Reload] = ()
        self._cut: Callable[[], None] | None = None
        self.start_scope = trio.CancelScope()
        self.stopping = trio.Event()
        self.stop_signal = ""

    def begin_serving(self, *, reloads: Sequence[Reload], cut: Callable[[], None]) -> None:
        """Take over what SIGHUP reloads, and what a second SIGTERM or SIGINT does."""
        self._reloads, self._cut = reloads, cut

    async def run(self, received: AsyncIterable[int]) -> None:
        """Carry out each signal that :func:`trio.open_signal_receiver` has received, until cancelled."""
        async with trio.open_nursery() as signal_nursery:
            async for number in received:
                if number in STOP_SIGNALS:
                    self._stop(signal.Signals(number).name)
                elif number == signal.SIGHUP:
                    # In a task of its own: a reload that hangs must not hold up SIGTERM.
                    signal_nursery.start_soon(self._reload)
                elif number == signal.SIGQUIT:
                    log_stacks()
                else:
                    self._log_level.toggle_debug()

    def _stop(self, name: str) -> None:
        if not self.stopping.is_set():
            self.stop_signal = name
            self.stopping.set()
            if self._cut is None:
                logger.info("%s while starting: ending", name)
                self.start_scope.cancel()
        elif self._cut is not None:
            # Whoever asks twice does not want to wait.
            logger.info("%s again: cutting what is left", name)
            self._cut()

    async def _reload(self) -> None:
        reloads = [*self._reloads, Reload("log level", self._restore_log_level)]
        logger.info("SIGHUP: reloading %s", ", ".join(reload.name for reload in reloads))
        for reload in reloads:
            await _run_reload(reload)

    async def _restore_log_level(self) -> None:
        self._log_level.restore()
        await trio.lowlevel.checkpoint()


async def _run_reload(reload: Reload) -> None:
    try:
        with trio.fail_after(RELOAD_SECONDS):
            await reload.run()
    except ConfigError as error:
        logger.error("%s: not reloaded, what was in force stays: %s", reload.name, "; ".join(error.problems))
    except (CgwError, OSError, trio.TooSlowError) as error:
        logger.error("%s: not reloaded, what was in force stays: %s", reload.name, str(error) or type(error).__name__)
    except Exception:  # the boundary between one reload and the running service
        logger.exception("%s: not reloaded, what was in force stays", reload.name)


def log_stacks() -> None:
    """Log the stacks of all tasks and threads, a line for each group of equal ones."""
    stacks = format_stacks()
    logger.warning("SIGQUIT: %d stacks of tasks and threads follow", len(stacks))
    for stack in stacks:
        logger.warning("%s", stack)
