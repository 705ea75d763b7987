"""The registry: the routes of providers with a key, and the rules that every provider keeps."""

from __future__ import annotations

import pytest

from cgw.config.declare import list_variables
from cgw.config.kinds import Secret
from cgw.errors import ConfigError, Refusal
from cgw.providers.anthropic.models import ANTHROPIC_MODELS
from cgw.providers.anthropic.settings import AnthropicSettings
from cgw.providers.openai.settings import OpenAISettings
from cgw.providers.provider import Provider
from cgw.providers.registry import PROVIDERS, build_dialects

ANTHROPIC_PATHS = [
    "/v1/completions/anthropic",
    "/v1/completions/anthropic-messages",
    "/anthropic/v1/messages",
    "/anthropic/v1/messages/count_tokens",
]
OPENAI_PATHS = [
    "/v1/completions/openai",
    "/openai/v1/chat/completions",
    "/openai/v1/responses",
    "/openai/v1/responses/compact",
    "/openai/v1/responses/input_tokens",
    "/openai/v1/completions",
    "/openai/v1/moderations",
]


@pytest.mark.parametrize(
    ("anthropic", "openai", "paths"),
    [
        ("k", "k", ANTHROPIC_PATHS + OPENAI_PATHS),
        ("k", None, ANTHROPIC_PATHS),
        (None, "k", OPENAI_PATHS),
        (None, None, []),
    ],
)
def test_a_provider_without_key_has_no_routes(anthropic: str | None, openai: str | None, paths: list[str]) -> None:
    """Each provider with a key has its routes; a provider without a key has none."""
    keys = {name: None if key is None else Secret(key) for name, key in (("anthropic", anthropic), ("openai", openai))}
    dialects = build_dialects(
        {
            "anthropic": AnthropicSettings(access_token=keys["anthropic"]),
            "openai": OpenAISettings(access_token=keys["openai"]),
        }
    )
    assert [dialect.path for dialect in dialects] == paths


def test_the_default_models_get_their_prefix() -> None:
    """The default lists have names without prefix; dialects add it."""
    dialects = build_dialects({"anthropic": AnthropicSettings(access_token=Secret("k")), "openai": OpenAISettings()})
    assert dialects[0].models == tuple(f"anthropic/{model}" for model in ANTHROPIC_MODELS)


@pytest.mark.parametrize("url", ["ftp://a", "https://", "https://u@a", "https://a?b", "a"])
def test_an_invalid_base_url_is_refused(url: str) -> None:
    """A base URL that is not valid is refused when the dialects are built, with its variable."""
    with pytest.raises(ConfigError, match=r"^CODY_GATEWAY_ANTHROPIC_API_URL: cannot be used: must "):
        build_dialects(
            {"anthropic": AnthropicSettings(api_url=url, access_token=Secret("k")), "openai": OpenAISettings()}
        )


def test_settings_show_no_key() -> None:
    """The settings' ``repr`` does not contain the key."""
    assert "KEY" not in repr(
        (AnthropicSettings(access_token=Secret("KEY")), OpenAISettings(access_token=Secret("KEY")))
    )


EACH_PROVIDER = pytest.mark.parametrize("provider", PROVIDERS, ids=lambda provider: provider.name)


def test_names_and_routes_are_unique() -> None:
    """No two providers have the same name, and no two dialects the same route."""
    settings = {provider.name: provider.settings_class(access_token=Secret("k")) for provider in PROVIDERS}
    paths = [dialect.path for dialect in build_dialects(settings)]
    assert len(settings) == len(PROVIDERS)
    assert len(set(paths)) == len(paths)


@EACH_PROVIDER
def test_settings_follow_the_protocol(provider: Provider) -> None:
    """Each provider's settings have the five common fields, with the provider's name in their variables."""
    variables = {attribute.name: variable.name for attribute, variable in list_variables(provider.settings_class)}
    prefix = f"CODY_GATEWAY_{provider.name.upper()}_"
    assert variables.items() >= {
        ("api_url", f"{prefix}API_URL"),
        ("fallback_api_url", f"{prefix}FALLBACK_API_URL"),
        ("access_token", provider.access_token_variable),
        ("allowed_models", f"{prefix}ALLOWED_MODELS"),
        ("max_in_flight", f"{prefix}MAX_IN_FLIGHT"),
    }
    assert all(name.startswith(prefix) for name in variables.values())


@EACH_PROVIDER
def test_dialects_follow_the_protocol(provider: Provider) -> None:
    """Each provider's dialects have its name, its prefix, a default list of models, and a renderable error style."""
    for dialect in provider.build_dialects(provider.settings_class(access_token=Secret("k"))):
        assert dialect.provider == provider.name
        assert dialect.models
        assert all(model.startswith(f"{provider.name}/") for model in dialect.models)
        headers, body = dialect.errors.render(Refusal(400, "wrong"))
        assert headers
        assert b"wrong" in body
        assert dialect.retry_after_seconds > 0
