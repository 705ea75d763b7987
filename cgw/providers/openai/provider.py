"""The provider ``openai`` as the registry lists it."""

from __future__ import annotations

from functools import partial

from cgw.providers.dialect import Dialect
from cgw.providers.models import add_prefixes
from cgw.providers.openai.chat import PROVIDER, OpenAIChat, OpenAISdkChat, build_endpoint
from cgw.providers.openai.errors import OpenAIErrors
from cgw.providers.openai.model_list import OpenAIModelList
from cgw.providers.openai.models import OPENAI_MODELS, TEXT_MODELS
from cgw.providers.openai.moderations import MODERATION_MODELS, OpenAIModerations
from cgw.providers.openai.responses import OpenAICompaction, OpenAIInputTokens, OpenAIResponses
from cgw.providers.openai.settings import OpenAISettings
from cgw.providers.openai.texts import OpenAISdkTexts
from cgw.providers.provider import Provider, reveal_access_token


def _build_dialects(settings: OpenAISettings) -> tuple[Dialect, ...]:
    build = partial(build_endpoint, settings.api_url, reveal_access_token(settings), settings.org_id)
    chat, models = build(), add_prefixes(PROVIDER, settings.allowed_models or OPENAI_MODELS)
    return (
        OpenAIChat(chat, models),
        OpenAISdkChat(chat, models),
        OpenAIResponses(build("/v1/responses"), models),
        OpenAICompaction(build("/v1/responses/compact"), models),
        OpenAIInputTokens(build("/v1/responses/input_tokens"), models),
        OpenAISdkTexts(build("/v1/completions"), add_prefixes(PROVIDER, settings.allowed_models or TEXT_MODELS)),
        OpenAIModerations(build("/v1/moderations"), add_prefixes(PROVIDER, MODERATION_MODELS)),
    )


OPENAI = Provider(PROVIDER, OpenAISettings, _build_dialects, OpenAIErrors(), model_list=OpenAIModelList())
