"""Settings of one provider whose API follows OpenAI's."""

from __future__ import annotations

from attrs import frozen

from cgw.config.declare import setting
from cgw.config.kinds import API_URL, NAMES, SECRET, Secret, integer
from cgw.model import MAX_IN_FLIGHT
from cgw.providers.models import MODELS_HELP
from cgw.providers.pass_patterns import PASS_HELP, PASS_ROUTES, PassPattern


@frozen
class OpenAICompatibleSettings:
    """A provider of your own, for each ``<NAME>`` of capitals, digits and underscores that the environment has.

    Its models are called ``<name>/<model>``, with the name in lower case and hyphens for underscores. It has routes if
    its access token is set: for a server that wants no key, set any word.
    """

    api_url: str = setting(
        "CODY_GATEWAY_OPENAI_COMPATIBLE_<NAME>_API_URL",
        API_URL,
        "",
        "The base URL of the API, as the OpenAI SDKs take it: the part before /chat/completions, usually with /v1.",
    )
    fallback_api_url: str | None = setting(
        "CODY_GATEWAY_OPENAI_COMPATIBLE_<NAME>_FALLBACK_API_URL",
        API_URL,
        None,
        "A second base URL, for the same key, which is asked once when the first answers 5xx or cannot be reached.",
    )
    access_token: Secret | None = setting(
        "CODY_GATEWAY_OPENAI_COMPATIBLE_<NAME>_ACCESS_TOKEN",
        SECRET,
        None,
        "The key for the API, sent as a bearer token; without it, there are no routes to it.",
    )
    allowed_models: tuple[str, ...] | None = setting(
        "CODY_GATEWAY_OPENAI_COMPATIBLE_<NAME>_ALLOWED_MODELS",
        NAMES,
        None,
        f"The models that the routes serve, * for all: {MODELS_HELP} Required.",
    )
    max_in_flight: int | None = setting(
        "CODY_GATEWAY_OPENAI_COMPATIBLE_<NAME>_MAX_IN_FLIGHT",
        integer(least=1, most=MAX_IN_FLIGHT),
        None,
        "How many requests may be in flight to the provider, from all replicas together; unset means no bound.",
    )
    pass_routes: tuple[PassPattern, ...] = setting(
        "CODY_GATEWAY_OPENAI_COMPATIBLE_<NAME>_PASS_ROUTES", PASS_ROUTES, (), PASS_HELP
    )
