"""Telling people that an actor has used up much of a quota (the reference's §10): in Slack, or in the log.

Which thresholds were crossed, each once per interval and across all replicas, is decided in Lua with the counting.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote, urlsplit

import trio
from attrs import frozen

from cgw.durations import format_duration
from cgw.errors import CgwError
from cgw.model import Actor, Feature, LimitUnit

SUBSCRIPTION_SOURCE = "dotcom-product-subscriptions"

NOTIFIED_SOURCES = frozenset({SUBSCRIPTION_SOURCE, "static"})
"""Whose actors notices are about: customers, and actors of the operator's own. Single users are not."""

MAX_WAITING = 1000
"""Notices in memory, about 1 KiB each, while Slack is slow."""

MAX_NAME_CHARACTERS = 200
MAX_LINKED_ID_CHARACTERS = 128
"""Real ids have 36. Slack takes 3000 characters in a block."""

logger = logging.getLogger("cgw.limits")


@frozen
class Notice:
    """``actor`` has used up ``threshold`` percent of its quota for ``feature``: ``limit`` times ``unit``.

    At ``at`` (UTC) it took ``reset_ms`` until the whole quota is there again.
    """

    actor: Actor
    feature: Feature
    threshold: int
    limit: int
    unit: LimitUnit
    reset_ms: int
    at: datetime


@frozen
class NoticeStatistics:
    """Counts since the start: ``sent`` ones (to Slack, or the log where there is no Slack), ``failed`` and ``dropped``.

    ``waiting`` are in the queue now, the one that is being sent included.
    """

    sent: int
    failed: int
    dropped: int
    waiting: int


class Notifier:
    """Passes notices on, one after the other and in order, so that whoever has one never waits for Slack."""

    def __init__(self, send: Callable[[dict[str, Any]], Awaitable[None]] | None, dotcom_api_url: str) -> None:
        """``send`` delivers one Slack message, with retries of its own; without it, notices go to the log.

        ``dotcom_api_url`` is the API of the Sourcegraph.com that product subscriptions are linked to.
        """
        self._send = send
        self._dotcom_api_url = dotcom_api_url
        self._waiting: deque[Notice] = deque()
        self._arrivals = trio.lowlevel.ParkingLot()
        self._has_ended = self._is_overflowing = False
        self._sent = self._failed = self._dropped = 0

    def notify(self, notice: Notice) -> None:
        """Pass ``notice`` on as soon as possible. Never blocks or raises; beyond 1000 waiting ones it is dropped."""
        if self._send is None:
            self._sent += 1
            logger.info("new usage alert: %s", describe_notice(notice))
        elif self._has_ended:
            self._dropped += 1
        elif len(self._waiting) >= MAX_WAITING:
            self._dropped += 1
            if not self._is_overflowing:
                self._is_overflowing = True
                logger.error("usage alerts are being dropped: %d are waiting for Slack", len(self._waiting))
        else:
            self._waiting.append(notice)
            self._arrivals.unpark()

    async def run(self) -> None:
        """Deliver what :meth:`notify` takes, until cancelled; what is left then is dropped, and its number logged.

        A notice that cannot be delivered is logged as an error, with all that it says, and ends nothing else.
        """
        try:
            while True:
                while not self._waiting:
                    await self._arrivals.park()
                await self._deliver(self._waiting[0])
                self._waiting.popleft()
                if not self._waiting:
                    self._is_overflowing = False
        finally:
            self._has_ended = True
            self._dropped += len(self._waiting)
            if self._waiting:
                logger.warning("%d usage alerts were not delivered before the end", len(self._waiting))
            self._waiting.clear()

    def statistics(self) -> NoticeStatistics:
        """Counts since the start."""
        return NoticeStatistics(self._sent, self._failed, self._dropped, len(self._waiting))

    async def _deliver(self, notice: Notice) -> None:
        assert self._send is not None
        try:
            await self._send(build_message(notice, self._dotcom_api_url))
        except CgwError as error:
            self._failed += 1
            logger.error("a usage alert was not delivered (%s): %s", error, describe_notice(notice))
        except Exception:  # whatever it is, later notices must not suffer from it
            self._failed += 1
            logger.exception("a usage alert was not delivered: %s", describe_notice(notice))
        else:
            self._sent += 1


