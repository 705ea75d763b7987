"""Provider routes: the dialect that belongs to a path, and the shape of errors there."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from urllib.parse import unquote_to_bytes

from cgw.errors import Headers, Refusal
from cgw.providers.dialect import Dialect, ErrorStyle
from cgw.providers.pass_patterns import is_own, split_path
from cgw.providers.pass_routes import PassRoute
from cgw.wire.messages import RequestHead


class Routes:
    """The provider routes: each path belongs to one dialect, and accepts POST; pass routes are looked at after them.

    Below ``/<provider>/`` every error has the shape that ``sdk_errors`` has for the provider, 404 included: SDKs show
    nothing of an error body in another shape than their API's. ``errors`` is the shape everywhere else.

    In the path of a dialect, ``{model}:<method>`` as its last segment stands for any model.
    """

    def __init__(self, dialects: Iterable[Dialect], errors: ErrorStyle, sdk_errors: Mapping[str, ErrorStyle]) -> None:
        self._pass_routes: dict[bytes, list[PassRoute]] = {}
        self._dialects: dict[bytes, Dialect] = {}
        for dialect in dialects:
            if isinstance(dialect, PassRoute):
                self._pass_routes.setdefault(dialect.provider.encode("ascii"), []).append(dialect)
            else:
                self._dialects[dialect.path.encode("ascii")] = dialect
        self._folded = {path.lower() for path in self._dialects}
        self._errors = errors
        self._sdk_errors = {provider.encode("ascii"): style for provider, style in sdk_errors.items()}

    @property
    def dialects(self) -> tuple[Dialect, ...]:
        """All dialects."""
        return tuple(self._dialects.values())

    def find(self, path: bytes) -> Dialect | None:
        """Return the dialect of ``path``, or ``None``."""
        dialect = self._dialects.get(path)
        # A second look-up only for the few paths that have a method in their last segment.
        return self._dialects.get(_with_any_model(path)) if dialect is None and b":" in path else dialect

    def find_exchange(self, head: RequestHead) -> Dialect | None:
        """Return the dialect that runs the exchange of a request: by its path and method, or a pass route."""
        dialect = self.find(head.path)
        if dialect is not None:
            return dialect if head.method == b"POST" else None
        return self._find_pass_route(head) if self._pass_routes else None

    def _find_pass_route(self, head: RequestHead) -> PassRoute | None:
        routes = self._pass_routes.get(_first_segment(head.path))
        segments = None if routes is None else split_path(head.path)
        if routes is None or segments is None:
            return None
        # Another spelling of a route that is read must not pass unread.
        plain = b"/" + unquote_to_bytes(b"/".join(segments))
        if self._is_read(plain) or is_own(segments[1:]):
            return None
        return next((route for route in routes if route.pattern.matches(head.method, segments[1:])), None)

    def _is_read(self, path: bytes) -> bool:
        # Whatever the case: some servers of open models do not tell it apart.
        folded = path.lower()
        return folded in self._folded or _with_any_model(folded) in self._folded

    def find_errors(self, path: bytes) -> ErrorStyle:
        """Return the shape of errors for a request to ``path``."""
        dialect = self.find(path)
        if dialect is not None:
            return dialect.errors
        return self._sdk_errors.get(_first_segment(path), self._errors)

    def render_refusal(self, refusal: Refusal, path: bytes, request_id: str | None = None) -> tuple[Headers, bytes]:
        """Render the refusal of a request to ``path``, as :meth:`ErrorStyle.render` does."""
        return self.find_errors(path).render(refusal, request_id)


def _with_any_model(path: bytes) -> bytes:
    base, _, last = path.rpartition(b"/")
    return b"%b/{model}:%b" % (base, last.rpartition(b":")[2])


def _first_segment(path: bytes) -> bytes:
    return path.split(b"/", 2)[1] if path.startswith(b"/") else b""
