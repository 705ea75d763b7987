"""Which dialects there are."""

from __future__ import annotations

import pytest

from cgw.config.kinds import Secret
from cgw.providers.anthropic.models import ANTHROPIC_MODELS
from cgw.providers.anthropic.settings import AnthropicSettings
from cgw.providers.openai.settings import OpenAISettings
from cgw.providers.registry import build_dialects

ANTHROPIC_PATHS = ["/v1/completions/anthropic-messages", "/anthropic/v1/messages"]
OPENAI_PATHS = ["/v1/completions/openai", "/openai/v1/chat/completions"]


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
    """Each provider with a key has its two routes, the others none."""
    keys = {name: None if key is None else Secret(key) for name, key in (("anthropic", anthropic), ("openai", openai))}
    dialects = build_dialects(
        {
            "anthropic": AnthropicSettings(access_token=keys["anthropic"]),
            "openai": OpenAISettings(access_token=keys["openai"]),
        }
    )
    assert [dialect.path for dialect in dialects] == paths


def test_the_default_models_get_their_prefix() -> None:
    """Settings name models without prefix, dialects with it."""
    dialects = build_dialects({"anthropic": AnthropicSettings(access_token=Secret("k")), "openai": OpenAISettings()})
    assert dialects[0].models == tuple(f"anthropic/{model}" for model in ANTHROPIC_MODELS)


@pytest.mark.parametrize("url", ["ftp://a", "https://", "https://u@a", "https://a?b", "a"])
def test_a_base_url_that_is_none_is_refused(url: str) -> None:
    """A wrong base URL is found when the dialects are made."""
    with pytest.raises(ValueError, match="must "):
        build_dialects(
            {"anthropic": AnthropicSettings(api_url=url, access_token=Secret("k")), "openai": OpenAISettings()}
        )


def test_settings_show_no_key() -> None:
    """The settings' ``repr`` holds no key."""
    assert "KEY" not in repr(
        (AnthropicSettings(access_token=Secret("KEY")), OpenAISettings(access_token=Secret("KEY")))
    )
