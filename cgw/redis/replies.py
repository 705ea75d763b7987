"""What Redis's error replies mean to a caller: the store can't serve now, it is elsewhere, or the command is wrong."""

from __future__ import annotations

import re

from redis.exceptions import NoScriptError, ResponseError

from cgw.errors import StoreUnavailable

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
# Redis 6.2 puts the code of an error inside a script behind a text of its own; from 7.0 on, the code stands first.
_WRAPPED_CODE = re.compile(r"^ERR Error running script .*?-([A-Z]+) ")
# What a script may not do has no code of its own: Redis 6.2 and 7.0, then Redis 7.2 to Valkey 9.
_NO_PERMISSION_IN_SCRIPT = re.compile(r"^ERR (?:.*The user executing the script can't|ACL failure in script)")
_PREFIX = "Redis can't serve now: "


class ServerReadOnly(StoreUnavailable):
    """The server is a replica that takes no writes."""


class TryAgain(StoreUnavailable):
    """The keys of the call lie on two nodes of a cluster just now, as their slot is being moved."""


class ClusterDown(StoreUnavailable):
    """The cluster has no master for the slot, or no majority."""


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
    """The exception for an error reply: :exc:`StoreUnavailable` when the server can't serve now."""
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
    """``MOVED slot host:port``; the host may be an IPv6 address without brackets, or nothing."""
    code, _, rest = text.partition(" ")
    slot, _, place = rest.partition(" ")
    host, _, port = place.rpartition(":")
    if not (slot.isdecimal() and port.isdecimal() and int(slot) < 16_384 and int(port) < 65_536):
        return None
    return Redirected(text, slot=int(slot), host=host, port=int(port), is_ask=code == "ASK")


def get_server_text(error: Exception) -> str:
    """The server's own words of an error that :func:`build_reply_error` made."""
    return str(error).removeprefix(_PREFIX)
