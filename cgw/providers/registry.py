"""All providers. A new one is a package beside this file, and one line here."""

from __future__ import annotations

from collections.abc import Mapping

from cgw.providers.anthropic.provider import ANTHROPIC
from cgw.providers.dialect import Dialect
from cgw.providers.openai.provider import OPENAI
from cgw.providers.provider import Provider, ProviderSettings

PROVIDERS: tuple[Provider, ...] = (
    ANTHROPIC,
    OPENAI,
)


def build_dialects(settings: Mapping[str, ProviderSettings]) -> tuple[Dialect, ...]:
    """Return the dialects of all providers that have a key, each with a route of its own.

    ``settings`` are the providers' by name. Raises as :class:`~cgw.providers.provider.Provider` says.
    """
    return tuple(
        dialect
        for provider in PROVIDERS
        if settings[provider.name].access_token is not None
        for dialect in provider.build_dialects(settings[provider.name])
    )
