"""Settings of flagging. Names and defaults are the reference's."""

from __future__ import annotations

from pathlib import Path

from attrs import frozen

from cgw.config.declare import setting
from cgw.config.kinds import BOOLEAN, HOUR, NAMES, PATH, PHRASES, duration, integer

_TOKENS = integer(least=1, most=10_000_000)
_SHARED = "For Anthropic, OpenAI, Google and compatible servers."


@frozen
class FlaggingSettings:
    """The requests that are flagged in usage events, or refused. Variables have the reference's prefix, ANTHROPIC, also
    where they are for other providers, too; Fireworks' requests are never flagged."""

    allowed_phrases: tuple[str, ...] = setting(
        "CODY_GATEWAY_ANTHROPIC_ALLOWED_PROMPT_PATTERNS",
        PHRASES,
        (),
        f"Phrases of which a prompt must have one, or it is flagged; separated by commas, in any case. {_SHARED}",
    )
    blocked_phrases: tuple[str, ...] = setting(
        "CODY_GATEWAY_ANTHROPIC_BLOCKED_PROMPT_PATTERNS",
        PHRASES,
        (),
        f"Phrases that no prompt may have; separated by commas, in any case. {_SHARED}",
    )
    is_blocking: bool = setting(
        "CODY_GATEWAY_ANTHROPIC_REQUEST_BLOCKING_ENABLED",
        BOOLEAN,
        False,
        "Whether requests with a blocked phrase, or beyond a blocking limit, get 400; otherwise they are only flagged.",
    )
    prompt_flagging_tokens: int = setting(
        "CODY_GATEWAY_ANTHROPIC_PROMPT_TOKEN_FLAGGING_LIMIT",
        _TOKENS,
        18_000,
        "A request with more tokens in its prompt is flagged. For Anthropic.",
    )
    prompt_blocking_tokens: int = setting(
        "CODY_GATEWAY_ANTHROPIC_PROMPT_TOKEN_BLOCKING_LIMIT",
        _TOKENS,
        20_000,
        "A request with more tokens in its prompt is to be blocked. For Anthropic.",
    )
    response_flagging_tokens: int = setting(
        "CODY_GATEWAY_ANTHROPIC_MAX_TOKENS_TO_SAMPLE_FLAGGING_LIMIT",
        _TOKENS,
        4000,
        f"A request that asks for more tokens is flagged. {_SHARED}",
    )
    response_blocking_tokens: int = setting(
        "CODY_GATEWAY_ANTHROPIC_RESPONSE_TOKEN_BLOCKING_LIMIT",
        _TOKENS,
        4000,
        f"A request that asks for more tokens is to be blocked. {_SHARED}",
    )
    flagged_models: tuple[str, ...] = setting(
        "CODY_GATEWAY_ANTHROPIC_FLAGGED_MODEL_NAMES",
        NAMES,
        (),
        f"Models whose requests are flagged, with or without the provider's prefix. {_SHARED}",
    )
    tokenizer_file: Path | None = setting(
        "CODY_GATEWAY_TOKENIZER_FILE",
        PATH,
        None,
        "The vocabulary that prompts are counted by, as cl100k_base.tiktoken; needs the extra cgw[tokenizer]. Without "
        "it, tokens of prompts are estimated from their characters.",
    )
    prompt_ttl_seconds: float = setting(
        "CODY_GATEWAY_DOTCOM_FLAGGED_PROMPT_RECORDER_TTL",
        duration(least=1, most=30 * 24 * HOUR),
        HOUR,
        "How long Redis keeps the flagged chat prompts of Sourcegraph.com's users, for /maintenance/flagged-requests.",
    )
    logged_identifiers: tuple[str, ...] = setting(
        "CODY_GATEWAY_IDENTIFIERS_TO_LOG_FOR",
        NAMES,
        (),
        "The ids of users of Sourcegraph.com whose prompts are written to usage events in full.",
    )
