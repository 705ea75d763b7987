"""The text of usage alerts, for the log and for Slack. Pure."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote, urlsplit

from attrs import frozen

from cgw.durations import format_duration
from cgw.model import Actor, Feature, LimitUnit

MAX_NAME_CHARACTERS = 200
MAX_LINKED_ID_CHARACTERS = 128
"""Real ids have 36. Slack takes 3000 characters in a block."""


@frozen
class UsageAlert:
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


def describe_alert(alert: UsageAlert) -> str:
    """Return the alert as one line of plain text."""
    actor = alert.actor
    name = f" ({actor.name.strip()})" if actor.name.strip() else ""
    resets_in, resets_at = _describe_reset(alert)
    return (
        f"actor {actor.id}{name} from {actor.source} exceeded {alert.threshold}% of its quota of "
        f"{alert.limit} {alert.unit} for {alert.feature}; it resets in {resets_in} at {resets_at}"
    )


def build_message(alert: UsageAlert, dotcom_url: str) -> dict[str, Any]:
    """Build the alert as a Slack message: blocks, and the text that is shown where blocks are not.

    An actor whose source has an administrators' page is linked to it; of ``dotcom_url`` only scheme, host and port
    count. Whatever an actor's name or id contains is shown literally: it makes no link, mention, emoji or style.
    """
    actor = alert.actor
    resets_in, resets_at = _describe_reset(alert)
    facts = (
        f"(source {_build_code(actor.source)}) exceeded *{alert.threshold}%* of its quota of "
        f"{alert.limit} {alert.unit} for {_build_code(alert.feature)}. "
        f"The quota resets in `{resets_in}` at `{resets_at}`."
    )
    name = _neutralize(actor.name)
    who = _build_code(actor.id) + (f" ({name})" if name else "")
    admin_url = _build_admin_url(actor, dotcom_url)
    linked = who if admin_url is None else f"<{admin_url}|{name or _neutralize(actor.id)}>"
    section = {"type": "mrkdwn", "text": f"The actor {linked} {facts}", "verbatim": True}
    return {
        "text": f"The actor {who} {facts}",
        "blocks": [{"type": "section", "text": section}],
        "parse": "none",
        "unfurl_links": False,
    }


def _build_admin_url(actor: Actor, dotcom_url: str) -> str | None:
    # Percent-encoding triples an id's length: an absurd one could make the block too long for Slack to take.
    if actor.policy.admin_path is None or len(actor.id) > MAX_LINKED_ID_CHARACTERS:
        return None
    parts = urlsplit(dotcom_url)
    base = quote(f"{parts.scheme}://{parts.netloc}", safe=":/[]")
    return base + actor.policy.admin_path.format(id=quote(actor.id, safe=""))


def _describe_reset(alert: UsageAlert) -> tuple[str, str]:
    """Return how long it takes, in whole seconds rounded up, and when it is (RFC 3339)."""
    seconds = -(-max(alert.reset_ms, 0) // 1000)
    at = alert.at.astimezone(UTC).replace(microsecond=0)
    # Intervals have no upper bound but MAX_TOKEN_MS, which is far beyond the year 9999.
    latest = datetime.max.replace(tzinfo=UTC, microsecond=0)
    at = at + timedelta(seconds=seconds) if seconds < (latest - at).total_seconds() else latest
    return format_duration(seconds), at.isoformat().replace("+00:00", "Z")


# --- showing foreign text literally ----------------------------------------------------------------------------------

_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
# Slack's markup has no escapes for these, so they become characters that look the same.
_LOOK_ALIKES = {"*": "\u2217", "_": "\u02cd", "~": "\u223c", "`": "\u02cb", "|": "\u2223"}
# Mentions, channels and emoji are broken up by an invisible character (word joiner).
_BROKEN_UP = {character: character + "\u2060" for character in "@#:"}
_NEUTRAL = str.maketrans(_ENTITIES | _LOOK_ALIKES | _BROKEN_UP)
# Within code, Slack reads nothing but the entities and the closing backtick.
_IN_CODE = str.maketrans(_ENTITIES | {"`": _LOOK_ALIKES["`"]})


def _flatten(text: str) -> str:
    """Return one line without control and formatting characters, of bounded length."""
    # Cut first, generously: a name of megabytes must not be looked through character by character.
    text = "".join(character if character.isprintable() else " " for character in text[: 4 * MAX_NAME_CHARACTERS])
    text = " ".join(text.split())
    return text if len(text) <= MAX_NAME_CHARACTERS else f"{text[:MAX_NAME_CHARACTERS]}…"


def _neutralize(text: str) -> str:
    return _flatten(text).translate(_NEUTRAL)


def _build_code(text: str) -> str:
    return f"`{_flatten(text).translate(_IN_CODE)}`"
