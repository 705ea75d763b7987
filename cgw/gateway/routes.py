"""Provider routes: the dialect that belongs to a path, and the shape of errors there."""

from __future__ import annotations

from collections.abc import Iterable

from cgw.providers.dialect import Dialect, ErrorStyle


class Routes:
    """The provider routes: each path belongs to one dialect, and accepts POST.

    ``errors`` is the shape of errors everywhere else. Below the first segment of an SDK route (``/openai/``) every
    error has that route's shape, 404 included: SDKs show nothing of an error body in another shape than their API's.
    """

    def __init__(self, dialects: Iterable[Dialect], errors: ErrorStyle) -> None:
        self._dialects = {dialect.path.encode("ascii"): dialect for dialect in dialects}
        self._errors = errors
        # The reference's routes are below /v1/ and have no default feature: they share the reference's errors.
        self._errors_by_prefix = {
            _first_segment(path): dialect.errors
            for path, dialect in self._dialects.items()
            if dialect.default_feature is not None
        }

    def find(self, path: bytes) -> Dialect | None:
        """Return the dialect of ``path``, or ``None``."""
        return self._dialects.get(path)

    def find_errors(self, path: bytes) -> ErrorStyle:
        """Return the shape of errors for a request to ``path``."""
        dialect = self._dialects.get(path)
        if dialect is not None:
            return dialect.errors
        return self._errors_by_prefix.get(_first_segment(path), self._errors)


def _first_segment(path: bytes) -> bytes:
    return path.split(b"/", 2)[1] if path.startswith(b"/") else b""
