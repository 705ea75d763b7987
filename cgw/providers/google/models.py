"""The models of Google that are allowed by default."""

from __future__ import annotations

GOOGLE_MODELS = (
    # The reference's list.
    "gemini-1.5-flash-latest", "gemini-1.5-pro-latest", "gemini-pro-latest", "gemini-1.5-flash-001",
    "gemini-1.5-pro-001", "gemini-1.5-flash", "gemini-1.5-pro", "gemini-pro",
    # What https://ai.google.dev/gemini-api/docs/models names for text, and its aliases.
    "gemini-2.0-flash", "gemini-2.0-flash-lite", "gemini-2.5-pro", "gemini-2.5-flash", "gemini-2.5-flash-lite",
    "gemini-3-flash-preview", "gemini-3-pro-preview", "gemini-3.1-pro-preview", "gemini-3.1-flash-lite",
    "gemini-3.5-flash", "gemini-3.5-flash-lite", "gemini-3.6-flash", "gemini-3.7-flash", "gemini-3.8-flash",
    "gemini-flash-latest", "gemini-flash-lite-latest",
)  # fmt: skip
"""The default list for Google, without the provider's prefix."""

GOOGLE_EMBEDDINGS_MODELS = (
    "gemini-embedding-001", "gemini-embedding-2", "gemini-embedding-2-preview", "text-embedding-004",
)  # fmt: skip
"""The default list of the routes to embeddings."""
