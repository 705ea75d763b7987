"""What can go wrong, as types that say whose fault it was.

A :class:`Refusal` carries everything that a dialect needs to answer the caller; nothing else ever reaches one.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

Headers = Sequence[tuple[bytes, bytes]]
"""HTTP header fields in order, names in lower case."""


class CgwError(Exception):
    """Anything that cgw raises on purpose."""


class ConfigError(CgwError):
    """The settings, or a file they name, are wrong. ``problems`` has one sentence for each thing to mend."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(self.problems))


class Refusal(CgwError):
    """A request that is answered by cgw itself instead of by the upstream.

    ``status`` is the HTTP status, ``message`` what the caller reads, ``param`` the path of the offending part of
    the body (``messages[0].content``) where there is one, ``code`` a short machine-readable reason, ``headers``
    what the answer carries besides the dialect's own. ``must_close`` tells the connection not to go on after it.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Headers = (),
        must_close: bool = False,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.headers = tuple(headers)
        self.must_close = must_close


class ClientGone(CgwError):
    """The client left, or took nothing for too long: there is nobody to answer."""


class UpstreamError(CgwError):
    """The upstream could not be reached or broke its side of the exchange. The text never holds a key."""


class UpstreamUnreachable(UpstreamError):
    """No connection: refused, no route, no such host, or a TLS handshake that failed."""


class UpstreamTimeout(UpstreamError):
    """A deadline passed: connecting, waiting for the response head, silence between chunks, or in total."""


class UpstreamProtocolError(UpstreamError):
    """The upstream's bytes are no valid HTTP/1.1 response, or the body ended before its end."""


class StoreUnavailable(CgwError):
    """Redis did not answer in time, or answered that it cannot serve now."""


class EventLogError(CgwError):
    """Recorded usage events could not be read or imported."""


def explain_os_error(error: BaseException) -> str:
    """Return why an operation of the system failed, in its own words, without the path or address it names.

    Looks through what wraps the error (``__cause__``, the first of a group): Trio, httpx and asyncio wrap the errors
    of each address that was tried.
    """
    cause = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    while isinstance(cause, BaseExceptionGroup):
        cause = cause.exceptions[0]
    verify_message: str | None = getattr(cause, "verify_message", None)  # ssl.SSLCertVerificationError
    if verify_message:
        return f"the certificate is not valid: {verify_message}"
    has_own_numbers = isinstance(cause, OSError) and type(cause).__module__ in ("ssl", "_ssl", "socket")
    if isinstance(cause, OSError) and cause.errno and not has_own_numbers:
        return os.strerror(cause.errno)  # an error of Trio's repeats the address in its text
    return getattr(cause, "strerror", None) or str(cause) or type(cause).__name__
