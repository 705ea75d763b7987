"""Provider routes: which dialect belongs to a path."""

from __future__ import annotations

from collections.abc import Mapping

from cgw.providers.dialect import Dialect
from cgw.wire.messages import RequestHead


class Routes:
    """The provider routes: each path belongs to one dialect, and accepts POST."""

    def __init__(self, dialects: Mapping[bytes, Dialect]) -> None:
        self._dialects = dict(dialects)

    def find(self, path: bytes) -> Dialect | None:
        """Return the dialect of ``path``, or ``None``."""
        return self._dialects.get(path)

    def is_fast_path(self, head: RequestHead) -> bool:
        """Return whether a request asks a provider, and so runs as an exchange."""
        return head.method == b"POST" and head.path in self._dialects
