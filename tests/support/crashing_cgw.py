"""``cgw`` with two bugs, run as a script: what callers sent is in the texts of the exceptions.

A prompt with the word ``crash`` ends the exchange by a :exc:`KeyError` with the whole body, in two places; reading
limits with the field ``x-crash`` ends by a :exc:`ValueError` with the token.
"""

from __future__ import annotations

import sys
from typing import Any

from cgw.cli.main import run
from cgw.control.app import ControlApp
from cgw.gateway.exchange import Exchange


def main() -> int:
    """Put the bugs in, and run cgw."""
    prepare, relay, find_actor = Exchange._prepare, Exchange._pass_on, ControlApp._find_actor

    def crash_in_prepare(self: Exchange, head: Any, body: bytes, caller: Any) -> Any:
        if b"crash early" in body:
            raise KeyError(body.decode(), str(head.headers))
        return prepare(self, head, body, caller)

    async def crash_in_relay(self: Exchange, response: Any, admitted: Any) -> Any:
        if b"crash late" in admitted.prepared.upstream.body:
            raise ExceptionGroup("two", [KeyError(admitted.prepared.upstream.body), ValueError(str(response.head))])
        return await relay(self, response, admitted)

    async def crash_in_control(self: ControlApp, request: Any) -> Any:
        if request.head.header(b"x-crash") is not None:
            raise ValueError(str(request.head.headers))
        return await find_actor(self, request)

    Exchange._prepare = crash_in_prepare  # type: ignore[method-assign]
    Exchange._pass_on = crash_in_relay  # type: ignore[method-assign]
    ControlApp._find_actor = crash_in_control  # type: ignore[method-assign]
    return run(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
