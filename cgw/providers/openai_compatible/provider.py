"""The family of providers whose API follows OpenAI's: a provider for each name in the settings."""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar

from attrs import frozen

from cgw.errors import ConfigError, Headers, Refusal
from cgw.providers.dialect import Caller, Dialect
from cgw.providers.embeddings.sdk import SdkEmbeddings
from cgw.providers.json_body import ClientBody
from cgw.providers.models import add_prefixes
from cgw.providers.openai.chat import BODY_FIELDS, ChatBody, OpenAIChat, OpenAISdkChat
from cgw.providers.openai.errors import OpenAIErrors
from cgw.providers.openai.model_list import OpenAIModelList
from cgw.providers.openai.responses import OpenAIResponses
from cgw.providers.openai.sdk_route import OpenAISdkRoute
from cgw.providers.openai.texts import OpenAISdkTexts
from cgw.providers.openai_compatible.settings import OpenAICompatibleSettings
from cgw.providers.provider import Provider, ProviderFamily, reveal_access_token
from cgw.providers.upstream_requests import Endpoint, secret_value

_VARIABLES = "CODY_GATEWAY_OPENAI_COMPATIBLE"

# Fields that servers of open models have, and OpenAI has not.
_FURTHER_FIELDS = frozenset({"top_k", "min_p", "repetition_penalty", "reasoning", "thinking", "chat_template_kwargs"})
# Of routers in front of several models: what they name would not be checked.
_FURTHER_MODELS = ("models", "fallbacks")


def _name_variables(provider: str) -> str:
    return f"{_VARIABLES}_{provider.upper().replace('-', '_')}"


@frozen
class CompatibleChat(OpenAIChat):
    """``/v1/completions/<name>``: as the route to OpenAI, for both features."""

    takes_code: ClassVar[bool] = True
    body_fields: ClassVar[frozenset[str]] = BODY_FIELDS | _FURTHER_FIELDS

    @property
    def models_variable(self) -> str:
        """See :meth:`cgw.providers.dialect.Dialect.models_variable`."""
        return f"{_name_variables(self.provider)}_ALLOWED_MODELS"


def _refuse_further_models(raw: dict[str, Any]) -> None:
    for name in _FURTHER_MODELS:
        if raw.get(name) is not None:
            text = f"{name}: naming further models is not supported by this gateway, which checks one per request"
            raise Refusal(400, text, param=name)


class _CompatibleSdkRoute(OpenAISdkRoute):
    """The steps that the routes below ``/<name>/`` share, for both features.

    Fields other than ``model`` that name models are refused, because only ``model`` is checked.
    """

    __slots__ = ()

    @property
    def models_variable(self) -> str:
        """See :meth:`cgw.providers.dialect.Dialect.models_variable`."""
        return f"{_name_variables(self.provider)}_ALLOWED_MODELS"

    def check(self, raw: dict[str, Any]) -> None:
        """See :meth:`OpenAISdkRoute.check`."""
        _refuse_further_models(raw)


@frozen
class CompatibleResponses(_CompatibleSdkRoute, OpenAIResponses):
    """``/<name>/v1/responses``."""


@frozen
class CompatibleTexts(_CompatibleSdkRoute, OpenAISdkTexts):
    """``/<name>/v1/completions``."""


@frozen
class CompatibleEmbeddings(_CompatibleSdkRoute, SdkEmbeddings):
    """``/<name>/v1/embeddings``."""


@frozen
class CompatibleSdkChat(OpenAISdkChat):
    """``/<name>/v1/chat/completions``: as the route to OpenAI, and with the rules of the other routes here."""

    takes_code: ClassVar[bool] = True

    @property
    def models_variable(self) -> str:
        """See :meth:`cgw.providers.dialect.Dialect.models_variable`."""
        return f"{_name_variables(self.provider)}_ALLOWED_MODELS"

    def _read(self, body: ClientBody, caller: Caller) -> tuple[ChatBody, dict[str, Any], int]:
        parsed, raw, characters = super()._read(body, caller)
        _refuse_further_models(raw)
        return parsed, raw, characters


def _build_dialects(name: str, settings: OpenAICompatibleSettings) -> tuple[Dialect, ...]:
    variables = _name_variables(name)
    problems = []
    if not settings.api_url:
        problems.append(f"{variables}_API_URL: must be set: the base URL of the provider's API")
    if settings.allowed_models is None:
        problems.append(f"{variables}_ALLOWED_MODELS: must be set: the models that the routes serve, or * for all")
    if problems:
        raise ConfigError(problems)
    token = secret_value(reveal_access_token(settings), "the provider's access token")
    headers: Headers = ((b"authorization", b"Bearer " + token),)
    chat, responses, texts, embeddings = (
        Endpoint.parse(settings.api_url, path, headers)
        for path in ("/chat/completions", "/responses", "/completions", "/embeddings")
    )
    models = add_prefixes(name, settings.allowed_models or ())
    return (
        CompatibleChat(chat, models, provider=name, path=f"/v1/completions/{name}"),
        CompatibleSdkChat(chat, models, provider=name, path=f"/{name}/v1/chat/completions"),
        CompatibleResponses(responses, models, provider=name, path=f"/{name}/v1/responses", takes_code=True),
        CompatibleTexts(texts, models, provider=name, path=f"/{name}/v1/completions", takes_code=True),
        CompatibleEmbeddings(embeddings, models, provider=name, path=f"/{name}/v1/embeddings"),
    )


def _build_provider(name: str) -> Provider:
    build = partial(_build_dialects, name)
    return Provider(
        name,
        OpenAICompatibleSettings,
        build,
        OpenAIErrors(),
        model_list=OpenAIModelList(),
        variables=_name_variables(name),
        base_prefix="/v1",
    )


OPENAI_COMPATIBLE = ProviderFamily(OpenAICompatibleSettings, _build_provider)
