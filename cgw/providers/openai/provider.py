"""The provider ``openai`` as the registry lists it."""

from __future__ import annotations

from cgw.providers.dialect import Dialect
from cgw.providers.models import add_prefix
from cgw.providers.openai.chat import PROVIDER, OpenAIChat, OpenAISdkChat
from cgw.providers.openai.models import OPENAI_MODELS
from cgw.providers.openai.settings import OpenAISettings
from cgw.providers.provider import Provider, reveal_access_token


def _build_dialects(settings: OpenAISettings) -> tuple[Dialect, ...]:
    url, token, organization = settings.api_url, reveal_access_token(settings), settings.org_id
    models = tuple(add_prefix(PROVIDER, model) for model in settings.allowed_models or OPENAI_MODELS)
    return (
        OpenAIChat(url, token, models, organization=organization),
        OpenAISdkChat(url, token, models, organization=organization),
    )


OPENAI = Provider(PROVIDER, OpenAISettings, _build_dialects)
