"""Providers whose API follows OpenAI's, as many as the settings name."""

from __future__ import annotations

import json
from typing import Any

import pytest

from cgw.config.kinds import Secret
from cgw.errors import ConfigError, Refusal
from cgw.model import Feature
from cgw.providers.dialect import Caller, Dialect, PreparedRequest
from cgw.providers.openai_compatible.settings import OpenAICompatibleSettings
from cgw.providers.registry import PROVIDERS, RESERVED_NAMES, build_dialects, list_providers
from cgw.service.settings import load_settings
from cgw.wire.messages import Origin, RequestHead

PREFIX = "CODY_GATEWAY_OPENAI_COMPATIBLE_GROQ"
SETTINGS = OpenAICompatibleSettings(
    api_url="https://groq.test/openai/v1", access_token=Secret("KEY"), allowed_models=("llama-*", "openai/gpt-oss")
)
PATHS = [
    "/v1/completions/groq",
    "/groq/v1/chat/completions",
    "/groq/v1/responses",
    "/groq/v1/completions",
    "/groq/v1/embeddings",
]
HELLO = [{"role": "user", "content": "hello"}]
BODY = {"model": "llama-3", "messages": HELLO}


def choose_feature(dialect: Dialect) -> Feature:
    return dialect.default_feature or Feature.CHAT_COMPLETIONS


def prepare(dialect: Dialect, body: dict[str, Any], feature: Feature = Feature.CHAT_COMPLETIONS) -> PreparedRequest:
    head = RequestHead(b"POST", dialect.path.encode(), ())
    return dialect.prepare(head, json.dumps(body).encode(), Caller("acme:7", feature))


@pytest.mark.parametrize("feature", [Feature.CHAT_COMPLETIONS, Feature.CODE_COMPLETIONS])
def test_a_name_gives_two_routes_for_both_features(feature: Feature) -> None:
    """The base URL is what SDKs take; the model loses the provider's prefix, and keeps a slash of its own."""
    dialects = build_dialects({"groq": SETTINGS})
    assert [dialect.path for dialect in dialects] == PATHS
    for dialect in dialects:
        assert dialect.models_variable == f"{PREFIX}_ALLOWED_MODELS"
        assert dialect.provider == "groq"
    for dialect in dialects[:2]:
        assert dialect.models == ("groq/llama-*", "groq/openai/gpt-oss")
        assert dialect.final_markers == (b"data: [DONE]",)
        for model in ("openai/gpt-oss", "groq/openai/gpt-oss"):
            prepared = prepare(dialect, {**BODY, "model": model}, feature)
            assert prepared.model == "groq/openai/gpt-oss"
            assert json.loads(prepared.upstream.body) == {**BODY, "model": "openai/gpt-oss", "user": "acme:7"}
            upstream = prepared.upstream
            assert (upstream.origin, upstream.target) == (
                Origin("https", "groq.test", 443),
                b"/openai/v1/chat/completions",
            )
            assert dict(upstream.headers)[b"authorization"] == b"Bearer KEY"


def test_fields_of_servers_of_open_models_are_passed_on() -> None:
    """The reference's kind of route has an allowlist, with what those servers know in addition."""
    reference, sdk, *_ = build_dialects({"groq": SETTINGS})
    body = {**BODY, "top_k": 5, "min_p": 0.1}
    assert json.loads(prepare(reference, {**body, "junk": 1}).upstream.body) == {**body, "user": "acme:7"}
    assert json.loads(prepare(sdk, {**body, "junk": 1}).upstream.body) == {**body, "junk": 1, "user": "acme:7"}


@pytest.mark.parametrize("field", ["models", "fallbacks"])
def test_further_models_are_refused(field: str) -> None:
    """A router's list of fallbacks would not be checked: it gets 400, or is dropped where unknown fields are."""
    reference, sdk, *others = build_dialects({"groq": SETTINGS})
    body = {**BODY, field: ["expensive"]}
    for dialect in (sdk, *others):
        with pytest.raises(Refusal, match="naming further models is not supported") as caught:
            prepare(dialect, {**body, "prompt": "x", "input": "x"}, choose_feature(dialect))
        assert (caught.value.status, caught.value.param) == (400, field)
    assert field not in json.loads(prepare(reference, body).upstream.body)


@pytest.mark.parametrize("name", ["anthropic", "openai", "v1", "maintenance", "anthropic-messages"])
def test_a_name_that_has_routes_is_taken(name: str) -> None:
    """No configured provider can take the routes of another, or change the shape of errors elsewhere."""
    assert name in RESERVED_NAMES
    variable = f"CODY_GATEWAY_OPENAI_COMPATIBLE_{name.upper().replace('-', '_')}_API_URL"
    with pytest.raises(ConfigError) as caught:
        load_settings({variable: "https://a.test/v1"})
    assert list(caught.value.problems) == [f"{variable}: the name {name} is taken: choose another one"]


def test_no_route_of_a_provider_can_be_taken() -> None:
    """The names of all routes that end in a provider's name are reserved."""
    settings = {provider.name: provider.settings_class(access_token=Secret("k")) for provider in PROVIDERS}
    paths = [dialect.path for dialect in build_dialects(settings)]
    assert {path.rpartition("/")[2] for path in paths if path.startswith("/v1/completions/")} <= RESERVED_NAMES
    assert {path.split("/")[1] for path in paths} <= RESERVED_NAMES


def test_what_is_missing_is_said_with_its_variable() -> None:
    """With a key, the base URL and the models are required; without one there are no routes, and no problems."""
    with pytest.raises(ConfigError) as caught:
        build_dialects({"groq": OpenAICompatibleSettings(access_token=Secret("KEY"))})
    assert [problem.partition(":")[0] for problem in caught.value.problems] == [
        f"{PREFIX}_API_URL",
        f"{PREFIX}_ALLOWED_MODELS",
    ]
    assert build_dialects({"groq": OpenAICompatibleSettings()}) == ()


def test_the_environment_names_providers() -> None:
    """A provider's variables come from its name, and its settings are of the family's class."""
    settings = load_settings(
        {f"{PREFIX}_API_URL": "https://a.test/v1", f"{PREFIX}_ACCESS_TOKEN": "k", f"{PREFIX}_ALLOWED_MODELS": "*"}
    )
    assert not settings.warnings
    *_, groq = list_providers(settings.providers)
    assert (groq.name, groq.api_url_variable, groq.access_token_variable) == (
        "groq",
        f"{PREFIX}_API_URL",
        f"{PREFIX}_ACCESS_TOKEN",
    )
    assert [dialect.path for dialect in build_dialects(settings.providers)] == PATHS


def test_an_unknown_provider_is_a_bug() -> None:
    """Settings that belong to no provider are not passed over in silence."""
    with pytest.raises(LookupError):
        list_providers({"other": object()})  # type: ignore[dict-item]
