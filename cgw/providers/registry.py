"""All dialects, from plain settings."""

from __future__ import annotations

from attrs import field, frozen

from cgw.providers.anthropic_messages import DEFAULT_MAX_TOKENS_CAP, AnthropicMessages, AnthropicSdkMessages
from cgw.providers.dialect import Dialect
from cgw.providers.models import ANTHROPIC_MODELS, OPENAI_MODELS, add_prefix
from cgw.providers.openai_chat import OpenAIChat, OpenAISdkChat


@frozen
class AnthropicProvider:
    """How to reach Anthropic. Without ``access_token`` it has no routes; ``models`` are without prefix."""

    api_url: str = "https://api.anthropic.com"
    access_token: str | None = field(default=None, repr=False)
    models: tuple[str, ...] = ANTHROPIC_MODELS
    max_tokens_cap: int = DEFAULT_MAX_TOKENS_CAP
    """For the reference's route; the SDK route has no cap."""


@frozen
class OpenAIProvider:
    """How to reach OpenAI. Without ``access_token`` it has no routes; ``models`` are without prefix."""

    api_url: str = "https://api.openai.com"
    access_token: str | None = field(default=None, repr=False)
    models: tuple[str, ...] = OPENAI_MODELS
    organization: str | None = None


def build_dialects(anthropic: AnthropicProvider, openai: OpenAIProvider) -> tuple[Dialect, ...]:
    """The dialects of all providers that have a key, each with a route of its own.

    cattrs compiles its functions here, some milliseconds for each dialect: do it once. Raises :exc:`ValueError`, with
    a sentence that holds no secret, for a base URL that is none or a key that cannot be sent.
    """
    return (*_build_anthropic(anthropic), *_build_openai(openai))


def _build_anthropic(settings: AnthropicProvider) -> tuple[Dialect, ...]:
    if settings.access_token is None:
        return ()
    url, token = settings.api_url, settings.access_token
    models = tuple(add_prefix("anthropic", model) for model in settings.models)
    return (
        AnthropicMessages(url, token, models, max_tokens_cap=settings.max_tokens_cap),
        AnthropicSdkMessages(url, token, models),
    )


def _build_openai(settings: OpenAIProvider) -> tuple[Dialect, ...]:
    if settings.access_token is None:
        return ()
    url, token, organization = settings.api_url, settings.access_token, settings.organization
    models = tuple(add_prefix("openai", model) for model in settings.models)
    return (
        OpenAIChat(url, token, models, organization=organization),
        OpenAISdkChat(url, token, models, organization=organization),
    )
