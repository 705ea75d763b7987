"""Reading the token from a request's headers, and checking an actor's access. Pure."""

from __future__ import annotations

import re
from urllib.parse import unquote_to_bytes

from cgw.actors.source import AccessTokenDenied
from cgw.errors import MISSING_TOKEN, UNKNOWN_TOKEN, Headers, Refusal
from cgw.model import Actor
from cgw.wire.trace_context import FindHeader

# A scheme's name (RFC 9110 §11.1). Tokens are longer, or have digits or underscores.
_HARMLESS_TYPE = re.compile(rb"[A-Za-z-]{1,16}")


def extract_token(header: FindHeader, query: bytes = b"") -> str:
    """Return the token of a request: from ``Authorization: Bearer``, otherwise from ``x-api-key`` or
    ``x-goog-api-key``, otherwise from ``key=`` in ``query``; ``""`` for none.

    ``header`` looks up a field of the request's head. An empty field counts as absent. ``query`` is left out where keys
    are not taken from it.

    Raises :exc:`~cgw.errors.Refusal` (400) for an Authorization of another type than Bearer (the reference's §4). The
    text repeats the type only if that cannot be a token whose type was left out.
    """
    # Authorization wins: it is the reference's header, Sourcegraph's clients send an empty x-api-key beside it, and
    # SDKs that send both mean a gateway in front by Authorization and the provider by x-api-key.
    authorization = (header(b"authorization") or b"").strip()
    if authorization.startswith(b"Bearer "):
        return _decode(authorization[7:].strip())  # as nearly all clients spell it, and not empty
    if not authorization:
        own = (header(b"x-api-key") or b"").strip() or (header(b"x-goog-api-key") or b"").strip()
        return _decode(own or _find_key(query))
    token_type, space, token = authorization.partition(b" ")
    if not space:
        raise Refusal(400, "token type missing in Authorization header", code="invalid_authorization")
    # Schemes are case-insensitive (RFC 9110 §11.1).
    if token_type.lower() != b"bearer":
        shown = token_type.decode("ascii") if _HARMLESS_TYPE.fullmatch(token_type) else "****"
        raise Refusal(400, f"invalid token type {shown}", code="invalid_authorization")
    return _decode(token.strip())


NEVER_RETRY: Headers = ((b"x-should-retry", b"false"),)
"""Has SDKs give up at once: Claude Code retries a bare 401 for 50 s."""


def build_unauthorized(*, has_token: bool) -> Refusal:
    """Return the 401 for a request without a token, or with one that no source knows."""
    if not has_token:
        return Refusal(401, "no access token provided", code=MISSING_TOKEN, headers=NEVER_RETRY)
    return Refusal(401, "invalid or unknown access token", code=UNKNOWN_TOKEN, headers=NEVER_RETRY)


def build_denied(error: AccessTokenDenied) -> Refusal:
    """Return the 401 for a token that its source denies."""
    return Refusal(401, str(error), headers=NEVER_RETRY)


def _find_key(query: bytes) -> bytes:
    """Return the first ``key`` of a query, decoded; empty where there is none."""
    for pair in query.split(b"&"):
        name, _, value = pair.partition(b"=")
        if name == b"key" and value:
            return unquote_to_bytes(value.replace(b"+", b" ")).strip()
    return b""


def _decode(token: bytes) -> str:
    return token.decode("utf-8", "surrogateescape")  # never fails; see hash_token for the way back


def check_access(actor: Actor, path: str | bytes) -> None:
    """Raise :exc:`~cgw.errors.Refusal` (403) unless ``actor`` may use the gateway, or this ``path`` of it.

    Only if access is off, ``endpoint_access`` grants or withholds it by prefixes of the path, without leading slashes;
    of several prefixes that match, the longest decides (in the reference: any of them).
    """
    if actor.access_enabled:
        return
    if isinstance(path, bytes):
        path = path.decode("utf-8", "replace")
    # Leading slashes are ignored on both sides, as in the reference (§4).
    path = path.lstrip("/")
    prefixes = [prefix for prefix in actor.endpoint_access if path.startswith(prefix.lstrip("/"))]
    # An actor without id stands for a token that was found invalid: it is granted nothing.
    if actor.id and prefixes and actor.endpoint_access[max(prefixes, key=lambda prefix: len(prefix.lstrip("/")))]:
        return
    raise Refusal(403, "Cody Gateway access not enabled", code="access_not_enabled")
