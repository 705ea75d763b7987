"""The provider ``anthropic`` as the registry lists it."""

from __future__ import annotations

from cgw.providers.anthropic import complete
from cgw.providers.anthropic.complete import AnthropicComplete
from cgw.providers.anthropic.errors import AnthropicErrors
from cgw.providers.anthropic.messages import (
    PROVIDER,
    AnthropicCountTokens,
    AnthropicMessages,
    AnthropicSdkMessages,
    build_endpoint,
)
from cgw.providers.anthropic.model_list import AnthropicModelList
from cgw.providers.anthropic.models import ANTHROPIC_MODELS
from cgw.providers.anthropic.settings import AnthropicSettings
from cgw.providers.dialect import Dialect
from cgw.providers.models import add_prefixes
from cgw.providers.provider import Provider, reveal_access_token


def _build_dialects(settings: AnthropicSettings) -> tuple[Dialect, ...]:
    token = reveal_access_token(settings)
    endpoint = build_endpoint(settings.api_url, token)
    models = add_prefixes(PROVIDER, settings.allowed_models or ANTHROPIC_MODELS)
    return (
        AnthropicComplete(
            complete.build_endpoint(settings.api_url, token), models, max_tokens_cap=settings.max_tokens_to_sample
        ),
        AnthropicMessages(endpoint, models, max_tokens_cap=settings.max_tokens_to_sample),
        AnthropicSdkMessages(endpoint, models),
        AnthropicCountTokens(endpoint, models),
    )


ANTHROPIC = Provider(PROVIDER, AnthropicSettings, _build_dialects, AnthropicErrors(), model_list=AnthropicModelList())
