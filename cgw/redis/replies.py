"""Exceptions for Redis's error replies: the store can't serve now, the slot is elsewhere, the command is wrong."""

from __future__ import annotations

import re
from collections.abc import Sequence

from redis.exceptions import NoScriptError, ResponseError

from cgw.errors import StoreRefused, StoreUnavailable

# After these errors the same call can succeed later, or on another server, perhaps once an operator has acted (OOM,
# NOPERM). All other errors are about the call itself.
_UNAVAILABLE_CODES = frozenset(
    {
        "BUSY",
        "CLUSTERDOWN",
        "LOADING",
        "MASTERDOWN",
        "MISCONF",
        "NOAUTH",
        "NOPERM",
        "NOREPLICAS",
        "OOM",
        "READONLY",
        "WRONGPASS",
    }
)
# Redis 6.2 wraps an error inside a script in a text of its own; from 7.0 on, the error's code stands first.
_WRAPPED_CODE = re.compile(r"^ERR Error running script .*?-([A-Z]+) ")
# A missing permission inside a script has no code: the texts of Redis 6.2 and 7.0, then of Redis 7.2 to Valkey 9.
_NO_PERMISSION_IN_SCRIPT = re.compile(r"^ERR (?:.*The user executing the script can't|ACL failure in script)")
_PREFIX = "Redis can't serve now: "


class ServerReadOnly(StoreUnavailable):
    """The server is a read-only replica."""


class TryAgain(StoreUnavailable):
    """The keys of the call are on two nodes of a cluster, because their slot is being moved."""


class ClusterDown(StoreUnavailable):
    """The cluster has no master for the slot, or no majority of its masters."""


class Redirected(StoreUnavailable):
    """The slot is served by another node of the cluster: from now on (MOVED), or for this call (ASK).

    ``host`` is empty when the node is at the host that was asked.
    """

    def __init__(self, text: str, *, slot: int, host: str, port: int, is_ask: bool) -> None:
        super().__init__(_PREFIX + text)
        self.slot = slot
        self.host = host
        self.port = port
        self.is_ask = is_ask


def build_reply_error(text: str) -> Exception:
    """Return the exception for an error reply.

    :exc:`~cgw.errors.StoreUnavailable`, or a subclass of it, when the server can't serve now or the slot is served
    by another node; :exc:`redis.exceptions.ResponseError`, or its subclass ``NoScriptError``, otherwise.
    """
    code = text.partition(" ")[0]
    if code == "NOSCRIPT":
        return NoScriptError(text)
    if code in {"MOVED", "ASK"}:
        return _build_redirected(text) or ResponseError(text)
    wrapped = _WRAPPED_CODE.match(text) if code == "ERR" else None
    if wrapped:
        code, text = wrapped[1], text[wrapped.start(1) :]
    elif _NO_PERMISSION_IN_SCRIPT.match(text):
        code, text = "NOPERM", "NOPERM" + text.removeprefix("ERR")
    if code == "TRYAGAIN":
        return TryAgain(_PREFIX + text)
    if code not in _UNAVAILABLE_CODES:
        return ResponseError(text)
    kind = {"READONLY": ServerReadOnly, "CLUSTERDOWN": ClusterDown}.get(code, StoreUnavailable)
    return kind(_PREFIX + text)


def _build_redirected(text: str) -> Redirected | None:
    """Parse ``MOVED slot host:port``; the host may be an IPv6 address without brackets, or empty."""
    code, _, rest = text.partition(" ")
    slot, _, place = rest.partition(" ")
    # At the last colon, because of IPv6 addresses.
    host, _, port = place.rpartition(":")
    if not (slot.isdecimal() and port.isdecimal() and int(slot) < 16_384 and int(port) < 65_536):
        return None
    return Redirected(text, slot=int(slot), host=host, port=int(port), is_ask=code == "ASK")


def join_failures(prefix: str, errors: Sequence[StoreUnavailable]) -> StoreUnavailable:
    """Return the one error for several servers; it is lasting (:exc:`StoreRefused`) only if that of each one is."""
    is_lasting = all(isinstance(error, StoreRefused) for error in errors)
    return (StoreRefused if is_lasting else StoreUnavailable)(prefix + "; ".join(map(str, errors)))


def get_server_text(error: Exception) -> str:
    """Return the text that the server sent for an error that :func:`build_reply_error` built."""
    return str(error).removeprefix(_PREFIX)
