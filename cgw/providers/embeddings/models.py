"""The embeddings models (the reference's §8.1)."""

from __future__ import annotations

from collections.abc import Mapping

OPENAI_MODEL = "openai/text-embedding-ada-002"
SOURCEGRAPH_MODEL = "sourcegraph/st-multi-qa-mpnet-base-dot-v1"
METADATA_MODEL = "sourcegraph/st-multi-qa-mpnet-metadata"

SDK_MODELS = ("openai/text-embedding-3-small", "openai/text-embedding-3-large")
"""Further models of OpenAI's, which only the routes for SDKs serve."""

MODELS: Mapping[str, int] = {OPENAI_MODEL: 1536, SOURCEGRAPH_MODEL: 768, METADATA_MODEL: 768}
"""The length of each model's vectors."""
