"""The models of OpenAI that are allowed by default."""

from __future__ import annotations

OPENAI_MODELS = (
    # The reference's list.
    "gpt-4", "gpt-3.5-turbo", "gpt-4o", "gpt-4-turbo", "gpt-4-turbo-preview",
    # What openai 3.54 for Python names for chat completions, without dated, audio and search variants.
    "gpt-4o-mini", "gpt-4.1", "gpt-4.1-mini", "gpt-4.1-nano", "o1", "o3", "o3-mini", "o4-mini", "gpt-5", "gpt-5-mini",
    "gpt-5-nano", "gpt-5-chat-latest", "gpt-5.1", "gpt-5.1-chat-latest", "gpt-5.1-codex", "gpt-5.2",
    "gpt-5.2-chat-latest", "gpt-5.2-pro", "gpt-5.3-chat-latest", "gpt-5.4", "gpt-5.4-mini", "gpt-5.4-nano", "gpt-5.5",
    "gpt-5.6-luna", "gpt-5.6-sol", "gpt-5.6-terra", "gpt-6-astra", "gpt-6-luna", "gpt-6-sol", "gpt-6.1-sol",
    "gpt-6.1-terra", "gpt-6.2-astra", "gpt-6.2-sol", "gpt-5.1-mini", "chatgpt-4o-latest", "o1-mini", "o1-preview",
    "gpt-3.5-turbo-16k", "gpt-4-32k", "gpt-4-0125-preview", "gpt-4-1106-preview", "gpt-4-vision-preview",
)  # fmt: skip
"""The default list for OpenAI, without the provider's prefix."""

TEXT_MODELS = ("gpt-3.5-turbo-instruct", "davinci-002", "babbage-002")
"""The default list for the older Completions API, without the provider's prefix."""
