"""The names that OpenTelemetry's semantic conventions for generative AI have for features and providers.

https://opentelemetry.io/docs/specs/semconv/registry/attributes/gen-ai/
"""

from __future__ import annotations

from collections.abc import Mapping

OPERATIONS: Mapping[str, str] = {
    "chat_completions": "chat",
    "code_completions": "text_completion",
    "embeddings": "embeddings",
}
"""``gen_ai.operation.name`` by feature."""

_PROVIDERS = {"google": "gcp.gemini"}


def name_provider(provider: str) -> str:
    """Return ``gen_ai.provider.name``: the conventions' name, or cgw's own where they have none."""
    return _PROVIDERS.get(provider, provider)
