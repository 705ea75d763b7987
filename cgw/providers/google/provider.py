"""The provider ``google`` as the registry lists it."""

from __future__ import annotations

from cgw.providers.dialect import Dialect
from cgw.providers.google.errors import GoogleErrors
from cgw.providers.google.generate import PROVIDER, GoogleCompletions, build_endpoint
from cgw.providers.google.model_list import GoogleModelList
from cgw.providers.google.models import GOOGLE_MODELS
from cgw.providers.google.settings import GoogleSettings
from cgw.providers.models import add_prefixes
from cgw.providers.provider import Provider, reveal_access_token


def _build_dialects(settings: GoogleSettings) -> tuple[Dialect, ...]:
    endpoint = build_endpoint(settings.api_url, reveal_access_token(settings))
    return (GoogleCompletions(endpoint, add_prefixes(PROVIDER, settings.allowed_models or GOOGLE_MODELS)),)


GOOGLE = Provider(PROVIDER, GoogleSettings, _build_dialects, GoogleErrors(), model_list=GoogleModelList())
