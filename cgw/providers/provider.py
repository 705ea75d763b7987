"""A provider as a whole: its name, its settings, and the function that builds its dialects."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from attrs import field, frozen

from cgw.config.kinds import Secret
from cgw.providers.dialect import Dialect, ErrorStyle
from cgw.providers.model_list import ModelList
from cgw.providers.pass_patterns import PassPattern


class ProviderSettings(Protocol):
    """The settings that every provider has. A provider without an access token has no routes."""

    @property
    def api_url(self) -> str:
        """The base URL of the provider's API."""
        ...

    @property
    def fallback_api_url(self) -> str | None:
        """A second base URL, which is asked once when the first one does not serve; ``None`` for none."""
        ...

    @property
    def allowed_models(self) -> tuple[str, ...] | None:
        """The models that the provider's routes serve, without prefix; ``None`` for the default list."""
        ...

    @property
    def access_token(self) -> Secret | None:
        """The key for the provider's API."""
        ...

    @property
    def max_in_flight(self) -> int | None:
        """The largest number of requests in flight to the provider, over all replicas; ``None`` for no bound."""
        ...

    @property
    def pass_routes(self) -> tuple[PassPattern, ...]:
        """Further paths of the API that pass unread."""
        ...


@frozen
class Provider:
    """A provider, as the registry lists it.

    ``name`` is the prefix of its model names. ``settings_class`` is an attrs class that satisfies
    :class:`ProviderSettings`, declared with :func:`cgw.config.declare.setting`; its variables are called
    ``CODY_GATEWAY_<NAME>_API_URL``, ``_FALLBACK_API_URL``, ``_ACCESS_TOKEN``, ``_ALLOWED_MODELS``,
    ``_MAX_IN_FLIGHT`` and ``_PASS_ROUTES``. The service reads them, masks the secrets in the log, and bounds the
    requests in flight.

    ``build_dialects(settings)`` returns a dialect for each route. It is called once, with an access token set, and may
    take some milliseconds, for example while cattrs compiles functions. It raises :exc:`ValueError`, without any
    secret in its text, for a base URL or key that cannot be used, and :exc:`~cgw.errors.ConfigError` for settings that
    are missing.

    ``sdk_errors`` is the shape of every error below ``/<name>/``, where the routes for the API's SDKs are: also where
    there is no such route, or no key. ``model_list`` is the form of the API's list of models, for a route below
    ``/<name>/`` as well. ``variables`` is what the names of its variables begin with. ``base_prefix`` is the start of
    clients' paths that its base URLs end with.
    """

    name: str
    settings_class: type[Any]
    build_dialects: Callable[[Any], tuple[Dialect, ...]]
    sdk_errors: ErrorStyle
    model_list: ModelList | None = field(default=None, kw_only=True)
    variables: str = field(kw_only=True)
    base_prefix: str = field(default="", kw_only=True)

    @variables.default
    def _choose_variables(self) -> str:
        return f"CODY_GATEWAY_{self.name.upper()}"

    @property
    def access_token_variable(self) -> str:
        """The environment variable of its key."""
        return f"{self.variables}_ACCESS_TOKEN"

    @property
    def api_url_variable(self) -> str:
        """The environment variable of its base URL."""
        return f"{self.variables}_API_URL"


@frozen
class ProviderFamily:
    """Providers of one kind, as many as the settings name.

    ``settings_class`` is that of each of them; its variables have ``<NAME>`` for the name. ``build_provider(name)``
    returns the provider of a name, which is in lower case, with hyphens for underscores.
    """

    settings_class: type[Any]
    build_provider: Callable[[str], Provider]


def reveal_access_token(settings: ProviderSettings) -> str:
    """Return the key for the provider's API. Raises :exc:`ValueError` when none is set."""
    if settings.access_token is None:
        raise ValueError("the provider has no access token")
    return settings.access_token.reveal()
