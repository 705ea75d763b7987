"""Usage alerts: telling people, in Slack or in the log, that an actor has used up much of a quota (reference §10).

The thresholds are watched in Lua, with the counting, so that each makes one alert per interval over all replicas.
:mod:`cgw.limits.alert_messages` writes the text.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any

import trio
from attrs import frozen

from cgw.errors import CgwError
from cgw.limits.alert_messages import UsageAlert, build_message, describe_alert

MAX_WAITING = 1000
"""Alerts in memory, about 1 KiB each, while Slack is slow."""

logger = logging.getLogger("cgw.limits")


@frozen
class AlertStatistics:
    """Counts since the start: ``sent`` (to Slack, or to the log without Slack), ``failed`` and ``dropped`` alerts.

    ``waiting`` are in the queue now, including the one that is being sent.
    """

    sent: int
    failed: int
    dropped: int
    waiting: int


class AlertQueue:
    """A bounded queue of usage alerts, and the worker that delivers them one after the other, in order.

    Putting an alert in never waits for Slack.
    """

    def __init__(self, send: Callable[[dict[str, Any]], Awaitable[None]] | None, dotcom_api_url: str) -> None:
        """``send`` delivers one Slack message, with its own retries; without it, alerts go to the log.

        ``dotcom_api_url`` is the API of the Sourcegraph.com whose administrators' pages are linked to.
        """
        self._send = send
        self._dotcom_api_url = dotcom_api_url
        self._sender, self._receiver = trio.open_memory_channel[UsageAlert](MAX_WAITING)
        # Counted here, not by the channel: the alert that is being sent has left the channel, but counts.
        self._waiting = 0
        self._is_overflowing = False
        self._sent = self._failed = self._dropped = 0

    def put(self, alert: UsageAlert) -> None:
        """Deliver ``alert`` as soon as possible. Never blocks or raises; beyond 1000 waiting alerts it is dropped."""
        if self._send is None:
            self._sent += 1
            logger.info("new usage alert: %s", describe_alert(alert))
        elif self._waiting >= MAX_WAITING:
            self._dropped += 1
            if not self._is_overflowing:  # one line per overflow, not one per alert
                self._is_overflowing = True
                logger.error("usage alerts are being dropped: %d are waiting for Slack", self._waiting)
        else:
            try:
                self._sender.send_nowait(alert)
            except trio.BrokenResourceError:  # `run` has ended
                self._dropped += 1
            else:
                self._waiting += 1

    async def run(self) -> None:
        """Deliver alerts until cancelled; those that are left then are dropped, and their number is logged.

        An alert that cannot be delivered is logged as an error, with all its facts; the next one is tried.
        """
        try:
            async with self._receiver:
                async for alert in self._receiver:
                    await self._deliver(alert)
                    self._waiting -= 1
                    if not self._waiting:
                        self._is_overflowing = False
        finally:
            # Nothing can be added any more, as the receiver is closed. Not tried once more: Slack may be slow, and the
            # gateway is stopping.
            self._dropped += self._waiting
            if self._waiting:
                logger.warning("%d usage alerts were not delivered before the end", self._waiting)
            self._waiting = 0

    def statistics(self) -> AlertStatistics:
        """Return counts since the start, and the length of the queue."""
        return AlertStatistics(self._sent, self._failed, self._dropped, self._waiting)

    async def _deliver(self, alert: UsageAlert) -> None:
        assert self._send is not None
        try:
            await self._send(build_message(alert, self._dotcom_api_url))
        except CgwError as error:
            self._failed += 1
            logger.error("a usage alert was not delivered (%s): %s", error, describe_alert(alert))
        except Exception:  # a boundary: a bug in sending one alert must not end the delivery of all others
            self._failed += 1
            logger.exception("a usage alert was not delivered: %s", describe_alert(alert))
        else:
            self._sent += 1
