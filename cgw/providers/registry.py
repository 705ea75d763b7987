"""The list of all providers.

To add one, create a package beside this file and add a line to :data:`PROVIDERS`::

    <name>/settings.py   an attrs class that satisfies ProviderSettings
    <name>/models.py     the models that are allowed by default
    <name>/<api>.py      a subclass of Route for each route: checks, rewrites, the upstream request
    <name>/usage.py      readers of usage, for whole and for streamed responses
    <name>/errors.py     an ErrorStyle for the routes of SDKs
    <name>/provider.py   a Provider that names all of it

``docs/providers.md`` goes through them. ``route``, ``request_body``, ``json_body``, ``upstream_requests`` and
``usage_reading`` have the steps that dialects share. The list of settings (``docs/settings.md``) is generated:
``python -m docs.generate_settings``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cgw.errors import ConfigError
from cgw.providers.anthropic.provider import ANTHROPIC
from cgw.providers.dialect import Dialect
from cgw.providers.fireworks.provider import FIREWORKS
from cgw.providers.google.provider import GOOGLE
from cgw.providers.openai.provider import OPENAI
from cgw.providers.openai_compatible.provider import OPENAI_COMPATIBLE
from cgw.providers.pass_routes import PassRoute, build_pass_routes
from cgw.providers.provider import Provider, ProviderFamily, ProviderSettings
from cgw.providers.route import Route

PROVIDERS: tuple[Provider, ...] = (
    ANTHROPIC,
    OPENAI,
    FIREWORKS,
    GOOGLE,
)


FAMILIES: tuple[ProviderFamily, ...] = (OPENAI_COMPATIBLE,)
"""Further providers, which the settings name."""

RESERVED_NAMES = frozenset({*(provider.name for provider in PROVIDERS), "v1", "maintenance", "anthropic-messages"})
"""Names that no provider of a family may have, because other routes have them."""


def list_providers(settings: Mapping[str, ProviderSettings]) -> tuple[Provider, ...]:
    """Return the providers that ``settings`` has by their names: those above, and those of a family."""
    known = {provider.name: provider for provider in PROVIDERS}
    return tuple(known.get(name) or _build_named(name, own) for name, own in settings.items())


def _build_named(name: str, settings: ProviderSettings) -> Provider:
    for family in FAMILIES:
        if isinstance(settings, family.settings_class):
            return family.build_provider(name)
    raise LookupError(f"there is no provider {name}")


def build_dialects(settings: Mapping[str, ProviderSettings]) -> tuple[Dialect, ...]:
    """Return the dialects of all providers that have a key, each with a route of its own.

    ``settings`` has the settings of each provider by its name. Raises :exc:`~cgw.errors.ConfigError` with every
    provider whose base URL or key cannot be used.
    """
    dialects: list[Dialect] = []
    problems: list[str] = []
    for provider in list_providers(settings):
        own = settings[provider.name]
        if own.access_token is not None:
            try:
                dialects += (built := provider.build_dialects(own))
                dialects += _build_pass_routes(provider, own, built)
            except ConfigError as error:
                problems += error.problems
            except ValueError as error:
                problems.append(f"{provider.api_url_variable}: cannot be used: {error}")
    if problems:
        raise ConfigError(problems)
    return tuple(dialects)


def _build_pass_routes(
    provider: Provider, settings: ProviderSettings, dialects: tuple[Dialect, ...]
) -> Sequence[PassRoute]:
    if not settings.pass_routes:
        return ()
    # The last one is an SDK route's, which has the key and nothing of an older API.
    endpoint = next(dialect.endpoint for dialect in reversed(dialects) if isinstance(dialect, Route))
    return build_pass_routes(provider, settings, endpoint)
