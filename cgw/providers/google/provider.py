"""The provider ``google`` as the registry lists it."""

from __future__ import annotations

from cgw.providers.dialect import Dialect
from cgw.providers.google.embed import GoogleSdkBatchEmbed, GoogleSdkEmbed
from cgw.providers.google.errors import GoogleErrors
from cgw.providers.google.generate import PROVIDER, GoogleCompletions, build_endpoint
from cgw.providers.google.model_list import GoogleModelList
from cgw.providers.google.models import GOOGLE_EMBEDDINGS_MODELS, GOOGLE_MODELS
from cgw.providers.google.sdk import VERSIONS, GoogleSdkCountTokens, GoogleSdkGenerate, GoogleSdkStream
from cgw.providers.google.settings import GoogleSettings
from cgw.providers.models import add_prefixes
from cgw.providers.provider import Provider, reveal_access_token


def _build_dialects(settings: GoogleSettings) -> tuple[Dialect, ...]:
    token = reveal_access_token(settings)
    models = add_prefixes(PROVIDER, settings.allowed_models or GOOGLE_MODELS)
    dialects: list[Dialect] = [GoogleCompletions(build_endpoint(settings.api_url, token), models)]
    embeddings_models = add_prefixes(PROVIDER, settings.allowed_models or GOOGLE_EMBEDDINGS_MODELS)
    for version in VERSIONS:
        endpoint = build_endpoint(settings.api_url, token, version)
        dialects += (kind(endpoint, models, version=version) for kind in _SDK_ROUTES)
        dialects += (kind(endpoint, embeddings_models, version=version) for kind in _EMBEDDINGS_ROUTES)
    return tuple(dialects)


_SDK_ROUTES = (GoogleSdkGenerate, GoogleSdkStream, GoogleSdkCountTokens)
_EMBEDDINGS_ROUTES = (GoogleSdkEmbed, GoogleSdkBatchEmbed)

GOOGLE = Provider(PROVIDER, GoogleSettings, _build_dialects, GoogleErrors(), model_list=GoogleModelList())