def describe_notice(notice: Notice) -> str:
    """The notice as one line of plain text."""
    actor = notice.actor
    name = f" ({actor.name.strip()})" if actor.name.strip() else ""
    resets_in, resets_at = _describe_reset(notice)
    return (
        f"actor {actor.id}{name} from {actor.source} exceeded {notice.threshold}% of its quota of "
        f"{notice.limit} {notice.unit} for {notice.feature}; it resets in {resets_in} at {resets_at}"
    )


def build_message(notice: Notice, dotcom_url: str) -> dict[str, Any]:
    """The notice as a Slack message: blocks, and the text for where those aren't shown. Pure.

    Actors of product subscriptions are linked to their page below ``dotcom_url``, whose own path does not count.
    Whatever an actor's name or id holds is shown as it is: it makes no link, no mention, no emoji and no style.
    """
    actor = notice.actor
    resets_in, resets_at = _describe_reset(notice)
    facts = (
        f"(source {_build_code(actor.source)}) exceeded *{notice.threshold}%* of its quota of "
        f"{notice.limit} {notice.unit} for {_build_code(notice.feature)}. "
        f"The quota resets in `{resets_in}` at `{resets_at}`."
    )
    name = _neutralize(actor.name)
    who = _build_code(actor.id) + (f" ({name})" if name else "")
    linked = who
    if actor.source == SUBSCRIPTION_SOURCE and len(actor.id) <= MAX_LINKED_ID_CHARACTERS:
        linked = f"<{_build_subscription_url(dotcom_url, actor.id)}|{name or _neutralize(actor.id)}>"
    section = {"type": "mrkdwn", "text": f"The actor {linked} {facts}", "verbatim": True}
    return {
        "text": f"The actor {who} {facts}",
        "blocks": [{"type": "section", "text": section}],
        "parse": "none",
        "unfurl_links": False,
    }


def _build_subscription_url(dotcom_url: str, actor_id: str) -> str:
    parts = urlsplit(dotcom_url)
    base = quote(f"{parts.scheme}://{parts.netloc}", safe=":/[]")
    return f"{base}/site-admin/dotcom/product/subscriptions/{quote(actor_id, safe='')}"


def _describe_reset(notice: Notice) -> tuple[str, str]:
    """How long it takes, in whole seconds rounded up, and when it is (RFC 3339)."""
    seconds = -(-max(notice.reset_ms, 0) // 1000)
    at = notice.at.astimezone(UTC).replace(microsecond=0)
    latest = datetime.max.replace(tzinfo=UTC, microsecond=0)
    at = at + timedelta(seconds=seconds) if seconds < (latest - at).total_seconds() else latest
    return format_duration(seconds), at.isoformat().replace("+00:00", "Z")


# --- text that others chose ------------------------------------------------------------------------------------------

_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
# Slack's markup has no escapes for these; so it gets characters that look the same to people.
_LOOK_ALIKES = {"*": "\u2217", "_": "\u02cd", "~": "\u223c", "`": "\u02cb", "|": "\u2223"}
# Mentions, channels and emoji are broken up by a character that is not seen (word joiner).
_BROKEN_UP = {character: character + "\u2060" for character in "@#:"}
_NEUTRAL = str.maketrans(_ENTITIES | _LOOK_ALIKES | _BROKEN_UP)
_IN_CODE = str.maketrans(_ENTITIES | {"`": _LOOK_ALIKES["`"]})


def _flatten(text: str) -> str:
    """One line without control and formatting characters, of bounded length."""
    text = "".join(character if character.isprintable() else " " for character in text[: 4 * MAX_NAME_CHARACTERS])
    text = " ".join(text.split())
    return text if len(text) <= MAX_NAME_CHARACTERS else f"{text[:MAX_NAME_CHARACTERS]}…"


def _neutralize(text: str) -> str:
    return _flatten(text).translate(_NEUTRAL)


def _build_code(text: str) -> str:
    return f"`{_flatten(text).translate(_IN_CODE)}`"
