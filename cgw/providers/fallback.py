"""The second base URL of a provider's API, which is asked once when the first one does not serve."""

from __future__ import annotations

from collections.abc import Mapping

from attrs import frozen

from cgw.providers.provider import ProviderSettings
from cgw.wire.messages import Origin, UpstreamRequest, parse_base_url


@frozen
class Fallback:
    """The place where requests to a base URL with the path ``first_path`` go instead."""

    first_path: str
    origin: Origin
    path: str

    @classmethod
    def parse(cls, first_url: str, fallback_url: str) -> Fallback:
        """Return the fallback of one base URL to another. Raises :exc:`ValueError` for one that is not valid."""
        _, first_path = parse_base_url(first_url)
        return cls(first_path, *parse_base_url(fallback_url))

    def redirect(self, request: UpstreamRequest) -> UpstreamRequest:
        """Return ``request`` as it goes to the fallback, with the same fields: the key is valid there, too."""
        target = self.path.encode("ascii") + request.target.removeprefix(self.first_path.encode("ascii"))
        return UpstreamRequest(self.origin, target, request.headers, request.body, request.method)


def build_fallbacks(settings: Mapping[str, ProviderSettings]) -> dict[str, Fallback]:
    """Return the fallback of each provider that has one, by its name. The settings have checked the URLs."""
    return {
        name: Fallback.parse(own.api_url, own.fallback_api_url)
        for name, own in settings.items()
        if own.fallback_api_url is not None
    }
