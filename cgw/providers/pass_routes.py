"""Further paths of a provider's API that an operator lets pass: authenticated and counted, but unread.

Neither body nor response is looked at, so the model and the usage are unknown. What is stored at the provider (files,
batches) belongs to the gateway's account, which all actors share.
"""

from __future__ import annotations

from typing import ClassVar
from urllib.parse import unquote_to_bytes

from attrs import field, frozen

from cgw.errors import ConfigError, Headers, Refusal
from cgw.model import BodyWindow, Feature, Usage
from cgw.providers.dialect import Caller, ErrorStyle, PreparedRequest
from cgw.providers.pass_patterns import PassPattern, split_path
from cgw.providers.provider import Provider, ProviderSettings
from cgw.providers.upstream_requests import USER_AGENT, Endpoint, query_of
from cgw.wire.messages import RequestHead, ResponseHead, UpstreamRequest, parse_base_url

PASS_MODEL = "pass-routes"
"""Stands for the model, which is unknown: ``openai/pass-routes``. An actor's list must admit it."""

# What a client may say of its body and of the answer that it wants. Everything else is for cgw, or about the client:
# keys, cookies, the operator's organization, tracing.
_PASSED = frozenset(
    [
        b"content-type", b"content-encoding", b"content-disposition", b"content-language", b"content-range",
        b"accept", b"accept-language", b"range", b"if-match", b"if-none-match", b"idempotency-key",
        b"anthropic-version", b"anthropic-beta", b"openai-beta",
    ]
)  # fmt: skip
_PASSED_PREFIXES = (b"x-goog-upload-",)


@frozen
class PassRoute:
    """One pattern of one provider, as a dialect. ``headers`` have the provider's key.

    ``base_path`` is that of the base URL, ``dropped_segments`` how many segments of the client's path it has already.
    ``models_variable`` is the setting that the pattern is from.
    """

    provider: str
    pattern: PassPattern
    errors: ErrorStyle
    endpoint: Endpoint = field(repr=False)
    base_path: bytes
    dropped_segments: int
    models_variable: str

    default_feature: ClassVar[Feature | None] = Feature.CHAT_COMPLETIONS
    retry_after_seconds: ClassVar[int] = 3
    final_markers: ClassVar[tuple[bytes, ...]] = ()

    @property
    def path(self) -> str:
        """The pattern below the provider's prefix."""
        return f"/{self.provider}/{b'/'.join(self.pattern.segments).decode('ascii')}"

    @property
    def model(self) -> str:
        """The name that stands for the model."""
        return f"{self.provider}/{PASS_MODEL}"

    @property
    def models(self) -> tuple[str, ...]:
        """See :meth:`cgw.providers.dialect.Dialect.models`."""
        return (self.model,)

    def prepare(self, head: RequestHead, body: bytes, caller: Caller) -> PreparedRequest:
        """See :meth:`cgw.providers.dialect.Dialect.prepare`. ``body`` is all of it, or empty where it is streamed."""
        segments = split_path(head.path)
        if segments is None:
            raise Refusal(404, "the path cannot be passed on", code="not_found")
        target = self.base_path + b"/" + b"/".join(segments[1 + self.dropped_segments :])
        query = b"&".join(pair for pair in query_of(head).split(b"&") if pair and not _is_key(pair))
        passed = _select_fields(head)
        names = {name for name, _ in passed}
        own = [item for item in self.endpoint.own_fields if item[0] not in names]  # the API's version is the client's
        request = UpstreamRequest(
            self.endpoint.origin,
            target + (b"?" + query if query else b""),
            (*passed, *own, (b"accept-encoding", b"identity"), USER_AGENT),
            body,
            head.method,
        )
        return PreparedRequest(request, self.model, False, 0, {"route": f"{head.method.decode('ascii')} {self.path}"})

    def read_usage(self, request: PreparedRequest, response: ResponseHead, body: BodyWindow) -> Usage:
        """See :meth:`cgw.providers.dialect.Dialect.read_usage`: nothing is known."""
        return Usage()


def _is_key(pair: bytes) -> bool:
    # Also escaped: Google would take it for a key beside cgw's own.
    return unquote_to_bytes(pair.partition(b"=")[0]).lower() in (b"key", b"access_token", b"api_key")


def _select_fields(head: RequestHead) -> Headers:
    return [item for item in head.headers if item[0] in _PASSED or item[0].startswith(_PASSED_PREFIXES)]


def build_pass_routes(provider: Provider, settings: ProviderSettings, endpoint: Endpoint) -> list[PassRoute]:
    """Return a route for each pattern of ``settings``. ``endpoint`` is any of the provider's, for its key.

    Raises :exc:`~cgw.errors.ConfigError` for a pattern that the base URL cannot have.
    """
    prefix, variable = provider.base_prefix, f"{provider.variables}_PASS_ROUTES"
    if any(not f"{pattern}".partition("/")[2].startswith(prefix[1:]) for pattern in settings.pass_routes):
        raise ConfigError([f"{variable}: must have paths below {prefix}, which the base URL ends with"])
    base_path = parse_base_url(settings.api_url)[1].encode("ascii")
    return [
        PassRoute(provider.name, pattern, provider.sdk_errors, endpoint, base_path, prefix.count("/"), variable)
        for pattern in settings.pass_routes
    ]
