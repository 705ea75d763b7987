"""The exceptions of cgw, as types that say whose fault it was.

Only a :class:`Refusal` has a text for clients; the texts of all others are for operators.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Sequence

Headers = Sequence[tuple[bytes, bytes]]
"""HTTP header fields in order, names in lower case."""

DISK_FULL_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""A write failed because there is no room for it: this may pass while the process runs."""


MISSING_TOKEN = "missing_access_token"
UNKNOWN_TOKEN = "unknown_access_token"
"""Codes of a :class:`Refusal`; each API has words of its own for these two."""


class CgwError(Exception):
    """The base class of all exceptions that cgw raises on purpose."""


class ConfigError(CgwError):
    """The settings, or a file that they name, are not valid. ``problems`` has a sentence for each thing to correct.

    ``warnings`` are what else an operator should know of the settings; they alone are no reason to raise this.
    """

    def __init__(self, problems: Sequence[str], warnings: Sequence[str] = ()) -> None:
        self.problems = tuple(problems)
        self.warnings = tuple(warnings)
        super().__init__("\n".join(self.problems))


class Refusal(CgwError):
    """A request that cgw answers itself, instead of the upstream. A dialect renders it for the client.

    ``status`` is the HTTP status, ``message`` the text for the client, ``param`` the path of the wrong part of the
    body (``messages[0].content``) if there is one, ``code`` a short machine-readable reason, ``headers`` the header
    fields besides the dialect's own. With ``must_close``, the connection is closed after the response.
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
    """The client disconnected, or stopped reading: a response cannot be sent."""


class UpstreamError(CgwError):
    """The upstream could not be reached, or broke off the exchange. The text never contains a key."""


class UpstreamUnreachable(UpstreamError):
    """No connection: refused, no route, unknown host, or a failed TLS handshake."""


class OutOfDescriptors(UpstreamError):
    """No connection, for want of file descriptors: cgw's own fault, not the upstream's."""


class UpstreamTimeout(UpstreamError):
    """A deadline passed: connecting, waiting for the response head, waiting for the next chunk, or in total."""


class ConnectTimeout(UpstreamTimeout):
    """No connection in time: nothing of the request was sent."""


class UpstreamProtocolError(UpstreamError):
    """The upstream's bytes are not a valid HTTP/1.1 response, or the body is incomplete."""


class UpstreamRefusal(UpstreamError):
    """The upstream refused in a way that cgw tells in its own words, or is not asked because it fails all the time.

    ``status`` and ``message`` are for the client, ``headers`` are fields of the answer; ``reason`` is for the log.
    """

    def __init__(self, status: int, message: str, *, reason: str | None = None, headers: Headers = ()) -> None:
        super().__init__(reason or message)
        self.status = status
        self.message = message
        self.headers = tuple(headers)


class StoreUnavailable(CgwError):
    """Redis did not answer in time, or answered that it is not available."""


class StoreRefused(StoreUnavailable):
    """Redis refuses this login, database or protocol: trying again does not help, an operator has to change something.

    At start it ends the process, unlike other failures; later it is an outage like any other.
    """


class EventLogError(CgwError):
    """Recorded usage events could not be read or imported."""


def explain_os_error(error: BaseException) -> str:
    """Return the reason of a failed system call or TLS handshake: the system's words, without a path or address.

    Looks through the exceptions that wrap it: Trio, httpx and asyncio wrap the errors of each address that they tried;
    of several in a group, the first one counts.
    """
    cause = _find_root_cause(error)
    verify_message: str | None = getattr(cause, "verify_message", None)  # ssl.SSLCertVerificationError
    if verify_message:
        return f"the certificate is not valid: {verify_message}"
    # Errors of TLS and of name resolution have numbers of their own, which os.strerror() would misread.
    has_own_numbers = isinstance(cause, OSError) and type(cause).__module__ in ("ssl", "_ssl", "socket")
    if isinstance(cause, OSError) and cause.errno and not has_own_numbers:
        return os.strerror(cause.errno)  # not its own text: Trio puts the address into that
    return getattr(cause, "strerror", None) or str(cause) or type(cause).__name__


def is_out_of_descriptors(error: BaseException) -> bool:
    """Return whether a call failed because this process, or the machine, has no file descriptor left."""
    cause = _find_root_cause(error)
    if isinstance(cause, socket.gaierror):
        # The resolver could not open its own files or sockets, and says something else: so look.
        try:
            os.close(os.dup(2))
        except OSError as duplicating:
            cause = duplicating
    return isinstance(cause, OSError) and cause.errno in (errno.EMFILE, errno.ENFILE)


def _find_root_cause(error: BaseException) -> BaseException:
    while True:
        # Trio puts the errors of several addresses of one host into a group.
        if isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        elif error.__cause__ is not None:
            error = error.__cause__
        elif error.__context__ is not None and not isinstance(error, OSError):
            # httpcore raises its own errors "from None". The context of an OSError may have nothing to do with it.
            error = error.__context__
        else:
            return error
