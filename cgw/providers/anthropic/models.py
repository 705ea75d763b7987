"""The models of Anthropic that are allowed by default."""

from __future__ import annotations

ANTHROPIC_MODELS = (
    # The reference's list.
    "claude-v1", "claude-v1-100k", "claude-v1.0", "claude-v1.2", "claude-v1.3", "claude-v1.3-100k", "claude-2",
    "claude-2.0", "claude-2.1", "claude-2-100k", "claude-instant-v1", "claude-instant-1", "claude-instant-v1-100k",
    "claude-instant-v1.0", "claude-instant-v1.1", "claude-instant-v1.1-100k", "claude-instant-v1.2",
    "claude-instant-1.2", "claude-instant-1.2-cyan", "claude-3-haiku-20240307", "claude-3-sonnet-20240229",
    "claude-3-5-sonnet-20240620", "claude-3-opus-20240229",
    # What anthropic 2.12 for Python names, deprecated ones included.
    "claude-3-5-haiku-20241022", "claude-3-5-haiku-latest", "claude-3-7-sonnet-20250219", "claude-3-7-sonnet-latest",
    "claude-opus-4-0", "claude-opus-4-20250514", "claude-sonnet-4-0", "claude-sonnet-4-20250514", "claude-haiku-4-5",
    "claude-haiku-4-5-20251001", "claude-sonnet-4-5", "claude-sonnet-4-5-20250929", "claude-opus-4-5",
    "claude-opus-4-5-20251101", "claude-sonnet-4-6", "claude-opus-4-6", "claude-opus-4-7", "claude-opus-4-8",
    "claude-sonnet-5", "claude-opus-5", "claude-fable-5", "claude-fable-5-1", "claude-fable-5-2", "claude-sonnet-5-5",
    "claude-haiku-5-5", "claude-opus-5-5",
)  # fmt: skip
"""The default list for Anthropic, without the provider's prefix. Models by invitation (mythos) are not in it."""
