"""What the gateway knows of a provider as a whole: its name, its settings, and how its dialects are built."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from attrs import frozen

from cgw.config.kinds import Secret
from cgw.providers.dialect import Dialect


class ProviderSettings(Protocol):
    """What the settings of every provider have; a provider without an access token has no routes."""

    @property
    def api_url(self) -> str:
        """The base URL of the provider's API."""
        ...

    @property
    def allowed_models(self) -> tuple[str, ...] | None:
        """The models that may be used at all, without prefix; ``None`` for the provider's default list."""
        ...

    @property
    def access_token(self) -> Secret | None:
        """The key for the provider's API."""
        ...

    @property
    def max_in_flight(self) -> int | None:
        """How many requests may be in flight to the provider, over all replicas; ``None`` for no bound."""
        ...


@frozen
class Provider:
    """A provider, as the registry lists it.

    ``name`` is the prefix of its model names. ``settings_class`` is an attrs class that satisfies
    :class:`ProviderSettings`. ``build_dialects(settings)`` returns a dialect for each route; it is called once, with
    an access token set, and may take some milliseconds, in which cattrs compiles its functions. It raises
    :exc:`ValueError`, with a sentence that holds no secret, for a base URL or key that cannot be used.
    """

    name: str
    settings_class: type[Any]
    build_dialects: Callable[[Any], tuple[Dialect, ...]]

    @property
    def access_token_variable(self) -> str:
        """The environment variable of its key."""
        return f"CODY_GATEWAY_{self.name.upper()}_ACCESS_TOKEN"


def reveal_access_token(settings: ProviderSettings) -> str:
    """Return the key for the provider's API. Raises :exc:`ValueError` when none is set."""
    if settings.access_token is None:
        raise ValueError("the provider has no access token")
    return settings.access_token.reveal()
