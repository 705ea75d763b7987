"""The parts of a request for OpenAI's SDKs that are not the client's to choose."""

from __future__ import annotations

from typing import Any

from cgw.providers.dialect import Caller
from cgw.providers.json_body import ClientBody, change_fields

BETAS = frozenset({b"openai-beta"})
"""The header fields of a client that go to the provider. No others do: its key is for cgw."""

_CHECKED = frozenset(
    [
        "model", "messages", "prompt", "input", "instructions", "stream", "store", "n", "best_of", "max_tokens",
        "max_completion_tokens", "max_output_tokens", "user", "safety_identifier", "background", "conversation",
        "previous_response_id", "prompt_cache_options", "models", "fallbacks",
    ]
)  # fmt: skip
"""The fields that a route checks, refuses or sets: a server must not find one of them that cgw has not seen."""


def set_caller(body: ClientBody, asked: str, model: str, caller: Caller) -> bytes:
    """Return the client's bytes with the caller's identifier as ``user``, and ``model`` where the client ``asked``
    for it by another name.

    OpenAI's abuse handling is about the gateway's callers, so a ``user`` of the client's is replaced, and a
    ``safety_identifier``, which would name another one, is removed. Raises :exc:`~cgw.errors.Refusal` as
    :func:`~cgw.providers.json_body.change_fields` does.
    """
    changes: dict[str, Any] = {"user": caller.identifier, "safety_identifier": None}
    if model != asked:
        changes["model"] = model
    return change_fields(body, changes, _CHECKED)


def set_model(body: ClientBody, asked: str, model: str) -> bytes:
    """Return the client's bytes with ``model`` where that is not what it ``asked`` for."""
    return change_fields(body, {} if model == asked else {"model": model}, _CHECKED)
