"""The provider ``openai`` as the registry lists it."""

from __future__ import annotations

from cgw.providers.dialect import Dialect
from cgw.providers.models import add_prefixes
from cgw.providers.openai.chat import PROVIDER, OpenAIChat, OpenAISdkChat, build_endpoint
from cgw.providers.openai.errors import OpenAIErrors
from cgw.providers.openai.models import OPENAI_MODELS
from cgw.providers.openai.settings import OpenAISettings
from cgw.providers.provider import Provider, reveal_access_token


def _build_dialects(settings: OpenAISettings) -> tuple[Dialect, ...]:
    endpoint = build_endpoint(settings.api_url, reveal_access_token(settings), settings.org_id)
    models = add_prefixes(PROVIDER, settings.allowed_models or OPENAI_MODELS)
    return OpenAIChat(endpoint, models), OpenAISdkChat(endpoint, models)


OPENAI = Provider(PROVIDER, OpenAISettings, _build_dialects, OpenAIErrors())
