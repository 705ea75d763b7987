"""The provider ``fireworks`` as the registry lists it."""

from __future__ import annotations

from cgw.providers.dialect import Dialect
from cgw.providers.fireworks.completions import PROVIDER, FireworksCompletions, build_endpoints
from cgw.providers.fireworks.models import FIREWORKS_MODELS, VirtualModels
from cgw.providers.fireworks.sdk import FireworksSdkChat, FireworksSdkTexts
from cgw.providers.fireworks.settings import FireworksSettings
from cgw.providers.models import add_prefixes
from cgw.providers.openai.errors import OpenAIErrors
from cgw.providers.openai.model_list import OpenAIModelList
from cgw.providers.provider import Provider, reveal_access_token


def _build_dialects(settings: FireworksSettings) -> tuple[Dialect, ...]:
    chat, text = build_endpoints(settings.api_url, reveal_access_token(settings))
    models = add_prefixes(PROVIDER, settings.allowed_models or FIREWORKS_MODELS)
    virtual = VirtualModels(settings.community_percent, settings.enterprise_percent)
    return (
        FireworksCompletions(chat, models, text_endpoint=text, virtual_models=virtual),
        FireworksSdkChat(chat, models, virtual_models=virtual),
        FireworksSdkTexts(text, models, virtual_models=virtual),
    )


# Its API follows OpenAI's, errors included.
FIREWORKS = Provider(PROVIDER, FireworksSettings, _build_dialects, OpenAIErrors(), model_list=OpenAIModelList())
